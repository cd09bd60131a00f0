"""How many of a model's repeated blocks a file is about: what tells models apart that share names and sizes.

The blocks of FLUX.1, HunyuanVideo and Qwen-Image are named and sized alike, but there are 19, 20 and 60 of them: a file
for blocks 0 to 18, all of them, is for the first. One for some blocks may be for any.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from loratools.architectures.architecture import shapes
from loratools.formats.detect import Candidate

_FIRST_NUMBER = re.compile(r"(.*?)[._](\d+)(?:[._]|$)")

Stacks = dict[tuple[str, str], frozenset[int]]
"""(component, path up to its first number) → the numbers that follow it."""


def by_extents(found: Sequence[Candidate], variants: dict[str, tuple[str, ...]]) -> list[Candidate]:
    """The candidates of which a file has all blocks of every sort it touches; all of them where it has of none.

    `variants` are those that fit, by architecture.
    """
    whole = [item for item in found if _is_whole(item, variants[item.architecture.id])]
    return whole or list(found)


def _is_whole(item: Candidate, variants: tuple[str, ...]) -> bool:
    """Whether the file has every block of the stacks it touches, in some variant."""
    paths = {(place.component, path) for place in item.places.values() for path in place.placement.paths}
    touched = _stacks(paths)
    tables = [variant.shapes for variant in item.architecture.variants if variant.name in variants]
    return any(all(_table(table).get(at) == numbers for at, numbers in touched.items()) for table in tables)


def _stacks(paths: set[tuple[str, str]]) -> Stacks:
    found: dict[tuple[str, str], set[int]] = {}
    for component, path in paths:
        match = _FIRST_NUMBER.match(path)
        if match:
            found.setdefault((component, match[1]), set()).add(int(match[2]))
    return {at: frozenset(numbers) for at, numbers in found.items()}


@cache
def _table(table: str) -> Stacks:
    """The stacks of a variant."""
    return _stacks({(component, path) for component, paths in shapes(table).items() for path in paths})
