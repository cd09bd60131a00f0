"""The script of checks for machines with a GPU runs here, on a tiny pipeline, as it will run there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.sh"
WORDS = ("--size", "tiny", "--device", "cpu", "--architectures", "sd1", "--dtypes", "bf16")
TASKS = ("make sd1", "merge sd1", "extract sd1", "validate sd1 bf16")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("gpu") / "out"


def words(out):
    return [str(out), *WORDS, "--work", str(out.parent / "work")]


def script(out):
    command, env = ["bash", str(SCRIPT), *words(out)], {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture
def gpu(monkeypatch):
    """The script's Python, whose tasks are run in this process, which has their libraries already."""
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT.with_suffix(".py"))
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)

    def here(task, place, _seconds):
        return {"machine": module.machine(place.device), **task.run(place)}

    monkeypatch.setattr(module, "in_child", here)
    return module


def test_every_task_leaves_its_figures_a_picture_of_each_validation_and_nothing_to_do_again(out, gpu, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words(out)])
    assert gpu.main() == 0
    figures = json.loads((out / "results.json").read_text())
    assert tuple(figures) == TASKS
    # What a run that was cut short has not done is done by the next, by a process of its own.
    del figures["merge sd1"]
    (out / "results.json").write_text(json.dumps(figures))
    done = script(out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "merge sd1: done\n", "")
    results = json.loads((out / "results.json").read_text())
    assert sorted(results) == sorted(TASKS)
    for result in results.values():
        assert "error" not in result
        assert {"torch", "device", "cpus"} <= set(result["machine"])
    assert 0 < results["extract sd1"]["relative_error"] < 1e-2
    assert results["extract sd1"]["layers"] > 100
    assert len(results["merge sd1"]["cpu"]["weights_sha256"]) == 64
    assert results["merge sd1"]["same_bytes"]
    validated = results["validate sd1 bf16"]
    assert validated["verdict"] == "pass", validated["reasons"]
    assert {"merged", "extracted", "converted to kohya"} <= {route["route"] for route in validated["routes"]}
    assert all(control["caught"] for control in validated["controls"])
    assert validated["controls"]
    assert validated["floors"]
    pictures = list(out.glob("*.png"))
    assert [path.name for path in pictures] == ["sd1-bf16.png"]
    assert 1000 < sum(path.stat().st_size for path in pictures) < 4 << 20

    written = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = script(out)
    assert (again.returncode, again.stdout) == (0, "")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == written
