"""The writer: whole, verified and durable, or nothing at all; judged by the safetensors library."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loratools.errors import (
    InternalError,
    LoratoolsError,
    MalformedFile,
    OutputExists,
    OutputRefused,
    PathNotFound,
    ResourceError,
    UsageError,
)
from loratools.tensors import transfer
from loratools.tensors.layout import Layout
from loratools.tensors.lazy import LazyTensor, stack_rows
from loratools.tensors.safetensors_file import SafetensorsFile, open_safetensors
from loratools.tensors.source import LocalFile, MemoryTensors
from loratools.tensors.writer import write

TENSORS = {
    **{f"m{n}.up": torch.randn(40 + n, 512).half() for n in range(4)},
    **{f"m{n}.down": torch.randn(300, 70 + n) for n in range(4)},
    **{f"m{n}.alpha": torch.tensor(float(n)) for n in range(4)},
    "b": torch.randn(3, 5).bfloat16(),
    "i": torch.arange(9),
    "empty": torch.zeros(0, 4),
}
ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@pytest.fixture
def source(tmp_path):
    save_file(TENSORS, tmp_path / "in.safetensors", {"k": "v"})
    return open_safetensors(tmp_path / "in.safetensors")


def all_of(source: SafetensorsFile) -> dict[str, LazyTensor]:
    return {key: source[key] for key in source}


def payload(path: Path) -> bytes:
    data = path.read_bytes()
    return data[8 + struct.unpack("<Q", data[:8])[0] :]


def leftovers(folder: Path) -> list[str]:
    return [name for name in names(folder) if "loratools-tmp" in name]


@pytest.mark.parametrize("held", ["file", "memory", "mixed"])
def test_written_file_is_the_librarys_own_to_the_byte(tmp_path, source, held):
    from_torch = MemoryTensors(TENSORS)
    tensors = {
        key: from_torch[key] if held == "memory" or (held == "mixed" and "up" in key) else source[key] for key in source
    }
    done = write(tmp_path / "out.safetensors", tensors, {"k": "v"}, inputs=source.files)
    assert done.path.read_bytes() == (tmp_path / "in.safetensors").read_bytes()
    assert done.size == done.path.stat().st_size
    assert done.payload_sha256 == hashlib.sha256(payload(done.path)).hexdigest()
    assert leftovers(tmp_path) == []


def test_renamed_tensors_load_equal(tmp_path, source):
    renamed = {f"x.{key[::-1]}": tensor for key, tensor in all_of(source).items()}
    write(tmp_path / "out.safetensors", renamed, {"ключ": 'w"\n'})
    loaded = load_file(tmp_path / "out.safetensors")
    assert loaded.keys() == renamed.keys()
    assert all(torch.equal(loaded[f"x.{key[::-1]}"], tensor) for key, tensor in TENSORS.items())
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"ключ": 'w"\n'}
    expected = {f"x.{key[::-1]}": tensor for key, tensor in TENSORS.items()}
    save_file(expected, tmp_path / "theirs.safetensors")
    assert payload(tmp_path / "out.safetensors") == payload(tmp_path / "theirs.safetensors")


def test_views_and_computed_tensors_load_equal(tmp_path, source):
    x, t = source["m0.down"], TENSORS["m0.down"]
    tensors = {
        "swapped": x.swap_halves(),
        "columns": x.columns(3, 60),
        "stack": stack_rows([x.rows(10, 20), x.pad_rows(1, 2), x.rows(0, 300)]),
        "computed": LazyTensor.computed("F16", (300, 70), t.half),
        "zeros": LazyTensor.zeros("F32", (1000, 1000)),
    }
    write(tmp_path / "out.safetensors", tensors, {}, inputs=source.files)
    loaded = load_file(tmp_path / "out.safetensors")
    assert torch.equal(loaded["swapped"], torch.cat([t[150:], t[:150]]))
    assert torch.equal(loaded["columns"], t[:, 3:60])
    assert torch.equal(loaded["stack"], torch.cat([t[10:20], torch.zeros(1, 70), t, torch.zeros(2, 70), t]))
    assert torch.equal(loaded["computed"], t.half())
    assert not loaded["zeros"].any()


@pytest.mark.parametrize("missing", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS])
def test_every_way_to_copy_gives_the_same_file(tmp_path, source, monkeypatch, missing, code):
    def refuse(*_: object) -> int:
        raise OSError(code, "not here")

    for name in missing:
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(transfer, "SMALLEST_COPY", 1)
    renamed = {f"x.{key[::-1]}": tensor for key, tensor in all_of(source).items()}
    done = write(tmp_path / "out.safetensors", renamed, {})
    save_file({f"x.{key[::-1]}": t for key, t in TENSORS.items()}, tmp_path / "theirs.safetensors")
    assert done.path.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize("largest", [1, 1000, 70_000])
def test_short_copies_and_short_writes_are_repeated(tmp_path, source, monkeypatch, largest):
    copy, put, send = os.copy_file_range, os.pwrite, os.sendfile
    if largest == 1:
        monkeypatch.setattr(transfer, "SMALLEST_COPY", 1 << 40)
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, *at: copy(a, b, min(n, largest), *at))
    monkeypatch.setattr(os, "sendfile", lambda a, b, at, n: send(a, b, at, min(n, largest)))
    step = max(largest, 997)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: put(fd, data[:step], at))
    done = write(tmp_path / "out.safetensors", all_of(source), {"k": "v"})
    assert done.path.read_bytes() == (tmp_path / "in.safetensors").read_bytes()


def test_given_order_is_kept_on_request(tmp_path, source):
    order = sorted(source, key=lambda key: key[::-1])
    write(tmp_path / "out.safetensors", {key: source[key] for key in order}, {}, keep_order=True)
    result = open_safetensors(tmp_path / "out.safetensors")
    assert [key for key in result if result[key].nbytes] == [key for key in order if source[key].nbytes]
    loaded = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in TENSORS.items())


def test_late_metadata_holds_the_hash_of_the_payload(tmp_path, source):
    done = write(
        tmp_path / "out.safetensors", all_of(source), {"k": "v"}, late_metadata=lambda digest: {"hash": digest}
    )
    with safe_open(done.path, "pt") as file:
        assert file.metadata() == {"k": "v", "hash": hashlib.sha256(payload(done.path)).hexdigest()}
    assert payload(done.path) == payload(tmp_path / "in.safetensors")


def test_late_metadata_of_another_length_is_refused(tmp_path, source):
    with pytest.raises(InternalError):
        write(tmp_path / "out", all_of(source), {}, late_metadata=lambda digest: {"x": digest.strip("0")})
    assert names(tmp_path) == ["in.safetensors"]


def test_window_of_a_layout_is_a_part_of_the_payload(tmp_path, source):
    layout = Layout.of(all_of(source), {})
    whole = payload(tmp_path / "in.safetensors")
    for start, stop in ((0, 10), (1000, 70_000), (len(whole) - 5, len(whole) + 100), (50, 50)):
        assert layout.window(start, stop) == whole[start:stop]


def test_progress_ends_at_the_size(tmp_path, source):
    seen: list[tuple[int, int]] = []
    done = write(tmp_path / "out", all_of(source), {}, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (done.size, done.size)


def test_proof_sees_the_complete_file_and_can_undo_it(tmp_path, source):
    seen = []

    def check(path: Path) -> None:
        seen.append({key: tensor.clone() for key, tensor in load_file(path).items()})
        raise InternalError("no")

    with pytest.raises(InternalError):
        write(tmp_path / "out", all_of(source), {}, check=check)
    assert seen[0].keys() == TENSORS.keys()
    assert all(torch.equal(seen[0][key], tensor) for key, tensor in TENSORS.items())
    assert names(tmp_path) == ["in.safetensors"]


def test_interrupt_leaves_nothing(tmp_path, source):
    (tmp_path / "out").write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for how in ({"check": interrupt}, {"progress": interrupt}):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "out", all_of(source), {}, overwrite=True, **how)
    assert names(tmp_path) == ["in.safetensors", "out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_bytes_that_change_on_the_way_to_the_disk_are_noticed(tmp_path, monkeypatch):
    put = os.pwrite

    def lie(descriptor: int, data: bytes, offset: int) -> int:
        flipped = bytes([data[0] ^ 1]) + bytes(data[1:]) if offset > 8 else data
        return put(descriptor, flipped, offset)

    monkeypatch.setattr(os, "pwrite", lie)
    with pytest.raises(InternalError, match="not those written"):
        write(tmp_path / "out", MemoryTensors({"a": torch.zeros(2_000_000)})._tensors, {})
    assert names(tmp_path) == []


def test_computed_tensor_of_another_size_is_our_mistake_and_leaves_nothing(tmp_path):
    with pytest.raises(InternalError):
        write(tmp_path / "out", {"a": LazyTensor.computed("F32", (3,), lambda: torch.zeros(4))}, {})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("key", "metadata", "expected"),
    [("", {}, MalformedFile), ("__metadata__", {}, MalformedFile), ("k" * 2000, {}, MalformedFile),
     ("a\0", {}, MalformedFile), ("\ud800", {}, MalformedFile), ("a", {"x": 1}, UsageError)],
)  # fmt: skip
def test_what_no_reader_would_take_is_not_written(tmp_path, key, metadata, expected):
    with pytest.raises(expected):
        write(tmp_path / "out", {key: LazyTensor.zeros("F32", (1,))}, metadata)
    assert names(tmp_path) == []


# Refusals


def test_existing_output_needs_overwrite(tmp_path, source):
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(OutputExists):
        write(tmp_path / "out", all_of(source), {})
    assert (tmp_path / "out").read_bytes() == b"old"
    write(tmp_path / "out", all_of(source), {}, overwrite=True)
    assert payload(tmp_path / "out") == payload(tmp_path / "in.safetensors")


@pytest.mark.parametrize("alias", ["same", "dot", "up and down", "link", "hard link", "through a linked folder"])
def test_output_that_is_an_input_is_refused(tmp_path, source, alias):
    (tmp_path / "sub").mkdir()
    target = {
        "same": tmp_path / "in.safetensors",
        "dot": f"{tmp_path}/./in.safetensors",
        "up and down": f"{tmp_path}/sub/../in.safetensors",
        "link": tmp_path / "link",
        "hard link": tmp_path / "hard",
        "through a linked folder": tmp_path / "folder" / "in.safetensors",
    }[alias]
    (tmp_path / "link").symlink_to("in.safetensors")
    os.link(tmp_path / "in.safetensors", tmp_path / "hard")
    (tmp_path / "folder").symlink_to(tmp_path)
    before = (tmp_path / "in.safetensors").read_bytes()
    with pytest.raises(OutputRefused) as caught:
        write(target, all_of(source), {}, inputs=source.files, overwrite=True)
    assert caught.value.exit_code == 2
    assert (tmp_path / "in.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", ["dangling link", "folder", "fifo", "read-only", "no name", "long name", "NUL"])
def test_output_that_cannot_be_a_plain_file_is_refused(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "dangling link":
        target.symlink_to("nowhere")
    elif kind == "folder":
        target.mkdir()
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "read-only":
        target.write_bytes(b"old")
        target.chmod(0o444)
    else:
        target = {"no name": Path("/"), "long name": tmp_path / ("x" * 300), "NUL": Path("a\0b")}[kind]
    before = names(tmp_path)
    with pytest.raises(OutputRefused):
        write(target, {"a": LazyTensor.zeros("F32", (1,))}, {}, overwrite=True)
    assert names(tmp_path) == before


def test_output_in_a_missing_folder_is_not_found(tmp_path):
    with pytest.raises(PathNotFound):
        write(tmp_path / "no" / "out", {"a": LazyTensor.zeros("F32", (1,))}, {})


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_output_in_the_hub_cache_is_refused(tmp_path, monkeypatch, variable):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    below = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}.get(variable, "")
    folder = tmp_path / below / "models--a--b"
    folder.mkdir(parents=True)
    with pytest.raises(OutputRefused, match="Hub cache"):
        write(folder / "out", {"a": LazyTensor.zeros("F32", (1,))}, {})


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027, 0o077])
@pytest.mark.parametrize("before", [None, 0o600, 0o640, 0o644, 0o755])
def test_mode_is_that_of_the_old_file_or_of_the_umask(tmp_path, umask, before):
    target = tmp_path / "out"
    if before is not None:
        target.write_bytes(b"old")
        target.chmod(before)
    previous = os.umask(umask)
    try:
        write(target, {"a": LazyTensor.zeros("F32", (1,))}, {}, overwrite=True)
    finally:
        os.umask(previous)
    assert target.stat().st_mode & 0o7777 == (0o666 & ~umask if before is None else before)


# Failures


def test_input_cut_short_while_it_is_copied(tmp_path, source):
    large = {"a": LazyTensor.from_torch(torch.randn(3_000_000))}
    write(tmp_path / "large", large, {})
    for how in (os.copy_file_range, None):
        file = open_safetensors(tmp_path / "large")
        tensors = {"first": LazyTensor.computed("F64", (1,), lambda: cut(tmp_path / "large")), "a": file["a"]}
        if how is None:
            tensors["a"] = file["a"].reshape(1, 3_000_000).columns(1, 2_999_999)
        with pytest.raises(ResourceError, match="input changed"):
            write(tmp_path / "out", tensors, {}, inputs=file.files)
        assert names(tmp_path) == ["in.safetensors", "large"]
        write(tmp_path / "large", large, {}, overwrite=True)


def cut(path: Path) -> torch.Tensor:
    os.truncate(path, 5_000_000)
    return torch.zeros(1, dtype=torch.float64)


def test_input_written_to_while_it_is_read(tmp_path, source):
    def touch(_: Path) -> None:
        with (tmp_path / "in.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")

    with pytest.raises(ResourceError, match="input changed while reading"):
        write(tmp_path / "out", all_of(source), {}, inputs=source.files, check=touch)
    assert names(tmp_path) == ["in.safetensors"]


CALLS = [
    "open",
    "pwrite",
    "copy_file_range",
    "pread",
    "preadv",
    "posix_fallocate",
    "fdatasync",
    "fsync",
    "replace",
    "fchmod",
]


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", CALLS)
def test_any_failing_call_leaves_the_old_output_or_the_whole_new_one(tmp_path, monkeypatch, call, code, persistent):
    save_file(TENSORS, tmp_path / "in.safetensors")
    target, old = tmp_path / "out.safetensors", b"the old output"
    real = getattr(os, call)
    for fatal in range(1, 200):
        target.write_bytes(old)
        count = 0

        def fail(*arguments: object, **named: object) -> object:
            nonlocal count
            count += 1
            if count == fatal or (persistent and count > fatal):  # noqa: B023 - called within this turn
                raise OSError(code, os.strerror(code))
            return real(*arguments, **named)

        failed = None
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                source = open_safetensors(tmp_path / "in.safetensors")
                tensors = {**all_of(source), "made": LazyTensor.from_torch(torch.ones(1000))}
                write(target, tensors, {}, inputs=source.files, overwrite=True)
            except LoratoolsError as error:
                failed = error
        assert failed is None or failed.exit_code == 5, failed
        assert leftovers(tmp_path) == []
        if target.read_bytes() != old:
            assert load_file(target).keys() == TENSORS.keys() | {"made"}
        else:
            assert failed
        if count < fatal:
            assert not failed
            assert fatal > 1
            return
    pytest.fail("never came to an end")


def test_full_disk_is_known_before_anything_is_written(tmp_path, monkeypatch):
    real = os.statvfs

    class Full:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: (real(path), Full())[1])
    with pytest.raises(ResourceError) as caught:
        write(tmp_path / "out", {"a": LazyTensor.zeros("F32", (1_000_000,))}, {})
    assert caught.value.evidence["free"] == 40960
    assert caught.value.evidence["needed"] > 4_000_000
    assert names(tmp_path) == []


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from loratools.errors import ResourceError
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.writer import write
try:
    write(sys.argv[1], {"a": LazyTensor.zeros("F32", (1_000_000,))}, {})
except ResourceError as error:
    print("refused", error.evidence["needed"] > 4_000_000)
print("torch" in sys.modules, "numpy" in sys.modules)
"""


