"""Tiny pipelines: the block layout and module names of the real models, with narrow layers; seconds on a CPU."""

from __future__ import annotations

from typing import Any

from loratools.pipelines.parts import Blueprint, Part, Tokenizer

VOCABULARY_CLIP = 514
"""Two symbols for each byte (inside and at the end of a word), then the start and the end of a text."""

VOCABULARY_T5 = 256
"""<pad>, </s>, <unk>, the characters, and some runs of letters."""

PIXELS = 64
"""Height and width at which the tiny pipelines are meant to run."""

_CLIP = Tokenizer("clip", VOCABULARY_CLIP)


def _clip(name: str, hidden: int, *, projection: int, activation: str, with_projection: bool = False) -> Part:
    config = {
        "vocab_size": VOCABULARY_CLIP,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "projection_dim": projection,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": activation,
        "bos_token_id": VOCABULARY_CLIP - 2,
        "eos_token_id": VOCABULARY_CLIP - 1,
        "pad_token_id": VOCABULARY_CLIP - 1,
    }
    return Part(name, "transformers", "CLIPTextModelWithProjection" if with_projection else "CLIPTextModel", config)


def _vae(latents: int, scaling: float, **more: Any) -> Part:
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latents,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "sample_size": PIXELS,
        "scaling_factor": scaling,
        **more,
    }
    return Part("vae", "diffusers", "AutoencoderKL", config)


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
        _clip("text_encoder", 32, projection=32, activation="quick_gelu"),
        _vae(4, 0.18215),
        Part("scheduler", "diffusers", "DDIMScheduler", _DDIM_NOISE),
    ),
    tokenizers={"tokenizer": _CLIP},
    absent=("safety_checker", "feature_extractor", "image_encoder"),
    options={"requires_safety_checker": False},
)

SD2 = Blueprint(
    architecture="sd2",
    pipeline="StableDiffusionPipeline",
    pixels=PIXELS,
    parts=(
        _unet(**_SD_BLOCKS, cross_attention_dim=40, attention_head_dim=(2, 4, 4, 4), use_linear_projection=True),
        _clip("text_encoder", 40, projection=24, activation="gelu"),
        _vae(4, 0.18215),
        Part("scheduler", "diffusers", "DDIMScheduler", _DDIM_NOISE | {"prediction_type": "v_prediction"}),
    ),
    tokenizers={"tokenizer": _CLIP},
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
        _clip("text_encoder", 32, projection=32, activation="quick_gelu"),
        _clip("text_encoder_2", 40, projection=48, activation="gelu", with_projection=True),
        _vae(4, 0.13025),
        Part("scheduler", "diffusers", "EulerDiscreteScheduler", _SD_NOISE | {"timestep_spacing": "leading"}),
    ),
    tokenizers={"tokenizer": _CLIP, "tokenizer_2": _CLIP},
    absent=("feature_extractor", "image_encoder"),
    options={"force_zeros_for_empty_prompt": True},
)

FLUX1 = Blueprint(
    architecture="flux1",
    pipeline="FluxPipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "FluxTransformer2DModel",
            {
                "in_channels": 64,
                "num_layers": 2,
                "num_single_layers": 2,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 40,
                "pooled_projection_dim": 48,
                "guidance_embeds": True,
                "axes_dims_rope": (4, 6, 6),
            },
        ),
        _clip("text_encoder", 48, projection=48, activation="quick_gelu"),
        Part(
            "text_encoder_2",
            "transformers",
            "T5EncoderModel",
            {
                "vocab_size": VOCABULARY_T5,
                "d_model": 40,
                "d_kv": 8,
                "d_ff": 64,
                "num_layers": 2,
                "num_heads": 4,
                "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": False,
            },
        ),
        _vae(16, 0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        Part("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
    ),
    tokenizers={"tokenizer": _CLIP, "tokenizer_2": Tokenizer("t5", VOCABULARY_T5, length=64, padding="<pad>")},
    absent=("feature_extractor", "image_encoder"),
)

TINY = (FLUX1, SD1, SD2, SDXL)
