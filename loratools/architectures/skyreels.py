"""SkyReels V2: Wan 2.1 trained on, with a sense of the frame rate in its small diffusion-forcing model."""

from __future__ import annotations

from loratools.architectures import wan
from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import renamed, same

FRAME_RATE = (
    # diffusers                     original
    ("fps_projection.net.0.proj",   "fps_projection.0"),
    ("fps_projection.net.2",        "fps_projection.2"),
)  # fmt: skip
ORIGINAL = (*wan.WITH_IMAGE, same("fps_embedding"), *renamed(FRAME_RATE))

SKYREELS_V2 = Architecture(
    id="skyreels-v2",
    title="SkyReels V2",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=wan.CHECKPOINT,
        ),
        wan.ENCODER,
    ),
    variants=(
        Variant("df-1.3b", "skyreels-v2-df-1.3b"),
        Variant("t2v-14b", "skyreels-v2-t2v-14b"),
        Variant("i2v-1.3b", "skyreels-v2-i2v-1.3b"),
        Variant("i2v-14b", "skyreels-v2-i2v-14b"),
        Variant("flf2v-14b", "skyreels-v2-flf2v-14b"),
    ),
    kohya="original",
    comfy="original",
    yields_to=("wan2.1", "wan2.2"),
    specification=("skyreels-v2",),
)
