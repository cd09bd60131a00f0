"""The same change beside a weight instead of in it: what an adapter that is not fused computes, for any layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def beside(changes: Iterable[tuple[nn.Module, torch.Tensor | None, torch.Tensor | None]]) -> Iterator[None]:
    """Within the block every module adds what (its change of the weight, of the bias) makes of its input.

    All layers that adapters change are linear in weight and bias together: linear layers, convolutions, embeddings,
    and norms, whose input is normalised first. The changes have the dtype and device of the weights.
    """
    with ExitStack() as stack:
        for module, weight, bias in changes:
            stack.callback(_hooked(module, weight, bias).remove)
        yield


def _hooked(module: nn.Module, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Any:
    import torch
    from torch import nn

    side = copy.copy(module)  # the same settings, without a copy of the weight
    held: Any = module.weight
    side._parameters = {
        "weight": nn.Parameter(torch.zeros_like(held) if weight is None else weight, requires_grad=False),
    }
    if "bias" in module._parameters:
        changed = None if bias is None else nn.Parameter(bias, requires_grad=False)
        if changed is None and isinstance(module.bias, torch.Tensor) and type(module).__name__.endswith("Norm"):
            changed = nn.Parameter(torch.zeros_like(module.bias), requires_grad=False)
        side._parameters["bias"] = changed
    side._forward_hooks = type(module._forward_hooks)()
    side._forward_pre_hooks = type(module._forward_pre_hooks)()

    def add(_module: nn.Module, given: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        side.to(output.device)  # an offloaded model has moved since
        added: torch.Tensor = side(*given)
        return output + added

    return module.register_forward_hook(add)
