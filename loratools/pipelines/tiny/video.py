"""Tiny pipelines that make films: Wan 2.1 and 2.2, HunyuanVideo, LTX-Video."""

from __future__ import annotations

from loratools.pipelines.parts import Blueprint, Part
from loratools.pipelines.tiny.autoencoders import PIXELS, causal
from loratools.pipelines.tiny.encoders import CLIP, LLAMA, clip, language_model, t5, t5_tokenizer

_TEXT = 32


def _wan(name: str) -> Part:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": _TEXT,
        "freq_dim": 32,
        "ffn_dim": 48,
        "num_layers": 2,
    }
    return Part(name, "diffusers", "WanTransformer3DModel", config)


_WAN_BESIDE = (
    t5("text_encoder", _TEXT, "UMT5EncoderModel"),
    causal("AutoencoderKLWan"),
    Part(
        "scheduler",
        "diffusers",
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
)

WAN21 = Blueprint(
    architecture="wan2.1",
    pipeline="WanPipeline",
    pixels=PIXELS,
    parts=(_wan("transformer"), *_WAN_BESIDE),
    tokenizers={"tokenizer": t5_tokenizer(512)},
    absent=("transformer_2",),
    frames=5,
)

WAN22 = Blueprint(
    architecture="wan2.2",
    pipeline="WanPipeline",
    pixels=PIXELS,
    parts=(_wan("transformer"), _wan("transformer_2"), *_WAN_BESIDE),
    tokenizers={"tokenizer": t5_tokenizer(512)},
    options={"boundary_ratio": 0.875},
    frames=5,
)

HUNYUAN_VIDEO = Blueprint(
    architecture="hunyuan-video",
    pipeline="HunyuanVideoPipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "HunyuanVideoTransformer3DModel",
            {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 2,
                "num_single_layers": 2,
                "text_embed_dim": _TEXT,
                "pooled_projection_dim": 32,
                "rope_axes_dim": (4, 6, 6),
            },
        ),
        # The pipeline reads what Llama holds two layers before its last.
        Part("text_encoder", "transformers", "LlamaModel", language_model(_TEXT, 4)),
        clip("text_encoder_2", 32, projection=32, activation="quick_gelu"),
        Part(
            "vae",
            "diffusers",
            "AutoencoderKLHunyuanVideo",
            {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 4},
        ),
        Part("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 7.0}),
    ),
    tokenizers={"tokenizer": LLAMA, "tokenizer_2": CLIP},
    frames=5,
)

LTX_VIDEO = Blueprint(
    architecture="ltx-video",
    pipeline="LTXPipeline",
    pixels=2 * PIXELS,  # a thirty-second of it is left of each side
    parts=(
        Part(
            "transformer",
            "diffusers",
            "LTXVideoTransformer3DModel",
            {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "cross_attention_dim": 32,
                "num_layers": 2,
                "caption_channels": _TEXT,
            },
        ),
        t5("text_encoder", _TEXT),
        Part(
            "vae",
            "diffusers",
            "AutoencoderKLLTXVideo",
            {
                "block_out_channels": (8, 8, 8, 8),
                "decoder_block_out_channels": (8, 8, 8, 8),
                "layers_per_block": (1,) * 5,
                "decoder_layers_per_block": (1,) * 5,
            },
        ),
        Part(
            "scheduler",
            "diffusers",
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1},
        ),
    ),
    tokenizers={"tokenizer": t5_tokenizer(128)},
    frames=9,
)
