"""HunyuanImage 2.1: the blocks of HunyuanVideo over pictures. Its own names stand fused and split in its releases."""

from __future__ import annotations

from collections.abc import Iterator

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.hunyuan import COLUMNS, ORIGINAL, Rows, common, rows, single
from loratools.architectures.language_encoders import QWEN25_VL_7B
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename
from loratools.architectures.text_encoders import BYT5

EMBED = "time_guidance_embed."
ENDS: Rows = (
    # diffusers                                  original                comfy
    (EMBED + "timestep_embedder.linear_1",       "time_in.mlp.0",        "time_in.in_layer"),
    (EMBED + "timestep_embedder.linear_2",       "time_in.mlp.2",        "time_in.out_layer"),
    (EMBED + "timestep_embedder_r.linear_1",     "time_r_in.mlp.0",      "time_r_in.in_layer"),
    (EMBED + "timestep_embedder_r.linear_2",     "time_r_in.mlp.2",      "time_r_in.out_layer"),
    (EMBED + "guidance_embedder.linear_1",       "guidance_in.mlp.0",    "guidance_in.in_layer"),
    (EMBED + "guidance_embedder.linear_2",       "guidance_in.mlp.2",    "guidance_in.out_layer"),
    ("context_embedder_2.norm",                  "byt5_in.layernorm",    "byt5_in.layernorm"),
    ("context_embedder_2.linear_1",              "byt5_in.fc1",          "byt5_in.fc1"),
    ("context_embedder_2.linear_2",              "byt5_in.fc2",          "byt5_in.fc2"),
    ("context_embedder_2.linear_3",              "byt5_in.fc3",          "byt5_in.fc3"),
)  # fmt: skip
SINGLE_SPLIT = (
    ("norm.linear",               "modulation.linear"),
    ("attn.norm_q",               "q_norm"),
    ("attn.norm_k",               "k_norm"),
    ("attn.to_q",                 "linear1_q"),
    ("attn.to_k",                 "linear1_k"),
    ("attn.to_v",                 "linear1_v"),
    ("proj_mlp",                  "linear1_mlp"),
    ("proj_out",                  "linear2.fc"),
)  # fmt: skip


def _fused(column: int) -> Iterator[Rule]:
    yield from rows(ENDS, column)
    yield from common(column, 20)
    yield from single(column, 40)


def _split() -> Iterator[Rule]:
    yield from rows(ENDS, ORIGINAL)
    yield from common(ORIGINAL, 20, fused=False)
    for ours, theirs in SINGLE_SPLIT:
        yield rename(f"single_transformer_blocks.{{i<40}}.{ours}", f"single_blocks.{{i<40}}.{theirs}")


FUSED, COMFY = (tuple(_fused(column)) for column in COLUMNS.values())

HUNYUAN_IMAGE = Architecture(
    id="hunyuan-image",
    title="HunyuanImage 2.1",
    components=(
        Component(
            "transformer",
            (
                canonical_naming(FUSED, "diffusers"),
                Naming("original", FUSED),
                Naming("comfy", COMFY),
                Naming("original-split", tuple(_split())),
            ),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component("text_encoder", QWEN25_VL_7B, short=(), checkpoint=("text_encoders.qwen25_7b.transformer.",)),
        Component("text_encoder_2", BYT5, short=(), checkpoint=("text_encoders.byt5_small.transformer.",)),
    ),
    variants=(Variant("base", "hunyuan-image"), Variant("distilled", "hunyuan-image-distilled")),
    kohya="original",
    comfy="comfy",
    specification=("hunyuan-image-2.1", "hunyuan-image"),
    base_versions=("hunyuan-image-2.1",),
)
