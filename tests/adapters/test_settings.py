"""What only a PEFT configuration says, judged by what peft's layers do once it has saved and loaded the file."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from loratools.adapters.difference import difference
from loratools.adapters.exact import identical
from loratools.adapters.kind import delta_of, kind_of
from loratools.adapters.settings import settings_of
from loratools.adapters.to_lora import to_lora
from loratools.errors import ArchitectureMismatch, NotRepresentable
from loratools.model import Alpha, Target
from tests.adapters.making import adapter

ROLES = {"lora_A": "down", "lora_B": "up", "lora_E": "singular", "oft_R.weight": "skew"} | {
    f"{family}_{role}": role for family in ("lokr", "hada") for role in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b")
}
LAYERS = {
    "linear": lambda: nn.Linear(24, 32),
    "conv1": lambda: nn.Conv2d(24, 32, 1),
    "conv3": lambda: nn.Conv2d(24, 32, 3, padding=1),
}


def saved(tmp_path, config, layer="linear", *, seed=3, change=None):
    """(our adapter with its configuration's settings, the base weight, the module that peft loads from the file)."""
    torch.manual_seed(seed)
    base = LAYERS[layer]().double()
    weight, bias = base.weight.detach().clone(), base.bias.detach().clone()
    model = peft.get_peft_model(nn.Sequential(base), config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * 0.3)
    if change:
        change(model)
    model.save_pretrained(tmp_path)
    fresh = LAYERS[layer]().double()
    with torch.no_grad():
        fresh.weight.copy_(weight)
        fresh.bias.copy_(bias)
    loaded = peft.PeftModel.from_pretrained(nn.Sequential(fresh), tmp_path).double().eval()
    stated = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    held = {ROLES[key.removeprefix("base_model.model.0.")]: tensor for key, tensor in tensors.items()}
    kind = {"ADALORA": "lora", "OFT": "oft", "LOKR": "lokr", "LOHA": "loha"}[stated["peft_type"]]
    alpha = None if kind == "oft" else Fraction(stated.get("lora_alpha", stated.get("alpha")))
    item = replace(adapter("q", held, kind), settings=settings_of(stated), alpha=Alpha(alpha, "config"))
    kind_of(kind).check(item.factors)
    return item, weight, loaded.base_model.model[0]


def forward_delta(module, weight):
    """The change of the weight, read off the module's answers to unit impulses (linear or 1×1)."""
    with torch.no_grad():
        probe = torch.eye(weight.shape[1], dtype=weight.dtype)
        probe = probe if weight.ndim == 2 else probe[:, :, None, None]
        answer = module(probe) - module(probe * 0)
    return answer.reshape(weight.shape[1], weight.shape[0]).T.reshape(weight.shape) - weight


def merged_delta(module, weight):
    module.merge()
    return module.get_base_layer().weight.detach() - weight


def near(ours, theirs, limit=1e-9):
    norm = torch.linalg.vector_norm
    assert float(norm(theirs)) > 1e-3
    assert float(norm(ours - theirs)) <= limit * float(norm(theirs))


@pytest.mark.parametrize("layer", ["linear", "conv1", "conv3"])
@pytest.mark.parametrize("alpha", [5, 0])
def test_adalora_delta_is_what_pefts_loaded_layer_does(tmp_path, layer, alpha):
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=alpha, total_step=10, tinit=1, tfinal=1, target_modules=["0"]
    )
    item, weight, module = saved(tmp_path, config, layer)
    assert "singular" in item.factors
    assert item.settings == {"init_r": 4}
    found = delta_of(item, weight, dtype="float64")
    if layer != "conv3":
        near(found, forward_delta(module, weight), 1e-7)
    near(found, merged_delta(module, weight), 1e-7)
    plain = to_lora(item, base=weight)
    assert plain.exact
    assert set(plain.adapter.factors) == {"down", "up"}
    near(delta_of(plain.adapter, weight, dtype="float64"), found, 1e-13)


@pytest.mark.parametrize("alpha", [5, 0])
def test_pruned_adalora_keeps_the_divisor_that_training_began_with(tmp_path, alpha):
    def prune(model):
        model.peft_config["default"].rank_pattern = {"0.lora_E.default": [True, False, True, False]}

    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=alpha, total_step=10, tinit=1, tfinal=1, target_modules=["0"]
    )
    item, weight, module = saved(tmp_path, config, change=prune)
    assert item.rank == 2
    assert module.ranknum["default"].detach().item() == 4
    near(delta_of(item, dtype="float64"), forward_delta(module, weight), 1e-7)


def test_adalora_without_its_configuration_is_never_guessed():
    held = {"down": torch.ones(2, 5), "up": torch.ones(6, 2), "singular": torch.ones(2, 1)}
    item = adapter("q", held, alpha=3)
    for attempt in (
        lambda: delta_of(item),
        lambda: to_lora(item),
        lambda: difference([item], [replace(item, factors={**item.factors, "up": item.factors["down"]})]),
    ):
        with pytest.raises(NotRepresentable, match="init_r"):
            attempt()
    assert identical(item, item)
    with pytest.raises(NotRepresentable):
        kind_of("lora").fuse_rows([item.factors, item.factors], (6, 6))


TURNS = [
    {"oft_block_size": 4},
    {"oft_block_size": 4, "use_cayley_neumann": False},
    *({"oft_block_size": 4, "num_cayley_neumann_terms": terms} for terms in (1, 2, 3, 4, 6, 8)),
    {"r": 2, "oft_block_size": 0},
    {"oft_block_size": 8, "block_share": True},
    {"oft_block_size": 4, "coft": True, "eps": 0.1},
    {"oft_block_size": 4, "coft": True, "eps": 0.1, "block_share": True, "use_cayley_neumann": False},
]


