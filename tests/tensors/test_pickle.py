"""Pickles: refused unless allowed, then nothing but plain tensors, and no code of theirs ever runs."""

from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from loratools.errors import MalformedFile, PathNotFound, UnsafeFile, UnsupportedFile
from loratools.tensors import pickle_file
from loratools.tensors.pickle_check import ALLOWED, check_pickle
from loratools.tensors.pickle_file import open_pickle


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def equal(path: Path, expected: dict[str, torch.Tensor], skipped: tuple[str, ...] = ()) -> None:
    source = open_pickle(path, allowed=True)
    assert set(source.keys()) == set(expected)
    for key, tensor in expected.items():
        assert source[key].shape == tuple(tensor.shape)
        assert torch.equal(source[key].load().view(torch.uint8), tensor.contiguous().view(torch.uint8)), key
    assert source.skipped == skipped
    assert [file.path for file in source.files] == [str(path)]


@pytest.mark.parametrize("suffix", ["pt", "bin", "ckpt"])
def test_pickle_is_refused_unless_allowed(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(UnsafeFile) as caught:
        open_pickle(path, allowed=False)
    assert "--unsafe-pickle" in (caught.value.hint or "")
    assert caught.value.exit_code == 3


def test_good_archives_are_read_with_equal_tensors(tmp_path):
    base = torch.randn(6, 4)
    tensors = {
        "half": torch.randn(3, 4).half(), "bf": torch.randn(2, 2).bfloat16(), "int": torch.arange(5),
        "view": base[:, 1:3],
        "transposed": base.t(), "alias": base, "alias too": base, "parameter": torch.nn.Parameter(torch.randn(3)),
        "f8": torch.ones(4).to(torch.float8_e4m3fn), "scalar": torch.tensor([2.5]), "bool": torch.tensor([True, False]),
        "u16": torch.ones(3, dtype=torch.uint16), "empty": torch.zeros(0, 3),
    }  # fmt: skip
    torch.save(
        {"state_dict": collections.OrderedDict(tensors), "epoch": 3, "lr": 0.5, "note": "x"}, tmp_path / "x.ckpt"
    )
    expected = {key: tensor.detach() for key, tensor in tensors.items()}
    equal(tmp_path / "x.ckpt", expected, ("epoch: int", "lr: float", "note: str"))
    assert not any("loratools" in name for name in names(tmp_path))


def test_nested_dictionaries_and_lists_get_dotted_names(tmp_path):
    torch.save(
        {"string_to_param": {"*": torch.ones(2, 3)}, "list": [torch.zeros(1), torch.ones(1)]}, tmp_path / "ti.pt"
    )
    equal(
        tmp_path / "ti.pt",
        {"string_to_param.*": torch.ones(2, 3), "list.0": torch.zeros(1), "list.1": torch.ones(1)},
    )


CANARY = "canary"


class Runs:
    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def archive(path: Path, data: bytes, **extra: bytes) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("archive/data.pkl", data)
        made.writestr("archive/version", "3\n")
        for name, content in extra.items():
            made.writestr(name, content)


PAYLOADS = {
    "os.system": lambda canary: Runs(os.system, f"touch {canary}"),
    "eval": lambda canary: Runs(eval, f"open({str(canary)!r}, 'w')"),
    "exec": lambda canary: Runs(exec, f"open({str(canary)!r}, 'w')"),
    "open": lambda canary: Runs(open, str(canary), "w"),
    "torch.load": lambda canary: Runs(torch.load, str(canary)),
    "getattr": lambda _: Runs(getattr, "text", "upper"),
    "import": lambda _: Runs(__import__, "antigravity"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_never_runs(tmp_path, name, protocol):
    canary = tmp_path / CANARY
    data = pickle.dumps({"a": PAYLOADS[name](canary)}, protocol)
    archive(tmp_path / "x.pt", data)
    (tmp_path / "raw.pt").write_bytes(data)
    for path in (tmp_path / "x.pt", tmp_path / "raw.pt"):
        with pytest.raises(MalformedFile):
            open_pickle(path, allowed=True)
    assert not canary.exists()


def test_refusal_names_the_global(tmp_path):
    archive(tmp_path / "x.pt", pickle.dumps(Runs(os.system, "true"), 2))
    with pytest.raises(UnsafeFile, match=r"posix\.system"):
        open_pickle(tmp_path / "x.pt", allowed=True)


def test_instructions_that_reach_past_the_list_are_refused():
    for data in (
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x02}.trailing",
        b"\x80\x05}.",
    ):
        with pytest.raises(UnsafeFile):
            check_pickle(data, path="x")
    for data in (b"", b"\x80\x02", b"\x80\x02}", b"\xff\xff"):
        with pytest.raises(MalformedFile):
            check_pickle(data, path="x")


def test_every_allowed_global_exists_and_only_makes_tensors():
    for name in ALLOWED:
        module, _, attribute = name.partition(" ")
        assert module in {"collections", "torch", "torch._utils", "torch.storage"}
        found: object = collections if module == "collections" else torch
        for part in module.split(".")[1:]:
            found = getattr(found, part)
        assert hasattr(found, attribute), name


def test_everything_torch_writes_for_tensors_is_allowed():
    held = io.BytesIO()
    dtypes = [
        getattr(torch, name.split()[1])
        for name in ALLOWED
        if isinstance(getattr(torch, name.split()[1], None), torch.dtype)
    ]
    torch.save({str(dtype): torch.zeros(2, dtype=torch.uint8).to(dtype) for dtype in dtypes}, held)
    data = zipfile.ZipFile(held).read("archive/data.pkl")
    check_pickle(data, path="x")
    assert any(opcode.name == "GLOBAL" for opcode, _, _ in pickletools.genops(data))


def test_tensor_larger_than_its_storage_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**9)}, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size < 5000
    with pytest.raises(UnsafeFile, match="1000000000 elements over 4 bytes"):
        open_pickle(tmp_path / "x.pt", allowed=True)


