"""How people name something on the Hub: `owner/name`, `hf://owner/name@revision/file`, or a pasted web address."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from loratools.errors import UsageError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SCHEME = "hf://"
REMOTE = (_SCHEME, "http://", "https://")
"""How a reference begins that is no path."""


class HubReference(NamedTuple):
    """A repository of models, its revision (None: the main one), and a file of it, or none for the whole."""

    repository: str
    revision: str | None = None
    file: str | None = None

    @property
    def name(self) -> str:
        """How messages and records spell it."""
        revision = (self.revision or "").replace("/", "%2F")
        at = f"@{revision}" if revision else ""
        return f"{_SCHEME}{self.repository}{at}" + (f"/{self.file}" if self.file else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def of(self, file: str | None, commit: str | None = None) -> HubReference:
        """Another file of the same repository, at `commit` where one is given."""
        return self._replace(file=file, revision=commit or self.revision)


def is_remote(text: object) -> bool:
    """Whether a reference is of the Hub or the web by its first letters, and nothing here has that name."""
    return isinstance(text, str) and text.startswith(REMOTE) and not os.path.lexists(text)


def hub_reference(text: str) -> HubReference | None:
    """What a reference means on the Hub; None for a path, and for anything that exists here under that name.

    Raises UsageError for an address that names no repository of models, or is of another site.
    """
    if text.startswith(REMOTE):
        return _parsed(text)
    return HubReference(text) if is_hub_id(text) and not os.path.lexists(text) else None


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a repository's name, `owner/name`."""
    return _ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def _parsed(text: str) -> HubReference:
    """The Hub's own reading of an address, less what is no model and what leads out of a repository."""
    from huggingface_hub import constants, parse_hf_uri
    from huggingface_hub.errors import HfUriError

    try:
        found = parse_hf_uri(text, endpoint=constants.ENDPOINT)
    except HfUriError as error:
        raise UsageError(
            f"no repository of the Hub: {error.msg.rstrip('. ')}",
            path=text,
            hint="hf://owner/name, or hf://owner/name/file",
        ) from error
    if found.type != "model":
        raise UsageError(f"a {found.type} of the Hub, where a model is needed", path=text, hint="hf://owner/name")
    if ".." in found.path_in_repo.split("/") or "\\" in found.path_in_repo or not is_hub_id(found.id):
        raise UsageError("no repository of the Hub, and no file of one", path=text, hint="hf://owner/name/file")
    return HubReference(found.id, found.revision, found.path_in_repo or None)
