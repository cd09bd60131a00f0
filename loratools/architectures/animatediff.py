"""AnimateDiff: the motion modules alone; the UNet they are put into keeps its own architecture and its own adapters."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.attn_procs import attn_procs
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename

# Every level has them; the middle block in the second version only, and the one for SDXL lacks the innermost level.
MODULES = (
    "down_blocks.{b<4}.motion_modules.{l<2}",
    "mid_block.motion_modules.0",
    "up_blocks.{b<4}.motion_modules.{l<3}",
)
ENDS = ("norm", "proj_in", "proj_out")
BLOCK = "transformer_blocks.0"
PARTS = (
    # diffusers           original
    ("norm1",             "norms.0"),
    ("attn1.to_q",        "attention_blocks.0.to_q"),
    ("attn1.to_k",        "attention_blocks.0.to_k"),
    ("attn1.to_v",        "attention_blocks.0.to_v"),
    ("attn1.to_out.0",    "attention_blocks.0.to_out.0"),
    ("norm2",             "norms.1"),
    ("attn2.to_q",        "attention_blocks.1.to_q"),
    ("attn2.to_k",        "attention_blocks.1.to_k"),
    ("attn2.to_v",        "attention_blocks.1.to_v"),
    ("attn2.to_out.0",    "attention_blocks.1.to_out.0"),
    ("norm3",             "ff_norm"),
    ("ff.net.0.proj",     "ff.net.0.proj"),
    ("ff.net.2",          "ff.net.2"),
)  # fmt: skip

ORIGINAL: tuple[Rule, ...] = (
    *(rename(f"{module}.{path}", f"{module}.temporal_transformer.{path}") for module in MODULES for path in ENDS),
    *(
        rename(f"{module}.{BLOCK}.{ours}", f"{module}.temporal_transformer.{BLOCK}.{theirs}")
        for module in MODULES
        for ours, theirs in PARTS
    ),
)

DIFFUSERS = canonical_naming(ORIGINAL, "diffusers")
# Motion LoRAs name the processors of the original modules; diffusers' own script, those of its modules.
PROCESSORS = (attn_procs(Naming("original", ORIGINAL), "animatediff"), attn_procs(DIFFUSERS, "attn-procs-diffusers"))

ANIMATEDIFF = Architecture(
    id="animatediff",
    title="AnimateDiff motion modules",
    components=(Component("unet", (DIFFUSERS, Naming("original", ORIGINAL)), short=("unet",), adapters=PROCESSORS),),
    variants=(
        Variant("v1", "animatediff-v1"),
        Variant("v2", "animatediff-v2"),
        Variant("sdxl", "animatediff-sdxl"),
    ),
)
