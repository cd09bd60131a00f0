"""Tiny Stable Diffusion 3.5, the medium one: its first block has a second attention."""

from __future__ import annotations

from loratools.pipelines.parts import Blueprint, Part
from loratools.pipelines.tiny.autoencoders import PIXELS, kl
from loratools.pipelines.tiny.encoders import CLIP, clip, t5, t5_tokenizer

_TEXT = 48
"""T5's width, to which the two CLIPs side by side are filled up."""

SD3 = Blueprint(
    architecture="sd3",
    pipeline="StableDiffusion3Pipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "SD3Transformer2DModel",
            {
                "sample_size": 8,
                "num_layers": 3,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": _TEXT,
                "caption_projection_dim": 32,
                "pooled_projection_dim": 16 + 24,
                "pos_embed_max_size": 16,
                "dual_attention_layers": (0,),
                "qk_norm": "rms_norm",
            },
        ),
        clip("text_encoder", 16, projection=16, activation="quick_gelu", with_projection=True),
        clip("text_encoder_2", 24, projection=24, activation="gelu", with_projection=True),
        t5("text_encoder_3", _TEXT),
        kl(16, 1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        Part("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ),
    tokenizers={"tokenizer": CLIP, "tokenizer_2": CLIP, "tokenizer_3": t5_tokenizer(256)},
    absent=("feature_extractor", "image_encoder"),
)
