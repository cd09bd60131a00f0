"""A small LoRA for a pipeline folder, made by peft and written by diffusers: a file that we had no hand in spelling."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

LARGEST_RANK = max(rank for table in (DENOISER, TEXT_ENCODER) for rank, _ in table.values())


def make_demo_adapter(pipeline_folder: Path, out: Path, *, seed: int = 0, variant: str | None = None) -> Path:
    """Write a LoRA for the denoiser and the CLIP text encoders of a pipeline to `out`, a `.safetensors` file.

    Ranks and alphas differ from module to module; the alphas lie in the file's `lora_adapter_metadata`; the dtype is
    the pipeline's. One component is in memory at a time. The same pipeline and seed make the same tensors and metadata.
    """
    import diffusers
    import torch

    index = json.loads((pipeline_folder / "model_index.json").read_text())
    layers: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(seed)
    for name in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        library, class_name = index.get(name) or ("", "")
        if not library or class_name == "T5EncoderModel":  # which diffusers' loader of LoRAs leaves alone
            continue
        model = _component(pipeline_folder / name, library, class_name, variant)
        factors, config = _adapt(model, TEXT_ENCODER if name.startswith("text_encoder") else DENOISER, generator)
        layers |= {f"{name}_lora_layers": factors, f"{name}_lora_adapter_metadata": config}
        del model
        gc.collect()  # a model holds itself in cycles
    getattr(diffusers, index["_class_name"]).save_lora_weights(out.parent, weight_name=out.name, **layers)
    return out


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

    endings = tuple(f".{ending}" for ending in table)
    layers = sorted(name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d)))
    config = LoraConfig(
        target_modules=[name for name in layers if f".{name}".endswith(endings)],
        rank_pattern={ending: rank for ending, (rank, _) in table.items()},
        alpha_pattern={ending: alpha for ending, (_, alpha) in table.items()},
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
