"""One tensor of two models: whether it changed at all, and the factors of its change with the error that they make."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from loratools.adapters.decompose import lapack
from loratools.adapters.direction import direction
from loratools.adapters.factors import torch_dtype
from loratools.adapters.range_finder import Truncated, truncated_svd
from loratools.adapters.rounding import beyond_rounding
from loratools.bases.pairing import Twin
from loratools.errors import NonFinite, NotRepresentable
from loratools.operations.extraction.wishes import ROUNDING, Wishes
from loratools.tensors.lazy import LazyTensor, tensor_bytes
from loratools.tensors.spool import Spool

if TYPE_CHECKING:
    import torch

State = Literal["changed", "rounding", "identical", "left out"]

_SILENT = 1e-7  # singular values below this share of ‖Δ‖ are arithmetic's noise: no byte is spent on them
_TRIES = 4  # at a rank that keeps to an error after rounding
_SCARCE = 0.01  # more non-zero elements than this share becoming zero is worth a warning


@dataclass(frozen=True, slots=True)
class Extracted:
    """What became of one tensor. `norm` is ‖Δ‖ and `weight` ‖W‖ of the base (Frobenius).

    For a layer with factors: its singular `values` as far as they are known, and for every rank from 0 on the relative
    error of the factors as stored, cut there (None for DoRA until it is measured). `rank` is where they are cut.
    `stored` is the difference itself, where that was asked for, or the tuned tensor where the format saves such whole.
    """

    twin: Twin
    state: State
    norm: float = 0.0
    weight: float = 0.0
    values: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    rank: int = 0
    error: float = 0.0
    down: LazyTensor | None = None
    up: LazyTensor | None = None
    magnitude: LazyTensor | None = None
    stored: LazyTensor | None = None
    warnings: tuple[str, ...] = ()

    @property
    def has_factors(self) -> bool:
        """Whether it is a layer with a low-rank pair."""
        return self.down is not None

    @property
    def unit(self) -> int:
        """The bytes of one rank."""
        if self.down is None or self.up is None:
            return 0
        return (self.down.nbytes + self.up.nbytes) // self.down.shape[0]

    def energy(self, rank: int) -> float:
        """The share of ‖Δ‖² that the first `rank` values hold."""
        return min(1.0, math.fsum(value * value for value in self.values[:rank]) / self.norm**2) if self.norm else 1.0

    def cut(self, rank: int) -> Extracted:
        """The same at a smaller rank: the first rows of `down` and the first columns of `up`."""
        if self.down is None or self.up is None or rank == self.down.shape[0]:
            return self
        error = self.errors[rank] if self.errors else self.error
        return replace(self, rank=rank, error=error, down=self.down.rows(0, rank), up=self.up.columns(0, rank))


@dataclass(frozen=True)
class Workshop:
    """Where tensors are worked on: what was asked for, the spool for factors, the device, how to take NaN, and the
    sorts of tensors that are kept `whole`, as they were tuned, instead of their differences.
    """

    asked: Wishes
    spool: Spool
    device: str = "cpu"
    allow_nonfinite: bool = False
    whole: tuple[str, ...] = ()

    def extract(self, twin: Twin, cap: int | None = None) -> Extracted:
        """Read both versions of a tensor, decide whether it changed, and make what was asked for of its change.

        `cap` is the largest rank that bytes could buy it. Raises NonFinite for NaN or infinity in an input (unless
        allowed: then the tensor is left out) and for factors that overflow.
        """
        rank = self.asked.rank_of(twin) if twin.sort == "layer" else None
        wants_factors = twin.sort == "layer" and rank != 0
        is_kept = twin.sort in self.asked.full and twin.sort in self.whole
        wants_stored = twin.sort in self.asked.full and not is_kept
        read = _read(twin, whole=wants_factors or wants_stored, dora=wants_factors and self.asked.dora)
        if not math.isfinite(read.norm) or not math.isfinite(read.weight):
            if not self.allow_nonfinite:
                raise NonFinite(
                    f"{twin.name} holds NaN or infinity", key=twin.key, hint="--allow-nonfinite leaves such layers out"
                )
            return Extracted(twin, "left out", warnings=(f"{twin.name} holds NaN or infinity: left out",))
        state: State = "changed" if read.changed else "rounding" if read.differs else "identical"
        found = Extracted(twin, state, read.norm, read.weight)
        if state == "changed" and is_kept:
            return replace(found, stored=twin.tuned)
        if state != "changed" or read.delta is None:
            return found
        if wants_stored:
            return replace(found, stored=self._stored(twin, read.delta, twin.base.shape))
        return self._factored(found, read, rank, cap)

    def _factored(self, found: Extracted, read: _Read, rank: int | None, cap: int | None) -> Extracted:
        assert read.delta is not None
        delta = read.delta.to(self.device)
        if rank is None and self.asked.size is not None:
            rank = min(cap or 1, *found.twin.matrix)
        if rank is not None:
            return self._pair(found, read, self._decomposed(found.twin, delta, rank=rank))
        limit = self.asked.limit
        assert limit is not None
        aim = math.sqrt(limit**2 - ROUNDING[self.asked.dtype] ** 2)
        for _ in range(_TRIES):
            made = self._pair(found, read, self._within(found, read, delta, aim))
            if made.error <= limit:
                return made
            aim *= 0.9
        raise NotRepresentable(
            f"{found.twin.name}: factors stored as {self.asked.dtype} do not keep to a relative error of {limit:.3g}",
            key=found.twin.key,
            hint="--dtype float32, or a larger error",
        )

    def _within(self, found: Extracted, read: _Read, delta: torch.Tensor, aim: float) -> Truncated:
        """The smallest decomposition whose error is at most `aim` · ‖Δ‖ (a direction may be smaller than Δ)."""
        share = aim * found.norm / read.size if read.size else 1.0
        if share >= 1:
            return self._decomposed(found.twin, delta, rank=1)
        return self._decomposed(found.twin, delta, error=share)

    def _decomposed(
        self, twin: Twin, delta: torch.Tensor, *, rank: int | None = None, error: float | None = None
    ) -> Truncated:
        """The decomposition by the fast engine; by LAPACK's in float64 where that does not converge."""
        import torch

        seed = zlib.crc32(f"{self.asked.seed}:{twin.name}".encode())
        diverged: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # torch's types lack it
        try:
            return truncated_svd(delta, rank=rank, error=error, seed=seed)
        except diverged:
            pass
        try:
            whole = lapack(delta.cpu())
        except diverged as problem:
            raise NonFinite(f"the decomposition of {twin.name} does not converge", key=twin.key) from problem
        tails, norm = whole.tails(), float(torch.linalg.vector_norm(whole.values))
        rank = rank or max(1, next(count for count, tail in enumerate(tails) if tail <= (error or 0.0)))
        left, right = whole.vectors(rank)
        return Truncated(left, whole.values[:rank], right, tails[rank], norm)

    def _pair(self, found: Extracted, read: _Read, made: Truncated) -> Extracted:
        """Both factors as they are stored, and the error that they make."""
        import torch

        left, right = (half.cpu() for half in made.halves())
        stored = torch_dtype(self.asked.dtype)
        up, down = left.to(stored), right.to(stored)
        twin, warnings = found.twin, []
        for role, exact, cast in (("up", left, up), ("down", right, down)):
            if not bool(torch.isfinite(cast).all()):
                raise NonFinite(
                    f"the factor {role} of {twin.name} overflows in {self.asked.dtype}",
                    key=twin.key,
                    hint="--dtype float32",
                )
            lost = float(((cast == 0) & (exact != 0)).double().mean())
            if lost > _SCARCE:
                warnings.append(f"{twin.name}: {100 * lost:.0f} % of {role} become zero in {self.asked.dtype}")
        values = [value if value > _SILENT * made.norm else 0.0 for value in made.values.tolist()]
        kernel = twin.base.shape[2:]
        made_pair = replace(
            found,
            values=tuple(values),
            rank=made.rank,
            down=self._stored(twin, down, (made.rank, *twin.base.shape[1:])),
            up=self._stored(twin, up, (twin.base.shape[0], made.rank, *(1,) * len(kernel))),
            warnings=tuple(warnings),
        )
        if read.magnitude is not None:
            kept = read.magnitude.to(stored)
            made_pair = replace(made_pair, magnitude=self._stored(twin, kept, (twin.base.shape[0],)))
            return replace(made_pair, error=residual(twin, up, down, kept))
        errors = _errors(made, left, right, up, down)
        return replace(made_pair, errors=errors, error=errors[made.rank])

    def _stored(self, twin: Twin, tensor: torch.Tensor, shape: tuple[int, ...]) -> LazyTensor:
        """A tensor in the output's dtype, parked."""
        import torch

        kept = tensor.to(torch_dtype(self.asked.dtype)).contiguous()
        if not bool(torch.isfinite(kept).all()):
            raise NonFinite(
                f"the change of {twin.name} overflows in {self.asked.dtype}", key=twin.key, hint="--dtype float32"
            )
        return self.spool.put(self.asked.dtype, shape, tensor_bytes(kept, self.asked.dtype))


