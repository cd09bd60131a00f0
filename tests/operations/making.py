"""Adapters by sd-scripts' names whose every number a test chooses."""

import torch

from tests.files import save

MODULES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k": (320, 320),
    "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_ff_net_0_proj": (10240, 1280),
    "lora_te_text_model_encoder_layers_3_self_attn_q_proj": (768, 768),
}
QUERY, KEY = list(MODULES)[:2]
QUERY_NAME = "unet:down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
METADATA = {"ss_base_model_version": "sd_v1", "ss_network_dim": "4", "modelspec.title": "a style", "note": "mine"}


def tensors(*, rank=4, alpha=2.0, dtype=torch.float16, seed=0, modules=MODULES):
    """lora_down [rank, in] and lora_up [out, rank] of normal values, and a float32 alpha, for each module."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for stem, (rows, columns) in modules.items():
        found[f"{stem}.lora_down.weight"] = torch.randn(rank, columns, generator=generator).to(dtype)
        found[f"{stem}.lora_up.weight"] = torch.randn(rows, rank, generator=generator).to(dtype)
        found[f"{stem}.alpha"] = torch.tensor(float(alpha))
    return found


def file(path, metadata=None, **how):
    """The same as a file."""
    return save(tensors(**how), path, METADATA if metadata is None else metadata)


def delta(held, stem):
    """The float64 change that a stem of a kohya file makes, formed densely: alpha / rank · up @ down."""
    down, up = held[f"{stem}.lora_down.weight"].double(), held[f"{stem}.lora_up.weight"].double()
    return float(held[f"{stem}.alpha"]) / down.shape[0] * (up @ down)


def same(ours, theirs):
    """Whether two mappings hold the same keys with the same dtypes, shapes and bits."""
    return ours.keys() == theirs.keys() and all(
        ours[key].dtype == theirs[key].dtype
        and ours[key].shape == theirs[key].shape
        and ours[key].contiguous().view(-1).view(torch.uint8).equal(theirs[key].contiguous().view(-1).view(torch.uint8))
        for key in ours
    )