def run(script: str, *arguments: object, **how: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, **how)


def test_limit_of_file_size_is_a_clean_error_without_torch(tmp_path):
    done = run(LIMITED, tmp_path / "out")
    assert done.stdout.split() == ["refused", "True", "False", "False"], done.stderr
    assert names(tmp_path) == []


KILLED = """
import sys
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.writer import write
source = open_safetensors(sys.argv[1])
print("ready", flush=True)
while True:
    write(sys.argv[2], {key: source[key] for key in source}, {}, inputs=source.files, overwrite=True)
"""


def test_killed_writer_leaves_a_whole_file(tmp_path):
    tensors = {f"k{n}": torch.full((500_000,), float(n)) for n in range(10)}
    save_file(tensors, tmp_path / "in.safetensors")
    target = tmp_path / "out.safetensors"
    save_file(tensors, target)
    whole = (tmp_path / "in.safetensors").read_bytes()
    for turn in range(5):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "in.safetensors"), str(target)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.005 + 0.021 * turn)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert target.read_bytes()[-len(whole) + 4096 :] == whole[4096:]
        assert load_file(target).keys() == tensors.keys()
        left = leftovers(tmp_path)
        assert len(left) <= 1
        for name in left:
            assert name.startswith(f".out.safetensors.{process.pid}-")
            (tmp_path / name).unlink()
    assert (tmp_path / "in.safetensors").read_bytes() == whole


