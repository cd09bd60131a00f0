"""Tiny HunyuanDiT: as deep as the real one, since the blocks after the middle take in what the earlier ones saw."""

from __future__ import annotations

from loratools.pipelines.parts import Blueprint, Part, Tokenizer
from loratools.pipelines.tiny.autoencoders import PIXELS, kl
from loratools.pipelines.tiny.encoders import t5, t5_tokenizer

_BERT = 24
_T5 = 32
_VOCABULARY = 512
"""The marks, the characters at the beginning of a word and within it, and some runs of letters."""
_LENGTHS = (77, 256)
"""The tokens of a text, as BERT and T5 are given it."""

HUNYUAN_DIT = Blueprint(
    architecture="hunyuan-dit",
    pipeline="HunyuanDiTPipeline",
    pixels=PIXELS,
    parts=(
        Part(
            "transformer",
            "diffusers",
            "HunyuanDiT2DModel",
            {
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "hidden_size": 16,
                "num_layers": 40,
                "in_channels": 4,
                "patch_size": 2,
                "sample_size": 8,
                "cross_attention_dim": _BERT,
                "cross_attention_dim_t5": _T5,
                "pooled_projection_dim": 16,
                "text_len": _LENGTHS[0],
                "text_len_t5": _LENGTHS[1],
            },
        ),
        Part(
            "text_encoder",
            "transformers",
            "BertModel",
            {
                "vocab_size": _VOCABULARY,
                "hidden_size": _BERT,
                "intermediate_size": 2 * _BERT,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": _LENGTHS[0],
            },
        ),
        t5("text_encoder_2", _T5),
        kl(4, 0.13025),
        Part(
            "scheduler",
            "diffusers",
            "DDPMScheduler",
            {
                "beta_start": 0.00085,
                "beta_end": 0.018,
                "beta_schedule": "scaled_linear",
                "clip_sample": False,
                "prediction_type": "v_prediction",
                "steps_offset": 1,
            },
        ),
    ),
    tokenizers={
        "tokenizer": Tokenizer("bert", _VOCABULARY, length=_LENGTHS[0], padding="[PAD]"),
        "tokenizer_2": t5_tokenizer(_LENGTHS[1]),
    },
    absent=("safety_checker", "feature_extractor"),
    options={"requires_safety_checker": False},
)
