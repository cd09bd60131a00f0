"""demo: the whole story on a pipeline and an adapter made on the spot, offline."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.errors import OutputExists, OutputRefused
from loratools.operations.compare import Comparison, compare
from loratools.operations.conversion import Conversion
from loratools.operations.convert import convert
from loratools.operations.inspect import Inspection, inspect

# (target format, source of the conversion, output): every format in turn, and back to the first spelling
_CHAIN: tuple[tuple[str, str, str], ...] = (
    ("kohya", "lora.safetensors", "lora.kohya.safetensors"),
    ("peft", "lora.kohya.safetensors", "lora.peft"),
    ("diffusers", "lora.peft", "lora.diffusers.safetensors"),
    ("original", "lora.diffusers.safetensors", "lora.back.safetensors"),
)


@dataclass(frozen=True, slots=True)
class Link:
    """One conversion of the chain, and how its output compares with the adapter that the demo began with."""

    to: str
    conversion: Conversion
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, the comparison without its modules."""
        compared = {key: value for key, value in self.comparison.to_dict().items() if key != "modules"}
        return {"to": self.to, "conversion": self.conversion.to_dict(), "comparison": compared}


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo made and proved; `folder` is None where nothing was kept."""

    folder: Path | None
    inspection: Inspection
    links: tuple[Link, ...]
    identical_bytes: bool

    @property
    def passed(self) -> bool:
        """Whether every link makes the same delta and the way back gave every tensor byte for byte."""
        return self.identical_bytes and all(link.comparison.equal for link in self.links)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.demo/1",
            "folder": str(self.folder) if self.folder else None,
            "passed": self.passed,
            "identical_bytes": self.identical_bytes,
            "inspection": self.inspection.to_dict(),
            "links": [link.to_dict() for link in self.links],
        }


def demo(
    keep: str | os.PathLike[str] | None = None, *, seed: int = 0, report: Callable[[str], None] | None = None
) -> Demo:
    """Make a tiny Stable Diffusion pipeline and a LoRA, convert it through every format and back, and compare.

    Nothing is downloaded. `keep` is a new or empty folder that stays; `report` is told each step in words.
    """
    from loratools.pipelines.adapters import make_demo_adapter
    from loratools.pipelines.quiet import quiet_libraries
    from loratools.pipelines.synthetic import make_pipeline

    say = report or (lambda _: None)
    folder = _empty_folder(Path(keep)) if keep is not None else Path(tempfile.mkdtemp(prefix="loratools-demo-"))
    try:
        say("making a tiny Stable Diffusion pipeline with random weights")
        with quiet_libraries():
            pipeline = make_pipeline("sd1", folder / "pipeline", seed=seed)
            say("making a LoRA for it with peft, saved by diffusers: mixed ranks and alphas, text encoder included")
            source = make_demo_adapter(pipeline, folder / "lora.safetensors", seed=seed)
        inspection = inspect(source)
        links = []
        for to, given, name in _CHAIN:
            say(f"converting {given} to {to}")
            done = convert(folder / given, to=to, arch="sd1").save(folder / name, overwrite=True)
            links.append(Link(to, done, compare(source, folder / name, arch="sd1")))
        same = _same_tensors(source, folder / _CHAIN[-1][2])
        return Demo(folder if keep is not None else None, inspection, tuple(links), same)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _empty_folder(folder: Path) -> Path:
    """A folder that is new or empty; raises OutputExists or OutputRefused for anything else."""
    if folder.exists() and not folder.is_dir():
        raise OutputRefused("the output is a file, a folder is to be written", path=folder, hint="name a folder")
    if folder.exists() and any(folder.iterdir()):
        raise OutputExists("the folder is not empty", path=folder, hint="name a new one")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _same_tensors(left: Path, right: Path) -> bool:
    """Whether two files hold the same keys with the same bytes, judged by the safetensors library."""
    import torch
    from safetensors.torch import load_file

    a, b = load_file(left), load_file(right)
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a
    )
