"""A planned extraction: what it will compare and write, and how it is computed, saved and proven."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from loratools.bases.kinship import require_kinship
from loratools.bases.pairing import Pair, Twin
from loratools.bases.ties import untied
from loratools.errors import InternalError, NonFinite, ResourceError, UnrelatedModels
from loratools.formats.format import Format
from loratools.formats.runtimes import loads
from loratools.operations.extract_plan import ExtractPlan, compared, peak_memory, told
from loratools.operations.extracted import Extracted, Workshop, residual
from loratools.operations.extracted_set import drafted, left_out, rendered_set
from loratools.operations.extraction import Extraction, Layer, counted, together
from loratools.operations.lora import Lora, open_lora
from loratools.operations.one_thread import one_thread
from loratools.operations.output import AdapterOutput, Saved
from loratools.operations.proof import ProofReport, prove_output
from loratools.operations.size_budget import first_cap, within_size
from loratools.operations.wishes import Wishes
from loratools.tensors.output import steady
from loratools.tensors.source import LocalFile
from loratools.tensors.spool import Spool
from loratools.tensors.writer import Progress

if TYPE_CHECKING:
    import torch

_SAMPLE = 4  # layers whose error is measured again from the output
_SLACK = 1e-3  # between the error that a decomposition certifies and the one that is measured again


@dataclass(frozen=True)
class PendingExtraction:
    """An extraction that has been planned from headers: no weight is read before `state_dict` or `save`."""

    names: tuple[str, str]
    models: Pair
    asked: Wishes
    form: Format
    parameters: Mapping[str, Any]
    notes: tuple[str, ...]
    threads: int
    device: str
    force: bool
    allow_nonfinite: bool
    allow_lossy: bool
    inputs: tuple[LocalFile, ...]
    folders: tuple[Path, ...]

    @cached_property
    def plan(self) -> ExtractPlan:
        """What would be compared and written; raises NotRepresentable for what the format cannot hold."""
        draft = self._draft
        return ExtractPlan(
            *self.names,
            self.form.id,
            self.models.table.id if self.models.table else None,
            self.models.candidates,
            self.asked.dtype,
            compared(self.models),
            self.models.coverage,
            told(self.asked),
            sum(len(file.tensors) for file in draft.rendered.files),
            self.asked.size or (draft.size if self.asked.rank else None),
            sum(twin.nbytes for twin in self.models.twins),
            peak_memory(self.models, self.threads),
            draft.rendered.lost,
            self.notes,
        )

    def preview(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> ExtractPlan:
        """The plan for an output, with the disk space that is free there; raises what `save` would before it reads."""
        free = self._draft.preview(out, overwrite=overwrite)
        return replace(self.plan, path=str(Path(out)), free_disk=free)

    def state_dict(self, *, progress: Progress | None = None) -> dict[str, torch.Tensor]:
        """Every tensor by its key, computed now; keys of several files are joined by `component/`."""
        spool = Spool()
        try:
            return self._output(self._extracted(spool, progress)[0]).state_dict()
        finally:
            spool.close()

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        if_needed: bool = False,
        progress: Progress | None = None,
    ) -> Extraction:
        """Compute, write, verify, prove. `progress` is told the bytes of both models that were read.

        Raises OutputExists, OutputRefused, ResourceError; UnrelatedModels where nothing changed or, unless forced, the
        weights say that the two do not belong together; NonFinite; InternalError when a proof fails.
        """
        path = Path(out)
        if if_needed and self._draft.stands(path):
            return self._result(Saved(path, 0, None, skipped=True), [], (), None)
        self._draft.preview(path, overwrite=overwrite)
        spool = Spool(path)
        try:
            found, warnings = self._extracted(spool, progress)
            output = self._output(found)
            proofs: list[_Proof] = []
            saved = output.save(
                path,
                check=lambda written: proofs.append(self._proven(written, found, output)),
                digest=True,
                overwrite=overwrite,
            )
        finally:
            spool.close()
        if self.asked.size is not None and saved.size > self.asked.size:
            raise InternalError(f"{saved.size} bytes were written where {self.asked.size} were allowed", path=path)
        return self._result(saved, found, (*warnings, *output.rendered.lost), proofs[0])

    @cached_property
    def _draft(self) -> AdapterOutput:
        """The output with zeros for factors, every layer in it: its keys, and its size where ranks are said."""
        return self._output(drafted(self.models.twins, self.asked))

    def _output(self, found: Sequence[Extracted]) -> AdapterOutput:
        rendered = rendered_set(found, self.models, self.form, self.asked, allow_lossy=self.allow_lossy)
        return AdapterOutput(
            "extract", self.parameters, self.inputs, self.folders, rendered, self.form.id, self.form.folder
        )

    def _extracted(self, spool: Spool, progress: Progress | None) -> tuple[list[Extracted], tuple[str, ...]]:
        """Every tensor, in the models' order, and warnings; raises UnrelatedModels where nothing is left to write."""
        with one_thread(), steady(self.inputs), _blamed(self.names[1]):
            _require_device(self.device)
            warnings = require_kinship(self.models, self.names, force=self.force)
            twins, tied = untied(self.models.twins)
            shop = Workshop(self.asked, spool, self.device, self.allow_nonfinite)
            cap = first_cap(twins, self.asked) if self.asked.size is not None else None
            found = self._all(shop, twins, cap, progress)
            if not any(item.has_factors or item.stored for item in found):
                raise _nothing(found, self.names)
            if self.asked.size is not None:
                found = within_size(found, self.asked, lambda some: self._output(some).size, shop.extract)
                found = [_measured(item) for item in found]
        return found, (*warnings, *tied, *(line for item in found for line in item.warnings))

    def _all(
        self, shop: Workshop, twins: Sequence[Twin], cap: int | None, progress: Progress | None
    ) -> list[Extracted]:
        """Every tensor through the workshop, `threads` of them at once."""
        counter = _Counter(progress, sum(twin.nbytes for twin in twins))

        def one(twin: Twin) -> Extracted:
            made = shop.extract(twin, cap)
            counter.add(twin.nbytes)
            return made

        if self.threads == 1:
            return [one(twin) for twin in twins]
        pool = ThreadPoolExecutor(self.threads)
        try:
            return list(pool.map(one, twins))
        finally:
            pool.shutdown(cancel_futures=True)

    def _proven(self, written: Path, found: Sequence[Extracted], output: AdapterOutput) -> _Proof:
        """Re-open the output as a stranger would: every factor byte for byte, and some errors measured again."""
        lora = open_lora(written, arch=self.models.table.id if self.models.table else None)
        lora.reading.require_known()
        report = prove_output(output.rendered.adapters, lora.adapters, threads=self.threads)
        if report.worst or report.measured:
            raise InternalError(
                "the output does not hold the factors that were computed", path=written, key=report.worst_module
            )
        with one_thread():
            measured = tuple(_again(lora, found, written))
        return _Proof(report, measured, {answer.runtime: answer.to_dict() for answer in loads(lora.reading)})

    def _result(
        self, saved: Saved, found: Sequence[Extracted], warnings: Sequence[str], proof: _Proof | None
    ) -> Extraction:
        layers = sorted((Layer.of(item) for item in found if item.has_factors), key=lambda layer: -layer.error)
        error, energy, curve = together(found)
        return Extraction(
            saved.path,
            *self.names,
            self.form.id,
            self.models.table.id if self.models.table else next(iter(self.models.candidates), None),
            self.asked.dtype,
            saved.size,
            saved.payload_sha256,
            counted(found),
            tuple(layers),
            error,
            energy,
            curve,
            tuple(item.twin.name for item in found if item.stored),
            tuple(left_out(found, self.models)) if found else (),
            (*self.notes, *warnings),
            proof.report if proof else None,
            proof.measured if proof else (),
            proof.loaders if proof else {},
            saved.skipped,
        )


