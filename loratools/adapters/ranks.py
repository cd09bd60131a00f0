"""Which rank a layer gets, from its singular values: by number, by error, by energy, or as kohya's resize words it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from loratools.errors import UsageError


def tails(values: Sequence[float]) -> list[float]:
    """For every rank 0, 1, … the relative Frobenius error of keeping so many values; all 0 where all are."""
    squares = [*accumulate((value * value for value in reversed(values)), initial=0.0)][::-1]
    return [math.sqrt(square / squares[0]) if squares[0] else 0.0 for square in squares]


def _by_ratio(values: Sequence[float], parameter: float) -> int:
    """Those larger than the largest divided by the parameter."""
    return sum(value > values[0] / parameter for value in values)


def _by_sum(values: Sequence[float], parameter: float) -> int:
    """The fewest whose sum is this share of all."""
    wanted = parameter * math.fsum(values)
    return next((count for count, held in enumerate(accumulate(values), 1) if held >= wanted), len(values))


def _by_norm(values: Sequence[float], parameter: float) -> int:
    """The fewest whose norm is this share of ‖Δ‖."""
    return _by_sum([value * value for value in values], parameter**2)


METHODS: Mapping[str, Callable[[Sequence[float], float], int]] = {
    "sv_cumulative": _by_sum,
    "sv_fro": _by_norm,
    "sv_ratio": _by_ratio,
}
"""sd-scripts' names for its dynamic ranks → how many values each keeps."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What decides the rank of a layer; at least 1 is kept.

    `rank`, and `conv_rank` for kernels larger than 1 (`rank` where it is not given), are the ranks, or with a `method`
    the most that it may choose. Raises UsageError for what contradicts itself or is out of range.
    """

    rank: int | None = None
    conv_rank: int | None = None
    error: float | None = None
    energy: float | None = None
    method: str | None = None
    parameter: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("error", "energy", "method") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} cannot be asked for at once", hint="give one of them")
        if given and given[0] != "method" and (self.rank is not None or self.conv_rank is not None):
            raise UsageError(f"a rank and {given[0]} cannot be asked for at once", hint="give one of them")
        for most in (self.rank, self.conv_rank):
            if most is not None and most < 1:
                raise UsageError(f"a rank is at least 1, not {most}")
        if self.error is not None and not 0 <= self.error < 1:
            raise UsageError(f"a relative error lies in [0, 1), not {self.error}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"a share of the energy lies in (0, 1], not {self.energy}")
        self._check_method()

    def _check_method(self) -> None:
        if self.method is None:
            if self.parameter is not None:
                raise UsageError("a parameter is for a method", hint=f"--method {' or '.join(METHODS)}")
            return
        if self.method not in METHODS:
            raise UsageError(f"unknown method {self.method!r}", hint=f"one of {', '.join(METHODS)}")
        if self.parameter is None:
            raise UsageError(f"{self.method} needs its parameter", hint="--parameter 0.9, or 10 for sv_ratio")
        ratio = self.method == "sv_ratio"
        if not (self.parameter >= 1 if ratio else 0 < self.parameter <= 1) or not math.isfinite(self.parameter):
            where = "is at least 1" if ratio else "lies in (0, 1]"
            raise UsageError(f"the parameter of {self.method} {where}, not {self.parameter}")

    @property
    def adaptive(self) -> bool:
        """Whether singular values must be known to choose."""
        return self.error is not None or self.energy is not None or self.method is not None

    def most(self, *, convolution: bool) -> int | None:
        """The largest rank that a layer may get, or None."""
        return self.conv_rank if convolution and self.conv_rank is not None else self.rank

    def choose(self, values: Sequence[float], *, convolution: bool) -> int:
        """The rank of a layer with these singular values, which fall."""
        most = self.most(convolution=convolution)
        if self.method is not None and self.parameter is not None:
            found = METHODS[self.method](values, self.parameter)
        elif self.error is not None or self.energy is not None:
            limit = self.error if self.energy is None else math.sqrt(1 - self.energy)
            found = next(count for count, tail in enumerate(tails(values)) if tail <= (limit or 0.0))
        else:
            found = len(values)
        return max(1, found if most is None else min(found, most))
