"""`--full` for PEFT: norms and embeddings saved whole, biases added or saved, and PEFT's own model answers as tuned."""

import json
import os
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import loratools as lt
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.errors import NotRepresentable
from tests.judges.load import deltas_after_peft_load, listening
from tests.operations.tuning import is_layer, low_rank, tune

TOKENS = torch.arange(10)[None]
FULL = ["norms", "biases", "embeddings"]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def qwen2(folder, *, tied=False):
    torch.manual_seed(0)
    config = Qwen2Config(num_hidden_layers=2, vocab_size=100, tie_word_embeddings=tied, **SIZES)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def gpt2(folder):
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    return folder


def every(tensor, generator):
    """A low-rank change of a matrix, any change of a vector: also of embeddings, which have no factors."""
    if tensor.ndim > 1:
        return low_rank(tensor, generator)
    return 0.2 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)


def answer(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def adapted(base, folder):
    """PEFT's model of both, and what was said meanwhile."""
    with listening() as complaints:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    return model, complaints


def t5(folder):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
    T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(folder)
    return folder


MODELS = {
    "biases of some layers": (qwen2, "all", False),
    "a tied head": (lambda folder: qwen2(folder, tied=True), "all", False),
    "biases of all layers": (gpt2, "none", True),
}


@pytest.mark.parametrize(("make", "bias", "added"), MODELS.values(), ids=MODELS)
def test_a_language_model_that_changed_in_everything_comes_back_in_peft(tmp_path, make, bias, added):
    base = make(tmp_path / "base")
    tune(base, tmp_path / "tuned", change=every, choose=lambda *_: True)
    pending = lt.extract(base, tmp_path / "tuned", rank=3, dtype="F32", full=FULL)
    assert not pending.plan.lost
    done = pending.save(tmp_path / "out")
    assert done.left_out == ()
    assert pending.plan.nbytes == done.size
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["bias"], config["lora_bias"]) == (bias, added)
    assert "tied" not in base.name
    model, complaints = adapted(base, tmp_path / "out")
    assert complaints == []
    wanted = answer(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned"))
    size = float(wanted.abs().max())
    assert float((answer(model) - wanted).abs().max()) <= 1e-5 * size
    assert float((answer(model.merge_and_unload()) - wanted).abs().max()) <= 1e-5 * size
    lt.merge(base, [tmp_path / "out"], tmp_path / "merged")
    ours = answer(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert float((ours - wanted).abs().max()) <= 1e-5 * size
    assert done.loaders["vllm"]["loaded"] == 0


def test_what_is_saved_whole_has_the_tuned_models_bytes(tmp_path):
    base = qwen2(tmp_path / "base", tied=True)
    tune(base, tmp_path / "tuned", change=every, choose=lambda *_: True)
    for folder in (base, tmp_path / "tuned"):
        path = folder / "model.safetensors"
        save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path, {"format": "pt"})
    lt.extract(base, tmp_path / "tuned", rank=3, full=FULL).save(tmp_path / "out")
    held, tuned = load_file(tmp_path / "out" / "adapter_model.safetensors"), load_file(
        tmp_path / "tuned" / "model.safetensors"
    )  # fmt: skip
    prefix = "base_model.model."
    whole = {key.removeprefix(prefix): value for key, value in held.items() if ".lora_" not in key}
    assert torch.equal(whole.pop("lm_head.weight"), tuned["model.embed_tokens.weight"])
    assert {key.replace(".base_layer.", ".") for key in whole} == {
        key for key in tuned if not is_layer(key, tuned[key])
    }
    assert all(torch.equal(value, tuned[key.replace(".base_layer.", ".")]) for key, value in whole.items())


def test_biases_beside_dora_are_saved_for_peft_builds_dora_with_none(tmp_path):
    base = gpt2(tmp_path / "base")
    tune(base, tmp_path / "tuned", change=every, choose=lambda key, tensor: is_layer(key, tensor) or tensor.ndim == 1)
    lt.extract(base, tmp_path / "tuned", rank=32, dtype="F32", dora=True, full=FULL).save(tmp_path / "out")
    model, complaints = adapted(base, tmp_path / "out")
    assert complaints == []
    wanted = answer(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned"))
    assert float((answer(model) - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def test_words_that_are_not_asked_for_are_left_out_and_told(tmp_path):
    base = qwen2(tmp_path / "base", tied=True)
    tune(base, tmp_path / "tuned", change=every, choose=lambda *_: True)
    done = lt.extract(base, tmp_path / "tuned", rank=3, full=["norms"]).save(tmp_path / "out")
    told = " ".join(done.left_out)
    assert "--full biases" in told
    assert "--full embeddings" in told
    assert any("lm_head is tied to model.embed_tokens: one tensor, counted once" in line for line in done.warnings)
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {key.rpartition(".")[0].rpartition(".")[2] for key in held if ".lora_" not in key} == {
        "norm", "input_layernorm", "post_attention_layernorm",
    }  # fmt: skip


@pytest.mark.parametrize("own", ["base", "tuned"])
def test_a_head_of_its_own_in_one_model_is_compared_with_the_others_embedding(tmp_path, own):
    tied, apart = tmp_path / "tied", tmp_path / "apart"
    qwen2(tied, tied=True)
    held = load_file(tied / "model.safetensors")
    qwen2(apart)
    change = low_rank(held["model.embed_tokens.weight"], torch.Generator().manual_seed(2))
    held["lm_head.weight"] = held["model.embed_tokens.weight"] + change.float()
    save_file(held, apart / "model.safetensors", {"format": "pt"})
    pair = (apart, tied) if own == "base" else (tied, apart)
    done = lt.extract(*pair, rank=3, dtype="F32").save(tmp_path / "out")
    assert [layer.module for layer in done.layers] == ["model:lm_head"]
    assert sum("a head of its own" in line for line in done.warnings) == 1
    model, _ = adapted(pair[0], tmp_path / "out")
    wanted = answer(AutoModelForCausalLM.from_pretrained(pair[1]))
    assert float((answer(model) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    if own == "tuned":
        with pytest.raises(NotRepresentable, match="one tensor cannot hold that"):
            lt.merge(pair[0], [tmp_path / "out"], tmp_path / "merged")
    lt.merge(pair[0], [tmp_path / "out"], tmp_path / "merged", untie=own == "tuned")
    ours = answer(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert float((ours - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.parametrize("arch", ["sd1", "flux1"])
def test_every_component_of_a_pipeline_is_the_tuned_one_after_pefts_merge(pipeline, tmp_path, arch):
    """Flux names `transformer_blocks.0.attn.norm_q` and a `single_…` of it: PEFT takes one name for both."""
    from diffusers import DiffusionPipeline

    base = pipeline(arch)
    half = {"norm_q", "norm_k"} if arch == "flux1" else set()

    def choose(key, _):
        return not (key.split(".")[-2] in half and key.startswith("single_"))

    deltas = tune(base, tmp_path / "tuned", change=every, choose=choose)
    done = lt.extract(base, tmp_path / "tuned", rank=3, dtype="F32", full=FULL, to="peft").save(tmp_path / "out")
    assert not [line for line in done.left_out if "depthwise" not in line]
    loaded = DiffusionPipeline.from_pretrained(base, local_files_only=True)
    tuned = DiffusionPipeline.from_pretrained(tmp_path / "tuned", local_files_only=True)
    assert deltas
    for component in sorted(path.name for path in (tmp_path / "out").iterdir()):
        found = deltas_after_peft_load(component, getattr(loaded, component), tmp_path / "out" / component)
        assert all("tie_word_embeddings" in text for text in found.complaints)
        wanted = getattr(tuned, component).double().state_dict()
        got = getattr(loaded, component).state_dict()
        merged = {key.replace(".modules_to_save.default.", "."): value for key, value in got.items()}
        for key, value in wanted.items():
            assert torch.allclose(merged[key], value, atol=1e-5 * float(value.abs().max() + 1)), key


def test_a_component_in_which_no_layer_changed_is_refused_by_name(pipeline, tmp_path):
    base = pipeline("sd1")
    tune(base, tmp_path / "tuned", change=every, choose=lambda key, _: "mid_block" in key or "layer_norm1" in key)
    with pytest.raises(NotRepresentable, match=r"text_encoder:.*beside factors only") as caught:
        lt.extract(base, tmp_path / "tuned", rank=3, full=FULL, to="peft").save(tmp_path / "out")
    assert "--allow-lossy" in caught.value.hint
    assert not (tmp_path / "out").exists()
    done = lt.extract(base, tmp_path / "tuned", rank=3, full=FULL, to="peft", allow_lossy=True).save(tmp_path / "out")
    assert sum("beside factors only" in line for line in done.warnings) == 4


@pytest.mark.parametrize("how", [{"bias": "all"}, {"bias": "all", "use_dora": True}], ids=str)
def test_biases_that_peft_trained_replace_the_bases(tmp_path, how):
    base = qwen2(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **how)
        )
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or name.endswith(".bias"):
                parameter.add_(0.1 * torch.rand_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    done = lt.merge(base, [tmp_path / "adapter"], tmp_path / "merged")
    assert not done.plan.adapters[0].left_out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    for key, value in model.merge_and_unload().state_dict().items():
        assert (merged[key] - value).norm() <= 1e-6 * value.norm(), key


def test_an_embedding_that_several_stacks_and_the_head_read_is_saved_for_all_of_them(tmp_path):
    base = t5(tmp_path / "base")
    tune(base, tmp_path / "tuned", change=every, choose=lambda *_: True)
    lt.extract(base, tmp_path / "tuned", rank=3, dtype="F32", full=FULL).save(tmp_path / "out")

    def told(model):
        with torch.no_grad():
            return model.eval()(input_ids=TOKENS, decoder_input_ids=TOKENS.flip(1)).logits

    with listening() as complaints:
        model = PeftModel.from_pretrained(T5ForConditionalGeneration.from_pretrained(base), tmp_path / "out")
    assert all("a tied layer is part of the adapter" in text for text in complaints)
    wanted = told(T5ForConditionalGeneration.from_pretrained(tmp_path / "tuned"))
    assert float((told(model) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def tiny(arch, component, paths, change):
    """A component with every tensor of its table, all of them small, in two versions."""
    known, generator = architecture(arch), torch.Generator().manual_seed(1)
    naming = known.by_name[component].namings[0]
    table = next(found for item in known.variants if component in (found := shapes(item.shapes)))[component]
    for at, out in enumerate(paths):
        held = {}
        for place, shape in table.items():
            key = naming.at_canonical(place).weight_key
            values = torch.randn(
                [min(4, extent) for extent in shape], generator=torch.Generator().manual_seed(len(key))
            )
            held[key] = values + (0.1 * torch.randn(values.shape, generator=generator) if at and change(key) else 0)
        save_file(held, out)


def test_parameters_of_no_layer_are_not_decomposed_and_are_told(tmp_path):
    both = [tmp_path / f"{name}.safetensors" for name in ("base", "tuned")]
    tiny("kandinsky2.2", "prior", both, lambda key: key.endswith((".to_q.weight", "positional_embedding", "clip_mean")))
    done = lt.extract(*both, rank=2, full=FULL, to="peft", force=True).save(tmp_path / "out")
    assert all(layer.module.endswith("to_q") for layer in done.layers)
    assert sorted(done.left_out) == [
        "prior:clip_mean: changed, and it is a parameter of no layer",
        "prior:positional_embedding: changed, and it is a parameter of no layer",
    ]
