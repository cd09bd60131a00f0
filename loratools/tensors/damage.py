"""What a file that is no safetensors file really is, so that the message can say it."""

from __future__ import annotations

from typing import NamedTuple

from loratools.errors import MalformedFile, UnsafeFile

SNIFFED = 512
"""How many of the first bytes are looked at."""

_PICKLE = "loratools convert --unsafe-pickle reads .pt, .pth, .bin and .ckpt files that hold nothing but tensors"
_AGAIN = "download the file again, and compare its size with the one the site states"


class Lookalike(NamedTuple):
    """One sort of file, told by its first bytes (`lower`: in any case, after white space)."""

    start: bytes
    what: str
    hint: str
    unsafe: bool = False
    lower: bool = False


LOOKALIKES: tuple[Lookalike, ...] = (
    Lookalike(b"version https://git-lfs", "a Git LFS pointer, not the file it points to", "run `git lfs pull`"),
    Lookalike(b"version https://hawser", "a Git LFS pointer, not the file it points to", "run `git lfs pull`"),
    Lookalike(b"<!doctype html", "a web page", f"the site answered with a page, not the file; {_AGAIN}", lower=True),
    Lookalike(b"<html", "a web page", f"the site answered with a page, not the file; {_AGAIN}", lower=True),
    Lookalike(b"<?xml", "an XML document", f"the site answered with an error, not the file; {_AGAIN}", lower=True),
    Lookalike(b"PK\x03\x04", "a zip archive, which is how torch.save writes pickles", _PICKLE, unsafe=True),
    Lookalike(b"\x80\x02", "a pickle", _PICKLE, unsafe=True),
    Lookalike(b"\x80\x03", "a pickle", _PICKLE, unsafe=True),
    Lookalike(b"\x80\x04", "a pickle", _PICKLE, unsafe=True),
    Lookalike(b"\x80\x05", "a pickle", _PICKLE, unsafe=True),
    Lookalike(b"\x1f\x8b", "gzip data", "unpack it first: gunzip"),
    Lookalike(b"\xfd7zXZ\0", "xz data", "unpack it first: unxz"),
    Lookalike(b"\x28\xb5\x2f\xfd", "zstd data", "unpack it first: unzstd"),
    Lookalike(b"7z\xbc\xaf\x27\x1c", "a 7-zip archive", "unpack it first"),
    Lookalike(b"Rar!", "a RAR archive", "unpack it first"),
    Lookalike(b"GGUF", "a GGUF file", "name it ….gguf: adapters in such files are read"),
    Lookalike(b"\x89PNG", "a PNG picture", "give the model file, not its preview"),
    Lookalike(b"\xff\xd8\xff", "a JPEG picture", "give the model file, not its preview"),
    Lookalike(b"RIFF", "a RIFF file (WebP, WAV)", "give the model file, not its preview"),
    Lookalike(b"%PDF", "a PDF", "give the model file"),
    Lookalike(b"\x93NUMPY", "a NumPy array", "give a safetensors file"),
    Lookalike(b"\x89HDF", "an HDF5 file", "give a safetensors file"),
    Lookalike(b"{", "a JSON document", "give the safetensors file; a .json beside it only describes it"),
)


def explain(start: bytes, size: int, *, path: object) -> MalformedFile | None:
    """The error that names what begins with `start`, or None where nothing is recognised."""
    if size == 0:
        return MalformedFile("the file is empty", path=path, hint=_AGAIN)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for row in LOOKALIKES:
        if text.startswith(row.start) if row.lower else start.startswith(row.start):
            kind = UnsafeFile if row.unsafe else MalformedFile
            return kind(f"this is no safetensors file but {row.what}", path=path, hint=row.hint)
    if len(start) >= 257 + 5 and start[257:262] == b"ustar":
        return UnsafeFile("this is no safetensors file but a tar archive", path=path, hint=_PICKLE)
    if not start.strip(b"\0"):
        return MalformedFile("the file begins with nothing but zero bytes: a broken download", path=path, hint=_AGAIN)
    return None
