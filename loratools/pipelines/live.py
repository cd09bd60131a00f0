"""A live pipeline or model read as a base model: component → torch module, canonical path → its weight, and back."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.weights import Base, open_base
from loratools.errors import InternalError, UnsupportedFile, UsageError
from loratools.pipelines.kept import LiveBytes, slot_of
from loratools.pipelines.wrappers import bare, beneath, is_compiled, is_stand_in, is_wrapper
from loratools.tensors.dtypes import BY_TORCH
from loratools.tensors.lazy import Bytes, LazyTensor
from loratools.tensors.source import MemoryTensors, TensorSource

if TYPE_CHECKING:
    import torch
    from torch import nn

CLIP_LEVEL = "text_model."
"""The level that canonical paths of every CLIP text encoder have, and transformers' CLIPTextModel ≥ 5.6 has not."""

LLAVA_LEVELS = ("model.language_model.", "model.")
"""What stands before the canonical paths of a LLaVA: before those of the Llama in it, and before the others."""

PLAIN = ("F16", "BF16", "F32", "F64")
"""The dtypes of weights that something can be added to in place."""

_FUSED = ("to_qkv", "to_kv", "to_added_qkv")


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A module with weights of its own; `path` is as the model names it, without PEFT's levels.

    `wrapper` is PEFT's outermost layer around it, `parent` the module that holds either. `shadow` says why what is
    added to its weights would not be felt.
    """

    component: str
    path: str
    module: nn.Module
    wrapper: nn.Module | None
    parent: nn.Module | None
    shadow: str | None = None

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"{self.component}:{self.path}" if self.component else self.path


class Live:
    """The models of a pipeline that adapters are for, and `base`, their weights by architecture and canonical path.

    Bytes are read when they are asked for, and are those from before anything was added to a weight.
    """

    def __init__(self, pipe: Any, component: str | None = None) -> None:
        """`component` names the one model that `pipe` is, where its shapes do not tell."""
        raw = _held(pipe)
        found = components(pipe)
        known = {part.name for table in ARCHITECTURES for part in table.components}
        if "" not in found:
            found = {name: model for name, model in found.items() if name in known} or found
        self.name = f"the live {type(pipe).__name__}"
        self.models: Mapping[str, nn.Module] = found
        self.compiled = frozenset(name for name in found if is_compiled(raw[name]))
        self._at: dict[tuple[int, str], tuple[Layer, str]] = {}
        parts: list[tuple[str | None, TensorSource]] = []
        for name, model in found.items():
            source = self._source(name, model)
            if len(source):
                parts.append((name or component, source))
        self.base: Base = open_base(self.name, parts)

    def _source(self, name: str, model: nn.Module) -> TensorSource:
        held = [(layer, leaf, tensor) for layer in layers(name, model) for leaf, tensor in _tensors(layer)]
        source = MemoryTensors(
            {f"{layer.path}.{leaf}".lstrip("."): tensor for layer, leaf, tensor in held}, name=self.name
        )
        for layer, leaf, _ in held:
            self._at[id(source), f"{layer.path}.{leaf}".lstrip(".")] = layer, leaf
        return source

    def layer(self, place: tuple[int, str]) -> tuple[Layer, str]:
        """The module that holds a tensor of `base`, by its place there, and the tensor's name in it."""
        if place not in self._at:
            raise InternalError(f"{place[1]} is in no live module", key=place[1])
        return self._at[place]


def components(pipe: Any) -> Mapping[str, nn.Module]:
    """The torch modules of a diffusers pipeline by component; of a mapping of models; a single model has the name "".

    Shells of torch.compile and PEFT are taken off. Raises UsageError for anything else.
    """
    return {name: bare(part) for name, part in _held(pipe).items()}


def _held(pipe: Any) -> dict[str, nn.Module]:
    """The modules as they stand in the pipeline, shells and all."""
    from torch import nn

    if isinstance(pipe, nn.Module):
        return {"": pipe}
    held = pipe if isinstance(pipe, Mapping) else getattr(pipe, "components", None)
    found = {str(name): part for name, part in dict(held or {}).items() if isinstance(part, nn.Module)}
    if not found:
        raise UsageError(
            f"a {type(pipe).__name__} is no live pipeline or model",
            hint="give a diffusers pipeline, a diffusers or transformers model, or a mapping of such models",
        )
    return found


