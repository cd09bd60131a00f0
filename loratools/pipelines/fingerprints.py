"""Whether anything in a live pipeline changed: a number for each tensor, made of all its bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 22


def fingerprints(pipeline: Any) -> dict[str, int]:
    """`component.name` of every parameter and buffer → its number: equal bits make equal numbers."""
    import torch

    found: dict[str, int] = {}
    for component, model in pipeline.components.items():
        if isinstance(model, torch.nn.Module):
            for name, tensor in model.state_dict().items():
                found[f"{component}.{name}"] = _fingerprint(tensor)
    return found


def names_of(pipeline: Any, tensors: set[int]) -> frozenset[str]:
    """The names of the parameters (by identity) as `fingerprints` has them; a tied one has several."""
    import torch

    return frozenset(
        f"{component}.{name}"
        for component, model in pipeline.components.items()
        if isinstance(model, torch.nn.Module)
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if id(tensor) in tensors
    )


def _fingerprint(tensor: torch.Tensor) -> int:
    """The bits as integers, each times its place within a block and the block's number, summed modulo 2⁶⁴."""
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().reshape(-1).view(integers[tensor.element_size()])
    places = torch.arange(1, min(_BLOCK, len(bits)) + 1, device=bits.device, dtype=torch.int64)
    total = 0
    for at, start in enumerate(range(0, len(bits), _BLOCK), start=1):
        block = bits[start : start + _BLOCK].long()
        total += at * int((block * places[: len(block)]).sum())
    return total % 2**64
