"""A small LoRA for a pipeline folder, made by peft and written by diffusers: a file that we had no hand in spelling."""

from __future__ import annotations

import gc
import inspect
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.bases.pipeline_index import PIPELINE, components_of
from loratools.pipelines.parts import DENOISERS
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.safetensors_file import open_safetensors

if TYPE_CHECKING:
    import torch

STRENGTH = 0.15
"""How large each delta is, relative to its weight (Frobenius norms)."""

DENOISER: Mapping[str, tuple[int, int]] = {
    "to_q": (4, 4),
    "to_k": (2, 1),
    "to_v": (8, 4),
    "to_out.0": (3, 6),
    "proj_out": (4, 2),
    "net.2": (6, 6),
    # FLUX.2 leaves the rest of a single block fused; Z-Image's and Sana's feed-forwards have names of their own.
    "to_qkv_mlp_proj": (4, 2),
    "attn.to_out": (3, 6),
    "feed_forward.w2": (6, 6),
    "ff.conv_point": (4, 4),
}
"""Ending of a module's path → (rank, alpha); every such linear layer or convolution is adapted."""

TEXT_ENCODER: Mapping[str, tuple[int, int]] = {
    "q_proj": (4, 4),
    "k_proj": (2, 1),
    "v_proj": (3, 6),
    "out_proj": (4, 2),
    "fc1": (8, 4),
}
"""The same for the text encoders."""

LARGE = 1 << 26
"""Bytes of a model that are worth looking for once its adapter is made."""

LARGEST_RANK = max(rank for table in (DENOISER, TEXT_ENCODER) for rank, _ in table.values())


def adapted(pipeline_folder: Path) -> tuple[str, ...]:
    """The components that a demo adapter changes: the denoisers, and the CLIP text encoders that diffusers saves."""
    index = _index(pipeline_folder)
    held = components_of(index)
    saved = _saved(index)
    clips = [name for name in held if f"{name}_lora_layers" in saved and "CLIP" in index[name][1]]
    return (*(name for name in DENOISERS if name in held), *clips)


def make_demo_adapter(pipeline_folder: Path, out: Path, *, seed: int = 0, variant: str | None = None) -> Path:
    """Write a LoRA for the denoisers and the CLIP text encoders of a pipeline to `out`, a `.safetensors` file.

    Ranks and alphas differ from module to module; the alphas lie in the file's `lora_adapter_metadata`; the dtype is
    the pipeline's. One component is in memory at a time. The same pipeline and seed make the same tensors and metadata.
    """
    import diffusers

    index = _index(pipeline_folder)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    configs: dict[str, dict[str, Any]] = {}
    generator = _seeded(seed)
    for name in adapted(pipeline_folder):
        library, class_name = index[name]
        model = _component(pipeline_folder / name, library, class_name, variant)
        rows = TEXT_ENCODER if name.startswith("text_encoder") else DENOISER
        factors[name], configs[name] = _adapt(model, rows, generator)
        is_large = model.get_memory_footprint() > LARGE
        del model
        if is_large:
            gc.collect()  # a model holds itself in cycles
    layers: dict[str, Any] = {f"{name}_lora_layers": held for name, held in factors.items()}
    if layers.keys() <= _saved(index):
        layers |= {f"{name}_lora_adapter_metadata": config for name, config in configs.items()}
        getattr(diffusers, index["_class_name"]).save_lora_weights(out.parent, weight_name=out.name, **layers)
    else:
        _write(out, factors, configs)
    return out


def _write(out: Path, factors: Mapping[str, Mapping[str, torch.Tensor]], configs: Mapping[str, Any]) -> None:
    """Write with diffusers' own writer what the class of the pipeline has no method for."""
    from diffusers.loaders.lora_base import LoraBaseMixin

    tensors: dict[str, Any] = {}
    for name, held in factors.items():
        tensors |= LoraBaseMixin.pack_weights(dict(held), name)
    LoraBaseMixin.write_lora_layers(
        state_dict=tensors,
        save_directory=str(out.parent),
        is_main_process=True,
        weight_name=out.name,
        save_function=None,
        safe_serialization=True,
        lora_adapter_metadata={
            f"{name}.{word}": value for name, config in configs.items() for word, value in config.items()
        },
    )


def _index(pipeline_folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((pipeline_folder / PIPELINE).read_text())
    return found


def _saved(index: Mapping[str, Any]) -> set[str]:
    """What the pipeline's own way of saving adapters takes; nothing where there is none."""
    import diffusers

    save = getattr(getattr(diffusers, index["_class_name"]), "save_lora_weights", None)
    return set(inspect.signature(save).parameters) if save else set()


def _seeded(seed: int) -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(seed)


def _component(folder: Path, library: str, class_name: str, variant: str | None) -> Any:
    """One model of a pipeline, in the dtype of its file."""
    import torch

    weights = open_safetensors(next(iter(sorted(folder.glob("*.safetensors")))))
    dtype = getattr(torch, DTYPES[weights[next(iter(weights))].dtype].torch or "float32")
    cls = getattr(import_module(library), class_name)
    return cls.from_pretrained(folder, local_files_only=True, variant=variant, dtype=dtype)


def _adapt(
    model: Any, table: Mapping[str, tuple[int, int]], generator: torch.Generator
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The factors and the configuration of a random LoRA over the layers whose paths end as `table` says."""
    import torch
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
    from torch import nn

    layers = sorted(name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    ends = {name: next((ending for ending in table if f".{name}".endswith(f".{ending}")), None) for name in layers}
    rows = {ending: row for ending, row in table.items() if ending in ends.values()}
    config = LoraConfig(
        target_modules=[name for name in layers if ends[name]],
        rank_pattern={ending: rank for ending, (rank, _) in rows.items()},
        alpha_pattern={ending: alpha for ending, (_, alpha) in rows.items()},
        init_lora_weights=False,
    )
    inject_adapter_in_model(config, model)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
                for factor in (down, up):
                    factor.copy_(torch.randn(factor.shape, generator=generator) / factor.shape[1] ** 0.5)
                delta = module.get_delta_weight("default").float()
                up.mul_(STRENGTH * module.get_base_layer().weight.float().norm() / delta.norm())
    written = model.peft_config["default"].to_dict()
    # A set would be written in an order that changes from run to run.
    return dict(get_peft_model_state_dict(model)), {**written, "target_modules": sorted(written["target_modules"])}
