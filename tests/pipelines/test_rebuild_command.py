"""`loratools rebuild` as people type it."""

import pytest

from loratools.pipelines.single_file import export_single_file


def test_the_document_tells_what_was_written_and_linked(document, pipeline, lora, tmp_path):
    out, file = tmp_path / "out", tmp_path / "out.safetensors"
    words = ("rebuild", pipeline("sd1"), f"{lora}=0.8", "-o", out, "--single-file", file, "--arch", "sd1", "--json")
    words = (*words, "--no-check")
    told = document(*words)
    assert told["schema"] == "loratools.rebuild/1"
    assert told["pipeline"] == "StableDiffusionPipeline"
    assert told["linked"] == ["vae/diffusion_pytorch_model.safetensors"]
    assert told["trial"] is told["single_trial"] is None
    assert told["changed"] == len(told["layers"]) > 100
    assert file.stat().st_size == told["single_size"]
    again = document(*words, "--if-needed")
    assert again["skipped"] is True


def test_a_plan_writes_nothing_and_says_everything(inside, document, pipeline, lora, tmp_path):
    out = tmp_path / "out"
    told = document("rebuild", pipeline("sd1"), lora, "-o", out, "--arch", "sd1", "--dry-run", "--json")
    assert told["schema"] == "loratools.rebuild-plan/1"
    assert [row["name"] for row in told["linked"]] == ["vae/diffusion_pytorch_model.safetensors"]
    assert len(told["written"]) == 2
    assert told["free_disk"] > 0
    assert not out.exists()
    page = inside("rebuild", pipeline("sd1"), lora, "--arch", "sd1", "--dry-run")
    assert page.returncode == 0
    assert "linked" in page.stdout


def test_the_page_says_what_diffusers_made_of_it(inside, pipeline, tmp_path):
    done = inside("rebuild", pipeline("sd1"), "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "diffusers loads the folder: 966 tensors" in done.stdout
    assert "64 × 64 pixels" in done.stdout


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ((), (2, "usage")),
        (("-o", "out.safetensors"), (2, "usage")),
        (("-o", "out", "--single-file", "out/x.safetensors"), (2, "output-refused")),
        (("--single-file", "x"), (2, "usage")),
        (("-o", "nowhere/out"), (2, "path-not-found")),
        (("-o", "out", "--variant", "fp61"), (2, "usage")),
        (("-o", "out", "--tokenizer", "folder"), (2, "usage")),
        (("-o", "out", "--arch", "sdxl"), (4, "architecture-mismatch")),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_what_makes_no_sense_is_refused_with_a_hint(options, refusal, document, pipeline, tmp_path):
    code, word = refusal
    words = ("rebuild", pipeline("sd1"), "--arch", "sd1", *options, "--json", "--no-check")
    told = document(*words, cwd=tmp_path, code=code)
    assert told["code"] == word
    assert told["hint"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_on_this_machine_is_6_with_a_hint(document, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = document("rebuild", "owner/name", "-o", tmp_path / "out", "--json", code=6)
    assert told["code"] == "unavailable"
    assert "local files only" in told["hint"]
    export_single_file(pipeline("sd1"), tmp_path / "base.safetensors", "sd1")
    config = tmp_path / "config"
    config.mkdir()
    for path in pipeline("sd1").rglob("*.json"):
        if "tokenizer" not in str(path):
            (config / path.relative_to(pipeline("sd1"))).parent.mkdir(exist_ok=True)
            (config / path.relative_to(pipeline("sd1"))).write_bytes(path.read_bytes())
    words = ("rebuild", tmp_path / "base.safetensors", "-o", tmp_path / "out", "--config", config, "--arch", "sd1")
    told = document(*words, "--json", code=6)
    assert told["missing"] == ["tokenizer"]
    assert not (tmp_path / "out").exists()
