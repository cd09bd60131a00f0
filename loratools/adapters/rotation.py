"""Rotations from what OFT files store: Cayley transforms of square blocks, and PEFT's series over skew vectors."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import TYPE_CHECKING

from loratools.adapters.factors import Factors, Settings, load

if TYPE_CHECKING:
    import torch


def cayley(blocks: torch.Tensor, constraint: Fraction | None, rows: int) -> torch.Tensor:
    """(I + Q)(I − Q)⁻¹ [..., n, n] with Q = blocks − blocksᵀ, shrunk to the Frobenius norm constraint · rows, if any.

    kohya and LyCORIS multiply the constraint by the rows of the weight (the factor is trained that way); ComfyUI takes
    the stored number itself, and so shrinks more.
    """
    import torch

    skew = blocks - blocks.transpose(-1, -2)
    limit = float(constraint or 0) * rows
    if limit > 0:
        norm = float(torch.linalg.vector_norm(skew, dtype=torch.float64)) + 1e-8
        skew = skew * (limit / norm) if norm > limit else skew
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype)
    rotation: torch.Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return rotation


def rescaled(weight: torch.Tensor, factors: Factors, dtype: str) -> torch.Tensor:
    """The rows of `weight` times the rescale, where there is one."""
    if "rescale" not in factors:
        return weight
    return weight * load(factors["rescale"], dtype).reshape(-1, *(1,) * (weight.ndim - 1))


def order_of(entries: int) -> int:
    """n of n(n−1)/2 entries."""
    return (1 + isqrt(1 + 8 * entries)) // 2


def peft_rotation(vectors: torch.Tensor, settings: Settings) -> torch.Tensor:
    """PEFT's rotations [k, n, n] of skew vectors [k, n(n−1)/2], which fill the upper triangle row by row.

    Either the first terms of the series I + 2Q + 2Q² + …, its last term counted once, or (I − Q)(I + Q)⁻¹, which turns
    the other way. `coft` first limits each block's norm to eps / √k.
    """
    import torch

    order = order_of(vectors.shape[1])
    skew = vectors.new_zeros(len(vectors), order, order)
    rows, columns = torch.triu_indices(order, order, 1)
    skew[:, rows, columns] = vectors
    skew = skew - skew.transpose(1, 2)
    if settings["coft"]:
        limit = float(settings["eps"]) / len(vectors) ** 0.5
        norm = torch.linalg.vector_norm(skew, dim=(1, 2), keepdim=True)
        skew = torch.where(norm <= limit, skew, skew * (limit / norm.clamp(min=1e-300)))
    identity = torch.eye(order, dtype=skew.dtype)
    if not settings["use_cayley_neumann"]:
        exact: torch.Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
        return exact
    return _series(skew, int(settings["num_cayley_neumann_terms"]))


def _series(skew: torch.Tensor, terms: int) -> torch.Tensor:
    """2 terms are I + 2Q; 3 and 4 are both I + 2Q + 2Q² + Q³; n are I + 2Q + … + 2Qⁿ⁻² + Qⁿ⁻¹."""
    import torch

    total = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew)
    if terms > 1:
        total = total + 2 * skew
    if terms > 2:
        power = skew @ skew
        total = total + 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            total = total + 2 * power
        total = total + power @ skew
    return total
