"""How each module of an adapter goes into a live model: as a layer of PEFT's, or as weights added in place."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal, cast

from loratools.adapters.adapter import Adapter
from loratools.adapters.change import Change
from loratools.adapters.dora import is_dora
from loratools.adapters.factors import load
from loratools.adapters.kind import kind_of, strength_of
from loratools.adapters.lora import LORA
from loratools.adapters.pairs import algebra
from loratools.adapters.to_lora import to_lora
from loratools.bases.placing import Placing, Touched
from loratools.errors import NonFinite, NotRepresentable, UsageError
from loratools.pipelines.kept import Parts, Slot, register, slot_of
from loratools.pipelines.live import Layer, Live, tied
from loratools.pipelines.peft_layers import Factors, Loaded
from loratools.pipelines.servable import no_peft_in, not_by_peft, not_in_place

if TYPE_CHECKING:
    import torch
    from torch import nn

Way = Literal["peft", "weights"]
WAYS = ("auto", "peft", "weights")

_BY_PEFT = frozenset(
    ("down", "up", "mid", "singular", "up_bias", "bias_diff", "embedding_down", "embedding_up", "magnitude")
)


@dataclass(frozen=True, slots=True)
class AppliedModule:
    """One weight, or one bias, that an adapter changes: by canonical path, which way, and the adapter's kind."""

    component: str
    path: str
    way: Way
    kind: str
    bias: bool = False

    @property
    def name(self) -> str:
        """How a report names it."""
        return f"{self.component}:{self.path}" + (" (bias)" if self.bias else "")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        row = {"component": self.component, "path": self.path, "way": self.way, "kind": self.kind}
        return {**row, "bias": True} if self.bias else row


@dataclass(frozen=True, slots=True, eq=False)
class InPeft:
    """The layers of one adapter name of PEFT's in one model, by live path, and what a scale there is multiplied by.

    `variant` is what all of them have in common: "", "bias", "dora". `components` say whose scale is theirs.
    """

    model: nn.Module
    variant: str
    held: dict[str, Factors] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    components: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class InPlace:
    """The changes of one live parameter, by expert where it stacks them; `component` is the adapter's name for its
    model.
    """

    component: str
    layer: Layer
    leaf: str
    touched: Touched
    parts: Parts

    @property
    def changes(self) -> tuple[Change, ...]:
        """All of them."""
        return tuple(change for found in self.parts.values() for change in found)

    def slot(self, shared: frozenset[tuple[int, str]]) -> Slot:
        """The slot of the parameter, a new one where nothing has been added to it yet."""
        found = slot_of(self.layer.module, self.leaf)
        if found is not None:
            return found
        native = self.touched.native
        own = (id(self.layer.module), self.leaf) not in shared
        parameter = cast("torch.nn.Parameter", self.layer.module._parameters[self.leaf])
        slot = Slot(
            weakref.ref(self.layer.module),
            self.leaf,
            f"{self.layer.name}.{self.leaf}",
            native.placement.layout,
            native.is_bias,
            None if own else parameter,
        )
        register(slot)
        return slot


@dataclass(frozen=True, eq=False)
class Ways:
    """What goes which way, with a row for each module, and a line for each that was left out."""

    peft: tuple[InPeft, ...]
    weights: tuple[InPlace, ...]
    shared: frozenset[tuple[int, str]]
    rows: tuple[AppliedModule, ...]
    left_out: tuple[str, ...]


