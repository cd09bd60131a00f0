"""Applied to live language models: they answer as PEFT's own model does, ties and turned weights included."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import loratools as lt
from loratools.errors import PartialMatch

TOKENS = torch.arange(10)[None]


def llama(*, tied=False):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=2, vocab_size=100, tie_word_embeddings=tied, **sizes)
    return LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes)).eval()


PATTERNS = {
    "target_modules": ["q_proj", "v_proj", "embed_tokens"],
    "modules_to_save": ["lm_head"],
    "rank_pattern": {"layers.0.self_attn.q_proj": 5},
    "alpha_pattern": {"q_proj": 3},
    "use_rslora": True,
}
CASES = {
    "embedding, saved head, patterns, rsLoRA": (llama, PATTERNS),
    "the same with a tied head": (lambda: llama(tied=True), PATTERNS),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "Conv1D and DoRA": (gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "biases that the layers lack": (llama, {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
}


def train(make, options, folder):
    """The answer of a model that peft has put an adapter into, saved in `folder`."""
    model = get_peft_model(make(), LoraConfig(r=4, lora_alpha=8, **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
        if "magnitude" in name:
            parameter.data = parameter.data.abs() + 0.5
    model.save_pretrained(folder)
    return answer(model.eval())


@torch.no_grad()
def answer(model):
    return model(TOKENS).logits


@pytest.mark.parametrize("case", CASES)
def test_a_live_model_answers_as_pefts_own(case, tmp_path):
    make, options = CASES[case]
    wanted = train(make, options, tmp_path / "adapter")
    model = make()
    plain, names = answer(model), list(model.state_dict())
    for how in ("auto", "weights"):
        if how == "weights" and "lack" in case:
            with pytest.raises(PartialMatch, match="no bias"):
                lt.apply(model, tmp_path / "adapter", how=how)
            continue
        with lt.apply(model, tmp_path / "adapter", how=how) as applied:
            assert (answer(model) - wanted).norm() <= 1e-6 * wanted.norm()
            applied.set_scale(0)
            assert torch.equal(answer(model), plain)
            applied.set_scale(1)
            assert (answer(model) - wanted).norm() <= 1e-6 * wanted.norm()
        assert torch.equal(answer(model), plain)
        assert list(model.state_dict()) == names
    if "tied" in case:
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_beside_a_trained_adapter_with_a_saved_module_both_are_felt(tmp_path):
    options = {"target_modules": ["q_proj", "v_proj"]}
    train(llama, options | {"modules_to_save": ["lm_head"]}, tmp_path / "theirs")
    train(llama, options, tmp_path / "ours")
    merged = PeftModel.from_pretrained(llama(), tmp_path / "theirs").merge_and_unload()
    lt.apply(merged, tmp_path / "ours", how="weights")
    wanted = answer(merged)
    model = PeftModel.from_pretrained(llama(), tmp_path / "theirs").eval()
    before = answer(model)
    for how in ("peft", "weights"):
        with lt.apply(model, tmp_path / "ours", how=how):
            assert (answer(model) - wanted).norm() <= 1e-6 * wanted.norm()
        assert torch.equal(answer(model), before)
        assert model.active_adapters == ["default"]


def test_modules_saved_whole_are_put_in_bit_for_bit_and_out_again(tmp_path):
    model = get_peft_model(
        llama().to(torch.bfloat16), LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    saved = dict(model.named_parameters())["base_model.model.lm_head.modules_to_save.default.weight"]
    saved.data = torch.randn_like(saved)
    model.save_pretrained(tmp_path / "adapter")
    live = llama().to(torch.bfloat16)
    head = live.lm_head.weight.clone()
    with lt.apply(live, tmp_path / "adapter") as applied:
        assert {row.path: row.way for row in applied.modules}["lm_head"] == "weights"
        assert torch.equal(live.lm_head.weight, saved)
    assert torch.equal(live.lm_head.weight, head)
