"""Tiny Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from typing import Any

from loratools.pipelines.parts import Blueprint, Part
from loratools.pipelines.tiny.autoencoders import PIXELS, kl
from loratools.pipelines.tiny.encoders import CLIP, clip


def _unet(**config: Any) -> Part:
    common = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "norm_num_groups": 8, "sample_size": 8}
    return Part("unet", "diffusers", "UNet2DConditionModel", common | config)


_SD_BLOCKS = {
    "block_out_channels": (16, 32, 48, 48),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}

_SD_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}

_DDIM_NOISE = _SD_NOISE | {"clip_sample": False, "set_alpha_to_one": False}

SD1 = Blueprint(
    architecture="sd1",
    pipeline="StableDiffusionPipeline",
    pixels=PIXELS,
    parts=(
        _unet(**_SD_BLOCKS, cross_attention_dim=32, attention_head_dim=4),
        clip("text_encoder", 32, projection=32, activation="quick_gelu"),
        kl(4, 0.18215),
        Part("scheduler", "diffusers", "DDIMScheduler", _DDIM_NOISE),
    ),
    tokenizers={"tokenizer": CLIP},
    absent=("safety_checker", "feature_extractor", "image_encoder"),
    options={"requires_safety_checker": False},
)

SD2 = Blueprint(
    architecture="sd2",
    pipeline="StableDiffusionPipeline",
    pixels=PIXELS,
    parts=(
        _unet(**_SD_BLOCKS, cross_attention_dim=40, attention_head_dim=(2, 4, 4, 4), use_linear_projection=True),
        clip("text_encoder", 40, projection=24, activation="gelu"),
        kl(4, 0.18215),
        Part("scheduler", "diffusers", "DDIMScheduler", _DDIM_NOISE | {"prediction_type": "v_prediction"}),
    ),
    tokenizers={"tokenizer": CLIP},
    absent=("safety_checker", "feature_extractor", "image_encoder"),
    options={"requires_safety_checker": False},
)

SDXL = Blueprint(
    architecture="sdxl",
    pipeline="StableDiffusionXLPipeline",
    pixels=PIXELS,
    parts=(
        _unet(
            block_out_channels=(16, 24, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(2, 4, 4),
            cross_attention_dim=72,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 48,
        ),
        clip("text_encoder", 32, projection=32, activation="quick_gelu"),
        clip("text_encoder_2", 40, projection=48, activation="gelu", with_projection=True),
        kl(4, 0.13025),
        Part("scheduler", "diffusers", "EulerDiscreteScheduler", _SD_NOISE | {"timestep_spacing": "leading"}),
    ),
    tokenizers={"tokenizer": CLIP, "tokenizer_2": CLIP},
    absent=("feature_extractor", "image_encoder"),
    options={"force_zeros_for_empty_prompt": True},
)
