"""What a demo begins with: a pipeline with random weights, its single file, and a LoRA for it, made on the spot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from loratools.architectures.registry import architecture as table
from loratools.errors import OutputExists, OutputRefused
from loratools.operations.lora import Lora, open_lora
from loratools.pipelines.adapters import adapted, make_demo_adapter
from loratools.pipelines.blueprints import blueprint
from loratools.pipelines.parts import Blueprint
from loratools.pipelines.quiet import quiet_libraries
from loratools.pipelines.single_file import SINGLE_FILES
from loratools.pipelines.synthetic import make_pipeline, pipeline_size
from loratools.tensors.output import check_free_space

Say = Callable[[str], None]
Size = Literal["tiny", "full"]

DTYPES = {"tiny": "float32", "full": "float16"}
"""The dtype of the weights where none is asked for."""


@dataclass(frozen=True)
class Made:
    """The things a demo begins with, in `folder`; `plan` is the pipeline's blueprint; `single_file` is None where the
    architecture has none; `sizes` are their names and bytes.
    """

    plan: Blueprint
    size: Size
    dtype: str
    folder: Path
    pipeline: Path
    single_file: Path | None
    lora: Path
    sizes: tuple[tuple[str, int], ...]

    @property
    def architecture(self) -> str:
        """The id of the pipeline's architecture."""
        return self.plan.architecture

    @cached_property
    def adapter(self) -> Lora:
        """The LoRA, read once for all that is done with it."""
        return open_lora(self.lora, arch=self.architecture)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: what was made, and the bytes of each thing."""
        return {
            "schema": "loratools.demo-made/1",
            "architecture": self.architecture,
            "variant": self.plan.variant,
            "size": self.size,
            "dtype": self.dtype,
            "folder": str(self.folder),
            "files": [{"file": name, "size": count} for name, count in self.sizes],
        }


def make_demo(
    folder: str | os.PathLike[str],
    *,
    architecture: str = "sd1",
    size: Size = "tiny",
    dtype: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    copies: int = 0,
    report: Say | None = None,
) -> Made:
    """Make `pipeline/`, `single.safetensors` (where there are such) and `lora.safetensors` in a new or empty folder.

    `dtype` is float32 for a tiny pipeline and float16 for a full one where it is None. `copies` of the pipeline's
    weights must find room beside what is made. Raises UsageError for words that are not known, OutputExists,
    OutputRefused, and ResourceError, before anything is written, where the disk has no room.
    """
    say = report or (lambda _: None)
    kind = dtype or DTYPES.get(size, "float32")
    plan = blueprint(architecture, size)
    if plan.name != architecture:
        say(f"{architecture} is taken to mean {plan.name}")
    weights = pipeline_size(plan.name, size, kind)
    out = Path(folder)
    place = _place(out)
    single = out / "single.safetensors" if plan.name in SINGLE_FILES else None
    total = sum(weights.values())
    needed = total * (copies + (1 if single is None else 2))
    title = " ".join((table(plan.architecture).title, *filter(None, [plan.variant])))
    if size == "full":
        parts = ", ".join(f"{name} {_gigabytes(count)}" for name, count in weights.items())
        say(f"{title} in {kind} is {_gigabytes(total)}: {parts}")
        free = shutil.disk_usage(place).free
        say(f"{_gigabytes(needed)} will be written to {out}, where {_gigabytes(free)} are free")
    check_free_space(place, needed)
    out.mkdir(parents=True, exist_ok=True)
    with quiet_libraries():
        adjective = "tiny" if size == "tiny" else "full-size"
        beside = "" if single is None else ", as a folder and as a single file"
        say(f"making a {adjective} {title} pipeline with random weights{beside}")
        pipeline = make_pipeline(
            plan.name, out / "pipeline", size=size, seed=seed, dtype=kind, device=device, single_file=single
        )
        changed = " and ".join(adapted(pipeline))
        say(f"making a LoRA for its {changed} with peft, saved by diffusers: mixed ranks and alphas")
        lora = make_demo_adapter(pipeline, out / "lora.safetensors", seed=seed)
    sizes = tuple((path.name, _size(path)) for path in (pipeline, single, lora) if path is not None)
    return Made(plan, size, kind, out, pipeline, single, lora, sizes)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return sum(item.stat().st_size for item in files)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _place(folder: Path) -> Path:
    """The nearest folder that exists, of one that is new or empty; raises OutputExists or OutputRefused for others."""
    if folder.exists() and not folder.is_dir():
        raise OutputRefused("the output is a file, a folder is to be written", path=folder, hint="name a folder")
    if folder.exists() and any(folder.iterdir()):
        raise OutputExists("the folder is not empty", path=folder, hint="name a new one")
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
