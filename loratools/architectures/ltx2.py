"""LTX-2: pictures and sound in one transformer, and the connectors that bring the prompt to both.

In its own files the connectors stand inside the transformer; diffusers has them as a component beside it.
"""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.ltx_video import ATTENTION, FEED_FORWARD, NORMS
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, renamed, same

BLOCK = "transformer_blocks.{i<48}."
EMBEDDERS = (
    # diffusers                            original
    ("time_embed",                         "adaln_single"),
    ("audio_time_embed",                   "audio_adaln_single"),
    ("prompt_adaln",                       "prompt_adaln_single"),
    ("audio_prompt_adaln",                 "audio_prompt_adaln_single"),
    ("av_cross_attn_video_scale_shift",    "av_ca_video_scale_shift_adaln_single"),
    ("av_cross_attn_audio_scale_shift",    "av_ca_audio_scale_shift_adaln_single"),
    ("av_cross_attn_video_a2v_gate",       "av_ca_a2v_gate_adaln_single"),
    ("av_cross_attn_audio_v2a_gate",       "av_ca_v2a_gate_adaln_single"),
)  # fmt: skip
EMBEDDER = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
ENDS = (("proj_in", "patchify_proj"), ("audio_proj_in", "audio_patchify_proj"))
ENDS_SAME = (
    "caption_projection.linear_1", "caption_projection.linear_2", "audio_caption_projection.linear_1",
    "audio_caption_projection.linear_2", "proj_out", "audio_proj_out",
)  # fmt: skip
ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
GATED = (*ATTENTION, "to_gate_logits")  # 2.3 has gates
PARAMETERS = (
    ("scale_shift_table",                                "scale_shift_table"),
    ("audio_scale_shift_table",                          "audio_scale_shift_table"),
    ("keyframes_abs_pos_embedding",                      "keyframes_abs_pos_embedding"),
    (BLOCK + "scale_shift_table",                        BLOCK + "scale_shift_table"),
    (BLOCK + "audio_scale_shift_table",                  BLOCK + "audio_scale_shift_table"),
    (BLOCK + "prompt_scale_shift_table",                 BLOCK + "prompt_scale_shift_table"),
    (BLOCK + "audio_prompt_scale_shift_table",           BLOCK + "audio_prompt_scale_shift_table"),
    (BLOCK + "video_a2v_cross_attn_scale_shift_table",   BLOCK + "scale_shift_table_a2v_ca_video"),
    (BLOCK + "audio_a2v_cross_attn_scale_shift_table",   BLOCK + "scale_shift_table_a2v_ca_audio"),
)  # fmt: skip

ORIGINAL: tuple[Rule, ...] = (
    *map(same, ENDS_SAME),
    *renamed(ENDS),
    *(rename(f"{ours}.{leaf}", f"{theirs}.{leaf}") for ours, theirs in EMBEDDERS for leaf in EMBEDDER),
    *renamed(PARAMETERS, joint=""),
    *(same(f"{BLOCK}{place}.{leaf}") for place in ATTENTIONS for leaf in GATED),
    *(rename(f"{BLOCK}{place}.{ours}", f"{BLOCK}{place}.{theirs}") for place in ATTENTIONS for ours, theirs in NORMS),
    *(same(f"{BLOCK}{place}.{leaf}") for place in ("ff", "audio_ff") for leaf in FEED_FORWARD),
)

CONNECTORS = (("video_connector.", "video_embeddings_connector."), ("audio_connector.", "audio_embeddings_connector."))
OURS, THEIRS = "transformer_blocks.{i<8}.", "transformer_1d_blocks.{i<8}."
PROJECTIONS = (
    ("text_proj_in",          "text_embedding_projection.aggregate_embed"),
    ("video_text_proj_in",    "text_embedding_projection.video_aggregate_embed"),
    ("audio_text_proj_in",    "text_embedding_projection.audio_aggregate_embed"),
)  # fmt: skip
LAYERS = (*(f"attn1.{leaf}" for leaf in GATED), *(f"ff.{leaf}" for leaf in FEED_FORWARD))

CONNECTED: tuple[Rule, ...] = (
    *renamed(PROJECTIONS),
    *(rename(ours + "learnable_registers", theirs + "learnable_registers", joint="") for ours, theirs in CONNECTORS),
    *(rename(ours + OURS + path, theirs + THEIRS + path) for ours, theirs in CONNECTORS for path in LAYERS),
    *(
        rename(f"{ours}{OURS}attn1.{norm}", f"{theirs}{THEIRS}attn1.{other}")
        for ours, theirs in CONNECTORS
        for norm, other in NORMS
    ),
)

LTX2 = Architecture(
    id="ltx2",
    title="LTX-2",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component(
            "connectors",
            (canonical_naming(CONNECTED, "diffusers"), Naming("original", CONNECTED)),
            short=(),
            inside="original",
        ),
    ),
    variants=(Variant("2.0", "ltx2-2.0"), Variant("2.3", "ltx2-2.3"), Variant("2.5", "ltx2-2.5")),
    kohya="original",
    comfy="original",
    specification=("ltx-2", "ltx2"),
)
