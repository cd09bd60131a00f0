"""An adapter that an operation derived from others: saved with layers worked on ahead of the writer, then proven."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loratools.adapters.adapter import Adapter
from loratools.adapters.proof import Proof
from loratools.errors import InternalError
from loratools.operations.lora import open_lora
from loratools.operations.outputs.files import AdapterOutput, Saved
from loratools.operations.outputs.proof import ProofReport, prove_output
from loratools.operations.working.one_thread import one_thread
from loratools.tensors.ahead import Ahead
from loratools.tensors.header import canonical_order
from loratools.tensors.writer import Progress

LIMIT = 1e-6
"""What float32 arithmetic on the way may add to an error that was foretold."""

Prover = Callable[[Sequence[Adapter], Sequence[Adapter]], Proof]


@dataclass
class Promise:
    """What each cluster may differ by: `allowed` tells, `prover` measures; `broken` are those that differ by more."""

    prover: Prover
    allowed: Callable[[Sequence[Adapter]], float]
    broken: list[tuple[str, float]]

    def __call__(self, source: Sequence[Adapter], output: Sequence[Adapter]) -> Proof:
        """The proof of one cluster."""
        found = self.prover(source, output)
        if not found.error <= self.allowed(source):
            self.broken.append(((source or output)[0].target.name, found.error))
        return found


def save(
    output: AdapterOutput,
    out: str | os.PathLike[str],
    source: Sequence[Adapter],
    promise: Callable[[], Promise],
    *,
    architecture: str | None,
    overwrite: bool = False,
    if_needed: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[Saved, ProofReport | None]:
    """Write, verify, prove: the output as re-opened against `source`, whose differences must keep to the promise.

    Raises what AdapterOutput.save raises, and InternalError, with nothing written, where a promise is broken.
    """
    reports: list[ProofReport] = []

    def check(written: Path) -> None:
        found = open_lora(written, arch=architecture)
        found.reading.require_known()
        judge = promise()
        reports.append(prove_output(source, found.adapters, threads=threads, prover=judge))
        if judge.broken:
            name, error = max(judge.broken, key=lambda item: item[1])
            raise InternalError(
                f"the output does not make the delta that it should: {name} differs by {error:.3g}",
                path=written,
                key=name,
                hint="nothing was written; please report this file",
            )

    with one_thread(), Ahead(threads) as ahead:
        saved = _followed(output, ahead).save(
            out, check=check, digest=True, overwrite=overwrite, if_needed=if_needed, progress=progress
        )
    return saved, reports[0] if reports else None


def _followed(output: AdapterOutput, ahead: Ahead) -> AdapterOutput:
    """The output with its computed tensors made ahead of the writer, in the order in which it asks for them."""
    files = []
    for file in output.rendered.files:
        order = canonical_order({key: (tensor.dtype, tensor.shape) for key, tensor in file.tensors.items()})
        files.append(replace(file, tensors=ahead.follow({key: file.tensors[key] for key in order})))
    return replace(output, rendered=replace(output.rendered, files=tuple(files)))
