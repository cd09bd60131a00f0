"""validate: the same prompt and seed through every way of an adapter into a pipeline: do they all make its change?"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.errors import ResourceError
from loratools.operations.merging.matches import Weighted
from loratools.operations.validation.result import Validation

if TYPE_CHECKING:
    from loratools.operations.validation.inputs import Inputs
    from loratools.operations.validation.one_pass import Pass, Plan
    from loratools.operations.validation.result import Floor
    from loratools.pipelines.running import Place

PROMPT = "a lighthouse on a cliff above a stormy sea, oil painting"


def validate(
    pipeline: str | os.PathLike[str],
    adapters: Sequence[Weighted],
    *,
    to: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    prompts: Sequence[str] = (PROMPT,),
    seeds: Sequence[int] = (0,),
    steps: int = 8,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    scheduler: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    dtype: str = "F32",
    device: str = "cpu",
    offload: bool = False,
    negative_controls: bool = False,
    require_loaded: bool = False,
    report: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    work: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
    tokenizer: str | os.PathLike[str] | Sequence[str] | None = None,
    prediction_type: str | None = None,
    variant: str | None = None,
    arch: str | None = None,
    allow_partial: bool = False,
    unsafe_pickle: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Validation:
    """Draw every prompt at every seed with the base, with the adapters' own change (the reference), and with what
    diffusers' loader, every conversion (`to` formats; all that can hold them), the merged weights and an extraction
    make of them; compare the change of every module, the denoiser's outputs, latents and pictures with the reference.

    `pipeline` is a folder, a single-file checkpoint (`config`, `tokenizer` and `prediction_type` as for rebuild),
    `owner/name` on the Hub, or `auto`. `adapters` are references or (reference, scale). `size` is (width, height) in
    pixels, `frames` the length of a film, `inputs` go to the pipeline's call as they are. `dtype` is a safetensors name
    (F32, F16, BF16); beside a narrow one a float32 pass is made where memory allows, which judges. Noise is always
    drawn on the CPU.

    `skip` leaves routes out ("loaded", "converted", …), which makes the verdict inconclusive at best; with
    `require_loaded` diffusers' loader decides, too. `negative_controls` makes mistakes that must be caught. `report` is
    a folder for pages and pictures, `work` one for merged weights on their way (the system's for temporary files).
    `progress` is told each step in words.

    Raises UsageError, Unavailable, WrongRole, ArchitectureMismatch, PartialMatch, NotRepresentable (for a format of
    `to`), ResourceError, and what opening, merging and extracting raise.
    """
    from loratools.operations.rebuilding.tokenizers import texts
    from loratools.operations.validation.inputs import located_inputs, open_inputs
    from loratools.operations.validation.options import require_options
    from loratools.pipelines.running import Drawing, Place

    require_options(
        skip=skip,
        prompts=prompts,
        seeds=seeds,
        steps=steps,
        scheduler=scheduler,
        dtype=dtype,
        device=device,
        report=report,
        overwrite=overwrite,
    )
    base, given = located_inputs(pipeline, adapters, arch=arch, variant=variant, unsafe_pickle=unsafe_pickle)
    width, height = size or (None, None)
    drawing = Drawing(steps, guidance, width, height, scheduler, frames, dict(inputs or {}))
    place = Place(device, dtype, offload)
    with _workplace(work) as temporary:
        found_inputs = open_inputs(
            base,
            given,
            temporary,
            arch=arch,
            allow_partial=allow_partial,
            unsafe_pickle=unsafe_pickle,
            how={"config": config, "tokenizer": tokenizer, "prediction_type": prediction_type, "variant": variant},
        )
        scenes = tuple((prompt, seed) for prompt in prompts for seed in seeds)
        plan = _plan(found_inputs, scenes, drawing, to, skip, controls=negative_controls, say=progress)
        parameters = {
            "to": list(to) if to is not None else None,
            "skip": list(skip),
            "steps": steps,
            "guidance": guidance,
            "size": list(size) if size else None,
            "frames": frames,
            "scheduler": scheduler,
            "inputs": {name: repr(value) for name, value in drawing.inputs.items()},
            "dtype": dtype,
            "device": device,
            "offload": offload,
            "negative_controls": negative_controls,
            "require_loaded": require_loaded,
            "config": None if config is None else str(config),
            "tokenizer": list(texts(tokenizer)) or None,
            "prediction_type": prediction_type,
            "variant": variant,
            "arch": arch,
            "allow_partial": allow_partial,
            "unsafe_pickle": unsafe_pickle,
        }
        result = _judged(plan, place, parameters, skip, progress or (lambda _: None))
    if report is not None:
        from loratools.operations.validation.report import evidence_of
        from loratools.reports.report import write_report

        written = write_report(Path(report), evidence_of(result), overwrite=overwrite)
        result = replace(result, report=written)
    return result


@contextmanager
def _workplace(work: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder of its own, which is gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="loratools-validate-", dir=work))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _plan(
    inputs: Inputs,
    scenes: tuple[tuple[str, int], ...],
    drawing: Any,
    to: Sequence[str] | None,
    skip: Sequence[str],
    *,
    controls: bool,
    say: Callable[[str], None] | None,
) -> Plan:
    """Make the files that routes start from."""
    from loratools.operations.validation.one_pass import Plan

    tell = say or (lambda _: None)
    converted: dict[str, list[tuple[Path, float]]] = {}
    making: dict[str, float] = {}
    if "converted" not in skip:
        tell("converting")
        converted = inputs.converted(to, making)
    merged = extracted = None
    started = time.perf_counter()
    if not {"merged", "extracted"} <= set(skip):
        tell("merging")
        merged = inputs.merged()
        making["merged"] = time.perf_counter() - started
    started = time.perf_counter()
    if "extracted" not in skip:
        tell("extracting")
        extracted = inputs.extracted()
        making["extracted"] = time.perf_counter() - started
    return Plan(
        inputs,
        scenes,
        drawing,
        converted,
        extracted,
        None if "merged" in skip else merged,
        "loaded" not in skip,
        controls,
        making,
    )


def _judged(
    plan: Plan, place: Place, parameters: Mapping[str, Any], skip: Sequence[str], say: Callable[[str], None]
) -> Validation:
    """Run the passes, and judge."""
    from loratools.operations.outputs.provenance import InputHashes
    from loratools.operations.validation.facts import adapter_facts, pipeline_facts, versions
    from loratools.operations.validation.one_pass import run_pass
    from loratools.operations.validation.verdict import Found, controls, routes, verdict

    warnings = [text for lora, _ in plan.inputs.given for text in lora.reading.warnings]
    with closing(InputHashes(plan.inputs.hashed)) as hashes:  # they are computed while the routes run
        judge, in_dtype = _passes(plan, place, warnings, say, run_pass)
        told_pipeline, told_adapters = pipeline_facts(plan.inputs, hashes), adapter_facts(plan.inputs, hashes)
    found = Found(judge, in_dtype)
    shown, tried = routes(found), controls(found)
    word, reasons = verdict(found, shown, tried, require_loaded=bool(parameters["require_loaded"]), skipped=skip)
    base = (in_dtype or judge).seen["base"].shown
    return Validation(
        pipeline=told_pipeline,
        adapters=told_adapters,
        parameters=parameters,
        verdict=word,
        reasons=reasons,
        effect=judge.effect,
        dtype=place.dtype,
        judged_in=judge.place.dtype,
        routes=shown,
        floors=tuple(floors_of(judge, in_dtype)),
        laws=tuple(judge.laws),
        controls=tried,
        not_held=tuple(plan.inputs.not_held),
        warnings=tuple(dict.fromkeys((*warnings, *plan.inputs.pending.plan.warnings))),
        versions=versions(place.device),
        scenes=plan.scenes,
        base=base.drawn if base else (),
    )


def _passes(
    plan: Plan,
    place: Place,
    warnings: list[str],
    say: Callable[[str], None],
    run_pass: Callable[..., Pass],
) -> tuple[Pass, Pass | None]:
    """The pass that judges, and the one in the dtype that was asked for, where that is another."""
    from loratools.operations.validation.inputs import float32_bytes
    from loratools.pipelines.room import bytes_free

    if place.dtype == "F32":
        return run_pass(plan, place, judge=True, say=say), None
    needed = float32_bytes(plan.inputs.pending.output.checkpoint, offload=place.offload)
    free = bytes_free(place.device)
    if needed > free:
        warnings.append(
            f"no float32 pass: it needs about {needed / 1e9:.1f} GB of memory on {place.device}, {free / 1e9:.1f} GB "
            "are free; --offload needs less"
        )
        return run_pass(plan, place, judge=True, say=say), None
    judge: Pass | None = None
    try:
        judge = run_pass(plan, replace(place, dtype="F32"), judge=True, say=lambda what: say(f"float32: {what}"))
    except ResourceError as problem:
        warnings.append(f"no float32 pass: {problem.message}")
    if judge is None:  # outside of the handler, which would hold on to the pipeline that was too large
        return run_pass(plan, place, judge=True, say=say), None
    return judge, run_pass(plan, place, judge=False, say=lambda what: say(f"{place.dtype}: {what}"))


def floors_of(judge: Pass, in_dtype: Pass | None) -> Iterator[Floor]:
    """The noise floors of both passes, and between them: the same reference in float32 and in the dtype."""
    from loratools.operations.validation.result import Floor

    yield from judge.floors
    if in_dtype is None:
        return
    for floor in in_dtype.floors:
        yield Floor(f"{floor.name}, {in_dtype.place.dtype}", floor.explains, floor.closeness)
    ours, exact = in_dtype.seen["reference"].shown, judge.seen["reference"].shown
    if ours is not None and exact is not None:
        yield Floor("dtype", f"the reference in {in_dtype.place.dtype}, against float32", ours.against(exact))
