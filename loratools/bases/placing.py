"""Which adapters change which tensor of which file of a base model, by which rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.change import Change
from loratools.adapters.kind import kind_of, require_shape
from loratools.architectures.architecture import Architecture
from loratools.bases.native import Native, Place
from loratools.bases.weights import Base, BaseWeights
from loratools.errors import ArchitectureMismatch, NotRepresentable
from loratools.model import Target
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

_BIASES = ("bias_diff", "norm_bias_diff", "up_bias")
_WEIGHTLESS = frozenset(_BIASES)

INPUT_LAYERS = frozenset({"conv_in", "x_embedder", "img_in", "pos_embed.proj", "patch_embedding"})
"""The layers whose inputs an inpainting model widens: the first channels are still those of the plain model."""


@dataclass
class Touched:
    """A tensor of the base and what changes it; `paths` are the canonical paths it holds."""

    native: Native
    component: str
    changes: list[Change] = field(default_factory=list)

    @property
    def name(self) -> str:
        """How a report names it: `unet:mid_block.attentions.0.proj_in`."""
        target = Target(self.component, self.native.placement.paths)
        return target.name + (" (bias)" if self.native.is_bias else "")


@dataclass(frozen=True, slots=True)
class Unmatched:
    """An adapter, or its bias, that no tensor of the base is for, and why."""

    adapter: Adapter
    path: str
    why: str


class Placing:
    """Finds the places of adapters in a base, read by one architecture's table (None: by its own names)."""

    def __init__(self, base: Base, table: Architecture | None) -> None:
        self.weights: BaseWeights = base.of(table)
        self._natives: dict[tuple[str, str, bool], list[tuple[str, Native]]] = {}
        for component, native in base.natives(table):
            for path in native.placement.paths:
                self._natives.setdefault((component, path, native.is_bias), []).append((component, native))
        for (component, path), native in self.weights.wholes.items():
            self._natives.setdefault((component, path, False), []).append((component, native))
        self._tableless = table is None
        self.touched: dict[Place, Touched] = {}
        self.unmatched: list[Unmatched] = []

    def paths(self, component: str) -> list[str]:
        """Every canonical path of a component whose weight the base holds."""
        return [path for name, path, bias in self._natives if not bias and (name == component or self._tableless)]

    def add(self, adapter: Adapter, scale_of: Mapping[str, float]) -> int:
        """Put one adapter in its places, scaled by canonical path; how many of its paths the base holds.

        A scale of 0 touches nothing. Raises ArchitectureMismatch where a weight has another shape.
        """
        target = adapter.target
        if target.axis == "columns":
            raise NotRepresentable(f"{target.name}: layers whose inputs are grouped are not merged")
        sizes = self._sizes(adapter)
        if sizes is None:
            return 0
        if self._is_whole(adapter, scale_of):
            self._both(adapter, target.paths[0], 0, sum(sizes), scale_of[target.paths[0]])
            return len(sizes)
        matched = 0
        start = 0
        for path, size in zip(target.paths, sizes, strict=True):
            self._both(adapter, path, start, size, scale_of[path])
            matched += 1
            start += size
        return matched

    def _is_whole(self, adapter: Adapter, scale_of: Mapping[str, float]) -> bool:
        """Whether an adapter of several layers of a language model is one change, of the weight that they are in it."""
        target = adapter.target
        if not self._tableless or len(target.paths) == 1 or len({scale_of[path] for path in target.paths}) > 1:
            return False
        found = self._at(target.component, target.paths[0], bias=False)
        return bool(found) and all(native.placement.paths == target.paths for _, native in found)

    def _both(self, adapter: Adapter, path: str, start: int, size: int, scale: float) -> None:
        """The change of the rows of one path, in the weight and in the bias."""
        if _has_weight(adapter):
            self._change(adapter, path, start, size, scale, bias=False)
        if _has_bias(adapter, self._bias(adapter)):
            self._change(adapter, path, start, size, scale, bias=True)

    def replace(self, component: str, path: str, leaf: str, tensor: LazyTensor, scale: float) -> bool:
        """Put a tensor that was saved whole in the place of the base's, as far as `scale` goes; False without a place.

        Raises ArchitectureMismatch where the base's has another shape.
        """
        found = self._at(component, path, bias=leaf == "bias")
        for owner, native in found:
            if native.tensor.numel != tensor.numel or len(native.placement.paths) != 1:
                raise ArchitectureMismatch(
                    f"{path}.{leaf} was saved whole as {list(tensor.shape)}, the base model's is "
                    f"{list(native.tensor.shape)}",
                    path=self.weights.name,
                    key=native.key,
                )
            if scale == 0:
                continue
            item = _difference(owner, path, tensor, native, bias=leaf == "bias")
            touched = self.touched.setdefault(native.place, Touched(native, owner))
            touched.changes.append(Change(item, scale, 0, native.tensor.shape[0], 0, lambda: None))
        return bool(found)

    def experts(self, native: Native) -> list[Native]:
        """All slices of the stacked parameter that a native weight is one of, in their order."""
        found = {
            other.place: other
            for items in self._natives.values()
            for _, other in items
            if other.part is not None and (other.key, id(other.source)) == (native.key, id(native.source))
        }
        return sorted(found.values(), key=lambda item: item.part or 0)

    def owners(self) -> dict[Place, Touched]:
        """Every weight of the base that the tables know, by its place."""
        return {
            native.place: Touched(native, component)
            for found in self._natives.values()
            for component, native in found
            if not native.is_bias
        }

    def _bias(self, adapter: Adapter) -> LazyTensor | None:
        return self.weights.bias_of(adapter.target)

    def _sizes(self, adapter: Adapter) -> list[int] | None:
        """The rows of every path of the target, as the base has them; None where it lacks one."""
        target = adapter.target
        missing = self.weights.missing(target)
        if missing is not None:
            self.unmatched.append(Unmatched(adapter, missing, "the base model holds no such weight"))
            return None
        shapes = [weight.shape for path in target.paths if (weight := self.weights.weight(target.component, path))]
        shape = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        if not _widened(adapter, shape):
            require_shape(adapter, shape, self.weights.name)
        return [shape[0] for shape in shapes]

    def _change(self, adapter: Adapter, path: str, start: int, size: int, scale: float, *, bias: bool) -> None:
        found = self._at(adapter.target.component, path, bias=bias)
        if not found:
            self.unmatched.append(Unmatched(adapter, path, "the base model's layer has no bias"))
            return
        for component, native in found:
            if scale == 0:
                continue
            touched = self.touched.setdefault(native.place, Touched(native, component))
            at = _row_of(native, path, size)
            base = _BaseOf(self.weights, adapter, bias)
            inputs = None if bias else _widened(adapter, self._shape(adapter.target.component, path))
            touched.changes.append(Change(adapter, scale, start, start + size, at, base, inputs))

    def _at(self, component: str, path: str, *, bias: bool) -> list[tuple[str, Native]]:
        found = self._natives.get((component, path, bias))
        if found is None and self._tableless:
            found = self._natives.get(("", path, bias)) or self._natives.get(("", path.partition(".")[2], bias))
        return found or []

    def _shape(self, component: str, path: str) -> tuple[int, ...]:
        weight = self.weights.weight(component, path)
        return weight.shape if weight else ()


