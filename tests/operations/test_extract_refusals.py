"""extract refuses pairs that do not belong together, wishes that cannot be kept, and numbers that are none."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.errors import (
    ArchitectureMismatch,
    NonFinite,
    NotRepresentable,
    ResourceError,
    UnrelatedModels,
    UsageError,
)
from loratools.pipelines.synthetic import make_pipeline
from tests.operations.tuning import llama, low_rank, single_file, tune
from tests.reliability.invariants import command

WIDE = 128  # the narrowest layer of a Llama of this size is 64 wide: enough to tell noise from a change


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(base, tuned) Llamas, wide enough that noise shows."""
    folder = tmp_path_factory.mktemp("models")
    base = llama(folder / "base", hidden=WIDE)
    tune(base, folder / "tuned")
    return base, folder / "tuned"


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return make_pipeline("sd1", tmp_path_factory.mktemp("sd1") / "base")


def changed(folder, out, change):
    """A copy of a Llama whose tensors `change` may replace, add or drop."""
    shutil.copytree(folder, out)
    held = load_file(out / "model.safetensors")
    change(held)
    save_file(held, out / "model.safetensors", {"format": "pt"})
    return out


def moved(tensor, generator):
    """A low-rank change of a matrix, any change of a vector."""
    if tensor.ndim > 1:
        return low_rank(tensor, generator)
    return 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)


def refused(kind, base, tuned, out, match, **how):
    """The refusal, after which nothing stands there."""
    with pytest.raises(kind, match=match) as found:
        lt.extract(base, tuned, **how).save(out)
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if "loratools-tmp" in path.name]
    return found.value


def test_two_architectures_are_refused_and_both_are_named(models, sd1, tmp_path):
    error = refused(ArchitectureMismatch, sd1, models[0], tmp_path / "out", "sd1")
    assert error.exit_code == 4
    assert "llm" in str(error.evidence["found"])


def test_strangers_are_refused_unless_forced(models, tmp_path):
    stranger = llama(tmp_path / "stranger", hidden=WIDE, seed=5)
    error = refused(UnrelatedModels, models[0], stranger, tmp_path / "out", "strangers")
    assert error.exit_code == 4
    assert "--force" in error.hint
    result = lt.extract(models[0], stranger, rank=1, force=True).save(tmp_path / "out")
    assert any("strangers" in line for line in result.warnings)


def test_a_change_that_is_white_noise_is_refused(models, tmp_path):
    def noise(held):
        for key, tensor in held.items():
            held[key] = tensor + 0.05 * tensor.std() * torch.randn(tensor.shape) if tensor.ndim > 1 else tensor

    torch.manual_seed(1)
    error = refused(
        UnrelatedModels, models[0], changed(models[0], tmp_path / "noisy", noise), tmp_path / "out", "white noise"
    )
    assert error.exit_code == 4


def test_a_tune_of_the_averaged_weights_is_told_from_one_of_the_plain_ones(sd1, tmp_path):
    average = make_pipeline("sd1", tmp_path / "average")
    for path in average.glob("unet/*.safetensors"):
        ours, theirs = load_file(sd1 / "unet" / path.name), load_file(path)
        mixed = {key: 0.7 * ours[key] + 0.3 * theirs[key].flip(0) for key in ours}
        save_file(mixed, path, {"format": "pt"})
    averages = load_file(single_file(average, "sd1", tmp_path / "average.safetensors"))
    named = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): tensor
        for key, tensor in averages.items()
        if key.startswith("model.diffusion_model.")
    }
    base = single_file(sd1, "sd1", tmp_path / "base.safetensors", extra=named)
    tune(average, tmp_path / "tuned", change=lambda tensor, generator: low_rank(tensor, generator, size=0.02))
    error = refused(UnrelatedModels, base, tmp_path / "tuned", tmp_path / "out.safetensors", "averaged")
    assert error.exit_code == 4
    lt.extract(tmp_path / "average", tmp_path / "tuned", rank=1).save(tmp_path / "out.safetensors")