@pytest.mark.parametrize("layer", ["linear", "conv1", "conv3"])
@pytest.mark.parametrize("options", TURNS)
def test_oft_delta_is_what_pefts_loaded_layer_does(tmp_path, layer, options):
    item, weight, module = saved(tmp_path, peft.OFTConfig(target_modules=["0"], **options), layer)
    found = delta_of(item, weight, dtype="float64")
    if options.get("num_cayley_neumann_terms") == 1:
        assert not found.any()
        return
    if layer != "conv3":
        near(found, forward_delta(module, weight), 1e-6)
    near(found, merged_delta(module, weight), 1e-6)


def test_oft_without_its_configuration_is_never_guessed(tmp_path):
    item, weight, _ = saved(tmp_path, peft.OFTConfig(target_modules=["0"], oft_block_size=4))
    with pytest.raises(NotRepresentable, match="config"):
        delta_of(replace(item, settings={}), weight)
    with pytest.raises(ArchitectureMismatch):
        delta_of(item, weight[:, :20])
    other = replace(item, settings={**item.settings, "num_cayley_neumann_terms": 3})
    assert identical(item, item)
    assert not identical(item, other)
    with pytest.raises(NotRepresentable):
        difference([item], [other])
    assert difference([item], [other], weight).relative_error > 1e-6


@pytest.mark.parametrize("layer", ["linear", "conv1", "conv3"])
@pytest.mark.parametrize("r", [2, 16])
@pytest.mark.parametrize("both", [False, True])
def test_lokr_is_scaled_by_alpha_over_r_also_where_both_factors_are_whole(tmp_path, layer, r, both):
    config = peft.LoKrConfig(r=r, alpha=3, target_modules=["0"], init_weights=False, decompose_both=both)
    item, weight, module = saved(tmp_path, config, layer)
    whole = {"w1", "w2"} <= set(item.factors)
    assert whole == (r == 16)
    assert item.rank == r
    found = delta_of(item, weight, dtype="float64")
    near(found, forward_delta(module, weight) if layer != "conv3" else merged_delta(module, weight), 1e-6)
    near(delta_of(to_lora(item, base=weight).adapter, weight, dtype="float64"), found, 2e-5)


@pytest.mark.parametrize("layer", ["linear", "conv1"])
def test_loha_is_scaled_by_alpha_over_r(tmp_path, layer):
    config = peft.LoHaConfig(r=2, alpha=3, target_modules=["0"], init_weights=False)
    item, weight, module = saved(tmp_path, config, layer)
    near(delta_of(item, weight, dtype="float64"), forward_delta(module, weight), 1e-6)


def test_settings_are_pefts_defaults_where_a_configuration_is_silent():
    assert settings_of({"peft_type": "LORA", "r": 4}) == {}
    assert settings_of({"peft_type": "LOKR", "r": 4}, r=16) == {"r": 16}
    defaults = settings_of({"peft_type": "OFT"})
    ours = peft.OFTConfig(target_modules=["0"])
    assert defaults == {name: getattr(ours, name) for name in defaults}
    assert settings_of({"peft_type": "ADALORA"}) == {"init_r": peft.AdaLoraConfig(total_step=9).init_r}
    assert settings_of({"peft_type": "LOKR"}) == {"r": peft.LoKrConfig().r}


def test_regrouping_keeps_the_settings():
    from loratools.adapters.regroup import regroup

    held = {"w1": torch.randn(4, 3), "w2": torch.randn(3, 2)}
    parts = [
        replace(adapter(path, {**held, "w1": torch.randn(4, 3)}, "lokr", alpha=3), settings={"r": 16})
        for path in ("a", "b")
    ]
    target = Target("unet", ("a", "b"), (1, 1))
    fused = regroup(parts, lambda *_: target).adapters[0]
    expected = torch.cat([delta_of(part, dtype="float64") for part in parts])
    near(delta_of(fused, dtype="float64"), expected, 1e-12)
    again = regroup([fused], lambda _, path: Target("unet", (path,))).adapters
    near(torch.cat([delta_of(part, dtype="float64") for part in again]), expected, 1e-12)
    other = replace(parts[1], settings={"r": 8})
    mixed = regroup([parts[0], other], lambda *_: target).adapters[0]
    expected = torch.cat([delta_of(part, dtype="float64") for part in (parts[0], other)])
    near(delta_of(mixed, dtype="float64"), expected, 1e-6)


@pytest.mark.parametrize("sizes", [(8, 24), (16, 16), (32,)])
def test_rows_of_inputs_turned_and_of_adalora_are_rows_of_the_delta(tmp_path, sizes):
    turned, weight, _ = saved(tmp_path / "oft", peft.OFTConfig(target_modules=["0"], oft_block_size=4))
    grown = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, tinit=1, tfinal=1, target_modules=["0"])
    ranked, _, _ = saved(tmp_path / "adalora", grown)
    for item in (turned, ranked):
        whole = delta_of(item, weight, dtype="float64").split(sizes)
        parts = kind_of(item.kind).split_rows(item.factors, sizes)
        for part, rows, piece in zip(parts, weight.split(sizes), whole, strict=True):
            near(delta_of(replace(item, factors=part), rows, dtype="float64"), piece, 1e-13)
