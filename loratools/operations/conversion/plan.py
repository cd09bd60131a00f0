"""The plan of a conversion: what is read, regrouped, renamed, written and lost, before anything is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from loratools.formats.render import Rendered
from loratools.model import Target
from loratools.operations.lora import Lora
from loratools.tensors.lazy import CHUNK, Computed

if TYPE_CHECKING:
    from loratools.operations.conversion.to_kind import Cost

_TORCH = 200 << 20
_COPIES = 6  # of a delta, where it is decomposed or proven
_START_UP = 48 << 20  # what the interpreter, the tables and the header of a large adapter take


@dataclass(frozen=True, slots=True)
class Plan:
    """Plain values. `steps` counts what regrouping did; `computed` are the tensors that need arithmetic; `files` are
    (name, tensors, bytes of data); `costs` is what other kinds cost as plain LoRA; `peak_memory` is an estimate in
    bytes; `free_disk` is known once OUT (`path`) is.
    """

    source: str
    source_format: str
    format: str
    architecture: str | None
    adapters: int
    files: tuple[tuple[str, int, int], ...]
    renamed: int
    computed: int
    steps: dict[str, int]
    details: tuple[str, ...]
    lost: tuple[str, ...]
    notes: tuple[str, ...]
    peak_memory: int
    costs: tuple[Cost, ...] = ()
    path: str | None = None
    free_disk: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.plan/1",
            "source": self.source,
            "source_format": self.source_format,
            "format": self.format,
            "architecture": self.architecture,
            "adapters": self.adapters,
            "files": [{"name": name, "tensors": count, "bytes": size} for name, count, size in self.files],
            "renamed": self.renamed,
            "computed": self.computed,
            "steps": self.steps,
            "details": list(self.details),
            "lost": list(self.lost),
            "notes": list(self.notes),
            "peak_memory": self.peak_memory,
            "to_kind": [cost.to_dict() for cost in self.costs],
            "path": self.path,
            "free_disk": self.free_disk,
        }


def _short(target: Target) -> str:
    """A target with what its paths share said once: `transformer:single_transformer_blocks.0.(attn.to_q, proj_mlp)`."""
    paths = [path.split(".") for path in target.paths]
    if len(paths) == 1:
        return target.name
    shared = 0
    while len({path[shared] for path in paths}) == 1 and all(len(path) > shared + 1 for path in paths):
        shared += 1
    stem = "".join(f"{word}." for word in paths[0][:shared])
    return f"{target.component}:{stem}({', '.join('.'.join(path[shared:]) for path in paths)})"


def _open(costs: tuple[Cost, ...]) -> tuple[str, ...]:
    """What a plan cannot tell of layers that are still to be decomposed."""
    count = sum(cost.error is None and not cost.exact for cost in costs)
    return (f"{count} layers are decomposed when it is written: ranks and sizes are at most these",) if count else ()


def _decomposing(rendered: Rendered, costs: tuple[Cost, ...]) -> int:
    """The bytes that decompositions take: torch, the copies of the largest delta in float64, and all factors made."""
    names = {cost.name for cost in costs if not cost.exact}
    members = [item for item in rendered.adapters if item.target.name in names and "down" in item.factors]
    if not members:
        return 0
    elements = max(item.factors["up"].shape[0] * prod(item.factors["down"].shape[1:]) for item in members)
    return _TORCH + _COPIES * 8 * elements + sum(item.nbytes for item in members)


def plan_of(
    lora: Lora,
    rendered: Rendered,
    form: str,
    architecture: str | None,
    *,
    left_out: tuple[str, ...],
    costs: tuple[Cost, ...] = (),
) -> Plan:
    """The plan that a rendering is."""
    tensors = [tensor for file in rendered.files for tensor in file.tensors.values()]
    source = {key for part in lora.reading.opened.parts for key in part.source}
    computed = [tensor for tensor in tensors if any(isinstance(segment, Computed) for segment in tensor.segments)]
    largest = max((tensor.nbytes for tensor in computed), default=0)
    return Plan(
        source=lora.name,
        source_format=lora.format,
        format=form,
        architecture=architecture,
        adapters=len(lora.adapters),
        files=tuple(
            (file.name, len(file.tensors), sum(tensor.nbytes for tensor in file.tensors.values()))
            for file in rendered.files
        ),
        renamed=sum(key not in source for file in rendered.files for key in file.tensors),
        computed=len(computed),
        steps=dict(Counter(step.what for step in rendered.steps)),
        details=tuple(
            f"{step.what}: {_short(step.target)} ({step.note})" for step in rendered.steps if step.what != "untouched"
        ),
        lost=(*rendered.lost, *left_out),
        notes=(*lora.reading.warnings, *_open(costs)),
        peak_memory=_START_UP + 2 * CHUNK + 4 * largest + _decomposing(rendered, costs),
        costs=costs,
    )
