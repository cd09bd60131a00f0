"""The model that removes noise: what it is given at every step, and what it makes of the same inputs again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loratools.errors import UnsupportedFile

if TYPE_CHECKING:
    import torch
    from torch import nn

NAMES = ("unet", "transformer", "prior", "decoder")
"""Components that denoise, as pipelines call them."""

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What one step gave the model: positional and named inputs, tensors on the CPU."""


def denoiser_of(pipeline: Any) -> tuple[str, nn.Module]:
    """Name and model; raises UnsupportedFile for a pipeline without one."""
    for name in NAMES:
        model = getattr(pipeline, name, None)
        if model is not None:
            return name, model
    raise UnsupportedFile(f"a {type(pipeline).__name__} has no model that denoises", hint=f"one of {', '.join(NAMES)}")


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Call]]:
    """The inputs of every call of a model within the block, as copies on the CPU."""
    calls: list[Call] = []

    def keep(_model: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append((_each(given, _copied), _each(named, _copied)))

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def replay(model: nn.Module, calls: Sequence[Call]) -> list[torch.Tensor]:
    """What the model makes of recorded inputs, one tensor a call, float32 on the CPU."""
    import torch

    device = next(model.parameters()).device
    found: list[torch.Tensor] = []
    with torch.no_grad():
        for given, named in calls:
            made = model(*_each(given, lambda item: item.to(device)), **_each(named, lambda item: item.to(device)))
            first = made[0] if isinstance(made, tuple) else made.sample
            found.append(first.detach().to("cpu", torch.float32))
    return found


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same nest of tuples, lists and dictionaries with every tensor changed."""
    import torch

    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _each(item, change) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_each(item, change) for item in value)
    return value
