"""What the routes of a validation start from: adapters in other formats, the merged pipeline, the extracted file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratools.adapters.change import is_low_rank
from loratools.architectures.architecture import Architecture
from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.checkpoint import Checkpoint
from loratools.bases.pipeline_index import PIPELINE
from loratools.bases.variants import variants_of
from loratools.errors import NotRepresentable, PathNotFound, UnrelatedModels, UnsupportedFile, UsageError
from loratools.formats.registry import FORMATS, ORIGINAL, format_of
from loratools.operations.convert import convert
from loratools.operations.extract import extract
from loratools.operations.located import locate, unweighted
from loratools.operations.lora import Lora
from loratools.operations.merge import PendingMerge, plan_merge
from loratools.operations.merging.matches import Weighted, opened
from loratools.operations.rebuild import rebuild
from loratools.operations.rebuilding.pipeline_base import refuse_for_folder
from loratools.operations.validation.truth import Truth
from loratools.pipelines.own_loader import Adapter
from loratools.tensors.source import LocalFile

EXTRACTED = 1e-5
"""The relative error that extraction keeps to where the rank of the change is not known."""

_NARROW = frozenset(("F16", "BF16", "F8_E4M3", "F8_E5M2"))

Given = tuple[Lora, float]


@dataclass(frozen=True)
class Inputs:
    """A pipeline and adapters that fit each other. `base` is what was named, `folder` the pipeline folder that it is or
    that was made of it; `how` says how. `work` is a folder for what the routes need.
    """

    base: Path
    folder: Path
    given: tuple[Given, ...]
    architecture: str | None
    pending: PendingMerge
    truth: Truth
    variant: str | None
    work: Path
    how: Mapping[str, Any]
    allow_partial: bool = False
    unsafe_pickle: bool = False
    not_held: list[tuple[str, str]] = field(default_factory=list)

    @property
    def sources(self) -> list[tuple[Adapter, float]]:
        """The adapters as diffusers' loader would be given them."""
        found: list[tuple[Adapter, float]] = []
        for lora, scale in self.given:
            path = Path(lora.name)
            if path.exists():
                found.append((path, scale))
            else:
                held = {key: part.source[key].load() for part in lora.reading.opened.parts for key in part.source}
                found.append((held, scale))
        return found

    @property
    def files(self) -> tuple[tuple[str, LocalFile], ...]:
        """The pipeline's files of weights, by their names in the folder; the single file that it was made of."""
        if self.base.is_file():
            return ((self.base.name, LocalFile(self.base)),)
        checkpoint = self.pending.output.checkpoint
        weights = {item.name: item.file for item in checkpoint.weights if item.file is not None}
        others = {name: file for name, file in checkpoint.others.items() if name.endswith(".safetensors")}
        return tuple(sorted({**weights, **others}.items()))

    @property
    def hashed(self) -> tuple[LocalFile, ...]:
        """Every file whose hash belongs to the record: the pipeline's, then those of each adapter."""
        return (
            *(file for _, file in self.files),
            *(file for lora, _ in self.given for file in lora.reading.opened.files),
        )

    def converted(self, to: Sequence[str] | None, making: dict[str, float]) -> dict[str, list[tuple[Path, float]]]:
        """Format → the adapters in it, written and proven. Formats that cannot hold them are in `not_held`, unless they
        were asked for by name: then NotRepresentable is raised. `making` is told the seconds of each route.
        """
        wanted = [item.id for item in FORMATS] if to is None else list(to)
        found: dict[str, list[tuple[Path, float]]] = {}
        for name in wanted:
            is_folder = name != ORIGINAL and format_of(name).folder
            place = self.work / f"converted-{name}"
            place.mkdir()
            started = time.perf_counter()
            try:
                written = []
                for at, (lora, scale) in enumerate(self.given):
                    pending = convert(lora, to=name, arch=self.architecture, allow_partial=self.allow_partial)
                    folder = is_folder or pending.folder
                    out = place / (f"adapter-{at}" if folder else f"adapter-{at}.{pending.container}")
                    written.append((pending.save(out).path, scale))
            except (NotRepresentable, UnsupportedFile) as problem:
                if to is not None:
                    raise
                self.not_held.append((f"converted to {name}", problem.message))
                continue
            found[name] = written
            making[f"converted to {name}"] = time.perf_counter() - started
        return found

    def merged(self) -> Path:
        """The pipeline's folder with the adapters merged in, in float32 where the base is narrower."""
        out = self.work / "merged"
        if not out.exists():
            rebuild(
                self.base,
                self.given,
                out,
                check=False,  # it is loaded and run as the route itself
                dtype="F32" if _dtypes(self.pending.output.checkpoint) & _NARROW else None,
                arch=self.architecture,
                allow_partial=self.allow_partial,
                unsafe_pickle=self.unsafe_pickle,
                **self.how,
            )
        return out

    def extracted(self) -> Path | None:
        """The adapter that leads from the base to the merged pipeline; None where no format holds it."""
        full = [word for word, sort in (("biases", "bias"), ("norms", "norm"), ("embeddings", "")) if self._has(sort)]
        rank = self._rank()
        cut: dict[str, Any] = {"error": EXTRACTED} if rank is None else {"rank": rank}
        for to in (None, "kohya", "comfy", "diffusers", "peft"):
            out = self.work / ("extracted" if to == "peft" else "extracted.safetensors")
            try:
                # The two belong together, however much of the model a large change makes another.
                how = {"full": full, "to": to, "dtype": "F32", "arch": self.architecture, "force": True, **cut}
                return extract(self.folder, self.merged(), **how).save(out).path
            except (NotRepresentable, UnrelatedModels, UsageError) as problem:
                why = problem.message
        self.not_held.append(("extracted", why))
        return None

    def _has(self, sort: str) -> bool:
        adapters = [item for source, _ in self._sets() for item in source.adapters]
        if sort == "bias":
            return any(spot.leaf == "bias" for spot in self.truth.spots)
        if sort == "norm":
            return any(item.kind == "norm" for item in adapters)
        return any("embedding_down" in item.factors for item in adapters)

    def _rank(self) -> int | None:
        """The largest rank of any layer's change, where all are products of two factors."""
        ranks: dict[tuple[str, str], int] = {}
        for source, _ in self._sets():
            for item in source.adapters:
                if not is_low_rank(item):
                    return None
                for path in item.target.paths:
                    place = item.target.component, path
                    ranks[place] = ranks.get(place, 0) + (item.rank or 0)
        return max(ranks.values(), default=0) or None

    def _sets(self) -> list[tuple[Any, float]]:
        return bound(self.given, self.architecture)


