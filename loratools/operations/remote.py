"""inspect from afar: a file of the Hub by its header, and what the document then says of where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from loratools.formats.opening import Opened
from loratools.hub.references import HubReference
from loratools.hub.repository import Look, is_here, look

_UNREAD = "alpha tensors were not read: which runtimes lose unequal alphas is not told (--weights fetches the file)"


class Seen(NamedTuple):
    """What was looked at, and how its document is completed."""

    asked: HubReference
    found: Look

    @property
    def opened(self) -> Opened:
        """What the headers say, for the parser."""
        return self.found.opened

    def told(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The document with its commit, the cost of the look, and what could not be seen."""
        files = self.found.files
        hub = {
            "reference": self.found.reference.name,
            "asked": self.asked.name,
            "commit": self.found.reference.revision,
            "read": "header",
            "requests": sum(file.requests for file in files),
            "bytes": sum(file.received for file in files),
        }
        alpha = document["alpha"] or {}
        unread = [_UNREAD] if "tensor (not read)" in (alpha.get("source") or "") else []
        return {**document, "hub": hub, "warnings": [*document["warnings"], *unread]}


def by_header(reference: HubReference) -> Seen | None:
    """A look at a file of the Hub; None where the cache on this machine answers instead."""
    return None if is_here(reference) else Seen(reference, look(reference))
