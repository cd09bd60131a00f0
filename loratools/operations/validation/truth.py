"""The truth that every route is held to: the change of each weight in float64, straight from the factors.

For LoRA, which is their product, it shares nothing with what injects or merges adapters but the reading of the file;
for other kinds the formula as well, which tests hold to their trainers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.change import is_low_rank
from loratools.adapters.kind import bias_delta_of, delta_of, kind_of, strength_of
from loratools.architectures.architecture import Architecture
from loratools.bases.weights import BaseWeights
from loratools.errors import InternalError
from loratools.operations.merging.saved_whole import saved_modules
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

_BIASES = frozenset(("bias_diff", "norm_bias_diff", "up_bias"))
_KEPT = 1 << 26
"""Elements of changes that are kept in memory once they are made (512 MiB in float64)."""
INVISIBLE = 0.5
"""The error at which a module counts as missing, however coarse the dtype."""


class Spot(NamedTuple):
    """A parameter that adapters change: component, canonical path, "weight" or "bias"."""

    component: str
    path: str
    leaf: str

    @property
    def name(self) -> str:
        """How a report names it."""
        return f"{self.component}:{self.path}" + ("" if self.leaf == "weight" else f" ({self.leaf})")


@dataclass(frozen=True, slots=True)
class Share:
    """What one adapter adds: the rows [start, stop) of its change, times `scale`; or `saved` − W for a tensor that was
    saved whole.
    """

    adapter: Adapter | None
    scale: float
    start: int = 0
    stop: int = 0
    saved: LazyTensor | None = None


@dataclass(frozen=True, slots=True)
class SpotError:
    """How a parameter's change compares with the truth.

    `norm` is ‖Δ‖ and `base` ‖W‖; `error` is relative to ‖Δ‖ (infinite for a change where none should be); `ratio` is
    ⟨found, Δ⟩ / ⟨Δ, Δ⟩; `rounding` is the part of Δ that the dtype of W + Δ cannot hold.
    """

    spot: Spot
    norm: float
    base: float
    error: float
    ratio: float
    rounding: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the error keeps to its limit."""
        return self.error <= self.limit


