"""Several adapters of one weight as one: side by side (exactly), cut to a rank, or elected element by element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.adapters.election import elected, seed_of
from loratools.adapters.kind import delta_of
from loratools.adapters.lora import LORA
from loratools.adapters.made import Maker
from loratools.adapters.pairs import algebra
from loratools.adapters.range_finder import truncated_svd
from loratools.adapters.recast import recast
from loratools.adapters.resize import Resizable, stored
from loratools.adapters.terms import (
    Term,
    common_shape,
    has_pair,
    inner_rank,
    is_whole,
    require_additive,
    sum_of,
    widest,
)
from loratools.adapters.verbatim import verbatim
from loratools.errors import ResourceError
from loratools.model import Alpha
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

DENSE_LIMIT = 2**28
"""The most elements of a delta that is formed whole (1 GiB in float32)."""


@dataclass(frozen=True, slots=True)
class Method:
    """How adapters are combined: `name`, the `rank` to cut to (None: the largest input's), and for elections the
    `density` and the `seed`; `dtype` is what is stored.
    """

    name: str
    rank: int | None = None
    density: float = 1.0
    seed: int = 0
    dtype: str | None = None

    @property
    def dense(self) -> bool:
        """Whether deltas are formed whole."""
        return self.name not in ("concat", "linear", "svd")


class Combination:
    """The combination of the terms of one weight, none of which has the weight 0; factors are made when asked for.

    `rank` is None for what has none. After the factors were made, `error` is what cutting to the rank costs, relative
    to the combined delta of Frobenius norm `norm`, and `rounding` bounds what the dtype adds (both 0 where exact).
    Raises NotRepresentable for kinds that do not add up, ArchitectureMismatch for weights of different shapes.
    """

    def __init__(self, terms: Sequence[Term], method: Method, maker: Maker, shape: Sequence[int] | None = None) -> None:
        self.terms, self.method, self._maker = tuple(terms), method, maker
        self.error: float | None = 0.0
        self.norm: float | None = None
        self.rounding = 0.0
        self._cut: Resizable | None = None
        first = terms[0].adapter
        self.exact = False
        if len(terms) == 1 and terms[0].weight == 1 and method.name in ("concat", "linear"):
            self.adapter, self.exact = recast(first, method.dtype), method.dtype is None
            return
        for term in terms:
            require_additive(term.adapter)
        self.extents = tuple(shape or common_shape([term.adapter for term in terms]))
        pairs = [term for term in terms if has_pair(term.adapter)]
        whole = not pairs or any(is_whole(term.adapter) for term in terms)
        self.adapter = self._whole() if whole else self._low_rank(pairs)

    @property
    def rank(self) -> int | None:
        """The rank of the result."""
        return self.adapter.rank

    def _low_rank(self, pairs: Sequence[Term]) -> Adapter:
        ranks = [inner_rank(term.adapter) for term in pairs]
        most = self.method.rank or max(ranks)
        if self.method.dense:
            made = self._elected(pairs, min(most, self.extents[0], math.prod(self.extents[1:])))
        elif self.method.name == "concat" or sum(ranks) <= most:
            made = self._side_by_side(pairs)
        else:
            made = self._cut_to(pairs, most)
        return replace(made, factors={**made.factors, **self._biases(float(made.scale))})

    # Side by side

    def _side_by_side(self, pairs: Sequence[Term]) -> Adapter:
        """down stacked and up abreast: the bytes as they are where all scales are one, else with scales folded in."""
        first, total = pairs[0].adapter, sum(inner_rank(term.adapter) for term in pairs)
        shapes, dtype = self._shapes(first, total), self.method.dtype or widest(pairs)
        exactly = verbatim(pairs, dtype, shapes)
        if exactly is not None:
            self.exact = self.method.dtype is None
            return exactly
        if self.method.name == "concat" and self.method.dtype is None and dtype != "F64":
            dtype = "F32"

        def produce() -> Mapping[str, torch.Tensor]:
            left, right = self._pair(pairs)
            (up, off_left), (down, off_right) = stored(left, dtype), stored(right, dtype)
            self._round(left, off_left, right, off_right)
            return _roles(first, up, down)

        return self._lora(first, self._maker.lazily(shapes, dtype, produce), total)

    def _pair(self, pairs: Sequence[Term]) -> tuple[torch.Tensor, torch.Tensor]:
        """left [out, Σr] and right [Σr, in·kernel], float64: √|scale| in both, its sign on the left."""
        import torch

        lefts, rights = [], []
        for term in pairs:
            with named(term.adapter):
                exactly = algebra(term.adapter, None)
                assert exactly is not None
                left, right = exactly.pair()
            scale = float(term.scale)
            root = math.sqrt(abs(scale))
            lefts.append(left * math.copysign(root, scale))
            rights.append(right * root)
        return torch.cat(lefts, 1), torch.cat(rights, 0)

    # Cut to a rank

    def _cut_to(self, pairs: Sequence[Term], rank: int) -> Adapter:
        first = pairs[0].adapter
        total = sum(inner_rank(term.adapter) for term in pairs)
        whole = self._maker.lazily(self._shapes(first, total), "F64", lambda: _roles(first, *self._pair(pairs)))
        joined = self._lora(first, whole, total)
        self._cut = Resizable(joined, maker=self._maker, dtype=self.method.dtype or widest(pairs))
        self.error = None
        made = self._cut.at(self._cut.limited(rank))
        return replace(made, alpha=made.alpha._replace(stored=first.alpha.stored))

    # Elections

    def merged(self) -> torch.Tensor:
        """The elected delta [out, in, kernel…] in float32."""
        elements = math.prod(self.extents)
        if elements > DENSE_LIMIT:
            raise ResourceError(
                f"the delta of {self.terms[0].adapter.target.name} has {elements} elements, too many to form whole",
                limit=DENSE_LIMIT,
            )
        deltas, weights, seeds = [], [], []
        for term in self.terms:
            if has_pair(term.adapter) or "diff" in term.adapter.factors:
                with named(term.adapter):
                    deltas.append(delta_of(term.adapter).reshape(self.extents))
                weights.append(float(term.weight))
                seeds.append(seed_of(self.method.seed, term.adapter.target.name, term.number))
        return elected(deltas, weights, self.method.name, self.method.density, seeds)

    def _elected(self, pairs: Sequence[Term], rank: int) -> Adapter:
        first, dtype = pairs[0].adapter, self.method.dtype or widest(pairs)
        self.error = None

        def produce() -> Mapping[str, torch.Tensor]:
            with named(first):
                found = truncated_svd(self.merged().flatten(1), rank=rank, seed=self.method.seed)
                left, right = found.halves()
                (up, off_left), (down, off_right) = stored(left, dtype), stored(right, dtype)
            self.error, self.norm = found.error, found.norm
            self._round(left, off_left, right, off_right, float(found.values[0]) ** 0.5)
            return _roles(first, up, down)

        return self._lora(first, self._maker.lazily(self._shapes(first, rank), dtype, produce), rank)

    # Whole differences and vectors

    def _whole(self) -> Adapter:
        """Differences stored whole, and whatever low-rank deltas stand beside them, as one: summed in float64."""
        first = next(term.adapter for term in self.terms if is_whole(term.adapter))
        dtype = self.method.dtype or ("F64" if widest(self.terms) == "F64" else "F32")
        factors = self._biases()
        for role in ("norm_diff", "norm_bias_diff"):
            held = [(term, term.adapter.factors[role]) for term in self.terms if role in term.adapter.factors]
            if held:
                factors[role] = sum_of([(tensor, float(term.scale)) for term, tensor in held], dtype)
        if any("diff" in term.adapter.factors for term in self.terms):
            shape = first.factors["diff"].shape if "diff" in first.factors else self.extents
            factors["diff"] = LazyTensor.computed(dtype, shape, lambda: stored(self._total(), dtype)[0].reshape(shape))
        return replace(first, factors=factors, alpha=Alpha(), settings={})

    def _total(self) -> torch.Tensor:
        if self.method.dense:
            return self.merged().double()
        total: torch.Tensor | None = None
        for term in self.terms:
            if has_pair(term.adapter) or "diff" in term.adapter.factors:
                with named(term.adapter):
                    made = delta_of(term.adapter, dtype="float64").reshape(self.extents) * float(term.weight)
                total = made if total is None else total + made
        assert total is not None
        return total

    def _biases(self, scale: float | None = None) -> dict[str, LazyTensor]:
        """The sum of all biases: as `up_bias` under the result's `scale` where all were such, else as `bias_diff`."""
        scaled = [term for term in self.terms if "up_bias" in term.adapter.factors]
        added = [term for term in self.terms if "bias_diff" in term.adapter.factors]
        held = [(term.adapter.factors["up_bias"], float(term.scale)) for term in scaled]
        for term in added:
            own = float(term.scale) if term.adapter.kind == "full" else float(term.weight)
            held.append((term.adapter.factors["bias_diff"], own))
        if not held:
            return {}
        dtype = self.method.dtype or ("F64" if any(tensor.dtype == "F64" for tensor, _ in held) else "F32")
        if not added and scale:
            return {"up_bias": sum_of([(tensor, factor / scale) for tensor, factor in held], dtype)}
        return {"bias_diff": sum_of(held, dtype)}

    # Parts

    def _lora(self, first: Adapter, factors: Mapping[str, LazyTensor], rank: int) -> Adapter:
        alpha = Alpha(Fraction(rank), "tensor", stored=first.alpha.stored)
        return replace(first, kind=LORA.name, factors=dict(factors), alpha=alpha, settings={})

    def _shapes(self, first: Adapter, rank: int) -> dict[str, tuple[int, ...]]:
        if "embedding_down" in first.factors:
            return {"embedding_down": (rank, self.extents[0]), "embedding_up": (self.extents[1], rank)}
        return {
            "down": (rank, *self.extents[1:]),
            "up": (self.extents[0], rank, *(1,) * (len(self.extents) - 2)),
        }

    def _round(
        self,
        left: torch.Tensor,
        off_left: float,
        right: torch.Tensor,
        off_right: float,
        spectral: float | None = None,
    ) -> None:
        """What casting both factors adds at most to the error, absolutely."""
        import torch

        norms = [spectral or float(torch.linalg.vector_norm(half)) for half in (left, right)]
        self.rounding = off_left * (norms[1] + off_right) + norms[0] * off_right

    def settle(self) -> None:
        """Take over what cutting found out, once the factors were made."""
        if self._cut is not None:
            values = self._cut.measured()
            self.norm = math.sqrt(math.fsum(value * value for value in values))
            kept = self.adapter.rank or 0
            lost = math.sqrt(math.fsum(value * value for value in values[kept:]))
            self.error = lost / self.norm if self.norm else 0.0
            self.rounding = (self._cut.rounding or 0.0) * self.norm


def _roles(first: Adapter, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
    if "embedding_down" in first.factors:
        return {"embedding_down": left.T, "embedding_up": right.T}
    return {"down": right, "up": left}
