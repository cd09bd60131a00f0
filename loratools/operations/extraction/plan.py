"""The plan of an extraction, from the headers of both models: what would be compared, and what would be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loratools.bases.pairing import Pair
from loratools.operations.extraction.result import WORDS
from loratools.operations.extraction.wishes import Wishes

_START_UP = 320 << 20  # the interpreter, torch, and the headers of two models
_WORK = 192 << 20  # blocks that are float64, the sketch and its QR


@dataclass(frozen=True, slots=True)
class ExtractPlan:
    """Plain values. `components` counts the tensors that would be compared by sort; `nbytes` is the size of the files
    where ranks are known beforehand; `reads` are the bytes of both models; `free_disk` is known once OUT (`path`) is.
    """

    base: str
    tuned: str
    format: str
    architecture: str | None
    candidates: tuple[str, ...]
    dtype: str
    components: Mapping[str, Mapping[str, int]]
    coverage: Mapping[str, float]
    wishes: Mapping[str, Any]
    tensors: int
    nbytes: int | None
    reads: int
    peak_memory: int
    lost: tuple[str, ...]
    notes: tuple[str, ...]
    path: str | None = None
    free_disk: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.extract-plan/1",
            "base": self.base,
            "tuned": self.tuned,
            "format": self.format,
            "architecture": self.architecture,
            "candidates": list(self.candidates),
            "dtype": self.dtype,
            "components": {name: dict(counts) for name, counts in self.components.items()},
            "coverage": dict(self.coverage),
            "parameters": dict(self.wishes),
            "tensors": self.tensors,
            "size": self.nbytes,
            "reads": self.reads,
            "peak_memory": self.peak_memory,
            "lost": list(self.lost),
            "notes": list(self.notes),
            "path": self.path,
            "free_disk": self.free_disk,
        }


def compared(pair: Pair) -> dict[str, dict[str, int]]:
    """component → sort → how many tensors would be compared."""
    found: dict[str, dict[str, int]] = {}
    for twin in pair.twins:
        word = WORDS["norm" if twin.sort == "norm" else "bias" if twin.is_bias else twin.sort]
        counts = found.setdefault(twin.target.component, {})
        counts[word] = counts.get(word, 0) + 1
    return found


def peak_memory(pair: Pair, threads: int) -> int:
    """An estimate in bytes: one float32 delta a thread, and what the decomposition needs beside it."""
    largest = max((twin.base.numel for twin in pair.twins if twin.sort == "layer"), default=0)
    return _START_UP + threads * (4 * largest + _WORK)


def told(asked: Wishes) -> dict[str, Any]:
    """What was asked for, without what was not."""
    return {key: value for key, value in asked.to_dict().items() if value not in (None, False)}
