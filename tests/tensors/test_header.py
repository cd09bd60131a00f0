"""The header: we accept nothing that the safetensors library refuses, and write what it writes."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile

import pytest
import safetensors
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from loratools.errors import MalformedFile, UnsafeFile
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.header import canonical_header, parse_header, read_header
from loratools.tensors.segments import MemoryBytes


def blob(text: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4), **more: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def one(**fields: object) -> str:
    return json.dumps({"a": entry(**fields)})


def raw(shape: str = "[1]", offsets: str = "[0,4]", dtype: str = '"F32"', key: str = '"a"', more: str = "") -> str:
    return f'{{{key}:{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}{more}}}'


F4 = b"\0" * 4


def zip_bytes() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    return held.getvalue()


# (file, the exception, a word of its message)
MALFORMED: dict[str, tuple[bytes, type[MalformedFile], str]] = {
    "empty": (b"", MalformedFile, "empty"),
    **{f"{n} bytes": (b"\1" * n, MalformedFile, "fewer than the 8") for n in range(1, 8)},
    "N = 0": (bytes(8) + b"{}", MalformedFile, "not JSON"),
    "only zeros": (bytes(4096), MalformedFile, "zero bytes"),
    "N = 2^63": (blob("{}", length=1 << 63), MalformedFile, "length would be"),
    "N = 2^64-1": (blob("{}", length=(1 << 64) - 1), MalformedFile, "length would be"),
    "N past the file": (blob("{}", length=99), MalformedFile, "ends inside its header"),
    "N = 100,000,001": (blob("{}", length=100_000_001), MalformedFile, "length would be"),
    "N = 100,000,000 claimed": (blob("{}", length=100_000_000), MalformedFile, "limit"),
    "not UTF-8": (blob(b'{"\xff":1}'), MalformedFile, "UTF-8"),
    "byte order mark": (blob(b"\xef\xbb\xbf{}"), MalformedFile, "begin with"),
    "lone surrogate": (blob(raw(key=r'"\ud800"'), F4), MalformedFile, "surrogate"),
    "lone surrogate in metadata": (blob(r'{"__metadata__":{"a":"\udc00"}}'), MalformedFile, "surrogate"),
    "not JSON": (blob("{nope}"), MalformedFile, "not JSON"),
    "list": (blob("[]"), MalformedFile, "begin with b'['"),
    "trailing garbage": (blob("{} x"), MalformedFile, "not JSON"),
    "two documents": (blob("{}{}"), MalformedFile, "not JSON"),
    "NUL padding": (blob("{}\0\0\0\0\0\0"), MalformedFile, "not JSON"),
    "nested 100,000 deep": (blob('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"), MalformedFile, "deep"),
    "ten million digits": (blob(raw(shape=f"[{'9' * 10_000_000}]"), F4), MalformedFile, "digits"),
    "1e400": (blob(raw(shape="[1e400]"), F4), MalformedFile, "1e400"),
    "1e400 in an unknown field": (blob('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1e400}}'),
                                  MalformedFile, "1e400"),
    "NaN": (blob(raw(shape="[NaN]"), F4), MalformedFile, "NaN"),
    "Infinity": (blob(raw(more=',"x":Infinity'), F4), MalformedFile, "Infinity"),
    "duplicate key, same place": (blob(raw(more="," + raw()[1:-1]), F4), MalformedFile, "twice"),
    "duplicate key, escaped": (blob(raw(more="," + raw(key=r'"\u0061"')[1:-1]), F4), MalformedFile, "twice"),
    "duplicate key in metadata": (blob('{"__metadata__":{"a":"1","a":"2"}}'), MalformedFile, "twice"),
    "duplicate metadata": (blob('{"__metadata__":{},"__metadata__":{}}'), MalformedFile, "twice"),
    "duplicate field": (blob('{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', F4),
                        MalformedFile, "twice"),
    "empty key": (blob(raw(key='""'), F4), MalformedFile, "0 bytes"),
    "key of 1 MB": (blob(raw(key=f'"{"k" * 1_000_000}"'), F4), MalformedFile, "1000000 bytes"),
    "key with NUL": (blob(raw(key=r'"a\u0000b"'), F4), MalformedFile, "NUL"),
    "__metadata__ as tensor": (blob(raw(key='"__metadata__"'), F4), MalformedFile, "__metadata__"),
    "metadata number": (blob('{"__metadata__":{"a":1}}'), MalformedFile, "int"),
    "metadata value null": (blob('{"__metadata__":{"a":null}}'), MalformedFile, "NoneType"),
    "metadata nested": (blob('{"__metadata__":{"a":{"b":"c"}}}'), MalformedFile, "dict"),
    "metadata list": (blob('{"__metadata__":[]}'), MalformedFile, "no object"),
    "metadata of 17 MB": (blob('{"__metadata__":{"a":"' + "x" * (17 << 20) + '"}}'), MalformedFile, "metadata"),
    "entry is a list": (blob('{"a":["F32",[1],[0,4]]}', F4), MalformedFile, "list"),
    "entry is null": (blob('{"a":null}'), MalformedFile, "NoneType"),
    "no dtype": (blob('{"a":{"shape":[1],"data_offsets":[0,4]}}', F4), MalformedFile, "no dtype"),
    "no shape": (blob('{"a":{"dtype":"F32","data_offsets":[0,4]}}', F4), MalformedFile, "no shape"),
    "no offsets": (blob('{"a":{"dtype":"F32","shape":[1]}}', F4), MalformedFile, "no data_offsets"),
    "unknown dtype": (blob(one(dtype="F33"), F4), MalformedFile, "dtype"),
    "lower-case dtype": (blob(one(dtype="f32"), F4), MalformedFile, "dtype"),
    "dtype number": (blob(one(dtype=32), F4), MalformedFile, "dtype"),
    "true dimension": (blob(one(shape=[True]), F4), MalformedFile, "whole numbers"),
    "float dimension": (blob(raw(shape="[1.0]"), F4), MalformedFile, "whole numbers"),
    "negative dimension": (blob(one(shape=[-1, -1]), F4), MalformedFile, "whole numbers"),
    "negative zero": (blob(raw(shape="[-0]", offsets="[0,0]")), MalformedFile, "whole numbers"),
    "2^64 dimension": (blob(one(shape=[1 << 64]), F4), MalformedFile, "whole numbers"),
    "string dimension": (blob(one(shape=["1"]), F4), MalformedFile, "whole numbers"),
    "shape is a number": (blob(one(shape=1), F4), MalformedFile, "whole numbers"),
    "9 dimensions": (blob(one(shape=[1] * 9), F4), MalformedFile, "9 dimensions"),
    "10,000 dimensions": (blob(one(shape=[1] * 10_000), F4), MalformedFile, "10000 dimensions"),
    "product overflow": (blob(one(shape=[1 << 32, 1 << 32]), F4), MalformedFile, "overflow"),
    "bits overflow": (blob(one(shape=[1 << 60]), F4), MalformedFile, "overflow"),
    "zero after overflow": (blob(raw("[4294967296,4294967296,0]", "[0,0]")), MalformedFile, "overflow"),
    "offsets swapped": (blob(one(offsets=[4, 0]), F4), MalformedFile, "no range"),
    "offset negative": (blob(one(offsets=[-4, 0]), F4), MalformedFile, "no range"),
    "offset float": (blob(raw(offsets="[0.0,4]"), F4), MalformedFile, "no range"),
    "three offsets": (blob(one(offsets=[0, 4, 8]), F4), MalformedFile, "no range"),
    "offsets an object": (blob(one(offsets={"start": 0}), F4), MalformedFile, "no range"),
    "offsets past the end": (blob(one(shape=[2], offsets=[0, 8]), F4), MalformedFile, "cut short"),
    "span unlike shape": (blob(one(shape=[2]), F4), MalformedFile, "span"),
    "hole at the start": (blob(one(offsets=[4, 8]), F4 * 2), MalformedFile, "hole of 4"),
    "hole": (blob(json.dumps({"a": entry(), "b": entry(offsets=[8, 12])}), F4 * 3), MalformedFile, "hole of 4"),
    "overlap": (blob(json.dumps({"a": entry(), "b": entry(offsets=[2, 6])}), b"\0" * 6), MalformedFile, "another"),
    "identical places": (blob(json.dumps({"a": entry(), "b": entry()}), F4), MalformedFile, "another"),
    "trailing byte": (blob(one(), F4 + b"x"), MalformedFile, "1 bytes follow"),
    "one byte short": (blob(one(), F4[:3]), MalformedFile, "cut short"),
    "half a byte": (blob(raw("[1]", "[0,1]", '"F4"'), b"\0"), MalformedFile, "span"),
    "nested unknown field": (blob(one(x=[[]]), F4), MalformedFile, "unknown field"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", MalformedFile, "LFS"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", MalformedFile, "web page"),
    "HTML after white space": (b"\n\n  <HTML><body>404</body></html>", MalformedFile, "web page"),
    "gzip": (gzip.compress(b"x" * 500), MalformedFile, "gzip"),
    "zip": (zip_bytes(), UnsafeFile, "zip"),
    "pickle": (pickle.dumps({"a": 1}), UnsafeFile, "pickle"),
    "GGUF": (b"GGUF\3\0\0\0" + bytes(64), MalformedFile, "GGUF"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(64), MalformedFile, "PNG"),
    "JSON": (b'{"weight_map": {}}', MalformedFile, "JSON document"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_file_is_refused_with_its_reason(name):
    data, expected, word = MALFORMED[name]
    with pytest.raises(MalformedFile) as caught:
        read_header(MemoryBytes(data, "bad.safetensors"))
    assert type(caught.value) is expected
    assert word in caught.value.message
    assert caught.value.path == "bad.safetensors"
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", sorted(set(MALFORMED) - {"N = 100,000,000 claimed"}))
def test_no_traceback_of_another_kind_for_any_prefix(name):
    data = MALFORMED[name][0]
    for cut in (1, 7, 8, 9, 20, len(data) // 2):
        with pytest.raises(MalformedFile):
            read_header(MemoryBytes(data[: min(cut, len(data) - 1) if data else 0]))


ACCEPTED: dict[str, bytes] = {
    "no tensors": blob("{}"),
    "metadata null": blob('{"__metadata__":null}'),
    "leading space": blob("  " + one(), F4),
    "tab and newline padding": blob(one() + "\t\n\r ", F4),
    "unknown field": blob(one(x=1, y=None, z="w"), F4),
    "scalar": blob(one(shape=[]), F4),
    "zero dimension": blob(one(shape=[0, 1 << 62], offsets=[0, 0])),
    "unsorted": blob(json.dumps({"a": entry(offsets=[4, 8]), "b": entry()}), F4 * 2),
    "unaligned": blob(json.dumps({"a": entry("U8", [1], [0, 1]), "b": entry(offsets=[1, 5])}), b"\0" * 5),
    "empty tensors between": blob(
        json.dumps({"z": entry(shape=[0], offsets=[4, 4]), "a": entry(), "b": entry(offsets=[4, 8])}), F4 * 2
    ),
    "newline, escape, bidi and emoji keys": blob(
        json.dumps({key: entry(shape=[0], offsets=[0, 0]) for key in ("a\nb", "\x1b[31m", "\u202ex", "😀", "é", "é")})
    ),
    "metadata of 5 MB": blob(json.dumps({"__metadata__": {"a": "x" * 5_000_000}})),
    "F4": blob(raw("[2]", "[0,1]", '"F4"'), b"\0"),
    "F6": blob(raw("[4]", "[0,3]", '"F6_E2M3"'), b"\0" * 3),
    "surrogate pair": blob(raw(key=r'"\ud83d\ude00"'), F4),
}


def as_reference(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {key: (row["dtype"], tuple(row["shape"]), bytes(row["data"])) for key, row in safetensors.deserialize(data)}


def as_ours(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    header = read_header(MemoryBytes(data))
    body = data[header.length :]
    return {key: (row.dtype, row.shape, body[row.start : row.stop]) for key, row in header.tensors.items()}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_format_allows_is_read_as_the_library_reads_it(name):
    assert as_ours(ACCEPTED[name]) == as_reference(ACCEPTED[name])


def test_unknown_fields_are_named_in_warnings():
    assert read_header(MemoryBytes(ACCEPTED["unknown field"])).warnings == tuple(
        f"the header has the unknown field '{name}'" for name in "xyz"
    )


def test_too_many_tensors_are_refused():
    document = {f"k{n}": entry(shape=[0], offsets=[0, 0]) for n in range(200_001)}
    with pytest.raises(MalformedFile, match="200001 tensors"):
        parse_header(json.dumps(document).encode(), path="many")


def test_header_over_the_format_limit_is_refused_unparsed():
    with pytest.raises(MalformedFile, match="100000000"):
        parse_header(b" " * 100_000_001, path="long")


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"\\\\",', b"0,"])
def test_bomb_of_values_is_refused_before_it_is_parsed(unit):
    bomb = b'{"a":[' + unit * (30_000_000 // len(unit)) + b"0]}"
    with pytest.raises(MalformedFile, match="values"):
        parse_header(bomb, path="bomb")


# Mutations of a valid header, at the level of its tokens and of its bytes.
NUMBERS = st.sampled_from(["0", "1", "4", "-1", "-0", "1.0", "1e1", "01", "8", "12", "true", "null", '"4"',
                           "18446744073709551615", "18446744073709551616", "4294967296", "[]", "NaN", "2"])  # fmt: skip
WORDS = st.sampled_from([*DTYPES, "f32", "", "F33"])
KEYS = st.sampled_from(["a", "b", r"\u0061", "", "__metadata__", r"\ud800", "é", r"a\u0000", "data_offsets"])
WIDTHS = {name: row.bits for name, row in DTYPES.items()}


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    fields: list[str] = []
    at = 0
    mutate = draw(st.integers(0, 3))
    for index in range(draw(st.integers(0, 3))):
        dtype = draw(st.sampled_from(list(DTYPES)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        bits = WIDTHS[dtype]
        for extent in shape:
            bits *= extent
        size = -(-bits // 8)
        parts = {
            "key": f"k{index}",
            "dtype": f'"{dtype}"',
            "shape": "[" + ",".join(map(str, shape)) + "]",
            "start": str(at),
            "stop": str(at + size),
            "more": "",
        }
        at += size
        if mutate and draw(st.booleans()):
            mutate -= 1
            what = draw(st.sampled_from(list(parts)))
            parts[what] = {
                "key": KEYS,
                "dtype": WORDS.map(lambda word: f'"{word}"'),
                "shape": st.lists(NUMBERS, max_size=9).map(lambda items: "[" + ",".join(items) + "]"),
                "start": NUMBERS,
                "stop": NUMBERS,
                "more": st.sampled_from(
                    [',"x":1', ',"x":1e400', ',"x":{}', ',"dtype":"F32"', ",", ',"x":NaN', ',"x":[[1]]']
                ),
            }[what]
            parts[what] = draw(parts[what])
        fields.append(
            f'"{parts["key"]}":{{"dtype":{parts["dtype"]},"shape":{parts["shape"]},'
            f'"data_offsets":[{parts["start"]},{parts["stop"]}]{parts["more"]}}}'
        )
    metadata = draw(st.sampled_from(["", '"__metadata__":{"a":"b"}', '"__metadata__":null', '"__metadata__":{"a":1}']))
    text = "{" + ",".join([*([metadata] if metadata else []), *fields]) + "}" + draw(st.sampled_from(["", "  ", "\n"]))
    data = bytearray(blob(text, bytes(max(0, at + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        place = draw(st.integers(0, len(data) - 1))
        data[place] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(headers())
@example(blob('{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'))
@example(blob('{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"x":1e400}}'))
def test_what_we_accept_the_library_accepts_alike(data):
    try:
        ours = as_ours(data)
    except MalformedFile:
        return
    assert ours == as_reference(data)


@settings(max_examples=150, deadline=None)
@given(headers())
def test_what_only_we_refuse_is_in_the_listed_set(data):
    try:
        reference = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return
    try:
        ours = as_ours(data)
    except MalformedFile as error:
        refusal = error.message
    else:
        assert ours == {key: (row["dtype"], tuple(row["shape"]), bytes(row["data"])) for key, row in reference}
        return
    # Duplicate keys, keys that some reader cuts short, more dimensions than any model has, nested unknown fields, and
    # NaN or a huge number inside an unknown field.
    listed = ("twice", "0 bytes", "NUL", "dimensions", "unknown field", "NaN", "digits", "limit")
    assert any(word in refusal for word in listed), refusal


TORCH_DTYPES = [row.torch for row in DTYPES.values() if row.torch and hasattr(torch, row.torch)]
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


def torch_tensor(dtype: str, shape: list[int]) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8).to(getattr(torch, dtype))


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        NAMES.filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(TORCH_DTYPES), st.lists(st.integers(0, 3), max_size=4)),
        max_size=8,
    ),
    st.one_of(st.none(), st.tuples(NAMES, st.text(st.characters(exclude_categories=["Cs"])))),
)
def test_canonical_header_is_the_librarys_own(shapes, metadata):
    names = {row.torch: name for name, row in DTYPES.items()}
    tensors = {key: torch_tensor(dtype, shape) for key, (dtype, shape) in shapes.items()}
    theirs = save(tensors, metadata=dict([metadata]) if metadata else None)
    ours = canonical_header(
        {key: (names[dtype], shape) for key, (dtype, shape) in shapes.items()}, dict([metadata]) if metadata else {}
    )
    (length,) = struct.unpack("<Q", theirs[:8])
    assert ours == theirs[: 8 + length]
    header = parse_header(ours[8:], path="own")
    assert {key: (e.dtype, list(e.shape)) for key, e in header.tensors.items()} == {
        key: (names[dtype], shape) for key, (dtype, shape) in shapes.items()
    }


def test_canonical_header_sorts_metadata():
    assert canonical_header({}, {"b": "2", "a": "1"}) == canonical_header({}, {"a": "1", "b": "2"})
    assert b'{"a":"1","b":"2"}' in canonical_header({}, {"b": "2", "a": "1"})
