"""Why a live module cannot be changed in one of the two ways: by weights added in place, or by a layer of PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loratools.errors import NotRepresentable
from loratools.pipelines.live import Layer, Live, is_plain
from loratools.pipelines.peft_layers import is_installed
from loratools.pipelines.wrappers import is_wrapper, looks_at_weight

if TYPE_CHECKING:
    from torch import nn

_GROUP_OFFLOADING = ("group_offloading", "lazy_prefetch_group_offloading")


def require_in_memory(live: Live) -> None:
    """Raise NotRepresentable where a hook brings weights in and throws them away again, changes and all."""
    for name, model in live.models.items():
        for part in model.modules():
            hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
            if any(hook in hooks for hook in _GROUP_OFFLOADING):
                raise NotRepresentable(
                    f"{name or live.name} is offloaded in groups: what is added to its weights would be lost",
                    hint="apply the adapter first, then enable_group_offload()",
                )


def not_in_place(layer: Layer, leaf: str) -> str | None:
    """Why nothing can be added to a parameter of the layer, or None."""
    if layer.shadow:
        return layer.shadow
    parameter: Any = layer.module._parameters.get(leaf)
    if parameter is not None and parameter.is_meta:
        return "its weights are not in memory (offloaded): call remove_all_hooks(), or apply before offloading"
    if not is_plain(parameter):
        what = type(parameter).__name__ if parameter is not None else "no parameter"
        dtype = f", {str(parameter.dtype).removeprefix('torch.')}" if parameter is not None else ""
        return f"its {leaf} is quantised ({type(layer.module).__name__}: {what}{dtype})"
    if layer.wrapper is not None and (found := looks_at_weight(layer.wrapper)):
        return f"an adapter of PEFT's there depends on the weight ({found})"
    return None


def no_peft_in(model: nn.Module) -> str | None:
    """Why PEFT can put no layers into a model at all, or None."""
    if not is_installed():
        return "peft is not installed"
    configs = getattr(model, "peft_config", None) or {}
    other = [str(config.peft_type) for config in configs.values() if str(config.peft_type).rpartition(".")[2] != "LORA"]
    if other:
        return f"the model has an adapter of another sort ({other[0]})"
    if any(is_wrapper(part) and part.merged for part in model.modules()):
        return "its adapters are merged (fuse_lora), and PEFT would take them out"
    return None


def not_by_peft(layer: Layer, *, variant: bool) -> str | None:
    """Why PEFT can put no layer around the module, or None; `variant` is a DoRA, which must be alone."""
    if layer.shadow:
        return layer.shadow
    module = layer.module
    if not _is_known(module):
        return f"PEFT has no layer for a {type(module).__name__}"
    if type(layer.parent).__name__ == "MultiheadAttention":
        return "torch's MultiheadAttention reads the weight past any layer around it"
    if getattr(module, "groups", 1) != 1 or getattr(module, "padding_mode", "zeros") != "zeros":
        return "PEFT's convolution has neither groups nor another padding"
    if any(extent != 1 for extent in getattr(module, "dilation", ())):
        return "PEFT's convolution has no dilation"
    if any(parameter is not None and parameter.is_meta for parameter in module._parameters.values()):
        return "its weights are not in memory (offloaded): call remove_all_hooks(), or apply before offloading"
    return None if layer.wrapper is None else _not_beside(layer.wrapper, module, variant=variant)


def _not_beside(wrapper: Any, module: nn.Module, *, variant: bool) -> str | None:
    """Why an adapter cannot join those of a layer of PEFT's, or None."""
    from peft.tuners.adalora import AdaLoraLayer
    from peft.tuners.lora import LoraLayer

    if not isinstance(wrapper, LoraLayer) or isinstance(wrapper, AdaLoraLayer) or wrapper.base_layer is not module:
        return f"another adapter of PEFT's stands there ({type(wrapper).__name__})"
    others = [found for found in wrapper.lora_variant.values() if not type(found).__name__.startswith("Dora")]
    if others:
        return f"an adapter of PEFT's there is another variant of LoRA ({type(others[0]).__name__})"
    if variant and len(wrapper.lora_magnitude_vector):
        return "PEFT takes a second DoRA from the output that the first one has changed"
    return "the adapters there are disabled" if wrapper.disable_adapters else None


def _is_known(module: nn.Module) -> bool:
    """Whether PEFT knows the class itself; of quantised ones, whether it is a linear layer of some sort."""
    import torch
    from transformers.pytorch_utils import Conv1D

    classes = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)
    if is_plain(module._parameters.get("weight")):
        return type(module) in classes  # another class may do something else with its weight
    linear = all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features"))
    return linear or type(module) in classes  # PEFT's convolutions are of the class that they are put around