@dataclass(frozen=True, slots=True)
class _Read:
    """Both versions, compared: ‖Δ‖, ‖W‖, and the matrix to decompose of norm `size` (Δ, or DoRA's direction)."""

    differs: bool
    changed: bool
    norm: float
    weight: float
    delta: torch.Tensor | None
    size: float
    magnitude: torch.Tensor | None


def _read(twin: Twin, *, whole: bool, dora: bool) -> _Read:
    """Both versions a few rows at a time; the delta is kept where `whole` says so."""
    import torch

    delta = torch.zeros(twin.matrix) if whole else None
    squares = {"norm": 0.0, "weight": 0.0, "size": 0.0}
    magnitudes: list[torch.Tensor] = []
    changed = False
    for place, ours, theirs in twin.blocks():
        block = theirs - ours
        squares["weight"] += _square(ours)
        square = _square(block)
        squares["norm"] += square
        if square:  # NaN is true as well
            changed = changed or beyond_rounding(ours, theirs, twin.stored)
        if dora:
            block, magnitude = direction(ours, theirs)
            magnitudes.append(magnitude)
            squares["size"] += _square(block)
        if delta is not None and square:
            delta[place] = block
    norm, weight = math.sqrt(squares["norm"]), math.sqrt(squares["weight"])
    size = math.sqrt(squares["size"]) if dora else norm
    return _Read(norm > 0, changed, norm, weight, delta, size, torch.cat(magnitudes) if magnitudes else None)


