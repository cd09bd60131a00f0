"""The checksums of a file's bytes that web sites and web UIs look files up by, in one pass over the file."""

from __future__ import annotations

import hashlib
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from loratools.tensors.source import LocalFile

_BLOCK = 4 << 20
_WINDOW, _WINDOW_LENGTH, _WINDOW_NEEDS = 0x100000, 0x10000, 0x200000


class Checksums(NamedTuple):
    """Lower-case hex digits. `payload_sha256` is of what follows a safetensors header, None for other files.

    `autov1`, the first model hash of web UIs, is 8 digits of the SHA-256 of 64 KiB at 1 MiB, and None below 2 MiB, as
    Civitai has it. `autov2` are 10 digits of the whole file's SHA-256, `autov3` 12 of the payload's.
    """

    size: int
    sha256: str
    payload_sha256: str | None
    autov1: str | None
    crc32: str
    blake3: str | None

    @property
    def autov2(self) -> str:
        """The first 10 digits of the SHA-256 of the file."""
        return self.sha256[:10]

    @property
    def autov3(self) -> str | None:
        """The first 12 digits of the SHA-256 of the payload."""
        return self.payload_sha256 and self.payload_sha256[:12]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(file: LocalFile, payload: int | None) -> Checksums:
    """Read a file once, from end to end; `payload` is where a safetensors file's tensors begin.

    BLAKE3 is None where the package `blake3` is not installed. Raises ResourceError where the file changes meanwhile.
    """
    from concurrent.futures import ThreadPoolExecutor

    whole, body, window = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    crc, tree = 0, _blake3()

    def rest(start: int, data: memoryview) -> int:
        if payload is not None:
            body.update(data[max(0, payload - start) :])
        first, last = max(0, _WINDOW - start), max(0, _WINDOW + _WINDOW_LENGTH - start)
        window.update(data[first:last])
        if tree is not None:
            tree.update(data)
        return zlib.crc32(data, crc)

    buffers = [bytearray(_BLOCK), bytearray(_BLOCK)]
    with ThreadPoolExecutor(2, "loratools-hash") as pool:
        waiting = None
        for number, start in enumerate(range(0, file.size, _BLOCK)):
            data = memoryview(buffers[number % 2])[: file.size - start]
            file.read_into(start, data)
            if waiting is not None:
                waiting[0].result()
                crc = waiting[1].result()
            waiting = pool.submit(whole.update, data), pool.submit(rest, start, data)
        if waiting is not None:
            waiting[0].result()
            crc = waiting[1].result()
    file.check_unchanged()
    return Checksums(
        file.size,
        whole.hexdigest(),
        None if payload is None else body.hexdigest(),
        window.hexdigest()[:8] if file.size >= _WINDOW_NEEDS else None,
        f"{crc:08x}",
        None if tree is None else str(tree.hexdigest()),
    )


def _blake3() -> Any:
    """The incremental BLAKE3 of the optional package, None without it."""
    try:
        return import_module("blake3").blake3()
    except ModuleNotFoundError:
        return None
