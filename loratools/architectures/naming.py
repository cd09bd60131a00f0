"""Compile naming tables into look-ups: native path → canonical paths, and canonical path → native path.

A path is looked up by its *skeleton*: split on `.` and `_`, every all-digit segment a hole. Flat, dotted and half-flat
spellings of one path share a skeleton, so a key never needs guessing: `down_blocks_0_attentions_1_proj_in`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from itertools import product
from math import prod
from typing import NamedTuple

from loratools.architectures.rules import Joint, Layout, Rule, same

Skeleton = tuple[str, ...]
HOLE = re.compile(r"\{([a-z])<(\d+)(?:\*(\d+)\+(\d+))?\}")


class Hole(NamedTuple):
    """A hole of a template: `{i<4}` is 0 to 3, `{i<4*3+2}` the numbers 2, 5, 8 and 11 (i is 0 to 3 all the same)."""

    name: str
    bound: int
    step: int = 1
    first: int = 0


def _segments(path: str) -> list[str]:
    return path.replace("_", ".").split(".")


def _is_number(digits: str) -> bool:
    """Whether decimal digits are a number as module lists have them, and no word that looks like one."""
    return digits.isascii() and len(digits) <= 6 and (digits[0] != "0" or digits == "0")


def skeleton(path: str) -> tuple[Skeleton, tuple[int, ...]]:
    """The words of a path with "#" for every number, and the numbers. Empty segments count for nothing."""
    words = _segments(path.replace("#", "##"))
    numbers: list[int] = []
    for at, word in enumerate(words):
        if word.isdecimal() and _is_number(word):
            words[at] = "#"
            numbers.append(int(word))
    return tuple(filter(None, words)), tuple(numbers)


@cache
def words_of(template: str) -> Skeleton:
    """The words of a template's skeleton, without parsing it: for an index over thousands of them."""
    words = filter(None, _segments(template))
    return tuple(["#" if word[0] == "{" or (word.isdecimal() and _is_number(word)) else word for word in words])


def _first_word(template: str) -> str:
    """The first of `words_of`, at less cost."""
    word = template.partition(".")[0].partition("_")[0]
    return words_of(template)[0] if not word or word[0] in "{0123456789" else word


class Template(NamedTuple):
    """A parsed template: its skeleton, for each number its fixed value or a hole, and the text with `%d` for holes."""

    text: str
    words: Skeleton
    numbers: tuple[int | Hole, ...]
    pattern: str
    free: tuple[tuple[int, Hole], ...]

    @classmethod
    @cache
    def parse(cls, text: str) -> Template:
        """Parse `a.{i<3}.b`; a hole must be a whole segment."""
        words: list[str] = []
        numbers: list[int | Hole] = []
        for segment in filter(None, _segments(text)):
            if segment[0] == "{":
                hole = HOLE.fullmatch(segment)
                if hole is None:
                    raise ValueError(f"{text}: {segment} is no hole")
                words.append("#")
                numbers.append(Hole(hole[1], int(hole[2]), int(hole[3] or 1), int(hole[4] or 0)))
            elif segment.isdecimal() and _is_number(segment):
                words.append("#")
                numbers.append(int(segment))
            else:
                words.append(segment)
        pattern = HOLE.sub("%d", text.replace("%", "%%"))
        free = tuple((at, number) for at, number in enumerate(numbers) if not isinstance(number, int))
        return cls(text, tuple(words), tuple(numbers), pattern, free)

    @property
    def fixed(self) -> dict[int, int]:
        """position → value of every number that is no hole."""
        return {at: number for at, number in enumerate(self.numbers) if isinstance(number, int)}

    def holes(self, numbers: tuple[int, ...]) -> dict[str, int] | None:
        """The values of the holes, or None where one is out of its bound."""
        values: dict[str, int] = {}
        for at, (name, bound, step, first) in self.free:
            value, rest = divmod(numbers[at] - first, step)
            if rest or not 0 <= value < bound or values.setdefault(name, value) != value:
                return None
        return values

    def fill(self, values: Mapping[str, int]) -> str:
        """The path with its holes filled."""
        return self.pattern % tuple([values[name] * step + first for _, (name, _, step, first) in self.free])

    def expand(self) -> Iterable[dict[str, int]]:
        """The values of the holes of every path this template stands for."""
        bounds = {hole.name: hole.bound for _, hole in self.free}
        for values in product(*(range(bound) for bound in bounds.values())):
            yield dict(zip(bounds, values, strict=True))


class Placement(NamedTuple):
    """One weight in one naming: its native path, the canonical paths it holds, in order, and how."""

    native: str
    paths: tuple[str, ...]
    ratio: tuple[int, ...]
    layout: Layout
    joint: Joint = "."
    weight: str = "weight"
    hand: int = 0

    def settled(self, weight: Sequence[int | None]) -> Placement | None:
        """The placement for a weight [out, in, kernel…]: `swap_pair` made plain; None where the shape does not tell."""
        if self.layout != "swap_pair":
            return self
        if len(weight) < 2 or None in weight:
            return None
        rows, *columns = (extent or 0 for extent in weight)
        return self._replace(layout="swap_halves" if rows == 2 * prod(columns) else "rows")

    @property
    def weight_key(self) -> str:
        """The native key of the weight, without the component's prefix."""
        return f"{self.native}{self.joint}{self.weight}" if self.joint else self.native

    @property
    def bias_key(self) -> str | None:
        """The native key that the bias would have, or None for a bare parameter."""
        return f"{self.native}{self.joint}bias" if self.joint else None


