"""A fingerprint of what a set of adapters holds: the same under every spelling, another after one flipped bit.

Each layer, split to single canonical paths where its kind can be split, gives the SHA-256 of its name, kind, exact
scale, and for every factor in the order of roles the dtype, the size as a matrix, and the bytes. The fingerprint is the
SHA-256 of those digests in ascending order. A conversion whose proof is `identical` in every module keeps it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

from loratools.adapters.adapter import Adapter
from loratools.adapters.kind import constraint_of
from loratools.adapters.regroup import regroup
from loratools.adapters.settings import beyond_scale
from loratools.adapters.slices import Groups
from loratools.errors import NotRepresentable
from loratools.model import Scale, Target
from loratools.tensors.lazy import LazyTensor


def fingerprint(
    adapters: Sequence[Adapter], others: Iterable[LazyTensor] = (), *, recorded: Groups | None = None
) -> str:
    """64 hex digits for the adapters and for `others`, tensors that go along whole and whose names do not matter.

    `recorded` are the groups of the run that fused these adapters, which undo it. Raises IncompleteAdapter where two
    adapters change one layer.
    """
    digests = [_of_adapter(single) for single in _singles(adapters, recorded)]
    digests += [_of_tensor("", tensor) for tensor in others]
    return joined(digests)


def fingerprint_of_tensors(tensors: Iterable[tuple[str, LazyTensor]]) -> str:
    """64 hex digits for tensors by their names, whatever the order in which a file holds them."""
    return joined(_of_tensor(key, tensor) for key, tensor in tensors)


def joined(digests: Iterable[bytes]) -> str:
    """One digest of many, in any order."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _singles(adapters: Sequence[Adapter], recorded: Groups | None) -> Iterator[Adapter]:
    """Every adapter by single paths; a kind whose rows cannot be shared out stays as it is."""
    for adapter in adapters:
        if len(adapter.target.paths) == 1:
            yield adapter
            continue
        try:
            yield from regroup([adapter], lambda component, path: Target(component, (path,)), recorded).adapters
        except NotRepresentable:
            yield adapter


def _of_adapter(adapter: Adapter) -> bytes:
    constraint = constraint_of(adapter)
    told = [
        adapter.target.name,
        adapter.kind,
        _reduced(adapter.scale),
        None if constraint is None else str(constraint),
        sorted(beyond_scale(adapter.settings).items()),
    ]
    digest = hashlib.sha256(json.dumps(told, separators=(",", ":"), default=str).encode())
    for role in sorted(adapter.factors):
        digest.update(_of_tensor(role, adapter.factors[role]))
    return digest.digest()


def _reduced(scale: Scale) -> str:
    """The square of the scale as a reduced fraction with the scale's sign: one form of numerator / √root."""
    square = scale.numerator * abs(scale.numerator) / scale.root
    return f"{square.numerator}/{square.denominator}"


def _of_tensor(name: str, tensor: LazyTensor) -> bytes:
    rows = tensor.shape[0] if tensor.shape else 1
    size = (rows, tensor.numel // rows if rows else 0)
    digest = hashlib.sha256(json.dumps([name, tensor.dtype, size], separators=(",", ":")).encode())
    for data in tensor.chunks():
        digest.update(data)
    return digest.digest()
