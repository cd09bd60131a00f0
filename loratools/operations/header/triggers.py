"""The words that call an adapter: what its author wrote, what lies beside it, and what its captions say most."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from loratools.operations.header.producer import trigger_words

_LIMIT = 16 << 20
# What follows the file's name without its suffix → where in the document the words are.
_BESIDE: tuple[tuple[str, tuple[str, ...]], ...] = (
    (".civitai.info", ("trainedWords",)),
    (".metadata.json", ("civitai", "trainedWords")),
    (".cm-info.json", ("TrainedWords",)),
    (".json", ("activation text",)),
)
_AUTHORS = ("modelspec.trigger_phrase", "trigger_words", "instance_prompt")


class Trigger(NamedTuple):
    """Words, and the metadata key or the file that has them."""

    words: tuple[str, ...]
    source: str


def triggers(path: Path, metadata: dict[str, str]) -> tuple[Trigger, ...]:
    """The author's words first, then those of the files that web UIs keep beside it, then frequent tags."""
    found = []
    author = next((key for key in _AUTHORS if metadata.get(key)), None)
    if author is not None:
        found.append(Trigger(tuple(trigger_words(metadata)), author))
    found += _beside(path)
    if author is None and (tags := trigger_words(metadata)):
        found.append(Trigger(tuple(tags), "ss_tag_frequency"))
    return tuple(found)


def _beside(path: Path) -> Iterator[Trigger]:
    for ending, place in _BESIDE:
        file = path.with_name(path.stem + ending)
        if not file.is_file() or file.stat().st_size > _LIMIT:
            continue
        try:
            document: Any = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            continue  # a stranger's file of that name: it has no words for us
        for word in place:
            document = document.get(word) if isinstance(document, dict) else None
        words = document.split(",") if isinstance(document, str) else document
        if isinstance(words, list):
            kept = tuple(word.strip(" ,") for word in words if isinstance(word, str) and word.strip(" ,"))
            if kept:
                yield Trigger(kept, file.name)
