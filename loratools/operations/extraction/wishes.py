"""What an extraction was asked for: each layer's rank or what decides it, and what goes along beside the layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from loratools.bases.pairing import Twin
from loratools.errors import UsageError, nearest

ERROR = 0.05
"""The relative error that each layer keeps to where nothing is asked for."""

FULL = {"norms": "norm", "biases": "bias", "embeddings": "embedding"}
"""The words of `full`, and the sort of tensors that each means."""

# A factor of so many bits is off by about this much, relatively, and so is the product of two.
ROUNDING = {"F16": 4e-4, "BF16": 3e-3, "F32": 1e-7}


@dataclass(frozen=True, slots=True)
class Wishes:
    """At most one of `rank`, `energy`, `error` and `size` (bytes of the finished file); `conv_rank` is for kernels
    larger than 1×1, and `patterns` (component.path with wildcards, rank; 0 leaves out) come before all, the last first.
    """

    rank: int | None
    conv_rank: int | None
    energy: float | None
    error: float | None
    size: int | None
    patterns: tuple[tuple[str, int], ...]
    full: frozenset[str]
    dora: bool
    dtype: str
    seed: int

    @property
    def limit(self) -> float | None:
        """The relative error that a layer without a fixed rank keeps to, or None where bytes decide."""
        if self.size is not None:
            return None
        if self.energy is not None:
            return math.sqrt(1 - self.energy)
        return ERROR if self.error is None else self.error

    def rank_of(self, twin: Twin) -> int | None:
        """The rank that was said for a layer (0: none), or None where error or bytes decide."""
        said = None
        for path in twin.target.paths:
            name = f"{twin.target.component}.{path}"
            said = next((rank for pattern, rank in reversed(self.patterns) if fnmatchcase(name, pattern)), said)
        if said is None:
            kernel = math.prod(twin.base.shape[2:])
            said = self.conv_rank if kernel > 1 and self.conv_rank is not None else self.rank
        return said if said is None else min(said, *twin.matrix)

    def to_dict(self) -> dict[str, Any]:
        """The parameters as the output's record states them."""
        return {
            "rank": self.rank,
            "conv_rank": self.conv_rank,
            "energy": self.energy,
            "error": ERROR if self.rank is self.energy is self.size is self.error is None else self.error,
            "size": self.size,
            "pattern": [f"{pattern}={rank}" for pattern, rank in self.patterns] or None,
            "full": sorted(self.full) or None,
            "dora": self.dora,
            "dtype": self.dtype,
            "seed": self.seed,
        }


def wishes(
    *,
    rank: int | None,
    conv_rank: int | None,
    energy: float | None,
    error: float | None,
    size: int | None,
    patterns: Sequence[tuple[str, int]],
    full: Sequence[str],
    dora: bool,
    dtype: str,
    seed: int,
) -> Wishes:
    """The wishes, checked against each other; UsageError where two decide the same, or one is out of its range."""
    given = {"rank": rank, "energy": energy, "error": error, "size": size}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} cannot be asked for at once", hint="give one of them")
    for name, value in (("rank", rank), ("conv_rank", conv_rank), ("size", size)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is at least 1, not {value}")
    if energy is not None and not 0 < energy < 1:
        raise UsageError(f"a share of the energy lies between 0 and 1, not {energy}")
    if error is not None and not 0 < error < 1:
        raise UsageError(f"a relative error lies between 0 and 1, not {error}")
    for word in full:
        if word not in FULL:
            raise UsageError(f"full knows no {word!r}", hint=nearest(word, FULL) or f"{', '.join(FULL)}")
    for pattern, said in patterns:
        if said < 0:
            raise UsageError(f"{pattern}: a rank is 0 (left out) or more, not {said}")
    if dtype not in ROUNDING:
        raise UsageError(f"factors cannot be stored as {dtype}", hint=f"one of {', '.join(ROUNDING)}")
    sorts = frozenset(FULL[word] for word in full)
    found = Wishes(rank, conv_rank, energy, error, size, tuple(patterns), sorts, dora, dtype, seed)
    if rank is None and found.limit is not None and found.limit < 2 * ROUNDING[dtype]:
        raise UsageError(
            f"factors stored as {dtype} are themselves rounded by about {ROUNDING[dtype]:g}, so that no relative error "
            f"of {found.limit:.2g} can be promised",
            hint="--dtype float32, or a larger error",
        )
    return found


def require_matches(asked: Wishes, twins: Sequence[Twin]) -> None:
    """Raise UsageError for a pattern that names no layer."""
    names = [f"{twin.target.component}.{path}" for twin in twins if twin.sort == "layer" for path in twin.target.paths]
    for pattern, _ in asked.patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            stem = pattern.rstrip("*.")
            hint = nearest(stem, names) or "patterns are component.path with wildcards, such as 'unet.down_blocks.*=16'"
            raise UsageError(f"the pattern {pattern!r} names no layer", hint=hint)
