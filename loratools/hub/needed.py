"""Which files of a repository a pipeline needs: one form of each component's weights, and all that is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from loratools.bases.pipeline_index import PIPELINE, components_of, has_weights
from loratools.bases.variants import variant_of

SAFE = (".safetensors",)
PICKLED = (".bin",)
_INDEX = (".safetensors.index", ".bin.index")
_PLAIN = (".json", ".txt", ".model", ".jinja", ".md")


def needed_files(
    index: Mapping[str, Any], files: Iterable[str], variant: str | None = None, *, pickles: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The files to have, and the components of which no weights are there.

    Of each component the weights of `variant`, else the plain ones, else those of its only variant; safetensors, or
    (where `pickles` are allowed, and there is nothing else) `.bin`.
    """
    wanted, missing = [PIPELINE], []
    listed = sorted(files)
    for component in components_of(index):
        own = [name for name in listed if str(PurePosixPath(name).parent) == component]
        wanted += [name for name in own if name.endswith(_PLAIN) and not any(word in name for word in _INDEX)]
        if not has_weights(component):
            continue
        weights = _weights(own, variant, SAFE, ".safetensors.index")
        if not weights and pickles:
            weights = _weights(own, variant, PICKLED, ".bin.index")
        if not weights:
            missing.append(component)
        wanted += weights
    return tuple(dict.fromkeys(wanted)), tuple(missing)


def _weights(own: list[str], variant: str | None, endings: tuple[str, ...], index: str) -> list[str]:
    """One set of weights among the files of a component, its index with it."""
    held = [name for name in own if name.endswith(endings) or index in name]
    by_variant: dict[str | None, list[str]] = {}
    for name in held:
        by_variant.setdefault(variant_of(name), []).append(name)
    for choice in (variant, None):
        if choice in by_variant:
            return by_variant[choice]
    return next(iter(by_variant.values())) if len(by_variant) == 1 else []
