"""Views of lazy tensors give the bytes that torch's own operations give."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratools.errors import InternalError, MalformedFile, NonFinite, UnsupportedFile
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import Bytes, LazyTensor, MemoryBytes, Zeros, block_diagonal, stack_rows
from loratools.tensors.source import lazy_tensor

DTYPES_TRIED = ["float16", "bfloat16", "float32", "float64", "int64", "uint8", "float8_e4m3fn"]


def random(shape: tuple[int, ...], dtype: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 100, shape, generator=generator)
    return tensor.to(torch.float32).to(getattr(torch, dtype))


def lazy(tensor: torch.Tensor) -> LazyTensor:
    """The tensor as bytes of a source that lie behind other bytes."""
    computed = LazyTensor.from_torch(tensor)
    data = computed.tobytes()
    source = MemoryBytes(b"xyz" + data + b"tail")
    return LazyTensor(computed.dtype, tuple(tensor.shape), (Bytes(source, 3, len(data)),))


def same(ours: LazyTensor, theirs: torch.Tensor) -> bool:
    loaded = ours.load()
    assert loaded.shape == theirs.shape == torch.Size(ours.shape)
    assert loaded.dtype == theirs.dtype
    assert sum(segment.length for segment in ours.segments) == ours.nbytes
    return raw(loaded) == raw(theirs)


def raw(tensor: torch.Tensor) -> list[int]:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).tolist() if flat.numel() else []


@pytest.mark.parametrize("dtype", DTYPES_TRIED)
@pytest.mark.parametrize("make", [lazy, LazyTensor.from_torch], ids=["bytes", "computed"])
def test_views_are_torchs_views(dtype, make):
    t = random((6, 5, 3), dtype)
    x = make(t)
    zeros = torch.zeros((2, 5, 3), dtype=t.dtype)
    side = torch.zeros((6, 4, 3), dtype=t.dtype)
    assert same(x, t)
    assert same(x.rows(1, 4), t[1:4])
    assert same(x.rows(2, 2), t[2:2])
    assert same(x.columns(1, 4), t[:, 1:4])
    assert same(x.columns(0, 5), t)
    assert same(x.columns(1, 4).rows(2, 5), t[2:5, 1:4])
    assert same(x.rows(1, 5).columns(2, 5), t[1:5, 2:5])
    assert same(x.reshape(30, 3).rows(7, 22), t.reshape(30, 3)[7:22])
    assert same(x.columns(1, 4).reshape(18, 3).rows(4, 11), t[:, 1:4].reshape(18, 3)[4:11])
    assert same(x.swap_halves(), torch.cat([t[3:], t[:3]]))
    assert same(x.swap_halves().swap_halves(), t)
    assert same(x.pad_rows(2, 0), torch.cat([zeros, t]))
    assert same(x.pad_rows(0, 2), torch.cat([t, zeros]))
    assert same(x.pad_columns(4, 4), torch.cat([side, t, side], 1))
    assert same(x.pad_columns(4, 0).columns(3, 9), torch.cat([side, t], 1)[:, 3:9])
    assert same(stack_rows([x, x.rows(0, 1), x]), torch.cat([t, t[:1], t]))


@pytest.mark.parametrize("dtype", DTYPES_TRIED)
def test_block_diagonal_is_torchs(dtype):
    parts = [random((2, 3), dtype, 1), random((4, 1), dtype, 2), random((1, 5), dtype, 3)]
    expected = torch.block_diag(*(part.float() for part in parts)).to(parts[0].dtype)
    assert same(block_diagonal([lazy(part) for part in parts]), expected)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 7),
    st.integers(1, 700),
    st.tuples(st.integers(0, 700), st.integers(0, 700)),
    st.integers(0, 5),
    st.data(),
)
def test_cut_and_padded_columns_of_any_size_are_torchs(rows, columns, bounds, pad, data):
    start, stop = bounds
    start, stop = sorted((start % (columns + 1), stop % (columns + 1)))
    t = random((rows, columns), "float16", rows)
    x = (lazy if data.draw(st.booleans()) else LazyTensor.from_torch)(t)
    expected = torch.nn.functional.pad(t[:, start:stop].float(), (pad, 2 * pad)).half()
    view = x.columns(start, stop).pad_columns(pad, 2 * pad)
    assert same(view, expected)
    first = data.draw(st.integers(0, rows))
    assert same(view.rows(first, rows), expected[first:])


def test_columns_of_a_large_tensor_are_streamed_and_computed_once():
    t = torch.arange(3_000_000, dtype=torch.int32).reshape(1000, 3000)
    calls = []

    def produce() -> torch.Tensor:
        calls.append(1)
        return t

    view = LazyTensor.computed("I32", (1000, 3000), produce).columns(1, 2999)
    chunks = list(view.chunks())
    assert b"".join(chunks) == t[:, 1:2999].contiguous().numpy().tobytes()
    assert len(calls) == 1
    assert max(map(len, chunks)) <= 1 << 20


def test_rows_that_meet_again_are_one_run():
    x = lazy(random((8, 4), "float32"))
    assert stack_rows([x.rows(0, 3), x.rows(3, 8)]).segments == x.segments
    assert stack_rows([x.pad_rows(1, 2), LazyTensor.zeros("F32", (2, 4))]).segments[-1] == Zeros(4 * 4 * 4)


def test_views_outside_their_tensor_are_errors():
    x = lazy(random((3, 4), "float32"))
    for view in (
        lambda: x.rows(0, 4), lambda: x.rows(-1, 2), lambda: x.rows(2, 1), lambda: x.columns(0, 5), x.swap_halves,
        lambda: x.reshape(5), lambda: stack_rows([x, x.reshape(4, 3)]),
        lambda: stack_rows([x, lazy(random((3, 4), "float16"))]),
    ):  # fmt: skip
        with pytest.raises(ValueError):  # noqa: PT011 - a programmer's mistake, no message is promised
            view()


def test_packed_elements_are_not_cut_inside_a_byte():
    odd = LazyTensor.from_bytes("F4", (2, 3), b"\1\2\3")
    with pytest.raises(UnsupportedFile, match="F4"):
        odd.rows(0, 1)
    even = LazyTensor.from_bytes("F4", (2, 4), b"\1\2\3\4")
    assert even.rows(1, 2).tobytes() == b"\3\4"
    with pytest.raises(UnsupportedFile):
        even.load()


def test_parts_without_columns_become_zeros():
    empty = LazyTensor.zeros("F32", (4, 0))
    assert same(empty.pad_columns(0, 3), torch.zeros(4, 3))
    part = random((2, 2), "float32")
    assert same(block_diagonal([empty, lazy(part)]), torch.cat([torch.zeros(4, 2), part]))


def test_same_bytes_compares_bytes_across_segmentations():
    t = random((300_000, 2), "float32")
    whole, parts = lazy(t), stack_rows([lazy(t[:7]), LazyTensor.from_torch(t[7:])])
    assert whole.same_bytes(parts)
    assert parts.same_bytes(whole)
    other = t.clone()
    other[-1, -1] += 1
    assert not whole.same_bytes(lazy(other))
    assert not whole.same_bytes(lazy(t.reshape(2, 300_000)))
    assert not whole.same_bytes(lazy(t.view(torch.int32)))
    assert not LazyTensor.zeros("F32", (300_000, 2)).same_bytes(whole)
    assert LazyTensor.zeros("F32", (3, 0)).same_bytes(LazyTensor.from_torch(torch.zeros(3, 0)))


def test_same_place_is_not_read():
    class Unreadable(MemoryBytes):
        def read(self, *_: int) -> bytes:
            raise AssertionError

    source = Unreadable(b"12345678")
    x, y = (LazyTensor("F32", (2,), (Bytes(source, 0, 8),)) for _ in range(2))
    assert x.same_bytes(y)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16"]
)
def test_item_is_the_exact_value_and_scalar_its_inverse(dtype):
    values = [0, 1, 4, 16, 100] + ([0.5, 0.1, 1e-3, -2.75] if "float" in dtype else [])
    for value in values:
        t = torch.tensor(value, dtype=getattr(torch, dtype))
        found = LazyTensor.from_torch(t).item()
        assert found == Fraction(t.item())
        assert LazyTensor.from_torch(t.reshape(1)).item() == found
        name = LazyTensor.from_torch(t).dtype
        if name != "U16":
            assert LazyTensor.scalar(found, name).same_bytes(LazyTensor.from_torch(t))


def test_item_of_what_is_no_number_is_a_float():
    for value in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            assert str(LazyTensor.from_torch(torch.tensor(value, dtype=dtype)).item()) == str(value)


def test_scalar_refuses_what_the_dtype_cannot_hold():
    for value, dtype in (
        (Fraction(1, 3), "F32"),
        (Fraction(70000), "F16"),
        (Fraction(257), "BF16"),
        (Fraction(1, 2), "I64"),
    ):
        with pytest.raises(NonFinite):
            LazyTensor.scalar(value, dtype)
    assert LazyTensor.scalar(Fraction(256), "BF16", (1,)).load().item() == 256


def test_item_of_several_elements_is_refused():
    with pytest.raises(UnsupportedFile):
        LazyTensor.zeros("F32", (2,)).item()


@pytest.mark.parametrize("name", [name for name, row in DTYPES.items() if row.torch and hasattr(torch, row.torch)])
def test_every_torch_dtype_goes_there_and_back(name):
    t = torch.arange(0, 2, dtype=torch.uint8).to(getattr(torch, DTYPES[name].torch))
    back = LazyTensor.from_torch(t).load()
    assert back.dtype == t.dtype
    assert torch.equal(back.view(torch.uint8), t.view(torch.uint8))


def test_views_of_torch_tensors_are_taken_as_they_look():
    t = random((4, 6), "float32")
    z = torch.complex(t, t).conj()
    assert same(LazyTensor.from_torch(t.t()), t.t().contiguous())
    assert same(LazyTensor.from_torch(t[:, ::2]), t[:, ::2].contiguous())
    assert LazyTensor.from_torch(z).load().equal(z.resolve_conj())


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "int64", "bool", "complex64"])
def test_numpy_arrays_are_held_as_they_look(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    assert lazy_tensor(array[:, ::2]).load().numpy().tolist() == array[:, ::2].tolist()


def test_what_is_no_tensor_is_refused():
    for value in ([1.0], "x", np.array(["x"]), np.array([1], "timedelta64[s]")):
        with pytest.raises(UnsupportedFile):
            lazy_tensor(value)


def test_computed_bytes_of_another_length_are_our_mistake():
    with pytest.raises(InternalError):
        LazyTensor.computed("F32", (3,), lambda: torch.zeros(2)).tobytes()


def test_memory_that_is_too_short_is_an_error():
    with pytest.raises(MalformedFile):
        LazyTensor("F32", (3,), (Bytes(MemoryBytes(b"12345678"), 0, 12),)).tobytes()
