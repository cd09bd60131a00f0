"""The report of a rebuild: what was planned, written, linked, left out, loaded and run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.operations.merging.result import Merge, MergePlan
from loratools.pipelines.trial import Trial


@dataclass(frozen=True)
class RebuildPlan:
    """What a rebuild will do. `linked`, `copied` and `written` are files of the folder, with their bytes."""

    merge: MergePlan
    pipeline: str
    variants: tuple[str | None, ...]
    linked: tuple[tuple[str, int], ...]
    copied: tuple[tuple[str, int], ...]
    written: tuple[tuple[str, int], ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    path: str | None = None
    single_file: str | None = None
    free_disk: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.rebuild-plan/1",
            "base": self.merge.base,
            "architecture": self.merge.architecture,
            "pipeline": self.pipeline,
            "variants": list(self.variants),
            "adapters": [item.to_dict() for item in self.merge.adapters],
            "changed": self.merge.changed,
            "cast": self.merge.cast,
            "linked": [{"name": name, "bytes": size} for name, size in self.linked],
            "copied": [{"name": name, "bytes": size} for name, size in self.copied],
            "written": [{"name": name, "bytes": size} for name, size in self.written],
            "left_out": list(self.left_out),
            "peak_memory": self.merge.peak_memory,
            "warnings": list(self.warnings),
            "path": self.path,
            "single_file": self.single_file,
            "free_disk": self.free_disk,
        }


@dataclass(frozen=True)
class Rebuild:
    """What was rebuilt. `merge` tells of the weights; `linked` are the files that are hard links; `trial` is the proof
    of the folder and `single_trial` that of the single file, None where none was asked for. `skipped` when the output
    was already made from these inputs.
    """

    path: Path | None
    single_file: Path | None
    plan: RebuildPlan
    merge: Merge
    linked: tuple[str, ...]
    trial: Trial | None
    single_trial: Trial | None
    single_size: int
    skipped: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the plan says, what the numbers say, and what the trial could not show."""
        trials = [item for item in (self.trial, self.single_trial) if item is not None and item.why_not_run]
        unrun = [f"loaded, but no step was run: {item.why_not_run}" for item in trials]
        return tuple(dict.fromkeys((*self.plan.warnings, *self.merge.warnings, *unrun)))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        merged = self.merge.to_dict()
        return {
            "schema": "loratools.rebuild/1",
            "path": str(self.path) if self.path else None,
            "single_file": str(self.single_file) if self.single_file else None,
            "base": self.plan.merge.base,
            "architecture": self.plan.merge.architecture,
            "pipeline": self.plan.pipeline,
            "variants": list(self.plan.variants),
            "adapters": merged["adapters"],
            "changed": merged["changed"],
            "cast": merged["cast"],
            "linked": list(self.linked),
            "left_out": list(self.plan.left_out),
            "size": self.merge.size,
            "single_size": self.single_size,
            "ratio": merged["ratio"],
            "lost": merged["lost"],
            "layers": merged["layers"],
            "trial": self.trial.to_dict() if self.trial else None,
            "single_trial": self.single_trial.to_dict() if self.single_trial else None,
            "warnings": list(self.warnings),
            "skipped": self.skipped,
        }
