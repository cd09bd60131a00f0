"""A folder of files that appears whole, or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loratools.errors import OutputExists, OutputRefused
from loratools.tensors.carried import LateBytes, Linked, carry, needed_bytes, plain_size
from loratools.tensors.layout import LateMetadata, Layout
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.output import check_free_space, disk_errors, guard_folder, steady, sync_folder, temporary_beside
from loratools.tensors.produce import Progress, Written, produce
from loratools.tensors.source import LocalFile

Content = tuple[Mapping[str, LazyTensor], Mapping[str, str]] | bytes | LocalFile | Linked | LateBytes
"""One file of a folder: tensors and metadata, plain bytes (now or later), or a file to copy or link as it is."""

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True, slots=True)
class WrittenFolder:
    """A finished folder: every file by its relative name, and the bytes in all."""

    path: Path
    size: int
    files: Mapping[str, Written]


def write_folder(
    path: str | os.PathLike[str],
    files: Mapping[str, Content],
    *,
    inputs: Sequence[LocalFile] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    check: Callable[[Path], None] | None = None,
    late_metadata: Mapping[str, LateMetadata] | None = None,
    digest: bool = True,
    keep_order: bool = False,
) -> WrittenFolder:
    """Writes a whole folder of files by relative name ("unet/adapter_model.safetensors") and renames it at the end.

    An existing folder is exchanged for the new one in one step and removed only then. `check` gets the temporary
    folder; `late_metadata` is by file name, `digest` and `keep_order` as for `write`. Raises as `write` does.
    """
    target = Path.cwd() / path
    for name in files:
        check_relative_name(name)
    before = guard_folder(target, inputs, files, overwrite=overwrite)
    temporary = temporary_beside(target)
    late = late_metadata or {}
    plans = {
        name: Layout.of(*content, late.get(name), keep_order=keep_order) if isinstance(content, tuple) else content
        for name, content in files.items()
    }
    sizes = {name: plan.size if isinstance(plan, Layout) else plain_size(plan) for name, plan in plans.items()}
    written: dict[str, Written] = {}
    total = sum(sizes.values())
    device = target.parent.stat().st_dev
    needed = sum(plan.size if isinstance(plan, Layout) else needed_bytes(plan, device) for plan in plans.values())
    done = 0

    def advance(stop: int, _: int) -> None:
        if progress is not None:
            progress(done + stop, total)

    try:
        with disk_errors(target, total), steady(inputs):
            check_free_space(target.parent, needed)
            temporary.mkdir()
            if before is not None:
                temporary.chmod(stat.S_IMODE(before.st_mode))
            for name, plan in plans.items():
                place = temporary / name
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(plan, Layout):
                    made = produce(place, plan, progress=advance, digest=digest)
                else:
                    made = carry(place, plan)
                written[name] = Written(target / name, made.size, made.payload_sha256)
                done += sizes[name]
            if check is not None:
                check(temporary)
            for file in inputs:
                file.check_unchanged()
            for folder in {(temporary / name).parent for name in files} | {temporary}:
                sync_folder(folder)
            _rename_folder(temporary, target, overwrite=overwrite)
    except BaseException:
        _remove(temporary, ignore_errors=True)
        raise
    with disk_errors(target, total):
        sync_folder(target.parent)
    return WrittenFolder(target, total, written)


def check_relative_name(name: str) -> None:
    """Raises OutputRefused for a name that could leave its folder or that some system cannot have."""
    parts = name.split("/")
    if not all(_SEGMENT.fullmatch(part) and not _DEVICES.fullmatch(part) for part in parts):
        raise OutputRefused(f"{name!r} is no safe name for a file", key=name)


_EXCHANGE = 2
_AT_FDCWD = -100


def _rename_folder(temporary: Path, target: Path, *, overwrite: bool) -> None:
    """Puts `temporary` in the place of `target`; what stood there goes away only after that."""
    if not os.path.lexists(target):
        try:
            temporary.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else another writer's folder appeared at this very instant
        else:
            return
    if not overwrite and any(target.iterdir()):
        raise OutputExists("the output appeared meanwhile", path=target, hint="--overwrite replaces it")
    if _exchange(temporary, target):
        _remove(temporary)
        return
    backup = temporary.with_name(temporary.name + ".bak")
    target.rename(backup)
    try:
        temporary.rename(target)
    except OSError:
        backup.rename(target)
        raise
    try:
        _remove(backup)
    except OSError:
        # The new folder stands. Whatever of the old one can go, goes; that some of it could not is still told.
        _remove(backup, ignore_errors=True)
        raise


def _remove(folder: Path, *, ignore_errors: bool = False) -> None:
    import shutil  # with all its archive formats it takes longer than to write a small file

    shutil.rmtree(folder, ignore_errors=ignore_errors)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two names were exchanged in one step, which only Linux and some file systems can."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and (rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0)
