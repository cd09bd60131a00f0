"""What shows that the check itself can be trusted: noise, laws of scale, and mistakes that it must catch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from loratools.operations.validation.result import MODULES, Law, Modules
from loratools.operations.validation.stage import Shown, Stage
from loratools.operations.validation.truth import Spot
from loratools.pipelines.beside import beside
from loratools.pipelines.closeness import Closeness
from loratools.pipelines.live import module_of

if TYPE_CHECKING:
    import torch

SWAPPED = (("to_q", "to_k"), ("q_proj", "k_proj"), ("add_q_proj", "add_k_proj"))
"""Names of layers that a wrong table exchanges."""
OFF = 1.01
"""The scale of a mistake of one per cent."""

Applying = Callable[[Sequence[tuple[Any, float]]], AbstractContextManager[list[Any]]]


@dataclass(frozen=True)
class Mistake:
    """A deliberate mistake, and what it did: to the modules (in the judge's pass) and to the first scene."""

    name: str
    explains: str
    made: Callable[[], AbstractContextManager[None]] = nullcontext
    modules: Modules | None = None
    closeness: Closeness | None = None

    def tried(self, stage: Stage, reference: Shown, *, judge: bool) -> Mistake:
        """The same with what it did."""
        with self.made():
            modules = stage.modules() if judge else None
            found = stage.show(1).against(reference)
        return replace(self, made=nullcontext, modules=modules, closeness=found)


def mistakes(stage: Stage, held: Sequence[Any]) -> Iterator[Mistake]:
    """Every mistake that can be made with these adapters, while they are in the weights; none can be seen where the
    adapters change nothing.
    """
    truth = stage.truth
    sizes = {spot: float(stage.change(spot).norm()) for spot in truth.spots if spot.leaf == "weight"}
    ordered = sorted((spot for spot, size in sizes.items() if size), key=lambda spot: (sizes[spot], spot))
    if not ordered:
        return
    for what, spot in (("smallest", ordered[0]), ("median", ordered[len(ordered) // 2])):
        yield Mistake(f"{what} module left out", spot.name, partial(stage.written, {spot: None}))
    yield Mistake("scale off by 1 %", f"every scale times {OFF}", lambda: _rescaled(held))
    pair = _pair(stage, ordered)
    if pair is not None:
        first, second = pair
        crossed = {first: stage.change(second), second: stage.change(first)}
        yield Mistake("q and k exchanged", f"{first.name} ↔ {second.path}", lambda: stage.written(crossed))
    stale: dict[Spot, torch.Tensor | None] = {
        spot: None for spot in truth.spots if spot.component.startswith("text_encoder")
    }
    if stale and any(not spot.component.startswith("text_encoder") for spot in truth.spots):
        yield Mistake(
            "text encoder left out", f"{len(stale)} of its weights are the base's", lambda: stage.written(stale)
        )


def _pair(stage: Stage, spots: Sequence[Spot]) -> tuple[Spot, Spot] | None:
    """The first q and k of one attention, both changed, of one shape."""
    there = set(spots)
    for spot in sorted(spots):
        stem, _, last = spot.path.rpartition(".")
        for q, k in SWAPPED:
            other = Spot(spot.component, f"{stem}.{k}", "weight")
            if last == q and other in there and stage.parameter(spot).shape == stage.parameter(other).shape:
                return spot, other
    return None


@contextmanager
def _rescaled(held: Sequence[Any]) -> Iterator[None]:
    """Within the block every adapter is one per cent too strong."""
    former = [one.scales for one in held]
    try:
        for one, scales in zip(held, former, strict=True):
            one.set_scale({name: scale * OFF for name, scale in scales.items()})
        yield
    finally:
        for one, scales in zip(held, former, strict=True):
            one.set_scale(scales)


@contextmanager
def unfused(stage: Stage) -> Iterator[None]:
    """Within the block every module adds its change to its output, the weights being the base's."""
    truth = stage.truth
    changes: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    for spot in truth.spots:
        live = stage.parameter(spot)
        delta = stage.change(spot).to(live.device, live.dtype).reshape(live.shape)
        changes.setdefault((spot.component, spot.path), {})[spot.leaf] = delta
    rows = [
        (module_of(getattr(stage.pipeline, component), path), found.get("weight"), found.get("bias"))
        for (component, path), found in changes.items()
    ]
    with beside(rows):
        yield


def laws(
    stage: Stage,
    applying: Applying,
    given: Sequence[tuple[Any, float]],
    before: Mapping[str, int],
    base: Shown,
    *,
    noise: float,
) -> Iterator[Law]:
    """What must hold of scales: 0 is the base, the change is linear, adapters add up, and taking them out restores.

    `noise` is how far the latents of two runs of the same weights may lie apart: 0 on a CPU.
    """
    with applying([(lora, 0.0) for lora, _ in given]) as held:
        yield Law("scale 0", "tensors whose bits are not the base's", float(len(stage.moved(before))), 0.0)
        for share, name, told in (
            (0.5, "linear", "half the scale makes half the change of every module"),
            (1.0, "set again", "the scale set afterwards makes the whole change"),
        ):
            for one, (_, scale) in zip(held, given, strict=True):
                one.set_scale(share * scale)
            yield Law(name, told, _worst(stage.modules(scale=share)), MODULES)
    with applying([(lora, 0.5 * scale) for lora, scale in given for _ in range(2)]):
        told = "every adapter twice, at half its scale each time, makes the change"
        yield Law("adapters add", told, _worst(stage.modules()), MODULES)
    yield Law("unload", "tensors whose bits are not the base's", float(len(stage.moved(before))), 0.0)
    apart = stage.show(1).against(base).worst_latents
    yield Law("unload, latents", "the base drawn again, against the first time", apart, 2 * noise)


def _worst(modules: Modules) -> float:
    """The largest error, as a share of its limit where rounding widens that."""
    return max((item.error * MODULES / item.limit for item in modules.spots), default=0.0)
