"""Model cards: what the front matter of a README says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loratools.errors import MalformedFile

CARD = "README.md"
_LIMIT = 1 << 20


def card_data(folder: Path) -> dict[str, Any]:
    """The front matter of the card in a folder; empty where there is none. Raises MalformedFile."""
    card = folder / CARD
    if not card.is_file() or card.stat().st_size > _LIMIT:
        return {}
    from huggingface_hub import metadata_load

    try:
        return dict(metadata_load(card) or {})
    except Exception as error:
        # YAML's own exceptions have no place in the Hub's interface.
        raise MalformedFile(f"the card's front matter cannot be read: {error}", path=card) from error


def base_named_by(folder: Path) -> str | None:
    """The `base_model` of the card in a folder: the first of them; None where none is named."""
    named = card_data(folder).get("base_model")
    if isinstance(named, list):
        named = named[0] if named else None
    return named if isinstance(named, str) and named else None


def parted(text: str, *, path: object) -> tuple[dict[str, Any], str]:
    """A card's front matter and the text below it. Raises MalformedFile."""
    from huggingface_hub import RepoCard

    try:
        card = RepoCard(text)
    except Exception as error:
        # As above: YAML's own exceptions.
        raise MalformedFile(f"the card's front matter cannot be read: {error}", path=path) from error
    return dict(card.data.to_dict()), card.text  # type: ignore[no-untyped-call]  # the client has no types here


def card_text(front: Mapping[str, Any], text: str) -> str:
    """A whole card of its front matter and the text below it."""
    from huggingface_hub import CardData

    held = CardData(**front)
    return f"---\n{held.to_yaml(original_order=list(front))}\n---\n\n{text}"