@dataclass(frozen=True, slots=True)
class _BaseOf:
    """Makes what the delta of an adapter depends on, when it is asked for."""

    weights: BaseWeights
    adapter: Adapter
    bias: bool

    def __call__(self) -> torch.Tensor | None:
        if self.bias:
            found = self.weights.bias_of(self.adapter.target)
        elif kind_of(self.adapter.kind).needs_base(self.adapter.factors):
            found = self.weights.weight_of(self.adapter.target)
        else:
            return None
        return None if found is None else found.load().double()


def _difference(component: str, path: str, saved: LazyTensor, native: Native, *, bias: bool) -> Adapter:
    """What leads from the base's tensor to the one saved whole, as an adapter of kind full."""
    shape = native.tensor.shape

    def produce() -> torch.Tensor:
        return saved.load().double().reshape(shape) - native.tensor.load().double()

    role = "bias_diff" if bias else "diff"
    return Adapter(Target(component, (path,)), "full", {role: LazyTensor.computed("F64", shape, produce)})


def _widened(item: Adapter, shape: Sequence[int]) -> int | None:
    """The input channels of an adapter for an input layer that the base has with more of them; None anywhere else."""
    told = kind_of(item.kind).weight_shape(item.factors) or ()
    inputs = told[1] if len(told) == len(shape) and len(told) > 1 else None
    if item.target.paths[0] not in INPUT_LAYERS or inputs is None or kind_of(item.kind).needs_base(item.factors):
        return None
    alike = (told[0], *told[2:]) == (shape[0], *shape[2:])
    return inputs if alike and inputs < shape[1] else None


def _row_of(native: Native, path: str, size: int) -> int:
    """The first row of a path among the stacked canonical rows of its tensor."""
    placement = native.placement
    if len(placement.paths) == 1:
        return 0
    unit = size // placement.ratio[placement.paths.index(path)]
    return unit * sum(placement.ratio[: placement.paths.index(path)])


def _has_weight(adapter: Adapter) -> bool:
    """Whether it changes the weight, not the bias alone."""
    return not set(adapter.factors) <= _WEIGHTLESS


def _has_bias(adapter: Adapter, bias: LazyTensor | None) -> bool:
    """Whether it changes the bias: by a factor of its own, or as PEFT's (IA)³, which multiplies whole outputs."""
    if not _WEIGHTLESS.isdisjoint(adapter.factors):
        return True
    if adapter.kind != "ia3" or bias is None:
        return False
    kind = kind_of("ia3")
    return "on_input" not in adapter.factors and not kind.on_input(adapter.factors)  # type: ignore[attr-defined]  # (IA)³'s alone
