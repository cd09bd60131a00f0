"""What killed processes leave behind goes; what is another's, or still at work, stays."""

import os
import subprocess
import sys

import loratools as lt
from loratools.batch.leftovers import sweep
from loratools.tensors.output import TEMPORARY_SUFFIX, temporary_beside
from tests.operations.making import file


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left_by(target, pid, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: pid)
    path = temporary_beside(target)
    monkeypatch.undo()
    return path


def test_only_what_dead_processes_left_of_these_outputs_goes(tmp_path, monkeypatch):
    ours, long = tmp_path / "a.b-1.safetensors", tmp_path / ("x" * 243 + ".safetensors")
    folder, other = tmp_path / "peft", tmp_path / "b.safetensors"
    dead = gone()
    going = [left_by(target, dead, monkeypatch) for target in (ours, long, folder)]
    (tmp_path / f".a.b-1.safetensors.{10**30}-1{TEMPORARY_SUFFIX}").write_bytes(b"no process has such a number")
    staying = [left_by(ours, os.getppid(), monkeypatch), left_by(other, dead, monkeypatch)]
    staying += [tmp_path / f".a.b-1.safetensors.x-1{TEMPORARY_SUFFIX}", ours, other]
    for path in (*going[:2], *staying):
        path.write_bytes(b"half")
    going[2].mkdir()
    (going[2] / "adapter_model.safetensors").write_bytes(b"half")
    sweep([str(ours), str(long), str(folder), None])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in staying)


def test_a_run_sweeps_what_killed_runs_left_of_items_that_are_done(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    inputs = [str(file(tmp_path / "in" / f"{name}.safetensors", rank=1)) for name in "ab"]
    again = lt.Batch(
        verb="convert", manifest=inputs, options=["--to", "diffusers"], state=tmp_path / "state.sqlite", workers=1,
        output=str(tmp_path / "out" / "{stem}.safetensors"),
    )  # fmt: skip
    assert again.run().done == 2
    left_by(tmp_path / "out" / "a.safetensors", gone(), monkeypatch).write_bytes(b"half")
    (tmp_path / "out" / "b.safetensors").unlink()
    assert again.run().worked == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.safetensors", "b.safetensors"]
