"""Regular expressions out of a configuration, matched in a time that no expression can stretch.

Python's own matcher tries every way to share a name out among repeats: `(a+)+b` takes hours over forty characters.
Expressions with few choices go to it; others are matched over sets of states, which takes time proportional to the
name; what has no such form (look-around, back references beside many choices) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from re import _parser  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import Any, NamedTuple

from loratools.errors import UnsupportedFile

# Beyond these a name of some hundred characters could take longer than anyone waits.
_UNBOUNDED, _CHOICES, _LENGTH, _STATES, _KNOWN = 2, 6, 1 << 16, 2_000, 512
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT")
_BEGINS, _ENDS = ("AT_BEGINNING", "AT_BEGINNING_STRING"), ("AT_END", "AT_END_STRING")
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_SPACE": r"\s", "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w", "CATEGORY_NOT_WORD": r"\W",
}  # fmt: skip

Matcher = Callable[[str], bool]
Parsed = Iterable[tuple[Any, Any]]


class Expression(NamedTuple):
    """How an expression is matched; `quick` where Python's own matcher does it."""

    matches: Matcher
    quick: bool


class _TooMuch(Exception):
    """The expression has no form as a set of states, or one of too many."""


@lru_cache(maxsize=1024)
def expression(text: str) -> Expression:
    """What tells whether a name begins with what `text` stands for, as `re.match` does; raises re.error for what is no
    expression, and UnsupportedFile for one that could take for ever.
    """
    if len(text) > _LENGTH:
        raise refusal(text)
    try:
        compiled = re.compile(text)
        parsed = list(_parser.parse(text))
        if _is_quick(parsed):
            return Expression(lambda name: compiled.match(name) is not None, quick=True)
        return Expression(_States(parsed, compiled.flags).matches, quick=False)
    except (_TooMuch, RecursionError, OverflowError, MemoryError) as error:
        raise refusal(text) from error


def refusal(text: str) -> UnsupportedFile:
    """The error for an expression that could take for ever, in the words of who wrote it."""
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return UnsupportedFile(
        f"the expression '{shown}' could take for ever to match",
        hint="name the modules without repeats inside repeats, look-around and back references",
    )


def _is_quick(parsed: Parsed) -> bool:
    """Whether an expression leaves Python's matcher few ways to try."""
    found = {"unbounded": 0, "choices": 0}

    def walk(nodes: Parsed, *, repeated: bool) -> bool:
        for code, value in nodes:
            name = str(code)
            if name in _REPEATS:
                least, most, inner = value
                if most != least:
                    found["unbounded" if most > 1 else "choices"] += 1
                    if repeated:
                        return False
                if not walk(inner, repeated=repeated or most > 1):
                    return False
            elif name == "BRANCH":
                found["choices"] += 1
                if repeated or not all(walk(inner, repeated=repeated) for inner in value[1]):
                    return False
            elif name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
                if not walk(value[-1], repeated=repeated):
                    return False
            elif name not in ("LITERAL", "NOT_LITERAL", "ANY", "IN", "AT", "GROUPREF"):
                return False
        return True

    return walk(parsed, repeated=False) and found["unbounded"] <= _UNBOUNDED and found["choices"] <= _CHOICES


class _Step(NamedTuple):
    """A state: `what` is "char" (with its test), "split", "begin", "end" or "accept"; `to` are the states after it."""

    what: str
    to: tuple[int, ...]
    test: Matcher | None = None


class _States:
    """An expression as states; a name is matched by the set of those that are reached, character by character."""

    def __init__(self, parsed: Sequence[tuple[Any, Any]], flags: int) -> None:
        if flags & ~re.UNICODE:
            raise _TooMuch
        self.steps: list[_Step] = [_Step("accept", ())]
        self.first = self._sequence(parsed, 0)
        self._known: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def matches(self, name: str) -> bool:
        """Whether the name begins with what the expression stands for."""
        reached = self._closure((self.first,), begin=True)
        for at, character in enumerate(name):
            # `$` is also before a line's end that ends the name.
            if 0 in (self._closure(reached, begin=at == 0, end=True) if name[at:] == "\n" else reached):
                return True
            key = (reached, character)
            if key not in self._known:
                if len(self._known) >= _KNOWN:
                    self._known.clear()
                steps = (self.steps[state] for state in reached)
                self._known[key] = self._closure(to for step in steps if step.test and step.test(character)
                                                 for to in step.to)  # fmt: skip
            reached = self._known[key]
        return 0 in self._closure(reached, begin=not name, end=True)

    def _closure(self, states: Iterable[int], *, begin: bool = False, end: bool = False) -> frozenset[int]:
        """The states that are reached from others without a character."""
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            state = waiting.pop()
            if state not in found:
                found.add(state)
                step = self.steps[state]
                if step.what == "split" or (step.what == "begin" and begin) or (step.what == "end" and end):
                    waiting += step.to
        return frozenset(found)

    def _add(self, what: str, to: Iterable[int], test: Matcher | None = None) -> int:
        if len(self.steps) >= _STATES:
            raise _TooMuch
        self.steps.append(_Step(what, tuple(to), test))
        return len(self.steps) - 1

    def _sequence(self, nodes: Parsed, then: int) -> int:
        """The first state of nodes one after another, before `then`."""
        for code, value in reversed(list(nodes)):
            then = self._node(str(code), value, then)
        return then

    def _node(self, name: str, value: Any, then: int) -> int:
        if name in _REPEATS:
            least, most, inner = value
            return self._repeat(least, most, inner, then)
        if name == "BRANCH":
            return self._add("split", [self._sequence(inner, then) for inner in value[1]])
        if name == "SUBPATTERN" and not value[1] and not value[2]:
            return self._sequence(value[3], then)
        if name == "AT" and str(value) in (*_BEGINS, *_ENDS):
            return self._add("begin" if str(value) in _BEGINS else "end", [then])
        return self._add("char", [then], _test(name, value))

    def _repeat(self, least: int, most: int, inner: Parsed, then: int) -> int:
        nodes = list(inner)
        if str(most) == "MAXREPEAT":
            start = self._add("split", ())
            self.steps[start] = _Step("split", (self._sequence(nodes, start), then))
        else:
            start = then
            for _ in range(most - least):
                start = self._add("split", [self._sequence(nodes, start), then])
        for _ in range(least):
            before, start = start, self._sequence(nodes, start)
            if start == before:
                break  # nothing, any number of times
        return start


def _test(name: str, value: Any) -> Matcher:
    """The test of one character."""
    if name == "ANY":
        return lambda character: character != "\n"
    if name == "LITERAL":
        return lambda character: ord(character) == value
    if name == "NOT_LITERAL":
        return lambda character: ord(character) != value
    if name == "RANGE":
        return lambda character: value[0] <= ord(character) <= value[1]
    if name == "CATEGORY" and str(value) in _CATEGORIES:
        category = re.compile(_CATEGORIES[str(value)])
        return lambda character: category.match(character) is not None
    if name == "IN":
        negated = str(value[0][0]) == "NEGATE"
        tests = [_test(str(code), inner) for code, inner in value[negated:]]
        return lambda character: any(test(character) for test in tests) is not negated
    raise _TooMuch
