"""LoRA factors put into a live model as an adapter of PEFT's, with the scale of every layer, and taken out again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from loratools.errors import InternalError, NotRepresentable
from loratools.pipelines.wrappers import is_stand_in, is_wrapper

if TYPE_CHECKING:
    import torch
    from torch import nn

_FLAG = "_hf_peft_config_loaded"  # how diffusers and transformers remember that a model has adapters


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What one layer of PEFT is to hold: Δ = alpha / rank · up · down.

    `load` makes down [r, in, kernel…] and up [out, r, 1…], or those of an embedding, [r, vocab] and [dim, r]; and
    the bias [out], which alpha / r multiplies too, and DoRA's magnitude [out], where the flags say so.
    """

    rank: int
    alpha: float
    load: Callable[[], Loaded]
    embedding: bool = False
    bias: bool = False
    magnitude: bool = False


class Loaded(NamedTuple):
    """The tensors of one layer."""

    down: torch.Tensor
    up: torch.Tensor
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None


def is_installed() -> bool:
    """Whether PEFT can be imported."""
    return find_spec("peft") is not None


def inject(model: nn.Module, name: str, held: Mapping[str, Factors]) -> None:
    """Add the adapter `name` to a model at scale 1; the adapters that were active stay so.

    `held` are factors by the module's path. All of one call have a bias or none has, and so with magnitudes. Raises
    InternalError where PEFT put them elsewhere.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    first = next(iter(held.values()))
    config = LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,  # a number that is not whole does, too
        target_modules=_exactly(held),
        rank_pattern=_pattern({path: item.rank for path, item in held.items()}),
        alpha_pattern=_pattern({path: item.alpha for path, item in held.items()}),
        lora_bias=first.bias,
        use_dora=first.magnitude,
        init_lora_weights=False,
        inference_mode=True,
    )
    active = {id(layer): list(layer.active_adapters) for layer in _layers(model)}
    stand_ins: list[Any] = [part for part in model.modules() if is_stand_in(part)]
    trained = [(part, list(part.active_adapters)) for part in stand_ins]
    # PEFT draws random numbers for factors that are replaced at once, and marks parameters as trainable.
    with _gradients_kept(model), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, model, adapter_name=name)
        found = {path for path, layer in _named(model) if name in layer._all_available_adapter_names()}
        if found != set(held):
            odd = sorted(found ^ set(held))
            raise InternalError(f"PEFT put the adapter into other layers ({len(odd)})", key=odd[0])
        for path, layer in _named(model):
            if path in held:
                _fill(layer, name, held[path])
                layer.train(layer.get_base_layer().training)
            _activate(layer, [*active.get(id(layer), ()), *([name] if path in held else [])])
        for part, before in trained:
            part.set_adapter(before)
        for key, parameter in model.named_parameters():
            if name in key.split("."):
                parameter.requires_grad_(False)
    if hasattr(model, _FLAG):
        setattr(model, _FLAG, True)


def set_scales(model: nn.Module, name: str, scales: Mapping[str, float]) -> None:
    """Multiply the adapter by these numbers, by path; at 0 it is taken out of the active ones, so that nothing is
    left of it. Raises NotRepresentable where it has gone from the model, or is merged.
    """
    found = dict(_named(model))
    with _gradients_kept(model):
        for path, scale in scales.items():
            layer = found.get(path)
            if layer is None or name not in layer.scaling:
                raise NotRepresentable(f"the adapter {name} has been taken out of {path} by something else", key=path)
            _require_unmerged(path, layer, name)
            layer.set_scale(name, scale)
            others = [other for other in layer.active_adapters if other != name]
            _activate(layer, [*others, name] if scale else others)


def eject(model: nn.Module, name: str) -> None:
    """Take the adapter out; layers without any adapter left become the modules they were put around.

    Raises NotRepresentable where it is merged into the weights.
    """
    require_unmerged(model, name)
    touched = [(path, layer) for path, layer in _named(model) if name in layer._all_available_adapter_names()]
    with _gradients_kept(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path, layer in touched:
            others = [other for other in layer.active_adapters if other != name]
            layer.set_adapter(others)
            layer.delete_adapter(name)
            if not layer._all_available_adapter_names():
                _replace(model, path, layer)
    configs = getattr(model, "peft_config", None)
    if isinstance(configs, dict):
        configs.pop(name, None)
        if not configs and "peft_config" in model.__dict__:
            del model.peft_config
            model.__dict__.pop(_FLAG, None)


def require_unmerged(model: nn.Module, name: str) -> None:
    """Raise NotRepresentable where the adapter is merged into weights."""
    for path, layer in _named(model):
        _require_unmerged(path, layer, name)


def names(model: nn.Module) -> frozenset[str]:
    """The adapters that a model has already."""
    found = set(getattr(model, "peft_config", None) or ())
    return frozenset(found.union(*(layer._all_available_adapter_names() for layer in _layers(model))))


def _require_unmerged(path: str, layer: Any, name: str) -> None:
    if name in layer.merged_adapters:
        raise NotRepresentable(
            f"the adapter {name} is merged into {path}", key=path, hint="unfuse_lora() or unmerge_adapter() first"
        )


def _named(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """PEFT's outermost layers, by the path of the module that each is put around."""
    found = [(path, module) for path, module in model.named_modules() if is_wrapper(module)]
    inside = tuple(f"{path}." for path, _ in found)
    return iter([(path, module) for path, module in found if not path.startswith(inside)])


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if is_wrapper(module)]


