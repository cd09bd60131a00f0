"""extract: what was added comes back, at the error that was promised, from any two containers."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.pipelines.synthetic import make_pipeline
from tests.judges.load import deltas_after_diffusers_load, deltas_after_peft_load
from tests.judges.truth import compare
from tests.operations.tuning import full_rank, is_layer, llama, low_rank, optimum, single_file, tune, written


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """architecture → (base folder, tuned folder with a rank-3 change in every layer, those changes)."""
    torch.set_num_threads(1)
    made = {}

    def get(arch):
        if arch not in made:
            folder = tmp_path_factory.mktemp(arch)
            base = make_pipeline(arch, folder / "base")
            made[arch] = base, folder / "tuned", tune(base, folder / "tuned")
        return made[arch]

    return get


@pytest.fixture(scope="module")
def slow(pipelines, tmp_path_factory):
    """The SD1 pipeline with a full-rank change in every layer: (base, tuned, changes)."""
    base, _, _ = pipelines("sd1")
    out = tmp_path_factory.mktemp("slow") / "tuned"
    return base, out, tune(base, out, change=full_rank)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A Llama with a full-rank change in every layer: (base, tuned, changes)."""
    folder = tmp_path_factory.mktemp("small")
    base = llama(folder / "base", hidden=64)
    return base, folder / "tuned", tune(base, folder / "tuned", change=full_rank)


@pytest.mark.parametrize(("arch", "mixed"), [("sd1", "tuned"), ("sd2", "base"), ("sdxl", "tuned")])
def test_a_known_low_rank_change_comes_back_from_mixed_containers_and_loads_in_diffusers(
    pipelines, tmp_path, arch, mixed
):
    base, tuned, deltas = pipelines(arch)
    single = single_file(base if mixed == "base" else tuned, arch, tmp_path / "single.safetensors")
    pair = (single, tuned) if mixed == "base" else (base, single)
    result = lt.extract(*pair, rank=3, dtype="F32").save(tmp_path / "out.safetensors")
    assert (result.format, result.architecture) == ("kohya", arch)
    loaded = deltas_after_diffusers_load(base, tmp_path / "out.safetensors")
    assert not loaded.complaints
    judged = compare(loaded.deltas, deltas)
    assert (judged.missing, judged.unexpected) == ((), ())
    assert judged.worst <= 1e-4
    assert result.proof.identical == len(deltas)
    assert "the VAE is not compared: no adapter holds a change of it" in result.warnings


