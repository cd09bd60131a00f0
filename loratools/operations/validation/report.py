"""A validation as the evidence that a report shows."""

from __future__ import annotations

import shlex
from pathlib import PurePath
from typing import TYPE_CHECKING

from loratools.operations.validation.result import LATENTS, MODULES, Control, Law, Route, Validation
from loratools.pipelines.closeness import Closeness, PictureError, eight_bit, finite
from loratools.reports.evidence import (
    BASE,
    REFERENCE,
    Evidence,
    Figure,
    ModuleRow,
    Noise,
    Panel,
    Scene,
    Status,
)
from loratools.reports.evidence import Control as ControlRow
from loratools.reports.evidence import Law as LawRow
from loratools.reports.evidence import Route as RouteRow
from loratools.reports.metrics import measure

if TYPE_CHECKING:
    from loratools.pipelines.running import Drawn
    from loratools.reports.evidence import Pixels

NAMED = 12
"""Modules of a route that its row names."""


def evidence_of(result: Validation) -> Evidence:
    """Everything a page about the validation needs."""
    adapters = " + ".join(f"{PurePath(item['path']).name} at {item['scale']:g}" for item in result.adapters)
    files = (*result.pipeline["files"], *(file for item in result.adapters for file in item["files"]))
    return Evidence(
        title=f"{adapters} on {PurePath(result.pipeline['path']).name}",
        verdict=result.verdict,
        summary=_summary(result),
        routes=tuple(_route(route, result) for route in result.routes),
        scenes=tuple(_scene(at, result) for at in range(len(result.scenes))),
        facts=_facts(result, adapters),
        modules=tuple(_modules(result)),
        noise=tuple(
            Noise(floor.name, _figures(floor.closeness, limited=False), floor.explains) for floor in result.floors
        ),
        controls=tuple(_control(control, result) for control in result.controls),
        laws=tuple(_law(law) for law in result.laws),
        repeat=command_line(result),
        versions=dict(result.versions),
        hashes={file["name"]: file["sha256"] for file in files},
        remarks=(*result.warnings, *(f"no route {name}: {why}" for name, why in result.not_held)),
        document=result.to_dict(),
    )


def command_line(result: Validation) -> str:
    """The command that makes the same validation again."""
    how = result.parameters
    words = ["loratools", "validate", str(result.pipeline["path"])]
    words += [f"{item['path']}={item['scale']!r}" for item in result.adapters]
    for prompt in dict.fromkeys(prompt for prompt, _ in result.scenes):
        words += ["--prompt", prompt]
    for seed in dict.fromkeys(seed for _, seed in result.scenes):
        words += ["--seed", str(seed)]
    for option in ("to", "tokenizer"):
        for text in how[option] or ():
            words += [f"--{option}", text]
    options = {
        "--steps": how["steps"],
        "--guidance": how["guidance"],
        "--size": "x".join(map(str, how["size"])) if how["size"] else None,
        "--frames": how["frames"],
        "--scheduler": how["scheduler"],
        "--dtype": None if how["dtype"] == "F32" else how["dtype"],
        "--device": None if how["device"] == "cpu" else how["device"],
        "--skip": ",".join(how["skip"]) or None,
        "--config": how["config"],
        "--prediction-type": how["prediction_type"],
        "--variant": how["variant"],
        "--arch": how["arch"],
    }
    words += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    for flag in ("offload", "negative_controls", "require_loaded", "allow_partial", "unsafe_pickle"):
        if how[flag]:
            words.append(f"--{flag.replace('_', '-')}")
    given = f"  # inputs that Python's validate was given are missing: {', '.join(how['inputs'])}"
    return shlex.join(words) + (given if how["inputs"] else "")


def _summary(result: Validation) -> str:
    told = {
        "pass": "Every way of the adapter into the pipeline makes the same change as the adapter itself.",
        "fail": "At least one way of the adapter into the pipeline does not make the adapter's own change.",
        "inconclusive": "Nothing wrong was found, but the check could not have seen it, or not everything was checked.",
    }
    return told[result.verdict] if result.passed else f"{told[result.verdict]} {'; '.join(result.reasons)}."


def _facts(result: Validation, adapters: str) -> dict[str, str]:
    how = result.parameters
    kinds = sorted({kind for item in result.adapters for kind in item["kinds"]})
    return {
        "pipeline": f"{result.pipeline['path']} ({result.pipeline['class']})",
        "architecture": str(result.pipeline["architecture"] or "unknown"),
        "adapters": adapters,
        "kinds": ", ".join(kinds),
        "steps": str(how["steps"]),
        "scheduler": str(how["scheduler"] or "the pipeline's own"),
        "guidance": str(how["guidance"] if how["guidance"] is not None else "the pipeline's own"),
        "dtype": result.dtype,
        "judged in": result.judged_in,
        "effect of the adapters on the latents": f"{result.effect:.3g}",
    }