def located_inputs(
    pipeline: str | os.PathLike[str],
    adapters: Sequence[Weighted],
    *,
    arch: str | None,
    variant: str | None,
    unsafe_pickle: bool,
) -> tuple[Path, list[Given]]:
    """Where the pipeline lies on this machine, and the adapters, opened; raises UsageError where there are none."""
    if not adapters:
        raise UsageError("no adapter was given", hint="loratools validate PIPELINE LORA=0.8")
    given = [opened((item, by), arch, unsafe_pickle=unsafe_pickle) for item, by in map(unweighted, adapters)]
    base = locate(pipeline, [lora for lora, _ in given], variant=variant, pickles=unsafe_pickle).path
    if not os.path.lexists(base):
        raise PathNotFound("no such pipeline", path=base)
    return base, given


def open_inputs(
    base: Path,
    given: Sequence[Given],
    work: Path,
    *,
    arch: str | None,
    allow_partial: bool,
    unsafe_pickle: bool,
    how: Mapping[str, Any],
) -> Inputs:
    """Make a pipeline folder of `base` where it is none, plan the merge, which refuses what does not fit, and form the
    truth. `how` are the options of rebuild about the base: config, tokenizer, prediction_type, variant.
    """
    folder = base
    if not (base / PIPELINE).is_file():
        folder = work / "pipeline"
        rebuild(base, (), folder, check=False, arch=arch, unsafe_pickle=unsafe_pickle, **how)
    else:
        refuse_for_folder(str(base), how.get("config"), how.get("tokenizer"), how.get("prediction_type"))
    checked: dict[str, Any] = {"allow_partial": allow_partial, "unsafe_pickle": unsafe_pickle}
    pending = plan_merge(folder, given, arch=arch, **checked)
    name = pending.plan.architecture
    table = table_of(name)
    truth = Truth(bound(given, name), pending.output.checkpoint.base.of(table), table)
    variants = variants_of(pending.output.checkpoint)
    variant = how.get("variant") or (None if None in variants else next(iter(variants), None))
    return Inputs(base, folder, tuple(given), name, pending, truth, variant, work, how, **checked)


def bound(given: Sequence[Given], name: str | None) -> list[tuple[Any, float]]:
    """The adapter sets as the architecture reads them, with their scales."""
    table = table_of(name)
    return [(lora.reading.bind(table.id) if table else lora.adapter_set, scale) for lora, scale in given]


def table_of(name: str | None) -> Architecture | None:
    """The table of an architecture, None for a model without one."""
    return next((item for item in ARCHITECTURES if item.id == name), None)


def float32_bytes(checkpoint: Checkpoint, *, offload: bool) -> int:
    """About what a float32 pass takes: every weight (with `offload` the largest component's), the changes beside them,
    and what a picture takes.
    """
    sizes: dict[str, int] = {}
    for item in checkpoint.weights:
        sizes[item.folder] = sizes.get(item.folder, 0) + sum(item.part[key].numel for key in item.keys) * 4
    weights = max(sizes.values(), default=0) if offload else sum(sizes.values())
    return int(weights * 2.2) + (1 << 30 if weights > 1 << 30 else 0)


def _dtypes(checkpoint: Checkpoint) -> set[str]:
    return {item.part[key].dtype for item in checkpoint.weights for key in item.keys}
