"""A planned conversion: what it will write, and how it is saved, verified and proven from the output as re-opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.proof import prove
from loratools.errors import InternalError
from loratools.formats.configs import DIFFUSERS_KEY
from loratools.formats.original import Original
from loratools.formats.registry import ORIGINAL
from loratools.formats.render import Rendered
from loratools.operations.conversion.losses import Losses, losses
from loratools.operations.conversion.plan import Plan
from loratools.operations.conversion.result import Conversion
from loratools.operations.header.hashes import HASH_KEYS
from loratools.operations.lora import Lora, open_lora
from loratools.operations.outputs.files import AdapterOutput, Saved
from loratools.operations.outputs.proof import ProofReport, prove_output
from loratools.tensors.source import LocalFile
from loratools.tensors.writer import Progress

if TYPE_CHECKING:
    import torch

    from loratools.operations.conversion.to_kind import Plain

# The largest error of an output that no arithmetic was asked for: that of float64 where every step is exact, that of an
# alpha rounded to float32 where the target cannot hold it (rsLoRA).
_EXACT_LIMIT = 1e-12
_ROUNDED_LIMIT = 1e-6


@dataclass(frozen=True)
class Pending:
    """A conversion that has been planned: names, layouts and places are settled, nothing is computed or written yet.

    Where layers are to be decomposed, `later` does that, and until then the plan's ranks and sizes are the largest that
    may come.
    """

    lora: Lora
    source: AdapterSet
    rendered: Rendered
    plan: Plan
    parameters: Mapping[str, Any]
    folder: bool
    arithmetic: bool
    warnings: tuple[str, ...] = field(default=())
    allow_nonfinite: bool = False
    plain: Plain | None = None
    folded: bool = False
    later: Callable[[], Pending] | None = None

    @cached_property
    def settled(self) -> Pending:
        """The same with every decomposition made: the ranks, sizes and errors of its plan are those of the output."""
        return self.later() if self.later else self

    @property
    def inputs(self) -> tuple[LocalFile, ...]:
        """Every file that the output is made from: the adapter's, and those of the base model."""
        base = self.plain.base if self.plain else None
        components = list(dict.fromkeys(item.target.component for item in self.source.adapters))
        return (*self.lora.reading.opened.files, *(base.files(components) if base else ()))

    @property
    def container(self) -> str:
        """What the one file of an output that is no folder is named after: safetensors, or gguf."""
        return self.rendered.files[0].container

    @property
    def output(self) -> AdapterOutput:
        """The files to be, and where they may go."""
        opened = self.lora.reading.opened
        folders = (Path(opened.name),) if opened.layout in ("folder", "mlx", "peft") else ()
        return AdapterOutput(
            "convert", self.parameters, self.inputs, folders, self.rendered, self.plan.format, self.folder
        )

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters as they will be written, in canonical form."""
        return self.settled.rendered.adapters

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor by its key, computed now; keys of several files are joined by `component/`."""
        return self.settled.output.state_dict()

    def preview(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> Plan:
        """The plan for an output, with the disk space that is free there; raises what `save` would before it writes."""
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
    ) -> Conversion:
        """Write, verify, prove. Raises OutputExists, OutputRefused, ResourceError; InternalError when a proof fails."""
        if self.later:
            if if_needed and self.output.stands(Path(out)):
                return self._result(Saved(Path(out), 0, None, skipped=True))
            self.output.guard(Path(out), overwrite=overwrite)
            return self.settled.save(out, overwrite=overwrite, threads=threads, progress=progress)
        proofs: list[tuple[ProofReport, Losses | None]] = []

        def check(written: Path) -> None:
            proofs.append(self._prove(written, threads))

        saved = self.output.save(
            out,
            check=check,
            digest=self._needs_digest(),
            overwrite=overwrite,
            if_needed=if_needed,
            progress=progress,
        )
        return self._result(saved, *(proofs[0] if proofs else (None, None)))

    def _needs_digest(self) -> bool:
        """Whether the output must be hashed: for a hash in its metadata, or because not every byte is only moved.

        Where every byte is only moved, the proof compares each with its source, which says more than a hash.
        """
        untouched = all(step.what in ("untouched", "slice") for step in self.rendered.steps)
        moved = untouched and not self.arithmetic and self.plain is None
        named = any(key in file.metadata for file in self.rendered.files for key in HASH_KEYS)
        return named or self._may_round() or not moved

    def _may_round(self) -> bool:
        """Whether an alpha may not be the source's to the last bit, though nobody asked for arithmetic."""
        if self.folded or self.rendered.rounded:
            return True
        stabilized = any(item.alpha.rank_stabilized for item in (*self.adapters, *self.source.adapters))
        # What returns word for word may be what the source had to round: a configuration, the scales of fused parts.
        restated = self.parameters["to"] == ORIGINAL and (
            any(file.config is not None or DIFFUSERS_KEY in file.metadata for file in self.rendered.files)
            or bool(Original.of(self.source, path=self.lora.reading.opened.name).unfolded)
        )
        return stabilized or restated or any(step.measured for step in self.rendered.steps)

    def _result(self, saved: Saved, proof: ProofReport | None = None, lost: Losses | None = None) -> Conversion:
        return Conversion(
            saved.path,
            self.plan.format,
            self.plan.architecture,
            saved.size,
            saved.payload_sha256,
            proof,
            self.plan.lost,
            (*self.warnings, *(proof.warnings if proof else ()), *(lost.warnings if lost else ())),
            saved.skipped,
            self.plan.costs,
            lost,
        )

    def _prove(self, written: Path, threads: int) -> tuple[ProofReport, Losses | None]:
        """Re-open the output as a stranger would, parse it from its own keys, and compare it with the source; with what
        the runtime that it is for will lose.
        """
        found = open_lora(written, arch=self.plan.architecture)
        found.reading.require_known()
        dense = None
        if self.plain:
            from loratools.operations.conversion.dense_proof import DenseProver

            dense = DenseProver(self.plain)
        report = prove_output(
            self.source.adapters,
            found.adapters,
            threads=threads,
            allow_nonfinite=self.allow_nonfinite,
            prover=dense or prove,
        )
        limit = float("inf") if self.arithmetic or dense else _ROUNDED_LIMIT if self._may_round() else _EXACT_LIMIT
        if not report.worst <= limit:
            reason = f"{report.worst_module} differs by {report.worst:.3g}"
        elif dense and dense.beyond and not self.arithmetic:
            name, error = max(dense.beyond, key=lambda item: item[1])
            reason = f"{name} differs by {error:.3g}, more than was promised"
        elif not _same_extras(self.source, found.adapter_set):
            reason = "a tensor saved whole differs"
        elif not self._needs_digest() and (report.exact or report.measured):
            reason = "bytes that were only to be moved differ"
        else:
            return report, losses(found.reading, self.parameters["runtime"])
        raise InternalError(
            f"the output does not make the same delta: {reason}",
            path=written,
            key=report.worst_module,
            hint="nothing was written; please report this file",
        )


def _same_extras(ours: AdapterSet, theirs: AdapterSet) -> bool:
    """Whether the tensors that are no adapters arrived byte for byte (none may have gone along at all)."""
    return all(
        tensor.same_bytes(ours.extras[component][key])
        for component, saved in theirs.extras.items()
        for key, tensor in saved.items()
    )
