"""All routes through one pipeline in one dtype: what each drew, and what it did to the weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.errors import ResourceError
from loratools.operations.apply import apply
from loratools.operations.validation.checks import Mistake, laws, mistakes, unfused
from loratools.operations.validation.inputs import Inputs, float32_bytes
from loratools.operations.validation.result import Floor, Law, Modules
from loratools.operations.validation.stage import Scene, Shown, Stage
from loratools.pipelines.closeness import Closeness
from loratools.pipelines.fingerprints import fingerprints
from loratools.pipelines.meter import measured
from loratools.pipelines.own_loader import Refused, load_adapters
from loratools.pipelines.quiet import quiet_libraries
from loratools.pipelines.running import Drawing, Place, load_pipeline

if TYPE_CHECKING:
    from loratools.formats.opening import Reference
    from loratools.operations.lora import Lora

_LARGE = 1 << 30
"""Bytes of a pipeline that are worth looking for before the next one is loaded."""

Say = Callable[[str], None]
"""Told of each route as it begins."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One route in one pass."""

    shown: Shown | None
    modules: Modules | None = None
    closeness: Closeness | None = None
    seconds: float = 0.0
    peak_bytes: int = 0
    refused: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass
class Pass:
    """Everything that one dtype showed; `mistakes` are the negative controls."""

    place: Place
    seen: dict[str, Seen] = field(default_factory=dict)
    floors: list[Floor] = field(default_factory=list)
    laws: list[Law] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    making: Mapping[str, float] = field(default_factory=dict)

    @property
    def effect(self) -> float:
        """How far the reference's latents are from the base's, in the scene where that is most."""
        found = self.seen["base"].closeness
        return found.worst_latents if found else 0.0

    @property
    def noise(self) -> float:
        """The largest of the floors, by latents."""
        return max((floor.closeness.worst_latents for floor in self.floors), default=0.0)


@dataclass(frozen=True)
class Plan:
    """What a pass is to do: the scenes, how they are drawn, and the routes by their files; `making` tells the seconds
    that each of these took.
    """

    inputs: Inputs
    scenes: tuple[Scene, ...]
    drawing: Drawing
    converted: Mapping[str, Sequence[tuple[Path, float]]]
    extracted: Path | None
    merged: Path | None
    loaded: bool
    controls: bool
    making: Mapping[str, float] = field(default_factory=dict)


def run_pass(plan: Plan, place: Place, *, judge: bool, say: Say) -> Pass:
    """Run every route in one dtype; with `judge` the change of every module is held to the truth, and laws are tried.

    One pipeline is in memory at a time: adapters are put into the first and taken out again, bit for bit.
    """
    found = Pass(place, making=plan.making)
    with quiet_libraries(), exact_arithmetic(place), enough_memory(place):
        reference = _in_place(plan, place, found, judge=judge, say=say)
        if plan.loaded:
            say("loaded by diffusers")
            found.seen["loaded"] = _loaded(plan, place, reference, judge=judge)
        if plan.merged is not None:
            say("merged")
            found.seen["merged"] = _merged(plan, place, plan.merged, reference, judge=judge)
    return found


def _in_place(plan: Plan, place: Place, found: Pass, *, judge: bool, say: Say) -> _Reference:
    """The routes through the pipeline that is loaded once: base, reference, converted, extracted, floors and laws."""
    say("base")
    with measured(place.device) as spent:
        stage = _stage(plan, place, plan.inputs.folder, plan.inputs.variant)
        shown = stage.record()
    before = fingerprints(stage.pipeline)
    found.seen["base"] = Seen(shown, seconds=spent.seconds, peak_bytes=spent.peak_bytes)
    again = stage.show(1)
    found.floors.append(Floor("repeat", "the base run twice", again.against(shown)))

    say("reference")
    given: list[tuple[Reference | Lora, float]] = list(plan.inputs.given)
    with applied(stage, given, plan.inputs) as held:
        with measured(place.device) as spent:
            modules = stage.modules(before) if judge else None
            made = stage.show()
        reference = _Reference(made, stage.calls, before)
        found.seen["reference"] = Seen(made, modules, made.against(made), spent.seconds, spent.peak_bytes)
        found.seen["base"] = replace(found.seen["base"], closeness=shown.against(made))
        if plan.controls:
            for mistake in mistakes(stage, held):
                say(f"control: {mistake.name}")
                found.mistakes.append(mistake.tried(stage, made, judge=judge))

    say("noise floor")
    with unfused(stage):
        found.floors.append(
            Floor("unfused", "the same change beside the weights, not in them", stage.show(1).against(made))
        )
    if judge:
        say("laws of scale")
        repeat = found.floors[0].closeness.worst_latents
        found.laws.extend(
            laws(stage, lambda pairs: applied(stage, pairs, plan.inputs), given, before, shown, noise=repeat)
        )
    routes = {f"converted to {name}": list(files) for name, files in plan.converted.items()}
    if plan.extracted is not None:
        routes["extracted"] = [(plan.extracted, 1.0)]
    for name, files in routes.items():
        say(name)
        with measured(place.device) as spent, applied(stage, files, plan.inputs):
            modules = stage.modules(before) if judge else None
            drawn = stage.show()
        found.seen[name] = Seen(drawn, modules, drawn.against(made), spent.seconds, spent.peak_bytes)
    return reference


