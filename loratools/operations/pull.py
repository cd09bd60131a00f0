"""pull: a file, an adapter or a pipeline of the Hub, in its cache or in a folder, each checked against its hash."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from loratools.errors import OutputExists, OutputRefused, Unavailable, UsageError
from loratools.hub.cards import CARD, base_named_by
from loratools.hub.references import HubReference, hub_reference
from loratools.hub.repository import Fetched, fetched
from loratools.tensors.carried import carry
from loratools.tensors.checksums import sha256_of
from loratools.tensors.output import check_free_space, disk_errors, guard_output, sync_folder, temporary_beside
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.source import LocalFile
from loratools.tensors.writer import give_name

_SHA256 = re.compile(r"[0-9a-f]{64}")


class PulledFile(NamedTuple):
    """One file by its name in the repository; `stated` says whether the Hub states this SHA-256 for it."""

    name: str
    path: Path
    size: int
    sha256: str
    stated: bool


@dataclass(frozen=True, slots=True)
class Pulled:
    """What was fetched: `reference` names its commit, `path` is the file or the folder to give to other verbs."""

    asked: str
    reference: str
    commit: str
    path: Path
    files: tuple[PulledFile, ...]
    base_model: str | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.pull/1",
            "asked": self.asked,
            "reference": self.reference,
            "commit": self.commit,
            "path": str(self.path),
            "base_model": self.base_model,
            "files": [{**item._asdict(), "path": str(item.path)} for item in self.files],
        }


def pull(
    reference: str,
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    unsafe_pickle: bool = False,
) -> Pulled:
    """Fetch what `reference` names into the Hub's cache, and copy it into the folder `out` where one is given.

    A reference without a file means the adapter of the repository, or the pipeline that it is. A file that is there
    already with the same bytes stays. Raises UsageError, Unavailable, MalformedFile where a safetensors header is
    broken, OutputExists, OutputRefused and ResourceError.
    """
    asked = hub_reference(reference)
    if asked is None:
        raise UsageError("no reference to the Hub", path=reference, hint="hf://owner/name, or hf://owner/name/file")
    found = fetched(asked, pickles=unsafe_pickle)
    root = _root(found)
    files = tuple(_checked(path, path.relative_to(root).as_posix(), found.reference) for path in found.files)
    base = base_named_by(root) if (root / CARD).is_file() else None
    path = found.path
    if out is not None:
        files = tuple(_copied(item, Path(out), overwrite=overwrite) for item in files)
        path = Path(out) / found.path.relative_to(root)
    return Pulled(asked.name, found.reference.name, found.reference.revision or "", path, files, base)


def _root(found: Fetched) -> Path:
    """The folder of the snapshot."""
    file = found.reference.file
    return found.path if file is None else found.path.parents[file.count("/")]


def _checked(path: Path, name: str, reference: HubReference) -> PulledFile:
    """A file of the cache, whose blob is named by the SHA-256 that the Hub states, for all but small texts."""
    blob = path.resolve()
    digest = sha256_of(blob)
    stated = _SHA256.fullmatch(blob.name) is not None
    if stated and digest != blob.name:
        raise Unavailable(
            "the bytes are not those whose SHA-256 the Hub states",
            path=reference.of(name).name,
            hint=f"remove {blob} and pull again",
            reason="wrong-hash",
            stated=blob.name,
            computed=digest,
        )
    if name.endswith(".safetensors"):
        open_safetensors(path)
    return PulledFile(name, path, blob.stat().st_size, digest, stated)


def _copied(item: PulledFile, folder: Path, *, overwrite: bool) -> PulledFile:
    """The same file in `folder`, under its name in the repository; it appears whole or not at all."""
    if any(part in ("", ".", "..") or not part.isprintable() for part in item.name.split("/")) or "\\" in item.name:
        raise OutputRefused(f"{item.name!r} is no safe name for a file", path=folder, key=item.name)
    target = folder / item.name
    source = LocalFile(item.path.resolve())
    with disk_errors(target, item.size):
        for parent in _missing(target.parent):
            parent.mkdir(exist_ok=True)
        try:
            guard_output(target, [source], overwrite=overwrite)
        except OutputExists:
            if sha256_of(target) == item.sha256:
                return item._replace(path=target)
            raise
        check_free_space(target.parent, item.size)
        temporary = temporary_beside(target)
        try:
            carry(temporary, source)
            give_name(temporary, target, overwrite=overwrite)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(target.parent)
    return item._replace(path=target)


def _missing(folder: Path) -> Iterator[Path]:
    """The folder and those above it that are not there, the uppermost first."""
    yield from reversed([place for place in (folder, *folder.parents) if not place.exists()])
