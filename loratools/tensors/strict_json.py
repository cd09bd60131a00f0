"""Strict JSON: what every careful parser agrees on, and nothing that two parsers could read in two ways."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any, NoReturn

from loratools.errors import MalformedFile

MAXIMUM_VALUES = 4_000_000
"""No more values, or texts, than this in one document: 200,000 tensors need half of it."""

_LARGE = 1 << 20
_STRING = re.compile(rb'"[^"]*"')
_SURROGATE = re.compile("[\ud800-\udfff]")


def strict_json(raw: bytes, *, path: object, what: str) -> Any:
    """The value of a UTF-8 JSON document; `what` names it in messages ("the header").

    Raises MalformedFile for bytes that are not UTF-8, duplicate keys, NaN and infinities, lone surrogates, negative
    zeros, integers of more than 40 digits, nesting too deep to read, and documents with too many values.
    """
    if len(raw) > _LARGE:
        _check_number_of_values(raw, path, what)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFile(f"{what} is not UTF-8 text (byte {error.start})", path=path) from error

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return _without_duplicates(items, path, what)

    def constant(word: str) -> NoReturn:
        raise MalformedFile(f"{what} holds {word}, which is not JSON", path=path)

    def integer(digits: str) -> int | float:
        if len(digits) > 40:
            raise MalformedFile(f"{what} holds an integer of {len(digits)} digits", path=path)
        return -0.0 if digits == "-0" else int(digits)

    def fraction(digits: str) -> float:
        number = float(digits)
        if not isfinite(number):
            raise MalformedFile(f"{what} holds the number {digits[:40]}, which no double can hold", path=path)
        return number

    try:
        value = json.loads(
            text, object_pairs_hook=pairs, parse_constant=constant, parse_int=integer, parse_float=fraction
        )
    except RecursionError as error:
        raise MalformedFile(f"{what} is nested too deep", path=path) from error
    except ValueError as error:
        raise MalformedFile(f"{what} is not JSON: {error}", path=path) from error
    if "\\u" in text and _has_surrogate(value):
        raise MalformedFile(f"{what} holds half of a surrogate pair", path=path)
    return value


def _without_duplicates(items: list[tuple[str, Any]], path: object, what: str) -> dict[str, Any]:
    found = dict(items)
    if len(found) == len(items):
        return found
    seen: set[str] = set()
    for name, _ in items:
        if name in seen:
            raise MalformedFile(
                f"{what} has the key {name!r} twice",
                path=path,
                key=name,
                hint="readers disagree on which one counts, so neither is taken; write the file anew",
            )
        seen.add(name)
    return found


def _check_number_of_values(raw: bytes, path: object, what: str) -> None:
    """Counted before parsing, because a bomb of empty lists takes 60 bytes of memory for every 3 of its own."""
    # Without its escapes a text ends at the next quote. Texts are counted first: cutting each out takes memory.
    bare = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    count = bare.count(b'"') // 2
    if count <= MAXIMUM_VALUES:
        bare = _STRING.sub(b"", bare)
        count = bare.count(b",") + bare.count(b"[") + bare.count(b"{")
    if count > MAXIMUM_VALUES:
        raise MalformedFile(f"{what} holds {count} values, more than {MAXIMUM_VALUES}", path=path)


def _has_surrogate(value: Any) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if _SURROGATE.search(item):
                return True
        elif isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return False
