"""Full-size pipelines: the configurations that Stable Diffusion 1.5, 2.1, XL 1.0 and FLUX.1-dev were published with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratools.pipelines.parts import Blueprint, Part, Tokenizer

# What every published configuration of a class says alike.

_UNET: Mapping[str, Any] = {
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
}
_SD_BLOCKS: Mapping[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}
_VAE: Mapping[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "in_channels": 3,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
_CLIP: Mapping[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,  # as published; transformers then pools at the largest id, which is the real end of text
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
# A scheduler's configuration may hold words of other classes: another scheduler made from it heeds them.
_NOISE: Mapping[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def _unet(**config: Any) -> Part:
    return Part("unet", "diffusers", "UNet2DConditionModel", {**_UNET, **config})


def _vae(latents: int, pixels: int, scaling: float, **more: Any) -> Part:
    config = {"latent_channels": latents, "sample_size": pixels, "scaling_factor": scaling}
    return Part("vae", "diffusers", "AutoencoderKL", {**_VAE, **config, **more})


def _text(
    name: str,
    *,
    width: int,
    depth: int,
    heads: int,
    projection: int,
    activation: str,
    class_name: str = "CLIPTextModel",
) -> Part:
    config = {
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "projection_dim": projection,
    }
    return Part(name, "transformers", class_name, {**_CLIP, **config})


# The parts that several pipelines share.

_CLIP_L = _text("text_encoder", width=768, depth=12, heads=12, projection=768, activation="quick_gelu")
_CLIP_H = _text("text_encoder", width=1024, depth=23, heads=16, projection=512, activation="gelu")
_CLIP_G = _text(
    "text_encoder_2",
    width=1280,
    depth=32,
    heads=20,
    projection=1280,
    activation="gelu",
    class_name="CLIPTextModelWithProjection",
)
_T5_XXL = Part(
    "text_encoder_2",
    "transformers",
    "T5EncoderModel",
    {
        "classifier_dropout": 0.0,
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "num_decoder_layers": 24,
        "num_heads": 64,
        "num_layers": 24,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "vocab_size": 32128,
    },
)
_PNDM = Part("scheduler", "diffusers", "PNDMScheduler", _NOISE)
_TOKENIZER = Tokenizer("clip", 49408)
_PADDED_WITH_ZERO = Tokenizer("clip", 49408, padding="!")
"""OpenCLIP pads with id 0, which is an exclamation mark."""
_UNCHECKED = ("safety_checker", "feature_extractor", "image_encoder")


def _sd2(pixels: int, scheduler: Part, *, upcast_attention: bool) -> Blueprint:
    unet = _unet(
        **_SD_BLOCKS,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        dual_cross_attention=False,
        num_class_embeds=None,
        only_cross_attention=False,
        sample_size=pixels // 8,
        upcast_attention=upcast_attention,
        use_linear_projection=True,
    )
    return Blueprint(
        architecture="sd2",
        pipeline="StableDiffusionPipeline",
        pixels=pixels,
        parts=(unet, _CLIP_H, _vae(4, 768, 0.18215), scheduler),
        tokenizers={"tokenizer": _PADDED_WITH_ZERO},
        absent=_UNCHECKED,
        options={"requires_safety_checker": False},
    )


SD1 = Blueprint(
    architecture="sd1",
    pipeline="StableDiffusionPipeline",
    pixels=512,
    parts=(
        _unet(**_SD_BLOCKS, attention_head_dim=8, cross_attention_dim=768, sample_size=64),
        _CLIP_L,
        _vae(4, 512, 0.18215),
        _PNDM,
    ),
    tokenizers={"tokenizer": _TOKENIZER},
    absent=_UNCHECKED,
    options={"requires_safety_checker": False},
)

SD2 = _sd2(
    768,
    Part("scheduler", "diffusers", "DDIMScheduler", {**_NOISE, "prediction_type": "v_prediction"}),
    upcast_attention=True,
)

SD2_512 = _sd2(
    512,
    Part("scheduler", "diffusers", "PNDMScheduler", {**_NOISE, "prediction_type": "epsilon"}),
    upcast_attention=False,
)

SDXL = Blueprint(
    architecture="sdxl",
    pipeline="StableDiffusionXLPipeline",
    pixels=1024,
    parts=(
        _unet(
            addition_embed_type="text_time",
            addition_embed_type_num_heads=64,
            addition_time_embed_dim=256,
            attention_head_dim=(5, 10, 20),
            block_out_channels=(320, 640, 1280),
            cross_attention_dim=2048,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            projection_class_embeddings_input_dim=2816,
            sample_size=128,
            transformer_layers_per_block=(1, 2, 10),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            upcast_attention=None,
            use_linear_projection=True,
        ),
        _CLIP_L,
        _CLIP_G,
        _vae(4, 1024, 0.13025, force_upcast=True),
        Part(
            "scheduler",
            "diffusers",
            "EulerDiscreteScheduler",
            {
                **_NOISE,
                "interpolation_type": "linear",
                "prediction_type": "epsilon",
                "sample_max_value": 1.0,
                "timestep_spacing": "leading",
                "use_karras_sigmas": False,
            },
        ),
    ),
    tokenizers={"tokenizer": _TOKENIZER, "tokenizer_2": _PADDED_WITH_ZERO},
    absent=("feature_extractor", "image_encoder"),
    options={"force_zeros_for_empty_prompt": True},
)

FLUX1 = Blueprint(
    architecture="flux1",
    pipeline="FluxPipeline",
    pixels=1024,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "FluxTransformer2DModel",
            {
                "attention_head_dim": 128,
                "guidance_embeds": True,
                "in_channels": 64,
                "joint_attention_dim": 4096,
                "num_attention_heads": 24,
                "num_layers": 19,
                "num_single_layers": 38,
                "patch_size": 1,
                "pooled_projection_dim": 768,
            },
        ),
        _CLIP_L,
        _T5_XXL,
        _vae(
            16,
            1024,
            0.3611,
            force_upcast=True,
            mid_block_add_attention=True,
            shift_factor=0.1159,
            use_post_quant_conv=False,
            use_quant_conv=False,
        ),
        Part(
            "scheduler",
            "diffusers",
            "FlowMatchEulerDiscreteScheduler",
            {
                "base_image_seq_len": 256,
                "base_shift": 0.5,
                "max_image_seq_len": 4096,
                "max_shift": 1.15,
                "num_train_timesteps": 1000,
                "shift": 3.0,
                "use_dynamic_shifting": True,
            },
        ),
    ),
    tokenizers={
        "tokenizer": _TOKENIZER,
        "tokenizer_2": Tokenizer("t5", 32100, length=512, padding="<pad>", sentinels=100),
    },
    absent=("feature_extractor", "image_encoder"),
)

FULL = (FLUX1, SD1, SD2, SD2_512, SDXL)
