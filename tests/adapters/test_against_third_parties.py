"""Deltas against what lycoris-lora's layers do in their own forward pass, and against peft's get_delta_weight."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from loratools.adapters.kind import delta_of, kind_of
from loratools.adapters.to_lora import to_lora
from loratools.model import Alpha
from tests.adapters.making import adapter, lazily

ROLES = {
    "lora_up.weight": "up", "lora_down.weight": "down", "lora_mid.weight": "mid",
    "hada_w1_a": "w1_a", "hada_w1_b": "w1_b", "hada_w2_a": "w2_a", "hada_w2_b": "w2_b",
    "hada_t1": "t1", "hada_t2": "t2",
    "lokr_w1": "w1", "lokr_w1_a": "w1_a", "lokr_w1_b": "w1_b",
    "lokr_w2": "w2", "lokr_w2_a": "w2_a", "lokr_w2_b": "w2_b", "lokr_t2": "t2",
    "a1.weight": "a1", "a2.weight": "a2", "b1.weight": "b1", "b2.weight": "b2", "bm.weight": "bm",
    "weight": "scale_vector", "on_input": "on_input", "w_norm": "norm_diff", "b_norm": "norm_bias_diff",
    "diff": "diff", "diff_b": "bias_diff", "oft_blocks": "blocks", "rescale": "rescale",
}  # fmt: skip

CASES = [
    ("lora", "locon.LoConModule", {}),
    ("lora", "locon.LoConModule", {"use_tucker": True}),
    ("lora", "locon.LoConModule", {"weight_decompose": True}),
    ("lora", "locon.LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    ("loha", "loha.LohaModule", {}),
    ("loha", "loha.LohaModule", {"use_tucker": True}),
    ("loha", "loha.LohaModule", {"weight_decompose": True}),
    ("lokr", "lokr.LokrModule", {}),
    ("lokr", "lokr.LokrModule", {"use_tucker": True}),
    ("lokr", "lokr.LokrModule", {"decompose_both": True}),
    ("lokr", "lokr.LokrModule", {"full_matrix": True}),
    ("lokr", "lokr.LokrModule", {"weight_decompose": True}),
    ("full", "full.FullModule", {}),
    ("ia3", "ia3.IA3Module", {}),
    ("ia3", "ia3.IA3Module", {"train_on_input": True}),
    ("glora", "glora.GLoRAModule", {}),
    ("oft", "diag_oft.DiagOFTModule", {}),
    ("oft", "diag_oft.DiagOFTModule", {"rescaled": True, "constraint": 0.01}),
    ("boft", "boft.ButterflyOFTModule", {"rescaled": True}),
]
LAYERS = {
    "linear": lambda: nn.Linear(24, 32),
    "conv1": lambda: nn.Conv2d(24, 32, 1),
    "conv3": lambda: nn.Conv2d(24, 32, 3, padding=1),
    "conv3d": lambda: nn.Conv3d(24, 32, 3, padding=1),
}


def forward_delta(module: nn.Module, layer: nn.Module) -> torch.Tensor:
    """The change of the weight, read off the module's answers to unit impulses."""
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            probe = torch.eye(layer.in_features, dtype=layer.weight.dtype)
            return (module(probe) - module.org_forward(probe) - (module(probe * 0) - module.org_forward(probe * 0))).T
        size = layer.kernel_size
        channels = layer.weight.shape[1]
        probe = torch.zeros(channels, channels, *size, dtype=layer.weight.dtype)
        probe[(torch.arange(channels), torch.arange(channels), *(extent // 2 for extent in size))] = 1
        zero = module(probe * 0) - module.org_forward(probe * 0)
        answer = module(probe) - module.org_forward(probe) - zero
        return answer.transpose(0, 1).flip(tuple(range(2, answer.ndim)))


@pytest.mark.parametrize(
    ("kind", "name", "options", "layer"),
    [(*case, layer) for case in CASES for layer in LAYERS if "use_tucker" not in case[2] or "conv3" in layer],
)
def test_delta_is_what_lycoris_layers_do(kind, name, options, layer):
    from lycoris import modules

    torch.manual_seed(7)
    exact = kind not in ("oft", "boft")
    base = LAYERS[layer]().to(torch.float64 if exact else torch.float32)
    file, cls = name.split(".")
    rank = {"oft": 4, "boft": 8}.get(kind, 1 if "decompose_both" in options else 2)
    built = getattr(getattr(modules, file), cls)("layer", base, 1.0, rank, 3, **options).to(base.weight.dtype)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter is not base.weight and parameter is not base.bias:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (1 if parameter.ndim > 1 else 0))
    built.org_forward = base.forward
    weight, held = base.weight.detach().clone(), {}
    if kind == "full":
        held = {"diff": built.weight.detach(), "bias_diff": built.bias.detach()}
    else:
        for key, tensor in built.state_dict().items():
            if key == "dora_scale":
                output = tensor.shape[0] == weight.shape[0] and tensor.numel() == tensor.shape[0]
                held["magnitude" if output else "input_magnitude"] = tensor.reshape(-1)
            elif key in ROLES:
                held[ROLES[key]] = tensor
    factors, item = lazily(held), kind_of(kind)
    item.check(factors)
    alpha = Alpha(Fraction(3))
    constraint = Fraction(0.01) if "constraint" in options else None
    scale = alpha.scale(item.rank(factors)) if not item.constrained else Alpha().scale(None)
    ours = item.delta(factors, scale, weight, dtype="float64" if exact else "float32", constraint=constraint)
    theirs = forward_delta(built, base).reshape(weight.shape)
    assert float(torch.linalg.vector_norm(theirs)) > 1e-3
    error = float(torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs))
    assert error <= (1e-6 if exact else 2e-5)
    converted = to_lora(adapter("q", factors, kind, alpha=constraint if item.constrained else 3), base=weight)
    plain = delta_of(converted.adapter, weight, dtype="float64")
    error = float(torch.linalg.vector_norm(plain - theirs) / torch.linalg.vector_norm(theirs))
    assert error <= (1e-6 if exact and converted.exact else 3e-5)
    assert converted.exact or kind not in ("lora", "loha") or "dora" in item.kinds(factors)
    shape = item.weight_shape(factors)
    assert shape[0] in (None, weight.shape[0])
    if shape[1] is not None:
        assert shape[1:] == weight.shape[1:] or shape[1] == weight[0].numel() or layer != "linear"


def test_norm_delta_is_what_lycoris_layers_do():
    from lycoris.modules.norms import NormModule

    torch.manual_seed(1)
    layer = nn.LayerNorm(8).double()
    module = NormModule("layer", layer, 1.0).double()
    module.org_forward = layer.forward
    with torch.no_grad():
        module.w_norm.normal_()
        module.b_norm.normal_()
        probe = torch.randn(5, 8, dtype=torch.float64)
        theirs = module(probe) - layer(probe)
        factors, kind = lazily({"norm_diff": module.w_norm, "norm_bias_diff": module.b_norm}), kind_of("norm")
        one = Alpha().scale(None)
        normed = torch.nn.functional.layer_norm(probe, (8,))
        ours = normed * kind.delta(factors, one, dtype="float64") + kind.bias_delta(factors, one, dtype="float64")
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


LORA_ROLES = {"lora_A": "down", "lora_B": "up"}
PEFT = [
    ("lora", "LoraConfig", {"lora_alpha": 3}, LORA_ROLES),
    ("lora", "LoraConfig", {"lora_alpha": 3, "use_rslora": True}, LORA_ROLES),
    ("loha", "LoHaConfig", {"alpha": 3}, {f"hada_w{n}_{s}": f"w{n}_{s}" for n in (1, 2) for s in "ab"}),
    ("lokr", "LoKrConfig", {"alpha": 3}, {f"lokr_{role}": role for role in ("w1", "w2", "w2_a", "w2_b")}),
]


@pytest.mark.parametrize("layer", ["linear", "conv3"])
@pytest.mark.parametrize(("kind", "config", "options", "roles"), PEFT)
def test_delta_is_pefts_delta_weight(kind, config, options, roles, layer):
    import peft

    torch.manual_seed(3)
    model = nn.Sequential(LAYERS[layer]().double())
    settings = (
        getattr(peft, config)(r=2, target_modules=["0"], init_weights=False, **options)
        if kind != "lora"
        else (peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, **options))
    )
    wrapped = peft.get_peft_model(model, settings).double().base_model.model[0]
    held = {}
    for name, role in roles.items():
        stored = getattr(wrapped, name)
        if "default" in stored:
            found = stored["default"]
            held[role] = (found if isinstance(found, torch.Tensor) else found.weight).detach()
    factors, item = lazily(held), kind_of(kind)
    item.check(factors)
    scale = Alpha(Fraction(3), rank_stabilized=bool(options.get("use_rslora"))).scale(item.rank(factors))
    theirs = wrapped.get_delta_weight("default").detach()
    ours = item.delta(factors, scale, dtype="float64").reshape(theirs.shape)
    assert float(torch.linalg.vector_norm(ours - theirs)) <= 1e-6 * float(torch.linalg.vector_norm(theirs))


