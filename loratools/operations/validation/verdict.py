"""From figures to words: the status of each route, and the verdict. It never rests on pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loratools.operations.validation.one_pass import Pass, Seen
from loratools.operations.validation.result import (
    EFFECT,
    LATENTS,
    Control,
    Law,
    Modules,
    Route,
    Status,
    Verdict,
)

HALF_LATENTS = {"F16": 1e-2, "BF16": 5e-2, "F32": LATENTS}
"""The latent error that a dtype's own rounding makes, beyond which a route is wrong even there."""
NOISE = 2.0
"""An error of no more than this many times the noise floor tells nothing."""

EXPLAINS = {
    "base": "the pipeline as it is",
    "reference": "the adapters' own change added to the weights, held to a float64 product of the factors",
    "loaded": "diffusers' own load_lora_weights",
    "merged": "the pipeline loaded from merged weights",
    "extracted": "merged minus base, by SVD, added to the base again",
}


@dataclass(frozen=True, slots=True)
class Found:
    """The passes of a validation: the one that judges, and the one in the dtype where that is another."""

    judge: Pass
    in_dtype: Pass | None = None

    @property
    def exact(self) -> bool:
        """Whether float32 judged."""
        return self.judge.place.dtype == "F32"

    @property
    def effect_is_enough(self) -> bool:
        """Whether the adapters change the latents enough for an error to be seen."""
        return self.judge.effect >= EFFECT * LATENTS


def routes(found: Found) -> tuple[Route, ...]:
    """Every route with its status, in the order in which they are told."""
    order = ("base", "reference", "loaded", "converted", "merged", "extracted")
    told = sorted(found.judge.seen, key=lambda name: order.index(name.split()[0]))
    return tuple(_route(name, found.judge.seen[name], found) for name in told)


def _route(name: str, seen: Seen, found: Found) -> Route:
    other = found.in_dtype.seen.get(name) if found.in_dtype else None
    status, why = _status(name, seen, found)
    drawn = (other or seen).shown
    return Route(
        name=name,
        status=status,
        explains=EXPLAINS.get(name) or f"{name} by loratools, opened again and added to the weights",
        decides=name not in ("base", "loaded"),
        remarks=(*why, *seen.remarks),
        modules=seen.modules,
        judged=seen.closeness,
        in_dtype=other.closeness if other else None,
        drawn=drawn.drawn if drawn else (),
        making=found.judge.making.get(name, 0.0),
        seconds=seen.seconds + (other.seconds if other else 0.0),
        peak_bytes=max(seen.peak_bytes, other.peak_bytes if other else 0),
    )


def _status(name: str, seen: Seen, found: Found) -> tuple[Status, tuple[str, ...]]:
    if seen.refused is not None:
        return "refused", (seen.refused,)
    if name == "base":
        return ("pass", ()) if found.effect_is_enough else ("inconclusive", (_weak(found),))
    wrong: Status = "differs" if name == "loaded" else "fail"
    if seen.modules is not None and not seen.modules.holds:
        return wrong, (told(seen.modules),)
    worst = seen.closeness.worst_latents if seen.closeness else math.inf
    floor = found.judge.noise
    limit = HALF_LATENTS[found.judge.place.dtype]
    if worst > limit and (worst > NOISE * floor or not math.isfinite(worst)):
        return wrong, (f"latents differ by {worst:.2g}, {limit:g} is allowed",)
    if worst > limit:
        return "inconclusive", (f"latents differ by {worst:.2g}, no more than twice the noise floor ({floor:.2g})",)
    if not found.exact:
        return "inconclusive", (f"{found.judge.place.dtype} alone cannot tell: no float32 pass was made",)
    if not found.effect_is_enough:
        return "inconclusive", (_weak(found),)
    return "pass", ()


def told(modules: Modules) -> str:
    """What is wrong with the modules of a route, in a line."""
    counts = {word: count for word, count in modules.counts().items() if count}
    parts = [f"{count} {word}" for word, count in counts.items()]
    if modules.unexpected:
        parts.append(f"{len(modules.unexpected)} changed that should not ({modules.unexpected[0]})")
    first = modules.beyond[0].spot.name if modules.beyond else ""
    of = f" of {len(modules.spots)} modules" if counts else ""
    return " and ".join(parts) + of + (f", first {first}" if first else "")


def controls(found: Found) -> tuple[Control, ...]:
    """Every deliberate mistake, and who saw it."""
    seen = {item.name: item for item in found.in_dtype.mistakes} if found.in_dtype else {}
    noise = NOISE * found.in_dtype.noise if found.in_dtype else 0.0
    rows: list[Control] = []
    for item in found.judge.mistakes:
        latents = item.closeness.worst_latents if item.closeness else 0.0
        other = seen[item.name].closeness if item.name in seen else None
        rows.append(
            Control(
                item.name,
                item.explains,
                item.modules.worst if item.modules else 0.0,
                latents,
                by_modules=item.modules is not None and not item.modules.holds,
                by_latents=latents > max(HALF_LATENTS[found.judge.place.dtype], NOISE * found.judge.noise),
                in_dtype=other.worst_latents if other else None,
                seen_in_dtype=other.worst_latents > noise if other else None,
            )
        )
    return tuple(rows)


def verdict(
    found: Found,
    shown: Sequence[Route],
    tried: Sequence[Control],
    *,
    require_loaded: bool,
    skipped: Sequence[str],
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons, the gravest first."""
    against = tuple(_against(shown, found.judge.laws, require_loaded=require_loaded))
    if against:
        return "fail", against
    open_questions = tuple(dict.fromkeys(_open(found, shown, tried, require_loaded=require_loaded, skipped=skipped)))
    if open_questions:
        return "inconclusive", open_questions
    names = [route.name for route in shown if route.decides and route.name != "reference"]
    return "pass", (f"{', '.join(names)}: the reference's change in every module, and its latents",)


def _against(shown: Sequence[Route], tried: Sequence[Law], *, require_loaded: bool) -> Iterator[str]:
    for route in shown:
        decides = route.decides or (require_loaded and route.name == "loaded")
        if decides and route.status in ("fail", "refused", "differs"):
            yield f"{route.name}: {'; '.join(route.remarks[:1])}"
    for law in tried:
        if not law.holds:
            yield f"{law.name}: {law.error:.2g}, {law.limit:g} is allowed ({law.explains})"


def _open(
    found: Found,
    shown: Sequence[Route],
    tried: Sequence[Control],
    *,
    require_loaded: bool,
    skipped: Sequence[str],
) -> Iterator[str]:
    if not found.effect_is_enough:
        yield _weak(found)
    for route in shown:
        decides = route.decides or (require_loaded and route.name == "loaded")
        if decides and route.status == "inconclusive":
            yield f"{route.name}: {'; '.join(route.remarks[:1])}"
    for control in tried:
        if not control.caught:
            yield f"the mistake {control.name!r} was not caught"
    for name in skipped:
        yield f"{name} was left out"


def _weak(found: Found) -> str:
    return (
        f"the adapters change the latents by {found.judge.effect:.2g}, at least {EFFECT * LATENTS:g} is needed to see "
        "an error"
    )
