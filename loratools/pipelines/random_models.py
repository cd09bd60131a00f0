"""Models of a part with seeded random weights, made parameter by parameter: memory is the model's own, in its dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from loratools.pipelines.parts import Part

if TYPE_CHECKING:
    import torch
    from torch import nn

SPREAD_BIAS = 0.05
"""Standard deviation of biases: classes that start them at zero would hide a bias that was lost."""


def make_skeleton(part: Part) -> Any:
    """What `part` describes; a model in evaluation mode, with parameters on the meta device and real buffers."""
    import diffusers
    import torch
    import transformers

    cls = getattr(diffusers if part.library == "diffusers" else transformers, part.class_name)
    if not part.is_model and part.library == "transformers":
        return cls(**part.config)
    if not part.is_model:
        return cls.from_config(dict(part.config))  # keeps words of other classes, for whoever changes the scheduler
    with torch.random.fork_rng(devices=[]), _parameters_on_meta():
        model = cls(**part.config) if part.library == "diffusers" else cls(cls.config_class(**part.config))
    return model.eval()


def fill(model: Any, *, seed: int, dtype: str = "float32", device: str = "cpu") -> None:
    """Give a model on the meta device its weights, drawn in float32 and rounded once to `dtype`.

    Matrices and kernels keep the variance of what goes through them (1 / fan-in), norms lie around one and biases
    around zero, so that every module shows in the picture and half precision does not overflow.
    """
    from torch import nn

    values = drawing(model, seed=seed, dtype=dtype, device=device)
    done: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, empty in list(module._parameters.items()):  # its own, not those of modules within
            if empty is None:
                continue
            if id(empty) not in done:  # tied weights stay one
                done[id(empty)] = nn.Parameter(values(module, name), requires_grad=empty.requires_grad)
            setattr(module, name, done[id(empty)])
    model.to(device)  # its buffers


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(key, module, name) of every parameter in the order in which they are drawn, tied ones once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{name}".lstrip("."), module, name


def drawing(model: nn.Module, *, seed: int, dtype: str, device: str) -> Callable[[nn.Module, str], torch.Tensor]:
    """Draws the values of one parameter after another: the same ones for the same seed and order."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    largest = max(parameter.numel() for parameter in model.parameters())
    # One for all: fresh memory for each would cost more time than the numbers.
    scratch = torch.empty(largest, dtype=torch.float32, device=device)

    def values(module: nn.Module, name: str) -> torch.Tensor:
        empty = module._parameters[name]
        assert empty is not None
        drawn = scratch[: empty.numel()].normal_(generator=generator).view(empty.shape)
        return _spread(drawn, module, name).to(getattr(torch, dtype), copy=True)

    return values


def _spread(values: torch.Tensor, module: nn.Module, name: str) -> torch.Tensor:
    """Standard normal values, in place, as a parameter of that name is spread."""
    from torch import nn

    if name == "bias":
        return values.mul_(SPREAD_BIAS)
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return values.div_(values[0].numel() ** 0.5)
    if values.ndim == 1 or (name == "gamma" and values.numel() == len(values)):  # norms of films have ones behind
        return values.mul_(SPREAD_BIAS).add_(1)
    return values.mul_(0.5)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within the block every parameter that a module registers goes to the meta device, so that none is initialised."""
    import torch
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def moved(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:  # None: as it is
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(moved)
    try:
        yield
    finally:
        handle.remove()
