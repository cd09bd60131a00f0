"""Adapters spelt as kohya's trainers spell them: the module list flattened, lora_down / lora_up, an alpha tensor each.

The names come from the model's own module list. SDXL's come from its checkpoint layout, walked block by block, and
Flux' from the fused layers of its first release. Nothing of loratools takes part.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.judges.by_peft import SCALES, Choose
from tests.judges.fresh import fresh
from tests.judges.truth import CLIP_LEVEL, CLIP_TOPS, Place, Truth, place, spread, weights

TEXT_PREFIX = {
    "sd1": {"text_encoder": "lora_te"},
    "sd2": {"text_encoder": "lora_te"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "flux1": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
}

SGM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}

SGM_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}

FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}


@dataclass(frozen=True)
class Layer:
    """One pair of factors to make: its flat name, its weight's shape, and which rows go to which canonical place."""

    stem: str
    shape: tuple[int, ...]
    parts: tuple[tuple[Place, int], ...]


def make(
    pipeline_folder: Path,
    out: Path,
    *,
    architecture: str,
    components: Mapping[str, Choose | None],
    most: int | None = None,
    scales: Sequence[tuple[int, int]] = SCALES,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Truth:
    """A kohya file over `components`, (rank, alpha) dealt out from `scales`; the truth is the float64 product."""
    pipeline = fresh(pipeline_folder)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    deltas: dict[Place, torch.Tensor] = {}
    for component, choose in components.items():
        found = list(layers(architecture, component, getattr(pipeline, component), choose))
        chosen = spread([layer.stem for layer in found], most)
        dealt = dict(zip(chosen, itertools.cycle(scales), strict=False))
        for layer in found:
            if layer.stem not in dealt:
                continue
            rank, alpha = dealt[layer.stem]
            wide, kernel = layer.shape[1], layer.shape[2:]
            ones = (1,) * len(kernel)
            down = (torch.randn((rank, wide, *kernel), generator=generator) / wide**0.5).to(dtype)
            up = (torch.randn((layer.shape[0], rank, *ones), generator=generator) / rank).to(dtype)
            tensors[f"{layer.stem}.alpha"] = torch.tensor(float(alpha), dtype=dtype)
            tensors[f"{layer.stem}.lora_down.weight"] = down
            tensors[f"{layer.stem}.lora_up.weight"] = up
            delta = alpha / rank * up.double().flatten(1) @ down.double().flatten(1)
            for (where, rows), piece in zip(layer.parts, delta.split([rows for _, rows in layer.parts]), strict=True):
                deltas[where] = piece.reshape(rows, *layer.shape[1:])
    save_file(tensors, out, metadata={"ss_network_module": "networks.lora"})
    return Truth(out, architecture, deltas)


def layers(architecture: str, component: str, model: nn.Module, choose: Choose | None) -> Iterator[Layer]:
    """The layers that a trainer would adapt in one component."""
    modules: dict[str, Any] = {path: part for path, part in weights(model).items() if choose is None or choose(path)}
    if component == "transformer":
        yield from _flux_layers(modules)
        return
    for path, module in modules.items():
        shape = tuple(module.weight.shape)
        yield Layer(_stem(architecture, component, path), shape, ((place(component, path), shape[0]),))


def _stem(architecture: str, component: str, path: str) -> str:
    if component == "unet":
        name = sgm_path(path) if architecture == "sdxl" else path
        return f"lora_unet_{name}".replace(".", "_")
    name = CLIP_LEVEL + path if path.startswith(CLIP_TOPS) else path
    return f"{TEXT_PREFIX[architecture][component]}_{name}".replace(".", "_")


def sgm_path(path: str) -> str:
    """The checkpoint's name of one module of the SDXL UNet (three levels, two resnets each, depths 0, 2, 10)."""
    if path in SGM_ENDS:
        return SGM_ENDS[path]
    words = path.split(".")
    if words[0] == "mid_block":
        kind, number, rest = words[1], int(words[2]), ".".join(words[3:])
        slot = 1 if kind == "attentions" else 2 * number
        return f"middle_block.{slot}.{SGM_RESNET.get(rest, rest)}"
    level, kind, number, rest = int(words[1]), words[2], int(words[3]), ".".join(words[4:])
    if kind == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.2.conv"
    blocks, block = (
        ("input_blocks", 3 * level + number + 1) if words[0] == "down_blocks" else ("output_blocks", 3 * level + number)
    )
    return f"{blocks}.{block}.{int(kind == 'attentions')}.{SGM_RESNET.get(rest, rest)}"


def _flux_layers(modules: dict[str, Any]) -> Iterator[Layer]:
    for ours, theirs, table in (
        ("transformer_blocks", "double_blocks", FLUX_DOUBLE),
        ("single_transformer_blocks", "single_blocks", FLUX_SINGLE),
    ):
        numbers = sorted({int(path.split(".")[1]) for path in modules if path.startswith(f"{ours}.")})
        for number, (native, parts) in itertools.product(numbers, table.items()):
            paths = [f"{ours}.{number}.{part}" for part in parts]
            if not all(path in modules for path in paths):
                continue
            rows = [modules[path].weight.shape[0] for path in paths]
            stem = f"lora_unet_{theirs}_{number}_{native}".replace(".", "_")
            places = tuple((place("transformer", path), count) for path, count in zip(paths, rows, strict=True))
            yield Layer(stem, (sum(rows), modules[paths[0]].weight.shape[1]), places)
