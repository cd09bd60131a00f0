"""What trainers of Flux write, held against diffusers' own converters: XLabs, Kontext, OneTrainer, ai-toolkit."""

import pytest
import torch
from safetensors.torch import load_file

import loratools
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from tests.formats.making import KOHYA, LAYERS, PEFT, Draw, assert_same_tensors, layers, low_rank, read, write
from tests.formats.test_round_trips import assert_round_trip, converted

TRANSFORMER = architecture("flux1").by_name["transformer"]


def sizes(native_naming, table="flux1-dev"):
    """native path → shape of the weight, of every layer that the naming has."""
    known = shapes(table)["transformer"]
    found = {}
    for placement in TRANSFORMER.naming(native_naming).placements():
        if placement.paths[0] in known:
            parts = [known[path] for path in placement.paths]
            found[placement] = (sum(part[0] for part in parts), *parts[0][1:])
    return found


def test_xlabs_files_are_read_as_diffusers_reads_them(tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers

    draw, tensors = Draw(1), {}
    for placement, shape in sizes("xlabs").items():
        block = int(placement.native.split(".")[1])
        if block in (0, 7):
            for role, tensor in low_rank(shape, 2, draw).items():
                tensors[f"{placement.native}.{role}.weight"] = tensor
    source = write(tensors, tmp_path / "in.safetensors")
    found = loratools.inspect(source).document
    assert (found["format"], found["architecture"], found["unknown_keys"]) == ("xlabs", "flux1", [])
    ours = read(converted(source, "diffusers", tmp_path / "out.safetensors"))
    assert_same_tensors(ours, _convert_xlabs_flux_lora_to_diffusers(dict(tensors)))
    for to in ("kohya", "peft"):
        assert_round_trip(source, [to], tmp_path / to)


def test_a_single_blocks_qkv_is_three_of_the_four_parts_of_its_fused_layer(tmp_path):
    stem = "single_blocks.3.processor.qkv_lora"
    tensors = {f"{stem}.{role}.weight": t for role, t in low_rank((9216, 3072), 2, Draw(2)).items()}
    written = read(converted(write(tensors, tmp_path / "in.safetensors"), "kohya", tmp_path / "out.safetensors"))
    up = written["lora_unet_single_blocks_3_linear1.lora_up.weight"]
    assert torch.equal(up[:9216], tensors[f"{stem}.up.weight"])
    assert up.shape == (21504, 2)
    assert not up[9216:].any()


def test_kontext_files_of_pefts_prefix_are_read_as_diffusers_reads_them(tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_fal_kontext_lora_to_diffusers

    draw, tensors = Draw(5, torch.bfloat16), {}
    skipped = ("norm", "_in.", "final_layer.adaLN")
    for placement, shape in sizes("bfl").items():
        if len(shape) == 2 and not any(word in f"{placement.native}." for word in skipped):
            for role, tensor in low_rank(shape, 1, draw).items():
                tensors[f"base_model.model.{placement.native}{PEFT[role]}"] = tensor
    source = write(tensors, tmp_path / "in.safetensors")
    found = loratools.inspect(source).document
    assert (found["format"], found["architecture"], found["unknown_keys"]) == ("peft", "flux1", [])
    ours = load_file(converted(source, "diffusers", tmp_path / "out.safetensors"))
    assert_same_tensors(ours, _convert_fal_kontext_lora_to_diffusers(dict(tensors)))


# OneTrainer's five ways to write one adapter: by component how a layer's keys begin, the naming, the suffixes.
LEGACY = {"transformer": "lora_transformer_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
FLAT = {"transformer": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"}
NATIVE = {
    "transformer": "diffusion_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.t5xxl.transformer.",
}
OWN = {"transformer": "transformer.", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}
FIVE = {
    "legacy": (LEGACY, "diffusers", KOHYA, True, "kohya"),
    "kohya": (FLAT, "bfl", KOHYA, True, "kohya"),
    "comfy": (NATIVE, "bfl", PEFT, True, "comfy"),
    "diffusers": (OWN, "diffusers", PEFT, True, "diffusers"),
    "original": ({"transformer": ""}, "bfl", PEFT, True, "bfl"),
}


@pytest.mark.parametrize("spelling", FIVE)
def test_onetrainers_five_spellings_are_one_adapter(spelling, tmp_path):
    starts, naming, suffixes, with_alpha, word = FIVE[spelling]
    # one layer of every component that no naming fuses, so that all five are layer by layer the same
    chosen = {
        "transformer": ("proj_out", "transformer_blocks.3.attn.to_out.0"),
        **{k: v for k, v in LAYERS["flux1", "bfl"].items() if k != "transformer"},
    }
    natives = {"proj_out": "final_layer.linear", "transformer_blocks.3.attn.to_out.0": "double_blocks.3.img_attn.proj"}
    draw, tensors, truth = Draw(6), {}, {}
    for component, path, shape in layers("flux1", "diffusers", chosen=chosen):
        factors = low_rank(shape, 2, draw)
        if component not in starts:
            continue
        native = natives.get(path, path) if naming == "bfl" else path
        flat = native.replace(".", "_") if starts[component].endswith("_") else native
        tensors |= {f"{starts[component]}{flat}{suffixes[role]}": tensor for role, tensor in factors.items()}
        tensors |= {f"{starts[component]}{flat}.alpha": torch.tensor(1.0)} if with_alpha else {}
        truth[component, path] = factors
    source = write(tensors, tmp_path / "in.safetensors")
    lora = loratools.open(source, arch="flux1")
    assert lora.format == word
    assert {(item.target.component, item.target.paths[0]) for item in lora.adapters} == truth.keys()
    for item in lora.adapters:
        assert float(item.scale) == 0.5
        factors = truth[item.target.component, item.target.paths[0]]
        assert all(torch.equal(item.factors[role].load(), tensor) for role, tensor in factors.items())
    if spelling == "legacy":
        assert_round_trip(source, ["diffusers"], tmp_path / "there", arch="flux1")


def test_ai_toolkits_magnitude_is_doras(tmp_path):
    stem = "transformer.single_transformer_blocks.0.attn.to_q"
    tensors = {stem + PEFT[role]: t for role, t in low_rank((3072, 3072), 2, Draw(7)).items()}
    tensors[f"{stem}.magnitude"] = torch.rand(3072)
    source = write(tensors, tmp_path / "in.safetensors")
    assert loratools.inspect(source, arch="flux1").document["kinds"] == ["dora", "lora"]
    assert_round_trip(source, ["diffusers"], tmp_path / "there", arch="flux1")


def test_bookkeeping_is_left_out_and_listed(tmp_path):
    stem = "diffusion_model.img_in"
    tensors = {stem + PEFT[role]: t for role, t in low_rank((3072, 128), 2, Draw(8)).items()}
    tensors |= {f"{stem}.reshape_weight": torch.tensor([3072, 128]), "_aux.step": torch.tensor(3)}
    pending = loratools.convert(write(tensors, tmp_path / "in.safetensors"), to="diffusers", arch="flux1")
    assert sorted(pending.plan.lost) == ["_aux.step: known-harmless", f"{stem}.reshape_weight: known-harmless"]
