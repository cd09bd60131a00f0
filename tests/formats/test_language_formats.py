"""Adapters of language models in MLX' form and in GGUF: written by others' code, judged by the products of matrices."""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import loratools
from loratools.adapters.kind import delta_of
from loratools.errors import (
    ArchitectureMismatch,
    IncompleteAdapter,
    InternalError,
    LoratoolsError,
    MalformedFile,
    NotRepresentable,
    OutputExists,
    UnreadableForm,
    UnsupportedFile,
    UsageError,
)
from loratools.formats import gguf_names
from tests.formats.making import assert_same_tensors, read

LAYERS = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "mlp.down_proj": (32, 64)}
SCALE = 20.0


def matrices(*shape, seed=[0]):  # noqa: B006 - another one at every call, the same ones in every run
    seed[0] += 1
    return np.random.default_rng(seed[0]).standard_normal(shape).astype(np.float32)


def mlx(folder, *, dora=False):
    """(path → delta) of an MLX folder: y = x W + scale · (x · lora_a) · lora_b, as its layers compute it."""
    tensors, truth = {}, {}
    for block in range(2):
        for leaf, (rows, columns) in LAYERS.items():
            a, b = matrices(columns, 4), matrices(4, rows)
            path = f"model.layers.{block}.{leaf}"
            tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
            truth[path] = SCALE * (a.astype(np.float64) @ b.astype(np.float64)).T
            if dora:
                tensors[f"{path}.m"] = matrices(rows)
    if not dora:
        a, b = matrices(100, 4), matrices(4, 32)
        tensors |= {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
        truth["model.embed_tokens"] = SCALE * a.astype(np.float64) @ b.astype(np.float64)
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": 4, "scale": SCALE, "dropout": 0.0}
    config = {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": 2,
        "lora_parameters": parameters,
        "model": "a/b",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return truth


def assert_deltas(path, truth):
    found = loratools.open(path).adapters
    assert {item.target.paths[0] for item in found} == truth.keys()
    for item in found:
        wanted = torch.from_numpy(np.ascontiguousarray(truth[item.target.paths[0]]))
        assert torch.allclose(delta_of(item, dtype="float64"), wanted, rtol=1e-12, atol=1e-12), item.target.name


def test_mlx_factors_are_turned_and_its_scale_is_the_scale(tmp_path):
    truth = mlx(tmp_path / "mlx")
    found = loratools.inspect(tmp_path / "mlx").document
    assert (found["format"], found["producer"], found["base_model"]) == ("mlx", "mlx-lm", "a/b")
    assert found["alpha"]["scales"] == {"20.0": 7}
    assert "llm-llama" in found["candidates"]
    assert_deltas(tmp_path / "mlx", truth)


@pytest.mark.parametrize("parameters", [{"rank": 4}, {"rank": 4, "alpha": 16}, [1], None])
def test_mlx_without_a_scale_is_malformed_and_no_scale_is_made_up(parameters, tmp_path):
    mlx(tmp_path / "mlx")
    place = tmp_path / "mlx" / "adapter_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"lora_parameters": parameters}))
    with pytest.raises(MalformedFile, match="no scale") as refused:
        loratools.open(tmp_path / "mlx")
    assert refused.value.key == "lora_parameters"


def test_mlx_goes_to_peft_and_every_byte_comes_back(tmp_path):
    truth = mlx(tmp_path / "mlx")
    loratools.convert(tmp_path / "mlx", to="peft").save(tmp_path / "peft")
    assert_deltas(tmp_path / "peft", truth)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 80, "a/b")
    loratools.convert(tmp_path / "peft", to="original").save(tmp_path / "back")
    assert_same_tensors(read(tmp_path / "back"), read(tmp_path / "mlx"))
    assert (tmp_path / "back" / "adapter_config.json").read_text().split() == (
        json.dumps(json.loads((tmp_path / "mlx" / "adapter_config.json").read_text()), indent=2, sort_keys=True).split()
    )


def test_mlx_dora_is_doras(tmp_path):
    mlx(tmp_path / "mlx", dora=True)
    assert loratools.inspect(tmp_path / "mlx").document["kinds"] == ["dora", "lora"]
    loratools.convert(tmp_path / "mlx", to="peft").save(tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["use_dora"]
    loratools.convert(tmp_path / "peft", to="mlx").save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["fine_tune_type"] == "dora"
    assert_same_tensors(read(tmp_path / "again"), read(tmp_path / "mlx"))


def small_llama():
    from transformers import LlamaConfig

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, **heads)


def test_a_peft_adapter_goes_to_mlx(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(
        LlamaForCausalLM(small_llama()),
        LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "peft")
    truth = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    loratools.convert(tmp_path / "peft", to="mlx").save(tmp_path / "mlx")
    written = load_file(tmp_path / "mlx" / "adapters.safetensors")
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    assert config["lora_parameters"] == {
        "dropout": 0.0,
        "keys": ["self_attn.q_proj", "self_attn.v_proj"],
        "rank": 3,
        "scale": 4.0,
    }
    for path, delta in truth.items():
        product = config["lora_parameters"]["scale"] * (written[f"{path}.lora_a"] @ written[f"{path}.lora_b"]).T
        assert np.allclose(product, delta.numpy(), rtol=1e-5, atol=1e-6), path


def test_rows_of_an_embedding_that_peft_trains_go_along(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaForCausalLM

    rows = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 5]})
    get_peft_model(LlamaForCausalLM(small_llama()), rows).save_pretrained(tmp_path / "in")
    found = loratools.inspect(tmp_path / "in").document
    assert found["unknown_keys"] == []
    assert found["extras"] == ["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    loratools.convert(tmp_path / "in", to="peft").save(tmp_path / "out")
    assert_same_tensors(read(tmp_path / "out"), read(tmp_path / "in"))
    assert PeftModel.from_pretrained(LlamaForCausalLM(small_llama()), tmp_path / "out")


def test_mlx_states_one_scale(tmp_path):
    mlx(tmp_path / "mlx")
    loratools.convert(tmp_path / "mlx", to="peft").save(tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"layers.0.self_attn.q_proj": 8}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(NotRepresentable, match="one scale"):
        loratools.convert(tmp_path / "peft", to="mlx")
    assert loratools.convert(tmp_path / "peft", to="mlx", alpha="fold").save(tmp_path / "folded").proof.worst < 1e-6


def test_mlx_states_one_rank(tmp_path):
    folder, tensors = tmp_path / "peft", {}
    for rank, leaf in ((2, "q_proj"), (3, "v_proj")):
        stem = f"base_model.model.model.layers.0.self_attn.{leaf}"
        tensors |= {f"{stem}.lora_A.weight": matrices(rank, 8), f"{stem}.lora_B.weight": matrices(8, rank)}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    stated = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 2,
        "rank_pattern": {"v_proj": 3},
        "alpha_pattern": {"v_proj": 3},
    }
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    with pytest.raises(NotRepresentable, match="one rank, and this has 2, 3"):
        loratools.convert(folder, to="mlx")


