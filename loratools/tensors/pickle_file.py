"""Tensors of .pt, .pth, .bin and .ckpt files: refused unless allowed, and then read by a confined process."""

from __future__ import annotations

import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from loratools.errors import MalformedFile, ResourceError, UnsafeFile, UnsupportedFile
from loratools.tensors.pickle_check import check_archive
from loratools.tensors.safetensors_file import SafetensorsFile
from loratools.tensors.source import LocalFile

OLDEST_TORCH = (2, 10)
"""Before it, weights_only could be led to write outside its memory (CVE-2026-24747)."""


class PickleTensors(SafetensorsFile):
    """The tensors of a pickle, now in an unnamed temporary safetensors file.

    `skipped` names every leaf that is no tensor, with its type: "epoch: int".
    """

    def __init__(self, converted: LocalFile, original: LocalFile, skipped: tuple[str, ...]) -> None:
        """`converted` holds the tensors; `original` is the file to guard and to check for changes."""
        super().__init__(converted)
        self.files = (original,)
        self.skipped = skipped


def open_pickle(path: str | os.PathLike[str], *, allowed: bool) -> PickleTensors:
    """The tensors of a torch archive, by dotted name, one level of `state_dict` taken off.

    Raises UnsafeFile unless `allowed`, and for everything but plain tensors; MalformedFile for damage; ResourceError
    for want of memory or disk; UnsupportedFile where torch is too old to be trusted with it.
    """
    original = LocalFile(path)
    if not allowed:
        raise UnsafeFile(
            "a pickle can run code when it is read, so it is not read",
            path=original.name,
            hint="loratools convert --unsafe-pickle reads it in a confined process, if it holds nothing but tensors",
        )
    descriptor = original.fileno()
    _check_torch(original.name)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        check_archive(file, original.size, path=original.name)
        # O_TMPFILE where there is such a thing: the copy has no name, and is gone with its descriptor.
        with tempfile.TemporaryFile(prefix="loratools-") as converted:
            answer = _run_child(file.fileno(), converted.fileno(), original)
            original.check_unchanged()
            kept = LocalFile.of_descriptor(os.dup(converted.fileno()), original.name)
    return PickleTensors(kept, original, tuple(str(item) for item in answer["skipped"]))


def _check_torch(path: str) -> None:
    """Raises UnsupportedFile when the installed torch is older than OLDEST_TORCH."""
    try:
        found = version("torch")
    except PackageNotFoundError as error:
        raise UnsupportedFile("reading a pickle needs torch", path=path, hint="pip install torch") from error
    major, minor = (int(part) for part in found.split("+")[0].split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        oldest = ".".join(str(part) for part in OLDEST_TORCH)
        raise UnsupportedFile(f"torch {found} is too old to read a pickle safely", path=path, hint=f"torch ≥ {oldest}")


def _run_child(source: int, target: int, original: LocalFile) -> dict[str, Any]:
    """What the confined process answers."""
    from loratools.tensors.pickle_process import UNPICKLER  # POSIX alone has what it is made of

    ended = UNPICKLER.read(source, target, original.size)
    printed = ended.printed.strip().splitlines()
    if ended.status:
        last = printed[-1][:300] if printed else f"exit status {ended.status}"
        raise ResourceError(f"the process that read the pickle failed: {last}", path=original.name)
    answer = json.loads(printed[-1]) if printed else None
    if not isinstance(answer, dict):
        raise MalformedFile("the process that read the pickle gave no answer", path=original.name)
    if "refused" in answer:
        raise UnsafeFile(f"the pickle is refused: {answer['refused']}", path=original.name)
    if "memory" in answer:
        raise ResourceError(f"the pickle cannot be read: {answer['memory']}", path=original.name)
    return answer
