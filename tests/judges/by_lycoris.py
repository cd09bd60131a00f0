"""Adapters made by lycoris-lora; the truth is what its layers do to probes in their own forward pass, in float64.

`get_diff_weight` and `merge_to` are not asked: for LoHa and LoKr they apply alpha / rank twice (lycoris-lora 4.1.3).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.judges.fresh import fresh
from tests.judges.truth import CLIP_LEVEL, Place, Truth, place, spread, weights

KINDS: Mapping[str, dict[str, Any]] = {
    "locon": {"algo": "locon"},
    "locon-tucker": {"algo": "locon", "use_tucker": True},
    "locon-rs": {"algo": "locon", "rs_lora": True},
    "locon-scalar": {"algo": "locon", "use_scalar": True},
    "dora": {"algo": "locon", "weight_decompose": True, "wd_on_out": True},
    "dora-input": {"algo": "locon", "weight_decompose": True, "wd_on_out": False},
    "loha": {"algo": "loha"},
    "loha-tucker": {"algo": "loha", "use_tucker": True},
    "loha-dora": {"algo": "loha", "weight_decompose": True, "wd_on_out": True},
    "lokr": {"algo": "lokr"},
    "lokr-both": {"algo": "lokr", "decompose_both": True, "lora_dim": 1, "conv_lora_dim": 1},
    "lokr-whole": {"algo": "lokr", "full_matrix": True},
    "lokr-tucker": {"algo": "lokr", "use_tucker": True, "lora_dim": 2, "conv_lora_dim": 2},
    "lokr-dora": {"algo": "lokr", "weight_decompose": True, "wd_on_out": True},
    "full": {"algo": "full"},
    "norm": {"algo": "locon", "train_norm": True},
    "ia3": {"algo": "ia3"},
    "ia3-input": {"algo": "ia3", "train_on_input": True},
    "glora": {"algo": "glora"},
    "diag-oft": {"algo": "diag-oft"},
    "diag-oft-rescaled": {"algo": "diag-oft", "rescaled": True},
    "boft": {"algo": "boft", "lora_dim": 8, "conv_lora_dim": 8},
    "dylora": {"algo": "dylora", "block_size": 4},
}
"""Name → options of the lycoris network."""

FLOAT32_INSIDE = ("diag-oft", "diag-oft-rescaled", "boft")
"""Kinds whose layers invert a matrix in float32 and cannot run in float64: their truth is good to about 1e-6."""

UNET = (
    "conv_in",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0.conv1",
    "down_blocks.1.resnets.0.conv_shortcut",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.3.resnets.2.time_emb_proj",
)
UNET_SDXL = (
    "conv_in",
    "down_blocks.1.attentions.0.proj_in",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0.conv_shortcut",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.2.resnets.2.time_emb_proj",
)
UNET_NORMS = (
    "down_blocks.0.attentions.0.norm",
    "down_blocks.0.attentions.0.transformer_blocks.0.norm2",
    "up_blocks.3.resnets.2.norm1",
)
TEXT = (
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.1.mlp.fc1",
    "text_model.encoder.layers.1.mlp.fc2",
)
TEXT_NORMS = ("text_model.encoder.layers.0.layer_norm1", "text_model.final_layer_norm")


DENOISERS = ("unet", "transformer", "prior")
WITH_TEXT = ("sd1", "sd2", "sdxl")
"""The architectures whose files are also of a text encoder."""
MOST = 8
"""The layers of a transformer that a file is of."""


class _Nested(nn.Module):
    """A CLIP whose modules are reached through `text_model`, as every trainer's file spells them."""

    def __init__(self, text_model: nn.Module) -> None:
        super().__init__()
        self.text_model = text_model


