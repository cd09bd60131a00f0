"""compare: do two adapters make the same delta? Per module, from the factors, across formats."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from loratools.adapters.adapter import Adapter
from loratools.adapters.difference import difference
from loratools.adapters.exact import identical
from loratools.adapters.factors import needs_base
from loratools.adapters.proof import Cluster, aligned, clusters, prove
from loratools.bases.weights import BaseWeights
from loratools.errors import ArchitectureMismatch, UsageError
from loratools.formats.choose import GENERIC
from loratools.formats.opening import Reference
from loratools.operations.conversion.to_kind import open_model, shared
from loratools.operations.lora import Lora, open_lora, tables
from loratools.operations.over_base import compared, depends
from loratools.operations.working.side_by_side import side_by_side
from loratools.tensors.source import LocalFile


@dataclass(frozen=True, slots=True)
class ModuleComparison:
    """One module: where it stands ("both", "a", "b"), how that was seen, relative error and cosine of the deltas."""

    module: str
    where: str
    proof: str
    relative_error: float
    cosine: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; an infinite error (a module on one side only) is null."""
        error = self.relative_error if self.relative_error != float("inf") else None
        return {
            "module": self.module,
            "where": self.where,
            "proof": self.proof,
            "relative_error": error,
            "cosine": self.cosine,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All modules, worst first. `equal` is whether every relative error is at most the tolerance."""

    a: str
    b: str
    tolerance: float
    modules: tuple[ModuleComparison, ...]
    base: str | None = None
    plot: Path | None = None

    @property
    def worst(self) -> float:
        """The largest relative error; infinite where a module changes something on one side only."""
        return max((item.relative_error for item in self.modules), default=0.0)

    @property
    def equal(self) -> bool:
        """Whether the two make the same delta within the tolerance."""
        return self.worst <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        worst = self.worst
        only = {side: sum(item.where == side for item in self.modules) for side in ("a", "b")}
        return {
            "schema": "loratools.compare/1",
            "a": self.a,
            "b": self.b,
            "base": self.base,
            "tolerance": self.tolerance,
            "equal": self.equal,
            "worst": worst if worst != float("inf") else None,
            "compared": len(self.modules),
            "only_in_a": only["a"],
            "only_in_b": only["b"],
            "modules": [item.to_dict() for item in self.modules],
            **({} if self.plot is None else {"plot": str(self.plot)}),
        }


def compare(
    a: Reference | Lora,
    b: Reference | Lora,
    *,
    tolerance: float = 1e-5,
    arch: str | None = None,
    base: Reference | None = None,
    threads: int = 1,
    unsafe_pickle: bool = False,
    plot: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Compare two adapters module by module; raises ArchitectureMismatch where they are for different models.

    DoRA, (IA)³, GLoRA, OFT and BOFT change a weight by a function of itself. With `base`, the model that they are for,
    their deltas are formed over its weights; without it, two of one kind are compared by their factors, and anything
    else raises NotRepresentable. `plot` draws the errors by block and layer, as a .png or .html file.
    """
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise UsageError(f"a tolerance of {tolerance} is no bound", hint="a number from 0 on, such as 1e-5")
    left = open_lora(a, arch=arch, unsafe_pickle=unsafe_pickle)
    right = open_lora(b, arch=arch, unsafe_pickle=unsafe_pickle)
    files = (*left.reading.opened.files, *right.reading.opened.files)
    if plot is not None:
        from loratools.reports.plot import guard_plot

        guard_plot(plot, files, overwrite=overwrite)
    left.reading.require_known()
    right.reading.require_known()
    common = [name for name in left.candidates if name in right.candidates] or _one_language_model(left, right)
    if not common:
        raise ArchitectureMismatch(
            f"the first is for {' or '.join(left.candidates)}, the second for {' or '.join(right.candidates)}",
            path=right.name,
            hint="deltas of different models cannot be compared",
        )
    if left.candidates[0] != common[0]:
        left = open_lora(left, arch=common[0])
    if right.candidates[0] != common[0]:
        right = open_lora(right, arch=common[0])
    found = clusters(left.adapters, right.adapters)
    model = None if base is None else open_model(base, left, unsafe_pickle=unsafe_pickle)
    weights = None
    if model is not None:
        both = shared(common, model.candidates)
        weights = model.of(next((table for table in tables(left) if table.id in both), None))
    over = [cluster for cluster in found if weights is not None and _depends(cluster)]
    factors = [pair for cluster in found if cluster not in over for pair in aligned(*cluster)]
    modules = side_by_side(_module, factors, threads)
    if weights is not None:
        modules += [row for rows in side_by_side(partial(_over, weights), over, threads) for row in rows]
    ordered = tuple(sorted(modules, key=lambda item: -item.relative_error))
    result = Comparison(left.name, right.name, tolerance, ordered, None if model is None else model.name)
    return result if plot is None else _drawn(result, plot, files, overwrite=overwrite)


def _one_language_model(left: Lora, right: Lora) -> list[str]:
    """The first's type, where both are language models with a layer in common: a port of one may name others as one."""
    if not all(name.startswith(GENERIC) for lora in (left, right) for name in lora.candidates):
        return []
    ours, theirs = ({path for item in lora.adapters for path in item.target.paths} for lora in (left, right))
    return list(left.candidates[:1]) if ours & theirs else []


def _drawn(
    result: Comparison, plot: str | os.PathLike[str], files: tuple[LocalFile, ...], *, overwrite: bool
) -> Comparison:
    """The same, drawn."""
    from loratools.operations.plots import comparison_plot
    from loratools.reports.plot import write_plot

    drawn = write_plot(plot, comparison_plot(result.to_dict()), files, overwrite=overwrite)
    return replace(result, plot=drawn)


def _depends(cluster: Cluster) -> bool:
    """Whether a cluster has to be compared over the base: equal bytes make equal deltas over any."""
    ours, theirs = cluster
    return depends(cluster) and not (len(ours) == len(theirs) == 1 and identical(ours[0], theirs[0]))


def _over(base: BaseWeights, cluster: Cluster) -> list[ModuleComparison]:
    return [ModuleComparison(row.name, row.where, "measured", row.error, row.cosine) for row in compared(cluster, base)]


def _magnitudes(item: Adapter) -> set[str]:
    return {role for role in item.factors if "magnitude" in role}


def _module(pair: tuple[Adapter | None, Adapter | None]) -> ModuleComparison:
    """One module: equal bytes need no arithmetic; anything else is measured in float64."""
    ours, theirs = ([item] if item else [] for item in pair)
    name = (ours or theirs)[0].target.name
    if ours and theirs and _magnitudes(ours[0]) != _magnitudes(theirs[0]):
        raise needs_base("dora")
    proof = prove(ours, theirs)
    if not ours or not theirs:
        return ModuleComparison(name, "a" if ours else "b", proof.kind, proof.error, None)
    if proof.kind != "measured":
        return ModuleComparison(name, "both", proof.kind, 0.0, 1.0)
    found = difference(ours, theirs)
    return ModuleComparison(name, "both", "measured", found.relative_error, found.cosine)
