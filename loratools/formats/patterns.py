"""Which of PEFT's patterns (the keys of rank_pattern and alpha_pattern) speaks of a module: the first that fits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from loratools.adapters.expressions import Expression, expression, refusal
from loratools.errors import MalformedFile, UnsupportedFile

_SLOW = 100  # so many patterns that Python's own matcher does not get are none that anybody wrote
# A path with nothing of a regular expression in it but dots, or an anchor before it: nearly every pattern.
_PLAIN = re.compile(r"(\^?)([\w.-]+)")


class _Tail(NamedTuple):
    """A plain pattern: `pieces` between the dots, which match any one character, as regular expressions have it."""

    at: int
    anchored: bool
    pieces: tuple[str, ...]
    length: int

    def ends(self, name: str) -> bool:
        """Whether `name` ends so, at its start or after a dot."""
        start = len(name) - self.length
        if start < 0 or (start and (self.anchored or name[start - 1] != ".")):
            return False
        for piece in self.pieces:
            if not name.startswith(piece, start):
                return False
            start += len(piece) + 1
        return True


class _Index(NamedTuple):
    """The patterns of a configuration: plain ones by their last word, the others compiled, all with their places."""

    plain: Mapping[str, tuple[_Tail, ...]]
    others: tuple[tuple[int, Expression], ...]

    def first(self, names: Iterable[str]) -> int | None:
        """The place of the first pattern that matches one of the names."""
        found = [
            tail.at
            for name in names
            for word, tails in self.plain.items()
            if name.endswith(word)
            for tail in tails
            if tail.ends(name)
        ]
        found += [at for at, other in self.others if any(other.matches(name) for name in names)]
        return min(found, default=None)


def matching(pattern: Mapping[str, Any], names: Iterable[str]) -> Any | None:
    """The value of the first pattern that PEFT would match against one of a module's names, else None."""
    keys = tuple(pattern)
    at = _index(keys).first(tuple(names)) if keys else None
    return None if at is None else pattern[keys[at]]


@lru_cache(maxsize=32)
def _index(keys: tuple[str, ...]) -> _Index:
    """An index of patterns: a file with a rank of its own for every module has as many patterns as modules."""
    plain: dict[str, list[_Tail]] = {}
    others: list[tuple[int, Expression]] = []
    for at, key in enumerate(keys):
        found = _PLAIN.fullmatch(key)
        if found:
            pieces = tuple(found[2].split("."))
            plain.setdefault(pieces[-1], []).append(_Tail(at, bool(found[1]), pieces, len(found[2])))
        else:
            others.append((at, _compiled(key)))
    slow = [keys[at] for at, other in others if not other.quick]
    if len(slow) > _SLOW:
        raise UnsupportedFile(f"{len(slow)} patterns with repeats inside repeats, {slow[_SLOW]!r} among them")
    return _Index({word: tuple(tails) for word, tails in plain.items()}, tuple(others))


def _compiled(key: str) -> Expression:
    try:
        try:
            return expression(rf"(.*\.)?({key})$")
        except re.error:
            return expression(rf"(.*\.)?({re.escape(key)})$")
    except UnsupportedFile as error:
        raise refusal(key) from error


def require_bounded(config: Mapping[str, Any], *, path: object) -> None:
    """Raise UnsupportedFile for a pattern that could take for ever to match, MalformedFile for what holds no patterns.

    PEFT itself matches anything; a file from elsewhere must not stop the program that only looks at it.
    """
    for field in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(field)
        if pattern is None:
            continue
        if not isinstance(pattern, Mapping):
            raise MalformedFile(f"an object was expected, found {type(pattern).__name__}", path=path, key=field)
        try:
            _index(tuple(pattern))
        except UnsupportedFile as error:
            raise UnsupportedFile(f"{field}: {error.message}", path=path, key=field, hint=error.hint) from error
