"""What a PEFT folder holds of a fine-tune beside factors: modules saved whole, and biases.

PEFT replaces the modules that `modules_to_save` names by copies, whose every tensor it then wants from the file; it
names them by how their paths end. With `bias` "all" it loads biases over the model's own; with `lora_bias` each pair of
factors has one that is added, but then every pair must have, and PEFT merges it into no layer without a bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from loratools.bases.pairing import Pair, Twin
from loratools.bases.ties import copies
from loratools.errors import NotRepresentable
from loratools.formats.peft import PREFIX
from loratools.formats.spell import Writer
from loratools.model import Target
from loratools.operations.extraction.factors import Extracted
from loratools.operations.extraction.wishes import FULL
from loratools.tensors.lazy import LazyTensor

WHOLE = ("norm", "embedding")
"""The sorts of tensors that go along in their modules, as they were tuned."""

_WORDS = {sort: word for word, sort in FULL.items()}


@dataclass(frozen=True)
class Beside:
    """What stands beside the factors of one component: tensors by key, and the modules and switches that
    adapter_config.json has for them.
    """

    component: str
    found: Sequence[Extracted]
    models: Pair
    writer: Writer
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    modules: dict[str, None] = field(default_factory=dict)
    switches: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The fields of the configuration."""
        return {**self.switches, **({"modules_to_save": list(self.modules)} if self.modules else {})}

    @cached_property
    def layers(self) -> frozenset[Target]:
        """The targets with factors."""
        return frozenset(item.twin.target for item in self._members if item.has_factors)

    @cached_property
    def bias_of_factors(self) -> bool:
        """Whether biases can be what factors add: every layer with factors has one, and none changed beside a weight
        without factors, or beside DoRA, which PEFT builds with no bias.
        """
        biases = [item for item in self._members if item.twin.is_bias]
        changed = {item.twin.target for item in biases if item.stored is not None and item.twin.sort == "bias"}
        dora = any(item.magnitude is not None for item in self._members)
        return not dora and changed <= self.layers <= {item.twin.target for item in biases}

    @cached_property
    def _members(self) -> list[Extracted]:
        return [item for item in self.found if item.twin.target.component == self.component]

    @cached_property
    def _twins(self) -> dict[str, list[Twin]]:
        """path → its weight and its bias, as far as both models hold them."""
        found: dict[str, list[Twin]] = {}
        for item in self._members:
            for path in item.twin.target.paths:
                found.setdefault(path, []).append(item.twin)
        return found

    @cached_property
    def _stored(self) -> dict[str, int]:
        """path → how many tensors the base has of it."""
        found: dict[str, int] = {}
        for component, path in (*self.models.base.weights, *self.models.base.biases):
            if component in (self.component, ""):
                found[path] = found.get(path, 0) + 1
        return found

    @cached_property
    def _paths(self) -> dict[str, str | None]:
        """A module's own path → its canonical one, None for a module that holds others."""
        known = self.writer.naming
        placed = {
            self.writer.placement(path).native: path
            for path in self._stored
            if known is None or known.at_canonical(path)
        }
        above = {path.rsplit(".", depth)[0] for path in placed for depth in range(1, path.count(".") + 1)}
        return {**dict.fromkeys(above), **placed}

    def add(self, item: Extracted) -> str | None:
        """Take a tensor that changed; why PEFT cannot hold it, or None."""
        if key_of(item.twin, self.writer) is None:
            return "peft saves modules, and this is a parameter of none"
        if item.twin.sort == "bias":
            if not self.bias_of_factors:
                self._add_bias(item.twin)
            return None
        return self._add_module(item.twin)

    def _add_bias(self, twin: Twin) -> None:
        """The bias as it was tuned, where PEFT keeps it: a layer with factors wraps its own."""
        native = self.writer.placement(twin.target.paths[0]).native
        wrapped = ".base_layer" if twin.target in self.layers else ""
        self.tensors[f"{PREFIX}{native}{wrapped}.bias"] = twin.tuned
        self.switches["bias"] = "all"

    def _add_module(self, twin: Twin) -> str | None:
        """The module of a tensor with all that it holds, and every other one that PEFT takes for it by its name."""
        native = self.writer.placement(twin.target.paths[0]).native
        for name in (native, *(other for other in self._paths if other != native and other.endswith(native))):
            if name in self.modules:
                continue
            path = self._paths.get(name)
            inside = self._twins.get(path, []) if path is not None else []
            if path is None or any(other.target in self.layers for other in inside):
                return f"peft takes {name} for it as well, by the end of its name"
            keys = [key_of(other, self.writer) for other in inside]
            if None in keys or len(keys) != self._stored[path]:
                return f"peft wants every tensor of {name}, and the models do not share all of them"
            self.modules[name] = None
            self.tensors.update({f"{PREFIX}{key}": other.tuned for key, other in zip(keys, inside, strict=True)})
        if twin.sort == "embedding":
            self._add_copies(twin, native)
        return None

    def _add_copies(self, twin: Twin, native: str) -> None:
        """The modules that read the same embedding: PEFT replaces one, and the others would keep theirs."""
        path = twin.target.paths[0]
        heads = [head for head, table in {**self.models.alike, **self.models.tied}.items() if table == path]
        stacks = copies(native, self._paths)
        for name in (*stacks, *heads):
            self.modules[name] = None
            self.tensors[f"{PREFIX}{name}.weight"] = twin.tuned
        # PEFT ties modules to an embedding as linear layers, which the embeddings of stacks are not.
        if not stacks and any(head in self.models.tied for head in heads):
            self.switches["ensure_weight_tying"] = True


def key_of(twin: Twin, writer: Writer) -> str | None:
    """The key of a tensor saved whole, without PEFT's prefix; None for what is in no module of its own."""
    placement = writer.placement(twin.target.paths[0])
    found = placement.bias_key if twin.is_bias else placement.weight_key
    whole = len(twin.target.paths) == 1 and placement.layout == "rows" and placement.joint == "."
    return found if whole and found and found.endswith((".weight", ".bias")) else None


def beside_factors(
    found: Sequence[Extracted], models: Pair, writers: Mapping[str, Writer]
) -> tuple[dict[str, Beside], list[tuple[Twin, str]]]:
    """component → what stands beside its factors, and every tensor that PEFT cannot hold, with the reason."""
    held = {component: Beside(component, found, models, writer) for component, writer in writers.items()}
    lost: list[tuple[Twin, str]] = []
    for item in found:
        if item.stored is None:
            continue
        beside = held.get(item.twin.target.component)
        reason = beside.add(item) if beside else "peft holds it beside factors only, and its component has none"
        if reason is not None:
            lost.append((item.twin, reason))
    return held, lost


def refused(twin: Twin, reason: str) -> NotRepresentable:
    """The error for what PEFT cannot hold."""
    return NotRepresentable(
        f"{twin.name}: {reason}",
        key=twin.key,
        hint=f"--allow-lossy leaves such tensors out and lists them, --full without {_WORDS[twin.sort]} all of them; "
        "--to kohya holds differences, where it knows the model",
    )
