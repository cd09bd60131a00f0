"""Every adapter that a third party makes is read with the change its own library makes, in every module.

And the judges are judged: a builder or a loader that is off would pass anything.
"""

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

import loratools as lt
from tests.judges import by_kohya, by_lycoris, by_peft
from tests.judges.fresh import fresh
from tests.judges.load import deltas_after_diffusers_load, deltas_after_peft_load
from tests.judges.read import deltas_as_read
from tests.judges.truth import compare

EXACT = 1e-6
OFT = 1e-5  # lycoris inverts in float32

PEFT_OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora-bias": {"lora_bias": True},
}


def assert_read(truth, folder, tolerance=EXACT):
    lora = lt.open(truth.path, arch=truth.architecture)
    assert not lora.reading.unknown
    deltas, biases = deltas_as_read(lora.adapters, folder)
    judgement = compare(deltas, truth.deltas)
    assert (judgement.missing, judgement.unexpected, judgement.beyond(tolerance)) == ((), (), {})
    of_biases = compare(biases, truth.biases)
    assert (of_biases.missing, of_biases.unexpected, of_biases.beyond(tolerance)) == ((), (), {})


@pytest.mark.parametrize("kind", by_lycoris.KINDS)
def test_lycoris_file_is_read_as_lycoris_applies_it(kind, pipeline, tmp_path):
    truth = by_lycoris.make(pipeline("sd1"), tmp_path / "lycoris.safetensors", kind)
    assert_read(truth, pipeline("sd1"), OFT if kind in by_lycoris.FLOAT32_INSIDE else EXACT)


@pytest.mark.parametrize("options", PEFT_OPTIONS)
@pytest.mark.parametrize("architecture", ["sd1", "flux1"])
def test_peft_folder_is_read_as_peft_merges_it(architecture, options, pipeline, tmp_path):
    components = {"sd1": ("unet", "text_encoder"), "flux1": ("transformer", "text_encoder")}[architecture]
    truth = by_peft.make(
        pipeline(architecture),
        tmp_path / "adapter",
        architecture=architecture,
        container="peft",
        components=dict.fromkeys(components),
        most=24,
        **PEFT_OPTIONS[options],
    )
    assert_read(truth, pipeline(architecture))


def test_peft_folder_of_one_text_encoder_is_read(pipeline, tmp_path):
    truth = by_peft.make(
        pipeline("flux1"),
        tmp_path / "adapter",
        architecture="flux1",
        container="peft",
        components={"text_encoder_2": lambda path: not path.endswith("embed_tokens")},
    )
    assert_read(truth, pipeline("flux1"))


@pytest.mark.parametrize("options", PEFT_OPTIONS)
def test_diffusers_file_is_read_as_peft_merges_it(options, pipeline, tmp_path):
    truth = by_peft.make(
        pipeline("sd1"),
        tmp_path / "adapter.safetensors",
        architecture="sd1",
        components={"unet": None, "text_encoder": None},
        most=24,
        **PEFT_OPTIONS[options],
    )
    assert_read(truth, pipeline("sd1"))


