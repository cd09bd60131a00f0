"""A planned conversion: what it will write, and how it is saved, verified and proven from the output as re-opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.proof import prove
from loratools.errors import InternalError, LoratoolsError, NotRepresentable, OutputRefused, UsageError
from loratools.formats.configs import DIFFUSERS_KEY
from loratools.formats.opening import CONFIG
from loratools.formats.registry import ORIGINAL
from loratools.formats.render import OutputFile, Rendered
from loratools.operations.conversion import Conversion
from loratools.operations.dense_proof import DenseProver
from loratools.operations.hashes import HASH_KEYS, recomputed
from loratools.operations.lora import Lora, open_lora
from loratools.operations.plan import Plan
from loratools.operations.proof import ProofReport, prove_output
from loratools.operations.provenance import PROVENANCE_KEY, InputHashes, record
from loratools.operations.to_kind import Plain
from loratools.tensors.output import check_free_space, guard_folder, guard_output
from loratools.tensors.source import LocalFile
from loratools.tensors.writer import Progress, write, write_folder

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
# The largest error of an output that no arithmetic was asked for: that of float64 where every step is exact, that of an
# alpha rounded to float32 where the target cannot hold it (rsLoRA).
_EXACT_LIMIT = 1e-12
_ROUNDED_LIMIT = 1e-6


@dataclass(frozen=True)
class Pending:
    """A conversion that has been planned: names, layouts and places are settled, nothing is computed or written yet."""

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

    @property
    def inputs(self) -> tuple[LocalFile, ...]:
        """Every file that the output is made from: the adapter's, and those of the base model."""
        base = self.plain.base if self.plain else None
        components = list(dict.fromkeys(item.target.component for item in self.source.adapters))
        return (*self.lora.reading.opened.files, *(base.files(components) if base else ()))

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters as they will be written, in canonical form."""
        return self.rendered.adapters

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor by its key, computed now; keys of several files are joined by `component/`."""
        several = len(self.rendered.files) > 1
        return {
            f"{file.name}/{key}" if several else key: tensor.load()
            for file in self.rendered.files
            for key, tensor in file.tensors.items()
        }

    def preview(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> Plan:
        """The plan for an output, with the disk space that is free there; raises what `save` would before it writes."""
        path = Path(out)
        self._require_place(path)
        files = self.inputs
        if self._is_folder(path):
            guard_folder(path, files, self._contents(), overwrite=overwrite)
        else:
            guard_output(path, files, overwrite=overwrite)
        check_free_space(path.parent, sum(size for _, _, size in self.plan.files))
        room = os.statvfs(path.parent)
        return replace(self.plan, path=str(path), free_disk=room.f_bavail * room.f_frsize)

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
        path = Path(out)
        self._require_place(path)
        files = self.inputs
        hashes = InputHashes(files)
        try:
            if if_needed and _made_from(path, record("convert", self.parameters, hashes.inputs())):
                return self._result(path, 0, None, None, skipped=True)
            proofs: list[ProofReport] = []

            def check(written: Path) -> None:
                proofs.append(self._prove(written, threads))

            if self._is_folder(path):
                done = write_folder(
                    path,
                    self._contents(),
                    inputs=files,
                    overwrite=overwrite,
                    progress=progress,
                    check=check,
                    late_metadata={self._name(file): self._late(file, hashes) for file in self.rendered.files},
                    digest=self._needs_digest(),
                )
                return self._result(path, done.size, None, proofs[0])
            file = self.rendered.files[0]
            one = write(
                path,
                file.tensors,
                file.metadata,
                inputs=files,
                overwrite=overwrite,
                progress=progress,
                check=check,
                late_metadata=self._late(file, hashes),
                digest=self._needs_digest(),
            )
            return self._result(path, one.size, one.payload_sha256, proofs[0])
        finally:
            hashes.close()

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
        if self.folded:
            return True
        stabilized = any(item.alpha.rank_stabilized for item in (*self.adapters, *self.source.adapters))
        # An original configuration returns word for word: its alpha may be what the source had to round.
        restated = self.parameters["to"] == ORIGINAL and any(
            file.config is not None or DIFFUSERS_KEY in file.metadata for file in self.rendered.files
        )
        return stabilized or restated or any(step.measured for step in self.rendered.steps)

    def _result(
        self, path: Path, size: int, payload: str | None, proof: ProofReport | None, *, skipped: bool = False
    ) -> Conversion:
        return Conversion(
            path,
            self.plan.format,
            self.plan.architecture,
            size,
            payload,
            proof,
            self.plan.lost,
            (*self.warnings, *(proof.warnings if proof else ())),
            skipped,
            self.plan.costs,
        )

    def _name(self, file: OutputFile) -> str:
        """The place of a file in the output folder: one component at its root, several in folders of their own."""
        return WEIGHTS if len(self.rendered.files) == 1 else f"{file.name}/{WEIGHTS}"

    def _contents(self) -> dict[str, Any]:
        contents: dict[str, Any] = {}
        for file in self.rendered.files:
            name = self._name(file)
            contents[name] = (file.tensors, file.metadata)
            if file.config is not None:
                text = json.dumps(file.config, indent=2, sort_keys=True) + "\n"
                contents[name.replace(WEIGHTS, CONFIG)] = text.encode()
        return contents

    def _late(self, file: OutputFile, hashes: InputHashes) -> Callable[[str], Mapping[str, str]]:
        """The metadata that depends on hashes, which run while the file is written."""

        def late(payload_sha256: str) -> Mapping[str, str]:
            pending = set(payload_sha256) == {"0"}
            inputs = hashes.pending() if pending else hashes.inputs()
            found = {PROVENANCE_KEY: record("convert", self.parameters, inputs)}
            return found | recomputed(file.metadata, file.tensors, payload_sha256)

        return late

    def _is_folder(self, path: Path) -> bool:
        return self.folder and path.suffix != ".safetensors"

    def _require_place(self, path: Path) -> None:
        """Raise UsageError or OutputRefused for a place that this output cannot have."""
        if self.folder and path.suffix == ".safetensors":
            self._require_bare(path)
        elif not self.folder and path.suffix != ".safetensors":
            hint = f"name it {path.name or 'out'}.safetensors"
            raise UsageError(f"{self.plan.format} is one .safetensors file", path=path, hint=hint)
        opened = self.lora.reading.opened
        if opened.layout in ("peft", "folder") and path.resolve().is_relative_to(Path(opened.name).resolve()):
            raise OutputRefused("the output lies in the input", path=path, hint="give the output another name")

    def _require_bare(self, path: Path) -> None:
        """One PEFT file without its configuration can hold one component whose factors are multiplied by 1."""
        if len(self.rendered.files) > 1:
            raise UsageError("several components need a folder", path=path, hint=f"write to {path.with_suffix('')}/")
        scaled = next((item for item in self.adapters if float(item.scale) != 1.0), None)
        if scaled is not None:
            raise NotRepresentable(
                f"a bare PEFT file has no place for the alpha of {scaled.target.name}",
                path=path,
                hint="write to a folder, or multiply alpha into the factors with --alpha fold",
            )

    def _prove(self, written: Path, threads: int) -> ProofReport:
        """Re-open the output as a stranger would, parse it from its own keys, and compare it with the source."""
        found = open_lora(written, arch=self.plan.architecture)
        found.reading.require_known()
        dense = DenseProver(self.plain) if self.plain else None
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
            return report
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


def _made_from(path: Path, wanted: str) -> bool:
    """Whether an output's own record says that it was made by this version from these inputs and parameters."""
    try:
        opened = open_lora(path).reading.opened
    except LoratoolsError:  # nothing, or nothing of ours: whether it may be replaced is the writer's question
        return False
    return all(part.source.metadata.get(PROVENANCE_KEY) == wanted for part in opened.parts)