def test_a_small_llama_comes_back_as_an_adapter_that_peft_answers_with(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = llama(tmp_path / "base")
    deltas = tune(base, tmp_path / "tuned", choose=lambda key, tensor: is_layer(key, tensor) and "lm_head" not in key)
    result = lt.extract(base, tmp_path / "tuned", error=1e-4, dtype="F32").save(tmp_path / "out")
    assert {layer.rank for layer in result.layers} == {3}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(path for _, path in deltas)
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 3, {})
    assert result.loaders["vllm"]["loaded"] == len(deltas)
    loaded = deltas_after_peft_load("model", AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    assert not loaded.complaints
    judged = compare(loaded.deltas, deltas)
    assert (judged.missing, judged.unexpected) == ((), ())
    assert judged.worst <= 1e-4
    tokens = torch.arange(10)[None]
    ours = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")(tokens).logits
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")(tokens).logits
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_gpt2_whose_matrices_are_turned_comes_back(tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    deltas = tune(tmp_path / "base", tmp_path / "tuned")
    result = lt.extract(tmp_path / "base", tmp_path / "tuned", rank=3, dtype="F32").save(tmp_path / "out")
    loaded = deltas_after_peft_load("model", AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    judged = compare(loaded.deltas, deltas)
    assert (judged.missing, judged.unexpected) == ((), ())
    assert judged.worst <= 1e-4
    assert len(result.layers) == 8


def test_every_layer_of_a_full_fine_tune_is_within_a_thousandth_of_the_optimum(slow, tmp_path):
    base, tuned, deltas = slow
    result = lt.extract(base, tuned, rank=8, dtype="F32").save(tmp_path / "out.safetensors")
    stated = {layer.module: layer for layer in result.layers}
    loaded = deltas_after_diffusers_load(base, tmp_path / "out.safetensors")
    assert len(stated) == len(deltas)
    for where, delta in deltas.items():
        layer = stated[":".join(where)]
        found = float((loaded.deltas[where].reshape(delta.shape) - delta).norm() / delta.norm())
        assert layer.rank == min(8, *delta.flatten(1).shape)
        assert found <= optimum(delta, layer.rank) * 1.001 + 1e-6
        assert layer.error == pytest.approx(found, rel=1e-4, abs=1e-6)
        assert layer.energy == pytest.approx(1 - optimum(delta, layer.rank) ** 2, abs=1e-5)
    total = sum(
        float((loaded.deltas[where].reshape(delta.shape) - delta).norm()) ** 2 for where, delta in deltas.items()
    )
    assert result.error == pytest.approx((total / sum(float(d.norm()) ** 2 for d in deltas.values())) ** 0.5, rel=1e-4)


def test_wide_layers_take_the_randomised_engine_and_are_as_near(tmp_path):
    base = llama(tmp_path / "base", hidden=640, layers=1)
    only = "mlp.down_proj"
    deltas = tune(base, tmp_path / "tuned", change=full_rank, choose=lambda key, _: only in key)
    result = lt.extract(base, tmp_path / "tuned", rank=32, dtype="F32").save(tmp_path / "out")
    (delta,) = deltas.values()
    (made,) = written(tmp_path / "out").values()
    found = float((made - delta).norm() / delta.norm())
    assert found <= optimum(delta, 32) * 1.001
    assert result.layers[0].error == pytest.approx(found, rel=1e-4)


@pytest.mark.parametrize("how", [{"error": 0.3}, {"energy": 0.9}, {}], ids=str)
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_error_and_energy_keep_what_they_promise_and_no_rank_is_larger_than_it_needs(small, tmp_path, how, dtype):
    base, tuned, deltas = small
    result = lt.extract(base, tuned, dtype=dtype, **how).save(tmp_path / "out")
    limit = (1 - how["energy"]) ** 0.5 if "energy" in how else how.get("error", 0.05)
    made = written(tmp_path / "out")
    assert len(result.layers) == len(deltas)
    for layer in result.layers:
        where = tuple(layer.module.split(":"))
        delta = deltas[where].flatten(1)
        found = float((made[f"base_model.model.{where[1]}"] - delta).norm() / delta.norm())
        assert found <= limit
        assert layer.error == pytest.approx(found, rel=1e-3)
        assert layer.rank == 1 or optimum(delta, layer.rank - 1) > limit - 0.002


@pytest.mark.parametrize(("to", "size"), [("kohya", 777_777), ("diffusers", 500_000), ("peft", 60_001)])
def test_a_size_is_never_passed_and_bytes_go_where_they_help_most(slow, small, tmp_path, to, size):
    base, tuned, deltas = small if to == "peft" else slow
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    result = lt.extract(base, tuned, size=size, to=to).save(out)
    taken = sum(path.stat().st_size for path in ([out] if out.is_file() else out.rglob("*")) if path.is_file())
    assert size - 2_500 <= taken <= size
    assert result.size == taken
    # What was bought is worth more per byte than what was not.
    bought, missed = [], []
    for layer in result.layers:
        delta = deltas[tuple(layer.module.split(":"))].flatten(1)
        worth = torch.linalg.svdvals(delta).square() / sum(delta.shape)
        bought += [] if layer.rank == 1 else [float(worth[layer.rank - 1])]
        missed += [float(value) for value in worth[layer.rank : layer.rank + 1]]
    assert min(bought) >= max(missed) * 0.95


def test_patterns_and_kernels_have_ranks_of_their_own_and_rank_0_is_left_out(slow, tmp_path):
    base, tuned, _ = slow
    pending = lt.extract(
        base, tuned, rank=4, conv_rank=2, patterns=[("unet.mid_block.*", 6), ("unet.*.ff.*", 0), ("text_encoder.*", 1)]
    )
    result = pending.save(tmp_path / "out.safetensors")
    for layer in result.layers:
        kernel = layer.shape[2:] and layer.shape[2] > 1
        expected = 1 if layer.module.startswith("text") else 6 if ":mid_block" in layer.module else 2 if kernel else 4
        assert layer.rank == min(expected, *torch.empty(layer.shape).flatten(1).shape), layer.module
        assert ".ff." not in layer.module
    assert sum("left out by a pattern" in line for line in result.left_out) == 2 * 16
    assert pending.plan.nbytes == result.size


def test_a_text_encoder_that_changed_little_is_kept_and_what_was_only_rounded_is_not(pipelines, tmp_path):
    base, _, _ = pipelines("sd1")
    small = 7e-4  # below the 0.01 at which others drop the whole encoder

    def change(tensor, generator):
        drawn = low_rank(tensor, generator)
        return drawn * small / drawn.abs().max()

    deltas = tune(
        base, tmp_path / "tuned", change=change, choose=lambda key, _: key.endswith("self_attn.q_proj.weight")
    )
    assert deltas
    assert all(float(delta.abs().max()) < 0.01 for delta in deltas.values())
    tuned = single_file(tmp_path / "tuned", "sd1", tmp_path / "half.safetensors", dtype=torch.float16)
    result = lt.extract(base, tuned, rank=3).save(tmp_path / "out.safetensors")
    assert {tuple(layer.module.split(":")) for layer in result.layers} == set(deltas)
    counts = result.components
    assert counts["text_encoder"]["layers"] == {"changed": 2, "within rounding": 10}
    assert set(counts["unet"]["layers"]) <= {"within rounding", "identical"}


def test_norms_biases_and_embeddings_go_along_as_differences_when_asked(pipelines, tmp_path):
    base, _, _ = pipelines("sd1")

    def noise(tensor, generator):
        return 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)

    assert tune(base, tmp_path / "tuned", change=noise, choose=lambda *_: True)
    bare = lt.extract(base, tmp_path / "tuned", rank=2).save(tmp_path / "bare.safetensors")
    told = " ".join(bare.left_out)
    assert all(f"--full {word}" in told for word in ("norms", "biases", "embeddings"))
    pending = lt.extract(base, tmp_path / "tuned", rank=2, full=["norms", "biases", "embeddings"], dtype="F32")
    full = pending.save(tmp_path / "full.safetensors")
    assert full.left_out == ()
    held = load_file(tmp_path / "full.safetensors")
    ours = load_file(base / "text_encoder" / "model.safetensors")
    theirs = load_file(tmp_path / "tuned" / "text_encoder" / "model.safetensors")
    prefix = "" if "embeddings.token_embedding.weight" in ours else "text_model."
    for key, end in (
        ("embeddings.token_embedding.weight", "diff"),
        ("final_layer_norm.weight", "w_norm"),
        ("final_layer_norm.bias", "b_norm"),
        ("encoder.layers.1.mlp.fc1.bias", "diff_b"),
    ):
        stem = key.rpartition(".")[0].replace(".", "_")
        assert torch.equal(held[f"lora_te_text_model_{stem}.{end}"], theirs[prefix + key] - ours[prefix + key]), key


@pytest.mark.parametrize("how", [{"rank": 6}, {"error": 0.2}, {"size": 40_000}], ids=str)
def test_dora_gives_the_tuned_weight_by_pefts_own_merge(tmp_path, how):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = llama(tmp_path / "base")

    def turned_and_stretched(tensor, generator):
        stretch = 1 + 0.3 * torch.rand(tensor.shape[0], 1, generator=generator, dtype=torch.float64)
        return (tensor.double() + low_rank(tensor, generator, rank=4)) * stretch - tensor.double()

    deltas = tune(base, tmp_path / "tuned", change=turned_and_stretched)
    result = lt.extract(base, tmp_path / "tuned", dora=True, dtype="F32", **how).save(tmp_path / "out")
    loaded = deltas_after_peft_load("model", AutoModelForCausalLM.from_pretrained(base), tmp_path / "out")
    judged = compare(loaded.deltas, deltas)
    stated = {tuple(layer.module.split(":")): layer.error for layer in result.layers}
    assert (judged.missing, judged.unexpected) == ((), ())
    for where, found in judged.errors.items():
        assert found == pytest.approx(stated[where], rel=1e-3, abs=2e-6)
        assert found <= how.get("error", 1)
    plain = lt.extract(base, tmp_path / "tuned", dtype="F32", **how).save(tmp_path / "plain")
    if "rank" in how:  # stretched rows are no low-rank change, but they are what a magnitude is for
        assert result.error < 0.5 * plain.error
        tokens = torch.arange(10)[None]
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")(tokens).logits
        models = [AutoModelForCausalLM.from_pretrained(base) for _ in range(2)]
        adapted = [PeftModel.from_pretrained(models[at], tmp_path / name) for at, name in enumerate(("out", "plain"))]
        off = [float((model(tokens).logits - theirs).detach().norm()) for model in adapted]
        assert off[0] < off[1]


def test_a_tied_head_is_its_embedding_and_is_counted_once(tmp_path):
    base = llama(tmp_path / "base", tied=True)
    tune(base, tmp_path / "tuned")
    for folder in ("base", "tuned"):
        path = tmp_path / folder / "model.safetensors"
        held = load_file(path)
        if folder == "tuned":
            held["model.embed_tokens.weight"] += 0.1
        held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
        save_file(held, path, {"format": "pt"})
    result = lt.extract(base, tmp_path / "tuned", rank=3).save(tmp_path / "out")
    assert not any("lm_head" in layer.module for layer in result.layers)
    assert any("lm_head is tied to" in line for line in result.warnings)
    assert any("1 embeddings changed" in line for line in result.left_out)


def test_the_same_seed_makes_the_same_bytes_whatever_the_threads(small, tmp_path):
    base, tuned, _ = small
    for name, threads in (("a", 1), ("b", 1), ("c", 3)):
        lt.extract(base, tuned, rank=4, seed=7, threads=threads).save(tmp_path / name)
    assert len({(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc"}) == 1


def test_a_pending_extraction_has_a_plan_and_computes_its_tensors_without_a_file(small, tmp_path):
    base, tuned, deltas = small
    pending = lt.extract(base, tuned, rank=2, to="peft")
    assert pending.plan.components == {"model": {"layers": len(deltas), "embeddings": 1, "norms": 5}}
    told = []
    out = tmp_path / "out"
    result = pending.save(out, progress=lambda done, total: told.append((done, total)))
    assert pending.plan.nbytes == result.size
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (pending.plan.reads, pending.plan.reads)
    ours, theirs = pending.state_dict(), load_file(out / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["schema"] == "loratools.extract/1"
    with safe_open(out / "adapter_model.safetensors", "pt") as opened:
        record = json.loads(opened.metadata()["loratools.provenance"])
    assert (record["operation"], record["parameters"]["rank"], len(record["inputs"])) == ("extract", 2, 2)
    assert pending.save(out, if_needed=True).skipped
    assert lt.open(out).kinds == ("lora",)


def test_layers_that_a_format_fuses_have_one_pair_of_factors(pipelines, tmp_path):
    base, tuned, _ = pipelines("flux1")
    result = lt.extract(base, tuned, rank=2, to="kohya").save(tmp_path / "out.safetensors")
    held = load_file(tmp_path / "out.safetensors")
    assert held["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape[0] == 2
    assert any("attn.to_q+" in layer.module for layer in result.layers)