def test_many_names_for_one_large_tensor_are_refused(tmp_path):
    large = torch.zeros(1_000_000)
    torch.save({f"k{n}": large for n in range(1000)}, tmp_path / "x.pt")
    with pytest.raises(UnsafeFile, match="would take 4000000000 bytes"):
        open_pickle(tmp_path / "x.pt", allowed=True)


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("kind", ["sparse", "meta", "quantised"])
def test_tensors_that_are_not_dense_are_refused(tmp_path, kind):
    tensor = {
        "sparse": lambda: torch.eye(3).to_sparse(),
        "meta": lambda: torch.zeros(3, device="meta"),
        "quantised": lambda: torch._empty_affine_quantized((2,), scale=0.1, zero_point=0, dtype=torch.qint8),
    }[kind]()
    torch.save({"a": tensor}, tmp_path / "x.pt")
    with pytest.raises(UnsafeFile):
        open_pickle(tmp_path / "x.pt", allowed=True)


def good(path: Path) -> dict[str, bytes]:
    torch.save({"a": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as made:
        return {name: made.read(name) for name in made.namelist()}


def repack(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as made:
        for name, content in members:
            made.writestr(name, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("deflated", "compressed|larger"), ("twice", "twice"), ("case", "twice"), ("two pickles", "2 members"),
        ("no pickle", "0 members"), ("absolute", "leaves"), ("parent", "leaves"), ("many", "members, more"),
        ("local name", "two ways"), ("encrypted", "encrypted"), ("local method", "two ways"),
    ],
)  # fmt: skip
def test_archives_that_torch_does_not_write_are_refused(tmp_path, change, word):
    path = tmp_path / "x.pt"
    members = list(good(path).items())
    method = zipfile.ZIP_STORED
    extra = {
        "twice": [members[0]],
        "case": [("X/data.pkl", members[0][1])],
        "two pickles": [("other/data.pkl", members[0][1])],
        "absolute": [("/etc/x", b"")],
        "parent": [("archive/../../x", b"")],
        "many": [(f"archive/{n}", b"") for n in range(10_001)],
    }.get(change, [])
    if change == "deflated":
        method = zipfile.ZIP_DEFLATED
    if change == "no pickle":
        members = members[1:]
    repack(path, [*members, *extra], method)
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    if change == "local name":
        data[30:38] = b"arch1ve/"
    elif change == "local method":
        data[8:10] = struct.pack("<H", 8)
    elif change == "encrypted":
        data[central + 8] |= 1
        data[6] |= 1
    path.write_bytes(data)
    with pytest.raises(UnsafeFile, match=word):
        open_pickle(path, allowed=True)


def test_repacked_archive_without_a_change_is_read(tmp_path):
    path = tmp_path / "x.pt"
    repack(path, list(good(path).items()))
    equal(path, {"a": torch.zeros(100_000)})


@pytest.mark.parametrize("kind", ["empty", "truncated", "legacy", "tar", "text", "safetensors", "scripted"])
def test_other_files_are_refused(tmp_path, kind):
    path = tmp_path / "x.bin"
    good(path)
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:200_000])
    elif kind == "legacy":
        torch.save({"a": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    elif kind == "tar":
        with tarfile.open(path, "w") as made:
            made.addfile(tarfile.TarInfo("pickle"))
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n" * 20)
    elif kind == "safetensors":
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(3)}, path)
    else:
        repack(path, [*good(path).items(), ("archive/code/x.py", b"import os")])
        os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(MalformedFile):
        open_pickle(path, allowed=True)


def test_missing_pickle_is_not_found(tmp_path):
    with pytest.raises(PathNotFound):
        open_pickle(tmp_path / "none.pt", allowed=True)


@pytest.mark.parametrize(
    ("found", "fits"), [("2.9.1", False), ("1.13.0+cu117", False), ("2.10.0a0+git", True), ("3.0.0", True)]
)
def test_torch_must_be_new_enough(tmp_path, monkeypatch, found, fits):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    monkeypatch.setattr(pickle_file, "version", lambda _: found)
    if fits:
        pickle_file._check_torch("x")
        return
    with pytest.raises(UnsupportedFile, match="too old"):
        open_pickle(tmp_path / "x.pt", allowed=True)
