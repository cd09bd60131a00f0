"""`loratools merge` as people type it."""

import pytest
from safetensors.torch import load_file

from loratools.operations.merging.scales import weighted


def test_the_document_tells_what_matched_and_what_rounding_took(document, pipeline, lora, tmp_path):
    told = document("merge", pipeline("sd1"), f"{lora}=0.8", "-o", tmp_path / "out", "--arch", "sd1", "--json")
    assert told["schema"] == "loratools.merge/1"
    (adapter,) = told["adapters"]
    assert adapter["scale"] == 0.8
    assert adapter["modules"] == adapter["matched"]
    assert told["changed"] == len(told["layers"]) > 100
    assert all(row["ratio"] > 0 and row["lost"] == 0 for row in told["layers"])


def test_kohyas_words_mean_the_same(inside, pipeline, lora, tmp_path):
    base = pipeline("sd1")
    ours = ("merge", base, f"{lora}=0.5", f"{lora}=0.25", "-o", tmp_path / "a", "--arch", "sd1", "--dtype", "fp16")
    words = ("--sd_model", base, "--models", lora, lora, "--ratios", "0.5", "0.25", "--save_to", tmp_path / "b")
    assert inside(*ours).returncode == 0
    done = inside("merge", *words, "--save_precision", "fp16", "--arch", "sd1")
    assert done.returncode == 0, done.stderr
    left, right = (load_file(tmp_path / name / "unet/diffusion_pytorch_model.safetensors") for name in "ab")
    assert all(left[key].equal(right[key]) for key in left)


def test_a_plan_writes_nothing_and_says_everything(inside, document, pipeline, lora, tmp_path):
    out = tmp_path / "out"
    told = document("merge", pipeline("sd1"), lora, "-o", out, "--arch", "sd1", "--dry-run", "--json")
    assert told["schema"] == "loratools.merge-plan/1"
    assert told["changed"] > 100
    assert told["free_disk"] > 0
    assert not out.exists()
    page = inside("merge", pipeline("sd1"), lora, "--arch", "sd1", "--dry-run")
    assert "tensors changed" in page.stdout
    assert page.returncode == 0


@pytest.fixture
def merging(document, pipeline, lora, tmp_path):
    """Merges the file into the tiny pipeline, in an empty folder, with further options; gives back the document."""
    words = ("merge", pipeline("sd1"), lora, "--arch", "sd1", "--json")
    return lambda *options, **how: document(*words, *options, cwd=tmp_path, **how)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-o", "out.safetensors"),
        ("-o", "out", "--weights", "1,0,1"),
        ("-o", "out", "--scale", "vae=1"),
        ("-o", "out", "--scale", "nan"),
        ("-o", "out", "--components", "unett"),
        ("-o", "out", "--max-shard-size", "small"),
        ("-o", "out", "--dtype", "int8"),
        ("-o", "nowhere/out"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_is_a_matter_of_usage(options, merging):
    told = merging(*options, code=2)
    assert told["code"] == ("path-not-found" if "nowhere/out" in options else "usage")
    assert told["hint"]


def test_a_part_without_a_place_is_4_and_named(document, pipeline, lora, tmp_path):
    told = document("merge", pipeline("sd1") / "unet", lora, "-o", tmp_path / "o", "--arch", "sd1", "--json", code=4)
    assert told["code"] == "partial-match"
    assert "--allow-partial" in told["hint"]
    assert all(name.startswith("text_encoder:") for name in told["unmatched"])


def test_a_path_with_an_equals_sign_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style=2").mkdir()
    assert weighted("style=2") == ("style=2", 1.0)
    assert weighted("style=2=0.5") == ("style=2", 0.5)
    assert weighted("style=-.5") == ("style", -0.5)
    assert weighted("style=v2") == ("style=v2", 1.0)
