"""HiDream-I1: one set of names everywhere; the pictures' feed-forward is a mixture of experts, one module an expert."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.language_encoders import LLAMA_8B_HEADED
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same
from loratools.architectures.text_encoders import CLIP_G, CLIP_L_PROJECTED, T5

DOUBLE, SINGLE = "double_stream_blocks.{i<16}.block.", "single_stream_blocks.{i<32}.block."
ENDS = (
    "t_embedder.timestep_embedder.linear_1", "t_embedder.timestep_embedder.linear_2",
    "p_embedder.pooled_embedder.linear_1", "p_embedder.pooled_embedder.linear_2", "x_embedder.proj",
    "caption_projection.{n<49}.linear", "final_layer.linear", "final_layer.adaLN_modulation.1",
)  # fmt: skip
ATTENTION = tuple(f"attn1.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out", "q_rms_norm", "k_rms_norm"))
EXPERTS = (
    "ff_i.gate", *(f"ff_i.{part}.{leaf}" for part in ("shared_experts", "experts.{e<4}") for leaf in ("w1", "w2", "w3"))
)  # fmt: skip
BOTH = ("adaLN_modulation.1", *ATTENTION, *EXPERTS)
TEXT = (*(f"{path}_t" for path in ATTENTION), *(f"ff_t.{leaf}" for leaf in ("w1", "w2", "w3")))

DIFFUSERS = Naming(
    "diffusers",
    (
        *map(same, ENDS),
        *(same(DOUBLE + path) for path in (*BOTH, *TEXT)),
        *(same(SINGLE + path) for path in BOTH),
    ),
)

HIDREAM = Architecture(
    id="hidream",
    title="HiDream-I1",
    components=(
        Component(
            "transformer", (DIFFUSERS,), short=("unet", "transformer"), checkpoint=("model.diffusion_model.", "")
        ),
        Component("text_encoder", CLIP_L_PROJECTED, short=("te1",), checkpoint=("text_encoders.clip_l.transformer.",)),
        Component("text_encoder_2", CLIP_G, short=("te2",), checkpoint=("text_encoders.clip_g.transformer.",)),
        Component("text_encoder_3", T5, short=("te3",), checkpoint=("text_encoders.t5xxl.transformer.",)),
        Component("text_encoder_4", LLAMA_8B_HEADED, short=("te4",), checkpoint=("text_encoders.llama.transformer.",)),
    ),
    variants=(Variant("i1", "hidream-i1"),),
    comfy="diffusers",
    specification=("hidream-i1", "hidream"),
)
