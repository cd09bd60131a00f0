"""What a validation would do: routes, passes, memory and disk, from headers alone; nothing is drawn or written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.bases.pipeline_index import PIPELINE
from loratools.errors import NotRepresentable, UnsupportedFile
from loratools.formats.registry import FORMATS
from loratools.operations.convert import convert
from loratools.operations.merge import plan_merge
from loratools.operations.merging.matches import Weighted
from loratools.operations.merging.result import Applied
from loratools.operations.rebuilding.pipeline_base import refuse_for_folder
from loratools.operations.validation.inputs import float32_bytes, located_inputs
from loratools.operations.validation.options import require_options
from loratools.pipelines import room


@dataclass(frozen=True, slots=True)
class ValidationPlan:
    """`routes` in their order, `not_held` the formats that cannot hold the adapters; `passes` are the dtypes that the
    pipeline will run in, the judging one first. `memory` is about what that pass takes, `disk` the merged weights on
    their way, both in bytes.
    """

    pipeline: str
    architecture: str | None
    adapters: tuple[Applied, ...]
    routes: tuple[str, ...]
    not_held: tuple[tuple[str, str], ...]
    passes: tuple[str, ...]
    pictures: int
    memory: int
    free_memory: int
    disk: int
    free_disk: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.validate-plan/1",
            "pipeline": self.pipeline,
            "architecture": self.architecture,
            "adapters": [item.to_dict() for item in self.adapters],
            "routes": list(self.routes),
            "not_held": [{"route": name, "why": why} for name, why in self.not_held],
            "passes": list(self.passes),
            "pictures": self.pictures,
            "memory": self.memory,
            "free_memory": self.free_memory,
            "disk": self.disk,
            "free_disk": self.free_disk,
            "warnings": list(self.warnings),
        }


def plan_validate(
    pipeline: str | os.PathLike[str],
    adapters: Sequence[Weighted],
    *,
    to: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    prompts: Sequence[str] = ("",),
    seeds: Sequence[int] = (0,),
    steps: int = 8,
    scheduler: str | None = None,
    dtype: str = "F32",
    device: str = "cpu",
    offload: bool = False,
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
    **_drawing: Any,
) -> ValidationPlan:
    """The plan of `validate` with the same options, of which `_drawing` change what is drawn alone; raises what it
    would before the first picture, but for a single file's configuration and tokenizers.
    """
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
    checked: dict[str, Any] = {"allow_partial": allow_partial, "unsafe_pickle": unsafe_pickle}
    base, given = located_inputs(pipeline, adapters, arch=arch, variant=variant, unsafe_pickle=unsafe_pickle)
    if (base / PIPELINE).is_file():
        refuse_for_folder(str(base), config, tokenizer, prediction_type)
    pending = plan_merge(base, given, arch=arch, **checked)
    name = pending.plan.architecture
    routes, not_held = ["base", "reference"], []
    if "loaded" not in skip:
        routes.append("loaded")
    forms = [item.id for item in FORMATS] if to is None else to
    for form in () if "converted" in skip else forms:
        try:
            for lora, _ in given:
                convert(lora, to=form, arch=name, **checked)
        except (NotRepresentable, UnsupportedFile) as problem:
            if to is not None:
                raise
            not_held.append((f"converted to {form}", problem.message))
            continue
        routes.append(f"converted to {form}")
    routes += [route for route in ("merged", "extracted") if route not in skip]
    checkpoint = pending.output.checkpoint
    needs_merged = not {"merged", "extracted"} <= set(skip)
    passes = ("F32",) if dtype == "F32" else ("F32", dtype)
    memory, free = float32_bytes(checkpoint, offload=offload), room.bytes_free(device)
    warnings = list(pending.plan.warnings)
    if memory > free and dtype != "F32":
        passes = (dtype,)
        warnings.append("no float32 pass fits into memory: the verdict can only be inconclusive")
    tensors = [item.part[key] for item in checkpoint.weights for key in item.keys]
    return ValidationPlan(
        str(base),
        name,
        pending.plan.adapters,
        tuple(routes),
        tuple(not_held),
        passes,
        len(prompts) * len(seeds),
        memory,
        free,
        4 * sum(tensor.numel for tensor in tensors) if needs_merged else 0,
        shutil.disk_usage(work or Path(tempfile.gettempdir())).free,
        tuple(dict.fromkeys(warnings)),
    )
