"""Mixtures of experts and fused layers: one spelling into another, judged by PEFT's own forward on tiny models."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import loratools as lt
from loratools.errors import ArchitectureMismatch, IncompleteAdapter, NotRepresentable
from loratools.operations.inspect import inspect

TOKENS = torch.arange(12)[None]
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 20,
    "pad_token_id": 0, "head_dim": 4,
}  # fmt: skip
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
FILE = "adapter_model.safetensors"
STACKED = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SIZES, **EXPERTS, intermediate_size=24))


def qwen3_moe():
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, intermediate_size=40))


def gpt_oss():
    sizes = {**SIZES, "layer_types": ["full_attention"]}
    return GptOssForCausalLM(GptOssConfig(**sizes, **EXPERTS, intermediate_size=24))


def phi3():
    return Phi3ForCausalLM(Phi3Config(**SIZES, intermediate_size=24))


def seeded(make):
    torch.manual_seed(0)
    model = make()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return model.eval()


ONE = pytest.mark.parametrize("mixture", ["mixtral"], indirect=True)


def train(make, folder, **options):
    """An adapter of random numbers in `folder`; what the adapted model answers."""
    model = get_peft_model(seeded(make), LoraConfig(r=2, lora_alpha=3, **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    return model.eval()(TOKENS).logits


def answer(make, folder):
    return PeftModel.from_pretrained(seeded(make), folder).eval()(TOKENS).logits


def near(ours, theirs, bound=1e-5):
    return (ours - theirs).norm() <= bound * theirs.norm()


def keys(folder):
    return set(load_file(folder / "adapter_model.safetensors"))


MIXTURES = {
    "mixtral": (mixtral, "model.layers.0.block_sparse_moe.experts.2.w3"),
    "qwen3-moe": (qwen3_moe, "model.layers.0.mlp.experts.2.up_proj"),
}


@pytest.fixture(params=MIXTURES)
def mixture(request, tmp_path):
    """(the function that makes the base, the id of its type, the adapter of its stacked experts, its answer)."""
    make, _ = MIXTURES[request.param]
    options = {**STACKED, "target_modules": ["q_proj"], "alpha_pattern": {"experts.down_proj": 5}}
    if request.param == "mixtral":
        options["target_parameters"] = [*STACKED["target_parameters"], "mlp.gate.weight"]
    return make, f"llm-{request.param}", tmp_path / "stacked", train(make, tmp_path / "stacked", **options)


@ONE
def test_stacked_experts_are_one_adapter_each_and_return_bit_for_bit(mixture, tmp_path):
    make, arch, stacked, answered = mixture
    lora = lt.open(stacked)
    assert arch in lora.candidates
    assert {item.rank for item in lora.adapters} == {2}
    same = lt.convert(stacked, to="peft").save(tmp_path / "same")
    assert (same.proof.exact, same.proof.measured) == (0, 0)
    before, after = (
        load_file(stacked / "adapter_model.safetensors"),
        load_file(tmp_path / "same/adapter_model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(answer(make, tmp_path / "same"), answered)


def test_peft_answers_the_same_from_single_experts(mixture, tmp_path):
    make, arch, stacked, answered = mixture
    done = lt.convert(stacked, to="peft", names="split", arch=arch).save(tmp_path / "split")
    assert (done.proof.exact, done.proof.measured) == (0, 0)
    name = next(name for maker, name in MIXTURES.values() if maker is make)
    assert f"base_model.model.{name}.lora_A.weight" in keys(tmp_path / "split")
    found = lt.compare(stacked, tmp_path / "split")
    assert (found.worst, found.equal) == (0, True)
    whole = lt.convert(tmp_path / "split", to="peft", names="whole", arch=arch).save(tmp_path / "whole")
    assert whole.proof.measured == 0
    assert near(answer(make, tmp_path / "whole"), answered)
    lt.convert(tmp_path / "split", to="original").save(tmp_path / "back")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        ours, theirs = (folder / name for folder in (tmp_path / "back", stacked))
        if name.endswith("json"):
            assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
        else:
            left, right = load_file(ours), load_file(theirs)
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left)


def loaded(folder, runtime):
    """How many layers a runtime loads of how many."""
    found = inspect(folder, runtime=runtime).document["loaders"][runtime]
    return found["loaded"], found["of"]


@ONE
def test_vllm_gets_experts_one_by_one(mixture, tmp_path):
    _, arch, stacked, _ = mixture
    lt.convert(stacked, runtime="vllm", arch=arch).save(tmp_path / "vllm")
    assert not any("base_layer" in key for key in keys(tmp_path / "vllm"))
    assert loaded(stacked, "peft")[0] == len(lt.open(stacked).adapters)
    assert loaded(stacked, "vllm")[0] < loaded(stacked, "vllm")[1]


@pytest.mark.parametrize("held", ["one by one", "stacked"])
def test_merged_experts_are_those_that_peft_merges(mixture, held, tmp_path):
    make, _, stacked, _ = mixture
    if held == "stacked":
        seeded(make).config.save_pretrained(tmp_path / "base")
        save_file(seeded(make).state_dict(), tmp_path / "base" / "model.safetensors", {"format": "pt"})
    else:
        seeded(make).save_pretrained(tmp_path / "base")
        assert any(".experts.1." in key for key in load_file(tmp_path / "base" / "model.safetensors"))
    done = lt.merge(tmp_path / "base", [stacked], tmp_path / "merged")
    assert not done.plan.adapters[0].unmatched
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    theirs = PeftModel.from_pretrained(seeded(make), stacked).merge_and_unload().state_dict()
    assert all(near(ours[key], theirs[key], 1e-6) for key in theirs)


@ONE
def test_extracted_experts_are_what_was_merged(mixture, tmp_path):
    make, _, stacked, answered = mixture
    seeded(make).save_pretrained(tmp_path / "base")
    lt.merge(tmp_path / "base", [stacked], tmp_path / "merged")
    lt.extract(tmp_path / "base", tmp_path / "merged", rank=2, dtype="F32").save(tmp_path / "extracted")
    assert "base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight" in keys(tmp_path / "extracted")
    assert near(answer(make, tmp_path / "extracted"), answered, 1e-4)
    assert lt.compare(stacked, tmp_path / "extracted", tolerance=1e-4).equal


@pytest.mark.parametrize(("stabilized", "bound"), [(False, 1e-12), (True, 1e-6)])
def test_ranks_of_a_stack_are_padded_and_missing_experts_are_zeros(stabilized, bound, tmp_path):
    train(mixtral, tmp_path / "stacked", **STACKED, target_modules=[], use_rslora=stabilized)
    lt.convert(tmp_path / "stacked", to="peft", names="split", arch="llm-mixtral").save(tmp_path / "split")
    tensors = load_file(tmp_path / "split/adapter_model.safetensors")
    tensors = {key: tensor for key, tensor in tensors.items() if ".experts.1." not in key}
    stem = "base_model.model.model.layers.0.block_sparse_moe.experts.2.w2"
    for factor, shape in (("A", (1, 24)), ("B", (16, 1))):
        tensors[f"{stem}.lora_{factor}.weight"] = torch.randn(*shape)
    save_file(tensors, tmp_path / "split/adapter_model.safetensors")
    done = lt.convert(tmp_path / "split", to="peft", names="whole", arch="llm-mixtral").save(tmp_path / "whole")
    assert done.proof.worst <= bound
    assert lt.compare(tmp_path / "split", tmp_path / "whole").worst <= bound
    assert torch.isfinite(answer(mixtral, tmp_path / "whole")).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"experts.lora_A.weight": torch.ones(())}, "do not make factors"),
        (
            {"experts.lora_A.weight": torch.ones(0, 24), "experts.lora_B.weight": torch.ones(16, 0)},
            "do not make factors",
        ),
        ({"experts.1.down_proj.lora_A.weight": torch.ones(2, 24)}, "one expert has two adapters"),
    ],
)
def test_stacks_that_are_none_are_refused(change, words, tmp_path):
    train(mixtral, tmp_path, **STACKED, target_modules=[])
    held = load_file(tmp_path / "adapter_model.safetensors")
    held |= {f"base_model.model.model.layers.0.mlp.{key}": tensor for key, tensor in change.items()}
    save_file(held, tmp_path / "adapter_model.safetensors")
    with pytest.raises(IncompleteAdapter, match=words):
        lt.open(tmp_path)


def test_a_stack_without_the_rank_that_made_it_is_refused(tmp_path):
    train(mixtral, tmp_path / "stacked", **STACKED, target_modules=[])
    path = tmp_path / "stacked/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "r": 4}))
    with pytest.raises(IncompleteAdapter, match="experts of rank 4"):
        lt.open(tmp_path / "stacked")


def test_experts_of_a_type_that_is_not_known_are_not_split(tmp_path):
    train(mixtral, tmp_path, **STACKED, target_modules=[])
    held = load_file(tmp_path / "adapter_model.safetensors")
    renamed = {key.replace(".mlp.experts", ".feed_forward.experts"): tensor for key, tensor in held.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    targets = [name.replace("mlp.", "feed_forward.") for name in STACKED["target_parameters"]]
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_parameters": targets}))
    with pytest.raises(NotRepresentable, match="not known"):
        lt.convert(tmp_path, to="peft", names="split")


def test_types_that_name_experts_differently_must_be_told_apart(tmp_path):
    train(mixtral, tmp_path / "stacked", **STACKED, target_modules=["q_proj"])
    with pytest.raises(ArchitectureMismatch, match="name these layers differently"):
        lt.convert(tmp_path / "stacked", to="peft", names="split")


def test_experts_with_turned_weights_and_rows_in_turn_are_merged_and_never_split(tmp_path):
    train(gpt_oss, tmp_path / "stacked", **STACKED, target_modules=["q_proj"])
    config = seeded(gpt_oss).config
    config.save_pretrained(tmp_path / "base")
    save_file(seeded(gpt_oss).state_dict(), tmp_path / "base/model.safetensors", {"format": "pt"})
    lt.merge(tmp_path / "base", [tmp_path / "stacked"], tmp_path / "merged")
    ours = load_file(tmp_path / "merged/model.safetensors")
    theirs = PeftModel.from_pretrained(seeded(gpt_oss), tmp_path / "stacked").merge_and_unload().state_dict()
    assert all(near(ours[key], theirs[key], 1e-6) for key in theirs)
    with pytest.raises(NotRepresentable, match="in turn"):
        lt.convert(tmp_path / "stacked", to="peft", names="split", arch="llm-gpt-oss")


def test_fused_projections_are_split_and_fused_again(tmp_path):
    answered = train(phi3, tmp_path / "fused", target_modules="all-linear")
    split = lt.convert(tmp_path / "fused", to="peft", names="split").save(tmp_path / "split")
    assert (split.proof.exact, split.proof.measured) == (0, 0)
    tensors = load_file(tmp_path / "split/adapter_model.safetensors")
    rows = {
        leaf: tensors[f"base_model.model.model.layers.0.self_attn.{leaf}_proj.lora_B.weight"].shape for leaf in "qkv"
    }
    assert rows == {"q": (16, 2), "k": (8, 2), "v": (8, 2)}
    assert lt.compare(tmp_path / "fused", tmp_path / "split").worst == 0
    lt.convert(tmp_path / "split", to="peft", names="whole", arch="llm-phi3").save(tmp_path / "whole")
    assert torch.equal(answer(phi3, tmp_path / "whole"), answered)
    lt.convert(tmp_path / "split", to="original").save(tmp_path / "back")
    left, right = (load_file(tmp_path / f"{name}/adapter_model.safetensors") for name in ("back", "fused"))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_fused_rows_that_nothing_shares_out_are_merged_and_not_split(tmp_path):
    train(phi3, tmp_path / "fused", target_modules=["qkv_proj", "gate_up_proj"])
    with pytest.raises(NotRepresentable, match="shared out"):
        lt.convert(tmp_path / "fused", to="peft", names="split")
    seeded(phi3).save_pretrained(tmp_path / "base")
    lt.merge(tmp_path / "base", [tmp_path / "fused"], tmp_path / "merged")
    ours = Phi3ForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    theirs = PeftModel.from_pretrained(seeded(phi3), tmp_path / "fused").merge_and_unload().state_dict()
    assert all(near(ours[key], theirs[key], 1e-6) for key in theirs)


def test_a_port_with_single_projections_merges_into_fused_ones_and_is_extracted_fused(tmp_path):
    answered = train(phi3, tmp_path / "fused", target_modules="all-linear")
    lt.convert(tmp_path / "fused", to="peft", names="split").save(tmp_path / "split")
    seeded(phi3).save_pretrained(tmp_path / "base")
    lt.merge(tmp_path / "base", [tmp_path / "split"], tmp_path / "merged", arch="llm-phi3")
    assert near(Phi3ForCausalLM.from_pretrained(tmp_path / "merged").eval()(TOKENS).logits, answered)
    lt.extract(tmp_path / "base", tmp_path / "merged", rank=2, dtype="F32").save(tmp_path / "extracted")
    assert near(answer(phi3, tmp_path / "extracted"), answered, 1e-4)


def test_a_live_mixture_answers_as_peft_makes_it_and_gets_every_bit_back(mixture):
    make, _, stacked, answered = mixture
    model = seeded(make)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = lt.apply(model, stacked)
    assert {row.way for row in done.modules if ".experts." in row.path} == {"weights"}
    assert near(model(TOKENS).logits, answered)
    theirs = PeftModel.from_pretrained(seeded(make), stacked).merge_and_unload().state_dict()
    experts = [name for name in before if ".experts." in name]
    assert len(experts) == 2
    for name in experts:
        assert near(model.state_dict()[name], theirs[name], 1e-6)
    done.set_scale(0.5)
    for name in experts:
        assert near(model.state_dict()[name] - before[name], (theirs[name] - before[name]) / 2)
    done.remove()
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_adapters_of_some_experts_of_a_live_mixture_are_added_up_and_go_one_by_one(tmp_path):
    folders = [tmp_path / name for name in ("one", "other")]
    deltas = []
    for number, folder in enumerate(folders):
        torch.manual_seed(number)
        stacked, split = folder / "stacked", folder / "split"
        config = LoraConfig(r=2, lora_alpha=3, target_parameters=["mlp.experts.down_proj"], target_modules=[])
        tuned = get_peft_model(seeded(mixtral), config)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.2
        tuned.save_pretrained(stacked)
        merged = tuned.merge_and_unload().state_dict()["model.layers.0.mlp.experts.down_proj"]
        deltas.append(merged - seeded(mixtral).state_dict()["model.layers.0.mlp.experts.down_proj"])
        lt.convert(stacked, to="peft", names="split", arch="llm-mixtral").save(split)
        held = load_file(split / "adapter_model.safetensors")
        save_file({key: value for key, value in held.items() if f".experts.{number}." in key}, split / FILE)
        deltas[-1] = torch.stack([delta if at == number else 0 * delta for at, delta in enumerate(deltas[-1])])
    model = seeded(mixtral)
    weight = model.model.layers[0].mlp.experts.down_proj
    before = weight.detach().clone()
    first, second = (lt.apply(model, folder / "split", arch="llm-mixtral") for folder in folders)
    assert [len(done.modules) for done in (first, second)] == [1, 1]
    assert near(weight - before, deltas[0] + deltas[1])
    first.remove()
    assert near(weight - before, deltas[1])
    assert torch.equal(weight[0], before[0])
    second.remove()
    assert torch.equal(weight, before)


def test_live_experts_with_turned_weights_answer_as_peft_makes_them(tmp_path):
    answered = train(gpt_oss, tmp_path / "stacked", **STACKED, target_modules=["q_proj"])
    model = seeded(gpt_oss)
    lt.apply(model, tmp_path / "stacked")
    assert near(model(TOKENS).logits, answered)


def test_stacked_experts_are_no_layers_of_peft(tmp_path):
    train(mixtral, tmp_path / "stacked", **STACKED, target_modules=["q_proj"])
    with pytest.raises(NotRepresentable, match="a part of one"):
        lt.apply(seeded(mixtral), tmp_path / "stacked", how="peft")


def test_a_live_fused_layer_takes_an_adapter_of_all_of_it_and_of_parts(tmp_path):
    answered = train(phi3, tmp_path / "fused", target_modules="all-linear")
    lt.convert(tmp_path / "fused", to="peft", names="split").save(tmp_path / "split")
    for folder, arch in (("fused", None), ("split", "llm-phi3")):
        model = seeded(phi3)
        lt.apply(model, tmp_path / folder, arch=arch)
        assert near(model(TOKENS).logits, answered)
