"""A file of the Hub as bytes, of which only the beginning is fetched: a header in one range request, or in two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from loratools.errors import Unavailable
from loratools.hub.failures import BROKEN, CHANGED, SHORT, is_offline, of_status, offline, told, unavailable
from loratools.hub.references import HubReference

FIRST = 128 << 10
"""The first guess: the headers of most adapters, and no more than a picture's worth of bytes of the others."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_COMMIT = "x-repo-commit"
_ETAGS = ("x-linked-etag", "etag")


class Answer(NamedTuple):
    """What one request brought: bytes from `start` on, the size of the whole file, and whose bytes they are."""

    start: int
    data: bytes
    size: int
    commit: str | None
    etag: str | None
    address: str


class RemoteFile:
    """A ByteSource over the header of one file: what lies behind it is not read, and asking for it is an error.

    `reference` names the commit that the first answer was of; `requests` and `received` count what it has cost.
    """

    header_only = True

    def __init__(self, reference: HubReference, *, limit: int) -> None:
        """Fetches the first guess. `limit` is the most bytes that are ever fetched. Raises Unavailable."""
        if is_offline():
            raise offline(reference)
        self.requests = self.received = 0
        self._limit = limit
        self._asked = reference
        first = self._request(0, FIRST, None)
        self._first, self._data = first, first.data
        self.reference = reference.of(reference.file, first.commit)
        self.name = self.reference.name
        self.size = first.size
        if len(self._data) < min(FIRST, self.size):
            raise unavailable(SHORT, reference)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`, if they are within the header; raises Unavailable."""
        stop = offset + length
        if stop > len(self._data):
            if offset > len(self._data) or stop > min(self.size, self._limit):
                raise Unavailable(
                    "only the header of a file on the Hub is read",
                    path=self.name,
                    hint="--weights fetches the file, loratools pull keeps it",
                    reason="not-read",
                )
            self._data += self._rest(len(self._data), stop)
        return self._data[offset:stop]

    def whole(self) -> bytes:
        """All bytes of a small file."""
        return self.read(0, self.size)

    def fileno(self) -> None:
        """None: it is no file of this machine."""

    def _rest(self, start: int, stop: int) -> bytes:
        more = self._request(start, stop - start, self._first)
        if (more.size, more.etag) != (self._first.size, self._first.etag):
            raise unavailable(CHANGED, self._asked)
        if more.commit is not None and self._first.commit is not None and more.commit != self._first.commit:
            raise unavailable(CHANGED, self._asked)
        if more.start != start or len(more.data) < stop - start:
            raise unavailable(SHORT, self._asked)
        return more.data

    def _request(self, start: int, length: int, first: Answer | None) -> Answer:
        """Ask for `length` bytes from `start` on; a second time where the first answer came from, or at its commit."""
        from huggingface_hub import constants, get_session, hf_hub_url

        asked = self._asked if first is None else self.reference
        address = hf_hub_url(asked.repository, asked.file or "", revision=asked.revision)
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{start + length - 1}", **_identity()}
        if first is not None and _origin(first.address) != _origin(address):
            address = first.address  # a signed address of the store: it costs the Hub nothing, and takes no token
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        self.requests += 1
        with (
            told(asked),
            get_session().stream(
                "GET", address, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, follow_redirects=True
            ) as response,
        ):
            if response.status_code == 416:
                return Answer(0, b"", 0, None, None, str(response.url))  # no byte to give: the file is empty
            if response.status_code >= 400:
                response.read()
                raise _refusal(response, asked)
            data = self._body(response, start, length)
            return _answer(response, (start, length), data, asked)

    def _body(self, response: Any, start: int, length: int) -> bytes:
        """The bytes that were asked for: a server that knows no ranges is left as soon as they are there."""
        skip = start if response.status_code == 200 else 0
        if skip + length > self._limit + FIRST:
            raise unavailable(BROKEN, self._asked)
        found = bytearray()
        for chunk in response.iter_raw(64 << 10):
            found += chunk
            self.received += len(chunk)
            if len(found) >= skip + length:
                break
        return bytes(found[skip : skip + length])


def _identity() -> dict[str, str]:
    """Who asks, and by whose leave; the client's own headers would take a request more, to say which agent calls."""
    from huggingface_hub import __version__ as client
    from huggingface_hub import constants, get_token

    from loratools import __version__

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    agent = {"User-Agent": f"loratools/{__version__}; hf_hub/{client}"}
    return {**agent, "Authorization": f"Bearer {token}"} if token else agent


def _refusal(response: Any, asked: HubReference) -> Exception:
    """The error of an answer that is none, with the client's own reading of its headers."""
    from huggingface_hub import hf_raise_for_status

    with told(asked):
        hf_raise_for_status(response)
    return of_status(response.status_code, response.headers, asked)


def _answer(response: Any, span: tuple[int, int], data: bytes, asked: HubReference) -> Answer:
    """An answer with what its headers say; raises Unavailable where they say too little to trust it."""
    headers: Mapping[str, str] = response.headers
    steps = [*response.history, response]
    commit = next((item.headers[_COMMIT] for item in steps if _COMMIT in item.headers), None)
    # The Hub states the tag of the whole file where it sends one on to the store, whose own tag comes last.
    etag = headers.get("etag") or next(
        (item.headers[name] for item in steps for name in _ETAGS if name in item.headers), None
    )
    if response.status_code == 206:
        held = _RANGE.fullmatch(headers.get("content-range", ""))
        if held is None:
            raise Unavailable("the answer does not say which bytes it holds", path=asked.name, reason="server-error")
        return Answer(int(held[1]), data, int(held[3]), commit, etag, str(response.url))
    stated = headers.get("content-length", "")
    if not stated.isdigit() and len(data) >= span[1]:
        raise Unavailable("the answer does not say how long the file is", path=asked.name, reason="server-error")
    size = int(stated) if stated.isdigit() else span[0] + len(data)  # unstated, and read to its end
    return Answer(span[0], data, size, commit, etag, str(response.url))


def _origin(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc
