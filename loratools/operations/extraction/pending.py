"""A planned extraction: what it will compare and write, and how it is computed, saved and proven."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.bases.kinship import require_kinship
from loratools.bases.pairing import Pair, Twin
from loratools.bases.ties import untied
from loratools.errors import InternalError, NonFinite, ResourceError, UnrelatedModels
from loratools.formats.format import Format
from loratools.operations.extraction.adapter_set import drafted, left_out, rendered_set
from loratools.operations.extraction.factors import Extracted, Workshop, residual
from loratools.operations.extraction.plan import ExtractPlan, compared, peak_memory, told
from loratools.operations.extraction.proof import ExtractProof, prove_extraction
from loratools.operations.extraction.result import Extraction, Layer, counted, together
from loratools.operations.extraction.size_budget import first_cap, within_size
from loratools.operations.extraction.whole import WHOLE
from loratools.operations.extraction.wishes import Wishes
from loratools.operations.outputs.files import AdapterOutput, Saved
from loratools.operations.working.one_thread import one_thread
from loratools.operations.working.side_by_side import side_by_side
from loratools.operations.working.tally import Tally
from loratools.tensors.output import steady
from loratools.tensors.source import LocalFile
from loratools.tensors.spool import Spool
from loratools.tensors.writer import Progress

if TYPE_CHECKING:
    import torch


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
            proofs: list[ExtractProof] = []
            arch = self.models.table.id if self.models.table else None
            saved = output.save(
                path,
                check=lambda written: proofs.append(prove_extraction(written, found, output, arch, self.threads)),
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
        twins = [twin for twin in self.models.twins if twin.target.paths[0] not in self.models.tied]
        return self._output(drafted(twins, self.asked, self._whole), draft=True)

    @property
    def _whole(self) -> tuple[str, ...]:
        """The sorts of tensors that the format holds as they were tuned."""
        return WHOLE if self.form.folder else ()

    @cached_property
    def _once(self) -> tuple[list[Twin], dict[str, Twin]]:
        """Every tensor once, and those that are another's: what is read to tell is read but once."""
        return untied(self.models.twins)

    def _output(self, found: Sequence[Extracted], *, draft: bool = False) -> AdapterOutput:
        models = self.models
        if not draft:
            alike = {path: first.target.paths[0] for path, first in self._once[1].items() if first.sort == "embedding"}
            models = replace(models, alike=alike)
        rendered = rendered_set(found, models, self.form, self.asked, allow_lossy=self.allow_lossy, draft=draft)
        return AdapterOutput(
            "extract", self.parameters, self.inputs, self.folders, rendered, self.form.id, self.form.folder
        )

    def _extracted(self, spool: Spool, progress: Progress | None) -> tuple[list[Extracted], tuple[str, ...]]:
        """Every tensor, in the models' order, and warnings; raises UnrelatedModels where nothing is left to write."""
        with one_thread(), steady(self.inputs), _blamed(self.names[1]):
            _require_device(self.device)
            warnings = require_kinship(self.models, self.names, force=self.force)
            twins, others = self._once
            tied = {**self.models.tied, **{path: first.target.paths[0] for path, first in others.items()}}
            shop = Workshop(self.asked, spool, self.device, self.allow_nonfinite, self._whole)
            cap = first_cap(twins, self.asked) if self.asked.size is not None else None
            found = self._all(shop, twins, cap, progress)
            if not any(item.has_factors or item.stored for item in found):
                raise _nothing(found, self.names)
            if self.asked.size is not None:
                found = within_size(
                    found,
                    self.asked,
                    lambda some: self._output(some).size,
                    lambda twin, wider: side_by_side(lambda one: shop.extract(one, wider), [twin])[0],
                )
                found = [_measured(item) for item in found]
        once = (f"{head} is tied to {embedding}: one tensor, counted once" for head, embedding in tied.items())
        return found, (*warnings, *once, *(line for item in found for line in item.warnings))

    def _all(
        self, shop: Workshop, twins: Sequence[Twin], cap: int | None, progress: Progress | None
    ) -> list[Extracted]:
        """Every tensor through the workshop, `threads` of them at once."""
        tally = Tally(progress, sum(twin.nbytes for twin in twins))

        def one(twin: Twin) -> Extracted:
            made = shop.extract(twin, cap)
            tally.add(twin.nbytes)
            return made

        return side_by_side(one, twins, self.threads)

    def _result(
        self, saved: Saved, found: Sequence[Extracted], warnings: Sequence[str], proof: ExtractProof | None
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
