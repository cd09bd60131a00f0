"""HunyuanVideo 1.5: double blocks alone, and q, k and v apart in its own names, too."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.hunyuan import ORIGINAL as COLUMN
from loratools.architectures.hunyuan import common
from loratools.architectures.language_encoders import QWEN25_7B
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, renamed
from loratools.architectures.text_encoders import BYT5

ENDS = (
    # diffusers                                  original
    ("time_embed.timestep_embedder.linear_1",    "time_in.mlp.0"),
    ("time_embed.timestep_embedder.linear_2",    "time_in.mlp.2"),
    ("context_embedder_2.norm",                  "byt5_in.layernorm"),
    ("context_embedder_2.linear_1",              "byt5_in.fc1"),
    ("context_embedder_2.linear_2",              "byt5_in.fc2"),
    ("context_embedder_2.linear_3",              "byt5_in.fc3"),
    ("image_embedder.norm_in",                   "vision_in.proj.0"),
    ("image_embedder.linear_1",                  "vision_in.proj.1"),
    ("image_embedder.linear_2",                  "vision_in.proj.3"),
    ("image_embedder.norm_out",                  "vision_in.proj.4"),
    ("cond_type_embed",                          "cond_type_embedding"),
)  # fmt: skip

ORIGINAL: tuple[Rule, ...] = (
    *renamed(ENDS),
    *common(COLUMN, 54, fused=False),
)

HUNYUAN_VIDEO15 = Architecture(
    id="hunyuan-video-1.5",
    title="HunyuanVideo 1.5",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component("text_encoder", QWEN25_7B, short=(), checkpoint=("text_encoders.qwen25_7b.transformer.",)),
        Component("text_encoder_2", BYT5, short=(), checkpoint=("text_encoders.byt5_small.transformer.",)),
    ),
    variants=(Variant("base", "hunyuan-video-1.5"),),
    kohya="original",
    specification=("hunyuan-video-1.5",),
    base_versions=("hunyuan_video_1_5",),
)
