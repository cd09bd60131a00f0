"""How people name something on the Hub: `owner/name`, `hf://owner/name@revision/file`, or a pasted web address."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from loratools.errors import UsageError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WEB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<rest>.+)")
_SCHEME = "hf://"


class HubReference(NamedTuple):
    """A repository of models, its revision (None: the main one), and a file of it, or none for the whole."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        """How messages and records spell it."""
        at = f"@{self.revision}" if self.revision else ""
        return f"{_SCHEME}{self.repository}{at}" + (f"/{self.file}" if self.file else "")


def hub_reference(text: str) -> HubReference | None:
    """What a reference means on the Hub; None for a path, and for anything that exists here under that name.

    Raises UsageError for an address of the Hub that names no repository.
    """
    if text.startswith(_SCHEME):
        return _split(text.removeprefix(_SCHEME), text)
    web = _WEB.fullmatch(text)
    if web:
        rest = re.sub(r"[?#].*", "", web["rest"])
        parts = rest.split("/")
        if len(parts) > 4 and parts[2] in ("blob", "resolve", "tree"):
            rest = f"{parts[0]}/{parts[1]}@{parts[3]}/{'/'.join(parts[4:])}"
        elif len(parts) == 4 and parts[2] == "tree":
            rest = f"{parts[0]}/{parts[1]}@{parts[3]}"
        return _split(rest, text)
    return HubReference(text) if is_hub_id(text) and not os.path.lexists(text) else None


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a repository's name, `owner/name`."""
    return _ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def _split(rest: str, text: str) -> HubReference:
    head, _, file = rest.strip("/").partition("/")[2].partition("/")
    owner = rest.strip("/").partition("/")[0]
    name, _, revision = head.partition("@")
    repository = f"{owner}/{name}"
    if not is_hub_id(repository) or ".." in file.split("/"):
        raise UsageError("no repository of the Hub", path=text, hint="hf://owner/name, or hf://owner/name/file")
    return HubReference(repository, revision or None, file or None)
