"""The names of the Stable Diffusion VAE: diffusers' AutoencoderKL, and the LDM ones of single files.

It is no component that adapters change, so no architecture lists it; single files are written and read by it.
"""

from __future__ import annotations

from loratools.architectures.naming import Naming
from loratools.architectures.rules import Rule, rename, same

BLOCKS = 4
# The parts of a residual block, and of the one attention.
_RESIDUAL = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv_shortcut", "nin_shortcut"),
)
_ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))


def _residual(canonical: str, native: str) -> list[Rule]:
    return [rename(f"{canonical}.{ours}", f"{native}.{theirs}") for ours, theirs in _RESIDUAL]


def _side(side: str) -> list[Rule]:
    rows = [same(f"{side}.conv_in"), rename(f"{side}.conv_norm_out", f"{side}.norm_out"), same(f"{side}.conv_out")]
    for number in (0, 1):
        rows += _residual(f"{side}.mid_block.resnets.{number}", f"{side}.mid.block_{number + 1}")
    rows += [
        rename(f"{side}.mid_block.attentions.0.{ours}", f"{side}.mid.attn_1.{theirs}") for ours, theirs in _ATTENTION
    ]
    return rows


def _rules() -> tuple[Rule, ...]:
    rows = [*_side("encoder"), *_side("decoder"), same("quant_conv"), same("post_quant_conv")]
    for level in range(BLOCKS):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        ldm_down, ldm_up = f"encoder.down.{level}", f"decoder.up.{BLOCKS - 1 - level}"  # LDM counts them backwards
        rows += _residual(f"{down}.resnets.{{j<2}}", f"{ldm_down}.block.{{j<2}}")
        rows += _residual(f"{up}.resnets.{{j<3}}", f"{ldm_up}.block.{{j<3}}")
        rows.append(rename(f"{down}.downsamplers.0.conv", f"{ldm_down}.downsample.conv"))
        rows.append(rename(f"{up}.upsamplers.0.conv", f"{ldm_up}.upsample.conv"))
    return tuple(rows)


VAE_ORIGINAL = Naming("original", _rules())
"""The LDM names; attention matrices are 1×1 convolutions there."""
VAE_ATTENTION = ("q", "k", "v", "proj_out")
