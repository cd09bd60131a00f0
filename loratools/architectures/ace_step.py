"""ACE-Step 1.5: music, under diffusers names (canonical) and its own; ComfyUI keeps its level `decoder`."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, renamed, same

BLOCK = "layers.{i<24}."
TIMES = ("time_embed.", "time_embed_r.")
ENDS = (("proj_in_conv", "proj_in.1"), ("proj_out_conv", "proj_out.1"))
ENDS_SAME = (
    *(time + leaf for time in TIMES for leaf in ("linear_1", "linear_2", "time_proj")),
    "condition_embedder", "norm_out",
)  # fmt: skip
ATTENTION = (
    # diffusers     original
    ("to_q",        "q_proj"),
    ("to_k",        "k_proj"),
    ("to_v",        "v_proj"),
    ("to_out.0",    "o_proj"),
    ("norm_q",      "q_norm"),
    ("norm_k",      "k_norm"),
)  # fmt: skip
BLOCK_SAME = ("self_attn_norm", "cross_attn_norm", "mlp_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
PARAMETERS = ("scale_shift_table", BLOCK + "scale_shift_table")

ORIGINAL: tuple[Rule, ...] = (
    *renamed(ENDS),
    *map(same, ENDS_SAME),
    *(same(path, joint="") for path in PARAMETERS),
    *(
        rename(f"{BLOCK}{place}.{ours}", f"{BLOCK}{place}.{theirs}")
        for place in ("self_attn", "cross_attn")
        for ours, theirs in ATTENTION
    ),
    *(same(BLOCK + path) for path in BLOCK_SAME),
)
COMFY = tuple(rule._replace(native=f"decoder.{rule.native}") for rule in ORIGINAL)

ACE_STEP = Architecture(
    id="ace-step",
    title="ACE-Step 1.5",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL), Naming("comfy", COMFY)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("1.5", "ace-step-1.5"),),
    kohya="comfy",
    comfy="comfy",
    specification=("ace-step",),
)