@dataclass(frozen=True, slots=True)
class _Proof:
    """The bytes' proof, the errors that were measured again, and who loads the output."""

    report: ProofReport
    measured: tuple[tuple[str, float], ...]
    loaders: Mapping[str, Any]


@dataclass(slots=True)
class _Counter:
    """Bytes done, from any thread."""

    progress: Progress | None
    total: int
    done: int = 0
    lock: Lock = field(default_factory=Lock)

    def add(self, count: int) -> None:
        """Tell the progress."""
        with self.lock:
            self.done += count
            if self.progress is not None:
                self.progress(self.done, self.total)


def _require_device(device: str) -> None:
    """Raise ResourceError for a GPU that torch does not see."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError("torch sees no CUDA device", hint="--device cpu")


@contextmanager
def _blamed(path: str) -> Iterator[None]:
    """Put the tuned model to errors about numbers that name no file."""
    try:
        yield
    except NonFinite as error:
        error.path = error.path or path
        raise


def _nothing(found: Sequence[Extracted], names: tuple[str, str]) -> UnrelatedModels:
    """Why there is nothing to write."""
    changed = sum(item.state == "changed" for item in found)
    rounded = sum(item.state == "rounding" for item in found)
    if changed:
        return UnrelatedModels(
            f"no layer changed beyond rounding, but {changed} norms, biases or embeddings did",
            path=names[1],
            hint="--full norms,biases,embeddings stores their differences",
        )
    what = f"; {rounded} of {len(found)} tensors differ within the rounding of their dtypes" if rounded else ""
    return UnrelatedModels(
        f"nothing changed between {names[0]} and {names[1]}{what}", path=names[1], hint="give the tuned model second"
    )


def _measured(item: Extracted) -> Extracted:
    """A DoRA layer that was cut has another error than before, and only its merged weight tells which."""
    if item.magnitude is None or item.down is None or item.up is None:
        return item
    return replace(item, error=residual(item.twin, item.up.load(), item.down.load(), item.magnitude.load()))


def _again(lora: Lora, found: Sequence[Extracted], written: Path) -> Iterator[tuple[str, float]]:
    """Some layers' errors in float64, from the output and both models; raises InternalError beyond what was stated."""
    held = {item.target.paths: item for item in lora.adapters if {"down", "up"} <= set(item.factors)}
    layers = [item for item in found if item.has_factors and item.twin.target.paths in held]
    worst = sorted(layers, key=lambda item: -item.error)
    step = max(1, len(worst) // _SAMPLE)
    for item in worst[::step][:_SAMPLE]:
        adapter = held[item.twin.target.paths]
        factors = {role: tensor.load() for role, tensor in adapter.factors.items()}
        up = factors["up"].double() * float(adapter.scale)
        error = residual(item.twin, up, factors["down"], factors.get("magnitude"))
        if not error <= item.error * (1 + _SLACK) + 1e-6:
            raise InternalError(
                f"{item.twin.name} has a relative error of {error:.3g}, not of {item.error:.3g}",
                path=written,
                hint="nothing was written; please report this",
            )
        yield item.twin.name, error