@dataclass(frozen=True, slots=True)
class _Reference:
    """What later pipelines are compared with, once the first is gone."""

    shown: Shown
    calls: list[Any]
    before: Mapping[str, int]


def _loaded(plan: Plan, place: Place, reference: _Reference, *, judge: bool) -> Seen:
    """diffusers' own loader in a fresh pipeline."""
    with measured(place.device) as spent:
        stage = _stage(plan, place, plan.inputs.folder, plan.inputs.variant, reference.calls)
        answer = load_adapters(stage.pipeline, plan.inputs.sources)
        if isinstance(answer, Refused):
            seen = Seen(None, refused=answer.why)
        else:
            modules = stage.loaded_modules() if judge else None
            shown = stage.show()
            seen = Seen(shown, modules, shown.against(reference.shown), remarks=answer)
    return _spent(seen, spent.seconds, spent.peak_bytes)


def _merged(plan: Plan, place: Place, folder: Path, reference: _Reference, *, judge: bool) -> Seen:
    """The pipeline from its merged weights."""
    with measured(place.device) as spent:
        stage = _stage(plan, place, folder, plan.inputs.variant, reference.calls)
        modules = stage.modules(reference.before) if judge else None
        shown = stage.show()
    return Seen(shown, modules, shown.against(reference.shown), spent.seconds, spent.peak_bytes)


@contextmanager
def applied(stage: Stage, given: Sequence[tuple[Any, float]], inputs: Inputs) -> Iterator[list[Any]]:
    """Within the block the adapters are in the live weights, each at its scale; then they are taken out again."""
    held: list[Any] = []
    try:
        for lora, scale in given:
            held.append(apply(stage.pipeline, lora, scale, how="weights", **_options(inputs)))
        yield held
    finally:
        for one in reversed(held):
            one.remove()


def _options(inputs: Inputs) -> dict[str, Any]:
    return {
        "arch": inputs.architecture,
        "allow_partial": inputs.allow_partial,
        "unsafe_pickle": inputs.unsafe_pickle,
    }


def _stage(plan: Plan, place: Place, folder: Path, variant: str | None, calls: Sequence[Any] = ()) -> Stage:
    if float32_bytes(plan.inputs.pending.output.checkpoint, offload=False) > _LARGE:
        release()
    pipeline = load_pipeline(
        folder, place, plan.drawing.scheduler, variant=variant, unsafe_pickle=plan.inputs.unsafe_pickle
    )
    return Stage(pipeline, plan.inputs.truth, plan.scenes, plan.drawing, list(calls))


def _spent(seen: Seen, seconds: float, peak_bytes: int) -> Seen:
    return replace(seen, seconds=seconds, peak_bytes=peak_bytes)


def release() -> None:
    """Give the memory of pipelines that are gone back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def enough_memory(place: Place) -> Iterator[None]:
    """Raises ResourceError where the device's memory is too small, in place of torch's own exception."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        told = f"the memory of {place.device} is too small for {place.dtype}"
    else:
        return
    release()
    raise ResourceError(told, hint="--offload keeps one model on the device, --dtype bf16 takes half")


@contextmanager
def exact_arithmetic(place: Place) -> Iterator[None]:
    """On CUDA without TF32, which has ten bits where float32 has twenty-three."""
    import torch

    if not place.device.startswith("cuda"):
        yield
        return
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    former = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = former
