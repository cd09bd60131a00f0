"""What PEFT puts around a module, looked through: its layers, and modules that it replaces while an adapter is on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Layers of PEFT that add something to the output of their base layer and never look at its weight.
_ADDITIVE = ("LoraLayer", "LoHaLayer", "LoKrLayer")


def is_wrapper(module: nn.Module) -> bool:
    """Whether it is a layer of PEFT around another module; nothing is imported to find out."""
    peft = sys.modules.get("peft.tuners.tuners_utils")
    return peft is not None and isinstance(module, peft.BaseTunerLayer) and hasattr(module, "base_layer")


def is_stand_in(module: nn.Module) -> bool:
    """Whether PEFT trains a copy of a module in its place (modules_to_save, trainable tokens)."""
    peft = sys.modules.get("peft.utils.other")
    return peft is not None and isinstance(module, peft.AuxiliaryTrainingWrapper)


def beneath(module: nn.Module) -> nn.Module:
    """The module that a wrapper is around, or that a stand-in stands for."""
    return module.get_submodule("original_module" if is_stand_in(module) else "base_layer")


def bare(module: nn.Module) -> nn.Module:
    """The model itself, without torch.compile's, PEFT's or DistributedDataParallel's shell."""
    while True:
        inner: Any = getattr(module, "_orig_mod", None)
        unwrap: Any = getattr(module, "get_base_model", None)
        if inner is None and unwrap is not None:
            inner = unwrap()
        if inner is None and type(module).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = module.module
        if inner is None or inner is module:
            return module
        module = inner


def looks_at_weight(wrapper: nn.Module) -> str | None:
    """The adapter's class where a layer of PEFT depends on its base weight (DoRA, OFT, IA3, …), else None."""
    found: Any = wrapper
    while is_wrapper(found):
        names = {cls.__name__ for cls in type(found).__mro__}
        if not names.intersection(_ADDITIVE):
            return type(found).__name__
        if any(found.__dict__.get("lora_variant", {}).values()) or len(getattr(found, "lora_magnitude_vector", ())):
            return "DoRA, or another variant of LoRA"
        found = found.base_layer
    return None


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has been called on it or on a part of it."""
    parts: Iterator[Any] = model.modules()
    return any(hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None for part in parts)
