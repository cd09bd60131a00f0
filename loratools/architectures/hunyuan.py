"""What the models of the Hunyuan family have in common: double and single blocks, and a refiner of the text.

Three spellings: diffusers' (canonical, q, k and v split), the original one (fused), and ComfyUI's, which renames the
original on loading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loratools.architectures.rules import Rule, fuse, rename, swap_halves

Rows = tuple[tuple[str, str, str], ...]

TEXT = "context_embedder."
TEXT_TIME, TEXT_POOLED = TEXT + "time_text_embed.timestep_embedder.", TEXT + "time_text_embed.text_embedder."
REFINER = TEXT + "token_refiner.refiner_blocks.{i<2}.", "txt_in.individual_token_refiner.blocks.{i<2}."

ENDS: Rows = (
    # diffusers                  original                        comfy
    (TEXT_TIME + "linear_1",     "txt_in.t_embedder.mlp.0",      "txt_in.t_embedder.in_layer"),
    (TEXT_TIME + "linear_2",     "txt_in.t_embedder.mlp.2",      "txt_in.t_embedder.out_layer"),
    (TEXT_POOLED + "linear_1",   "txt_in.c_embedder.linear_1",   "txt_in.c_embedder.in_layer"),
    (TEXT_POOLED + "linear_2",   "txt_in.c_embedder.linear_2",   "txt_in.c_embedder.out_layer"),
    (TEXT + "proj_in",           "txt_in.input_embedder",        "txt_in.input_embedder"),
    ("x_embedder.proj",          "img_in.proj",                  "img_in.proj"),
    ("proj_out",                 "final_layer.linear",           "final_layer.linear"),
)  # fmt: skip
REFINER_BLOCK: Rows = (
    ("norm1",                     "norm1",                  "norm1"),
    ("norm2",                     "norm2",                  "norm2"),
    ("attn.to_out.0",             "self_attn_proj",         "self_attn.proj"),
    ("ff.net.0.proj",             "mlp.fc1",                "mlp.0"),
    ("ff.net.2",                  "mlp.fc2",                "mlp.2"),
    # its own adaLN keeps the order of its halves: two gates
    ("norm_out.linear",           "adaLN_modulation.1",     "adaLN_modulation.1"),
)  # fmt: skip
DOUBLE: Rows = (
    ("norm1.linear",              "img_mod.linear",         "img_mod.lin"),
    ("norm1_context.linear",      "txt_mod.linear",         "txt_mod.lin"),
    ("attn.to_out.0",             "img_attn_proj",          "img_attn.proj"),
    ("attn.to_add_out",           "txt_attn_proj",          "txt_attn.proj"),
    ("ff.net.0.proj",             "img_mlp.fc1",            "img_mlp.0"),
    ("ff.net.2",                  "img_mlp.fc2",            "img_mlp.2"),
    ("ff_context.net.0.proj",     "txt_mlp.fc1",            "txt_mlp.0"),
    ("ff_context.net.2",          "txt_mlp.fc2",            "txt_mlp.2"),
)  # fmt: skip
DOUBLE_NORMS: Rows = (
    ("attn.norm_q",               "img_attn_q_norm",        "img_attn.norm.query_norm"),
    ("attn.norm_k",               "img_attn_k_norm",        "img_attn.norm.key_norm"),
    ("attn.norm_added_q",         "txt_attn_q_norm",        "txt_attn.norm.query_norm"),
    ("attn.norm_added_k",         "txt_attn_k_norm",        "txt_attn.norm.key_norm"),
)  # fmt: skip
SINGLE: Rows = (
    ("norm.linear",               "modulation.linear",      "modulation.lin"),
    ("proj_out",                  "linear2",                "linear2"),
)  # fmt: skip
SINGLE_NORMS: Rows = (
    ("attn.norm_q",               "q_norm",                 "norm.query_norm"),
    ("attn.norm_k",               "k_norm",                 "norm.key_norm"),
)  # fmt: skip
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
TEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
FUSED = ((QKV, "img_attn", "qkv"), (TEXT_QKV, "txt_attn", "qkv"))
SPLIT = tuple(
    (part, f"{side}_attn_{word}", f"{side}_attn.{word}")
    for parts, side in ((QKV, "img"), (TEXT_QKV, "txt"))
    for part, word in zip(parts, "qkv", strict=True)
)

ORIGINAL, COMFY = 1, 2
"""Columns of the rows."""


def rows(table: Rows, column: int, ours: str = "", theirs: str = "", *, scale: bool = False) -> Iterator[Rule]:
    """A rename a row; ComfyUI's norms call their weight a scale."""
    word = "scale" if scale and column == COMFY else "weight"
    return (rename(ours + row[0], theirs + row[column], weight=word) for row in table)


def common(column: int, double: int, *, fused: bool = True) -> Iterator[Rule]:
    """The rules of the ends, of the text's refiner and of `double` double blocks, fused or not."""
    joint = "_" if column == ORIGINAL else "."
    ours, theirs = f"transformer_blocks.{{i<{double}}}.", f"double_blocks.{{i<{double}}}."
    yield from rows(ENDS, column)
    # The original stacks (shift, scale), diffusers (scale, shift).
    yield swap_halves("norm_out.linear", "final_layer.adaLN_modulation.1")
    yield from rows(REFINER_BLOCK, column, *REFINER)
    yield fuse(tuple(REFINER[0] + part for part in QKV), f"{REFINER[1]}self_attn{joint}qkv")
    yield from rows(DOUBLE, column, ours, theirs)
    yield from rows(DOUBLE_NORMS, column, ours, theirs, scale=True)
    if not fused:
        yield from rows(SPLIT, column, ours, theirs)
        return
    for parts, side, word in FUSED:
        yield fuse(tuple(ours + part for part in parts), f"{theirs}{side}{joint}{word}")


def single(column: int, count: int) -> Iterator[Rule]:
    """The rules of `count` single blocks, whose q, k, v and first layer of the MLP are one."""
    ours, theirs = f"single_transformer_blocks.{{i<{count}}}.", f"single_blocks.{{i<{count}}}."
    yield from rows(SINGLE, column, ours, theirs)
    yield from rows(SINGLE_NORMS, column, ours, theirs, scale=True)
    yield fuse(tuple(ours + part for part in (*QKV, "proj_mlp")), theirs + "linear1", ratio=(1, 1, 1, 4))


COLUMNS: Mapping[str, int] = {"original": ORIGINAL, "comfy": COMFY}