def _activate(layer: Any, adapters: list[str]) -> None:
    """Make these adapters run: a DoRA first, as PEFT takes its change from what came out before it."""
    magnitudes = getattr(layer, "lora_magnitude_vector", ())
    layer.set_adapter(sorted(adapters, key=lambda adapter: adapter not in magnitudes))


def _fill(layer: Any, name: str, item: Factors) -> None:
    """Put the factors in the place of PEFT's random ones."""
    import torch

    loaded = item.load()
    weight = getattr(layer.get_base_layer(), "weight", None)
    device = weight.device if isinstance(weight, torch.Tensor) else next(layer.parameters()).device
    dtype = _dtype(weight, (loaded.down, loaded.up))

    def parameter(values: torch.Tensor) -> torch.nn.Parameter:
        made = values.to(dtype).to(device).contiguous()
        return torch.nn.Parameter(made, requires_grad=False)

    if item.embedding:
        layer.lora_embedding_A[name] = parameter(loaded.down)
        layer.lora_embedding_B[name] = parameter(loaded.up)
        return
    layer.lora_A[name].weight = parameter(loaded.down)
    layer.lora_B[name].weight = parameter(loaded.up)
    if loaded.bias is not None:
        layer.lora_B[name].bias = parameter(loaded.bias)
    if loaded.magnitude is not None:
        old = layer.lora_magnitude_vector[name]
        old.weight = parameter(loaded.magnitude.reshape(old.weight.shape))


def _dtype(weight: Any, factors: tuple[torch.Tensor, ...]) -> torch.dtype:
    """The dtype of the layer, if the factors lose no more in it than one rounding; else float32."""
    import torch

    dtype = getattr(weight, "dtype", torch.float32)
    if dtype not in (torch.float16, torch.bfloat16):
        return torch.float64 if dtype == torch.float64 else torch.float32
    limit = torch.finfo(dtype).eps
    for values in factors:
        lost = (values.to(dtype).double() - values.double()).norm()
        if not float(lost) <= limit * float(values.double().norm()):
            return torch.float32
    return dtype


def _exactly(paths: Mapping[str, object]) -> str:
    """An expression for these paths and no others: PEFT takes plain names for endings."""
    return f"(?:{'|'.join(path.replace('.', chr(92) + '.') for path in paths)})"


def _pattern(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers as PEFT's patterns: one expression for each number."""
    groups: dict[Any, dict[str, object]] = {}
    for path, number in numbers.items():
        groups.setdefault(number, {})[path] = None
    return {f"^{_exactly(paths)}": number for number, paths in groups.items()}


def _replace(model: nn.Module, path: str, layer: Any) -> None:
    parent = model.get_submodule(path.rpartition(".")[0])
    setattr(parent, path.rpartition(".")[2], layer.base_layer)


@contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """Within the block PEFT may mark parameters as trainable or not; afterwards those that were there are as before."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, wanted in before:
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
