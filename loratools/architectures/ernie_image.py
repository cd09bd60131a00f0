"""ERNIE-Image: one set of names everywhere."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

BLOCK = "layers.{i<24}."
ENDS = (
    "x_embedder.proj", "text_proj", "time_embedding.linear_1", "time_embedding.linear_2", "adaLN_modulation.1",
    "final_norm.linear", "final_linear",
)  # fmt: skip
MODULES = (
    *(f"self_attention.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")),
    "adaLN_sa_ln", "adaLN_mlp_ln", "mlp.gate_proj", "mlp.up_proj", "mlp.linear_fc2",
)  # fmt: skip

DIFFUSERS = Naming("diffusers", (*map(same, ENDS), *(same(BLOCK + path) for path in MODULES)))

ERNIE_IMAGE = Architecture(
    id="ernie-image",
    title="ERNIE-Image",
    components=(
        Component(
            "transformer", (DIFFUSERS,), short=("unet", "transformer"), checkpoint=("model.diffusion_model.", "")
        ),
    ),
    variants=(Variant("base", "ernie-image"),),
    comfy="diffusers",
    specification=("ernie-image",),
)