def test_the_same_model_twice_has_nothing_to_extract(models, tmp_path):
    assert refused(UnrelatedModels, models[0], models[0], tmp_path / "out", "nothing changed").exit_code == 4

    def halved(held):
        held.update({key: tensor.half() for key, tensor in held.items()})

    half = changed(models[0], tmp_path / "half", halved)
    refused(UnrelatedModels, models[0], half, tmp_path / "out", "within the rounding")


def test_only_norms_changed_is_said_and_full_is_named(models, tmp_path):
    def norms(held):
        held["model.norm.weight"] += 1

    error = refused(
        UnrelatedModels, models[0], changed(models[0], tmp_path / "tuned", norms), tmp_path / "out", "no layer changed"
    )
    assert "--full" in error.hint


def test_weights_of_another_shape_are_refused_by_name_and_left_out_when_forced(models, tmp_path):
    def longer(held):
        held["model.embed_tokens.weight"] = torch.cat([held["model.embed_tokens.weight"]] * 2)

    tuned = changed(models[1], tmp_path / "tuned", longer)
    error = refused(ArchitectureMismatch, models[0], tuned, tmp_path / "out", r"embed_tokens: \[100, 128\] and \[200")
    assert error.exit_code == 4
    result = lt.extract(models[0], tuned, rank=2, force=True).save(tmp_path / "out")
    assert any("embed_tokens" in line and "shapes differ" in line for line in result.warnings)


def test_a_model_that_lacks_much_of_the_other_is_refused(models, tmp_path):
    def fewer(held):
        for key in [key for key in held if "mlp" in key and ".1." in key]:
            del held[key]

    tuned = changed(models[1], tmp_path / "tuned", fewer)
    refused(UnrelatedModels, models[0], tuned, tmp_path / "out", r"share \d+ %")
    result = lt.extract(models[0], tuned, rank=2, force=True).save(tmp_path / "out")
    assert sum("only in base" in line for line in result.warnings) == 3


@pytest.mark.parametrize(
    "how",
    [
        {"rank": 4, "error": 0.1},
        {"rank": 0},
        {"energy": 1.5},
        {"error": 1e-5},
        {"size": 1000},
        {"full": ["norm"]},
        {"patterns": [("unet.*", 4)]},
        {"dtype": "F8_E4M3"},
        {"to": "kohia"},
        {"device": "tpu"},
        {"arch": "sd7"},
    ],
    ids=str,
)
def test_wishes_that_contradict_or_cannot_be_kept_are_usage_errors(models, tmp_path, how):
    assert refused(UsageError, *models, tmp_path / "out", None, **how).exit_code == 2


def test_a_format_without_names_for_the_model_is_refused_before_anything_is_read(models, tmp_path):
    refused(NotRepresentable, *models, tmp_path / "out.safetensors", "no names", to="kohya")


