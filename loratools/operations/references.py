"""What every verb takes: a path, memory, or something of the Hub, which is fetched into its cache and then a path."""

from __future__ import annotations

from loratools.formats.opening import Opened, Reference
from loratools.formats.opening import open_reference as open_here
from loratools.hub.references import HubReference, hub_reference, is_remote


def open_reference(reference: Reference, *, unsafe_pickle: bool = False) -> Opened:
    """Open a path, bytes, a binary file, a mapping of tensors, or a reference to the Hub.

    Raises PathNotFound, MalformedFile or UnsafeFile, and Unavailable for what is not to be had from the Hub.
    """
    remote = remote_reference(reference)
    if remote is None:
        return open_here(reference, unsafe_pickle=unsafe_pickle)
    from loratools.hub.repository import fetched

    found = fetched(remote, pickles=unsafe_pickle)
    return open_here(found.path, unsafe_pickle=unsafe_pickle)._replace(hub=found.reference.name)


def remote_reference(reference: object) -> HubReference | None:
    """A reference to the Hub, told by `hf://` or a web address; None for anything of this machine."""
    return hub_reference(str(reference)) if is_remote(reference) else None
