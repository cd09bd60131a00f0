"""A pipeline's other models narrow its architecture down, or go along as they are; a wrong one is a mistake."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.bases.agreement import agreement
from loratools.bases.weights import open_base
from loratools.errors import ArchitectureMismatch, PartialMatch, UnsupportedFile
from loratools.operations.inspect import inspect
from loratools.tensors.source import MemoryTensors
from tests.bases.making import canonical, shrunk, spelt


def model(name, component, *, by=64):
    """A model of the proportions of the published one, under its own names, with few elements."""
    known = architecture(name)
    table = shapes(known.variants[0].shapes)[component]
    small = {path: shrunk(shape, by) for path, shape in table.items()}
    return spelt(known.by_name[component].namings[0], small, canonical(small))


def stranger(layers=6):
    """A text encoder of a class that no table knows."""
    return {f"blocks.{n}.mixer.{part}.weight": torch.ones(4, 4) for n in range(layers) for part in ("one", "two")}


def llava():
    """A model of pictures and words, whose language model is the one that the table knows."""
    words = {f"model.language_model.{key}": value for key, value in model("hunyuan-video", "text_encoder").items()}
    eyes = {f"model.vision_tower.layers.{n}.fc.weight": torch.ones(4, 4) for n in range(4)}
    return {**words, **eyes, "lm_head.weight": torch.ones(8, 4)}


def opened(**parts):
    return open_base("memory", [(name, MemoryTensors(tensors)) for name, tensors in parts.items()])


@pytest.mark.parametrize("encoder", [stranger, llava])
def test_an_encoder_of_a_class_without_a_table_goes_along(encoder):
    base = opened(
        transformer=model("hunyuan-video", "transformer"),
        text_encoder=encoder(),
        text_encoder_2=model("hunyuan-video", "text_encoder_2"),
    )
    assert "hunyuan-video" in base.candidates
    assert [name for name, _ in base.parts] == ["transformer", "text_encoder_2"]


def test_an_encoder_whose_numbers_are_not_read_goes_along_and_a_denoiser_does_not():
    def packed(tensors):
        held = {key: value.to(torch.int8) if value.ndim > 1 else value for key, value in tensors.items()}
        scales = {key.removesuffix("weight") + "weight_scale": torch.ones(1) for key in held if key.endswith("weight")}
        return held | scales

    parts = {"transformer": model("sana", "transformer"), "text_encoder": packed(model("sana", "text_encoder"))}
    assert [name for name, _ in opened(**parts).parts] == ["transformer"]
    with pytest.raises(UnsupportedFile, match="quantised"):
        opened(transformer=packed(parts["transformer"]), text_encoder=parts["text_encoder"])


def test_another_architectures_encoder_in_the_place_of_its_own_is_refused():
    with pytest.raises(ArchitectureMismatch, match="different architectures"):
        opened(transformer=model("sana", "transformer"), text_encoder=model("wan2.1", "text_encoder"))


@pytest.mark.parametrize(
    ("parts", "candidates", "carried"),
    [
        ([("unet", ("sd1", "sd2")), ("text_encoder", ("sd1", "sdxl"))], ("sd1",), set()),
        ([("text_encoder", ("sd1", "sdxl")), ("unet", ("sd1", "sd2"))], ("sd1",), set()),
        ([("transformer", ("ltx-video",)), ("text_encoder", ("flux1", "sd3", "chroma"))], ("ltx-video",), {1}),
        ([("transformer", ("sd3",)), ("text_encoder", ())], ("sd3",), {1}),
        ([("transformer", ("wan2.1", "wan2.2")), ("text_encoder", ("llm-t5",))], ("wan2.1", "wan2.2"), {1}),
        ([("transformer", ("sd3",)), ("rewriter", ("llm-qwen2",))], ("sd3",), {1}),
        ([("unet", ("sd1",)), ("text_encoder", ("sd2",))], (), set()),
        ([("unet", ("sd1",)), ("transformer", ("flux1",))], (), set()),
        ([(None, ("sd1", "sd2"))], ("sd1", "sd2"), set()),
        ([], (), set()),
    ],
)
def test_the_denoiser_decides_and_the_others_narrow_it_down(parts, candidates, carried):
    assert agreement(parts) == (candidates, frozenset(carried))


@pytest.fixture
def pipeline(tmp_path):
    """A folder with a tiny Sana and a text encoder of a class without a table, and an adapter of both."""
    folder = tmp_path / "pipeline"
    index = {"_class_name": "SanaPipeline", "transformer": ["diffusers", "SanaTransformer2DModel"]}
    for name, tensors in (("transformer", model("sana", "transformer")), ("text_encoder", stranger())):
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": ["somewhere", "Stranger"]}))
    weight = load_file(folder / "transformer/model.safetensors")["transformer_blocks.0.attn1.to_q.weight"]
    held = {
        "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.randn(2, weight.shape[1]),
        "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.randn(weight.shape[0], 2),
    }
    save_file(held, tmp_path / "lora.safetensors")
    return folder, tmp_path / "lora.safetensors", held


def test_an_untouched_encoder_is_carried_through_a_merge_and_a_rebuild(pipeline, tmp_path):
    folder, lora, _ = pipeline
    assert "sana" in inspect(folder).document["candidates"]
    lt.merge(folder, [lora], tmp_path / "merged", arch="sana")
    lt.rebuild(folder, [lora], tmp_path / "rebuilt", arch="sana", check=False)
    source = (folder / "text_encoder/model.safetensors").read_bytes()
    for out in ("merged", "rebuilt"):
        assert (tmp_path / out / "text_encoder/model.safetensors").read_bytes() == source
        made = load_file(tmp_path / out / "transformer/model.safetensors")
        assert not made["transformer_blocks.0.attn1.to_q.weight"].equal(
            load_file(folder / "transformer/model.safetensors")["transformer_blocks.0.attn1.to_q.weight"]
        )


def test_an_adapter_of_an_encoder_that_only_goes_along_is_named(pipeline, tmp_path):
    folder, lora, held = pipeline
    stem = "text_encoder.layers.0.self_attn.q_proj"
    more = {f"{stem}.lora_A.weight": torch.ones(2, 36), f"{stem}.lora_B.weight": torch.ones(32, 2)}
    save_file(held | more, lora)
    with pytest.raises(PartialMatch, match="1 of 1 in text_encoder"):
        lt.merge(folder, [lora], tmp_path / "merged", arch="sana")
