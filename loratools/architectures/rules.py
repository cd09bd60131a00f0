"""The rows of a naming table: canonical template(s) on the left, one native template on the right, sometimes a layout.

A template is a dotted path with named, bounded holes: `transformer_blocks.{i<19}.attn.to_q` stands for 19 paths,
`blocks.{i<32*3+2}.attention.to_q` for the 32 of every third block from 2 on.
Rows describe; they hold no tensors. Both directions of every naming come from the one row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Layout = Literal["rows", "dealt", "swap_halves", "swap_pair", "transpose"]
Joint = Literal[".", "_", ""]


class Rule(NamedTuple):
    """One row. `ratio` has one share for each canonical template; `layout` is what the native weight does to the rows
    of the canonical one; `joint` is what stands between the path and `weight` or `bias` ("." but for bare parameters:
    "_" in `in_proj_weight`, "" where the path itself is the weight); `weight` is the native word for the weight
    ("scale" in BFL's norms); `hand` is how many rows of each part a "dealt" weight takes in turn.
    """

    canonical: tuple[str, ...]
    native: str
    ratio: tuple[int, ...] = (1,)
    layout: Layout = "rows"
    joint: Joint = "."
    weight: str = "weight"
    hand: int = 0


def rename(canonical: str, native: str, *, joint: Joint = ".", weight: str = "weight") -> Rule:
    """The same weight under another name."""
    return Rule((canonical,), native, joint=joint, weight=weight)


def renamed(
    names: Iterable[tuple[str, str]], ours: str = "", theirs: str = "", *, joint: Joint = ".", weight: str = "weight"
) -> list[Rule]:
    """A `rename` for each pair of names, behind `ours` and `theirs`."""
    return [Rule((ours + here,), theirs + there, (1,), "rows", joint, weight) for here, there in names]


def same(path: str, *, joint: Joint = ".") -> Rule:
    """The same weight under the same name."""
    return Rule((path,), path, joint=joint)


def fuse(parts: tuple[str, ...], whole: str, *, ratio: tuple[int, ...] = (), joint: Joint = ".") -> Rule:
    """Several canonical weights stacked by rows into one native weight; equal shares unless `ratio` says otherwise."""
    return Rule(parts, whole, ratio or (1,) * len(parts), joint=joint)


def fused(wholes: Iterable[tuple[tuple[str, ...], str]], ours: str = "", theirs: str = "") -> list[Rule]:
    """A `fuse` into equal shares for each pair of parts and whole, behind `ours` and `theirs`."""
    return [fuse(tuple([ours + part for part in parts]), theirs + whole) for parts, whole in wholes]


def deal(parts: tuple[str, ...], whole: str, *, hand: int) -> Rule:
    """Canonical weights of one size dealt out by rows: `hand` of the first, of the second, …, and round again."""
    return Rule(parts, whole, (1,) * len(parts), layout="dealt", hand=hand)


def swap_halves(canonical: str, native: str) -> Rule:
    """The native weight has the two halves of its rows the other way round (adaLN's shift and scale)."""
    return Rule((canonical,), native, layout="swap_halves")


def swap_pair(canonical: str, native: str) -> Rule:
    """Halves change places where the weight has two rows a column, a shift and a scale; six stay as they are.

    SD3's last block has two where the others have six, and which block is the last is the variant's.
    """
    return Rule((canonical,), native, layout="swap_pair")


def transpose(canonical: str, native: str, *, joint: Joint = "") -> Rule:
    """The native weight is the transpose of the canonical one (open_clip's text_projection)."""
    return Rule((canonical,), native, layout="transpose", joint=joint)
