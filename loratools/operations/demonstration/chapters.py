"""The demo's chapters: one verb each beyond conversion, every claim measured against the adapter it began with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.operations.combine import Weighted, combine
from loratools.operations.compare import compare
from loratools.operations.demonstration.links import OUTPUTS
from loratools.operations.demonstration.made import Made, Say
from loratools.operations.extract import extract
from loratools.operations.merge import merge
from loratools.operations.rebuild import rebuild
from loratools.operations.resize import resize
from loratools.operations.validate import validate
from loratools.operations.validation.result import LATENTS
from loratools.pipelines.adapters import LARGEST_RANK

if TYPE_CHECKING:
    import torch

ROUNDING: Mapping[str, float] = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
"""By dtype: what sums and roundings to it may cost, relative to the largest weight or delta there is."""
EXTRACTED: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
"""By the dtype of the merged weights: what an extraction may miss, most of it that dtype's rounding."""

PICTURE = 64
"""Height and width in pixels of what the last chapter paints with a full-size model: enough to compare, and no more."""
VALIDATED = ("kohya", "peft")
"""The formats that the last chapter goes through, where they hold the LoRA."""

MERGED = "merged"
EXTRACTED_FILE = "extracted.safetensors"
REPORT = "report"


@dataclass(frozen=True, slots=True)
class Chapter:
    """One verb more: what it wrote, what it claims, and the relative error that was measured against its limit."""

    verb: str
    name: str
    size: int
    claim: str
    error: float
    limit: float
    failure: str | None = None
    """What else is wrong with it, where anything is."""

    @property
    def holds(self) -> bool:
        """Whether the claim is true."""
        return self.failure is None and self.error <= self.limit

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
            "failure": self.failure,
        }


def merging(made: Made, say: Say) -> Chapter:
    """Merge the LoRA into the pipeline, and take it out again."""
    say("merging the LoRA into the pipeline, and taking it out again")
    merged, unmerged = made.folder / MERGED, made.folder / "unmerged"
    done = merge(made.pipeline, [made.adapter], merged, arch=made.architecture)
    merge(merged, [(made.adapter, -1.0)], unmerged, arch=made.architecture)
    claim = f"{done.plan.changed} weights are W + Δ; minus Δ they are W again"
    away = _distance(made, made.pipeline, unmerged)
    return Chapter("merge", merged.name, done.size, claim, away, ROUNDING[made.dtype])


def extracting(made: Made, say: Say) -> Chapter:
    """Extract the LoRA from the merged pipeline and the first one."""
    say("extracting a LoRA from the merged pipeline and the first one, by SVD")
    limit = EXTRACTED[made.dtype]
    # Rounded weights differ by noise of full rank beside the LoRA: there the rank is given.
    wish: dict[str, Any] = {"error": limit} if made.dtype == "float32" else {"rank": LARGEST_RANK}
    out = made.folder / EXTRACTED_FILE
    taken = extract(made.pipeline, made.folder / MERGED, dtype="F32", arch=made.architecture, **wish).save(out)
    worst = compare(made.adapter, out, arch=made.architecture).worst
    claim = "the difference of the two pipelines is the LoRA"
    return Chapter("extract", out.name, taken.size, claim, worst, limit)


def resizing(made: Made, say: Say) -> Chapter:
    """Resize the LoRA, and compare what each layer lost with what is stated."""
    say("resizing the LoRA to rank 2, from its factors")
    out = made.folder / "lora.rank2.safetensors"
    smaller = resize(made.adapter, rank=2, arch=made.architecture).save(out)
    stated = {layer.module: layer.error or 0.0 for layer in smaller.layers}
    compared = compare(made.adapter, out, arch=made.architecture)
    found = {item.module: item.relative_error for item in compared.modules}
    off = max(abs(found[name] - error) for name, error in stated.items())
    claim = f"each layer loses what is stated, {smaller.error or 0.0:.0%} in all"
    return Chapter("resize", out.name, smaller.size, claim, off, ROUNDING[made.dtype])


def combining(made: Made, say: Say) -> Chapter:
    """Combine half of the LoRA with half of what was extracted."""
    say("combining half of the LoRA with half of what was extracted")
    out = made.folder / "combined.safetensors"
    halves: list[Weighted] = [(made.adapter, 0.5), (made.folder / EXTRACTED_FILE, 0.5)]
    joined = combine(halves, arch=made.architecture).save(out)
    worst = compare(made.adapter, out, arch=made.architecture).worst
    return Chapter("combine", out.name, joined.size, "two halves are the LoRA", worst, EXTRACTED[made.dtype])


def rebuilding(made: Made, say: Say) -> Chapter:
    """Rebuild the pipeline with the LoRA in it, and compare its weights with what was merged."""
    say("rebuilding the pipeline with the LoRA in it; diffusers loads it and runs a step")
    out = made.folder / "rebuilt"
    done = rebuild(made.pipeline, [made.adapter], out, arch=made.architecture)
    tensors = sum(done.trial.tensors.values()) if done.trial else 0
    claim = f"diffusers loads {tensors:,} tensors and runs; they are those of merge"
    away = _distance(made, out, made.folder / MERGED)
    return Chapter("rebuild", out.name, done.merge.size, claim, away, 0.0)


def validating(made: Made, say: Say) -> Chapter:
    """Paint with the LoRA brought into the pipeline in every way, and compare with its own change in every module."""
    say("validating: the same picture by every way of the LoRA into the pipeline")
    out = made.folder / REPORT
    pixels = made.plan.pixels if made.size == "tiny" else PICTURE
    result = validate(
        made.pipeline,
        [made.adapter],
        to=[form for form in VALIDATED if (made.folder / OUTPUTS[form]).exists()],
        steps=2,
        size=(pixels, pixels) if made.plan.paints else None,
        frames=made.plan.frames,
        arch=made.architecture,
        report=out,
        work=made.folder,
    )
    ways = [route for route in result.routes if route.decides]
    worst = max((route.judged.worst_latents for route in ways if route.judged), default=0.0)
    size = sum(path.stat().st_size for path in result.report)
    failure = None if result.passed else f"{result.verdict}: {'; '.join(result.reasons)}"
    claim = f"{len(ways)} ways of the LoRA make what its own change makes"
    return Chapter("validate", f"{out.name}/index.html", size, claim, worst, LATENTS, failure)


CHAPTERS: tuple[Callable[[Made, Say], Chapter], ...] = (
    merging,
    extracting,
    resizing,
    combining,
    rebuilding,
    validating,
)
"""In the order in which they are told; a chapter may read what an earlier one wrote."""
COPIES = 4
"""How often the chapters together write the pipeline's weights."""


def _distance(made: Made, left: Path, right: Path) -> float:
    """The largest relative difference of a tensor of the models that remove noise between two pipeline folders."""
    return max(_apart(left / name, right / name) for name in made.plan.denoisers)


def _apart(left: Path, right: Path) -> float:
    """The same of two model folders, read by the safetensors library."""
    from safetensors import safe_open

    worst = 0.0
    with ExitStack() as files:
        opened = [
            [files.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
            for folder in (left, right)
        ]
        held = {key: file for file in opened[1] for key in file.keys()}  # noqa: SIM118 — a file, not a mapping
        for ours in opened[0]:
            for key in ours.keys():  # noqa: SIM118 — as above
                worst = max(worst, _relative(held[key].get_tensor(key), ours.get_tensor(key)))
    return worst


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())
