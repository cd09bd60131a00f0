"""Adapters made by peft, written by peft (a folder for each component) or by diffusers (`save_lora_weights`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from tests.judges.fresh import fresh
from tests.judges.truth import Place, Truth, place, spread, weights

SCALES = ((4, 4), (2, 1), (6, 3), (3, 6), (4, 1))
"""(rank, alpha), dealt out in turn where ranks are mixed."""

WRITTEN = ("lora_layers", "lora_adapter_metadata")
"""What diffusers writes of each component."""

Choose = Callable[[str], bool]


def make(
    pipeline_folder: Path,
    out: Path,
    *,
    architecture: str,
    container: Literal["diffusers", "peft"] = "diffusers",
    components: Mapping[str, Choose | None],
    most: int | None = None,
    mixed: bool = True,
    scales: Sequence[tuple[int, int]] = SCALES,
    seed: int = 0,
    **options: Any,
) -> Truth:
    """An adapter over `components` (name → which modules, all where None), at most `most` modules of each.

    `options` go to LoraConfig (use_dora, use_rslora, lora_bias). `out` is a file for the container "diffusers", a
    folder with one folder a component for "peft" (the folder itself where there is one component).
    """
    from diffusers.loaders.lora_base import LoraBaseMixin
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model

    pipeline = fresh(pipeline_folder)
    generator = torch.Generator().manual_seed(seed)
    deltas: dict[Place, torch.Tensor] = {}
    biases: dict[Place, torch.Tensor] = {}
    layers: dict[str, Any] = {}
    for name, choose in components.items():
        model = getattr(pipeline, name)
        suitable = [path for path, part in weights(model).items() if _can_hold(part, options)]
        names = spread([path for path in suitable if choose is None or choose(path)], most)
        dealt = dict(zip(names, itertools.cycle(scales if mixed else scales[:1]), strict=False))
        config = LoraConfig(
            r=scales[0][0],
            lora_alpha=scales[0][1],
            target_modules=names,
            rank_pattern={f"^{path}": rank for path, (rank, _) in dealt.items() if rank != scales[0][0]},
            alpha_pattern={f"^{path}": alpha for path, (_, alpha) in dealt.items() if alpha != scales[0][1]},
            init_lora_weights=False,
            **options,
        )
        wrapped: Any = get_peft_model(model, config) if container == "peft" else None
        if wrapped is None:
            inject_adapter_in_model(config, model)
        randomise(model, generator)
        if container == "peft":
            wrapped.save_pretrained(str(out / name if len(components) > 1 else out))
        else:
            factors = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
            layers[f"{name}_lora_layers"] = factors
            layers[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
        for path, (weight, bias) in merged_changes(model).items():
            deltas[place(name, path)] = weight
            if bias is not None:
                biases[place(name, path)] = bias
    if container == "diffusers" and hasattr(pipeline, "save_lora_weights"):
        pipeline.save_lora_weights(out.parent, weight_name=out.name, **layers)
    elif container == "diffusers":  # a pipeline without a loader has no writer either: what the others' write with
        layers_and_settings = ({name: layers[f"{name}_{what}"] for name in components} for what in WRITTEN)
        LoraBaseMixin._save_lora_weights(out.parent, *layers_and_settings, weight_name=out.name)
    return Truth(out, architecture, deltas, biases)


def _can_hold(module: Any, options: Mapping[str, Any]) -> bool:
    """peft cannot merge a LoRA with a bias into a layer without one."""
    return module.bias is not None or not options.get("lora_bias")


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that peft put in, by the path of the module they replaced."""
    return {
        path.removeprefix("base_model.model."): module
        for path, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
    }


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Seeded factors of about a third of the weight's norm; magnitudes and biases moved off their start."""
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            down, up = layer.lora_A["default"], layer.lora_B["default"]
            for factor in (down.weight, up.weight):
                factor.copy_(torch.randn(factor.shape, generator=generator))
            if up.bias is not None:
                up.bias.copy_(torch.randn(up.bias.shape, generator=generator))
            delta = layer.get_delta_weight("default")
            up.weight.mul_(layer.get_base_layer().weight.norm() / (3 * delta.norm()))
            if layer.lora_magnitude_vector:
                magnitude = layer.lora_magnitude_vector["default"].weight
                magnitude.mul_(1 + 0.2 * torch.randn(magnitude.shape, generator=generator))


def merged_changes(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
    """path → the change of weight and bias by peft's own merge, in float64. The model is left merged and double."""
    model.double()
    found: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
    for path, layer in adapted_layers(model).items():
        base = layer.get_base_layer()
        weight = base.weight.detach().clone()
        bias = None if base.bias is None else base.bias.detach().clone()
        layer.merge(adapter_names=["default"])
        moved = None if bias is None or torch.equal(bias, base.bias) else base.bias.detach() - bias
        found[path] = (base.weight.detach() - weight, moved)
    return found
