"""HCP-Diffusion's files, whose alpha is the scale itself: Δ = alpha · W_up · W_down, and alpha · bias beside it."""

import json

import pytest
import torch
from safetensors.torch import load_file

import loratools
from loratools.adapters.kind import bias_delta_of, delta_of
from loratools.architectures.architecture import shapes
from loratools.errors import IncompleteAdapter, MalformedFile, NotRepresentable
from tests.formats.making import KOHYA, Draw, assert_same_tensors, kind_factors, kohya_stem, layers, pairs, read, write
from tests.formats.test_round_trips import assert_round_trip, converted, flat

UNET = (
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.resnets.0.conv1",
    "up_blocks.3.resnets.0.conv_shortcut",
)
TEXT = ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.11.mlp.fc1")
# component → how a file begins its names, in every way that its trainer and its converters have written
WHOLE = {"unet": "denoiser.", "text_encoder": "TE."}
BEGINNINGS = {
    "one file": WHOLE,
    "nested": {name: f"base:{word}" for name, word in WHOLE.items()},
    "unet alone": {"unet": ""},
    "unet alone, nested": {"unet": "lora:"},
    "text encoder alone": {"text_encoder": "lora:"},
}
NEW = {"down": ".___.layer.W_down", "up": ".___.layer.W_up", "bias": ".___.layer.bias", "alpha": ".___.alpha"}
OLD = {
    "down": ".___.layer.lora_down.weight",
    "up": ".___.layer.lora_up.weight",
    "bias": ".___.layer.lora_up.bias",
    "alpha": ".___.scale",
}
# the words of its wrappers for the encoders of a model that has several
COMPOSED = {
    "sdxl": {"text_encoder": "TE.clip_L.", "text_encoder_2": "TE.clip_bigG."},
    "flux1": {"text_encoder": "TE.clip.", "text_encoder_2": "TE.T5."},
}
SCALES = (0.25, 1 / 3, 1.0, 2.5, 0.6, 0.125)


def made(beginnings, ends=NEW, *, bias=False, dtype=torch.float32):
    """(tensors, (component, path) → delta and bias in float64), as its layers multiply them."""
    draw, tensors, truth = Draw(7, dtype), {}, {}
    paths = [(name, path) for name in beginnings for path in (UNET if name == "unet" else TEXT)]
    for at, (component, path) in enumerate(paths):
        rows, columns, *kernel = shapes("sd1")[component][path]
        rank, scale = 1 + at % 3, torch.tensor(SCALES[at])
        down, up = draw(rank, columns, *kernel), draw(rows, rank, *[1] * len(kernel))
        stem = beginnings[component] + path
        tensors |= {stem + ends["down"]: down, stem + ends["up"]: up, stem + ends["alpha"]: scale}
        product = torch.einsum("or...,ri...->oi...", up.double(), down.double())
        truth[component, path] = [scale.double() * product, None]
        if bias:
            tensors[stem + ends["bias"]] = draw(rows)
            truth[component, path][1] = scale.double() * tensors[stem + ends["bias"]].double()
    return tensors, truth


def assert_deltas(path, truth, **options):
    found = loratools.open(path, **options).adapters
    assert {(item.target.component, item.target.paths[0]) for item in found} == truth.keys()
    for item in found:
        delta, bias = truth[item.target.component, item.target.paths[0]]
        ours = delta_of(item, dtype="float64").reshape(delta.shape)
        assert (ours - delta).norm() <= 1e-7 * delta.norm(), item.target.name
        theirs = bias_delta_of(item, dtype="float64")
        assert (theirs is None) == (bias is None)
        if bias is not None:
            assert (theirs - bias).norm() <= 1e-7 * bias.norm()


@pytest.mark.parametrize("ends", [NEW, OLD], ids=["W_down", "lora_down"])
@pytest.mark.parametrize("beginnings", BEGINNINGS)
def test_the_stored_alpha_is_the_scale(beginnings, ends, tmp_path):
    tensors, truth = made(BEGINNINGS[beginnings], ends)
    source = write(tensors, tmp_path / "in.safetensors")
    found = loratools.inspect(source).document
    assert (found["format"], found["unknown_keys"]) == ("hcp", [])
    assert "sd1" in found["candidates"]
    assert_deltas(source, truth, arch="sd1")


def test_a_bias_is_multiplied_by_the_scale_and_goes_where_there_is_a_place_for_it(tmp_path):
    tensors, truth = made(WHOLE, bias=True)
    source = write(tensors, tmp_path / "in.safetensors")
    assert_deltas(source, truth)
    assert_deltas(converted(source, "hcp", tmp_path / "out.safetensors"), truth)
    assert_deltas(converted(source, "peft", tmp_path / "folder"), truth)
    with pytest.raises(NotRepresentable, match="bias of the up factor"):
        loratools.convert(source, to="kohya")


@pytest.mark.parametrize("to", ["comfy", "diffusers", "kohya", "peft", "hcp"])
@pytest.mark.parametrize("beginnings", ["one file", "unet alone, nested", "text encoder alone"])
def test_deltas_survive_and_every_byte_comes_back(beginnings, to, tmp_path):
    tensors, truth = made(BEGINNINGS[beginnings])
    source = write(tensors, tmp_path / "in.safetensors", {"note": "ours"})
    assert_round_trip(source, [to], tmp_path / "there", arch="sd1")
    assert_deltas(tmp_path / "there" / ("step0" if to == "peft" else "step0.safetensors"), truth, arch="sd1")


