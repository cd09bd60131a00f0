"""Tiny FLUX.1 and FLUX.2 of Black Forest Labs, and Chroma, which is made of FLUX.1."""

from __future__ import annotations

from loratools.pipelines.parts import Blueprint, Part
from loratools.pipelines.tiny.autoencoders import PIXELS, flux
from loratools.pipelines.tiny.encoders import CLIP, MISTRAL, clip, language_model, t5, t5_tokenizer

_TEXT = 40
_NO_PICTURES = ("feature_extractor", "image_encoder")
_BLOCKS = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 6, 6),
}
_FLOW = Part("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True})

FLUX1 = Blueprint(
    architecture="flux1",
    pipeline="FluxPipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "FluxTransformer2DModel",
            {**_BLOCKS, "joint_attention_dim": _TEXT, "pooled_projection_dim": 48, "guidance_embeds": True},
        ),
        clip("text_encoder", 48, projection=48, activation="quick_gelu"),
        t5("text_encoder_2", _TEXT),
        flux(),
        _FLOW,
    ),
    tokenizers={"tokenizer": CLIP, "tokenizer_2": t5_tokenizer(64)},
    absent=_NO_PICTURES,
)

CHROMA = Blueprint(
    architecture="chroma",
    pipeline="ChromaPipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "ChromaTransformer2DModel",
            {**_BLOCKS, "joint_attention_dim": _TEXT, "approximator_num_channels": 64, "approximator_hidden_dim": 32},
        ),
        t5("text_encoder", _TEXT),
        flux(),
        Part("scheduler", "diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ),
    tokenizers={"tokenizer": t5_tokenizer(512)},
    absent=_NO_PICTURES,
)

_READS = 32
_READ_LAYERS = 31
"""The pipeline reads what Mistral holds after its tenth, twentieth and thirtieth layer."""

FLUX2 = Blueprint(
    architecture="flux2",
    pipeline="Flux2Pipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "Flux2Transformer2DModel",
            {
                **_BLOCKS,
                "in_channels": 128,
                "joint_attention_dim": 3 * _READS,
                "timestep_guidance_channels": 32,
                "axes_dims_rope": (4, 4, 4, 4),
            },
        ),
        Part(
            "text_encoder",
            "transformers",
            "Mistral3ForConditionalGeneration",
            {
                "text_config": {"model_type": "mistral", **language_model(_READS, _READ_LAYERS)},
                "vision_config": {
                    "model_type": "pixtral",
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "image_size": 28,
                    "patch_size": 14,
                },
                "image_token_index": 10,
            },
        ),
        Part(
            "vae",
            "diffusers",
            "AutoencoderKLFlux2",
            {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 8, "sample_size": PIXELS},
        ),
        _FLOW,
    ),
    tokenizers={"tokenizer": MISTRAL},
)
