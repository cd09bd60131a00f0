"""Adapters of language models: names pass through, and PEFT's own model answers the same after a conversion."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import loratools as lt
from loratools.errors import PartialMatch, UnreadableForm

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


def test_merged_weights_are_those_that_peft_merges(trained, tmp_path):
    make, folder, _ = trained
    base = make()
    base.save_pretrained(tmp_path / "base")
    adapted = PeftModel.from_pretrained(make(), folder)
    if json.loads((folder / "adapter_config.json").read_text())["lora_bias"]:
        with pytest.raises(PartialMatch, match="no bias"):
            lt.merge(tmp_path / "base", [folder], tmp_path / "merged")
        with pytest.raises(RuntimeError, match="no bias"):
            adapted.merge_and_unload()
        return
    done = lt.merge(tmp_path / "base", [folder], tmp_path / "merged")
    assert not done.plan.adapters[0].unmatched
    merged = adapted.merge_and_unload().state_dict()
    ours = type(base).from_pretrained(tmp_path / "merged").state_dict()
    before = base.state_dict()
    changed = [key for key in merged if not torch.equal(merged[key], before[key])]
    assert changed
    for key, value in ours.items():
        assert (value - merged[key]).norm() <= 1e-6 * merged[key].norm(), key
        assert key in changed or torch.equal(value, before[key])


def test_an_adapter_of_a_whole_model_fits_one_saved_without_its_head(tmp_path):
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    llama().model.save_pretrained(tmp_path / "base")
    done = lt.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged")
    assert done.plan.changed == 2


def test_modules_saved_whole_replace_the_bases_bit_for_bit(tmp_path):
    options = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    model = get_peft_model(llama().to(torch.bfloat16), LoraConfig(r=2, **options))
    saved = dict(model.named_parameters())["base_model.model.lm_head.modules_to_save.default.weight"]
    saved.data = torch.randn_like(saved)
    model.save_pretrained(tmp_path / "adapter")
    llama().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    lt.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    assert torch.equal(merged.lm_head.weight, saved)


@pytest.mark.parametrize("field", [{"alora_invocation_tokens": [1, 2]}, {"use_qalora": True, "qalora_group_size": 16}])
def test_factors_that_are_no_change_of_a_weight_are_refused_by_name(field, tmp_path):
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **field}))
    with pytest.raises(UnreadableForm, match="no change of a weight") as caught:
        lt.open(tmp_path)
    assert caught.value.key in field


def test_an_adapter_begun_out_of_the_base_says_so(tmp_path):
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    model.save_pretrained(tmp_path)
    assert any("pissa" in line for line in lt.open(tmp_path).reading.warnings)
