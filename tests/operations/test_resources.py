"""Memory, threads, progress and cancellation."""

import json
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from math import prod

import pytest

import loratools as lt
from benchmarks.sdxl_file import tensors as sdxl_shapes
from tests.operations.conftest import fingerprint
from tests.operations.making import file

PEAK = 60 << 20

# VmHWM and not ru_maxrss: at exec Linux hands the peak of the parent (pytest, with torch in it) on to ru_maxrss.
CHILD = """
import sys
import loratools as lt
result = lt.convert(sys.argv[1], to=sys.argv[3]).save(sys.argv[2])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024, "torch" in sys.modules, result.proof.identical)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """An SDXL file of 986 modules at rank 32: 228 MB, of one random megabyte over and over."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    header, at = {"__metadata__": {"ss_base_model_version": "sdxl_base_v1-0"}}, 0
    for key, shape in sdxl_shapes(32).items():
        size = 2 * prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    block = bytes(byte & 0x3F for byte in os.urandom(1 << 20))  # small finite numbers, alphas among them
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, at, len(block)):
            out.write(block[: at - start])
    yield path
    path.unlink()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from Linux' /proc")
@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_renaming_a_large_file_takes_little_memory_and_no_torch(large, tmp_path, to):
    out = tmp_path / "out.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(large), str(out), to],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    peak, torch_there, identical = done.stdout.split()
    assert torch_there == "False"
    assert int(identical) == 986
    assert int(peak) <= PEAK, f"{int(peak) / 1e6:.1f} MB"
    assert out.stat().st_size > 200e6
    out.unlink()


@pytest.mark.parametrize("how", [{}, {"dtype": "F32"}, {"alpha": "fold"}], ids=str)
def test_conversions_at_once_do_not_disturb_one_another(tmp_path, how):
    paths = [file(tmp_path / f"in{at}.safetensors", seed=at, alpha=1 + at / 3) for at in range(4)]
    before = fingerprint(tmp_path)
    alone = [lt.convert(path, to="diffusers", **how).save(tmp_path / f"alone{path.name}").path for path in paths]

    def one(path):
        return lt.convert(path, to="diffusers", **how).save(tmp_path / f"together{path.name}", threads=2).path

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, paths))
    assert [path.read_bytes() for path in together] == [path.read_bytes() for path in alone]
    assert len({path.read_bytes() for path in together}) == 4
    after = fingerprint(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == 12


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_progress_only_grows_and_ends_at_the_whole(tmp_path, to):
    seen = []
    path = file(tmp_path / "in.safetensors", rank=64)
    lt.convert(path, to=to).save(
        tmp_path / ("out" if to == "peft" else "out.safetensors"),
        progress=lambda done, total: seen.append((done, total)),
    )
    totals = {total for _, total in seen}
    done = [at for at, _ in seen]
    assert len(totals) == 1
    assert done == sorted(done)
    assert 0 < done[0] <= done[-1] <= totals.pop()


class Stop(Exception):
    """What a caller raises to stop."""


@pytest.mark.parametrize("old", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("to", ["diffusers", "peft"])
@pytest.mark.parametrize("when", [0.0, 0.5, 0.99])
def test_an_exception_of_the_callback_stops_the_work_and_leaves_nothing(tmp_path, to, when, old):
    path = file(tmp_path / "in.safetensors", rank=32)
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    if old:
        lt.convert(path, to=to, dtype="BF16").save(out)
    before = fingerprint(tmp_path)

    def progress(done, total):
        if done >= when * total:
            raise Stop

    with pytest.raises(Stop):
        lt.convert(path, to=to).save(out, overwrite=True, progress=progress)
    assert fingerprint(tmp_path) == before
    lt.convert(path, to=to).save(out, overwrite=True)
