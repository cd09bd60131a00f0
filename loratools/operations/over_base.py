"""Deltas that are a function of the base model's weight, compared over that weight: dense, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import finite
from loratools.adapters.difference import relative
from loratools.adapters.kind import bias_delta_of, delta_of, kind_of, require_shape
from loratools.adapters.proof import Cluster
from loratools.adapters.slices import sizes_of
from loratools.bases.weights import BaseWeights
from loratools.errors import NotRepresentable, ResourceError

if TYPE_CHECKING:
    import torch

DENSE_LIMIT = 2**28
"""The most elements of a weight whose deltas are formed (2 GiB in float64, for each side)."""


class Compared(NamedTuple):
    """One layer of a cluster: its name, the side or sides that change it, relative error and cosine of the deltas."""

    name: str
    where: str
    error: float
    cosine: float | None


class _Change(NamedTuple):
    """What one side does to one path: the change of the weight, flattened, and that of the bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None


def depends(cluster: Cluster) -> bool:
    """Whether a delta of either side is a function of the base's weight."""
    return any(kind_of(item.kind).needs_base(item.factors) for side in cluster for item in side)


def compared(cluster: Cluster, base: BaseWeights) -> list[Compared]:
    """Every path of a cluster of adapters, compared over the base's weights.

    Raises NotRepresentable where the base holds no weight of a layer, ArchitectureMismatch where it has another shape,
    NonFinite for a delta that is not finite, ResourceError beyond DENSE_LIMIT.
    """
    ours, theirs = (_changes(side, base) for side in cluster)
    return [_one(*place, ours.get(place), theirs.get(place)) for place in dict.fromkeys((*ours, *theirs))]


def _one(component: str, path: str, left: _Change | None, right: _Change | None) -> Compared:
    name = f"{component}:{path}"
    if left is None or right is None:
        one = left or right
        changes = one is not None and any(bool(part.any()) for part in one if part is not None)
        return Compared(name, "b" if left is None else "a", math.inf if changes else 0.0, None)
    worst, cosine = _error(left.weight, right.weight)
    if left.bias is not None or right.bias is not None:
        biases = [left.bias, right.bias]
        held = next(bias for bias in biases if bias is not None)
        first, second = (held.new_zeros(held.shape) if bias is None else bias for bias in biases)
        worst = max(worst, _error(first, second)[0])
    return Compared(name, "both", worst, cosine)


def _error(left: torch.Tensor, right: torch.Tensor) -> tuple[float, float]:
    """‖left − right‖ / ‖left‖ and the cosine; that of two zeros is 1, of one zero 0."""
    norms = float(left.square().sum()) ** 0.5, float(right.square().sum()) ** 0.5
    distance = float((left - right).square().sum()) ** 0.5
    product = float((left * right).sum())
    cosine = product / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1])
    return relative(distance, norms[0]), min(1.0, max(-1.0, cosine))


def _changes(side: Sequence[Adapter], base: BaseWeights) -> dict[tuple[str, str], _Change]:
    """(component, path) → what the adapters of one side do to it."""
    found: dict[tuple[str, str], _Change] = {}
    for item in side:
        weight, bias = base.weight_of(item.target), None
        if weight is None:
            raise NotRepresentable(
                f"the base model holds no weight for {item.target.component}:{base.missing(item.target)}",
                path=base.name,
                hint="give the whole base model, or the component that the adapters change",
            )
        require_shape(item, weight.shape, base.name)
        if weight.numel > DENSE_LIMIT:
            raise ResourceError(
                f"the delta of {item.target.name} has {weight.numel} elements, too many to form whole",
                path=base.name,
                limit=DENSE_LIMIT,
            )
        needed = kind_of(item.kind).needs_base(item.factors)
        if needed:
            bias = base.bias_of(item.target)
        delta = delta_of(item, weight.load() if needed else None, dtype="float64")
        change = bias_delta_of(item, None if bias is None else bias.load(), dtype="float64")
        delta = finite(delta.reshape(weight.shape[0], -1), item)
        start = 0
        sizes = sizes_of(item) if len(item.target.paths) > 1 else (delta.shape[0],)
        for path, size in zip(item.target.paths, sizes, strict=True):
            beside = None if change is None else finite(change, item)[start : start + size]
            found[item.target.component, path] = _Change(delta[start : start + size], beside)
            start += size
    return found
