"""Complete diffusers pipelines made on the spot: real layouts and names, seeded random weights, no download."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratools.errors import UnsupportedFile, UsageError, nearest
from loratools.pipelines.blueprints import blueprint
from loratools.pipelines.parts import Blueprint, Size
from loratools.pipelines.quiet import quiet_libraries
from loratools.pipelines.random_models import fill, make_skeleton
from loratools.pipelines.running import require_device
from loratools.pipelines.shards import LIMIT, write_shards
from loratools.pipelines.single_file import SINGLE_FILES, export_single_file
from loratools.pipelines.tokenizers import make_tokenizer
from loratools.tensors.output import check_free_space, disk_errors, guard_folder, guard_output, temporary_beside

BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The dtypes that weights can have, and the bytes of one value."""
LARGE = 1 << 26
"""Bytes of a model that are worth looking for once it is written."""


def make_pipeline(
    architecture: str,
    folder: str | os.PathLike[str],
    *,
    size: Size = "tiny",
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    variant: str | None = None,
    single_file: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a pipeline of `architecture` (sd1, wan2.1, …: `demo --help` lists them, and `wan` will do) with random
    weights to `folder`; return the folder.

    `size` is "tiny" (the real block layout with narrow layers, mostly for 64 × 64 pixels) or "full" (the published
    configuration: sd1, sd2, sdxl, flux1). `DiffusionPipeline.from_pretrained(folder)` loads it without a network;
    `variant` is the word in the names of the weight files ("fp16"). `single_file` names a checkpoint to write beside
    it, under the names that web UIs load. One component, or one shard of it, is in memory at a time, in `dtype`. The
    same seed makes the same bytes on the same device, and a narrow dtype holds the float32 values rounded once.

    Raises UsageError for words that are not known, UnsupportedFile for a single file of an architecture that has
    none, OutputExists and OutputRefused for places that are taken, and ResourceError where the disk is full or the
    device is not there.
    """
    plan = blueprint(architecture, size)
    return write_pipeline(plan, folder, seed=seed, dtype=dtype, device=device, variant=variant, single_file=single_file)


def write_pipeline(
    plan: Blueprint,
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    variant: str | None = None,
    single_file: str | os.PathLike[str] | None = None,
    limit: int = LIMIT,
) -> Path:
    """The same for any blueprint; models of diffusers that are larger than `limit` bytes are written in shards of that
    size, and memory is one shard's.
    """
    if dtype not in BYTES:
        raise UsageError(f"{dtype!r} is no dtype; there are {', '.join(BYTES)}", hint=nearest(dtype, BYTES))
    if single_file is not None and plan.name not in SINGLE_FILES:
        raise UnsupportedFile(f"{plan.name} has no single-file naming", hint=f"one of {', '.join(SINGLE_FILES)}")
    require_device(device)
    out = Path(folder)
    guard_folder(out, (), overwrite=False)
    if single_file is not None:
        guard_output(single_file, (), overwrite=False)
    with quiet_libraries():
        parts = {part.name: make_skeleton(part) for part in plan.parts}
    needed = sum(_nbytes(parts[part.name], dtype) for part in plan.parts if part.is_model)
    check_free_space(out.parent, needed if single_file is None else 2 * needed)
    staged = temporary_beside(out)
    try:
        with disk_errors(out, needed), quiet_libraries():
            _write(plan, parts, staged, seed=seed, dtype=dtype, device=device, variant=variant, limit=limit)
        if out.exists():
            out.rmdir()  # guard_folder let an empty one pass
        staged.rename(out)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    if single_file is not None:
        export_single_file(out, Path(single_file), plan.name)
    return out


def pipeline_size(architecture: str, size: Size = "tiny", dtype: str = "float32") -> dict[str, int]:
    """The bytes of the weights of each model in a pipeline that `make_pipeline` would make."""
    with quiet_libraries():
        return {
            part.name: _nbytes(make_skeleton(part), dtype)
            for part in blueprint(architecture, size).parts
            if part.is_model
        }


def _nbytes(model: Any, dtype: str) -> int:
    values: int = sum(parameter.numel() for parameter in model.parameters())
    return values * BYTES[dtype]


def _write(
    plan: Blueprint, parts: dict[str, Any], folder: Path, *, seed: int, variant: str | None, limit: int, **how: str
) -> None:
    """Save index, tokenizers and parts; each model gets its weights only when its turn comes, and is dropped."""
    import diffusers

    tokenizers = {name: make_tokenizer(entry) for name, entry in plan.tokenizers.items()}
    absent = dict.fromkeys(plan.absent)
    pipeline = getattr(diffusers, plan.pipeline)(**parts, **tokenizers, **absent, **(plan.options or {}))
    pipeline.save_config(folder)
    del pipeline
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / name)
    for at, part in enumerate(plan.parts):
        made = parts.pop(part.name)
        if part.is_model and part.library == "diffusers" and _nbytes(made, how["dtype"]) > limit:
            write_shards(made, folder / part.name, seed=seed + at, variant=variant, limit=limit, **how)
        elif part.is_model:
            fill(made, seed=seed + at, **how)
            made.save_pretrained(folder / part.name, variant=variant)
        else:
            made.save_pretrained(folder / part.name)
        is_large = part.is_model and _nbytes(made, how["dtype"]) > LARGE
        del made
        if is_large:
            gc.collect()  # a model holds itself in cycles
