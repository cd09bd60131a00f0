"""Qwen-Image and Qwen-Image-Edit: one set of names everywhere, diffusers'."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.language_encoders import QWEN25_VL_7B
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

BLOCK = "transformer_blocks.{i<60}."
ENDS = (
    "img_in", "txt_norm", "txt_in", "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2", "time_text_embed.addition_t_embedding", "norm_out.linear", "proj_out",
)  # fmt: skip
MODULES = (
    "img_mod.1", "txt_mod.1", "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    *(f"attn.{leaf}" for leaf in (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_q", "norm_k",
        "norm_added_q", "norm_added_k",
    )),
)  # fmt: skip

DIFFUSERS = Naming("diffusers", (*map(same, ENDS), *(same(BLOCK + path) for path in MODULES)))

QWEN_IMAGE = Architecture(
    id="qwen-image",
    title="Qwen-Image",
    components=(
        Component(
            "transformer",
            (DIFFUSERS,),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component(
            "text_encoder", QWEN25_VL_7B, short=("te", "te1"), checkpoint=("text_encoders.qwen25_7b.transformer.",)
        ),
    ),
    variants=(Variant("base", "qwen-image"), Variant("layered", "qwen-image-layered")),
    comfy="diffusers",
    specification=(
        "qwen-image", "qwen-image-edit", "qwen-image-edit-plus", "qwen-image-edit-2511", "qwen-image-layered",
    ),
    base_versions=("qwen_image", "qwen_image_edit", "qwen_image_layered"),
    spelt=(("bare", "kohya"),),  # its Lightning adapters: `transformer_blocks.0.attn.to_k.lora_down.weight`, `.alpha`
)  # fmt: skip
