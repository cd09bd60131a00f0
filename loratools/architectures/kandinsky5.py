"""Kandinsky 5: one set of names everywhere."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

TEXT, VISUAL = "text_transformer_blocks.{i<4}.", "visual_transformer_blocks.{i<60}."
ENDS = (
    "time_embeddings.in_layer", "time_embeddings.out_layer", "text_embeddings.in_layer", "text_embeddings.norm",
    "pooled_text_embeddings.in_layer", "pooled_text_embeddings.norm", "visual_embeddings.in_layer",
    "out_layer.modulation.out_layer", "out_layer.out_layer",
)  # fmt: skip
ATTENTION = ("to_query", "to_key", "to_value", "query_norm", "key_norm", "out_layer")
FEED_FORWARD = ("feed_forward.in_layer", "feed_forward.out_layer")
SELF, CROSS = (tuple(f"{place}.{leaf}" for leaf in ATTENTION) for place in ("self_attention", "cross_attention"))

DIFFUSERS = Naming(
    "diffusers",
    (
        *map(same, ENDS),
        *(same(TEXT + path) for path in ("text_modulation.out_layer", *SELF, *FEED_FORWARD)),
        *(same(VISUAL + path) for path in ("visual_modulation.out_layer", *SELF, *CROSS, *FEED_FORWARD)),
    ),
)

KANDINSKY5 = Architecture(
    id="kandinsky5",
    title="Kandinsky 5",
    components=(
        Component(
            "transformer", (DIFFUSERS,), short=("unet", "transformer"), checkpoint=("model.diffusion_model.", "")
        ),
    ),
    variants=(
        Variant("lite-video", "kandinsky5-lite-video"),
        Variant("lite-image", "kandinsky5-lite-image"),
        Variant("pro-video", "kandinsky5-pro-video"),
    ),
    comfy="diffusers",
    specification=("kandinsky-5",),
    base_versions=("kandinsky5",),
)
