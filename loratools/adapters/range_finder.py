"""The truncated singular value decomposition of a whole matrix: from a few directions, else by its Gram matrix.

A block Krylov space that is grown until it gains no more costs a tenth of a full decomposition of a layer, or less, and
comes within 1e-3 of Eckart and Young's error, also where singular values fall slowly. The error, from ‖D‖² − ‖B‖² of a
last projection B, is that of the factors and no estimate. Where the space would have to be wide, or could not tell the
smallest rank from the next, the eigenvectors of the Gram matrix (float64) decide; small matrices, and errors that a
Gram matrix cannot resolve, take LAPACK's decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loratools.adapters.decompose import Spectrum, Wanted, finite, lapack
from loratools.adapters.krylov import Krylov
from loratools.adapters.whole import Whole

if TYPE_CHECKING:
    import torch

BLOCK = 64
"""The directions that are added at a time: fewer make slow products, more make fewer polynomials."""
SMALL = 512
"""Up to this short side a whole decomposition is cheap where the rank is not known."""
SMALLER = 256
"""The same where the rank is known."""

_WIDEST = 0.6  # of the short side: a wider space costs more than the Gram matrix
_FIRST = 64  # the first rank that is looked at where none is known
_CLOSE = 2e-3  # two tails nearer than this: a space cannot tell which of them keeps to the limit
_GRAM_FLOOR = 1e-6  # relative errors below: squares of singular values drown in float64's rounding
_TINY, _HUGE = 2.0**-100, 2.0**100  # mean squares below and sums above: squares and float32 may under- or overflow


@dataclass(frozen=True, slots=True)
class Truncated:
    """left [rows, k] · diag(values) · right [k, columns], float64, nearest to a matrix of Frobenius `norm`.

    Both sides are orthonormal and values fall; `error` is ‖D − left·diag(values)·right‖ / ‖D‖, measured (0 for a zero
    matrix). Every right vector's largest element is positive, so that the same matrix and seed give the same bytes.
    """

    left: torch.Tensor
    values: torch.Tensor
    right: torch.Tensor
    error: float
    norm: float

    @property
    def rank(self) -> int:
        """The number of values."""
        return len(self.values)

    def halves(self) -> tuple[torch.Tensor, torch.Tensor]:
        """U·√S [rows, rank] and √S·Vᵀ [rank, columns]: both factors of like size, so that neither underflows first."""
        root = self.values.sqrt()
        return self.left * root, self.right * root[:, None]


def truncated_svd(
    matrix: torch.Tensor,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    seed: int = 0,
) -> Truncated:
    """`matrix` [rows, columns] at `rank` (at most its short side), or at the smallest rank that keeps a relative
    Frobenius `error` (1e-5 where nothing is said) or a share of the `energy` (‖D‖²); at least 1.

    Any floating dtype, on the CPU or a GPU. Raises NonFinite for NaN and infinity, UsageError for two wishes at once or
    one out of range.
    """
    wanted = Wanted(rank=rank, error=error, energy=energy)
    wide = matrix.shape[0] < matrix.shape[1]
    tall = matrix.T if wide else matrix  # LAPACK and QR are several times slower on wide matrices
    whole = Whole(tall, 1.0) if tall.numel() else None
    if whole is not None and _TINY * tall.numel() < whole.square < _HUGE:  # not so for NaN and infinity
        found = _found(whole, wanted, seed)
    else:
        found = _scaled(tall, wanted, seed)
    return _signed(replace(found, left=found.right.T, right=found.left.T) if wide else found)


def _scaled(tall: torch.Tensor, wanted: Wanted, seed: int) -> Truncated:
    """The same for numbers so small or so large that their squares, or float32, would under- or overflow."""
    largest = _largest(tall) if tall.numel() else 0.0
    if largest == 0:
        return _of_zeros(tall, wanted)
    power = 2.0 ** min(-math.frexp(largest)[1], 1023)
    found = _found(Whole(tall, power), wanted, seed)
    return replace(found, values=found.values / power, norm=found.norm / power)


def _largest(matrix: torch.Tensor) -> float:
    """The largest magnitude, without a copy of the matrix; raises NonFinite as `finite` does."""
    found = max(abs(float(end)) for end in matrix.aminmax())
    if not math.isfinite(found):
        finite(matrix)
    return found


def _found(whole: Whole, wanted: Wanted, seed: int) -> Truncated:
    short = whole.matrix.shape[1]
    if short <= (SMALL if wanted.rank is None else SMALLER):
        return _cut(whole, lapack(whole.doubles()), wanted)
    space: Krylov | None = None
    for rank in _targets(wanted, short):
        space = space or Krylov(whole, min(BLOCK, max(BLOCK // 2, rank)), seed)
        if not space.converge(rank, int(_WIDEST * short)):
            break
        left, values, right = space.settled(rank, exact=wanted.limit is not None)
        found = Truncated(left, values, right, 0.0, math.sqrt(whole.square))
        tails, limit = _tails(values, whole.square), wanted.limit
        if limit is None:
            return _trimmed(whole, found, rank)
        chosen = next((count for count, tail in enumerate(tails) if count and tail <= limit), None)
        if chosen is not None and chosen <= rank:
            kept = _trimmed(whole, found, chosen)
            if kept.error > limit or (chosen > 1 and tails[chosen - 1] <= limit * (1 + _CLOSE)):
                break
            return kept
        if _hopeless(tails, limit, _WIDEST * short):
            break
    if wanted.limit is not None and wanted.limit < _GRAM_FLOOR:
        return _cut(whole, lapack(whole.doubles()), wanted)
    return _by_gram(whole, wanted)


def _targets(wanted: Wanted, short: int) -> Iterator[int]:
    """The ranks to converge to, one after the other, while the space that it takes is cheaper than the Gram matrix."""
    rank = min(wanted.rank, short) if wanted.rank is not None else _FIRST
    while 2 * rank <= _WIDEST * short:
        yield rank
        rank *= 2


def _hopeless(tails: list[float], limit: float, widest: float) -> bool:
    """Whether no space that is worth it reaches the limit, even if values go on falling as fast as up to here."""
    last = len(tails) - 1
    half, end = tails[last // 2], tails[last]
    if not end:
        return False
    fall = math.log(half / end) / (last - last // 2)
    return last + math.log(end / limit) / max(fall, 1e-12) > widest if limit else True


def _by_gram(whole: Whole, wanted: Wanted) -> Truncated:
    """The projection of D onto eigenvectors of Dᵀ·D: optimal to float64's rounding of the squares."""
    import torch

    squares, vectors = torch.linalg.eigh(whole.gram())
    values, limit = squares.flip(0).clamp_min(0).sqrt(), wanted.limit
    rank = min(wanted.rank or 1, len(values))
    if limit is not None:
        tails = _tails(values, whole.square)
        rank = next((count for count, tail in enumerate(tails) if count and tail <= limit), len(values))
    while True:
        found = _projected(whole, vectors.flip(1)[:, :rank])
        if limit is None or found.error <= limit or rank == len(values):
            return found
        rank += 1  # the tail was within rounding of the limit