def _route(route: Route, result: Validation) -> RouteRow:
    modules = route.modules
    figures: list[Figure] = []
    if modules is not None:
        figures.append(Figure("modules, worst", finite(modules.worst), limit=MODULES))
    if route.judged is not None:
        figures += _figures(
            route.judged, limited=route.name not in ("base", "reference"), floor=_floor(result, narrow=False)
        )
    if route.in_dtype is not None:
        figures.append(
            Figure(
                f"latents in {result.dtype}", finite(route.in_dtype.worst_latents), floor=_floor(result, narrow=True)
            )
        )
    named = modules.beyond[:NAMED] if modules else ()
    return RouteRow(
        name=route.name,
        status=_shown(route),
        figures=tuple(figures),
        explains=route.explains,
        remarks=route.remarks,
        modules=tuple(item.spot.name for item in named),
        seconds=route.seconds,
        peak_bytes=route.peak_bytes,
        decides=route.decides,
    )


def _scene(at: int, result: Validation) -> Scene:
    prompt, seed = result.scenes[at]
    return Scene(prompt, seed, tuple(_panel(route, at, result) for route in result.routes))


def _panel(route: Route, at: int, result: Validation) -> Panel:
    name = {"base": BASE, "reference": REFERENCE}.get(route.name, route.name)
    pixels = _pixels(route, at)
    found = route.in_dtype or route.judged
    figures: tuple[Figure, ...] = ()
    if found is not None and at < len(found.latents):
        floor = _floor(result, narrow=route.in_dtype is not None)
        figures = (Figure("latents", finite(found.latents[at]), floor=floor), *_picture(found.pictures[at]))
    reference = _pixels(next((item for item in result.routes if item.name == "reference"), None), at)
    if pixels is not None and reference is not None and name != REFERENCE:
        figures += tuple(item for item in measure(pixels, reference) if item.name in {"mean", "SSIM", "LPIPS"})
    return Panel(name, _shown(route), pixels, figures, route.remarks)


def _shown(route: Route) -> Status:
    """The base is what it is: it passes nothing, and is inconclusive where the adapters do not change it."""
    return "info" if route.name == "base" and route.status == "pass" else route.status


def _pixels(route: Route | None, at: int) -> Pixels | None:
    """What a route drew of a scene, as bytes."""
    drawn: Drawn | None = route.drawn[at] if route is not None and at < len(route.drawn) else None
    return None if drawn is None or drawn.image is None else eight_bit(drawn.image).numpy()


def _figures(found: Closeness, *, limited: bool, floor: float | None = None) -> tuple[Figure, ...]:
    rows = [Figure("latents", finite(found.worst_latents), limit=LATENTS if limited else None, floor=floor)]
    if found.worst_denoiser is not None:
        rows.append(Figure("denoiser", finite(found.worst_denoiser)))
    return (*rows, *_picture(found.worst_picture))


def _picture(picture: PictureError | None) -> tuple[Figure, ...]:
    if picture is None:
        return ()
    return (
        Figure("8-bit difference", float(picture.eight_bit), unit="of 255", remark="the largest of any channel"),
        Figure("PSNR", picture.psnr, better="high", unit="dB", remark="of the pictures in 0…1, before they are bytes"),
    )


def _modules(result: Validation) -> list[ModuleRow]:
    rows = [
        ModuleRow(
            item.spot.component,
            item.spot.path + ("" if item.spot.leaf == "weight" else f" ({item.spot.leaf})"),
            route.name,
            item.error,
            item.norm,
            item.ratio,
            item.limit,
        )
        for route in result.routes
        if route.modules is not None
        for item in route.modules.spots
    ]
    return sorted(rows, key=lambda row: -row.error)


def _control(control: Control, result: Validation) -> ControlRow:
    figures = [
        Figure("modules, worst", finite(control.modules), limit=MODULES),
        Figure("latents", finite(control.latents), limit=LATENTS),
    ]
    if control.in_dtype is not None:
        figures.append(Figure(f"latents in {result.dtype}", finite(control.in_dtype)))
    seen = {
        "modules": control.by_modules,
        "latents": control.by_latents,
        f"latents in {result.dtype}": bool(control.seen_in_dtype),
    }
    return ControlRow(
        control.name,
        control.caught,
        tuple(figures),
        control.explains,
        tuple(name for name, there in seen.items() if there),
    )


def _law(law: Law) -> LawRow:
    figure = Figure("measured", finite(law.error), limit=law.limit)
    return LawRow(law.name, "pass" if law.holds else "fail", (figure,), law.explains)


def _floor(result: Validation, *, narrow: bool) -> float | None:
    """The largest noise of the latents: of the pass that judges, or of the one in a narrow dtype."""
    found = [
        floor.closeness.worst_latents
        for floor in result.floors
        if narrow == (floor.name == "dtype" or floor.name.endswith(f", {result.dtype}"))
    ]
    return max(found, default=None)
