"""Language models that pipelines use as text encoders: Gemma 2, Llama 3.1, Qwen 2.5-VL and Qwen 3, shared by many.

Canonical are the names of the transformers class that the pipeline holds. ComfyUI, and files written before
transformers moved the language model of Qwen 2.5-VL one level down, have `model.` before the layers.
"""

from __future__ import annotations

from collections.abc import Iterable

from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, same

COMFY_LEVEL = "comfy"
"""The naming of a language model inside ComfyUI, which keeps the level that transformers' bare model has not."""

LAYER = "layers.{n<%d}."
HEAD = "lm_head"
ONCE = ("embed_tokens", "norm")
ATTENTION = tuple(f"self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj"))
GATED = tuple(f"mlp.{leaf}" for leaf in ("gate_proj", "up_proj", "down_proj"))
NORMS = ("input_layernorm", "post_attention_layernorm")

LLAMA_LAYER = (*ATTENTION, *GATED, *NORMS)  # and Qwen 2.5's
GEMMA2_LAYER = (*LLAMA_LAYER, "pre_feedforward_layernorm", "post_feedforward_layernorm")
QWEN3_LAYER = (*LLAMA_LAYER, "self_attn.q_norm", "self_attn.k_norm")

VISION = "visual."
VISION_MODULES = (
    "patch_embed.proj",
    *(f"blocks.{{n<32}}.{leaf}" for leaf in ("norm1", "norm2", "attn.qkv", "attn.proj", *GATED)),
    "merger.ln_q", "merger.mlp.0", "merger.mlp.2",
)  # fmt: skip

EYES = "vision_tower."
EYES_MODULES = (
    "embeddings.patch_embedding", "embeddings.position_embedding", "pre_layrnorm", "post_layernorm",
    *(
        f"encoder.layers.{{n<24}}.{leaf}"
        for leaf in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1",
            "layer_norm2", "mlp.fc1", "mlp.fc2",
        )
    ),
)  # fmt: skip
EYES_PARAMETER = "embeddings.class_embedding"
PROJECTOR_MODULES = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")


def _decoder(layers: int, modules: Iterable[str]) -> tuple[str, ...]:
    """The paths of a model without its head."""
    return (*ONCE, *(LAYER % layers + path for path in modules))


def _bare(paths: tuple[str, ...]) -> tuple[Naming, ...]:
    """The namings of a model without its head: its own, and ComfyUI's."""
    return (
        Naming("transformers", tuple(map(same, paths))),
        Naming(COMFY_LEVEL, tuple(rename(path, f"model.{path}") for path in paths)),
    )


def _qwen25_vl(layers: int) -> tuple[Naming, ...]:
    """The whole Qwen 2.5-VL, its eyes and its head: transformers' names, and those that files had before."""
    language = _decoder(layers, LLAMA_LAYER)
    rows = [(f"model.language_model.{path}", f"model.{path}") for path in language]
    rows += [(f"model.{VISION}{path}", f"{VISION}{path}") for path in VISION_MODULES]
    rows.append((HEAD, HEAD))
    return (
        Naming("transformers", tuple(same(ours) for ours, _ in rows)),
        Naming(COMFY_LEVEL, tuple(rename(ours, theirs) for ours, theirs in rows)),
    )


def _llava(layers: int) -> tuple[Naming, ...]:
    """Llama, and what LLaVA has beside it: CLIP's eyes, and what makes words of what they see.

    Canonical are Llama's own names, as text-to-video pipelines have it alone. The others are those of LLaVA's class, of
    the files that it wrote before CLIP lost a level, and of those that it writes today.
    """
    language, head = _decoder(layers, LLAMA_LAYER), f"language_model.{HEAD}"
    return (
        canonical_naming(_seeing(language, "", "", HEAD), "transformers"),
        Naming("llava", _seeing(language, "model.language_model.", "model.", HEAD)),
        Naming("llava-older", _seeing(language, "language_model.model.", "", head, "vision_model.")),
        Naming("llava-saved", _seeing(language, "language_model.model.", "", head)),
    )


def _seeing(language: tuple[str, ...], inner: str, outer: str, head: str, level: str = "") -> tuple[Rule, ...]:
    """The rules of a LLaVA: what stands before Llama's paths and before the others, its head, a level in its eyes."""
    sight = EYES + level
    return (
        rename(HEAD, head),
        *(rename(path, inner + path) for path in language),
        *(rename(path, outer + path) for path in PROJECTOR_MODULES),
        *(rename(EYES + path, outer + sight + path) for path in EYES_MODULES),
        rename(EYES + EYES_PARAMETER, outer + sight + EYES_PARAMETER, joint=""),
    )


GEMMA2_2B = _bare(_decoder(26, GEMMA2_LAYER))
LLAMA_8B = _bare(_decoder(32, LLAMA_LAYER))
*_LLAVA, LLAVA_SAVED = _llava(32)
LLAVA_8B = tuple(_LLAVA)
LLAMA_8B_HEADED = (
    Naming("transformers", (same(HEAD), *(same(f"model.{path}") for path in _decoder(32, LLAMA_LAYER)))),
)
QWEN25_7B = _bare(_decoder(28, LLAMA_LAYER))
QWEN25_VL_7B = _qwen25_vl(28)
QWEN3_06B = _bare(_decoder(28, QWEN3_LAYER))

# ComfyUI's words for them: `text_encoders.llama.transformer.model.…`.
LANGUAGE_WORDS = (
    (GEMMA2_2B, "gemma2_2b"), (LLAMA_8B, "llama"), (LLAMA_8B_HEADED, "llama"), (LLAVA_8B, "llama"),
    (QWEN25_7B, "qwen25_7b"), (QWEN25_VL_7B, "qwen25_7b"), (QWEN3_06B, "qwen3_06b"),
)  # fmt: skip
