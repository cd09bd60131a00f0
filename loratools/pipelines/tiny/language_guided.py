"""Tiny pipelines whose prompt is read by a language model: Qwen-Image, Z-Image, Sana."""

from __future__ import annotations

from loratools.pipelines.parts import Blueprint, Part
from loratools.pipelines.tiny.autoencoders import PIXELS, causal, flux
from loratools.pipelines.tiny.encoders import GEMMA, QWEN, language_model

_TEXT = 32

QWEN_IMAGE = Blueprint(
    architecture="qwen-image",
    pipeline="QwenImagePipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "QwenImageTransformer2DModel",
            {
                "num_layers": 2,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": _TEXT,
                "axes_dims_rope": (4, 6, 6),
            },
        ),
        Part(
            "text_encoder",
            "transformers",
            "Qwen2_5_VLForConditionalGeneration",
            {
                "text_config": {
                    **language_model(_TEXT),
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
                },
                "vision_config": {
                    "depth": 1,
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_heads": 2,
                    "out_hidden_size": _TEXT,
                    "fullatt_block_indexes": [0],
                },
            },
        ),
        causal("AutoencoderKLQwenImage"),
        Part(
            "scheduler",
            "diffusers",
            "FlowMatchEulerDiscreteScheduler",
            {"use_dynamic_shifting": True, "max_shift": 0.9, "shift_terminal": 0.02},
        ),
    ),
    tokenizers={"tokenizer": QWEN},
)

Z_IMAGE = Blueprint(
    architecture="z-image",
    pipeline="ZImagePipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "ZImageTransformer2DModel",
            {
                "dim": 32,
                "n_layers": 2,
                "n_heads": 2,
                "n_kv_heads": 2,
                "cap_feat_dim": _TEXT,
                "axes_dims": [4, 6, 6],
            },
        ),
        Part("text_encoder", "transformers", "Qwen3Model", language_model(_TEXT)),
        flux(),
        Part("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ),
    tokenizers={"tokenizer": QWEN},
)

_STAGES = (8, 8, 16, 16, 32, 32)  # the last one as wide as the latents, or wider
_SANA_AUTOENCODER = {
    "attention_head_dim": 8,
    "encoder_block_types": (*("ResBlock",) * 3, *("EfficientViTBlock",) * 3),
    "decoder_block_types": (*("ResBlock",) * 3, *("EfficientViTBlock",) * 3),
    "encoder_block_out_channels": _STAGES,
    "decoder_block_out_channels": _STAGES,
    "encoder_layers_per_block": (1,) * 6,
    "decoder_layers_per_block": (1,) * 6,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "scaling_factor": 0.41407,
}

SANA = Blueprint(
    architecture="sana",
    pipeline="SanaPipeline",
    pixels=4 * PIXELS,  # a thirty-second of it is left of each side
    parts=(
        Part(
            "transformer",
            "diffusers",
            "SanaTransformer2DModel",
            {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 2,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 16,
                "cross_attention_dim": 32,
                "caption_channels": _TEXT,
                "sample_size": 16,
            },
        ),
        Part("text_encoder", "transformers", "Gemma2Model", language_model(_TEXT, query_pre_attn_scalar=8)),
        Part("vae", "diffusers", "AutoencoderDC", _SANA_AUTOENCODER),
        Part(
            "scheduler",
            "diffusers",
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
    ),
    tokenizers={"tokenizer": GEMMA},
)
