"""Adapters of language models: names pass through, and PEFT's own model answers the same after a conversion."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import loratools as lt

TOKENS = torch.arange(10)[None]


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=100, **sizes))


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes))


CASES = {
    "embedding, saved head, patterns, rsLoRA": (
        llama,
        {
            "target_modules": ["q_proj", "v_proj", "embed_tokens"],
            "modules_to_save": ["lm_head"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 5},
            "alpha_pattern": {"q_proj": 3},
            "use_rslora": True,
        },
    ),
    "Conv1D and DoRA": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "biases": (llama, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
    "every linear layer": (llama, {"target_modules": "all-linear"}),
}


@pytest.fixture(params=CASES, ids=str)
def trained(request, tmp_path):
    """(the function that makes the base, the saved adapter, what the trained model answers)."""
    make, options = CASES[request.param]
    model = get_peft_model(make(), LoraConfig(r=4, lora_alpha=8, **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
        if "magnitude" in name:
            parameter.data = parameter.data.abs() + 0.5
    model.save_pretrained(tmp_path / "adapter")
    return make, tmp_path / "adapter", model.eval()(TOKENS).logits


def test_peft_answers_the_same_from_a_converted_folder(trained, tmp_path):
    make, folder, answer = trained
    result = lt.convert(folder, to="peft").save(tmp_path / "out")
    assert (result.proof.exact, result.proof.measured) == (0, 0)
    assert torch.equal(PeftModel.from_pretrained(make(), tmp_path / "out").eval()(TOKENS).logits, answer)


def test_the_way_back_gives_the_configuration_word_for_word(trained, tmp_path):
    _, folder, _ = trained
    lt.convert(folder, to="peft").save(tmp_path / "out")
    lt.convert(tmp_path / "out", to="original").save(tmp_path / "back")
    name = "adapter_config.json"
    assert json.loads((tmp_path / "back" / name).read_text()) == json.loads((folder / name).read_text())


def test_a_language_model_is_told_from_its_layers(trained):
    make, folder, _ = trained
    assert f"llm-{make().config.model_type}" in lt.open(folder).candidates
