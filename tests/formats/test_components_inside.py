"""Components that a model's own files spell as a part of the denoiser: Anima's text conditioner, LTX-2's connectors."""

import pytest
import torch

import loratools
from loratools.formats.opening import open_reference
from loratools.formats.parse import parse
from tests.formats.making import KOHYA, PEFT, Draw, assert_same_tensors, low_rank, read, write

LAYERS = {
    # architecture → (native name, where it belongs, its path there, its size)
    "anima": (
        ("llm_adapter.blocks.3.self_attn.q_proj", "text_conditioner", "blocks.3.self_attn.q_proj", (1024, 1024)),
        ("llm_adapter.blocks.5.mlp.0", "text_conditioner", "blocks.5.mlp.0", (4096, 1024)),
        ("blocks.3.self_attn.q_proj", "transformer", "transformer_blocks.3.attn1.to_q", (2048, 2048)),
        ("blocks.0.mlp.layer1", "transformer", "transformer_blocks.0.ff.net.0.proj", (8192, 2048)),
    ),
    "ltx2": (
        (
            "video_embeddings_connector.transformer_1d_blocks.1.attn1.to_q",
            "connectors",
            "video_connector.transformer_blocks.1.attn1.to_q",
            (3840, 3840),
        ),
        ("transformer_blocks.7.audio_attn1.to_q", "transformer", "transformer_blocks.7.audio_attn1.to_q", (2048, 2048)),
        ("patchify_proj", "transformer", "proj_in", (4096, 128)),
    ),
}


def adapter(layers, stem, suffixes):
    draw = Draw(7)
    return {
        stem(native, part, path) + suffixes[role]: tensor
        for native, part, path, size in layers
        for role, tensor in low_rank(size, 2, draw).items()
    }


STEMS = {
    "kohya": (lambda native, _part, _path: "lora_unet_" + native.replace(".", "_"), KOHYA),
    "comfy": (lambda native, _part, _path: "diffusion_model." + native, KOHYA),
    "comfy-peft": (lambda native, _part, _path: "diffusion_model." + native, PEFT),
    "diffusers": (lambda _native, part, path: f"{part}.{path}", PEFT),
}


@pytest.mark.parametrize("spelling", STEMS)
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer_goes_to_its_own_component_and_back(name, spelling, tmp_path):
    source = write(adapter(LAYERS[name], *STEMS[spelling]), tmp_path / "in.safetensors")
    reading = parse(open_reference(str(source)))
    assert reading.settled == name
    assert {(item.target.component, *item.target.paths) for item in reading.adapters.adapters} == {
        (part, path) for _, part, path, _ in LAYERS[name]
    }
    for to in ("kohya", "comfy", "diffusers"):
        there = loratools.convert(source, to=to).save(tmp_path / f"{to}.safetensors")
        assert there.proof.worst == 0
        stem, suffixes = STEMS[to]
        assert {key for key in read(tmp_path / f"{to}.safetensors") if not key.endswith(".alpha")} == set(
            adapter(LAYERS[name], stem, suffixes)
        )
        loratools.convert(tmp_path / f"{to}.safetensors", to="original").save(tmp_path / f"{to}-back.safetensors")
        assert_same_tensors(read(tmp_path / f"{to}-back.safetensors"), read(source))


def test_bare_factors_without_a_prefix_are_mochis(tmp_path):
    tensors = {}
    draw = Draw(3)
    for native, size in (("blocks.0.attn.qkv_x", (9216, 3072)), ("blocks.47.mod_y", (1536, 3072))):
        factors = low_rank(size, 2, draw)
        tensors |= {f"{native}.lora_A": factors["down"], f"{native}.lora_B": factors["up"]}
    reading = parse(open_reference(str(write(tensors, tmp_path / "in.safetensors"))))
    assert reading.settled == "mochi"
    assert [item.target.paths[0] for item in reading.adapters.adapters] == [
        "transformer_blocks.0.attn1.to_q",
        "transformer_blocks.47.norm1_context.linear_1",
    ]
    assert (
        loratools.convert(tmp_path / "in.safetensors", to="diffusers").save(tmp_path / "out.safetensors").proof.worst
        == 0
    )
    parts = read(tmp_path / "out.safetensors")
    split = [parts[f"transformer.transformer_blocks.0.attn1.to_{part}.lora_B.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(split), tensors["blocks.0.attn.qkv_x.lora_B"])


def test_comfys_language_model_keeps_its_level(tmp_path):
    stem = "lora_te_layers_0_self_attn_q_proj"
    draw = Draw(5)
    tensors = {stem + KOHYA[role]: tensor for role, tensor in low_rank((2048, 1024), 2, draw).items()}
    source = write(tensors, tmp_path / "in.safetensors")
    keys = loratools.convert(source, to="comfy", arch="anima").state_dict()
    assert {key.partition(".lora")[0].removesuffix(".alpha") for key in keys} == {
        "text_encoders.qwen3_06b.transformer.model.layers.0.self_attn.q_proj"
    }


@pytest.mark.parametrize("level", ["model.", ""])
def test_a_language_model_alone_is_no_text_encoder(level, tmp_path):
    draw, tensors = Draw(6), {}
    for layer in range(28):
        stem = f"base_model.model.{level}layers.{layer}.self_attn.q_proj"
        tensors |= {stem + PEFT[role]: tensor for role, tensor in low_rank((2048, 1024), 2, draw).items()}
    found = parse(open_reference(str(write(tensors, tmp_path / "in.safetensors")))).adapters.architectures
    assert found
    assert all(name.startswith("llm") for name in found)
