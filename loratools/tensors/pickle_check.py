"""What a torch.save archive must look like before it is unpickled: stored members, and names that only make tensors."""

from __future__ import annotations

import io
import pickletools
import stat
import struct
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from loratools.errors import MalformedFile, UnsafeFile
from loratools.tensors.damage import explain

MEMBER_LIMIT = 10_000
PICKLE_LIMIT = 64 << 20
"""The longest pickle that is looked at, in bytes."""
STRING_LIMIT = 64 << 20

_STORAGES = "BFloat16 Bool Byte Char ComplexDouble ComplexFloat Double Float Half Int Long Short"
_DTYPES = (
    "bfloat16 bool complex64 float16 float32 float64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
    "float8_e8m0fnu int16 int32 int64 int8 uint16 uint32 uint64 uint8"
)
ALLOWED: frozenset[str] = frozenset(
    {
        "collections OrderedDict",
        "torch Size",
        "torch.storage UntypedStorage",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_tensor_v3",
        *(f"torch {name}Storage" for name in _STORAGES.split()),
        *(f"torch {name}" for name in _DTYPES.split()),
    }
)
"""Every global that a pickle may name: what puts tensors together, and nothing else."""

# Protocol 2, as torch writes it. Later protocols' opcodes, and those that build objects by class, are not among them.
_OPCODES = frozenset(
    [
        "APPEND",
        "APPENDS",
        "BINFLOAT",
        "BINGET",
        "BININT",
        "BININT1",
        "BININT2",
        "BINPERSID",
        "BINPUT",
        "BINSTRING",
        "BINUNICODE",
        "BUILD",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "GLOBAL",
        "LONG1",
        "LONG4",
        "LONG_BINGET",
        "LONG_BINPUT",
        "MARK",
        "NEWFALSE",
        "NEWTRUE",
        "NONE",
        "PROTO",
        "REDUCE",
        "SETITEM",
        "SETITEMS",
        "SHORT_BINSTRING",
        "STOP",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
    ]
)


def check_archive(file: BinaryIO, size: int, *, path: object) -> None:
    """Raises UnsafeFile or MalformedFile unless `file` is a plain torch archive of tensors; unpickles nothing."""
    file.seek(0)
    start = file.read(512)
    if not start.startswith(b"PK\x03\x04"):
        if start.startswith((b"\x80", b"(")) or start[257:262] == b"ustar":
            raise UnsafeFile(
                "an old torch file (no zip archive) is not read", path=path, hint="save it anew with torch ≥ 1.6"
            )
        raise explain(start, size, path=path) or MalformedFile("this is no torch archive", path=path)
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = list(_pickles(archive, file, size, path))
            if len(pickles) != 1:
                raise UnsafeFile(f"the archive has {len(pickles)} members named data.pkl, not one", path=path)
            check_pickle(archive.read(pickles[0]), path=path)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, EOFError, ValueError) as error:
        raise MalformedFile(f"the archive is damaged: {error}", path=path) from error


def _pickles(archive: zipfile.ZipFile, file: BinaryIO, size: int, path: object) -> Iterator[zipfile.ZipInfo]:
    """The members named data.pkl; every member is checked on the way."""
    members = archive.infolist()
    if len(members) > MEMBER_LIMIT:
        raise UnsafeFile(f"the archive has {len(members)} members, more than {MEMBER_LIMIT}", path=path)
    if sum(member.file_size for member in members) > size:
        raise UnsafeFile("the members of the archive are larger than the archive", path=path)
    seen: set[str] = set()
    for member in members:
        name = member.filename
        reason = _suspicion(member, seen) or _local_suspicion(member, file)
        if reason:
            raise UnsafeFile(f"the archive's member {name!r} {reason}", path=path)
        seen.add(name.lower())
        if name.rsplit("/", 1)[-1] == "data.pkl":
            if member.file_size > PICKLE_LIMIT:
                raise UnsafeFile(f"a pickle of {member.file_size} bytes is over {PICKLE_LIMIT}", path=path)
            yield member


def _suspicion(member: zipfile.ZipInfo, seen: set[str]) -> str | None:
    """What is wrong with a member by the archive's own directory, or None."""
    name = member.orig_filename
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        return "is compressed, which torch never does"
    if member.flag_bits & 0x2061:
        return "is encrypted or patched"
    if name.startswith("/") or "\\" in name or ":" in name or "\0" in name or ".." in name.split("/"):
        return "has a name that leaves the archive"
    if name.lower() in seen:
        return "is there twice"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a symbolic link"
    return None


def _local_suspicion(member: zipfile.ZipInfo, file: BinaryIO) -> str | None:
    """Whether the header before a member's data says what the archive's directory says: readers trust one or other."""
    file.seek(member.header_offset)
    raw = file.read(30)
    signature, _, flags, method, _, _, _, packed, plain, name_length, _ = struct.unpack("<4sHHHHHIIIHH", raw)
    name = file.read(name_length)
    encoding = "utf-8" if flags & 0x800 else "cp437"
    # Sizes may stand behind the data (flag 8), or in a 64-bit field (all ones).
    sizes = {member.file_size, 0xFFFFFFFF} | ({0} if flags & 8 else set())
    same = (
        signature == b"PK\x03\x04"
        and method == zipfile.ZIP_STORED
        and flags == member.flag_bits
        and name == member.orig_filename.encode(encoding, "replace")
        and {packed, plain} <= sizes
    )
    return None if same else "is described in two ways"


def check_pickle(data: bytes, *, path: object) -> None:
    """Raises UnsafeFile unless `data` is one protocol-2 pickle that names nothing outside ALLOWED; runs none of it."""
    stream = io.BytesIO(data)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name not in _OPCODES:
                raise UnsafeFile(f"the pickle holds the instruction {opcode.name}", path=path, opcode=opcode.name)
            if opcode.name == "GLOBAL" and argument not in ALLOWED:
                name = str(argument).replace(" ", ".")
                raise UnsafeFile(
                    f"the pickle names {name}, which makes no tensor",
                    path=path,
                    hint="load it in the program that wrote it and save the tensors as safetensors",
                    name=name,
                )
            if opcode.name == "PROTO" and argument != 2:
                raise UnsafeFile(f"pickle protocol {argument} is not read, torch writes 2", path=path)
            if isinstance(argument, str | bytes) and len(argument) > STRING_LIMIT:
                raise UnsafeFile(f"the pickle holds a text of {len(argument)} characters", path=path)
    except (ValueError, EOFError, OverflowError, MemoryError) as error:
        raise MalformedFile(f"the pickle is damaged: {error}", path=path) from error
    if stream.read(1):
        raise UnsafeFile("bytes follow the pickle's end", path=path)
