"""The hashes that trainers and web UIs keep in the metadata of an adapter, recomputed for what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from loratools.tensors.header import canonical_order, encode_header, entries_in_order
from loratools.tensors.lazy import LazyTensor

_LEGACY_START = 0x100000
_LEGACY_LENGTH = 0x10000
HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")


def recomputed(metadata: Mapping[str, str], tensors: Mapping[str, LazyTensor], payload_sha256: str) -> dict[str, str]:
    """The hash entries that `metadata` has, for a file of these tensors; entries it lacks are not added.

    sshs_model_hash and modelspec.hash_sha256 are the SHA-256 of the payload. sshs_legacy_hash is sd-scripts': the first
    8 hex digits of the SHA-256 of 64 KiB at 1 MiB of the file as it would be with `ss_` metadata alone.
    """
    found: dict[str, str] = {}
    if "sshs_model_hash" in metadata:
        found["sshs_model_hash"] = payload_sha256
    if "modelspec.hash_sha256" in metadata:
        found["modelspec.hash_sha256"] = f"0x{payload_sha256}"
    if "sshs_legacy_hash" in metadata:
        found["sshs_legacy_hash"] = _legacy(metadata, tensors)
    return found


def _legacy(metadata: Mapping[str, str], tensors: Mapping[str, LazyTensor]) -> str:
    shapes = {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}
    order = canonical_order(shapes)
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    header = encode_header(entries_in_order(order, shapes), kept)
    window = bytearray(header[_LEGACY_START : _LEGACY_START + _LEGACY_LENGTH])
    at, stop = len(header), _LEGACY_START + _LEGACY_LENGTH
    for key in order:
        tensor = tensors[key]
        first, last = max(_LEGACY_START, at), min(stop, at + tensor.nbytes)
        if first < last:
            flat = LazyTensor("U8", (tensor.nbytes,), tensor.segments)
            window += flat.rows(first - at, last - at).tobytes()
        at += tensor.nbytes
    return hashlib.sha256(window).hexdigest()[:8]
