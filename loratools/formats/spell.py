"""One adapter → its tensors under the keys of a spelling: names, row layout, and the shapes that readers expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

from loratools.adapters.adapter import Adapter
from loratools.adapters.factors import transposed
from loratools.adapters.kind import kind_of
from loratools.adapters.settings import tuner_of
from loratools.architectures.architecture import Architecture, Component, shapes
from loratools.architectures.llm_namings import LanguageNaming
from loratools.architectures.naming import Naming, Placement
from loratools.errors import NotRepresentable
from loratools.formats.gguf_names import GgufNaming
from loratools.formats.layouts import turned
from loratools.formats.suffixes import row_of
from loratools.model import Spelling, Target
from loratools.tensors.lazy import LazyTensor

_SAME_SUFFIXES = {"boft": "oft"}


@dataclass(frozen=True)
class Writer:
    """A spelling of one component with the tables it needs; `naming` None passes paths through as they are.

    `dimensions` are the numbers of dimensions that the weight of a path may have, where a table knows it.
    """

    spelling: Spelling
    naming: Naming | LanguageNaming | GgufNaming | None
    dimensions: Mapping[str, frozenset[int]]

    @property
    def stacked(self) -> bool:
        """Whether all experts of a layer are one parameter."""
        return isinstance(self.naming, LanguageNaming) and self.naming.experts == "stacked"

    @property
    def switched(self) -> bool:
        """Whether all experts of a layer are one layer, as in MLX."""
        return isinstance(self.naming, LanguageNaming) and bool(self.naming.switched)

    def placement(self, path: str) -> Placement:
        """The native weight that holds a canonical path; raises NotRepresentable for one that the naming has not."""
        if self.naming is None:
            return Placement(path, (path,), (1,), "rows", ".")
        found = self.naming.at_canonical(path)
        if found is None:
            ours = isinstance(self.naming, Naming)
            hint = (
                "--to kohya has one"
                if ours
                else "--names whole for layers that the model has as one; --to peft has all"
            )
            raise NotRepresentable(f"{path} has no name in the naming {self.naming.name}", hint=hint)
        return found

    def names(self, path: str) -> bool:
        """Whether the naming has a name for a canonical path."""
        return self.naming is None or self.naming.at_canonical(path) is not None

    def target(self, component: str, path: str) -> Target:
        """The target that this naming gives a canonical path: the whole group where it fuses."""
        placement = self.placement(path)
        return Target(component, placement.paths, placement.ratio)

    def stem(self, target: Target) -> str:
        """The part of the keys that all factors of a target share."""
        native = self.placement(target.paths[0]).native
        return self.spelling.prefix + (native.replace(".", "_") if self.spelling.flat else native)

    def key(self, adapter: Adapter, role: str) -> str:
        """The key of one factor; raises NotRepresentable where the spelling has no suffix for it."""
        suffix = _own(self.spelling.suffixes, adapter, role) or suffix_of(self.spelling.suffixes, adapter.kind, role)
        if suffix is None:
            raise NotRepresentable(
                f"{adapter.kind} ({role}) on {adapter.target.name} has no place in this format",
                key=adapter.origin.stem if adapter.origin else None,
                path=adapter.origin.file if adapter.origin else None,
                hint="loratools formats lists the kinds that each format holds",
            )
        return self.stem(adapter.target) + suffix

    def tensors(self, adapter: Adapter) -> dict[str, LazyTensor]:
        """Every factor under its key, in the native layout and the shape this spelling gives it."""
        return dict(self.by_role(adapter).values())

    def by_role(self, adapter: Adapter) -> dict[str, tuple[str, LazyTensor]]:
        """Every factor's role → its key and itself, in the native layout and the shape this spelling gives it."""
        placement = self.placement(adapter.target.paths[0])
        file, read = (adapter.origin.file, adapter.origin.stem) if adapter.origin else (None, None)
        factors = turned(kind_of(adapter.kind), adapter.factors, placement, path=file, key=read, native=False)
        factors = self._fitted(adapter, factors)
        convolution = max((len(factors[role].shape) for role in ("down", "up") if role in factors), default=2)
        found = {}
        stem, suffixes = self.stem(adapter.target), self.spelling.suffixes
        for role, tensor in factors.items():
            suffix = _own(suffixes, adapter, role)
            key = stem + suffix if suffix else self.key(adapter, role)
            row = row_of(key[len(stem) :], role)
            spelt = _magnitude(tensor, role, key, convolution) if "magnitude" in role else tensor
            found[role] = key, transposed(spelt) if row is not None and row.turned else spelt
        return found

    def _fitted(self, adapter: Adapter, factors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """1×1 factors in the dimensions of their weight: a linear layer's reader wants two, a convolution's four."""
        down, up = (factors.get("down"), factors.get("up")) if adapter.kind == "lora" else (None, None)
        if "singular" in factors:
            return factors  # AdaLoRA's are matrices under a convolution, too
        if self.dimensions and down and up and len(up.shape) == 2 < len(down.shape):
            up = up.reshape(*up.shape, *(1,) * (len(down.shape) - 2))  # DyLoRA stores a convolution's up as a matrix
            factors = {**factors, "up": up}
        if adapter.kind == "ia3" and "on_input" not in factors and len(factors["scale_vector"].shape) > 2:
            vector = factors["scale_vector"]  # PEFT lays a convolution's vector along the second dimension, always
            return {**factors, "scale_vector": vector.reshape(1, vector.numel, *vector.shape[2:])}
        wanted = self.dimensions.get(adapter.target.paths[0], ())
        if not down or not up or len(wanted) != 1 or "mid" in factors:
            return factors
        dimensions = next(iter(wanted))
        if len(down.shape) == dimensions or prod(down.shape[2:]) != 1:
            return factors
        ones = (1,) * (dimensions - 2)
        return {
            **factors,
            "down": down.reshape(*down.shape[:2], *ones),
            "up": up.reshape(*up.shape[:2], *ones),
        }


def naming_for(component: Component | None, name: str) -> Naming | LanguageNaming | None:
    """The naming of that name: of a component, or of a language model, where there is none (None: its own names)."""
    if component is not None:
        return component.naming(name)
    return LanguageNaming.named(name) if name else None


def _own(suffixes: Mapping[str, str], adapter: Adapter, role: str) -> str | None:
    """The suffix that a role has in this kind alone, AdaLoRA's before a LoRA's."""
    tuner = tuner_of(adapter.kind, adapter.factors)
    found = suffixes.get(f"{tuner}.{role}") if tuner != adapter.kind else None
    return found or suffixes.get(f"{adapter.kind}.{role}")


def suffix_of(suffixes: Mapping[str, str], kind: str, role: str) -> str | None:
    """The suffix of a role: the kind's own, then one that every kind shares, then that of a plain difference."""
    kind = _SAME_SUFFIXES.get(kind, kind)
    return suffixes.get(f"{kind}.{role}") or suffixes.get(role) or suffixes.get(f"full.{role}")


def _magnitude(tensor: LazyTensor, role: str, key: str, dimensions: int) -> LazyTensor:
    """DoRA's magnitude as its readers want it: LyCORIS in two dimensions or more, PEFT flat (conv: [1, out, 1, 1])."""
    ones = (1,) * (dimensions - 2)
    if key.endswith(".dora_scale"):
        return tensor.reshape(*((1, tensor.numel) if role == "input_magnitude" else (tensor.numel, 1)), *ones)
    return tensor.reshape(1, tensor.numel, *ones) if dimensions > 2 else tensor.reshape(tensor.numel)


def dimensions_of(candidates: tuple[Architecture, ...], component: str) -> Mapping[str, frozenset[int]]:
    """path → how many dimensions its weight has, over all variants of the architectures that a file may be."""
    return _dimensions(tuple(variant.shapes for candidate in candidates for variant in candidate.variants), component)


@cache
def _dimensions(tables: tuple[str, ...], component: str) -> Mapping[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for table in tables:
        for path, shape in shapes(table).get(component, {}).items():
            found.setdefault(path, set()).add(len(shape))
    return {path: frozenset(numbers) for path, numbers in found.items()}