def layers(component: str, model: nn.Module) -> Iterator[Layer]:
    """Every module of a model that may hold weights, once, in the model's order."""
    seen: set[int] = set()

    def walk(module: nn.Module, path: str, parent: nn.Module | None, shadow: str | None) -> Iterator[Layer]:
        wrapper: nn.Module | None = None
        while is_wrapper(module) or is_stand_in(module):
            if is_stand_in(module):
                shadow = f"PEFT has put a trained copy in its place ({type(module).__name__})"
            else:
                wrapper = wrapper or module
            module = beneath(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        yield Layer(component, path, module, wrapper, parent, shadow)
        fused = _is_fused(module)
        for name, child in module._modules.items():
            if child is None or (name in _FUSED and hasattr(module, "fused_projections")):
                continue
            below = shadow
            if fused and name.startswith(("to_q", "to_k", "to_v", "add_")):
                below = "its projections are fused into one: call unfuse_qkv_projections() first"
            yield from walk(child, f"{path}.{name}".lstrip("."), module, below)

    yield from walk(model, "", None, None)


def _is_fused(module: nn.Module) -> bool:
    """Whether attention runs by one projection made of several; a UNet that was unfused only has its processor back."""
    processor = getattr(module, "processor", None)
    if type(module).__module__.endswith(".attention_processor") and processor is not None:
        return "Fused" in type(processor).__name__
    return bool(getattr(module, "fused_projections", False))


def module_of(model: nn.Module, path: str) -> nn.Module:
    """The module of a canonical path, whether or not the class has the `text_model.` level, or is a LLaVA around the
    Llama that is meant; PEFT's wrappers taken off.

    Raises UsageError where there is none.
    """
    for name in (path, path.removeprefix(CLIP_LEVEL), CLIP_LEVEL + path, *(level + path for level in LLAVA_LEVELS)):
        found: nn.Module | None = model
        for word in name.split("."):
            found = found._modules.get(word) if found is not None else None
            while found is not None and (is_wrapper(found) or is_stand_in(found)):
                found = beneath(found)
        if found is not None:
            return found
    raise UsageError(f"the {type(model).__name__} has no module {path!r}")


def weight_of(model: nn.Module, path: str, leaf: str = "weight") -> torch.Tensor:
    """The live weight (or the bias, …) of a canonical path, as it is now; raises UsageError where there is none."""
    found: torch.Tensor | None = getattr(module_of(model, path), leaf, None)
    if found is None:
        raise UsageError(f"{path} has no {leaf}")
    return found


def is_plain(parameter: torch.Tensor | None) -> bool:
    """Whether it is an ordinary tensor of floats in memory, not one that stands for quantised or absent values."""
    import torch

    if parameter is None or type(parameter) not in (torch.Tensor, torch.nn.Parameter) or parameter.is_meta:
        return False
    return BY_TORCH.get(str(parameter.dtype).removeprefix("torch.")) in PLAIN


def _tensors(layer: Layer) -> Iterator[tuple[str, LazyTensor]]:
    """The parameters of a module itself; a quantised weight with the shape that it stands for."""
    held: dict[str, Any] = {name: value for name, value in layer.module._parameters.items() if value is not None}
    extents = tuple(getattr(layer.module, name, None) for name in ("out_features", "in_features"))
    linear = all(isinstance(extent, int) for extent in extents)
    if linear and not is_plain(held.get("weight")):
        yield "weight", _unread(layer, "weight", extents)  # packed, or spread over buffers of other names
        held.pop("weight", None)
    for leaf, value in held.items():
        if not is_plain(value):
            yield leaf, _unread(layer, leaf, tuple(value.shape))
            continue
        dtype = BY_TORCH[str(value.dtype).removeprefix("torch.")]
        lazy = LazyTensor(dtype, tuple(value.shape), ())
        source = LiveBytes(weakref.ref(layer.module), leaf, dtype, lazy.nbytes, f"{layer.name}.{leaf}")
        yield leaf, LazyTensor(dtype, lazy.shape, (Bytes(source, 0, lazy.nbytes),) if lazy.nbytes else ())


def _unread(layer: Layer, leaf: str, shape: tuple[Any, ...]) -> LazyTensor:
    def produce() -> bytes:
        raise UnsupportedFile(f"the {leaf} of {layer.name} cannot be read: it is quantised, or not in memory")

    return LazyTensor.produced("F32", shape, produce)


def tied(live: Live) -> frozenset[tuple[int, str]]:
    """(id of the module, name) of every parameter that several modules share, as it was before anything was applied."""
    owners: dict[int, set[tuple[int, str]]] = {}
    for layer, leaf in live._at.values():
        slot = slot_of(layer.module, leaf)
        parameter = slot.shared if slot and slot.shared is not None else layer.module._parameters.get(leaf)
        if parameter is not None:
            owners.setdefault(id(parameter), set()).add((id(layer.module), leaf))
    return frozenset(owner for group in owners.values() if len(group) > 1 for owner in group)
