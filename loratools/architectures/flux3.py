"""FLUX.3: diffusers names (canonical) and BFL's, for its picture stream, which is what diffusers has of it."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, renamed, swap_halves

BLOCKS = (
    # diffusers                            bfl
    ("mode_blocks.image.{i<5}.",           "content_mode_blocks.image.{i<5}."),
    ("mode_blocks.image_cond.{i<5}.",      "content_mode_blocks.image_cond.{i<5}."),
    ("txt_mode_blocks.{i<5}.",             "txt_mode_blocks.{i<5}."),
    ("single_transformer_blocks.{i<28}.",  "single_blocks.{i<28}."),
)  # fmt: skip
BLOCK = (
    ("attn.to_q",        "q_proj"),
    ("attn.to_k",        "k_proj"),
    ("attn.to_v",        "v_proj"),
    ("attn.to_out.0",    "attn_out"),
    ("ff.linear_in",     "mlp_in"),
    ("ff.linear_out",    "mlp_out"),
)  # fmt: skip
NORMS = (("attn.norm_q", "norm.query_norm"), ("attn.norm_k", "norm.key_norm"))
MODES = ("image", "image_cond", "txt")
STREAMS = ("early_stream_modulations", "single_stream_modulations")
ENDS = (
    ("timestep_embedder.linear_1",    "time_in.in_layer"),
    ("timestep_embedder.linear_2",    "time_in.out_layer"),
    ("x_embedders.image",             "emb_in.image"),
    ("x_embedders.image_cond",        "emb_in.image_cond"),
    ("context_embedder",              "txt_in"),
    ("proj_out",                      "final_layer.image.linear"),
)  # fmt: skip

BFL: tuple[Rule, ...] = (
    *renamed(ENDS),
    # BFL stacks (shift, scale), diffusers (scale, shift).
    swap_halves("norm_out.linear", "final_layer.image.adaLN_modulation.1"),
    *(rename(f"{stream}.{mode}.linear", f"{stream}.{mode}.lin") for stream in STREAMS for mode in MODES),
    *(rename(ours + here, theirs + there) for ours, theirs in BLOCKS for here, there in BLOCK),
    *(rename(ours + here, theirs + there, weight="scale") for ours, theirs in BLOCKS for here, there in NORMS),
)

FLUX3 = Architecture(
    id="flux3",
    title="FLUX.3",
    components=(
        Component(
            "transformer",
            (canonical_naming(BFL, "diffusers"), Naming("bfl", BFL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("image", "flux3"),),
    kohya="bfl",
    specification=("flux.3",),
)