TRACED = """
import os, sys
from loratools.tensors.lazy import LazyTensor
from loratools.tensors import writer
calls = []
for name in ("fsync", "link", "replace", "rename"):
    def wrap(real, name):
        def call(first, *rest, **named):
            what = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
            calls.append((name, what.rsplit(".", 1)[-1] == "loratools-tmp"))
            return real(first, *rest, **named)
        return call
    setattr(os, name, wrap(getattr(os, name), name))
for overwrite in (False, True):
    writer.write(sys.argv[1], {"a": LazyTensor.zeros("F32", (5,))}, {}, overwrite=overwrite)
    calls.append("named")
print(*[call if call == "named" else f"{call[0]}-{'file' if call[1] else 'folder'}" for call in calls])
"""


def test_file_is_synced_before_the_rename_and_the_folder_after(tmp_path):
    done = run(TRACED, tmp_path / "out")
    wanted = "fsync-file link-file fsync-folder named fsync-file replace-file fsync-folder named"
    assert done.stdout.strip() == wanted, done.stderr


def test_two_writers_of_one_name_leave_one_whole_file(tmp_path):
    script = """
import sys
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.writer import write
for _ in range(10):
    write(sys.argv[1], {sys.argv[2]: LazyTensor.zeros("F32", (100_000,))}, {}, overwrite=True)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "out")]
    writers = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "out").exists():
            assert load_file(tmp_path / "out").keys() <= {"one", "two"}
        time.sleep(0.01)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert names(tmp_path) == ["out"]


def test_unnamed_local_file_can_be_copied_from(tmp_path, source):
    descriptor = os.open(tmp_path / "in.safetensors", os.O_RDONLY)
    held = SafetensorsFile(LocalFile.of_descriptor(descriptor, "<held>"))
    (tmp_path / "in.safetensors").unlink()
    write(tmp_path / "out", all_of(held), {"k": "v"}, inputs=held.files)
    assert load_file(tmp_path / "out").keys() == TENSORS.keys()


def test_of_many_writers_of_one_new_name_exactly_one_gets_it(tmp_path):
    tensors = {"a": LazyTensor.from_bytes("U8", (4096,), bytes(4096))}
    for number in range(10):
        out, ready = tmp_path / f"{number}.safetensors", threading.Barrier(6)

        def one(writer, out=out, ready=ready):
            try:
                write(out, tensors, {"writer": str(writer)}, check=lambda _: ready.wait(20) and None)
            except OutputExists as error:
                return error
            return writer

        with ThreadPoolExecutor(6) as pool:
            ended = list(pool.map(one, range(6)))
        (winner,) = [end for end in ended if isinstance(end, int)]
        assert open_safetensors(out).metadata == {"writer": str(winner)}
        assert out.stat().st_nlink == 1
    assert len(list(tmp_path.iterdir())) == 10


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV])
def test_a_file_system_without_links_is_written_to_all_the_same(tmp_path, monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    out, tensors = tmp_path / "out.safetensors", {"a": LazyTensor.from_bytes("U8", (4,), b"abcd")}
    write(out, tensors, {})
    with pytest.raises(OutputExists):
        write(tmp_path / "b.safetensors", tensors, {}, check=lambda _: (tmp_path / "b.safetensors").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.safetensors", "out.safetensors"]
