"""Compile naming tables into look-ups: native path → canonical paths, and canonical path → native path.

A path is looked up by its *skeleton*: split on `.` and `_`, every all-digit segment a hole. Flat, dotted and half-flat
spellings of one path share a skeleton, so a key never needs guessing: `down_blocks_0_attentions_1_proj_in`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import NamedTuple

from loratools.architectures.rules import Joint, Layout, Rule, same

Skeleton = tuple[str, ...]
_NUMBER = re.compile(r"(?<![^._])(?:0|[1-9][0-9]{0,5})(?![^._])")
_ANY_HOLE = re.compile(r"\{[^}]*\}")
HOLE = re.compile(r"\{([a-z])<(\d+)(?:\*(\d+)\+(\d+))?\}")


class Hole(NamedTuple):
    """A hole of a template: `{i<4}` is 0 to 3, `{i<4*3+2}` the numbers 2, 5, 8 and 11 (i is 0 to 3 all the same)."""

    name: str
    bound: int
    step: int = 1
    first: int = 0


def _segments(path: str) -> list[str]:
    return path.replace("_", ".").split(".")


def _is_number(segment: str) -> bool:
    return segment.isdecimal() and segment.isascii() and len(segment) <= 6 and (segment[0] != "0" or segment == "0")


def skeleton(path: str) -> tuple[Skeleton, tuple[int, ...]]:
    """The words of a path with "#" for every number, and the numbers. Empty segments count for nothing."""
    words = _segments(_NUMBER.sub("#", path.replace("#", "##")))
    return tuple(filter(None, words)), tuple(map(int, _NUMBER.findall(path)))


@cache
def words_of(template: str) -> Skeleton:
    """The words of a template's skeleton, without parsing it: for an index over thousands of them."""
    return tuple(filter(None, _segments(_NUMBER.sub("#", _ANY_HOLE.sub("#", template)))))


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
        for segment in _segments(text):
            if segment.startswith("{"):
                hole = HOLE.fullmatch(segment)
                if hole is None:
                    raise ValueError(f"{text}: {segment} is no hole")
                words.append("#")
                numbers.append(Hole(hole[1], int(hole[2]), int(hole[3] or 1), int(hole[4] or 0)))
            elif _is_number(segment):
                words.append("#")
                numbers.append(int(segment))
            elif segment:
                words.append(segment)
        pattern = HOLE.sub("%d", text.replace("%", "%%"))
        free = tuple((at, number) for at, number in enumerate(numbers) if not isinstance(number, int))
        return cls(text, tuple(words), tuple(numbers), pattern, free)

    @property
    def fixed(self) -> tuple[tuple[int, int], ...]:
        """(position, value) of every number that is no hole."""
        return tuple((at, number) for at, number in enumerate(self.numbers) if isinstance(number, int))

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


_Rows = dict[tuple[int, ...], dict[tuple[int, ...], tuple[Template, Rule]]]


class _Index:
    """skeleton → (positions of the fixed numbers, {their values: (template, row)}); parsed when first asked for."""

    def __init__(self, rows: Iterable[tuple[str, Rule]]) -> None:
        self._rows: dict[Skeleton, list[tuple[str, Rule]]] = {}
        self._parsed: dict[Skeleton, _Rows] = {}
        for template, rule in rows:
            self._rows.setdefault(words_of(template), []).append((template, rule))

    @property
    def table(self) -> dict[Skeleton, _Rows]:
        """All of it; raises ValueError where two templates stand for the same keys."""
        return {words: self._at(words) for words in self._rows}

    def _at(self, words: Skeleton) -> _Rows:
        known = self._parsed.get(words)
        if known is None:
            known = {}
            for text, rule in self._rows.get(words, ()):
                template = Template.parse(text)
                positions = tuple(at for at, _ in template.fixed)
                values = tuple(value for _, value in template.fixed)
                found = known.setdefault(positions, {})
                if values in found:
                    raise ValueError(f"{template.text} and {found[values][0].text} stand for the same keys")
                found[values] = (template, rule)
            if known:
                self._parsed[words] = known
        return known

    def find(self, words: Skeleton, numbers: tuple[int, ...]) -> Located | None:
        for positions, by_values in self._at(words).items():
            row = by_values.get(tuple([numbers[at] for at in positions]))
            if row is not None and (values := row[0].holes(numbers)) is not None:
                return values, row[1]
        return None


@dataclass(frozen=True)
class Naming:
    """One spelling of all paths of one component: a name and its rows.

    `verbatim` is for models that need no table: every canonical path is its own native one.
    """

    name: str
    rules: tuple[Rule, ...]
    verbatim: bool = False

    @cached_property
    def natives(self) -> _Index:
        """The look-up by native path."""
        return _Index((rule.native, rule) for rule in self.rules)

    @cached_property
    def canonicals(self) -> _Index:
        """The look-up by canonical path."""
        return _Index((part, rule) for rule in self.rules for part in rule.canonical)

    def at_native(self, words: Skeleton, numbers: tuple[int, ...]) -> Placement | None:
        """The placement of a native path, given as its skeleton."""
        found = self.natives.find(words, numbers)
        return self.place(found) if found else None

    def at_canonical(self, path: str) -> Placement | None:
        """The placement of the native weight that holds a canonical path."""
        if self.verbatim:
            return Placement(path, (path,), (1,), "rows")
        known = self._placed.get(path)
        if known is None:
            found = self.canonicals.find(*skeleton(path))
            known = self.place(found) if found else None
        return known

    @cached_property
    def _placed(self) -> dict[str, Placement]:
        """The placements made so far, by canonical path: a file is read, written and read again by the same ones."""
        return {}

    def place(self, located: Located) -> Placement:
        """The placement of a row that was found."""
        values, rule = located
        known = self._placed.get(Template.parse(rule.canonical[0]).fill(values))
        if known is None:
            known = _placement(values, rule)
            self._placed.update(dict.fromkeys(known.paths, known))
        return known

    def placements(self) -> Iterable[Placement]:
        """Every weight of the component, in table order."""
        for rule in self.rules:
            for values in Template.parse(rule.native).expand():
                yield _placement(values, rule)


def _placement(values: Mapping[str, int], rule: Rule) -> Placement:
    paths = tuple(Template.parse(part).fill(values) for part in rule.canonical)
    return Placement(Template.parse(rule.native).fill(values), paths, rule.ratio, rule.layout, rule.joint, rule.weight)


def canonical_naming(rules: Iterable[Rule], name: str, *, bare: Collection[str] = ()) -> Naming:
    """The naming in which every canonical path of `rules` stands for itself; those in `bare` are bare parameters."""
    parts = (part for rule in rules for part in rule.canonical)
    return Naming(name, tuple(same(part, joint="" if part in bare else ".") for part in parts))
