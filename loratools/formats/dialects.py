"""The key grammars that are read: what `inspect` calls each, who writes it, and how it is written, where it is."""

from __future__ import annotations

from typing import NamedTuple

AS_IT_WAS = "as it was"
"""Written by `--to original` alone, from the record that a conversion keeps."""
REFUSED = "refused"


class Dialect(NamedTuple):
    """One key grammar; `written` is the id of its format, or one of the words above. `key` is one of its keys."""

    id: str
    title: str
    writers: tuple[str, ...]
    key: str
    written: str = AS_IT_WAS


DIALECTS: tuple[Dialect, ...] = (
    Dialect("animatediff", "motion LoRAs", ("AnimateDiff",),
            "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor."
            "to_q_lora.down.weight"),
    Dialect("bare", "a model's own names, nothing before them", ("Mochi", "ACE-Step", "DiffSynth-Studio"),
            "blocks.0.attn.qkv_x.lora_A"),
    Dialect("bfl", "Black Forest Labs' names, nothing before them; control adapters with biases and norms",
            ("Black Forest Labs", "OneTrainer"), "double_blocks.0.img_attn.qkv.lora_B.bias"),
    Dialect("cloneofsimo", "numbered layers of SD1 and SD2, or a bare list", ("cloneofsimo/lora",), "unet:0:up"),
    Dialect("comfy", "ComfyUI's names", ("ComfyUI", "ai-toolkit", "musubi-tuner", "OneTrainer"),
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight", "comfy"),
    Dialect("diffusers", "diffusers' module names by component",
            ("diffusers", "ai-toolkit", "SimpleTuner", "OneTrainer"),
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "diffusers"),
    Dialect("diffusers-attn-procs", "LoRA inside attention processors (0.12 to 0.16)", ("diffusers",),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight"),
    Dialect("diffusers-old", "LoRA inside layers (0.17 to 0.21)", ("diffusers",),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight"),
    Dialect("gguf", "llama.cpp's names in a GGUF file", ("llama.cpp",), "blk.0.attn_q.weight.lora_a", "gguf"),
    Dialect("hcp", "names by part of a wrapper, the scale itself as a tensor", ("HCP-Diffusion",),
            "denoiser.mid_block.attentions.0.proj_in.___.layer.W_down", "hcp"),
    Dialect("kohya", "flat names, alpha tensors",
            ("sd-scripts", "kohya_ss", "fluxgym", "LyCORIS", "musubi-tuner", "OneTrainer", "LECO"),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "kohya"),
    Dialect("lycoris", "LyCORIS' own wrapper", ("LyCORIS", "SimpleTuner", "ai-toolkit"),
            "lycoris_transformer_blocks_0_attn_to_q.lokr_w1"),
    Dialect("mlx", "transposed factors of language models, one scale", ("mlx-lm",),
            "model.layers.0.self_attn.q_proj.lora_a", "mlx"),
    Dialect("nunchaku", "factors packed for one kernel, joined with what quantisation left over", ("Nunchaku",),
            "transformer_blocks.0.qkv_proj.lora_down", REFUSED),
    Dialect("onetrainer", "diffusers' names with kohya's suffixes", ("OneTrainer",),
            "transformer.transformer_blocks.0.attn.to_q.lora_down.weight"),
    Dialect("peft", "PEFT's names, alone or in folders", ("PEFT", "fal", "mergekit"),
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "peft"),
    Dialect("stable-cascade", "numbered layers of stage C", ("Stability AI",), "weights.0.lora_up"),
    Dialect("xlabs", "processors of Flux", ("XLabs", "USO"), "double_blocks.0.processor.qkv_lora1.down.weight"),
)  # fmt: skip
