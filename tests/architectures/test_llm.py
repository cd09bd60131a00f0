"""transformers' own classes judge the table of language models."""

import re

import pytest

from loratools.architectures.llm import MODEL_TYPES, architecture_id, llm_architecture, model_types
from loratools.architectures.registry import architecture
from loratools.errors import UsageError

# Where several types have exactly the same modules, the first of them is the guess.
TWINS = {
    "mistral": "llama", "gemma": "llama", "granite": "llama", "smollm3": "llama", "umt5": "t5", "mt5": "t5",
}  # fmt: skip


def paths_of(name):
    """The parameters of a class of transformers, with few layers, on the meta device."""
    import torch
    import transformers

    heads = dict.fromkeys(("t5", "mt5", "umt5", "bart"), "AutoModelForSeq2SeqLM")
    heads |= dict.fromkeys(("bert", "roberta", "distilbert"), "AutoModelForMaskedLM")
    heads |= {"whisper": "AutoModelForSpeechSeq2Seq", "llava": "AutoModelForImageTextToText"}
    layers = {"num_layers": 2, "attention_types": [[["global"], 2]]} if name == "gpt_neo" else {}
    config = transformers.AutoConfig.for_model(name, **layers)
    for depth in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"):
        if hasattr(config, depth):
            setattr(config, depth, 2)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        model = getattr(transformers, heads.get(name, "AutoModelForCausalLM")).from_config(config)
    return [path.removesuffix(".weight") for path, _ in model.named_parameters()]


@pytest.mark.parametrize("name", [kind.name for kind in MODEL_TYPES])
def test_whole_model_is_its_own_type(name):
    found = model_types(paths_of(name), complete=True)
    assert found[0] == TWINS.get(name, name)
    assert name in found


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bert"])
def test_bare_model_is_its_own_type(name):
    paths = [re.sub(r"^(model|transformer|bert)\.", "", path) for path in paths_of(name)]
    assert model_types(paths, complete=True)[0] == name


@pytest.mark.parametrize(
    ("paths", "first", "others", "none_of"),
    [
        (["transformer.h.0.attn.c_attn"], "gpt2", (), ("llama",)),
        (["encoder.block.0.layer.0.SelfAttention.q"], "t5", ("mt5",), ("bart",)),
        (["model.encoder.layers.0.self_attn.q_proj"], "whisper", ("bart",), ("llama", "opt")),
        (["model.layers.0.self_attn.q_proj"], "llama", ("mistral", "qwen2", "qwen3", "gemma2", "gpt_oss"), ("phi3",)),
        (["model.layers.0.self_attn.qkv_proj"], "phi3", (), ("llama",)),
        (["model.layers.0.self_attn.q_proj.bias"], "qwen2", ("gpt_oss",), ("llama",)),
        (["model.layers.0.self_attn.q_norm"], "qwen3", ("gemma3_text",), ("llama", "qwen2")),
        (["model.layers.0.mlp.experts.7.up_proj"], "qwen2_moe", ("qwen3_moe",), ("llama", "mixtral")),
        (["model.layers.0.block_sparse_moe.experts.7.w1"], "mixtral", (), ("llama",)),
    ],
)
def test_modules_narrow_the_types(paths, first, others, none_of):
    found = model_types(paths)
    assert found[0] == first
    assert set(others) <= set(found)
    assert not set(none_of) & set(found)


@pytest.mark.parametrize("paths", [[], ["lm_head"], ["down_blocks.0.resnets.0.conv1"], ["model.layers.0.nothing"]])
def test_other_modules_are_no_language_model(paths):
    assert model_types(paths) == ()


def test_one_foreign_module_is_no_language_model():
    assert model_types(["model.layers.0.self_attn.q_proj", "unet.conv_in"]) == ()


def test_language_models_need_no_table():
    known = architecture("llm-gpt-oss")
    assert known.family == ("llm",)
    path = "model.layers.3.mlp.experts.gate_up_proj"
    placement = known.denoiser.namings[0].at_canonical(path)
    assert (placement.native, placement.paths, placement.layout) == (path, (path,), "rows")
    assert llm_architecture("llm-gpt-os") is None
    with pytest.raises(UsageError):
        architecture("llm-gpt-os")
    assert len({architecture_id(kind.name) for kind in MODEL_TYPES}) == len(MODEL_TYPES)