@pytest.mark.parametrize("architecture", ["flux1", "sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("container", ["diffusers", "kohya", "peft"])
def test_mixed_ranks_and_alphas_are_read(container, architecture, pipeline, third_party):
    assert_read(third_party(container, architecture), pipeline(architecture))


def test_kohya_text_encoder_without_out_proj_is_read(pipeline, tmp_path):
    truth = by_kohya.make(
        pipeline("sd1"),
        tmp_path / "text.safetensors",
        architecture="sd1",
        components={"text_encoder": lambda path: path.endswith(("q_proj", "v_proj", "fc1"))},
    )
    assert_read(truth, pipeline("sd1"))


# The judges, judged.


def test_peft_merge_is_peft_forward(pipeline, tmp_path):
    """The truth of by_peft comes from `merge`; the forward pass says the same, with DoRA as well."""
    from peft import LoraConfig, inject_adapter_in_model

    model = fresh(pipeline("sd1")).unet
    inject_adapter_in_model(LoraConfig(target_modules=["to_q"], use_dora=True, init_lora_weights=False), model)
    by_peft.randomise(model, torch.Generator().manual_seed(0))
    model.double().eval()
    forward = {}
    for path, layer in by_peft.adapted_layers(model).items():
        probes = torch.eye(layer.in_features, dtype=torch.float64)
        forward[path] = (layer(probes) - layer.get_base_layer()(probes)).T.detach()
    merged = {path: weight for path, (weight, _) in by_peft.merged_changes(model).items()}
    assert compare(forward, merged).wrong(1e-10) == 0


def test_loader_judge_sees_a_missing_and_a_scaled_module(pipeline, third_party):
    truth = third_party("diffusers", "sd1")
    loaded = deltas_after_diffusers_load(pipeline("sd1"), truth.path)
    assert compare(loaded.deltas, truth.deltas).wrong(EXACT) == 0
    first, second, third, *_ = truth.deltas
    spoiled = {place: delta for place, delta in loaded.deltas.items() if place != first}
    spoiled[second] = 1.01 * spoiled[second]
    spoiled["unet", "nowhere"] = spoiled.pop(third)
    judgement = compare(spoiled, truth.deltas)
    assert set(judgement.missing) == {first, third}
    assert judgement.unexpected == (("unet", "nowhere"),)
    assert judgement.beyond(1e-3) == {second: pytest.approx(0.01)}


def test_peft_judge_agrees_with_peft(pipeline, third_party):
    truth = third_party("peft", "sd1")
    for component in ("unet", "text_encoder"):
        model = getattr(fresh(pipeline("sd1")), component)
        loaded = deltas_after_peft_load(component, model, truth.path / component)
        want = {place: delta for place, delta in truth.deltas.items() if place[0] == component}
        assert loaded.complaints == ()
        assert compare(loaded.deltas, want).wrong(EXACT) == 0


def test_lycoris_dora_norm_is_one_by_rows_or_by_columns(pipeline, tmp_path):
    """The change that lycoris' DoRA makes leaves rows (or columns) whose lengths are its dora_scale."""
    from safetensors.torch import load_file

    unet = fresh(pipeline("sd1")).unet
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    for kind, axis in (("dora", 1), ("dora-input", 0)):
        truth = by_lycoris.make(pipeline("sd1"), tmp_path / f"{kind}.safetensors", kind)
        new = unet.get_submodule(path).weight.detach().double() + truth.deltas["unet", path]
        scale = load_file(truth.path)[f"lora_unet_{path.replace('.', '_')}.dora_scale"].double()
        assert scale.shape == (new.norm(dim=axis, keepdim=True)).shape
        assert torch.allclose(new.norm(dim=axis, keepdim=True), scale, rtol=1e-5)


def test_kohya_names_of_sdxl_are_those_diffusers_knows(pipeline, tmp_path):
    """One rank and alpha throughout, which its loader gets right: each checkpoint name leads to its module."""
    truth = by_kohya.make(
        pipeline("sdxl"),
        tmp_path / "kohya.safetensors",
        architecture="sdxl",
        components={"unet": lambda path: path.startswith(("down_blocks", "mid_block", "up_blocks"))},
        scales=((4, 2),),
        most=150,
    )
    loaded = deltas_after_diffusers_load(pipeline("sdxl"), truth.path)
    assert compare(loaded.deltas, truth.deltas).wrong(EXACT) == 0


def test_kohya_names_of_flux_are_those_diffusers_knows():
    """diffusers' converter knows Flux at its real width only: rank 1, one block of each sort."""
    width = 3072
    shapes = {
        "double_blocks.0.img_attn.qkv": (3 * width, width),
        "double_blocks.0.txt_attn.qkv": (3 * width, width),
        "double_blocks.0.img_attn.proj": (width, width),
        "double_blocks.0.txt_attn.proj": (width, width),
        "double_blocks.0.img_mlp.0": (4 * width, width),
        "double_blocks.0.img_mlp.2": (width, 4 * width),
        "double_blocks.0.txt_mlp.0": (4 * width, width),
        "double_blocks.0.txt_mlp.2": (width, 4 * width),
        "double_blocks.0.img_mod.lin": (6 * width, width),
        "double_blocks.0.txt_mod.lin": (6 * width, width),
        "single_blocks.0.linear1": (7 * width, width),
        "single_blocks.0.linear2": (width, 5 * width),
        "single_blocks.0.modulation.lin": (3 * width, width),
    }
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for path, (rows, columns) in shapes.items():
        stem = f"lora_unet_{path}".replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = torch.randn(1, columns, generator=generator)
        tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, 1, generator=generator)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    theirs = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    ours = lt.convert(dict(tensors), to="diffusers", arch="flux1").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
