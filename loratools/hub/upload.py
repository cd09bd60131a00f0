"""Files put into a repository of the Hub as one commit, or offered to it as a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from loratools.errors import Unavailable
from loratools.hub.cards import CARD
from loratools.hub.failures import is_offline, offline, told
from loratools.hub.ranges import RemoteFile
from loratools.hub.references import HubReference

_CARD_LIMIT = 1 << 20
_NONE = ("file-not-found", "repository-not-found", "revision-not-found")


class Sent(NamedTuple):
    """What became of an upload: the commit, its page, and the page of the pull request where one was opened."""

    commit: str
    url: str
    pull_request: str | None


def standing_card(reference: HubReference) -> str | None:
    """The text of the card that a repository has now; None where there is none, or no repository yet."""
    try:
        data = RemoteFile(reference.of(CARD), limit=_CARD_LIMIT).whole()
    except Unavailable as error:
        if error.evidence.get("reason") in _NONE:
            return None
        raise
    return data.decode("utf-8", errors="replace")


def upload(
    reference: HubReference,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    create_pr: bool = False,
    private: bool = False,
) -> Sent:
    """Commit `files` by their names in the repository, which is made if it is not there. Raises Unavailable.

    With `create_pr` nothing is made: the commit is offered to whom the repository belongs.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if is_offline():
        raise offline(reference, "nothing is sent")
    client = HfApi()
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    with _offering(create_pr=create_pr), told(reference):
        if not create_pr:
            client.create_repo(reference.repository, private=private or None, exist_ok=True)
        done = client.create_commit(
            reference.repository,
            operations,
            commit_message=message,
            revision=reference.revision,
            create_pr=create_pr,
        )
    return Sent(done.oid, done.commit_url, done.pr_url)


@contextmanager
def _offering(*, create_pr: bool) -> Iterator[None]:
    """To whom a commit is refused, a pull request is the way."""
    try:
        yield
    except Unavailable as error:
        if error.evidence.get("reason") == "forbidden" and not create_pr:
            error.hint = f"--create-pr offers it to the owner; {error.hint}"
        raise
