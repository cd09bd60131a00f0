"""Where BASE and adapters lie on this machine: a path, something of the Hub, or the base that an adapter names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loratools.errors import Unavailable, UsageError
from loratools.formats.opening import Opened, Reference
from loratools.hub.cards import base_named_by
from loratools.hub.references import HubReference, hub_reference, is_hub_id, is_remote
from loratools.hub.snapshot import local_path
from loratools.operations.header.producer import base_model
from loratools.operations.lora import Lora

AUTO = "auto"


class Located(NamedTuple):
    """A path on this machine, and what the outside world calls it: a Hub reference, or a bare name."""

    path: Path
    name: str
    hub: HubReference | None = None


def locate(
    base: str | os.PathLike[str], loras: Sequence[Lora] = (), *, variant: str | None = None, pickles: bool = False
) -> Located:
    """The base model: a path as it is; `owner/name`, `hf://…` or a web address from the Hub; `auto` as an adapter says.

    Raises Unavailable where it is neither here nor (online) to be had, UsageError where no adapter names a base.
    """
    text = os.fspath(base)
    if text == AUTO and not os.path.lexists(text):
        return _named_by(loras, variant=variant, pickles=pickles)
    reference = hub_reference(text)
    if reference is None:
        return Located(Path(text), Path(text).name)
    return Located(local_path(reference, variant=variant, pickles=pickles), reference.name, reference)


def base_path(base: str | os.PathLike[str], loras: Sequence[Lora], *, pickles: bool = False) -> Path:
    """The base model's path: a path as it is, `hf://…` or a web address from the Hub, `auto` as an adapter says."""
    text = os.fspath(base)
    if text != AUTO and not is_remote(text):
        return Path(text)
    return locate(text, loras, pickles=pickles).path


def _named_by(loras: Sequence[Lora], *, variant: str | None, pickles: bool) -> Located:
    named = next(((lora, name) for lora in loras if (name := base_of(lora))), None)
    if named is None:
        what = "no adapter names its base model" if loras else "without an adapter nothing names a base model"
        raise UsageError(what, hint="give BASE: a path, or owner/name")
    lora, name = named
    reference = hub_reference(name)
    if reference is None and not Path(name).exists():
        raise Unavailable(
            f"the adapter names its base model {name!r}, which is neither here nor a name that the Hub could have",
            path=lora.name,
            hint="give BASE: a path, or owner/name",
        )
    return locate(name, variant=variant, pickles=pickles)


def base_of(lora: Lora) -> str | None:
    """The base model that an adapter names: in the card beside it, in its configuration, or in its metadata."""
    opened = lora.reading.opened
    if opened.layout != "memory":
        carded = base_named_by(_beside(opened))
        if carded and (is_hub_id(carded) or Path(carded).exists()):
            return carded
    return base_model(lora.adapter_set)


def _beside(opened: Opened) -> Path:
    """The folder of the card that goes with an adapter: of the Hub the repository's, which is fetched if need be."""
    place = Path(opened.name)
    remote = hub_reference(opened.hub) if opened.hub else None
    if remote is not None:
        from loratools.hub.repository import card_of

        card = card_of(remote)
        return card.parent if card else place
    return place if place.is_dir() else place.parent


def unweighted(item: Reference | Lora | tuple[Reference | Lora, float]) -> tuple[Reference | Lora, float]:
    """An adapter and its scale, 1 where none is given."""
    return item if isinstance(item, tuple) else (item, 1.0)
