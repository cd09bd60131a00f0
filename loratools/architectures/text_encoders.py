"""CLIP-L, OpenCLIP-H, OpenCLIP-G, the encoders of T5, ByT5 and UMT5: their modules and every spelling, shared.

Canonical are the transformers names with the `text_model.` level, whatever the installed version drops.
"""

from __future__ import annotations

from loratools.architectures.language_encoders import LANGUAGE_WORDS
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, rename, renamed, same, transpose

ROOT = "text_model."
LAYER = ROOT + "encoder.layers.{n<%d}."
RESBLOCK = "transformer.resblocks.{n<%d}."

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
LAYER_MODULES = (
    # transformers           open_clip
    ("self_attn.out_proj",   "attn.out_proj"),
    ("mlp.fc1",              "mlp.c_fc"),
    ("mlp.fc2",              "mlp.c_proj"),
    ("layer_norm1",          "ln_1"),
    ("layer_norm2",          "ln_2"),
)  # fmt: skip
EMBEDDINGS = ("embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm")
TEXT_PROJECTION = "text_projection"


def transformers_clip(layers: int, *, projection: bool = False) -> Naming:
    """The canonical names of a CLIP text encoder; `projection` for CLIPTextModelWithProjection."""
    paths = [ROOT + path for path in EMBEDDINGS]
    paths += [LAYER % layers + path for path in (*ATTENTION, *(path for path, _ in LAYER_MODULES))]
    return Naming("transformers", tuple(map(same, paths + [TEXT_PROJECTION] * projection)))


def flat_clip(layers: int) -> Naming:
    """CLIPTextModel since transformers 5.6: no `text_model.` level (CLIPTextModelWithProjection kept it)."""
    rules = transformers_clip(layers).rules
    return Naming("flat", tuple(rename(rule.native, rule.native.removeprefix(ROOT)) for rule in rules))


def open_clip(layers: int) -> Naming:
    """The names inside single-file checkpoints: q, k, v fused, bare parameters, `text_projection` stored [in, out]."""
    layer, block = LAYER % layers, RESBLOCK % layers
    rules: list[Rule] = [
        rename(ROOT + "embeddings.token_embedding",    "token_embedding"),
        rename(ROOT + "embeddings.position_embedding", "positional_embedding", joint=""),
        rename(ROOT + "final_layer_norm",              "ln_final"),
        transpose(TEXT_PROJECTION,                     TEXT_PROJECTION),
        fuse(tuple(layer + part for part in ATTENTION), block + "attn.in_proj", joint="_"),
    ]  # fmt: skip
    rules += [rename(layer + ours, block + theirs) for ours, theirs in LAYER_MODULES]
    return Naming("open_clip", tuple(rules))


T5_LAYERS = 24
BYT5_LAYERS = 12
T5_BLOCK = "encoder.block.{n<%d}.layer."
T5_MODULES = (
    "0.SelfAttention.q", "0.SelfAttention.k", "0.SelfAttention.v", "0.SelfAttention.o", "0.layer_norm",
    "1.DenseReluDense.wi_0", "1.DenseReluDense.wi_1", "1.DenseReluDense.wo", "1.layer_norm",
)  # fmt: skip
T5_DISTANCES = "0.SelfAttention.relative_attention_bias"
T5_ONCE = ("shared", f"encoder.block.0.layer.{T5_DISTANCES}", "encoder.final_layer_norm")
# UMT5 learns the distances in every block, T5 once for all.
UMT5_ENDS = (
    # transformers                  Wan
    ("shared",                      "token_embedding"),
    ("encoder.final_layer_norm",    "norm"),
)  # fmt: skip
UMT5_MODULES = (
    ("0.SelfAttention.q",                          "attn.q"),
    ("0.SelfAttention.k",                          "attn.k"),
    ("0.SelfAttention.v",                          "attn.v"),
    ("0.SelfAttention.o",                          "attn.o"),
    ("0.layer_norm",                               "norm1"),
    ("1.DenseReluDense.wi_0",                      "ffn.gate.0"),
    ("1.DenseReluDense.wi_1",                      "ffn.fc1"),
    ("1.DenseReluDense.wo",                        "ffn.fc2"),
    ("1.layer_norm",                               "norm2"),
    (T5_DISTANCES,                                 "pos_embedding.embedding"),
)  # fmt: skip
WAN_BLOCK = f"blocks.{{n<{T5_LAYERS}}}."
UMT5_RULES = (*renamed(UMT5_ENDS), *renamed(UMT5_MODULES, T5_BLOCK % T5_LAYERS, WAN_BLOCK))


def t5(layers: int) -> Naming:
    """The names of T5's encoder."""
    return Naming("transformers", tuple(map(same, (*T5_ONCE, *(T5_BLOCK % layers + path for path in T5_MODULES)))))


CLIP_L = (transformers_clip(12), flat_clip(12))
CLIP_L_PROJECTED = (transformers_clip(12, projection=True),)
# open_clip's 24th block and its projection are in SD2 checkpoints only: the 23 layers of the pipeline stop before them.
CLIP_H = (transformers_clip(23), flat_clip(23), open_clip(24))
CLIP_G = (transformers_clip(32, projection=True), open_clip(32))
T5 = (t5(T5_LAYERS),)
# The small one, which reads what is to be written in the picture byte by byte.
BYT5 = (t5(BYT5_LAYERS),)
# Wan's release holds it under names of its own (models_t5_umt5-xxl-enc-bf16.pth).
UMT5 = (canonical_naming(UMT5_RULES, "transformers"), Naming("wan", UMT5_RULES))

# The words by which ComfyUI names the encoders: `text_encoders.clip_l.transformer.…`.
COMFY_WORDS = (
    (CLIP_L, "clip_l"), (CLIP_L_PROJECTED, "clip_l"), (CLIP_H, "clip_h"), (CLIP_G, "clip_g"), (T5, "t5xxl"),
    (BYT5, "byt5_small"), (UMT5, "umt5xxl"), *LANGUAGE_WORDS,
)  # fmt: skip


def comfy_word(namings: tuple[Naming, ...]) -> str | None:
    """ComfyUI's word for the text encoder with these namings, or None where they are no text encoder's."""
    return next((word for known, word in COMFY_WORDS if known is namings), None)
