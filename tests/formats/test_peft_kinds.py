"""LoHa, LoKr and (IA)³ in PEFT folders, judged by `PeftModel.from_pretrained` and by peft's own merge."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from loratools.errors import NotRepresentable
from loratools.operations.convert import convert
from loratools.operations.lora import open_lora

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FORWARD = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
CONV1 = "down_blocks.0.attentions.0.proj_in"
CONV3 = "down_blocks.0.resnets.0.conv1"
LAYERS = {
    LINEAR: lambda: nn.Linear(24, 36, dtype=torch.float64),
    FORWARD: lambda: nn.Linear(64, 24, dtype=torch.float64),
    CONV1: lambda: nn.Conv2d(16, 24, 1, dtype=torch.float64),
    CONV3: lambda: nn.Conv2d(16, 24, 3, padding=1, dtype=torch.float64),
}
CONFIGS = {
    "loha": lambda: peft.LoHaConfig(r=4, alpha=3, target_modules=[*LAYERS], rank_pattern={"to_q": 2}),
    "loha-tucker": lambda: peft.LoHaConfig(r=4, alpha=3, target_modules=[*LAYERS], use_effective_conv2d=True),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=[*LAYERS], alpha_pattern={"to_q": 5}),
    "lokr-whole": lambda: peft.LoKrConfig(r=64, alpha=48, target_modules=[*LAYERS]),
    "lokr-both": lambda: peft.LoKrConfig(r=1, alpha=3, target_modules=[*LAYERS], decompose_both=True),
    "lokr-factor": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=[*LAYERS], decompose_factor=2),
    "lokr-tucker": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=[*LAYERS], use_effective_conv2d=True),
    "ia3": lambda: peft.IA3Config(target_modules=[*LAYERS], feedforward_modules=[FORWARD, CONV3]),
}


def model():
    """Modules by the names of SD1's UNet, seeded."""
    torch.manual_seed(0)
    root = nn.Module()
    for path, make in LAYERS.items():
        at = root
        *above, leaf = path.split(".")
        for word in above:
            if not hasattr(at, word):
                at.add_module(word, nn.Module())
            at = getattr(at, word)
        at.add_module(leaf, make())
    return root


def saved(folder, kind):
    """A PEFT folder whose every factor is random, as peft writes it."""
    wrapped = peft.get_peft_model(model(), CONFIGS[kind]())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + noise / 8 if "ia3" in name else noise / parameter[0].numel() ** 0.5)
    wrapped.save_pretrained(folder)
    return folder


def merged(folder):
    """path → weight and bias after peft loaded and merged the folder."""
    found = peft.PeftModel.from_pretrained(model(), folder).double().merge_and_unload()
    return found.state_dict()


def near(ours, theirs, limit):
    assert ours.keys() == theirs.keys()
    before = model().state_dict()
    for name, tensor in theirs.items():
        change = (tensor - before[name]).norm()
        assert float((ours[name] - tensor).norm()) <= limit * float(change), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_peft_saved_is_written_so_that_peft_makes_the_same_of_it(tmp_path, kind):
    source = saved(tmp_path / "in", kind)
    result = convert(source, to="peft", arch="sd1").save(tmp_path / "out")
    assert result.proof.identical == len(LAYERS)
    near(merged(tmp_path / "out"), merged(source), 0)
    ours, theirs = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("out", "in"))
    assert ours["peft_type"] == theirs["peft_type"]


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_way_back_gives_tensors_and_configuration_as_they_were(tmp_path, kind):
    source, back = saved(tmp_path / "in", kind), tmp_path / "back"
    convert(source, to="peft", arch="sd1").save(tmp_path / "out")
    convert(tmp_path / "out", to="original").save(back)
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (back, source))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (back, source))
    assert ours == theirs


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "ia3"])
def test_peft_to_kohya_and_back_makes_the_same_delta_in_peft(tmp_path, kind):
    """peft divides by r where kohya's readers multiply whole LoKr factors by 1: the scale moves into a factor."""
    source = saved(tmp_path / "in", kind)
    convert(source, to="kohya", arch="sd1").save(tmp_path / "k.safetensors")
    convert(tmp_path / "k.safetensors", to="peft", arch="sd1").save(tmp_path / "back")
    near(merged(tmp_path / "back"), merged(source), 1e-6)


def test_whole_lokr_factors_hold_their_scale_in_kohya(tmp_path):
    source = saved(tmp_path / "in", "lokr-whole")
    convert(source, to="kohya", arch="sd1").save(tmp_path / "k.safetensors")
    held = load_file(tmp_path / "k.safetensors")
    before = load_file(source / "adapter_model.safetensors")
    stem = f"lora_unet_{LINEAR.replace('.', '_')}"
    assert f"{stem}.alpha" not in held
    assert torch.equal(held[f"{stem}.lokr_w2"], before[f"base_model.model.{LINEAR}.lokr_w2"])
    assert held[f"{stem}.lokr_w1"].allclose(before[f"base_model.model.{LINEAR}.lokr_w1"] * (48 / 64))


def test_the_axis_of_a_convolutions_vector_is_the_configurations(tmp_path):
    found = {item.target.paths[0]: item for item in open_lora(saved(tmp_path / "in", "ia3"), arch="sd1").adapters}
    assert found[CONV1].factors["scale_vector"].shape == (24, 1, 1, 1)
    assert found[CONV3].factors["scale_vector"].shape == (1, 16, 1, 1)


def test_peft_has_no_place_for_two_kinds_in_one_component(tmp_path):
    file = tmp_path / "mixed.safetensors"
    stems = [f"lora_unet_{path.replace('.', '_')}" for path in (LINEAR, FORWARD)]
    loha = {f"hada_w{n}_{side}": torch.ones(*shape) for n in (1, 2) for side, shape in (("a", (36, 2)), ("b", (2, 24)))}
    lora = {"lora_down.weight": torch.ones(2, 64), "lora_up.weight": torch.ones(24, 2)}
    save_file(
        {f"{stems[0]}.{name}": tensor for name, tensor in loha.items()}
        | {f"{stems[1]}.{name}": tensor for name, tensor in lora.items()},
        file,
    )
    with pytest.raises(NotRepresentable, match="one configuration holds one kind"):
        convert(file, to="peft", arch="sd1")


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"lokr_w1": (3, 4), "lokr_w2": (12, 6)}, "decompose_factor"),
        ({"lokr_w1": (6, 4), "lokr_w2": (6, 6), "dora_scale": (36, 1)}, "DoRA"),
        ({"lokr_w1": (6, 4), "lokr_w2": (6, 6), "diff_b": (36,)}, "difference of the bias"),
    ],
)
def test_what_no_configuration_says_is_refused_with_the_reason(tmp_path, shapes, reason):
    stem = f"lora_unet_{LINEAR.replace('.', '_')}"
    other = {
        f"lora_unet_{FORWARD.replace('.', '_')}.lokr_w1": (4, 8),
        f"lora_unet_{FORWARD.replace('.', '_')}.lokr_w2": (6, 8),
    }
    wanted = {f"{stem}.{name}": shape for name, shape in shapes.items()} | other
    save_file({name: torch.ones(*shape) for name, shape in wanted.items()}, tmp_path / "x.safetensors")
    with pytest.raises(NotRepresentable, match=reason):
        convert(tmp_path / "x.safetensors", to="peft", arch="sd1")
