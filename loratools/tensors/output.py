"""Where an output may go: refusals before anything is written, names of temporaries, and what a failing disk means."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loratools.errors import LoratoolsError, OutputExists, OutputRefused, PathNotFound, ResourceError
from loratools.tensors.source import LocalFile

TEMPORARY_SUFFIX = ".loratools-tmp"
_NAME_LIMIT = 255

# What a folder that we may replace as a whole can hold besides the names that the new one has.
_MODEL_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".md", ".model", ".jinja", ".png", ".html", ".jsonl"})


def guard_output(
    path: str | os.PathLike[str], inputs: Sequence[LocalFile], *, overwrite: bool
) -> os.stat_result | None:
    """What stands at `path` now (None: nothing), if a file may be written there.

    Raises OutputRefused for an input (also by link), a symbolic link, a special or read-only file and a place inside
    the Hub cache, OutputExists without `overwrite`, PathNotFound where the folder is missing.
    """
    target = Path(path)
    found = _guard_place(target, [file.identity[:2] for file in inputs])
    if found is None:
        return None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise OutputRefused(f"the output is {kind}", path=target, hint="name a file")
    _guard_existing(target, found, overwrite=overwrite)
    return found


def guard_folder(
    path: str | os.PathLike[str], inputs: Sequence[LocalFile], names: Iterable[str] = (), *, overwrite: bool
) -> os.stat_result | None:
    """What stands at `path` now, if a whole folder that will hold `names` may be written there; raises as guard_output.

    A folder is replaced only when it holds no input and nothing but what a model's folder holds.
    """
    target = Path(path)
    found = _guard_place(target, [])
    if found is None:
        return None
    if not stat.S_ISDIR(found.st_mode):
        raise OutputRefused("the output is a file, a folder is to be written", path=target, hint="name a folder")
    within = target.resolve()
    for file in inputs:
        if Path(file.path).resolve().is_relative_to(within):
            raise OutputRefused("the output folder holds an input", path=target, input=file.name)
    if os.path.ismount(within) or Path.cwd().is_relative_to(within) or Path.home().is_relative_to(within):
        raise OutputRefused("a mount point, the home or the current folder is not replaced", path=target)
    if not any(target.iterdir()):
        return found
    _guard_existing(target, found, overwrite=overwrite)
    known = {within / name for name in names}
    for item in within.rglob("*"):
        if item.is_dir() and not item.is_symlink():
            continue
        if item not in known and item.suffix not in _MODEL_SUFFIXES:
            what = str(item.relative_to(within))
            raise OutputRefused(
                f"the output folder holds {what!r}, which belongs to no model, and would be replaced as a whole",
                path=target,
                hint="name a new folder",
            )
    return found


def _guard_place(target: Path, inputs: Sequence[tuple[int, ...]]) -> os.stat_result | None:
    if not target.name or "\0" in str(target):
        raise OutputRefused("the output has no name", path=ascii(str(target)))
    if len(os.fsencode(target.name)) > _NAME_LIMIT:
        raise OutputRefused(f"the output's name is longer than {_NAME_LIMIT} bytes", path=target)
    try:
        found = target.lstat()
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise OutputRefused(f"the output cannot be reached: {error.strerror}", path=target) from error
    if not target.parent.is_dir():
        raise PathNotFound("the output's folder does not exist", path=target.parent, hint=f"mkdir -p {target.parent}")
    if target.parent.resolve().is_relative_to(hub_cache()):
        raise OutputRefused("the output lies in the Hub cache", path=target, hint="its files are shared and pinned")
    if found is not None:
        if (found.st_dev, found.st_ino) in inputs:
            raise OutputRefused("the output is an input", path=target, hint="give the output another name")
        if stat.S_ISLNK(found.st_mode):
            raise OutputRefused("the output is a symbolic link", path=target, hint=f"it points to {target.readlink()}")
    return found


def _guard_existing(target: Path, found: os.stat_result, *, overwrite: bool) -> None:
    if not overwrite:
        raise OutputExists("the output exists", path=target, hint="--overwrite replaces it")
    # The mode, not only os.access: root may write everything, and yet the owner said no.
    if not found.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise OutputRefused("the output is read-only", path=target, hint=f"chmod u+w {target}")


def hub_cache() -> Path:
    """The folder of the Hugging Face cache, by the variables that the Hub's own client reads."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser().resolve()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{caches}/huggingface"
    return (Path(home).expanduser() / "hub").resolve()


def temporary_beside(target: Path) -> Path:
    """A new name in the folder of `target`, which tells what it is, whose it is, and that it may be thrown away."""
    tail = f".{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
    stem = os.fsencode(target.name)[: _NAME_LIMIT - len(tail) - 1]
    return target.with_name("." + stem.decode("utf-8", "ignore") + tail)


def abandoned(folder: Path, names: Collection[str]) -> list[Path]:
    """The temporaries in a folder of outputs of these names whose process is not on this machine (any more)."""
    found = []
    for path in folder.glob(f".*-*{TEMPORARY_SUFFIX}"):
        stem, _, tail = path.name[1 : -len(TEMPORARY_SUFFIX)].rpartition(".")
        cut = len(os.fsencode(path.name)) > _NAME_LIMIT - 4 and any(name.startswith(stem) for name in names)
        pid = tail.partition("-")[0]
        if (stem in names or cut) and pid.isdecimal() and not _is_alive(int(pid)):
            found.append(path)
    return found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # nobody has a number that large
        return False
    except PermissionError:
        pass  # it is another's
    return True


def check_free_space(folder: Path, needed: int) -> None:
    """Raises ResourceError where the file system of `folder` has less than `needed` bytes and one hundredth."""
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < needed + needed // 100:
        raise ResourceError(
            f"not enough disk space: {needed} bytes are needed, {free} are free", path=folder, needed=needed, free=free
        )


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES, errno.EINVAL)
"""How file systems say that they give no second name to a file."""
_UNSUPPORTED = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


@contextmanager
def disk_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns an OSError of writing into a ResourceError that states what is free and what is needed."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            try:
                room = os.statvfs(path.parent)
                free: int | None = room.f_bavail * room.f_frsize
            except OSError:
                free = None
            raise ResourceError(
                f"writing failed: {reason} ({needed} bytes are needed, {free} are free)",
                path=path,
                needed=needed,
                free=free,
            ) from error
        hint = "write to a local disk and copy the result" if error.errno in _UNSUPPORTED else None
        raise ResourceError(f"writing failed: {reason}", path=path, hint=hint, needed=needed) from error


@contextmanager
def steady(inputs: Iterable[LocalFile]) -> Iterator[None]:
    """Where the work within fails because an input changed meanwhile, says that: ResourceError, for whatever it was."""
    try:
        yield
    except LoratoolsError:
        for file in inputs:
            file.check_unchanged()
        raise


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems have no such thing as a folder's sync; the rename itself is done.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)
