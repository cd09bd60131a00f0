"""The only writer: a file or a folder appears whole, verified and durable, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loratools.errors import OutputExists
from loratools.model import Container
from loratools.tensors.folder import Content, WrittenFolder, write_folder
from loratools.tensors.layout import LateMetadata, Layout
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.output import (
    NO_LINKS,
    check_free_space,
    disk_errors,
    guard_output,
    steady,
    sync_folder,
    temporary_beside,
)
from loratools.tensors.produce import Progress, Written, produce
from loratools.tensors.source import LocalFile

__all__ = [
    "Content",
    "LateMetadata",
    "Progress",
    "Written",
    "WrittenFolder",
    "give_name",
    "guard_output",
    "layout_in",
    "write",
    "write_folder",
]


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, str],
    *,
    inputs: Sequence[LocalFile] = (),
    overwrite: bool = False,
    keep_order: bool = False,
    progress: Progress | None = None,
    check: Callable[[Path], None] | None = None,
    late_metadata: LateMetadata | None = None,
    digest: bool = True,
    container: Container = "safetensors",
) -> Written:
    """Writes one file, of safetensors or GGUF: refused before, verified and synced under another name, then renamed.

    `check` is the caller's proof: called with the complete temporary, on the calling thread; what it raises undoes the
    write. `keep_order` lays tensors out as the mapping has them, not in the format's order. Without `digest` no SHA-256
    is taken, and `check` must compare every byte that was only copied. Raises OutputRefused,
    OutputExists, PathNotFound, ResourceError (disk, permission, input changed), InternalError.
    """
    target = Path(path)
    before = guard_output(target, inputs, overwrite=overwrite)
    layout = layout_in(container).of(tensors, metadata, late_metadata, keep_order=keep_order)
    temporary = temporary_beside(target)
    with disk_errors(target, layout.size), steady(inputs):
        try:
            check_free_space(target.parent, layout.size)
            written = produce(temporary, layout, before=before, progress=progress, check=check, digest=digest)
            for file in inputs:
                file.check_unchanged()
            give_name(temporary, target, overwrite=overwrite)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    return Written(target, written.size, written.payload_sha256)


def layout_in(container: Container) -> type[Layout]:
    """How files of a container are laid out."""
    if container == "safetensors":
        return Layout
    from loratools.tensors.gguf_layout import GgufLayout

    return GgufLayout


def give_name(temporary: Path, target: Path, *, overwrite: bool) -> None:
    """Give a finished file its name, which without `overwrite` no other may have got meanwhile: of two writers one is
    told so. Raises OutputExists.
    """
    if overwrite:
        temporary.replace(target)
        return
    try:
        os.link(temporary, target)
    except FileExistsError as error:
        raise _appeared(target) from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(target):
            raise _appeared(target) from error
        temporary.replace(target)  # a file system without links: the instant between is all that is left
        return
    temporary.unlink()


def _appeared(target: Path) -> OutputExists:
    return OutputExists("the output appeared meanwhile", path=target, hint="--overwrite replaces it")