def test_a_pickle_of_nested_dictionaries_is_read(tmp_path):
    tensors, truth = made({"unet": ""})
    torch.save({"lora": tensors}, tmp_path / "unet-100.ckpt")
    assert_deltas(tmp_path / "unet-100.ckpt", truth, unsafe_pickle=True, arch="sd1")


@pytest.mark.parametrize("arch", ["sd1", "sd2", "sdxl", "flux1"])
def test_what_is_written_is_what_its_layers_multiply(arch, tmp_path):
    naming = {"sdxl": "ldm", "flux1": "bfl"}.get(arch, "diffusers")
    source = write(pairs(layers(arch, naming), flat(arch), KOHYA), tmp_path / "in.safetensors")
    written = load_file(converted(source, "hcp", tmp_path / "out.safetensors", arch=arch))
    words = COMPOSED.get(arch, {"text_encoder": "TE."})
    for item in loratools.open(source, arch=arch).adapters[::5]:
        stem = words.get(item.target.component, "denoiser.") + item.target.paths[0]
        down, up = (written[f"{stem}.___.layer.W_{role}"].double() for role in ("down", "up"))
        product = written[f"{stem}.___.alpha"].double() * torch.einsum("or...,ri...->oi...", up, down)
        delta = delta_of(item, dtype="float64")
        assert down.ndim == up.ndim == delta.ndim, stem  # its modules have the dimensions of the weight
        first = delta[: product.shape[0]]  # of a fused layer the first part
        assert (product - first).norm() <= 1e-7 * first.norm(), stem


@pytest.mark.parametrize("chain", [("hcp",), ("hcp", "diffusers", "hcp"), ("peft", "hcp"), ("hcp", "kohya", "peft")])
def test_alphas_that_no_float32_scale_holds_come_back(chain, tmp_path):
    tensors = pairs(layers("sd1", "diffusers"), flat("sd1"), KOHYA, ranks=(3, 7, 5))
    back = assert_round_trip(write(tensors, tmp_path / "in.safetensors"), chain, tmp_path)
    assert "loratools.scales" not in loratools.inspect(back).document["metadata"]


def test_a_changed_scale_is_believed_before_its_record(tmp_path):
    tensors = pairs(layers("sd1", "diffusers"), flat("sd1"), KOHYA, ranks=(3,))
    out = converted(write(tensors, tmp_path / "in.safetensors"), "hcp", tmp_path / "out.safetensors")
    written, metadata = load_file(out), loratools.inspect(out).document["metadata"]
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    assert json.loads(metadata["loratools.scales"])
    for key in [key for key in written if key.endswith(".alpha")]:
        written[key] = written[key] * 2
    changed = write(written, tmp_path / "changed.safetensors", metadata)
    there = loratools.open(converted(changed, "kohya", tmp_path / "there.safetensors")).adapters
    before = {item.target: item.scale for item in loratools.open(changed).adapters}
    assert all(item.scale.equals(before[item.target]) for item in there)
    metadata["loratools.scales"] = '{"unet:x": "a"}'
    with pytest.raises(MalformedFile, match="scales"):
        loratools.convert(write(written, tmp_path / "damaged.safetensors", metadata), to="kohya")


@pytest.mark.parametrize("kind", ["dora", "tucker", "loha", "lokr", "full", "glora", "oft"])
def test_what_its_layers_are_not_is_refused(kind, tmp_path):
    draw, tensors = Draw(1), {}
    for component, native, shape in layers("sd1", "diffusers"):
        for suffix, tensor in (kind_factors(kind, shape, draw) or {}).items():
            tensors[kohya_stem("sd1", component, native) + suffix] = tensor
    with pytest.raises(NotRepresentable) as refusal:
        loratools.convert(write(tensors, tmp_path / "in.safetensors"), to="hcp")
    assert refusal.value.key


def test_its_product_of_groups_is_no_lora(tmp_path):
    stem = "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.___.layer."
    tensors = {f"{stem}W_down": torch.zeros(2, 4, 320), f"{stem}W_up": torch.zeros(2, 320, 4)}
    with pytest.raises(IncompleteAdapter):
        loratools.open(write(tensors, tmp_path / "in.safetensors"))


def test_no_runtime_but_its_own_loads_it(tmp_path):
    source = write(made(WHOLE)[0], tmp_path / "in.safetensors")
    for name, answer in loratools.inspect(source).document["loaders"].items():
        assert (answer["loaded"], answer["unknown"]) == (0, 0), name


def test_a_layer_without_a_scale_is_warned_of(tmp_path):
    tensors = {key: tensor for key, tensor in made(WHOLE)[0].items() if not key.endswith(".alpha")}
    source = write(tensors, tmp_path / "in.safetensors")
    assert any("no scale is stored" in line for line in loratools.inspect(source).document["warnings"])
    back = converted(converted(source, "hcp", tmp_path / "out.safetensors"), "original", tmp_path / "back.safetensors")
    assert_same_tensors(read(back), read(source))