class Choosing:
    """Deals out the changes of one adapter set. `how` is a word of WAYS; `scale_of` tells a component's scale."""

    def __init__(self, live: Live, how: str, scale_of: Mapping[str, float], *, allow_nonfinite: bool) -> None:
        if how not in WAYS:
            raise UsageError(f"unknown way {how!r}", hint=f"one of {', '.join(WAYS)}")
        self._live, self._how, self._scales = live, how, scale_of
        self._allow_nonfinite = allow_nonfinite
        self._no_peft = {name: no_peft_in(model) for name, model in live.models.items()}
        self._peft: dict[tuple[str, str], InPeft] = {}
        self._weights: dict[tuple[int, str], InPlace] = {}
        self._rows: list[AppliedModule] = []
        self._refused: list[tuple[str, str]] = []
        self._taken: set[tuple[int, str]] = set()

    def deal(self, placing: Placing, *, allow_partial: bool) -> Ways:
        """Every change of `placing` one way; NotRepresentable, by name, where neither can serve it."""
        items = placing.touched.values()
        touched = [(self._live.layer((id(item.native.source), item.native.key)), item) for item in items]
        for (layer, leaf), item in sorted(touched, key=lambda row: row[1].native.is_bias):
            kept = []
            for change in item.changes:
                if item.native.is_bias and self.holds_bias(change.adapter, item.native.placement.paths[0]):
                    continue  # PEFT's layer holds the bias along with the weight
                if self._choose(layer, leaf, item, change) == "weights":
                    kept.append(change)
            if kept:
                place = id(layer.module), leaf
                others = self._weights[place].parts if place in self._weights else {}
                parts = {**others, item.native.part: tuple(kept)}
                self._weights[place] = InPlace(self._component(kept[0]), layer, leaf, item, parts)
        if self._refused and (not allow_partial or not self._rows):
            name, why = self._refused[0]
            more = f" (and {len(self._refused) - 1} more modules)" if len(self._refused) > 1 else ""
            raise NotRepresentable(
                f"{name} cannot be changed: {why}{more}",
                key=name,
                hint="allow_partial=True leaves them out" if self._rows else None,
                refused=[module for module, _ in self._refused],
            )
        left_out = tuple(f"{name}: {why}" for name, why in self._refused)
        return Ways(
            tuple(self._peft.values()), tuple(self._weights.values()), tied(self._live), tuple(self._rows), left_out
        )

    def holds_bias(self, adapter: Adapter, path: str) -> bool:
        """Whether a layer of PEFT's holds the adapter, bias and all: then the module needs no bias of its own."""
        return (id(adapter), path) in self._taken

    def _choose(self, layer: Layer, leaf: str, item: Touched, change: Change) -> Way | None:
        adapter = change.adapter
        by_peft = self._not_by_peft(layer, item, change) if self._how != "weights" else "how=weights"
        in_place = self._not_in_place(layer, leaf, item) if self._how != "peft" else "how=peft"
        late = layer.component in self._live.compiled or is_dora(adapter.factors) or adapter.kind != LORA.name
        way: Way | None = None
        if by_peft is None and (in_place is not None or not late):
            way = "peft"
        elif in_place is None:
            way = "weights"
        name = item.name
        if way is None:
            said = {"peft": (by_peft,), "weights": (in_place,)}.get(self._how, (in_place, by_peft))
            self._refused.append((name, "; ".join(dict.fromkeys(map(str, said)))))
            return None
        (path,) = item.native.placement.paths if len(item.native.placement.paths) == 1 else (item.name,)
        kind = kind_of(adapter.kind).kinds(adapter.factors)[-1]
        self._rows.append(AppliedModule(self._component(change), path, way, kind, item.native.is_bias))
        if way == "peft":
            self._hold(layer, change, path)
        return way

    def _component(self, change: Change) -> str:
        """Whose scale is that of a change: a module saved whole may stand in a component without a name."""
        name = change.adapter.target.component
        return name if name in self._scales else next(iter(self._scales))

    def _not_in_place(self, layer: Layer, leaf: str, item: Touched) -> str | None:
        if type(layer.module).__name__ == "Conv1D" and leaf == "weight" and item.native.placement.layout == "rows":
            return "it stores its weight as [in, out], which is not known of this sort of model"
        return not_in_place(layer, leaf)

    def _not_by_peft(self, layer: Layer, item: Touched, change: Change) -> str | None:
        adapter = _as_lora(change, layer)
        if adapter is None or not set(adapter.factors) <= _BY_PEFT or item.native.is_bias:
            return "PEFT's layers hold LoRA, what is a LoRA of a low rank, and output-axis DoRA"
        several = len(item.native.placement.paths) > 1
        if item.native.part is not None or (several and change.stop - change.start < item.native.tensor.shape[0]):
            return "PEFT's layers are whole, and this is a part of one"
        dora = is_dora(adapter.factors)
        if {"up_bias", "bias_diff"} <= set(adapter.factors):
            return "PEFT's layer has one bias, which its scale multiplies"
        if change.inputs is not None:
            return "the layer has more inputs than the adapter"
        if dora and self._scales[self._component(change)] * change.scale not in (0, 1):
            return "PEFT scales a DoRA inside its norm: at a scale other than 0 and 1 that is another change"
        return self._no_peft[layer.component] or not_by_peft(layer, variant=dora)

    def _hold(self, layer: Layer, change: Change, path: str) -> None:
        adapter = _as_lora(change, layer)
        assert adapter is not None
        has_bias, dora = "up_bias" in adapter.factors, is_dora(adapter.factors)
        variant = "_".join(name for name, there in (("bias", has_bias), ("dora", dora)) if there)
        model = self._live.models[layer.component]
        group = self._peft.setdefault((layer.component, variant), InPeft(model, variant))
        group.held[layer.path] = _factors(adapter, change, layer, allow_nonfinite=self._allow_nonfinite)
        group.weights[layer.path] = change.scale
        group.components[layer.path] = self._component(change)
        if has_bias:
            self._taken.add((id(change.adapter), path))


