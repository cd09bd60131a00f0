"""Exact low-rank pairs: the two matrices whose product is an adapter's delta, found by algebra and not by an SVD.

LoHa at rank r²: (a·b) ⊙ (c·d) has as columns all products of a column of a with one of c (Khatri and Rao, 1968).
LoKr: (a·b) ⊗ (c·d) = (a ⊗ c)·(b ⊗ d), where a whole factor is itself times an identity. GLoRA: W·a1·a2 + b1·b2 =
[W·a1, b1]·[a2; b2].
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from loratools.adapters.adapter import Adapter
from loratools.adapters.dora import is_dora
from loratools.adapters.factors import Factors, flat, load, matrix
from loratools.adapters.glora import GLORA
from loratools.adapters.loha import PAIRS
from loratools.adapters.lora import LORA
from loratools.adapters.residual import RESIDUAL

if TYPE_CHECKING:
    import torch

Pair: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"


@dataclass(frozen=True, slots=True)
class Algebra:
    """The rank of an exact pair, known from shapes; `pair` makes it: left [out, rank], right [rank, in·kernel]."""

    adapter: Adapter
    base: torch.Tensor | None
    rank: int

    def pair(self) -> Pair:
        """The factors in float64, whose product is the delta at scale 1."""
        factors = self.adapter.factors
        match self.adapter.kind:
            case "lora":
                return LORA.low_rank(factors, "float64")
            case "loha":
                return _loha(factors)
            case "lokr":
                return _lokr(factors)
        assert self.base is not None
        return _glora(factors, self.base)


def algebra(adapter: Adapter, base: torch.Tensor | None) -> Algebra | None:
    """How the delta is an exact product, or None where it is none (or its rank is not known without the base)."""
    factors = adapter.factors
    if is_dora(factors) or RESIDUAL in factors:
        return None
    match adapter.kind:
        case "lora":
            return Algebra(adapter, base, LORA.rank(factors) or 0)
        case "loha":
            return Algebra(adapter, base, factors["w1_b"].shape[0] * factors["w2_b"].shape[0])
        case "lokr":
            return Algebra(adapter, base, prod(min(_inner(factors, number)) for number in (1, 2)))
        case "glora" if base is not None:
            GLORA.refuse_ambiguous("to_lora", factors)
            old = GLORA.is_old(factors)
            first, second = (factors["a2"], factors["b2"]) if old else (factors["a1"], factors["b1"])
            return Algebra(adapter, base, flat(first)[1] * prod(base.shape[2:]) + second.shape[1])
    return None


def _loha(factors: Factors) -> Pair:
    """Khatri–Rao: left[o, (i, j)] = a[o, i]·c[o, j], right[(i, j), x] = b[i, x]·d[j, x]."""
    import torch

    halves: list[Pair] = []
    for a, b, t in PAIRS:
        left, right = matrix(factors[a], "float64"), matrix(factors[b], "float64")
        if t in factors:
            left, right = left.T, _through(load(factors[t], "float64"), right)
        halves.append((left, right))
    (a1, b1), (a2, b2) = halves
    left = torch.einsum("oi,oj->oij", a1, a2).reshape(len(a1), -1)
    right = torch.einsum("ix,jx->ijx", b1, b2).reshape(-1, b1.shape[1])
    return left, right


def _lokr(factors: Factors) -> Pair:
    import torch

    left_1, right_1 = kron_factor(factors, 1)
    left_2, right_2 = kron_factor(factors, 2)
    return torch.kron(left_1, left_2.contiguous()), torch.kron(right_1, right_2.contiguous())


def kron_factor(factors: Factors, number: int) -> Pair:
    """w1 (number 1) or w2 (number 2, its kernel in its columns) as a product of the smallest inner extent there is."""
    import torch

    name = f"w{number}"
    if name in factors:
        whole = matrix(factors[name], "float64")
    else:
        left, right = (matrix(factors[f"{name}_{side}"], "float64") for side in "ab")
        if number == 2 and "t2" in factors:
            left, right = left.T, _through(load(factors["t2"], "float64"), right)
        if left.shape[1] <= min(len(left), right.shape[1]):
            return left, right
        whole = left @ right
    identity = torch.eye(min(whole.shape), dtype=whole.dtype)
    return (identity, whole) if whole.shape[0] <= whole.shape[1] else (whole, identity)


def _inner(factors: Factors, number: int) -> tuple[int, ...]:
    """The extents of which the least is the inner one of `kron_factor`."""
    name = f"w{number}"
    if name in factors:
        return flat(factors[name])
    rows, (rank, columns) = factors[f"{name}_a"], flat(factors[f"{name}_b"])
    if number == 2 and "t2" in factors:
        return rank, rows.shape[1], columns * prod(factors["t2"].shape[2:])
    return rank, rows.shape[0], columns


def _glora(factors: Factors, base: torch.Tensor) -> Pair:
    """A convolution's W·a1 has one column for each place of the kernel, and a2 stands at each of them."""
    import torch

    old = GLORA.is_old(factors)
    names = ("a2", "a1", "b2", "b1") if old else ("a1", "a2", "b1", "b2")
    a1, a2, b1, b2 = (matrix(factors[name], "float64") for name in names)
    if "bm" in factors:
        b2 = _through(load(factors["bm"], "float64"), b2)
    places = prod(base.shape[2:])
    moved = torch.einsum("oi...,ij->oj...", base.double(), a1).reshape(len(base), -1)
    spread = torch.kron(a2.contiguous(), torch.eye(places, dtype=a2.dtype))
    return torch.cat([moved, b1], 1), torch.cat([spread, b2], 0)


def _through(core: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Σₙ core[m, n, kernel] · right[n, in] as [m, in·kernel]."""
    import torch

    return torch.einsum("mn...,ni->mi...", core, right).reshape(len(core), -1)
