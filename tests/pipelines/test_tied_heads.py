"""A head that is its embedding once more: what PEFT's model answers unmerged is what the merged model answers."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

import loratools as lt
from loratools.errors import NotRepresentable, UsageError

TOKENS = torch.arange(10)[None]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def qwen2(*, tied=True):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=2, vocab_size=100, tie_word_embeddings=tied, **SIZES)).eval()


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes)).eval()


def trained(make, folder, **options):
    """A PEFT adapter of random values; what the model answers with it, unmerged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tied layers have complications is what is tested
        model = get_peft_model(make(), LoraConfig(r=3, lora_alpha=5, **options)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
        answer = model(TOKENS).logits
    model.save_pretrained(folder)
    return answer


@pytest.fixture
def base(tmp_path):
    qwen2().save_pretrained(tmp_path / "base")
    assert "lm_head.weight" not in load_file(tmp_path / "base" / "model.safetensors")
    return tmp_path / "base"


def answer_of(folder, kind=Qwen2ForCausalLM):
    with torch.no_grad():
        return kind.from_pretrained(folder, dtype=torch.float32).eval()(TOKENS).logits


ONE_SIDED = {
    "a LoRA of the head": {"target_modules": ["lm_head", "q_proj"]},
    "a LoRA of the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "one of each": {"target_modules": ["lm_head", "embed_tokens"]},
    "DoRA of the head": {"target_modules": ["lm_head"], "use_dora": True},
    "a head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "an embedding saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("options", ONE_SIDED.values(), ids=ONE_SIDED)
def test_an_untied_merge_answers_as_pefts_unmerged_model_does(base, tmp_path, options):
    answer = trained(qwen2, tmp_path / "adapter", **options)
    with pytest.raises(NotRepresentable, match="one tensor cannot hold that") as caught:
        lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged")
    assert "--untie" in caught.value.hint
    done = lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged", untie=True)
    assert not any(item.unmatched or item.left_out for item in done.plan.adapters)
    assert "lm_head becomes a tensor of its own, and config.json says tie_word_embeddings: false" in done.warnings
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in load_file(tmp_path / "merged" / "model.safetensors")
    found = answer_of(tmp_path / "merged")
    assert float((found - answer).abs().max()) <= 1e-5 * float(answer.abs().max())


def test_pefts_own_merge_of_a_tied_head_gives_another_model(base, tmp_path):
    """The reason for the refusal, held here so that it goes when PEFT no longer changes both."""
    answer = trained(qwen2, tmp_path / "adapter", target_modules=["lm_head"])
    model = PeftModel.from_pretrained(qwen2(), tmp_path / "adapter")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        merged = model.merge_and_unload()(TOKENS).logits
    assert float((merged - answer).abs().max()) > 0.1 * float(answer.abs().max())


BOTH = {
    "LoRA": {"target_modules": ["embed_tokens", "q_proj"]},
    "saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("untie", [False, True])
@pytest.mark.parametrize("options", BOTH.values(), ids=BOTH)
def test_what_changes_head_and_embedding_alike_is_merged_once_and_stays_tied(base, tmp_path, options, untie):
    answer = trained(qwen2, tmp_path / "adapter", ensure_weight_tying=True, **options)
    done = lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged", untie=untie)
    assert not any(item.unmatched or item.left_out for item in done.plan.adapters)
    held = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("lm_head.weight" in held) is untie
    assert any("merged once" in line for line in done.warnings) is not untie
    assert float((answer_of(tmp_path / "merged") - answer).abs().max()) <= 1e-5 * float(answer.abs().max())


def test_an_adapter_that_leaves_the_tied_tensor_alone_needs_nothing(base, tmp_path):
    answer = trained(qwen2, tmp_path / "adapter", target_modules=["q_proj"])
    lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    assert float((answer_of(tmp_path / "merged") - answer).abs().max()) <= 1e-5 * float(answer.abs().max())
    trained(qwen2, tmp_path / "head", target_modules=["lm_head", "q_proj"])
    lt.merge(base, [tmp_path / "head"], tmp_path / "without", weights=["*lm_head=0"])
    assert "lm_head.weight" not in load_file(tmp_path / "without" / "model.safetensors")


def test_a_configuration_with_infinity_in_it_is_read_and_goes_along(base, tmp_path):
    """transformers wrote `"time_step_limit": [0.0, Infinity]` for Mamba 2."""
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"time_step_limit": [0.0, float("inf")]}))
    assert "Infinity" in path.read_text()
    trained(qwen2, tmp_path / "adapter", target_modules=["lm_head", "q_proj"])
    lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged", weights=["*lm_head=0"])
    assert (tmp_path / "merged" / "config.json").read_bytes() == path.read_bytes()
    lt.merge(base, [tmp_path / "adapter"], tmp_path / "untied", untie=True)
    assert json.loads((tmp_path / "untied" / "config.json").read_text())["time_step_limit"] == [0.0, float("inf")]


def test_a_configuration_that_says_nothing_ties_the_head_that_the_files_lack(tmp_path):
    gpt2().save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    config.pop("tie_word_embeddings", None)
    path.write_text(json.dumps(config))
    answer = trained(gpt2, tmp_path / "adapter", target_modules=["lm_head", "c_attn"], fan_in_fan_out=True)
    with pytest.raises(NotRepresentable, match=r"the head lm_head is the embedding transformer\.wte once more"):
        lt.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged")
    lt.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged", untie=True)
    found = answer_of(tmp_path / "merged", GPT2LMHeadModel)
    assert float((found - answer).abs().max()) <= 1e-5 * float(answer.abs().max())


def test_a_sharded_model_has_its_head_in_the_index(base, tmp_path):
    qwen2().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    answer = trained(qwen2, tmp_path / "adapter", target_modules=["lm_head"])
    lt.merge(tmp_path / "shards", [tmp_path / "adapter"], tmp_path / "merged", untie=True)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["lm_head.weight"] == index["weight_map"]["model.embed_tokens.weight"]
    held = sum(
        tensor.nbytes for path in (tmp_path / "merged").glob("*.safetensors") for tensor in load_file(path).values()
    )
    assert index["metadata"]["total_size"] == held
    assert float((answer_of(tmp_path / "merged") - answer).abs().max()) <= 1e-5 * float(answer.abs().max())


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_is_stored_beside_the_embedding_is_tied_only_if_it_is_the_same(base, tmp_path, same):
    path = base / "model.safetensors"
    held = load_file(path)
    held["lm_head.weight"] = held["model.embed_tokens.weight"].clone() + (0 if same else 0.1)
    save_file(held, path, {"format": "pt"})
    trained(qwen2, tmp_path / "adapter", target_modules=["lm_head"])
    if same:
        with pytest.raises(NotRepresentable, match="once more"):
            lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged")
        lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged", untie=True)
    else:
        lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(merged["model.embed_tokens.weight"], held["model.embed_tokens.weight"])
    assert not torch.equal(merged["lm_head.weight"], held["lm_head.weight"])


def test_there_is_nothing_to_untie_in_a_model_with_a_head_of_its_own(tmp_path):
    qwen2(tied=False).save_pretrained(tmp_path / "base")
    trained(lambda: qwen2(tied=False), tmp_path / "adapter", target_modules=["lm_head"])
    with pytest.raises(UsageError, match="nothing to untie"):
        lt.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged", untie=True)
    lt.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "merged")