def make(pipeline_folder: Path, out: Path, kind: str, *, architecture: str = "sd1", seed: int = 0) -> Truth:
    """A file of `kind` (a key of KINDS) over some modules of a tiny UNet and its text encoder, or of a transformer."""
    pipeline = fresh(pipeline_folder)
    sdxl, denoiser = architecture == "sdxl", next(name for name in DENOISERS if hasattr(pipeline, name))
    models: dict[str, Any] = {"unet": getattr(pipeline, denoiser)}
    if architecture in WITH_TEXT:
        models["text_encoder"] = _nested(pipeline.text_encoder)
        chosen: Sequence[str] = UNET_SDXL if sdxl else UNET
    else:
        chosen = spread([path for path, part in weights(models["unet"]).items() if isinstance(part, nn.Linear)], MOST)
    network = create_network(models, kind, unet=chosen)
    modules: dict[str, tuple[str, str, Any]] = {}
    for part, component, prefix in (("unet", denoiser, "lora_unet_"), ("text_encoder", "text_encoder", "lora_te_")):
        for path, module in models[part].named_modules() if part in models else ():
            modules[prefix + path.replace(".", "_")] = (component, path, module)

    generator = torch.Generator().manual_seed(seed)
    for part in (*models.values(), *network.loras):
        part.requires_grad_(False).eval()
    for lora in network.loras:
        _randomise(lora, generator)
    if kind not in FLOAT32_INSIDE:
        for part in (*models.values(), *network.loras):
            part.double()

    deltas: dict[Place, torch.Tensor] = {}
    biases: dict[Place, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for lora in network.loras:
        component, path, module = modules[lora.lora_name]
        delta, bias = _full(lora) if KINDS[kind]["algo"] == "full" else _effect(lora, module, kind)
        deltas[place(component, path)] = delta
        if bias is not None:
            biases[place(component, path)] = bias
        for leaf, tensor in lora.state_dict().items():
            data = tensor.detach()
            name = lora.lora_name.replace("lora_te_", "lora_te1_") if sdxl else lora.lora_name
            tensors[f"{name}.{leaf}"] = (data.float() if data.is_floating_point() else data).contiguous().clone()
    save_file(tensors, out, metadata={"ss_network_module": "lycoris.kohya"})
    return Truth(out, architecture, deltas, biases)


def create_network(models: Mapping[str, nn.Module], kind: str, *, unet: Sequence[str] = UNET) -> Any:
    """The lycoris network of `kind` over `unet` and TEXT; targets are set each time, as lycoris keeps them globally."""
    from lycoris.kohya import LycorisNetworkKohya

    norm = bool(KINDS[kind].get("train_norm"))
    algo = KINDS[kind]["algo"]
    LycorisNetworkKohya.apply_preset(
        {
            "enable_conv": True,
            "unet_target_module": [],
            "unet_target_name": [re.escape(path) + "$" for path in (UNET_NORMS if norm else unet)],
            "text_encoder_target_module": [],
            "text_encoder_target_name": [re.escape(path) + "$" for path in (TEXT_NORMS if norm else TEXT)],
            "module_algo_map": {},
            "name_algo_map": {},
            "use_fnmatch": False,
            "exclude_name": [],
        }
    )
    settings = {"lora_dim": 4, "conv_lora_dim": 4, "alpha": 2, "conv_alpha": 1} | KINDS[kind]
    settings.pop("algo")
    return LycorisNetworkKohya(models.get("text_encoder", []), models["unet"], network_module=algo, **settings)


def _nested(text_encoder: nn.Module) -> nn.Module:
    return text_encoder if hasattr(text_encoder, CLIP_LEVEL.rstrip(".")) else _Nested(text_encoder)


def _randomise(lora: Any, generator: torch.Generator) -> None:
    for name, parameter in lora.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "scalar":
            parameter.fill_(0.75)
        elif name in ("dora_scale", "rescale"):
            parameter.mul_(1 + 0.2 * noise)
        elif name in ("oft_blocks", "weight", "bias", "w_norm", "b_norm"):
            parameter.copy_(0.1 * noise)
        else:
            parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)


def _effect(lora: Any, module: Any, kind: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        return _norm_effect(lora, module)
    if kind == "dylora":
        # Its forward pass draws a random rank; every reader of its file applies all of it, at alpha / rank.
        factors = lora.state_dict()
        product = factors["lora_up.weight"].flatten(1) @ factors["lora_down.weight"].flatten(1)
        return (lora.alpha / lora.lora_dim * product).reshape(module.weight.shape).detach(), None
    if isinstance(module, nn.Linear):
        probes = torch.eye(module.in_features, dtype=module.weight.dtype)
        return (lora(probes) - lora.org_forward(probes)).double().T, None
    return _convolution_effect(lora, module), None


def _convolution_effect(lora: Any, module: nn.Conv2d) -> torch.Tensor:
    """Output pixel (1, 1) sees the kernel's element (y, x) at input pixel stride − padding + (y, x)."""
    height, width = module.kernel_size
    start = module.stride[0] - int(module.padding[0])
    size = module.stride[0] + max(height, width)
    wide = module.in_channels
    probes = torch.zeros(wide, height, width, wide, size, size, dtype=module.weight.dtype)
    for channel in range(wide):
        for y in range(height):
            for x in range(width):
                probes[channel, y, x, channel, start + y, start + x] = 1
    probes = probes.flatten(0, 2)
    seen = (lora(probes) - lora.org_forward(probes))[:, :, 1, 1]
    return seen.double().T.reshape(module.weight.shape)


def _norm_effect(lora: Any, module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The change of scale and shift, from a least-squares line through each channel's outputs."""
    channels = module.weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    convolutional = isinstance(module, nn.GroupNorm)
    shape = (64, channels, 2, 2) if convolutional else (64, channels)
    probes = torch.randn(shape, generator=generator, dtype=torch.float64)
    before, after = lora.org_forward(probes), lora(probes)
    if convolutional:
        before, after = (tensor.movedim(1, -1).reshape(-1, channels) for tensor in (before, after))
    plain = (before - module.bias) / module.weight
    change = after - before
    scale = ((change - change.mean(0)) * plain).sum(0) / ((plain - plain.mean(0)) * plain).sum(0)
    return scale, change.mean(0) - scale * plain.mean(0)


def _full(lora: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A full difference is weight minus original only once the network is applied; before, it is the difference."""
    change, bias = lora.weight.detach().clone(), None if lora.bias is None else lora.bias.detach().clone()
    lora.apply_to()
    return change, bias
