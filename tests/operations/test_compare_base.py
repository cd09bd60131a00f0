"""compare --base: kinds that change a weight by a function of itself, judged by what lycoris' own layers do."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file

from loratools.errors import ArchitectureMismatch, NotRepresentable
from loratools.operations.compare import compare
from loratools.operations.convert import convert
from loratools.pipelines.synthetic import make_pipeline
from tests.judges import by_lycoris

KINDS = ("dora", "dora-input", "loha-dora", "ia3", "glora", "diag-oft", "boft")
TOLERANCE = dict.fromkeys(by_lycoris.FLOAT32_INSIDE, 1e-5)
WORDS = {"unet": "lora_unet_", "text_encoder": "lora_te_"}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    torch.set_num_threads(1)
    return make_pipeline("sd1", tmp_path_factory.mktemp("base") / "sd1")


@pytest.fixture(scope="module")
def lycoris(pipeline, tmp_path_factory):
    made = {}

    def truth(kind):
        if kind not in made:
            out = tmp_path_factory.mktemp("lycoris") / f"{kind}.safetensors"
            made[kind] = by_lycoris.make(pipeline, out, kind, architecture="sd1")
        return made[kind]

    return truth


def dense(truth, out, *, times=1.0):
    """The changes that lycoris made, written as plain differences in float64."""
    held = {
        f"{WORDS[component]}{path.replace('.', '_')}.{leaf}": (delta * times).contiguous()
        for deltas, leaf in ((truth.deltas, "diff"), (truth.biases, "diff_b"))
        for (component, path), delta in deltas.items()
    }
    save_file(held, out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_deltas_are_those_that_lycoris_makes_of_the_weights(pipeline, lycoris, tmp_path, kind):
    truth = lycoris(kind)
    same = dense(truth, tmp_path / "same.safetensors")
    for pair in ((truth.path, same), (same, truth.path)):
        found = compare(*pair, base=pipeline)
        assert {item.where for item in found.modules} == {"both"}
        assert len(found.modules) == len(truth.deltas)
        assert found.worst <= TOLERANCE.get(kind, 1e-6)
        assert min(item.cosine for item in found.modules) > 1 - 1e-6
    other = compare(truth.path, dense(truth, tmp_path / "other.safetensors", times=1.5), base=pipeline)
    assert not other.equal
    assert all(item.relative_error == pytest.approx(0.5, rel=1e-4) for item in other.modules)


@pytest.mark.parametrize("kind", ["dora", "diag-oft"])
def test_a_file_and_what_it_becomes_are_the_same_over_the_base(pipeline, lycoris, tmp_path, kind):
    source = lycoris(kind).path
    assert compare(source, source, base=pipeline).worst == 0
    plain = convert(source, to="diffusers", to_kind="lora", base=pipeline).save(tmp_path / "plain.safetensors").path
    assert compare(source, plain, base=pipeline, tolerance=2e-5).equal


@pytest.mark.parametrize("kind", ["ia3", "glora"])
def test_two_kinds_without_the_base_are_refused_with_the_word_for_it(pipeline, lycoris, tmp_path, kind):
    plain = convert(lycoris(kind).path, to="diffusers", to_kind="lora", base=pipeline)
    out = plain.save(tmp_path / "plain.safetensors").path
    with pytest.raises(NotRepresentable) as refusal:
        compare(lycoris(kind).path, out)
    assert "--base" in refusal.value.hint


def test_a_dora_and_a_lora_without_the_base_are_refused_with_the_word_for_it(lycoris, tmp_path):
    held = {key: tensor for key, tensor in load_file(lycoris("dora").path).items() if not key.endswith(".dora_scale")}
    save_file(held, tmp_path / "lora.safetensors")
    with pytest.raises(NotRepresentable) as refusal:
        compare(lycoris("dora").path, tmp_path / "lora.safetensors")
    assert "--base" in refusal.value.hint


def test_a_layer_on_one_side_only_is_an_infinite_error(pipeline, lycoris, tmp_path):
    held = load_file(lycoris("glora").path)
    gone = next(iter(held)).split(".")[0]
    save_file(
        {key: tensor for key, tensor in held.items() if not key.startswith(f"{gone}.")}, tmp_path / "b.safetensors"
    )
    found = compare(lycoris("glora").path, tmp_path / "b.safetensors", base=pipeline)
    assert [item.where for item in found.modules].count("a") == 1
    assert found.modules[0].relative_error == float("inf")
    assert {item.relative_error for item in found.modules[1:]} == {0.0}


def test_a_base_of_another_model_or_without_the_weight_is_refused(pipeline, lycoris, tmp_path):
    sdxl = make_pipeline("sdxl", tmp_path / "sdxl")
    other = dense(lycoris("boft"), tmp_path / "other.safetensors")
    with pytest.raises(ArchitectureMismatch, match=r"sd1.*sdxl"):
        compare(lycoris("boft").path, other, base=sdxl)
    unet = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(NotRepresentable, match="no weight for text_encoder"):
        compare(lycoris("boft").path, other, base=unet)


def test_the_command_line_takes_the_base_and_says_it(inside, pipeline, lycoris, tmp_path):
    same = dense(lycoris("glora"), tmp_path / "same.safetensors")
    done = inside("compare", lycoris("glora").path, same, "--base", pipeline, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["equal"], document["base"]) == (0, True, str(pipeline))
    refused = inside("compare", lycoris("glora").path, same)
    assert refused.returncode == 3
    assert "--base" in refused.stderr
