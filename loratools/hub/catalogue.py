"""The adapters of one repository, or of everybody's who is named, as references that are pinned to commits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from loratools.errors import Unavailable
from loratools.formats.opening import CONFIG, PIPELINE
from loratools.hub.failures import is_offline, offline, told
from loratools.hub.references import HubReference, hub_reference
from loratools.hub.repository import listing

_OWNER = re.compile(r"hf://([A-Za-z0-9][A-Za-z0-9._-]{0,95})/?")
_TAG = "lora"


def catalogue(text: str) -> Iterator[str]:
    """A reference for each adapter: of a repository (`hf://owner/name`), or of all of `hf://owner` tagged lora.

    Of an owner the Hub is asked for pages, not for each repository. Raises UsageError, and Unavailable also where
    there is none.
    """
    owner = _OWNER.fullmatch(text)
    if owner:
        yield from _of_owner(owner[1])
        return
    reference = hub_reference(text)
    assert reference is not None, text  # what is no reference has been refused
    if reference.file is not None:
        yield reference.name
        return
    commit, files = listing(reference)
    found = list(_adapters(reference.of(None, commit), files))
    if not found:
        raise Unavailable("the repository holds no adapter", path=reference.name, reason="no-adapter")
    yield from found


def _of_owner(owner: str) -> Iterator[str]:
    from huggingface_hub import HfApi

    everything = HubReference(f"{owner}/…")
    if is_offline():
        raise offline(everything, "the Hub is not asked what it holds")
    count = 0
    with told(everything):
        for info in HfApi().list_models(author=owner, filter=_TAG, expand=["sha", "siblings"]):
            files = [item.rfilename for item in info.siblings or ()]
            for name in _adapters(HubReference(info.id, info.sha), files):
                count += 1
                yield name
    if not count:
        message = f"nobody of that name, or no repository of theirs with the tag {_TAG!r}"
        raise Unavailable(message, path=f"hf://{owner}", hint="hf://owner/name lists one repository", reason="none")


def _adapters(reference: HubReference, files: Iterable[str]) -> Iterator[str]:
    """The repository itself where it is a PEFT folder, else each safetensors file at its root; no pipeline's."""
    names = sorted(files)
    if CONFIG in names:
        yield reference.name
    elif PIPELINE not in names:
        yield from (reference.of(name).name for name in names if name.endswith(".safetensors") and "/" not in name)
