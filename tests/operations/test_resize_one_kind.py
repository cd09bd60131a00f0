"""resize of PEFT's other kinds: a configuration holds one kind, so that all layers become LoRA once some have to."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file

import loratools as lt
from tests.judges.load import deltas_after_peft_load

RANKS = {"q_proj": 2, "v_proj": 5, "down_proj": 3}
INITIAL = 6


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=100, **sizes))


def trained(folder, config):
    """A folder that PEFT wrote, of random values; an AdaLoRA's layers are pruned to the ranks of RANKS."""
    from peft import get_peft_model

    model, generator = get_peft_model(llama(), config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "hada_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            if "lora_E" in name:
                (rank,) = (rank for layer, rank in RANKS.items() if layer in name)
                parameter[rank:] = 0
    if hasattr(config, "init_r"):
        config.rank_pattern = {
            f"{name.removeprefix('base_model.model.').removesuffix('.default')}": (parameter != 0).flatten().tolist()
            for name, parameter in model.named_parameters()
            if "lora_E" in name
        }
    model.save_pretrained(folder)
    return folder


def adalora(folder):
    from peft import AdaLoraConfig

    how = {"init_r": INITIAL, "target_r": 3, "lora_alpha": 5, "total_step": 10, "tinit": 1, "tfinal": 1}
    return trained(folder, AdaLoraConfig(**how, target_modules=list(RANKS)))


def loha(folder):
    from peft import LoHaConfig

    return trained(folder, LoHaConfig(r=3, alpha=2, target_modules=list(RANKS)))


def deltas(folder):
    """Every layer's change as PEFT's own model has it."""
    found = deltas_after_peft_load("model", llama(), folder)
    # PEFT warns of the masks that it writes itself, and of a field of its own.
    assert all("rank_pattern keys did not match" in text or "deprecated" in text for text in found.complaints), (
        found.complaints
    )
    return found.deltas


def taken(folder):
    """The bytes of its files."""
    return sum(path.stat().st_size for path in folder.glob("adapter_*"))


def nearest(delta, rank):
    """How near a matrix of that rank comes, relatively."""
    values = torch.linalg.svdvals(delta)
    return float(values[rank:].norm() / values.norm())


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_an_adalora_of_which_some_layers_shrink_becomes_lora_as_a_whole(tmp_path, rank):
    before = deltas(adalora(tmp_path / "in"))
    done = lt.resize(tmp_path / "in", rank=rank).save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    after = deltas(tmp_path / "out")
    assert after.keys() == before.keys()
    for (_, path), delta in before.items():
        kept = min(rank, RANKS[path.rpartition(".")[2]])
        off = float((after["model", path] - delta).norm() / delta.norm())
        assert off == pytest.approx(nearest(delta, kept), rel=1e-3, abs=1e-6), path
        row = next(row for row in done.layers if row.module == f"model:{path}")
        assert row.new_rank == kept
        assert row.error == pytest.approx(off, rel=1e-3, abs=1e-6)
    alike = 2 * sum(own <= rank for own in RANKS.values())
    assert any(line.startswith(f"{alike} layers of adalora that need not shrink") for line in done.warnings)


def test_an_adalora_that_fits_stays_what_it_is(tmp_path):
    adalora(tmp_path / "in")
    done = lt.resize(tmp_path / "in", rank=5).save(tmp_path / "out")
    held = load_file(tmp_path / "in" / "adapter_model.safetensors")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert held.keys() == found.keys()
    assert all(torch.equal(held[key], value) for key, value in found.items())
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "ADALORA"
    assert not any("become LoRA too" in line for line in done.warnings)


@pytest.mark.parametrize("make", [adalora, loha])
@pytest.mark.parametrize("how", ["error", "size"])
def test_an_error_and_a_size_are_kept_in_one_kind(tmp_path, make, how):
    before = deltas(make(tmp_path / "in"))
    limit = 0.6 if how == "error" else 3 * taken(tmp_path / "in") // 4
    done = lt.resize(tmp_path / "in", **{how: limit}).save(tmp_path / "out")
    after = deltas(tmp_path / "out")
    if how == "size":
        assert 0.95 * limit <= taken(tmp_path / "out") <= limit
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    for place, delta in before.items():
        row = next(row for row in done.layers if row.module == ":".join(place))
        off = float((after[place] - delta).norm() / delta.norm())
        assert off == pytest.approx(row.error, rel=1e-3, abs=1e-6)
        assert off <= (limit if how == "error" else 1)
