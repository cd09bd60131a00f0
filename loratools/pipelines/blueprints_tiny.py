"""Every tiny pipeline: the block layout and module names of the real model, with narrow layers; seconds on a CPU."""

from __future__ import annotations

from loratools.pipelines.tiny.flux import CHROMA, FLUX1, FLUX2
from loratools.pipelines.tiny.hunyuan_dit import HUNYUAN_DIT
from loratools.pipelines.tiny.language_guided import QWEN_IMAGE, SANA, Z_IMAGE
from loratools.pipelines.tiny.stable_cascade import STABLE_CASCADE
from loratools.pipelines.tiny.stable_diffusion import SD1, SD2, SDXL
from loratools.pipelines.tiny.stable_diffusion_3 import SD3
from loratools.pipelines.tiny.video import HUNYUAN_VIDEO, LTX_VIDEO, WAN21, WAN22
from loratools.pipelines.tiny.without_loader import KANDINSKY22_DECODER, KANDINSKY22_PRIOR, PIXART

TINY = (
    CHROMA,
    FLUX1,
    FLUX2,
    HUNYUAN_DIT,
    HUNYUAN_VIDEO,
    KANDINSKY22_DECODER,
    KANDINSKY22_PRIOR,
    LTX_VIDEO,
    PIXART,
    QWEN_IMAGE,
    SANA,
    SD1,
    SD2,
    SD3,
    SDXL,
    STABLE_CASCADE,
    WAN21,
    WAN22,
    Z_IMAGE,
)