def _square(block: torch.Tensor) -> float:
    """The squared norm of float32 values: rows by themselves, their sum in float64."""
    import torch

    return float(torch.linalg.vector_norm(block, dim=1).double().square().sum())


def _errors(
    made: Truncated, left: torch.Tensor, right: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> tuple[float, ...]:
    """For every rank 0, 1, … the relative error of the stored factors cut there: what is left out of the spectrum, and
    what storing them rounded.

    What is left out is orthogonal to the columns of `left`, so the squares add. With U = left − up and D = right − down
    the rounding is U·right + up·D, whose squared norm at every rank is a sum over a leading block of k × k numbers.
    """
    if not made.norm:
        return (0.0,) * (made.rank + 1)
    stored_up, stored_down = up.double(), down.double()
    off_up, off_down = left - stored_up, right - stored_down
    products = (off_up.T @ off_up) * (right @ right.T)
    products += 2 * (off_up.T @ stored_up) * (right @ off_down.T)
    products += (stored_up.T @ stored_up) * (off_down @ off_down.T)
    rounding = [0.0, *products.cumsum(0).cumsum(1).diagonal().clamp_min(0).tolist()]
    kept = [0.0, *made.values.square().cumsum(0).tolist()]
    square = made.norm**2
    left_out = [max(0.0, 1 - held / square) for held in kept[:-1]] + [made.error**2]
    return tuple(math.sqrt(rest + lost / square) for rest, lost in zip(left_out, rounding, strict=True))


def residual(twin: Twin, up: torch.Tensor, down: torch.Tensor, magnitude: torch.Tensor | None = None) -> float:
    """‖W'' − W'‖ / ‖W' − W‖ in float64, for the weight W'' that factors [out, r], [r, in·kernel] make of the base."""
    import torch

    rest = change = 0.0
    up, down = up.double().flatten(1), down.double().flatten(1)
    for place, ours, theirs in twin.blocks():
        weight, wanted = ours.double(), theirs.double()
        made = torch.addmm(weight, up[place], down)
        if magnitude is not None:
            norm = torch.linalg.vector_norm(made, dim=1)
            made *= (magnitude[place].double() / torch.where(norm > 0, norm, torch.ones_like(norm)))[:, None]
        rest += float((made - wanted).square().sum())
        change += float((wanted - weight).square().sum())
    return math.sqrt(rest / change) if change else 0.0
