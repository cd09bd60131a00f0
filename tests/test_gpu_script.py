"""The script of checks for machines with a GPU runs here, on a tiny pipeline, as it will run there."""

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


def script(out):
    command = ["bash", str(SCRIPT), str(out), *WORDS, "--work", str(out.parent / "work")]
    env = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)


def test_every_task_leaves_its_figures_a_picture_of_each_validation_and_nothing_to_do_again(out):
    done = script(out)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    results = json.loads((out / "results.json").read_text())
    assert tuple(results) == TASKS
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
