"""The autoencoders of tiny pipelines that several of them share."""

from __future__ import annotations

from typing import Any

from loratools.pipelines.parts import Part

PIXELS = 64
"""Height and width at which most tiny pipelines are meant to run."""


def kl(latents: int, scaling: float, **more: Any) -> Part:
    """Stable Diffusion's, an eighth of a picture's height and width."""
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latents,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "sample_size": PIXELS,
        "scaling_factor": scaling,
        **more,
    }
    return Part("vae", "diffusers", "AutoencoderKL", config)


def flux() -> Part:
    """FLUX.1's, which Chroma and Z-Image took over."""
    return kl(16, 0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def causal(class_name: str) -> Part:
    """Wan's for films, an eighth of height and width and a quarter of the frames; Qwen-Image's is the same in shape."""
    return Part("vae", "diffusers", class_name, {"base_dim": 8, "z_dim": 16, "num_res_blocks": 1})
