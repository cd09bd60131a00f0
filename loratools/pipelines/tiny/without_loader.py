"""Tiny pipelines that diffusers has no loader of adapters for: PixArt-Σ, and the two halves of Kandinsky 2.2."""

from __future__ import annotations

from loratools.pipelines.parts import Blueprint, Part
from loratools.pipelines.tiny.autoencoders import PIXELS, kl
from loratools.pipelines.tiny.encoders import CLIP, clip, t5, t5_tokenizer

_TEXT = 32

PIXART = Blueprint(
    architecture="pixart",
    pipeline="PixArtSigmaPipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "PixArtTransformer2DModel",
            {
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 2,
                "cross_attention_dim": 32,
                "sample_size": 32,
                "caption_channels": _TEXT,
                "use_additional_conditions": False,
            },
        ),
        t5("text_encoder", _TEXT),
        kl(4, 0.13025),
        Part("scheduler", "diffusers", "DPMSolverMultistepScheduler", {"beta_start": 0.0001, "beta_end": 0.02}),
    ),
    tokenizers={"tokenizer": t5_tokenizer(300)},
)

_PICTURE = 32
"""The width of a picture's embedding, which the prior makes and the decoder paints."""

KANDINSKY22_DECODER = Blueprint(
    architecture="kandinsky2.2",
    pipeline="KandinskyV22Pipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "unet",
            "diffusers",
            "UNet2DConditionModel",
            {
                "in_channels": 4,
                "out_channels": 8,
                "sample_size": 8,
                "block_out_channels": (16, 32, 48, 48),
                "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
                "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
                "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
                "layers_per_block": 3,
                "norm_num_groups": 8,
                "attention_head_dim": 8,
                "cross_attention_dim": 32,
                "encoder_hid_dim": _PICTURE,
                "encoder_hid_dim_type": "image_proj",
                "addition_embed_type": "image",
                "resnet_time_scale_shift": "scale_shift",
            },
        ),
        Part(
            "movq",
            "diffusers",
            "VQModel",
            {
                "down_block_types": (*("DownEncoderBlock2D",) * 3, "AttnDownEncoderBlock2D"),
                "up_block_types": ("AttnUpDecoderBlock2D", *("UpDecoderBlock2D",) * 3),
                "block_out_channels": (32,) * 4,  # its norms have 32 groups in any case
                "layers_per_block": 2,
                "latent_channels": 4,
                "vq_embed_dim": 4,
                "num_vq_embeddings": 32,
                "norm_type": "spatial",
            },
        ),
        Part(
            "scheduler",
            "diffusers",
            "DDPMScheduler",
            {
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "clip_sample_range": 2.0,
                "sample_max_value": 2.0,
                "thresholding": True,
                "variance_type": "learned_range",
            },
        ),
    ),
    tokenizers={},
)

KANDINSKY22_PRIOR = Blueprint(
    architecture="kandinsky2.2",
    variant="prior",
    pipeline="KandinskyV22PriorPipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "prior",
            "diffusers",
            "PriorTransformer",
            {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "embedding_dim": _PICTURE},
        ),
        clip("text_encoder", _PICTURE, projection=_PICTURE, activation="gelu", with_projection=True),
        Part(
            "image_encoder",
            "transformers",
            "CLIPVisionModelWithProjection",
            {
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "projection_dim": _PICTURE,
            },
        ),
        Part(
            "image_processor",
            "transformers",
            "CLIPImageProcessor",
            {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
        ),
        Part(
            "scheduler",
            "diffusers",
            "UnCLIPScheduler",
            {"variance_type": "fixed_small_log", "prediction_type": "sample", "clip_sample_range": 10.0},
        ),
    ),
    tokenizers={"tokenizer": CLIP},
)
