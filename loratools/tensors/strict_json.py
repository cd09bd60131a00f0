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
_NO_DIGIT_BUT_ZERO = bytes.maketrans(b"123456789", b"000000000")
_NEGATIVE_ZERO = re.compile(rb"-0(?<![^\s\[:,]-0)(?![0-9.eE])")
_LONG = b"0" * 40
_LONG_INTEGER = re.compile(_LONG + rb"(?<![^\s\[:,-]0{40})")  # a hash in a text is none
_SURROGATE = re.compile("[\ud800-\udfff]")


def strict_json(raw: bytes, *, path: object, what: str, infinite: bool = False) -> Any:
    """The value of a UTF-8 JSON document; `what` names it in messages ("the header"). `infinite` takes NaN and
    infinities, which Python writes into configurations.

    Raises MalformedFile for bytes that are not UTF-8, duplicate keys, NaN and infinities, lone surrogates, negative
    zeros, integers of more than 40 digits, nesting too deep to read, and documents with too many values.
    """
    if len(raw) > _LARGE:
        _check_number_of_values(raw, path, what)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedFile(f"{what} is not UTF-8 text (byte {error.start})", path=path) from error

    try:
        value = _decoder(raw, path, what, infinite=infinite).decode(text)
    except RecursionError as error:
        raise MalformedFile(f"{what} is nested too deep", path=path) from error
    except ValueError as error:
        raise MalformedFile(f"{what} is not JSON: {error}", path=path) from error
    if "\\u" in text and _has_surrogate(value):
        raise MalformedFile(f"{what} holds half of a surrogate pair", path=path)
    return value


def _decoder(raw: bytes, path: object, what: str, *, infinite: bool) -> json.JSONDecoder:
    """A decoder that refuses what strict_json refuses, as it meets it."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise _duplicate(items, path, what)
        return found

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

    return json.JSONDecoder(
        object_pairs_hook=pairs,
        parse_constant=None if infinite else constant,
        parse_int=integer if _may_hold_odd_integers(raw) else None,
        parse_float=fraction,
    )


def _may_hold_odd_integers(raw: bytes) -> bool:
    """Whether integers must be looked at one by one: a long one, or a negative zero, may stand somewhere."""
    if _NEGATIVE_ZERO.search(raw) is not None:
        return True
    zeros = raw.translate(_NO_DIGIT_BUT_ZERO)
    return _LONG in zeros and _LONG_INTEGER.search(zeros) is not None


def _duplicate(items: list[tuple[str, Any]], path: object, what: str) -> MalformedFile:
    first = {name: at for at, (name, _) in reversed([*enumerate(items)])}
    name = next(name for at, (name, _) in enumerate(items) if first[name] != at)
    return MalformedFile(
        f"{what} has the key {name!r} twice",
        path=path,
        key=name,
        hint="readers disagree on which one counts, so neither is taken; write the file anew",
    )


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
