"""Flux' control adapters: biases, norms put whole in their place, twice the input channels; diffusers is the judge."""

import pytest
import torch
from safetensors.torch import load_file

import loratools
from loratools.adapters.kind import delta_of
from loratools.errors import ArchitectureMismatch, NotRepresentable
from tests.formats.making import PEFT, Draw, assert_same_tensors, low_rank, read, write
from tests.formats.test_flux_spellings import TRANSFORMER, sizes
from tests.formats.test_round_trips import assert_round_trip, converted

SWAPPED = "final_layer.adaLN_modulation.1"
SMALL = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": (4, 4, 8), "guidance_embeds": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def control():
    """A control adapter of Flux: every layer with a bias, the norms whole, and an input of twice the channels."""
    draw, tensors = Draw(3, torch.bfloat16), {}
    for placement, shape in sizes("bfl", "flux1-control").items():
        if placement.weight == "scale":
            tensors[placement.weight_key] = draw(*shape)
            continue
        factors = low_rank(shape, 2, draw)
        tensors |= {
            f"{placement.native}.lora_A.weight": factors["down"],
            f"{placement.native}.lora_B.bias": draw(shape[0]),
        }
        tensors[f"{placement.native}.lora_B.weight"] = factors["up"]
    return tensors


def test_control_adapters_are_read_as_diffusers_reads_them(control, tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_bfl_flux_control_lora_to_diffusers

    source = write(control, tmp_path / "in.safetensors")
    found = loratools.inspect(source).document
    assert (found["format"], found["architecture"], found["variant"]) == ("bfl", "flux1", "control")
    assert (found["kinds"], found["unknown_keys"]) == (["lora", "norm"], [])
    out = converted(source, "diffusers", tmp_path / "out.safetensors")
    ours, theirs = load_file(out), _convert_bfl_flux_control_lora_to_diffusers(dict(control))
    # Their converter swaps the halves of the down factor, too, whose rows are ranks: another delta than was trained.
    down = "transformer.norm_out.linear.lora_A.weight"
    assert torch.equal(theirs.pop(down), control[f"{SWAPPED}.lora_A.weight"].roll(1, 0))
    assert torch.equal(ours.pop(down), control[f"{SWAPPED}.lora_A.weight"])
    assert_same_tensors(ours, theirs)
    assert_same_tensors(load_file(converted(out, "original", tmp_path / "back.safetensors")), control)
    with pytest.raises(NotRepresentable, match="in the model's place"):
        loratools.convert(source, to="kohya")


def test_a_norm_that_is_put_in_its_place_changes_the_bases_to_itself(tmp_path):
    tensors = {"double_blocks.0.img_attn.norm.query_norm.scale": torch.randn(128)}
    tensors |= {f"double_blocks.0.img_attn.qkv{PEFT[r]}": t for r, t in low_rank((9216, 3072), 2, Draw(4)).items()}
    lora = loratools.open(write(tensors, tmp_path / "in.safetensors"), arch="flux1")
    norm = next(item for item in lora.adapters if item.kind == "norm")
    assert norm.target.paths == ("transformer_blocks.0.attn.norm_q",)
    base = torch.randn(128)
    after = base.double() + delta_of(norm, base, dtype="float64")
    assert torch.equal(after.float(), next(iter(tensors.values())))
    with pytest.raises(NotRepresentable, match="base"):
        delta_of(norm)
    for to in ("comfy", "diffusers"):
        assert_round_trip(tmp_path / "in.safetensors", [to], tmp_path / to, arch="flux1")
    assert "diffusion_model.double_blocks.0.img_attn.norm.query_norm.set_weight" in read(
        tmp_path / "comfy" / "step0.safetensors"
    )


def test_comfyui_gets_control_adapters_in_the_names_it_knows_them_by(control, tmp_path):
    source = write(control, tmp_path / "in.safetensors")
    named = converted(source, "diffusers", tmp_path / "named.safetensors")
    for at, file in enumerate((source, named)):
        assert_same_tensors(load_file(converted(file, "comfy", tmp_path / f"{at}.safetensors")), control)
    answers = [loratools.inspect(file).document["loaders"]["comfyui"] for file in (source, named)]
    assert (answers[0]["loaded"], answers[0]["reasons"]) == (answers[0]["of"], [])
    # Run with ComfyUI's own functions: of diffusers' names it takes the factors alone, and no img_in of another width.
    norms = sum(key.endswith(".scale") for key in control)
    assert answers[1]["loaded"] == 0
    assert {reason["count"] for reason in answers[1]["reasons"]} == {norms, answers[1]["of"] - norms}
    assert loratools.convert(named, runtime="comfyui").plan.format == "comfy"


def part(control, *, alpha=None):
    """Two layers of a control adapter, which nothing marks as one, and how wide its input is."""
    names = ("img_in", "double_blocks.0.img_attn.proj")
    held = {key: tensor for key, tensor in control.items() if key.startswith(names)}
    return held | ({f"{name}.alpha": torch.tensor(float(alpha)) for name in names} if alpha else {})


@pytest.mark.parametrize(("to", "prefix"), [("comfy", "diffusion_model."), ("kohya", "lora_unet_")])
def test_a_bias_that_nothing_scales_is_a_difference_of_the_bias(to, prefix, control, tmp_path):
    source = write(part(control), tmp_path / "in.safetensors")
    out = converted(source, to, tmp_path / "out.safetensors", arch="flux1")
    written = load_file(out)
    for native in ("img_in", "double_blocks.0.img_attn.proj"):
        stem = prefix + (native.replace(".", "_") if to == "kohya" else native)
        assert torch.equal(written[f"{stem}.diff_b"], control[f"{native}.lora_B.bias"])
        assert torch.equal(written[f"{stem}.lora_up.weight"], control[f"{native}.lora_B.weight"])
    assert written[f"{prefix}img_in.reshape_weight"].tolist() == [3072, 128]
    assert not any("reshape_weight" in key and "img_in" not in key for key in written)
    answers = loratools.inspect(out, arch="flux1").document["loaders"]
    assert (answers["comfyui"]["loaded"], answers["comfyui"]["reasons"]) == (2, [])
    assert [answers[name]["loaded"] for name in ("diffusers", "kohya")] == [0, 0]
    assert "diff_b" in answers["diffusers"]["reasons"][0]["reason"]
    assert_same_tensors(
        load_file(converted(out, "original", tmp_path / "back.safetensors", arch="flux1")), part(control)
    )
    # In PEFT and diffusers all layers have biases, or none has.
    named = load_file(converted(out, "diffusers", tmp_path / "named.safetensors", arch="flux1"))
    assert torch.equal(named["transformer.x_embedder.lora_B.bias"], control["img_in.lora_B.bias"])
    del written[f"{prefix}img_in.diff_b"]
    one = write(written, tmp_path / "one.safetensors")
    with pytest.raises(NotRepresentable, match="diff_b"):
        loratools.convert(one, to="diffusers", arch="flux1")


def test_a_bias_that_a_scale_multiplies_is_folded_or_refused(control, tmp_path):
    source = write(part(control, alpha=1), tmp_path / "in.safetensors")
    with pytest.raises(NotRepresentable, match="--alpha fold"):
        loratools.convert(source, to="comfy", arch="flux1")
    out = tmp_path / "out.safetensors"
    loratools.convert(source, to="comfy", arch="flux1", alpha="fold").save(out)
    bias = load_file(out)["diffusion_model.img_in.diff_b"]
    assert torch.equal(bias.double(), control["img_in.lora_B.bias"].double() / 2)


def test_norms_of_other_models_have_no_loader_that_puts_them_in_their_place(tmp_path):
    tensors = {"transformer.transformer_blocks.0.attn.norm_q.weight": torch.randn(128)}
    stem = "transformer.transformer_blocks.0.attn.to_q"
    tensors |= {f"{stem}{PEFT[r]}": t for r, t in low_rank((3072, 3072), 2, Draw(4)).items()}
    source = write(tensors, tmp_path / "in.safetensors")
    with pytest.raises(NotRepresentable, match="no place for norm"):
        loratools.convert(source, to="diffusers", arch="qwen-image")
    assert_round_trip(source, ["comfy"], tmp_path / "comfy", arch="qwen-image")


def test_a_norm_without_factors_beside_it_is_a_base_models(tmp_path):
    tensors = {f"transformer_blocks.{n}.attn.norm_q.weight": torch.ones(128) for n in range(3)}
    assert loratools.inspect(write(tensors, tmp_path / "in.safetensors")).document["role"] != "adapter"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(file, path → what it does to the weight and the bias, the model) of a control adapter for a small model."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model, draw = FluxTransformer2DModel(patch_size=1, **SMALL), Draw(9, torch.float32)
    weights = {key.removesuffix(".weight"): tensor for key, tensor in model.state_dict().items()}
    tensors, truth = {}, {}
    for placement in TRANSFORMER.naming("bfl").placements():
        if not set(placement.paths) <= weights.keys():
            continue
        shapes = [weights[path].shape for path in placement.paths]
        if placement.weight == "scale":
            tensors[placement.weight_key] = truth[placement.paths[0]] = draw(*shapes[0])
            continue
        rows, columns = sum(shape[0] for shape in shapes), shapes[0][1] * (2 if placement.native == "img_in" else 1)
        factors = low_rank((rows, columns), 4, draw)
        delta, bias = factors["up"] @ factors["down"], draw(rows)
        tensors |= {f"{placement.native}{PEFT[role]}": tensor for role, tensor in factors.items()}
        tensors[f"{placement.native}.lora_B.bias"] = bias.clone()
        if placement.layout == "swap_halves":
            delta, bias = delta.roll(rows // 2, 0), bias.roll(rows // 2, 0)
        parts = zip(
            placement.paths, *(tensor.split([shape[0] for shape in shapes]) for tensor in (delta, bias)), strict=True
        )
        truth |= {path: part for path, *part in parts}
    source = write(tensors, tmp_path_factory.mktemp("control") / "in.safetensors")
    return source, truth, model


def test_diffusers_loads_what_is_written_for_it_and_widens_the_input(small, tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    source, truth, model = small
    written = converted(source, "diffusers", tmp_path / "out.safetensors", arch="flux1")
    loaded = FluxTransformer2DModel(patch_size=1, **SMALL)
    loaded.load_state_dict(model.state_dict())
    absent = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = FluxPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=loaded, **absent)
    pipeline.load_lora_weights(written, adapter_name="control")
    modules = dict(loaded.named_modules())
    for path, change in truth.items():
        if isinstance(change, torch.Tensor):
            assert torch.equal(modules[path].weight, change), path
            continue
        delta, bias = change
        assert torch.allclose(modules[path].get_delta_weight("control"), delta, atol=1e-5), path
        assert torch.equal(modules[path].lora_B["control"].bias, bias), path
    assert loaded.config.in_channels == 32


def test_merging_puts_norms_in_their_place_and_refuses_a_wider_input_by_name(small, tmp_path):
    source, truth, model = small
    model.save_pretrained(tmp_path / "base" / "transformer")
    with pytest.raises(ArchitectureMismatch, match="x_embedder") as refusal:
        loratools.merge(tmp_path / "base" / "transformer", [source], tmp_path / "out")
    assert refusal.value.key == "img_in"
    kept = {key: tensor for key, tensor in load_file(source).items() if not key.startswith("img_in")}
    rest = write(kept, tmp_path / "rest.safetensors")
    loratools.merge(tmp_path / "base" / "transformer", [rest], tmp_path / "merged")
    merged, before = read(tmp_path / "merged"), model.state_dict()
    for path, change in truth.items():
        if path == "x_embedder":
            continue
        if isinstance(change, torch.Tensor):
            assert torch.equal(merged[f"{path}.weight"], change), path
            continue
        for leaf, added in zip(("weight", "bias"), change, strict=True):
            assert torch.allclose(merged[f"{path}.{leaf}"], before[f"{path}.{leaf}"] + added, atol=1e-6), path