Located = tuple[Mapping[str, int], Rule]
"""A row of a table, and what its holes stand for."""


Rows = dict[tuple[int, ...], dict[tuple[int, ...], tuple[Template, Rule]]]
"""The rows of one skeleton: positions of the fixed numbers → their values → (template, row)."""


def locate(rows: Rows, numbers: tuple[int, ...]) -> Located | None:
    """The row that the numbers of a path fit, among those of its skeleton."""
    for positions, by_values in rows.items():
        row = by_values.get(tuple([numbers[at] for at in positions]))
        if row is not None and (values := row[0].holes(numbers)) is not None:
            return values, row[1]
    return None


class _Index:
    """skeleton → its rows, parsed when first asked for."""

    def __init__(self, rows: Iterable[tuple[str, Rule]]) -> None:
        self._rows: dict[Skeleton, list[tuple[str, Rule]]] = {}
        self._parsed: dict[Skeleton, Rows] = {}
        for template, rule in rows:
            self._rows.setdefault(words_of(template), []).append((template, rule))

    @property
    def table(self) -> dict[Skeleton, Rows]:
        """All of it; raises ValueError where two templates stand for the same keys."""
        return {words: self.rows(words) for words in self._rows}

    def rows(self, words: Skeleton) -> Rows:
        """The rows of a skeleton, none for one that is not known."""
        known = self._parsed.get(words)
        if known is None:
            known = {}
            for text, rule in self._rows.get(words, ()):
                template = Template.parse(text)
                fixed = template.fixed
                values = tuple(fixed.values())
                found = known.setdefault(tuple(fixed), {})
                if values in found:
                    raise ValueError(f"{template.text} and {found[values][0].text} stand for the same keys")
                found[values] = (template, rule)
            if known:
                self._parsed[words] = known
        return known


class Naming:
    """One spelling of all paths of one component: a name and its rows.

    `verbatim` is for models that need no table: every canonical path is its own native one. `named` is the adapter's
    name inside the keys of the files that are spelt so, where nothing else tells them from another naming's.
    """

    def __init__(self, name: str, rules: tuple[Rule, ...], *, verbatim: bool = False, named: str = "") -> None:
        self.name = name
        self.rules = rules
        self.verbatim = verbatim
        self.named = named

    @cached_property
    def natives(self) -> _Index:
        """The look-up by native path."""
        return _Index((rule.native, rule) for rule in self.rules)

    @cached_property
    def canonicals(self) -> _Index:
        """The look-up by canonical path."""
        return _Index((part, rule) for rule in self.rules for part in rule.canonical)

    @cached_property
    def by_first_word(self) -> dict[str, list[str]]:
        """The native templates by the first word of their skeletons."""
        found: dict[str, list[str]] = {}
        for rule in self.rules:
            found.setdefault(_first_word(rule.native), []).append(rule.native)
        return found

    def at_native(self, words: Skeleton, numbers: tuple[int, ...]) -> Placement | None:
        """The placement of a native path, given as its skeleton."""
        found = locate(self.natives.rows(words), numbers)
        return self.place(found) if found else None

    def at_canonical(self, path: str) -> Placement | None:
        """The placement of the native weight that holds a canonical path."""
        if self.verbatim:
            return Placement(path, (path,), (1,), "rows")
        known = self._placed.get(path)
        if known is None:
            words, numbers = skeleton(path)
            found = locate(self.canonicals.rows(words), numbers)
            known = self.place(found) if found else None
        return known

    @cached_property
    def _placed(self) -> dict[str, Placement]:
        """The placements made so far, by canonical path: a file is read, written and read again by the same ones."""
        return {}

    def place(self, located: Located) -> Placement:
        """The placement of a row that was found."""
        values, rule = located
        first = Template.parse(rule.canonical[0]).fill(values)
        known = self._placed.get(first)
        if known is None:
            known = _placement(values, rule, first)
            self._placed.update(dict.fromkeys(known.paths, known))
        return known

    def placements(self) -> Iterable[Placement]:
        """Every weight of the component, in table order."""
        for rule in self.rules:
            yield from self.placements_of(rule)

    def placements_of(self, rule: Rule) -> Iterable[Placement]:
        """Every weight that one row stands for."""
        for values in Template.parse(rule.native).expand():
            yield _placement(values, rule, Template.parse(rule.canonical[0]).fill(values))


def _placement(values: Mapping[str, int], rule: Rule, first: str) -> Placement:
    """The placement of a row whose first canonical path is `first`, which most rows spell natively as well."""
    templates = rule.canonical
    native = first if rule.native == templates[0] else Template.parse(rule.native).fill(values)
    paths = (first, *[Template.parse(part).fill(values) for part in templates[1:]])
    return Placement(native, paths, rule.ratio, rule.layout, rule.joint, rule.weight, rule.hand)


def canonical_naming(rules: Iterable[Rule], name: str) -> Naming:
    """The naming in which every canonical path of `rules` stands for itself, a bare parameter where it is one there."""
    return Naming(name, tuple([same(part, joint=rule.joint and ".") for rule in rules for part in rule.canonical]))
