"""HunyuanVideo, and FramePack, which predicts the next frames with the same blocks."""

from __future__ import annotations

from collections.abc import Iterator

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.hunyuan import COLUMNS, Rows, common, rows, single
from loratools.architectures.language_encoders import LLAMA_8B, LLAVA_8B, LLAVA_SAVED
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, same
from loratools.architectures.text_encoders import CLIP_L

EMBED = "time_text_embed."
ENDS: Rows = (
    # diffusers                                  original                comfy
    (EMBED + "timestep_embedder.linear_1",       "time_in.mlp.0",        "time_in.in_layer"),
    (EMBED + "timestep_embedder.linear_2",       "time_in.mlp.2",        "time_in.out_layer"),
    (EMBED + "text_embedder.linear_1",           "vector_in.in_layer",   "vector_in.in_layer"),
    (EMBED + "text_embedder.linear_2",           "vector_in.out_layer",  "vector_in.out_layer"),
    (EMBED + "guidance_embedder.linear_1",       "guidance_in.mlp.0",    "guidance_in.in_layer"),
    (EMBED + "guidance_embedder.linear_2",       "guidance_in.mlp.2",    "guidance_in.out_layer"),
)  # fmt: skip
# FramePack's own: the frames so far, at three scales, and the first picture.
FRAMES = (
    "clean_x_embedder.proj", "clean_x_embedder.proj_2x", "clean_x_embedder.proj_4x", "image_projection.up",
    "image_projection.down",
)  # fmt: skip


def _rules(column: int) -> Iterator[Rule]:
    yield from rows(ENDS, column)
    yield from common(column, 20)
    yield from single(column, 40)


ORIGINAL, COMFY = (tuple(_rules(column)) for column in COLUMNS.values())
FRAMEPACK_RULES = (*(same(part) for rule in ORIGINAL for part in rule.canonical), *map(same, FRAMES))

# The LLaVA that reads the prompt has a Llama in it; text-to-video pipelines hold that alone.
LLAMA = Component("text_encoder", LLAMA_8B, short=("te1",), checkpoint=("text_encoders.llama.transformer.",))
ENCODERS = (
    LLAMA,
    Component("text_encoder_2", CLIP_L, short=("te2",), checkpoint=("text_encoders.clip_l.transformer.",)),
)

HUNYUAN_VIDEO = Architecture(
    id="hunyuan-video",
    title="HunyuanVideo",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL), Naming("comfy", COMFY)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", "model.model.", ""),
        ),
        # What differs from these in a level of the eyes, or has none, stands apart: a Llama alone would be all of them.
        LLAMA._replace(namings=LLAVA_8B, adapters=(LLAVA_SAVED, *LLAMA_8B[1:])),
        *ENCODERS[1:],
    ),
    variants=(Variant("t2v", "hunyuan-video-t2v"), Variant("i2v", "hunyuan-video-i2v")),
    kohya="original",
    comfy="comfy",
    family=("framepack",),
    specification=("hunyuan-video",),
    base_versions=("hunyuan_video",),
)
FRAMEPACK = Architecture(
    id="framepack",
    title="FramePack",
    components=(
        Component("transformer", (Naming("diffusers", FRAMEPACK_RULES),), short=("unet", "transformer")),
        *ENCODERS,
    ),
    variants=(Variant("i2v", "framepack"),),
    family=("hunyuan-video",),
    rarer=True,
    specification=("framepack",),
    base_versions=("framepack",),
)
