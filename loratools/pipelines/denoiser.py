"""The models that remove noise: what they are given at every step, and what they make of the same inputs again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from loratools.errors import UnsupportedFile
from loratools.pipelines.parts import DENOISERS

if TYPE_CHECKING:
    import torch
    from torch import nn

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""What one step gave a model: the model's name, positional and named inputs, tensors on the CPU."""


def denoisers_of(pipeline: Any) -> Mapping[str, nn.Module]:
    """The models by name, of which two may share the steps; raises UnsupportedFile for a pipeline without any."""
    models = {name: getattr(pipeline, name, None) for name in DENOISERS}
    found = {name: model for name, model in models.items() if model is not None}
    if not found:
        names = ", ".join(DENOISERS)
        raise UnsupportedFile(f"a {type(pipeline).__name__} has no model that denoises", hint=f"one of {names}")
    return found


@contextmanager
def recorded(models: Mapping[str, nn.Module]) -> Iterator[list[Call]]:
    """The inputs of every call of the models within the block, in order, as copies on the CPU."""
    calls: list[Call] = []
    with ExitStack() as handles:
        for name, model in models.items():

            def keep(_model: Any, given: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
                calls.append((name, _each(given, _copied), _each(named, _copied)))

            handles.callback(model.register_forward_pre_hook(keep, with_kwargs=True).remove)
        yield calls


def replay(models: Mapping[str, nn.Module], calls: Sequence[Call]) -> list[torch.Tensor]:
    """What the models make of recorded inputs, one tensor a call, float32 on the CPU."""
    import torch

    found: list[torch.Tensor] = []
    with torch.no_grad():
        for name, given, named in calls:
            device = next(models[name].parameters()).device
            there: Callable[[torch.Tensor], torch.Tensor] = partial(_moved, device=device)
            first = models[name](*_each(given, there), **_each(named, there))[0]
            whole = torch.stack(list(first)) if isinstance(first, list | tuple) else first  # some make a list of them
            found.append(whole.detach().to("cpu", torch.float32))
    return found


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device)


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