def _projected(whole: Whole, vectors: torch.Tensor) -> Truncated:
    """D·V·Vᵀ for eigenvectors V: QR of D·V has a diagonal core, and makes sides for values of zero too."""
    import torch

    left, upper = torch.linalg.qr(whole.times(vectors))
    values, order = upper.diagonal().abs().sort(descending=True, stable=True)
    left, right = (left * _sign(upper.diagonal()))[:, order], vectors[:, order].T
    return Truncated(left, values, right, whole.error(left, values, right), math.sqrt(whole.square))


def _tails(values: torch.Tensor, square: float) -> list[float]:
    """For every rank 0, 1, … the relative error of keeping so many values of a matrix of squared norm `square`."""
    found, kept = [1.0], 0.0
    for value in values.tolist():
        kept += value * value
        found.append(math.sqrt(max(0.0, square - kept) / square))
    return found


def _trimmed(whole: Whole, found: Truncated, rank: int) -> Truncated:
    left, values, right = found.left[:, :rank], found.values[:rank], found.right[:rank]
    return Truncated(left, values, right, whole.error(left, values, right), found.norm)


def _cut(whole: Whole, spectrum: Spectrum, wanted: Wanted) -> Truncated:
    rank, error = wanted.choose(spectrum)
    left, right = spectrum.vectors(rank)
    return Truncated(left, spectrum.values[:rank], right, error, math.sqrt(whole.square))


def _of_zeros(tall: torch.Tensor, wanted: Wanted) -> Truncated:
    """Nothing at the rank that was asked for, or at 1; the sides are orthonormal all the same."""
    import torch

    rank = min(wanted.rank or 1, *tall.shape)
    left, right = (torch.eye(extent, rank, dtype=torch.float64, device=tall.device) for extent in tall.shape)
    return Truncated(left, left.new_zeros(rank), right.T, 0.0, 0.0)


def _signed(found: Truncated) -> Truncated:
    """The signs, which a decomposition leaves open, so that each right vector's largest element is positive."""
    sign = _sign(found.right.gather(1, found.right.abs().argmax(1, keepdim=True)))
    return replace(found, left=(found.left * sign.T).contiguous(), right=(found.right * sign).contiguous())


def _sign(values: torch.Tensor) -> torch.Tensor:
    """-1 for what is negative, else 1."""
    import torch

    return torch.where(values < 0, -torch.ones_like(values), torch.ones_like(values))
