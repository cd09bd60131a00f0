"""`model_index.json`: the components of a diffusers pipeline, and which of them have weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PIPELINE = "model_index.json"
WEIGHTLESS = ("tokenizer", "scheduler", "feature_extractor", "image_processor", "processor")
"""Beginnings of the names of components that have no weights."""
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
"""Components without which a pipeline paints all the same."""


def components_of(index: Mapping[str, Any]) -> tuple[str, ...]:
    """The components that an index lists, without those that are absent."""
    return tuple(name for name, entry in index.items() if is_component(name, entry) and entry[1] is not None)


def is_component(name: str, entry: Any) -> bool:
    """Whether an entry of an index is a component, there or absent: [library, class], or twice null."""
    return not name.startswith("_") and isinstance(entry, list) and len(entry) == 2


def has_weights(component: str) -> bool:
    """Whether a component is a model, by its name."""
    return not component.startswith(WEIGHTLESS)
