"""Tiny Stable Cascade: stage C, the prior that diffusers has no loader of adapters for."""

from __future__ import annotations

from loratools.pipelines.parts import Blueprint, Part
from loratools.pipelines.tiny.autoencoders import PIXELS
from loratools.pipelines.tiny.encoders import CLIP, clip

_TEXT = 40

STABLE_CASCADE = Blueprint(
    architecture="stable-cascade",
    pipeline="StableCascadePriorPipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "prior",
            "diffusers",
            "StableCascadeUNet",
            {
                "in_channels": 4,
                "out_channels": 4,
                "timestep_ratio_embedding_dim": 16,
                "conditioning_dim": 24,
                "block_out_channels": (32, 32),
                "num_attention_heads": (2, 2),
                "down_num_layers_per_block": (1, 2),
                "up_num_layers_per_block": (2, 1),
                "clip_text_in_channels": _TEXT,
                "clip_text_pooled_in_channels": _TEXT,
                "clip_image_in_channels": 16,
                "switch_level": (False,),
            },
        ),
        clip("text_encoder", _TEXT, projection=_TEXT, activation="gelu", with_projection=True),
        Part("scheduler", "diffusers", "DDPMWuerstchenScheduler", {}),
    ),
    tokenizers={"tokenizer": CLIP},
    absent=("feature_extractor", "image_encoder"),
    options={"resolution_multiple": 42.67},
)
