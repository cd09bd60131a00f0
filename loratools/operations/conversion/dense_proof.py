"""The proof of a conversion to another kind: dense float64 deltas, layer by layer, against the error that was promised.

Only here is a delta formed whole: kinds that multiply the base have no factors to compare with those of a LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import finite
from loratools.adapters.difference import relative
from loratools.adapters.kind import bias_delta_of, delta_of, kind_of
from loratools.adapters.proof import Proof, prove
from loratools.adapters.slices import sizes_of
from loratools.bases.weights import BaseWeights
from loratools.operations.conversion.to_kind import Plain

if TYPE_CHECKING:
    import torch

    Deltas = dict[tuple[str, str, str], torch.Tensor]

ROUNDING = 1e-6
"""What casting the factors to float32 may add to the promised error."""


class DenseProver:
    """Proves one cluster after another; `beyond` are the layers, with their errors, that broke their promise."""

    def __init__(self, plain: Plain) -> None:
        self.plain = plain
        self.beyond: list[tuple[str, float]] = []
        pairs = zip(plain.source.adapters, plain.adapters.adapters, strict=True)
        self._unchanged = {id(old) for old, new in pairs if old is new}

    def __call__(self, source: Sequence[Adapter], output: Sequence[Adapter]) -> Proof:
        """The proof of one cluster; raises NonFinite where a delta is not finite."""
        if all(id(item) in self._unchanged for item in source):
            found = prove(source, output)
            promised = 0.0
        else:
            found = Proof("measured", _error(source, output, self.plain.base))
            promised = max(self.plain.costs[item.target.name].error or 0.0 for item in source)
        if not found.error <= promised * (1 + ROUNDING) + ROUNDING:
            self.beyond.append((source[0].target.name if source else output[0].target.name, found.error))
        return found


def _error(source: Sequence[Adapter], output: Sequence[Adapter], base: BaseWeights | None) -> float:
    """‖Δ − Δ'‖ / ‖Δ‖ over all weights of the cluster, or over all its biases where that is larger."""
    ours, theirs = _deltas(source, base), _deltas(output, base)
    worst = 0.0
    for sort in ("weight", "bias"):
        norm = distance = 0.0
        for place in dict.fromkeys((*ours, *theirs)):
            if place[2] == sort:
                left, right = ours.get(place), theirs.get(place)
                norm += 0.0 if left is None else _square(left)
                distance += _square(_minus(left, right))
        worst = max(worst, relative(distance**0.5, norm**0.5))
    return worst


def _deltas(side: Sequence[Adapter], base: BaseWeights | None) -> Deltas:
    """(component, path, "weight" or "bias") → its float64 change, flattened to [rows, everything else]."""
    found: Deltas = {}
    for item in side:
        weight = bias = None
        if base is not None and kind_of(item.kind).needs_base(item.factors):
            weight, bias = base.weight_of(item.target), base.bias_of(item.target)
        delta = delta_of(item, None if weight is None else weight.load(), dtype="float64")
        change = bias_delta_of(item, None if bias is None else bias.load(), dtype="float64")
        delta = finite(delta.reshape(delta.shape[0], -1), item)
        start = 0
        sizes = sizes_of(item) if len(item.target.paths) > 1 else (delta.shape[0],)
        for path, size in zip(item.target.paths, sizes, strict=True):
            found[item.target.component, path, "weight"] = delta[start : start + size]
            if change is not None:
                found[item.target.component, path, "bias"] = finite(change, item)[start : start + size]
            start += size
    return found


def _minus(left: torch.Tensor | None, right: torch.Tensor | None) -> torch.Tensor:
    if left is None or right is None:
        one = left if left is not None else right
        assert one is not None
        return one
    return left - right


def _square(values: torch.Tensor) -> float:
    return float(values.square().sum())
