"""A combination that has been planned: what it will write, and how it is saved and proven as re-opened."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.combine import Combination, Method
from loratools.adapters.kind import kind_of
from loratools.adapters.terms import inner_rank
from loratools.architectures.architecture import Architecture
from loratools.operations.combination.proof import promise
from loratools.operations.combination.result import Combined, CombinePlan, CombineResult
from loratools.operations.lora import Lora
from loratools.operations.outputs import derived
from loratools.operations.outputs.files import AdapterOutput
from loratools.operations.working.one_thread import one_thread
from loratools.tensors.writer import Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PendingCombination:
    """A combination that has been planned: names and ranks are settled, factors are computed when asked for."""

    loras: tuple[Lora, ...]
    weights: tuple[float, ...]
    method: Method
    combinations: tuple[Combination, ...]
    output: AdapterOutput
    lost: tuple[str, ...]
    notes: tuple[str, ...]
    table: Architecture | None

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters as they will be written, in canonical form."""
        return self.output.rendered.adapters

    @property
    def names(self) -> list[tuple[str, str, str, tuple[int, ...]]]:
        """File, key, dtype and shape of everything that will be written."""
        return sorted(
            (file.name, key, tensor.dtype, tensor.shape)
            for file in self.output.rendered.files
            for key, tensor in file.tensors.items()
        )

    @property
    def layers(self) -> tuple[Combined, ...]:
        """Every layer, with the error of its rank where that is known."""
        return tuple(
            Combined(
                item.adapter.target.name,
                tuple(term.number for term in item.terms),
                tuple(inner_rank(term.adapter) or 0 for term in item.terms),
                "+".join(kind_of(item.adapter.kind).kinds(item.adapter.factors)),
                item.rank,
                item.error,
                item.norm,
            )
            for item in self.combinations
        )

    @property
    def architecture(self) -> str | None:
        """The architecture that all inputs are for."""
        return self.table.id if self.table else self.loras[0].architecture

    @property
    def inputs(self) -> tuple[tuple[str, float], ...]:
        """The name and the weight of every input."""
        return tuple((lora.name, weight) for lora, weight in zip(self.loras, self.weights, strict=True))

    @property
    def plan(self) -> CombinePlan:
        """The plan; what cutting costs is known once it was done."""
        return CombinePlan(
            self.inputs,
            self.method.name,
            self.output.format,
            self.architecture,
            self.layers,
            self.output.size,
            (*self.output.rendered.lost, *self.lost),
            self.notes,
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor by its key, computed now; keys of several files are joined by `component/`."""
        with one_thread():
            return self.output.state_dict()

    def preview(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> CombinePlan:
        """The plan for an output; raises what `save` would before it writes."""
        free = self.output.preview(out, overwrite=overwrite)
        return replace(self.plan, path=str(Path(out)), free_disk=free)

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        if_needed: bool = False,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> CombineResult:
        """Write, verify, prove. Raises OutputExists, OutputRefused, ResourceError, NonFinite; InternalError when a
        layer of the output is not the sum that was asked for, within the error of its rank and its dtype's rounding.
        """
        saved, proof = derived.save(
            self.output,
            out,
            self._held(),
            lambda: promise(self.combinations, self.method.dtype),
            architecture=self.architecture,
            overwrite=overwrite,
            if_needed=if_needed,
            threads=threads,
            progress=progress,
        )
        if not saved.skipped:
            for item in self.combinations:
                item.settle()
        return CombineResult(
            saved.path,
            self.inputs,
            self.method.name,
            self.output.format,
            self.architecture,
            saved.size,
            saved.payload_sha256,
            proof,
            () if saved.skipped else self.layers,
            (*self.output.rendered.lost, *self.lost),
            (*self.notes, *(proof.warnings if proof else ())),
            saved.skipped,
        )

    def _held(self) -> tuple[Adapter, ...]:
        """The terms that the output must hold."""
        written = {(item.target.component, path) for item in self.adapters for path in item.target.paths}
        return tuple(
            term.adapter
            for item in self.combinations
            for term in item.terms
            if any((term.adapter.target.component, path) in written for path in term.adapter.target.paths)
        )
