"""Half-precision models on a CPU: each layer computes in float32, one at a time, so that memory stays that of the file.

A convolution of 16-bit floats has no fast path on most CPUs: one decoding of Stable Diffusion's VAE took 90 s at
64 × 64 pixels, and 0.8 s this way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def compute_wide(model: nn.Module) -> None:
    """Let every 16-bit linear layer and convolution of `model` compute in float32; what goes in and comes out stays."""
    import torch
    from torch import nn

    for layer in model.modules():
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        if isinstance(layer, kinds) and layer.weight.dtype in (torch.float16, torch.bfloat16):
            narrow = [(parameter, parameter.data) for parameter in layer.parameters(recurse=False)]
            layer.register_forward_pre_hook(_Widen(narrow))
            layer.register_forward_hook(_Narrow(narrow), always_call=True)


class _Widen:
    """Before a layer runs: its parameters and its inputs in float32."""

    def __init__(self, narrow: list[tuple[Any, Any]]) -> None:
        self._narrow = narrow

    def __call__(self, _layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        for parameter, data in self._narrow:
            parameter.data = data.float()
        return tuple(item.float() if hasattr(item, "is_floating_point") else item for item in given)


class _Narrow:
    """After it ran: its own parameters again, and its output in their dtype."""

    def __init__(self, narrow: list[tuple[Any, Any]]) -> None:
        self._narrow = narrow

    def __call__(self, _layer: nn.Module, _given: tuple[Any, ...], made: Any) -> Any:
        for parameter, data in self._narrow:
            parameter.data = data
        return made if made is None else made.to(self._narrow[0][1].dtype)
