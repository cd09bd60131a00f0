"""The spool: what is parked comes back, from any thread, and nothing stays behind."""

import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from loratools.errors import ResourceError
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.spool import Spool
from loratools.tensors.writer import write


def test_what_is_parked_from_many_threads_comes_back_and_is_written(tmp_path):
    spool = Spool(tmp_path / "out.safetensors")
    data = {f"t{number}": bytes([number]) * (1000 * number + 4) for number in range(40)}
    with ThreadPoolExecutor(8) as pool:
        held = dict(zip(data, pool.map(lambda raw: spool.put("U8", (len(raw),), raw), data.values()), strict=True))
    assert {key: tensor.tobytes() for key, tensor in held.items()} == data
    assert held["t7"].rows(3, 9).tobytes() == data["t7"][3:9]
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "out.safetensors", held, {})
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    spool.close()


def test_an_empty_tensor_takes_no_place():
    assert Spool().put("F32", (0, 4), b"").same_bytes(LazyTensor.zeros("F32", (0, 4)))


def test_a_folder_that_cannot_be_written_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError):
        Spool(tmp_path / "nowhere" / "out.safetensors")


def test_without_nameless_files_a_name_is_removed_at_once(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    spool = Spool(tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []
    assert spool.put("U8", (3,), b"abc").tobytes() == b"abc"


_FULL = """
import resource, sys
from pathlib import Path
from loratools.errors import ResourceError
from loratools.tensors.spool import Spool
spool = Spool(Path(sys.argv[1]) / "out")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    spool.put("U8", (2000,), bytes(2000))
except ResourceError as error:
    print(error.exit_code, error.evidence["needed"])
"""


def test_a_full_disk_says_what_is_needed(tmp_path):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", _FULL, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "2000"]


def test_a_thread_that_nobody_waited_for_writes_into_no_other_file(tmp_path):
    spool = Spool(tmp_path / "out.safetensors")
    spool.put("U8", (4,), b"abcd")
    spool.close()
    with (tmp_path / "other").open("w+b") as other:  # it has got the number that the spool's file had
        with pytest.raises(ResourceError, match="closed"):
            spool.put("U8", (4,), b"efgh")
        assert other.read() == b""
