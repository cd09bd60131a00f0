"""Local files: read safely, never blocked, never changed behind our back."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from loratools.errors import LoratoolsError, MalformedFile, PathNotFound, ResourceError
from loratools.tensors.safetensors_file import SafetensorsFile, open_safetensors
from loratools.tensors.source import LocalFile, MemoryTensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4, dtype=torch.bfloat16), "e": torch.zeros(0, 3)}


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_files_bytes_and_file_objects_read_alike(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"k": "v"})
    data = (tmp_path / "x.safetensors").read_bytes()
    for made in (
        open_safetensors(tmp_path / "x.safetensors"), open_safetensors(str(tmp_path / "x.safetensors")),
        open_safetensors(data), open_safetensors(io.BytesIO(data)), SafetensorsFile.from_bytes(data),
    ):  # fmt: skip
        assert made.metadata == {"k": "v"}
        assert len(made) == 3
        assert set(made.keys()) == set(TENSORS)
        assert all(torch.equal(made[key].load(), tensor) for key, tensor in TENSORS.items())
        with pytest.raises(KeyError):
            made["nothing"]
    with (tmp_path / "x.safetensors").open("rb") as file:
        assert torch.equal(SafetensorsFile.from_file(file)["b"].load(), TENSORS["b"])


def test_keys_come_in_the_order_of_the_data():
    assert open_safetensors(save(TENSORS)).keys() == ("b", "e", "a")


def test_memory_tensors_hold_torch_numpy_and_lazy_alike():
    source = MemoryTensors(
        {**TENSORS, "n": TENSORS["b"].numpy(), "l": open_safetensors(save(TENSORS))["b"]}, {"m": "1"}
    )
    assert source.keys() == ("b", "a", "e", "n", "l")
    assert source["n"].same_bytes(source["b"])
    assert source["l"].same_bytes(source["b"])
    assert (len(source), source.metadata, source.files) == (5, {"m": "1"}, ())


def test_missing_file_is_not_found_when_first_needed(tmp_path):
    file = LocalFile(tmp_path / "none")
    with pytest.raises(PathNotFound):
        file.read(0, 1)


def unusual(tmp_path: Path) -> dict[str, tuple[Path, type[LoratoolsError]]]:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_bytes(b"x")
    return {
        "folder": (tmp_path, MalformedFile),
        "fifo": (tmp_path / "fifo", MalformedFile),
        "device": (Path("/dev/zero"), MalformedFile),
        "loop": (tmp_path / "loop", MalformedFile),
        "dangling": (tmp_path / "dangling", PathNotFound),
        "below a file": (tmp_path / "file" / "x", PathNotFound),
        "NUL": (Path("a\0b"), PathNotFound),
        "long": (tmp_path / ("x" * 5000), MalformedFile),
    }


@pytest.mark.parametrize("name", ["folder", "fifo", "device", "loop", "dangling", "below a file", "NUL", "long"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name):
    path, expected = unusual(tmp_path)[name]
    with pytest.raises(expected):
        open_safetensors(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_a_matter_of_permission(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "x").chmod(0)
    with pytest.raises(ResourceError):
        LocalFile(tmp_path / "x").read(0, 1)


def test_permission_errors_are_resource_errors(tmp_path, monkeypatch):
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ResourceError, match="Permission denied"):
        LocalFile(tmp_path / "x").read(0, 1)


def test_link_is_refused_where_links_are_not_followed(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "l").symlink_to("x")
    assert LocalFile(tmp_path / "l").read(0, 1) == b"x"
    with pytest.raises(MalformedFile):
        LocalFile(tmp_path / "l", follow_links=False).read(0, 1)


def test_short_reads_are_repeated(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(bytes(range(256)))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 7), offset))
    assert LocalFile(tmp_path / "x").read(3, 200) == bytes(range(3, 203))


def failing(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("call", ["fstat", "pread"])
def test_a_failing_disk_is_told_with_the_file(tmp_path, monkeypatch, call):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    before = len(names(Path("/proc/self/fd")))
    with monkeypatch.context() as patch, LocalFile(path) as file:
        patch.setattr(os, call, failing)
        with pytest.raises(ResourceError) as refusal:
            file.read(0, 8)
    assert refusal.value.path == str(path)
    assert os.strerror(errno.EIO) in refusal.value.message
    assert len(names(Path("/proc/self/fd"))) == before


def test_a_failing_file_object_is_told_with_its_name(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)

    class Failing(io.FileIO):
        def readinto(self, *_):
            failing()

        read = readinto

    with Failing(path) as file, pytest.raises(ResourceError) as refusal:
        open_safetensors(file)
    assert refusal.value.path == str(path)


def test_shrunk_file_is_an_error_not_a_crash(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(1 << 20))
    file = LocalFile(path)
    assert file.size == 1 << 20
    os.truncate(path, 1000)
    with pytest.raises(ResourceError, match="input changed"):
        file.read(0, 1 << 20)


@pytest.mark.parametrize("change", ["touch", "grow", "shrink"])
@pytest.mark.parametrize("closed", [False, True])
def test_changes_are_noticed(tmp_path, change, closed):
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    file = LocalFile(path)
    file.check_unchanged()
    assert file.read(0, 10) == b"0123456789"
    file.check_unchanged()
    if closed:
        file.close()
        file.check_unchanged()
        assert file.read(2, 3) == b"234"
        file.close()
    found = path.stat()
    if change == "touch":
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    else:
        path.write_bytes(b"0123456789abc" if change == "grow" else b"012")
    with pytest.raises(ResourceError, match="input changed while reading"):
        file.check_unchanged()
    if closed:
        with pytest.raises(ResourceError, match="input changed while reading"):
            file.read(0, 2)


def test_threads_share_one_file(tmp_path):
    path = tmp_path / "x"
    data = os.urandom(1 << 20)
    path.write_bytes(data)
    file = LocalFile(path)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(200):
            at = (seed * 7919 + step * 104729) % (len(data) - 1000)
            if file.read(at, 1000) != data[at : at + 1000]:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_descriptors_are_given_back(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    before = len(names(Path("/proc/self/fd")))
    for _ in range(50):
        LocalFile(tmp_path / "x").read(0, 1)
        with LocalFile(tmp_path / "x") as file:
            assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    assert len(names(Path("/proc/self/fd"))) == before
