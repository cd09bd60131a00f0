"""8-bit bases: read by their scales, summed, written with scales that use the whole range again; dice are fair."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.adapters.casting import Dice, cast
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.errors import UnsupportedFile
from tests.bases.making import canonical, shrunk, spelt

PREFIX = "model.diffusion_model."
QKV = f"{PREFIX}double_blocks.1.img_attn.qkv"
MLP = f"{PREFIX}double_blocks.2.img_mlp.0"
FP8 = torch.float8_e4m3fn


def weights():
    """A small Flux in BFL's names."""
    known = architecture("flux1")
    table = shapes(known.variants[0].shapes)["transformer"]
    small = {path: shrunk(shape, by=64) for path, shape in table.items()}
    return spelt(known.denoiser.naming("bfl"), small, canonical(small), PREFIX)


def scaled(tensors, *, per_row, word):
    """The same in 8 bits with scales beside them, as ComfyUI (one) and compressed-tensors (one a row) store them."""
    found = {"scaled_fp8": torch.zeros(0, dtype=FP8)} if word == "scale_weight" else {}
    for key, tensor in tensors.items():
        if tensor.ndim < 2:
            found[key] = tensor
            continue
        peak = tensor.abs().amax(1, keepdim=True) if per_row else tensor.abs().amax()
        scale = (peak / 448).float()
        found[key] = (tensor / scale).to(FP8)
        found[key.removesuffix("weight") + word] = scale
    return found


def adapter(tensors, path):
    """A LoRA over the fused qkv and one feed-forward layer, in kohya's names, and its float64 deltas."""
    generator = torch.Generator().manual_seed(5)
    held, deltas = {}, {}
    for key in (QKV, MLP):
        rows, columns = tensors[f"{key}.weight"].shape
        down = torch.randn(4, columns, generator=generator)
        up = torch.randn(rows, 4, generator=generator) * 0.01
        stem = "lora_unet_" + key.removeprefix(PREFIX).replace(".", "_")
        held |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(4.0)}
        deltas[f"{key}.weight"] = up.double() @ down.double()
    save_file(held, path)
    return deltas


def numbers(tensors, word):
    """What 8-bit weights stand for."""
    return {
        key: tensor.double() * tensors[key.removesuffix("weight") + word].double()
        for key, tensor in tensors.items()
        if key.endswith(".weight") and tensor.ndim > 1
    }


@pytest.mark.parametrize(("per_row", "word"), [(False, "scale_weight"), (True, "weight_scale")])
def test_a_scaled_base_keeps_its_form_and_gets_scales_that_fit_the_sum(per_row, word, tmp_path):
    plain = weights()
    save_file(scaled(plain, per_row=per_row, word=word), tmp_path / "base.safetensors")
    deltas = adapter(plain, tmp_path / "lora.safetensors")
    done = lt.merge(
        tmp_path / "base.safetensors", [tmp_path / "lora.safetensors"], tmp_path / "out.safetensors", arch="flux1"
    )
    before, after = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "out.safetensors")
    assert list(before) == list(after)
    assert {key: (value.dtype, value.shape) for key, value in before.items()} == {
        key: (value.dtype, value.shape) for key, value in after.items()
    }
    ours, theirs = numbers(after, word), numbers(before, word)
    changed = {*deltas, *(key.removesuffix("weight") + word for key in deltas)}
    assert all(after[key].equal(before[key]) for key in before if key not in changed)
    for key in deltas:
        value = theirs[key]
        wanted = value + deltas[key]
        peak = wanted.abs().amax(1, keepdim=True) if per_row else wanted.abs().amax()
        # Half a step of three bits of fraction, or half of the smallest step near zero.
        bound = torch.maximum(wanted.abs() / 16, peak / 448 * 2.0**-10) * 1.01
        assert bool(((ours[key] - wanted).abs() <= bound).all())
        assert float(after[key].float().abs().max()) == 448
    assert len(done.layers) == 2


def test_a_scaled_base_becomes_a_plain_one_on_request(tmp_path):
    plain = weights()
    save_file(scaled(plain, per_row=False, word="scale_weight"), tmp_path / "base.safetensors")
    deltas = adapter(plain, tmp_path / "lora.safetensors")
    lt.merge(
        tmp_path / "base.safetensors",
        [tmp_path / "lora.safetensors"],
        tmp_path / "out.safetensors",
        arch="flux1",
        dtype="F32",
    )
    before, after = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "out.safetensors")
    assert set(after) == set(plain)
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    for key, value in numbers(before, "scale_weight").items():
        wanted = value + deltas.get(key, 0)
        assert (after[key].double() - wanted).norm() <= 1e-6 * wanted.norm()


@pytest.mark.parametrize(("dtype", "name"), [(FP8, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2")])
def test_eight_bits_are_for_the_denoisers_matrices(dtype, name, tmp_path):
    plain = weights()
    save_file(plain, tmp_path / "base.safetensors")
    deltas = adapter(plain, tmp_path / "lora.safetensors")
    lt.merge(
        tmp_path / "base.safetensors",
        [tmp_path / "lora.safetensors"],
        tmp_path / "out.safetensors",
        arch="flux1",
        dtype=name,
    )
    after = load_file(tmp_path / "out.safetensors")
    assert after[f"{QKV}.bias"].dtype == torch.float32
    for key, value in plain.items():
        if value.ndim > 1:
            wanted = (value.double() + deltas.get(key, 0)).to(torch.float32).to(dtype)
            assert float((after[key].view(torch.uint8) == wanted.view(torch.uint8)).float().mean()) >= 0.999


def test_a_form_that_is_not_read_is_refused_by_name(tmp_path):
    tensors = {**weights(), f"{QKV}.weight": torch.zeros(144, 24, dtype=torch.uint8)}
    tensors[f"{QKV}.weight_scale"] = torch.ones(144, 3)
    save_file(tensors, tmp_path / "base.safetensors")
    adapter(weights(), tmp_path / "lora.safetensors")
    with pytest.raises(UnsupportedFile, match="quantised") as caught:
        lt.merge(
            tmp_path / "base.safetensors", [tmp_path / "lora.safetensors"], tmp_path / "out.safetensors", arch="flux1"
        )
    assert caught.value.key == f"{QKV}.weight_scale"


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_dice_are_right_on_average_and_choose_neighbours(dtype):
    value = torch.linspace(-1.7, 1.9, 36)
    many = value.repeat(4000, 1)
    thrown = cast(many, dtype, Dice(1), "w", 0)
    near = cast(value, dtype, None, "w", 0).double()
    low, high = thrown.double().amin(0), thrown.double().amax(0)
    assert bool(((low <= value) & (value <= high)).all())
    step = high - low
    assert bool(((near == low) | (near == high)).all())
    assert bool(((thrown.double().mean(0) - value).abs() <= 4 * step / 4000**0.5 + 1e-12).all())
    again = cast(many, dtype, Dice(1), "w", 0)
    assert torch.equal(thrown.view(torch.uint8), again.view(torch.uint8))
    assert not torch.equal(thrown.double(), cast(many, dtype, Dice(2), "w", 0).double())


def test_dice_at_zero_choose_the_sign_of_the_value():
    tiny = torch.tensor([2.0**-26, -(2.0**-26)]).repeat(2000, 1)
    thrown = cast(tiny, "F16", Dice(0), "w", 0).double()
    assert set(thrown[:, 0].tolist()) == {0.0, 2.0**-24}
    assert set(thrown[:, 1].tolist()) == {0.0, -(2.0**-24)}