def test_a_picture_model_is_no_mlx_adapter(tmp_path):
    stem = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    save_file(
        {f"{stem}.lora_down.weight": matrices(2, 768), f"{stem}.lora_up.weight": matrices(3072, 2)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(NotRepresentable, match="mlx has no names"):
        loratools.convert(tmp_path / "a.safetensors", to="mlx", arch="sd1")


EXPERTS, SWITCHES = 3, {"gate_proj": (24, 16), "up_proj": (24, 16), "down_proj": (16, 24)}
MIXTURES = {
    # model type: where mlx-lm's class has the experts, how checkpoints call one of them
    "qwen3-moe": ("mlp", dict(zip(SWITCHES, SWITCHES, strict=True))),
    "mixtral": ("block_sparse_moe", {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}),
}


def switches(folder, kind, *, rows=False):
    """(canonical path → delta) of an MLX folder: scale · lora_b @ lora_a.reshape(experts, -1, in), as it is fused."""
    module, _ = MIXTURES[kind]
    tensors, truth = {}, {}
    for leaf, (out, inner) in SWITCHES.items():
        a, b = matrices(EXPERTS, 4, inner), matrices(EXPERTS, out, 4)
        path = f"model.layers.1.{module}.switch_mlp.{leaf}"
        tensors |= {f"{path}.lora_a": a.reshape(-1, inner) if rows else a, f"{path}.lora_b": b}
        deltas = SCALE * b.astype(np.float64) @ a.reshape(EXPERTS, -1, inner).astype(np.float64)
        truth |= {f"model.layers.1.mlp.experts.{at}.{leaf}": delta for at, delta in enumerate(deltas)}
    a, b = matrices(16, 4), matrices(4, 16)
    tensors |= {"model.layers.1.self_attn.q_proj.lora_a": a, "model.layers.1.self_attn.q_proj.lora_b": b}
    truth["model.layers.1.self_attn.q_proj"] = SCALE * (a.astype(np.float64) @ b.astype(np.float64)).T
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    keys = ["self_attn.q_proj", *(f"{module}.switch_mlp.{leaf}" for leaf in SWITCHES)]
    parameters = {"rank": 4, "scale": SCALE, "dropout": 0.0, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters, "model": "a/b"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return truth


@pytest.mark.parametrize("rows", [False, True], ids=["three dimensions", "rows"])
@pytest.mark.parametrize("kind", MIXTURES)
def test_mlx_experts_are_one_adapter_each_and_return_bit_for_bit(kind, rows, tmp_path):
    truth = switches(tmp_path / "mlx", kind, rows=rows)
    found = loratools.inspect(tmp_path / "mlx").document
    assert (found["format"], found["adapters"], found["unknown_keys"]) == ("mlx", 10, [])
    assert f"llm-{kind}" in found["candidates"]
    assert_deltas(tmp_path / "mlx", truth)
    done = loratools.convert(tmp_path / "mlx", to="peft", arch=f"llm-{kind}").save(tmp_path / "peft")
    assert (done.proof.exact, done.proof.measured) == (0, 0)
    assert_deltas(tmp_path / "peft", truth)
    leaf = MIXTURES[kind][1]["up_proj"]
    module = MIXTURES[kind][0]
    assert f"base_model.model.model.layers.1.{module}.experts.2.{leaf}.lora_A.weight" in read(tmp_path / "peft")
    for source, to in (("mlx", "mlx"), ("peft", "original")):
        loratools.convert(tmp_path / source, to=to).save(tmp_path / f"{to} again")
        assert_same_tensors(read(tmp_path / f"{to} again"), read(tmp_path / "mlx"))


def test_pefts_stacked_experts_go_to_mlx(tmp_path):
    truth = switches(tmp_path / "mlx", "qwen3-moe")
    arch = "llm-qwen3-moe"
    loratools.convert(tmp_path / "mlx", to="peft", names="whole", arch=arch).save(tmp_path / "stacked")
    stacked = tmp_path / "stacked" / "adapter_model.safetensors"
    assert any("experts.base_layer" in key for key in read(stacked))
    for at in range(2):  # with the record of what was fused, and without it
        loratools.convert(tmp_path / "stacked", to="mlx", arch=arch).save(tmp_path / f"same {at}")
        assert_same_tensors(read(tmp_path / f"same {at}"), read(tmp_path / "mlx"))
        save_file(load_file(stacked), stacked, {"format": "pt"})
    loratools.convert(tmp_path / "mlx", to="peft", arch=arch).save(tmp_path / "each")
    plain = tmp_path / "each" / "adapter_model.safetensors"
    kept = {key: tensor for key, tensor in load_file(plain).items() if "experts.1.up_proj" not in key}
    save_file(kept, plain, {"format": "pt"})
    done = loratools.convert(tmp_path / "each", to="mlx", arch=arch).save(tmp_path / "again")
    written, config = read(tmp_path / "again"), json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    ups = written["model.layers.1.mlp.switch_mlp.up_proj.lora_b"]
    assert (list(ups.shape), done.proof.measured) == ([EXPERTS, 24, 4], 0)
    assert not ups[1].any()
    assert "mlp.switch_mlp.up_proj" in config["lora_parameters"]["keys"]
    truth["model.layers.1.mlp.experts.1.up_proj"] *= 0
    assert_deltas(tmp_path / "again", truth)


def test_experts_of_an_unknown_mixture_have_no_name_in_mlx(tmp_path):
    switches(tmp_path / "mlx", "qwen3-moe")
    loratools.convert(tmp_path / "mlx", to="peft", names="whole", arch="llm-qwen3-moe").save(tmp_path / "stacked")
    with pytest.raises(NotRepresentable, match="by the model's type"):
        loratools.convert(tmp_path / "stacked", to="mlx")


def test_factors_of_experts_that_do_not_belong_together_are_told(tmp_path):
    stem = "model.layers.0.mlp.switch_mlp.gate_proj"
    save_file({f"{stem}.lora_a": matrices(4, 3, 8), f"{stem}.lora_b": matrices(4, 16, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(IncompleteAdapter, match="belong together"):
        loratools.open(tmp_path / "a.safetensors")
    # Of one number of elements, but of experts that are others'; and a million experts of nothing.
    for a, b in ((matrices(6, 2, 8), matrices(3, 16, 4)), (matrices(0, 8), matrices(1_000_000, 16, 0))):
        save_file({f"{stem}.lora_a": a, f"{stem}.lora_b": b}, tmp_path / "a.safetensors")
        with pytest.raises(IncompleteAdapter, match="belong together") as refused:
            loratools.open(tmp_path / "a.safetensors")
        assert (refused.value.key, refused.value.path) == (f"{stem}.lora_a", str(tmp_path / "a.safetensors"))
    stem = "model.layers.0.feed_forward.gate_proj"
    save_file({f"{stem}.lora_a": matrices(4, 2, 8), f"{stem}.lora_b": matrices(4, 16, 2)}, tmp_path / "b.safetensors")
    with pytest.raises(IncompleteAdapter, match="stacked experts"):
        loratools.open(tmp_path / "b.safetensors")


def gguf_file(path, architecture, *, alpha=8.0, kind=None, invocation=()):
    """(transformers' path → delta) of a GGUF adapter, laid out as llama.cpp's converter of PEFT folders does it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_string(gguf.Keys.Adapter.LORA_TASK_NAME, "translate")
    writer.add_array(gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS, invocation)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names, truth = gguf.get_tensor_name_map(arch, 12), {}
    for block in (0, 11):
        for leaf, (rows, columns) in LAYERS.items():
            a, b = matrices(4, columns), matrices(rows, 4)
            hf = f"model.layers.{block}.{leaf}"
            native = names.get_name(f"{hf}.weight", (".weight",))
            if kind is None:
                writer.add_tensor(f"{native}.lora_a", a.astype(np.float16))
                a = a.astype(np.float16)
            else:
                raw = gguf.quants.quantize(a, kind)
                writer.add_tensor(f"{native}.lora_a", raw, raw_dtype=kind)
                a = gguf.quants.dequantize(raw, kind)
            writer.add_tensor(f"{native}.lora_b", b)
            truth[hf] = (alpha / 4 if alpha else 1) * b.astype(np.float64) @ a.astype(np.float64)
    if kind is None:
        a, b = matrices(4, 100), matrices(32, 4)
        writer.add_tensor("token_embd.weight.lora_a", np.ascontiguousarray(a.T))
        writer.add_tensor("token_embd.weight.lora_b", b)
        truth["model.embed_tokens"] = (alpha / 4 if alpha else 1) * (b.astype(np.float64) @ a.astype(np.float64)).T
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return truth


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "gemma3", "phi3", "qwen2", "qwen3"])
def test_gguf_adapters_are_read_under_transformers_names(architecture, tmp_path, monkeypatch):
    if architecture == "phi3":
        monkeypatch.setitem(LAYERS, "self_attn.qkv_proj", (96, 32))
        monkeypatch.delitem(LAYERS, "self_attn.q_proj")
        monkeypatch.delitem(LAYERS, "self_attn.k_proj")
    truth = gguf_file(tmp_path / "a.gguf", architecture)
    found = loratools.inspect(tmp_path / "a.gguf").document
    assert (found["format"], found["unknown_keys"]) == ("gguf", [])
    assert found["architecture"] == {"gemma3": "llm-gemma3-text"}.get(architecture, f"llm-{architecture}")
    assert_deltas(tmp_path / "a.gguf", truth)
    loratools.convert(tmp_path / "a.gguf", to="peft").save(tmp_path / "peft")
    assert_deltas(tmp_path / "peft", truth)
    loratools.convert(tmp_path / "peft", to="gguf").save(tmp_path / "b.gguf")  # whose model the metadata remember
    assert_same_gguf(tmp_path / "b.gguf", tmp_path / "a.gguf")
    with pytest.raises(NotRepresentable, match="--to gguf alone"):
        loratools.convert(tmp_path / "peft", to="original")


def stated(path):
    """What gguf's own reader finds: (values of the header but ours, name → type, shape and bytes)."""
    reader = gguf.GGUFReader(path)
    kept = {
        key: field.contents() for key, field in reader.fields.items() if not key.startswith(("GGUF.", "loratools."))
    }
    tensors = {item.name: (item.tensor_type, item.shape.tolist(), item.data.tobytes()) for item in reader.tensors}
    return kept, tensors


def assert_same_gguf(ours, theirs):
    """Equal values, names, types, shapes and bytes, as gguf's own reader has them."""
    for one, other in zip(stated(ours), stated(theirs), strict=True):
        assert one == other


def peft_folder(folder, layers=LAYERS, *, dtype=np.float32, **config):
    """(transformers' path → delta) of a PEFT folder of rank 4."""
    tensors, truth = {}, {}
    scale = config.get("lora_alpha", 4) / 4
    for leaf, (rows, columns) in layers.items():
        path = f"model.layers.3.{leaf}"
        a, b = matrices(4, columns).astype(dtype), matrices(rows, 4).astype(dtype)
        tensors |= {f"base_model.model.{path}.lora_A.weight": a, f"base_model.model.{path}.lora_B.weight": b}
        truth[path] = scale * b.astype(np.float64) @ a.astype(np.float64)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    stated = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(stated))
    return truth


@pytest.mark.parametrize("alpha", [4, 16, 2.5])
def test_a_peft_adapter_goes_to_gguf_and_back(alpha, tmp_path):
    truth = peft_folder(tmp_path / "peft", lora_alpha=alpha)
    done = loratools.convert(tmp_path / "peft", to="gguf", arch="llm-qwen3").save(tmp_path / "a.gguf")
    assert (done.proof.identical, done.size) == (3, (tmp_path / "a.gguf").stat().st_size)
    header, tensors = stated(tmp_path / "a.gguf")
    assert header == {
        "general.architecture": "qwen3", "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": 0.0 if alpha == 4 else alpha,  # none, where every scale is 1
    }  # fmt: skip
    assert tensors["blk.3.attn_k.weight.lora_b"][:2] == (gguf.GGMLQuantizationType.F32, [4, 16])
    assert_deltas(tmp_path / "a.gguf", truth)
    loratools.convert(tmp_path / "a.gguf", to="original").save(tmp_path / "back")
    assert_same_tensors(read(tmp_path / "back"), read(tmp_path / "peft"))
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert config == json.loads((tmp_path / "peft" / "adapter_config.json").read_text())


def test_a_gguf_file_appears_whole_and_names_itself(tmp_path, monkeypatch):
    from loratools.tensors import gguf_layout

    peft_folder(tmp_path / "peft")
    pending = loratools.convert(tmp_path / "peft", to="gguf", arch="llm-qwen2")
    with pytest.raises(UsageError, match=r"one \.gguf file"):
        pending.save(tmp_path / "a.safetensors")
    whole = gguf_layout._header
    monkeypatch.setattr(gguf_layout, "_header", lambda *given: whole(*given)[:-32])
    with pytest.raises(LoratoolsError):
        pending.save(tmp_path / "a.gguf")
    assert [item.name for item in tmp_path.iterdir()] == ["peft"]
    monkeypatch.undo()
    pending.save(tmp_path / "a.gguf")
    with pytest.raises(OutputExists):
        pending.save(tmp_path / "a.gguf")
    assert pending.save(tmp_path / "a.gguf", if_needed=True).skipped


def test_metadata_go_to_gguf_and_back_whole(tmp_path):
    peft_folder(tmp_path / "peft")
    weights = tmp_path / "peft" / "adapter_model.safetensors"
    kept = {"empty": "", "long": "x" * 100_000, "general.name": "né"}
    save_file(load_file(weights), weights, {"format": "pt", "general.alignment": "64", **kept})
    loratools.convert(tmp_path / "peft", to="gguf", arch="llm-qwen2").save(tmp_path / "a.gguf")
    header, _ = stated(tmp_path / "a.gguf")
    assert {key: header.get(key) for key in kept} == kept
    assert "general.alignment" not in header  # a number there, of how another file's tensors stand
    loratools.convert(tmp_path / "a.gguf", to="peft").save(tmp_path / "again")
    with safe_open(tmp_path / "again" / "adapter_model.safetensors", "numpy") as file:
        assert {key: file.metadata().get(key) for key in kept} == kept


@pytest.mark.parametrize(("key", "other"), [("adapter.lora.alpha", "8"), ("note", "other"), ("note", "")])
def test_a_gguf_header_that_says_something_else_is_not_left(key, other, tmp_path, monkeypatch):
    from loratools.tensors import gguf_layout, writer
    from loratools.tensors.lazy import LazyTensor

    whole = gguf_layout._header
    monkeypatch.setattr(gguf_layout, "_header", lambda entries, metadata: whole(entries, metadata | {key: other}))
    metadata = {"general.architecture": "qwen2", "adapter.lora.alpha": "16", "note": "mine"}
    tensors = {"blk.0.attn_q.weight.lora_a": LazyTensor.zeros("F16", (4, 3))}

    def written():
        return writer.write(tmp_path / "a.gguf", tensors, metadata, inputs=(), container="gguf")

    with pytest.raises(InternalError, match="metadata"):
        written()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    written()
    assert stated(tmp_path / "a.gguf")[0] == metadata | {"adapter.lora.alpha": 16.0}


def test_what_gguf_cannot_hold_is_refused_with_the_reason(tmp_path):
    peft_folder(tmp_path / "peft", lora_alpha=16, alpha_pattern={"q_proj": 8})

    def to_gguf(name="peft", arch="llm-qwen2", **options):
        return loratools.convert(tmp_path / name, to="gguf", arch=arch, **options)

    with pytest.raises(ArchitectureMismatch, match="names its model"):
        to_gguf(arch=None)
    with pytest.raises(NotRepresentable, match="number of heads"):
        to_gguf(arch="llm-llama")
    with pytest.raises(NotRepresentable, match="one alpha"):
        to_gguf()
    to_gguf(alpha="fold").save(tmp_path / "folded.gguf")  # by 2 and by 4, which is exact
    assert_deltas(
        tmp_path / "folded.gguf",
        {
            item.target.paths[0]: delta_of(item, dtype="float64").numpy()
            for item in loratools.open(tmp_path / "peft").adapters
        },
    )
    peft_folder(tmp_path / "double", dtype=np.float64)
    with pytest.raises(NotRepresentable, match="F64") as refused:
        to_gguf("double")
    assert Path(refused.value.path).is_relative_to(tmp_path / "double")
    assert refused.value.key.endswith("mlp.down_proj")
    to_gguf("double", dtype="F32").save(tmp_path / "single.gguf")
    # An alpha of 0 says there is none, and a scale of 1; and a float of 32 bits has an end.
    for name, alpha, why in (("none", 0, "for none"), ("huge", 1e39, "32 bits"), ("third", 0.1, "32 bits")):
        peft_folder(tmp_path / name, lora_alpha=alpha)
        with pytest.raises(NotRepresentable, match=why):
            to_gguf(name)
    to_gguf("none", alpha="fold").save(tmp_path / "none.gguf")
    assert_deltas(tmp_path / "none.gguf", {f"model.layers.3.{leaf}": np.zeros(size) for leaf, size in LAYERS.items()})
    peft_folder(tmp_path / "phi", {"self_attn.q_proj": (32, 32)})
    with pytest.raises(NotRepresentable, match="no name in the naming gguf phi3") as refused:
        to_gguf("phi", arch="llm-phi3")
    assert refused.value.key.endswith("layers.3.self_attn.q_proj")


def test_an_alpha_of_zero_is_none_in_gguf(tmp_path):
    assert_deltas(tmp_path / "a.gguf", gguf_file(tmp_path / "a.gguf", "qwen2", alpha=0.0))


def test_quantised_factors_are_the_floats_they_mean(tmp_path):
    assert_deltas(tmp_path / "a.gguf", gguf_file(tmp_path / "a.gguf", "qwen2", kind=gguf.GGMLQuantizationType.Q8_0))


def test_an_adapter_that_waits_for_an_invocation_is_refused(tmp_path):
    gguf_file(tmp_path / "a.gguf", "qwen2", invocation=[3, 4])
    with pytest.raises(UnreadableForm, match="invocation") as refusal:
        loratools.convert(tmp_path / "a.gguf", to="peft")
    assert (refusal.value.key, refusal.value.hint) == ("adapter.alora.invocation_tokens", "llama.cpp loads it")
    assert loratools.inspect(tmp_path / "a.gguf").document["format"] == "gguf"


def test_rows_that_llama_cpp_has_moved_are_told_and_not_converted(tmp_path):
    gguf_file(tmp_path / "a.gguf", "llama")
    found = loratools.inspect(tmp_path / "a.gguf").document
    assert (found["format"], found["adapters"], found["unknown_keys"]) == ("gguf", 7, [])
    with pytest.raises(NotRepresentable, match="number of heads"):
        loratools.convert(tmp_path / "a.gguf", to="peft")


def test_a_damaged_gguf_file_is_malformed(tmp_path):
    gguf_file(tmp_path / "a.gguf", "qwen2")
    data = (tmp_path / "a.gguf").read_bytes()
    for at, raw in {
        "short": data[: len(data) // 2],
        "torn": data[:40],
        "counts": data[:8] + b"\xff" * 8 + data[16:],
    }.items():
        (tmp_path / f"{at}.gguf").write_bytes(raw)
        with pytest.raises(MalformedFile):
            loratools.open(tmp_path / f"{at}.gguf")
    (tmp_path / "other.gguf").write_bytes(b"PK\3\4 and more")
    with pytest.raises(MalformedFile):
        loratools.open(tmp_path / "other.gguf")


def test_an_alpha_that_is_no_number_is_malformed_by_its_key(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen2")
    writer.add_string(gguf.Keys.Adapter.LORA_ALPHA, "sixteen")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", matrices(4, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(MalformedFile) as refused:
        loratools.open(tmp_path / "a.gguf")
    assert refused.value.key == gguf.Keys.Adapter.LORA_ALPHA
    assert refused.value.path == str(tmp_path / "a.gguf")


def test_gguf_needs_its_package(tmp_path, monkeypatch):
    gguf_file(tmp_path / "a.gguf", "qwen2")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedFile, match="gguf") as refusal:
        loratools.open(tmp_path / "a.gguf")
    assert "loratools[gguf]" in refusal.value.hint
    peft_folder(tmp_path / "peft")
    gguf_names._names.cache_clear()
    gguf_names._natives.cache_clear()
    with pytest.raises(UnsupportedFile, match="gguf") as refusal:
        loratools.convert(tmp_path / "peft", to="gguf", arch="llm-qwen2")
    assert "loratools[gguf]" in refusal.value.hint
