"""What the fields of a recorded spelling must be: a record comes out of a file, and may hold anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from loratools.tensors.dtypes import DTYPES

Check = Callable[[Any], bool]
FRACTION = re.compile(r"-?\d{1,400}(/[1-9]\d{0,400})?")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_extents(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value in DTYPES


def _is_stored(value: Any) -> bool:
    """The dtype and shape of an alpha tensor, or None where there was none."""
    return value is None or (
        isinstance(value, list) and len(value) == 2 and _is_dtype(value[0]) and value[1] in ([], [1])
    )


def _is_target(value: Any) -> bool:
    """Paths and their shares."""
    if not isinstance(value, list) or len(value) != 2:
        return False
    paths, ratio = value
    return _is_texts(paths) and _is_extents(ratio) and 0 < len(paths) == len(ratio) and 0 not in ratio


def _is_spelling(value: Any) -> bool:
    """Prefix, naming, whether flat, and suffixes by role."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    return _is_texts(value[:2]) and isinstance(value[2], bool) and _maps(_is_text)(value[3])


def _is_unfolded(value: Any) -> bool:
    """An alpha as a fraction (None where there was none) and the dtypes of the factors by role."""
    if not isinstance(value, list) or len(value) != 2 or not _maps(_is_dtype)(value[1]):
        return False
    return value[0] is None or (_is_text(value[0]) and FRACTION.fullmatch(value[0]) is not None)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _maps(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


FIELDS: Mapping[str, Check] = {
    "format":      _is_text,
    "folder":      lambda value: isinstance(value, bool),
    "spellings":   _maps(_is_spelling),
    "alpha":       lambda value: value in ("tensor", "metadata", "config", "none"),
    "alpha_dtype": lambda value: value is None or _is_dtype(value),
    "keys":        _maps(_is_text),
    "shapes":      _maps(_is_extents),
    "alphas":      _maps(_is_stored),
    "targets":     _maps(_is_target),
    "unfolded":    _maps(_is_unfolded),
    "metadata":    _maps(_is_text),
    "configs":     _maps(_is_object),
    "had_format":  lambda value: isinstance(value, bool),
}  # fmt: skip


def damaged(fields: Mapping[str, Any]) -> str | None:
    """The first field that is no part of a record or does not hold what it must, or None."""
    return next((name for name, value in fields.items() if name not in FIELDS or not FIELDS[name](value)), None)
