"""The weights of a language model, which no table is for: its own names, and the layers that they fuse or stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from loratools.architectures.llm_namings import (
    ATTENTION_OUT,
    EXPERTS,
    FUSED_QKV,
    PARTS,
    STACKED,
    LanguageNaming,
    canonical,
    shares,
    stacked_name,
)
from loratools.bases.native import Native
from loratools.bases.quantised import unit_key
from loratools.tensors.source import TensorSource

TURNED = {"llm-gpt2": ("c_attn", "c_proj", "c_fc"), "llm-gpt-oss": (EXPERTS,)}
"""Language models that store layers as [in, out] (transformers' Conv1D, GPT-OSS' experts), with the last words of their
names.
"""


def names_of(natives: Iterable[Native]) -> LanguageNaming:
    """The naming of a language model as transformers 5 has it: experts stacked, the rest as its files have it."""
    found = LanguageNaming()
    for native in natives:
        placement = native.placement
        if stacked_name(placement.paths[0]):
            found = found._replace(experts="stacked")
        elif len(placement.paths) == len(PARTS):
            found = found._replace(qkv=placement.ratio)
        elif len(placement.paths) > 1:
            found = found._replace(gate_up=True)
    return found


def verbatim(source: TensorSource, turned: frozenset[str]) -> Iterator[Native]:
    """Every weight and bias of a language model; those of `turned` layers are the transpose of what others hold."""
    qkv = _shares(source)
    for key in source:
        path, _, leaf = key.rpartition(".")
        word = path.rpartition(".")[2]
        if path and leaf in ("weight", "bias"):
            placement = canonical(path, qkv)
            if word in turned:
                placement = placement._replace(layout="transpose")
            is_bias = leaf == "bias"
            yield Native(source[key], key, placement, source, is_bias, None if is_bias else unit_key(source, key))
        elif leaf in STACKED and word == EXPERTS and len(source[key].shape) == 3:
            yield from _experts(source, key, turned=EXPERTS in turned)


def _experts(source: TensorSource, key: str, *, turned: bool) -> Iterator[Native]:
    """The slices of a stacked parameter [experts, out, in]; `turned` ones are [experts, in, out]."""
    count, rows, columns = source[key].shape
    matrix = source[key].reshape(count * rows, columns)
    path, _, leaf = key.rpartition(".")
    for at in range(count):
        placement = canonical(f"{path}.{at}.{leaf}")
        if turned:
            placement = placement._replace(layout="transpose")
        yield Native(matrix.rows(at * rows, (at + 1) * rows), key, placement, source, part=at)


def _shares(source: TensorSource) -> tuple[int, ...]:
    """How the rows of a fused query, key and value are shared out; empty where there is none."""
    for key in source:
        if key.endswith(f".{FUSED_QKV}.weight"):
            beside = f"{key.removesuffix(f'{FUSED_QKV}.weight')}{ATTENTION_OUT}.weight"
            if beside in source:
                return shares(source[key].shape[0], source[beside].shape[1])
    return ()
