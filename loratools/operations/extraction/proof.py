"""The proof of an extraction: its output re-opened as a stranger would, and some errors measured again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.errors import InternalError
from loratools.formats.runtimes import loads
from loratools.model import Target
from loratools.operations.extraction.factors import Extracted, residual
from loratools.operations.lora import Lora, open_lora
from loratools.operations.outputs.files import AdapterOutput
from loratools.operations.outputs.proof import ProofReport, prove_output
from loratools.operations.working.one_thread import one_thread

_SAMPLE = 4  # layers whose error is measured again from the output
_SLACK = 1e-3  # between the error that a decomposition certifies and the one that is measured again


@dataclass(frozen=True, slots=True)
class ExtractProof:
    """The bytes' proof, the errors that were measured again, and who loads the output."""

    report: ProofReport
    measured: tuple[tuple[str, float], ...]
    loaders: Mapping[str, Any]


def prove_extraction(
    written: Path, found: Sequence[Extracted], output: AdapterOutput, arch: str | None, threads: int
) -> ExtractProof:
    """Every factor and every tensor saved whole byte for byte, and the errors of some layers; raises InternalError."""
    lora = open_lora(written, arch=arch)
    lora.reading.require_known()
    report = prove_output(output.rendered.adapters, lora.adapters, threads=threads)
    if report.worst or report.measured:
        raise InternalError(
            "the output does not hold the factors that were computed", path=written, key=report.worst_module
        )
    _require_whole(lora, output, written)
    with one_thread():
        measured = tuple(_again(lora, found, written))
    return ExtractProof(report, measured, {answer.runtime: answer.to_dict() for answer in loads(lora.reading)})


def _require_whole(lora: Lora, output: AdapterOutput, written: Path) -> None:
    """Raise InternalError unless every tensor saved whole arrived byte for byte."""
    planned = output.rendered.whole
    arrived = {component: saved for component, saved in lora.adapter_set.extras.items() if saved}
    if {component: saved.keys() for component, saved in arrived.items()} != {
        component: saved.keys() for component, saved in planned.items()
    }:
        raise InternalError("the tensors saved whole are not those planned", path=written)
    for component, saved in arrived.items():
        for key, tensor in saved.items():
            if not tensor.same_bytes(planned[component][key]):
                raise InternalError("a tensor saved whole is not the tuned one", path=written, key=key)


def _again(lora: Lora, found: Sequence[Extracted], written: Path) -> Iterator[tuple[str, float]]:
    """Some layers' errors in float64, from the output and both models; raises InternalError beyond what was stated."""
    held = {_place(item.target): item for item in lora.adapters if {"down", "up"} <= set(item.factors)}
    layers = [item for item in found if item.has_factors and _place(item.twin.target) in held]
    worst = sorted(layers, key=lambda item: -item.error)
    step = max(1, len(worst) // _SAMPLE)
    for item in worst[::step][:_SAMPLE]:
        adapter = held[_place(item.twin.target)]
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


def _place(target: Target) -> tuple[str, tuple[str, ...]]:
    """Where a layer is: two text encoders share their paths."""
    return target.component, target.paths
