"""hash: every name that web sites and web UIs know a file by, what its metadata claim, and what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loratools.adapters.fingerprint import fingerprint, fingerprint_of_tensors
from loratools.errors import LoratoolsError, MalformedFile, UnsafeFile, WrongRole
from loratools.formats.opening import Opened, Reference
from loratools.formats.parse import parse
from loratools.formats.render import recorded_groups
from loratools.operations.header.hashes import HASH_KEYS, recomputed
from loratools.operations.references import open_reference
from loratools.tensors.checksums import Checksums, checksums
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import LocalFile, TensorSource

_LENGTH = 8  # bytes before a safetensors header, which say how long it is
OF_NOTHING = hashlib.sha256().hexdigest()
"""What a trainer that hashed nothing wrote into its files: a lookup by it finds a stranger's model."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A hash that the metadata state, the one that the file has, and "ok", "stale" or "of nothing"."""

    key: str
    stated: str
    computed: str
    status: str

    def to_dict(self) -> dict[str, str]:
        """The JSON form."""
        return {"key": self.key, "stated": self.stated, "computed": self.computed, "status": self.status}


@dataclass(frozen=True, slots=True)
class FileHashes:
    """The hashes of one file; the three that trainers write are None where it is no safetensors file."""

    path: str
    checksums: Checksums
    sshs_model_hash: str | None
    sshs_legacy_hash: str | None
    modelspec: str | None
    claims: tuple[Claim, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        sums = self.checksums
        return {
            "path": self.path,
            "size": sums.size,
            "sha256": sums.sha256,
            "autov1": sums.autov1,
            "autov2": sums.autov2,
            "autov3": sums.autov3,
            "crc32": sums.crc32,
            "blake3": sums.blake3,
            "sshs_model_hash": self.sshs_model_hash,
            "sshs_legacy_hash": self.sshs_legacy_hash,
            "modelspec.hash_sha256": self.modelspec,
            "stated": [claim.to_dict() for claim in self.claims],
        }


@dataclass(frozen=True, slots=True)
class Hashes:
    """All files of a reference, and the fingerprint of what they hold together: of an "adapter" or of "tensors"."""

    path: str
    files: tuple[FileHashes, ...]
    fingerprint: str | None
    fingerprint_of: str | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.hash/1",
            "path": self.path,
            "fingerprint": self.fingerprint,
            "fingerprint_of": self.fingerprint_of,
            "files": [file.to_dict() for file in self.files],
            "warnings": list(self.warnings),
        }


def hash_files(reference: Reference, *, arch: str | None = None, unsafe_pickle: bool = False) -> Hashes:
    """Hash every file of a reference, and fingerprint what they hold.

    A file that is no safetensors file is hashed as bytes, and has a fingerprint where it can be read. Raises
    PathNotFound, MalformedFile for a damaged safetensors file, and ResourceError where a file changes meanwhile.
    """
    try:
        opened = open_reference(reference, unsafe_pickle=unsafe_pickle)
    except UnsafeFile as error:
        file = LocalFile(str(error.path))
        return Hashes(file.name, (_of_file(file, None),), None, None, (f"no fingerprint: {error.message}",))
    held = {file.name: part.source for part in opened.parts for file in part.source.files}
    files = tuple(_of_file(file, held[file.name]) for file in opened.files)
    print_, of, warnings = _fingerprint(opened, arch)
    stale = [
        f"{file.path}: {claim.key} is {'the hash of nothing' if claim.status == 'of nothing' else 'stale'}"
        for file in files
        for claim in file.claims
        if claim.status != "ok"
    ]
    return Hashes(opened.name, files, print_, of, (*stale, *warnings))


def fingerprint_of(opened: Opened) -> str:
    """The content fingerprint of what is opened; raises what reading does."""
    return _fingerprint(opened, None)[0]


def _of_file(file: LocalFile, source: TensorSource | None) -> FileHashes:
    payload = None
    if file.name.endswith(".safetensors"):
        payload = _LENGTH + int.from_bytes(file.read(0, _LENGTH), "little")
    sums = checksums(file, payload)
    if sums.payload_sha256 is None or source is None or len(source.files) > 1:
        return FileHashes(file.name, sums, None, None, None, ())
    tensors = {key: source[key] for key in source}
    found = recomputed({**source.metadata, **dict.fromkeys(HASH_KEYS, "")}, tensors, sums.payload_sha256)
    claims = tuple(_claim(key, source.metadata[key], found[key]) for key in HASH_KEYS if key in source.metadata)
    model, legacy, specification = (found[key] for key in HASH_KEYS)
    return FileHashes(file.name, sums, model, legacy, specification, claims)


def _claim(key: str, stated: str, computed: str) -> Claim:
    digits = stated.lower().removeprefix("0x")
    if digits == computed.removeprefix("0x"):
        return Claim(key, stated, computed, "ok")
    return Claim(key, stated, computed, "of nothing" if digits and OF_NOTHING.startswith(digits) else "stale")


def _fingerprint(opened: Opened, arch: str | None) -> tuple[str, str, tuple[str, ...]]:
    """The fingerprint, what it is of, and why it is not an adapter's where one was found that cannot be read whole."""
    warnings: tuple[str, ...] = ()
    try:
        reading = parse(opened, arch=arch)
        reading.require_known()
        others = [tensor for held in reading.adapters.extras.values() for tensor in held.values()]
        groups = recorded_groups(reading.adapters)
        return fingerprint(reading.adapters.adapters, others, recorded=groups), "adapter", ()
    except WrongRole:
        pass
    except LoratoolsError as error:
        if error.exit_code not in (MalformedFile.exit_code, WrongRole.exit_code):
            raise  # a disk that fails is no reason for another fingerprint
        warnings = (f"the fingerprint is that of tensors by their names: {error.message}",)
    return fingerprint_of_tensors(_tensors(opened)), "tensors", warnings


def _tensors(opened: Opened) -> Iterator[tuple[str, LazyTensor]]:
    for part in opened.parts:
        prefix = f"{part.component}/" if part.component else ""
        yield from ((prefix + key, part.source[key]) for key in part.source)