def _as_lora(change: Change, layer: Layer) -> Adapter | None:
    """The adapter of a change as a LoRA, or None where it is none by algebra alone (LoHa and LoKr of low ranks are)."""
    adapter, kind = change.adapter, kind_of(change.adapter.kind)
    if adapter.kind == LORA.name:
        return adapter
    if kind.needs_base(adapter.factors) or adapter.kind in ("norm", "full") or is_dora(adapter.factors):
        return None
    weight = layer.module._parameters.get("weight")
    shape = kind.weight_shape(adapter.factors) or ()
    if weight is not None and len(weight.shape) > 2:
        shape = tuple(weight.shape)
    if len(shape) < 2 or None in shape:
        return None
    found = algebra(adapter, None)
    extents = tuple(extent or 0 for extent in shape)
    if found is None or found.rank >= min(extents[0], prod(extents[1:])):
        return None
    return to_lora(adapter, shape=extents).adapter


def _factors(adapter: Adapter, change: Change, layer: Layer, *, allow_nonfinite: bool) -> Factors:
    """The factors of some rows of an adapter, for one layer of PEFT's."""
    embedding = "embedding_down" in adapter.factors
    rank = adapter.factors["embedding_down" if embedding else "down"].shape[0]
    if "mid" in adapter.factors:
        rank = adapter.factors["mid"].shape[0]
    weight = layer.module._parameters.get("weight")
    kernel = tuple(weight.shape[2:]) if weight is not None else ()

    def produce() -> Loaded:
        import torch

        left, right = LORA.low_rank(adapter.factors, "float64")
        left = left[change.start : change.stop]
        bias, magnitude = (
            load(adapter.factors[role], "float64").reshape(-1)[change.start : change.stop]
            if role in adapter.factors
            else None
            for role in ("up_bias", "magnitude")
        )
        if embedding:
            left, right = right.T, left.T  # PEFT holds them as [dim, r] and [r, vocab]
        made = Loaded(
            right.reshape(rank, -1, *kernel) if kernel else right,
            left.reshape(*left.shape, *(1 for _ in kernel)),
            bias,
            magnitude,
        )
        for values in made:
            if values is not None and not allow_nonfinite and not bool(torch.isfinite(values).all()):
                origin = adapter.origin
                raise NonFinite(
                    f"{adapter.target.name} holds NaN or infinity",
                    path=origin.file if origin else None,
                    key=origin.stem if origin else None,
                )
        return made

    bias, magnitude = "up_bias" in adapter.factors, is_dora(adapter.factors)
    return Factors(rank, float(strength_of(adapter)) * rank, produce, embedding, bias, magnitude)


def scaled(ways: InPeft, scale_of: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """(live path, the number that its layer's adapter is multiplied by)."""
    for path, weight in ways.weights.items():
        yield path, weight * scale_of[ways.components[path]]