class Truth:
    """The float64 change of every parameter that adapters, each at its scale, change in a base model."""

    def __init__(
        self, given: Sequence[tuple[AdapterSet, float]], weights: BaseWeights, table: Architecture | None
    ) -> None:
        self.weights = weights
        self.shares: dict[Spot, list[Share]] = {}
        self._made: dict[Spot, torch.Tensor] = {}
        self._kept = 0
        for source, scale in given:
            for item in source.adapters:
                for spot, share in self._of(item, scale):
                    self.shares.setdefault(spot, []).append(share)
            for component, path, leaf, tensor in saved_modules(source, table):
                held = weights.weight(component, path) if leaf == "weight" else weights.bias(component, path)
                if held is not None:
                    share = Share(None, scale, saved=tensor)
                    self.shares.setdefault(Spot(component, path, leaf), []).append(share)

    @property
    def spots(self) -> tuple[Spot, ...]:
        """Every parameter that is changed, in the order of the files."""
        return tuple(self.shares)

    @property
    def components(self) -> tuple[str, ...]:
        """The components that are changed."""
        return tuple(dict.fromkeys(spot.component for spot in self.shares))

    def base(self, spot: Spot) -> torch.Tensor:
        """The parameter of the base model as its files hold it, in float64."""
        return self._stored(spot).load().double()

    def _stored(self, spot: Spot) -> LazyTensor:
        found = self.weights.weight if spot.leaf == "weight" else self.weights.bias
        tensor = found(spot.component, spot.path)
        if tensor is None:
            raise InternalError(f"the base model has lost {spot.name}", path=self.weights.name)
        return tensor

    def delta(self, spot: Spot, device: str = "cpu") -> torch.Tensor:
        """The change in float64, in the shape that the base model's files give the parameter."""
        if spot in self._made:
            return self._made[spot]
        total: torch.Tensor | None = None
        shape = self._stored(spot).shape
        for share in self.shares[spot]:
            part = _fitted(self._one(spot, share, device).to(device), shape)
            total = part if total is None else total + part
        assert total is not None
        if self._kept + total.numel() <= _KEPT:
            self._made[spot] = total
            self._kept += total.numel()
        return total

    def judge_weight(self, spot: Spot, live: torch.Tensor, tolerance: float, scale: float = 1.0) -> SpotError:
        """Hold a parameter that should be W + scale·Δ, summed exactly and cast once to its dtype, to the truth.

        Its change is compared with the one that such a sum can hold; where rounding takes more of Δ than the tolerance,
        the limit is three times that share, never more than INVISIBLE.
        """
        device = "cpu" if live.device.type == "mps" else str(live.device)  # MPS has no float64
        delta = self.delta(spot, device).to(device) * scale
        base = self.base(spot).to(device)
        start = base.to(live.dtype).double()
        wanted = (start + delta).to(live.dtype).double() - start
        found = live.detach().to(device).double().reshape(start.shape) - start
        return _compared(spot, found, wanted, (delta, base), tolerance)

    def judge_change(self, spot: Spot, change: torch.Tensor, tolerance: float) -> SpotError:
        """Hold a change that was computed beside the weight, in float64, to the truth."""
        device = str(change.device)
        delta = self.delta(spot, device).to(device)
        return _compared(
            spot, change.double().reshape(delta.shape), delta, (delta, self.base(spot).to(device)), tolerance
        )

    def _of(self, item: Adapter, scale: float) -> Iterator[tuple[Spot, Share]]:
        """The parameters that one adapter changes, with its rows for each."""
        if self.weights.missing(item.target) is not None:
            return  # left out on purpose: whoever opened the file has decided about partial matches
        start = 0
        for path in item.target.paths:
            weight = self.weights.weight(item.target.component, path)
            assert weight is not None
            stop = start + weight.shape[0]
            share = Share(item, scale, start, stop)
            if not set(item.factors) <= _BIASES:
                yield Spot(item.target.component, path, "weight"), share
            if self._changes_bias(item, path):
                yield Spot(item.target.component, path, "bias"), share
            start = stop

    def _changes_bias(self, item: Adapter, path: str) -> bool:
        if self.weights.bias(item.target.component, path) is None:
            return False
        if not _BIASES.isdisjoint(item.factors):
            return True
        return item.kind == "ia3" and self._bias(item, 1.0) is not None

    def _one(self, spot: Spot, share: Share, device: str) -> torch.Tensor:
        if share.saved is not None:
            base = self.base(spot)
            return (share.saved.load().double().reshape(base.shape) - base) * share.scale
        item = share.adapter
        assert item is not None
        if spot.leaf == "bias":
            found = self._bias(item, share.scale)
            assert found is not None
            return found[share.start : share.stop]
        if _is_pair(item):
            left, right = (item.factors[role].load().to(device).double().flatten(1) for role in ("up", "down"))
            return (left[share.start : share.stop] @ right) * (float(strength_of(item)) * share.scale)
        held = self.weights.weight_of(item.target) if kind_of(item.kind).needs_base(item.factors) else None
        delta = delta_of(item, None if held is None else held.load().double(), dtype="float64")
        return delta[share.start : share.stop] * share.scale

    def _bias(self, item: Adapter, scale: float) -> torch.Tensor | None:
        held = self.weights.bias_of(item.target)
        found = bias_delta_of(item, None if held is None else held.load().double(), dtype="float64")
        return None if found is None else found * scale


def _compared(
    spot: Spot,
    found: torch.Tensor,
    wanted: torch.Tensor,
    truth: tuple[torch.Tensor, torch.Tensor],
    tolerance: float,
) -> SpotError:
    """The figures of one parameter; `wanted` is what its dtype can hold of the true (Δ, W). Norms are float64."""
    delta, base = truth
    norm, whole, distance = (float(values.norm()) for values in (delta, wanted, found - wanted))
    rounding = float((wanted - delta).norm()) / norm if norm else 0.0
    if not math.isfinite(distance):
        error = ratio = math.inf
    elif whole:
        error, ratio = distance / whole, float((found * wanted).sum()) / whole**2
    else:
        error, ratio = (math.inf if distance else 0.0), 1.0
    limit = min(max(tolerance, 3 * rounding), INVISIBLE)
    return SpotError(spot, norm, float(base.norm()), error, ratio, rounding, limit)


def _is_pair(item: Adapter) -> bool:
    """Whether the change is up · down · scale and nothing else."""
    return is_low_rank(item) and {"up", "down"} <= set(item.factors) <= {"up", "down", *_BIASES}


def _fitted(delta: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """A change in the shape of the weight; zero for input channels that the base has beyond those of the adapter."""
    import torch

    if delta.numel() == math.prod(shape):
        return delta.reshape(tuple(shape))
    kernel = math.prod(shape[2:])
    narrow = delta.reshape(shape[0], -1, *shape[2:])
    if delta.numel() % (shape[0] * kernel) or narrow.shape[1] > shape[1]:
        raise InternalError(f"a change {list(delta.shape)} of a weight {list(shape)}")
    wide = torch.zeros(tuple(shape), dtype=delta.dtype, device=delta.device)
    wide[:, : narrow.shape[1]] = narrow
    return wide
