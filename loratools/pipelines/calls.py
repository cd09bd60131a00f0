"""The call of a pipeline: what is said of every picture alike, under the names that each class has for it."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping
from typing import Any

from loratools.errors import UnsupportedFile

SCALES = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "movq_scale_factor")
"""What pipelines call the pixels of a side that one latent stands for."""
SIGNED = ("KandinskyPipeline", "KandinskyV22Pipeline")
"""Pipelines whose pictures, as tensors, lie in [-1, 1]."""
NEEDS_NO_PICTURE = ("Flux2KleinKVPipeline", "Flux2KleinPipeline", "Flux2Pipeline", "FluxKontextPipeline")
"""Pipelines that may be given pictures, and paint without."""

Parameters = Mapping[str, inspect.Parameter]


def parameters_of(pipeline: Any) -> Parameters:
    """What the call of a pipeline takes."""
    return inspect.signature(pipeline.__call__).parameters


def asked(pipeline: Any, prompt: str) -> dict[str, Any]:
    """What a pipeline is asked for.

    A decoder that takes what another pipeline made of the prompt is given noise in its place, always the same for one
    prompt. Raises UnsupportedFile for a pipeline that takes neither.
    """
    known = parameters_of(pipeline)
    if "prompt" in known:
        return {"prompt": prompt}
    width = getattr(getattr(getattr(pipeline, "unet", None), "config", None), "encoder_hid_dim", None)
    if not {"image_embeds", "negative_image_embeds"} <= set(known) or width is None:
        raise UnsupportedFile(f"a {type(pipeline).__name__} takes no prompt", hint="give a text-to-image pipeline")
    import torch

    generator = torch.Generator("cpu").manual_seed(zlib.crc32(prompt.encode()))
    embedding = torch.randn(1, width, generator=generator).to(pipeline.unet.dtype)
    embedding = embedding.to(getattr(pipeline, "_execution_device", "cpu"))
    return {"image_embeds": embedding, "negative_image_embeds": torch.zeros_like(embedding)}


def sized(known: Parameters, width: int | None, height: int | None) -> dict[str, Any]:
    """A size in pixels, which pipelines that know the best of all sizes must then take as it is."""
    found = {name: extent for name, extent in (("width", width), ("height", height)) if extent is not None}
    return found | ({"use_resolution_binning": False} if found and "use_resolution_binning" in known else {})


def guided(known: Parameters, guidance: float | None) -> dict[str, Any]:
    """How closely the prompt is followed, against an empty one.

    Where the plain word is for models that learnt guidance, and None by default, another one is meant.
    """
    if guidance is None:
        return {}
    plain = known.get("guidance_scale")
    if "true_cfg_scale" in known and plain is not None and plain.default is None:
        return {"true_cfg_scale": guidance, "negative_prompt": " "}
    return {"guidance_scale": guidance}


def latent_pixels(pipeline: Any) -> int:
    """The pixels of a side that one latent stands for: 8 where the pipeline does not say."""
    return next((int(value) for name in SCALES if (value := getattr(pipeline, name, None))), 8)