def test_embedding_delta_is_pefts_delta_weight():
    import peft

    model = nn.Sequential(nn.Embedding(11, 6))
    settings = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["0"], init_lora_weights=False)
    wrapped = peft.get_peft_model(model, settings).base_model.model[0]
    held = {"embedding_down": wrapped.lora_embedding_A["default"], "embedding_up": wrapped.lora_embedding_B["default"]}
    kind, factors = kind_of("lora"), lazily(held)
    kind.check(factors)
    assert kind.weight_shape(factors) == (11, 6)
    ours = kind.delta(factors, Alpha().scale(3), model[0].weight.detach())
    assert torch.allclose(ours, wrapped.get_delta_weight("default"), atol=1e-6)


@pytest.mark.parametrize("layer", ["linear", "conv3"])
def test_dora_delta_is_pefts_merge(layer):
    import peft

    torch.manual_seed(5)
    base = LAYERS[layer]().double()
    before = base.weight.detach().clone()
    model = nn.Sequential(base)
    settings = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights=False, use_dora=True)
    wrapped = peft.get_peft_model(model, settings).double()
    module = wrapped.base_model.model[0]
    with torch.no_grad():
        module.lora_magnitude_vector["default"].weight.mul_(1.5)
    held = {
        "down": module.lora_A["default"].weight,
        "up": module.lora_B["default"].weight,
        "magnitude": module.lora_magnitude_vector["default"].weight.reshape(-1),
    }
    kind, factors = kind_of("lora"), lazily(held)
    scale = Alpha(Fraction(3)).scale(2)
    ours = kind.delta(factors, scale, before, dtype="float64")
    theirs = wrapped.merge_and_unload()[0].weight.detach() - before
    assert float(torch.linalg.vector_norm(ours - theirs)) <= 1e-6 * float(torch.linalg.vector_norm(theirs))
    assert kind.kinds(factors) == ("lora", "dora")