def test_differences_that_a_format_has_no_place_for_are_refused_or_listed(sd1, tmp_path):
    tuned = shutil.copytree(sd1, tmp_path / "tuned")
    weights = next((tuned / "unet").glob("*.safetensors"))
    held = load_file(weights)
    held["conv_norm_out.weight"] += 1
    for key in [key for key in held if key.endswith("attn1.to_q.weight")]:
        held[key] += 0.1 * torch.outer(torch.randn(held[key].shape[0]), torch.randn(held[key].shape[1]))
    save_file(held, weights, {"format": "pt"})
    how = {"to": "diffusers", "full": ["norms"]}
    refused(NotRepresentable, sd1, tuned, tmp_path / "out.safetensors", "no place for norm", **how)
    result = lt.extract(sd1, tuned, rank=2, allow_lossy=True, **how).save(tmp_path / "out.safetensors")
    assert any("no place for norm" in line for line in result.warnings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(models, tmp_path):
    assert refused(ResourceError, *models, tmp_path / "out", "no CUDA device", device="cuda").exit_code == 5


def test_nan_is_refused_by_name_or_left_out_and_listed(models, tmp_path):
    key = "model.layers.0.mlp.up_proj.weight"

    def broken(held):
        held[key][0, 0] = float("nan")

    tuned = changed(models[1], tmp_path / "tuned", broken)
    error = refused(NonFinite, models[0], tuned, tmp_path / "out", "NaN", rank=2)
    assert (error.exit_code, error.key, error.path) == (7, key, str(tuned))
    result = lt.extract(models[0], tuned, rank=2, allow_nonfinite=True).save(tmp_path / "out")
    assert result.components["model"]["layers"]["left out"] == 1
    assert not any("0.mlp.up_proj" in layer.module for layer in result.layers)


def test_values_beyond_float16_are_refused_and_fit_float32(models, tmp_path):
    def huge(held):
        held["model.layers.0.mlp.up_proj.weight"] *= 1e12

    tuned = changed(models[1], tmp_path / "tuned", huge)
    error = refused(NonFinite, models[0], tuned, tmp_path / "out", "overflows in F16", rank=2, force=True)
    assert error.hint == "--dtype float32"
    lt.extract(models[0], tuned, rank=2, force=True, dtype="F32").save(tmp_path / "out")


def test_an_output_that_cannot_stand_there_is_refused_before_the_work(models, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    told = []
    with pytest.raises(UsageError):
        lt.extract(*models, rank=2).save(tmp_path / "out", progress=lambda *how: told.append(how))
    with pytest.raises(UsageError, match="lies in the input"):
        lt.extract(*models, rank=2).save(models[0] / "out", progress=lambda *how: told.append(how))
    assert not told


def test_the_command_line_says_what_it_did_and_how_it_ended(models, tmp_path):
    base, tuned = models
    out = tmp_path / "out"
    done = command("extract", base, tuned, "-o", out, "--rank", 3, "--dry-run")
    assert done.code == 0, done.err
    assert "nothing was written" in done.out
    assert not out.exists()
    done = command("extract", base, tuned, "-o", out, "--rank", 3, "--json")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["schema"] == "loratools.extract/1"
    assert document["ranks"] == {"3": 15}
    assert document["layers"] == sorted(document["layers"], key=lambda row: -row["error"])
    assert document["loaders"]["vllm"]["loaded"] == 14 or document["loaders"]["vllm"]["reasons"]
    done = command("extract", "--model_org", base, "--model_tuned", tuned, "--save_to", tmp_path / "kohya", "--dim", 2)
    assert done.code == 0, done.err
    assert "worst layers" in done.out
    assert "energy by rank" in done.out
    assert command("extract", base, tuned, "-o", out).code == 2
    assert command("extract", base, tuned, "-o", tmp_path / "x", "--pattern", "model.*=many").code == 2
    assert command("extract", base, "-o", tmp_path / "x").code == 2
    assert command("extract", base, base, "-o", tmp_path / "x").code == 4
    pickled = tmp_path / "tuned.bin"
    torch.save(load_file(tuned / "model.safetensors"), pickled)
    assert command("extract", base, pickled, "-o", tmp_path / "x").code == 3
    done = command("extract", base, pickled, "-o", tmp_path / "x", "--rank", 3, "--unsafe-pickle")
    assert done.code == 0, done.err
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (out, tmp_path / "x"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


_LIMITED = """
import resource, sys
import loratools as lt
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from loratools.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("limit", [1000, 30_000])
def test_a_full_disk_leaves_nothing_behind(models, tmp_path, limit):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    words = ["extract", str(models[0]), str(models[1]), "-o", str(tmp_path / "out"), "--rank", "8"]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(limit), *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 5, done.stderr
    assert list(tmp_path.iterdir()) == []
