"""What metadata tell about a person and a machine: paths, names of data, lists of captions' words, comments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

DATA = (
    "ss_bucket_info", "ss_dataset_dirs", "ss_datasets", "ss_reg_dataset_dirs", "ss_session_id", "ss_tag_frequency",
    "ss_training_comment",
)  # fmt: skip
"""Keys that hold nothing else: names of folders, words of captions, what was noted for oneself."""

_ROOTS = "home|Users|root|mnt|media|workspace|content|data|tmp|opt|srv|var|kaggle|notebooks|storage|Volumes"
# A path begins a word, or follows one that says whose it is: `base_model:adapter:/home/…` is a tag of PEFT's.
_PATH = re.compile(rf"(?:(?<![\w.:/])|(?<=[a-z]:))(?:file://)?(?:[A-Za-z]:[\\/]|\\\\[^\\\s]|~/|/(?:{_ROOTS})/)")
_WHOLE = re.compile(rf"(?:{_PATH.pattern})[^\n\"'<>|]*")


def stripped(metadata: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The metadata without what is private, and for every key that this changes "removed" or "shortened".

    A value that is a path keeps its last part, which names a model or an output, also inside JSON; a text with a path
    somewhere goes as a whole.
    """
    kept: dict[str, str] = {}
    changes: dict[str, str] = {}
    for key, value in metadata.items():
        found = None if key in DATA else _without_paths(value)
        if found is None:
            changes[key] = "removed"
            continue
        if found != value:
            changes[key] = "shortened"
        kept[key] = found
    return kept, changes


def private_keys(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The keys whose values hold something private."""
    return tuple(stripped(metadata)[1])


def _without_paths(value: str) -> str | None:
    if not _PATH.search(value):
        return value
    if value.lstrip().startswith(("{", "[")):
        try:
            text = json.dumps(_shortened(json.loads(value)), separators=(",", ":"))
        except (ValueError, RecursionError):
            return None  # something like JSON, or nested too deep, with a path in it: nothing of it can be kept safely
        return None if _PATH.search(text) else text
    return _name(value) if _WHOLE.fullmatch(value) else None


def _shortened(document: Any) -> Any:
    if isinstance(document, dict):
        return {_shortened(key): _shortened(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_shortened(value) for value in document]
    return _name(document) if isinstance(document, str) and _WHOLE.fullmatch(document) else document


def _name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
