"""Bases that are not plain: pickles, averages beside the weights, inpainting models with more input channels."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.errors import UnsafeFile
from loratools.pipelines.single_file import export_single_file
from tests.judges import by_lycoris

CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
LATENTS = 4


@pytest.fixture
def base(pipeline, tmp_path):
    """The tensors of the tiny sd1 pipeline's single file."""
    export_single_file(pipeline("sd1"), tmp_path / "base.safetensors", "sd1")
    return load_file(tmp_path / "base.safetensors")


@pytest.fixture
def truth(pipeline, tmp_path):
    """A LoCon over convolutions too, the first one among them."""
    return by_lycoris.make(pipeline("sd1"), tmp_path / "locon.safetensors", "locon")


def test_a_pickled_checkpoint_becomes_the_same_file_as_its_twin(base, truth, tmp_path):
    torch.save({"state_dict": base, "global_step": 7}, tmp_path / "base.ckpt")
    with pytest.raises(UnsafeFile):
        lt.merge(tmp_path / "base.ckpt", [truth.path], tmp_path / "out.safetensors", arch="sd1")
    lt.merge(tmp_path / "base.ckpt", [truth.path], tmp_path / "a.safetensors", arch="sd1", unsafe_pickle=True)
    lt.merge(tmp_path / "base.safetensors", [truth.path], tmp_path / "b.safetensors", arch="sd1")
    left, right = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert left.keys() >= right.keys()
    assert all(left[key].equal(value) for key, value in right.items())


def test_averages_vae_and_schedules_keep_their_bytes(base, truth, tmp_path):
    beside = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": value * 2 for key, value in base.items()}
    beside |= {"alphas_cumprod": torch.rand(1000), "model_ema.decay": torch.tensor(0.999)}
    save_file(base | beside, tmp_path / "full.safetensors")
    lt.merge(tmp_path / "full.safetensors", [truth.path], tmp_path / "out.safetensors", arch="sd1")
    made = load_file(tmp_path / "out.safetensors")
    assert all(made[key].equal(value) for key, value in beside.items())
    assert all(made[key].equal(base[key]) for key in base if key.startswith("first_stage_model."))
    assert not made[CONV_IN].equal(base[CONV_IN])


def test_the_first_channels_of_an_inpainting_model_get_the_change(base, truth, tmp_path):
    generator = torch.Generator().manual_seed(1)
    plain = base[CONV_IN]
    mask = torch.randn(plain.shape[0], 5, *plain.shape[2:], generator=generator)
    save_file(base | {CONV_IN: torch.cat([plain, mask], 1)}, tmp_path / "inpaint.safetensors")
    lt.merge(tmp_path / "inpaint.safetensors", [(truth.path, 0.5)], tmp_path / "out.safetensors", arch="sd1")
    made = load_file(tmp_path / "out.safetensors")[CONV_IN]
    wanted = plain.double() + 0.5 * truth.deltas["unet", "conv_in"]
    assert (made[:, :LATENTS].double() - wanted).norm() <= 1e-6 * wanted.norm()
    assert made[:, LATENTS:].equal(mask)
