"""What the Hub's client raises, as our errors: each fault with its own words, its own hint, and exit code 6."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from loratools.errors import LoratoolsError, Unavailable
from loratools.hub.references import HubReference

OFFLINE = "local files only (HF_HUB_OFFLINE); hf download {} puts it into the cache"
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
"""What is wrong with this machine, not with the Hub."""
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
"""Libraries by which clients of different ages talk to the Hub: their exceptions have no root in common."""
_BROKEN_OFF = ("IncompleteRead", "ReadError", "RemoteProtocolError")
"""How those libraries call an answer that ends before its length."""
_RESET = re.compile(r"(?:^|;)\s*t\s*=\s*(\d+)")


class Fault(NamedTuple):
    """One way in which the Hub says no: `reason` is its word for programs."""

    reason: str
    message: str
    hint: str


GATED = Fault("gated", "the repository is gated", "accept its terms on the Hub, then hf auth login")
NO_REPOSITORY = Fault(
    "repository-not-found",
    "the Hub has no repository of that name, or it is private and you have no access to it",
    "check the name; hf auth login",
)
NO_REVISION = Fault("revision-not-found", "the repository has no such revision", "check the part behind @")
NO_FILE = Fault("file-not-found", "the repository has no such file", "check its name on the Hub")
BAD_NAME = Fault("invalid-name", "no name that a repository can have", "owner/name")
DISABLED = Fault("disabled", "the Hub has disabled the repository", "its page on the Hub says why")
FORBIDDEN = Fault("forbidden", "the Hub refuses access", "the token may lack the right; hf auth whoami, hf auth login")
UNAUTHORISED = Fault("unauthorised", "the Hub does not accept the token", "hf auth login, or set HF_TOKEN")
LIMITED = Fault("rate-limited", "the Hub's rate limit is reached", "a token raises the limit: hf auth login")
BROKEN = Fault("server-error", "the Hub has trouble of its own", "try again later; status.huggingface.co tells more")
SHORT = Fault("short-answer", "the answer was cut short", "try again: the connection broke")
CHANGED = Fault("changed", "the file changed on the Hub while it was read", "try again, or name a commit behind @")

_BY_CLASS = (
    ("GatedRepoError", GATED),
    ("DisabledRepoError", DISABLED),
    ("RepositoryNotFoundError", NO_REPOSITORY),
    ("RevisionNotFoundError", NO_REVISION),
    ("RemoteEntryNotFoundError", NO_FILE),
    ("HFValidationError", BAD_NAME),
)
_BY_STATUS = {401: UNAUTHORISED, 403: FORBIDDEN, 404: NO_FILE, 429: LIMITED}


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids any request."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def offline(reference: HubReference, message: str = "it is not in the Hub's cache") -> Unavailable:
    """The error of a thing that is not here where no request is allowed."""
    hint = OFFLINE.format(reference.repository)
    return Unavailable(message, path=reference.name, hint=hint, reason="offline")


def unavailable(fault: Fault, reference: HubReference, **evidence: Any) -> Unavailable:
    """The error of one fault."""
    return Unavailable(fault.message, path=reference.name, hint=fault.hint, reason=fault.reason, **evidence)


@contextmanager
def told(reference: HubReference) -> Iterator[None]:
    """What the Hub's client raises within, as one of our errors."""
    try:
        yield
    except LoratoolsError:
        raise
    except Exception as error:
        ours = translated(error, reference)
        if ours is None:
            raise
        raise ours from error


def translated(error: Exception, reference: HubReference) -> Unavailable | None:
    """Our error for one of the client's; None for what is not the Hub's fault."""
    from huggingface_hub import errors

    for link in _causes(error):
        for name, fault in _BY_CLASS:
            if isinstance(link, getattr(errors, name)):
                return unavailable(fault, reference)
        response = getattr(link, "response", None)
        if isinstance(link, errors.HfHubHTTPError) and response is not None:
            return of_status(response.status_code, response.headers, reference)
    if not any(_is_theirs(link) for link in _causes(error)):
        return None
    if is_offline():
        return offline(reference)
    if "Consistency check failed" in str(error) or any(type(link).__name__ in _BROKEN_OFF for link in _causes(error)):
        return unavailable(SHORT, reference)
    return unreachable(error, reference)


def _is_theirs(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno not in _OURS:
        return True
    return type(error).__module__.partition(".")[0] in _NETWORK


def unreachable(error: Exception, reference: HubReference) -> Unavailable:
    """The error of a connection that failed, in the client's own words, less any token in them."""
    last = _causes(error)[-1]
    first = str(last).strip().partition("\n")[0] or type(last).__name__
    hint = "check the connection, and HF_ENDPOINT if it is set"
    message = f"the Hub cannot be reached: {_without_token(first)}"
    return Unavailable(message, path=reference.name, hint=hint, reason="unreachable")


def of_status(status: int, headers: Mapping[str, str], reference: HubReference) -> Unavailable:
    """The error of an answer with this HTTP status, with the wait in seconds that a rate limit states."""
    fault = _BY_STATUS.get(status, BROKEN)
    if fault is BROKEN and status < 500:
        return Unavailable(f"the Hub answered {status}", path=reference.name, reason="refused", status=status)
    if fault is not LIMITED:
        return unavailable(fault, reference, status=status)
    wait = _wait(headers)
    hint = f"try again in {wait} seconds; {fault.hint}" if wait is not None else f"try again later; {fault.hint}"
    return Unavailable(
        fault.message, path=reference.name, hint=hint, reason=fault.reason, status=status, retry_after=wait
    )


def _wait(headers: Mapping[str, str]) -> int | None:
    reset = _RESET.search(headers.get("ratelimit", ""))
    if reset:
        return int(reset[1])
    after = headers.get("retry-after", "").strip()
    return int(after) if after.isdigit() else None


def _causes(error: BaseException) -> list[BaseException]:
    """An exception and what caused it, the outermost first."""
    found = [error]
    while (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "…") if token else text
