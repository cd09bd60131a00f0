"""Tiny pipelines are whole pipelines: they load without a network, run, and come out the same for the same seed."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

import loratools as lt
from loratools.errors import UsageError
from loratools.pipelines.adapters import make_demo_adapter
from loratools.pipelines.blueprints import BLUEPRINTS, PIXELS, VOCABULARY_CLIP, VOCABULARY_T5
from loratools.pipelines.synthetic import make_clip_tokenizer, make_pipeline, make_t5_tokenizer
from tests.judges.load import deltas_after_diffusers_load
from tests.judges.read import deltas_as_read
from tests.judges.truth import compare

ARCHITECTURES = [plan.architecture for plan in BLUEPRINTS]


def weight_files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pipeline_loads_offline_and_paints(architecture, pipeline):
    loaded = DiffusionPipeline.from_pretrained(pipeline(architecture), local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    images = [
        loaded(
            prompt,
            num_inference_steps=2,
            height=PIXELS,
            width=PIXELS,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        for prompt in ("a cat", "a cat", "the sea at night")
    ]
    assert images[0].shape == (3, PIXELS, PIXELS)
    assert images[0].isfinite().all()
    assert images[0].std() > 0.01
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_same_seed_makes_the_same_pipeline(pipeline, tmp_path):
    again = make_pipeline("sd1", tmp_path / "again")
    other = make_pipeline("sd1", tmp_path / "other", seed=7)
    assert weight_files(again)
    for name in weight_files(again):
        assert (again / name).read_bytes() == (pipeline("sd1") / name).read_bytes()
        assert (again / name).read_bytes() != (other / name).read_bytes()


def test_making_a_pipeline_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(3)
    make_pipeline("flux1", tmp_path / "one")
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(4))


def test_unknown_architecture_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="sdxl") as refused:
        make_pipeline("sdx", tmp_path)
    assert refused.value.hint == "did you mean 'sdxl'?"


def test_tokenizers_stay_within_their_vocabularies():
    text = "A red cat, 3 boats & the sea"
    assert len(make_clip_tokenizer()) == VOCABULARY_CLIP
    assert len(make_t5_tokenizer()) <= VOCABULARY_T5
    for tokenizer in (make_clip_tokenizer(), make_t5_tokenizer()):
        ids = tokenizer(text).input_ids
        assert len(set(ids)) > 10
        assert tokenizer.unk_token_id not in ids[1:-1]


@pytest.mark.parametrize("architecture", ["flux1", "sd1"])
def test_demo_adapter_is_read_as_diffusers_loads_it(architecture, pipeline, tmp_path):
    file = make_demo_adapter(pipeline(architecture), tmp_path / "demo.safetensors")
    loaded = deltas_after_diffusers_load(pipeline(architecture), file)
    assert loaded.complaints == ()
    lora = lt.open(file, arch=architecture)
    read, _ = deltas_as_read(lora.adapters, pipeline(architecture))
    assert compare(read, loaded.deltas).wrong(1e-6) == 0
    assert {float(item.scale) for item in lora.adapters} == {0.5, 1.0, 2.0}


def contents(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return metadata, {key: value.numpy().tobytes() for key, value in load_file(path).items()}


def test_demo_adapter_has_the_same_contents_for_the_same_seed(pipeline, tmp_path):
    one, again, other = (
        contents(make_demo_adapter(pipeline("sd1"), tmp_path / name, seed=seed))
        for name, seed in (("one.safetensors", 0), ("again.safetensors", 0), ("other.safetensors", 1))
    )
    assert one == again
    assert one[0] == other[0]
    assert "unet.alpha_pattern" in json.loads(one[0]["lora_adapter_metadata"])
    assert one[1].keys() == other[1].keys()
    assert all(one[1][key] != other[1][key] for key in one[1])
