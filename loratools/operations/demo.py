"""demo: the whole story on a pipeline and an adapter made on the spot, offline."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.errors import OutputExists, OutputRefused
from loratools.operations.combine import combine
from loratools.operations.compare import Comparison, compare
from loratools.operations.conversion import Conversion
from loratools.operations.convert import convert
from loratools.operations.extract import extract
from loratools.operations.inspect import Inspection, inspect
from loratools.operations.merge import merge
from loratools.operations.resize import resize

_ROUNDING = 1e-6  # of float32, over sums of a few dozen terms
_EXTRACTED = 1e-4  # asked of the SVD

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
class Chapter:
    """One verb more: what it wrote, what it claims, and the relative error that was measured against its limit."""

    verb: str
    name: str
    size: int
    claim: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the claim is true."""
        return self.error <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "verb": self.verb,
            "file": self.name,
            "size": self.size,
            "claim": self.claim,
            "error": self.error,
            "limit": self.limit,
            "holds": self.holds,
        }


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo made and proved; `folder` is None where nothing was kept."""

    folder: Path | None
    inspection: Inspection
    links: tuple[Link, ...]
    identical_bytes: bool
    chapters: tuple[Chapter, ...]

    @property
    def passed(self) -> bool:
        """Whether every link makes the same delta, the way back gave every byte back, and every claim holds."""
        links = all(link.comparison.equal for link in self.links)
        return self.identical_bytes and links and all(chapter.holds for chapter in self.chapters)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.demo/1",
            "folder": str(self.folder) if self.folder else None,
            "passed": self.passed,
            "identical_bytes": self.identical_bytes,
            "inspection": self.inspection.to_dict(),
            "links": [link.to_dict() for link in self.links],
            "chapters": [chapter.to_dict() for chapter in self.chapters],
        }


def demo(
    keep: str | os.PathLike[str] | None = None, *, seed: int = 0, report: Callable[[str], None] | None = None
) -> Demo:
    """Make a tiny Stable Diffusion pipeline and a LoRA; convert it through every format and back; merge it, extract it
    again, resize and combine it; and measure every claim.

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
        chapters = tuple(_chapters(pipeline, source, folder, say))
        return Demo(folder if keep is not None else None, inspection, tuple(links), same, chapters)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _chapters(pipeline: Path, source: Path, folder: Path, say: Callable[[str], None]) -> Iterator[Chapter]:
    """The verbs beyond conversion, each measured against the adapter that the demo began with."""
    merged, extracted = folder / "merged", folder / "extracted.safetensors"
    say("merging the LoRA into the pipeline, and taking it out again")
    done = merge(pipeline, [source], merged, arch="sd1")
    merge(merged, [(source, -1.0)], folder / "unmerged", arch="sd1")
    claim = f"{done.plan.changed} weights are W + Δ; minus Δ they are W again"
    away = _distance(pipeline / "unet", folder / "unmerged" / "unet")
    yield Chapter("merge", merged.name, done.size, claim, away, _ROUNDING)

    say("extracting a LoRA from the merged pipeline and the first one, by SVD")
    taken = extract(pipeline, merged, error=_EXTRACTED, dtype="F32", arch="sd1").save(extracted)
    worst = compare(source, extracted, arch="sd1").worst
    claim = "the difference of the two pipelines is the LoRA"
    yield Chapter("extract", extracted.name, taken.size, claim, worst, _EXTRACTED)

    say("resizing the LoRA to rank 2, from its factors")
    resized = folder / "lora.rank2.safetensors"
    smaller = resize(source, rank=2, arch="sd1").save(resized)
    stated = {layer.module: layer.error or 0.0 for layer in smaller.layers}
    found = {item.module: item.relative_error for item in compare(source, resized, arch="sd1").modules}
    off = max(abs(found[name] - error) for name, error in stated.items())
    claim = f"each layer loses what is stated, {smaller.error or 0.0:.0%} in all"
    yield Chapter("resize", resized.name, smaller.size, claim, off, _ROUNDING)

    say("combining half of the LoRA with half of what was extracted")
    both = folder / "combined.safetensors"
    joined = combine([(source, 0.5), (extracted, 0.5)], arch="sd1").save(both)
    worst = compare(source, both, arch="sd1").worst
    yield Chapter("combine", both.name, joined.size, "two halves are the LoRA", worst, _EXTRACTED)


def _distance(left: Path, right: Path) -> float:
    """The largest relative difference of a tensor between two model folders, read by the safetensors library."""
    from safetensors.torch import load_file

    (a,), (b,) = (list(folder.glob("*.safetensors")) for folder in (left, right))
    ours, theirs = load_file(a), load_file(b)
    return max(float((theirs[key] - value).norm() / value.norm()) for key, value in ours.items())


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
