"""Keys that are no factor of a layer: modules and embeddings that go along, bookkeeping, and what nobody knows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loratools.errors import closest
from loratools.formats.collect import Group
from loratools.formats.detect import Stem, by_names
from loratools.formats.format import BUNDLE, EMBEDDING, NUMBERED, WHOLE
from loratools.formats.opening import Part
from loratools.tensors.lazy import LazyTensor

KNOWN_HARMLESS = "known-harmless"
# OneTrainer's bookkeeping; the size of a weight that ComfyUI is to widen, which the factors beside it have.
_BOOKS = re.compile(r"_aux\..+|.+\.reshape_weight")
# What Stability AI's script for Cascade trains beside the layers: what is added to rows of the token embedding.
_TOKENS = ("embeddings.embeddings", "embeddings.indices")


class UnknownKey(NamedTuple):
    """A key that no adapter took: `kind` is "wrong family" or "unknown", or "never run" or "known-harmless", which do
    no harm; `near` is the known key most like it.
    """

    key: str
    kind: str
    near: str | None = None


def kept_as_books(group: Group) -> bool:
    """Whether all keys of a group are bookkeeping."""
    return all(_BOOKS.fullmatch(item.key) for item in group.found.values())


def extras_of(rest: Sequence[tuple[Part, str]], component: str) -> dict[str, dict[str, LazyTensor]]:
    """component → key → tensor of what is known and no adapter; `component` is that of a file that names none."""
    found: dict[str, dict[str, LazyTensor]] = {}
    for part, key in rest:
        if is_extra(part, key):
            whole = key.startswith(WHOLE)
            found.setdefault((part.component or component) if whole else "", {})[key] = part.source[key]
    return found


def is_extra(part: Part, key: str) -> bool:
    """Whether a key that is no factor is known: a module that PEFT saves whole (modules_to_save, biases, rows of an
    embedding), an embedding that A1111 bundles, one of cloneofsimo's tokens, or Cascade's.
    """
    if key.startswith(WHOLE):
        return key.endswith((".weight", ".bias", ".trainable_tokens_delta"))
    if key in _TOKENS:
        return NUMBERED in part.source
    return key.startswith(BUNDLE) or part.source.metadata.get(key) == EMBEDDING


def unknown_keys(groups: Mapping[Stem, Group], missed: Sequence[Stem], rest: Sequence[str]) -> tuple[UnknownKey, ...]:
    """The keys that no adapter took, with the nearest known key for the first few."""
    found = [
        UnknownKey(item.key, "wrong family" if by_names([stem]) else "unknown")
        for stem in missed
        for item in groups[stem].found.values()
    ]
    found += [UnknownKey(key, KNOWN_HARMLESS if _BOOKS.fullmatch(key) else "unknown") for key in rest]
    known = [item.key for stem, group in groups.items() if stem not in set(missed) for item in group.found.values()]
    return tuple(
        item._replace(near=closest(item.key, known[:4000])) if at < 3 else item for at, item in enumerate(found)
    )
