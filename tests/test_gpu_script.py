"""The script of checks for machines with a GPU runs here, on a tiny pipeline, as it will run there."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from benchmarks.gpu_tasks import plan_of
from loratools.pipelines.random_models import make_skeleton
from loratools.pipelines.synthetic import write_pipeline

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.sh"
WORDS = ("--size", "tiny", "--device", "cpu", "--architectures", "sd1", "--dtypes", "bf16", "--keep")
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


def test_a_transformer_of_the_size_of_flux_is_written_in_shards_merged_extracted_and_removed(
    gpu, monkeypatch, tmp_path
):
    place = [str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--size", "tiny", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *place, "--architectures", "flux1", "--dtypes", "fp16"])
    assert gpu.main() == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert tuple(results) == ("make flux1", "merge flux1", "extract flux1")
    made = results["make flux1"]
    assert (made["dtype"], made["shards"] > 1) == ("bfloat16", True)
    assert results["merge flux1"]["same_bytes"]
    assert results["extract flux1"]["layers"] > 20
    assert list((tmp_path / "work").iterdir()) == []


def test_the_encoders_beside_the_full_transformer_have_the_widths_that_it_reads(tmp_path):
    plan = plan_of("flux1", "full")
    transformer = plan.part("transformer")
    skeleton = make_skeleton(transformer)
    assert sum(parameter.numel() for parameter in skeleton.parameters()) == 11_901_408_320
    narrow = {**transformer.config, "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1}
    parts = tuple(replace(part, config=narrow) if part is transformer else part for part in plan.parts)
    folder = write_pipeline(replace(plan, parts=parts), tmp_path / "pipeline", dtype="bfloat16", limit=500_000)
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a cat", num_inference_steps=1, width=64, height=64, max_sequence_length=32, output_type="pt").images
    assert made.isfinite().all()
