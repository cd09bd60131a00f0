"""What cannot be read or held is refused with the key, the reason and a way on, and nothing is dropped in silence."""

import json

import pytest
import torch

import loratools
from loratools.errors import (
    ArchitectureMismatch,
    IncompleteAdapter,
    LoratoolsError,
    NotRepresentable,
    UnknownKeys,
    WrongRole,
)
from tests.formats.making import KOHYA, PEFT, Draw, kohya_stem, layers, low_rank, pairs, read, write, write_peft

ONE_ONLY = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def sd1(**how):
    return pairs(layers("sd1", "diffusers"), lambda part, name: kohya_stem("sd1", part, name), KOHYA, **how)


def stem(native, part="unet"):
    return kohya_stem("sd1", part, native)


def lora(start, shape, suffixes=KOHYA, *, rank=2, seed=9):
    return {start + suffixes[role]: tensor for role, tensor in low_rank(shape, rank, Draw(seed)).items()}


def refused(error, tensors, folder, *, to="diffusers", **options):
    """The refusal of a conversion, which names the file and a key, and writes nothing."""
    path = write(tensors, folder / "in.safetensors") if isinstance(tensors, dict) else tensors
    with pytest.raises(error) as refusal:
        loratools.convert(path, to=to, **options)
    assert refusal.value.path == str(path)
    assert refusal.value.key
    assert sorted(item.name for item in folder.iterdir()) == [path.name]
    return refusal.value


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft"])
def test_two_spellings_of_one_layer_are_two_adapters(to, tmp_path):
    tensors = lora("lora_unet_input_blocks_4_1_proj_in", (640, 640))
    tensors |= lora("lora_unet_down_blocks_1_attentions_0_proj_in", (640, 640), seed=1)
    tensors |= lora("lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_k", (640, 2048))
    error = refused(IncompleteAdapter, tensors, tmp_path, to=to)
    assert error.exit_code == 3
    assert "lora_unet_input_blocks_4_1_proj_in" in error.message
    assert "lora_unet_down_blocks_1_attentions_0_proj_in" in error.message


def test_a_fused_layer_and_its_part_are_two_adapters(tmp_path):
    tensors = lora("lora_unet_double_blocks_0_img_attn_qkv", (9216, 3072))
    tensors |= lora("lora_unet_transformer_blocks_0_attn_to_k", (3072, 3072))
    error = refused(IncompleteAdapter, tensors, tmp_path)
    assert "transformer_blocks.0.attn.to_k" in error.message


@pytest.mark.parametrize("role", ["down", "up"])
def test_a_missing_factor_is_named(role, tmp_path):
    tensors = sd1()
    del tensors[stem(ONE_ONLY) + KOHYA[role]]
    error = refused(IncompleteAdapter, tensors, tmp_path)
    assert error.exit_code == 3
    assert stem(ONE_ONLY) in error.key
    assert role in error.message


@pytest.mark.parametrize("suffix", [".lora_A.weight", ".lora.down.weight"])
def test_one_factor_under_two_suffixes_is_refused(suffix, tmp_path):
    tensors = sd1()
    tensors[stem(ONE_ONLY) + suffix] = tensors[stem(ONE_ONLY) + KOHYA["down"]].clone()
    error = refused(IncompleteAdapter, tensors, tmp_path)
    assert "one factor twice" in error.message


def test_factors_of_unequal_rank_are_refused(tmp_path):
    tensors = sd1()
    tensors[stem(ONE_ONLY) + KOHYA["up"]] = torch.ones(320, 7)
    assert "rank" in refused(IncompleteAdapter, tensors, tmp_path).message


def test_factors_of_two_kinds_are_refused(tmp_path):
    tensors = sd1()
    tensors[f"{stem(ONE_ONLY)}.hada_w1_a"] = torch.ones(320, 2)
    assert "several kinds" in refused(IncompleteAdapter, tensors, tmp_path, to="kohya").message


def test_two_adapter_names_are_two_adapters(tmp_path):
    tensors = {}
    for name in ("default", "other"):
        suffixes = {"down": f".lora_A.{name}.weight", "up": f".lora_B.{name}.weight"}
        tensors |= lora(f"unet.{ONE_ONLY}", (320, 768), suffixes)
    assert "two adapters in one file" in refused(IncompleteAdapter, tensors, tmp_path).message


def test_one_adapter_name_is_taken_off(tmp_path):
    suffixes = {"down": ".lora_A.my-style_2.weight", "up": ".lora_B.my-style_2.weight"}
    path = write(lora(f"unet.{ONE_ONLY}", (320, 768), suffixes), tmp_path / "in.safetensors")
    assert set(loratools.convert(path, to="diffusers").state_dict()) == {
        f"unet.{ONE_ONLY}{suffix}" for suffix in PEFT.values()
    }


STRAYS = {
    "a misspelt layer": "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn3_to_k.lora_down.weight",
    "a stray prefix": "diffusion_model_input_blocks_1_1_proj_in.lora_down.weight",
    "no adapter": "embedding.word.string_to_param.*",
    "a layer number out of bounds": "lora_unet_up_blocks_4_resnets_0_conv1.lora_down.weight",
    "a letter too many": "unet.mid_block.attentions.0.proj_in.lora_A.weightx",
    "another suffix": "lora_unet_mid_block_attentions_0_proj_in.lora_sideways.weight",
}


@pytest.mark.parametrize("what", STRAYS)
def test_an_unknown_key_is_refused_or_listed_as_left_out(what, tmp_path):
    key = STRAYS[what]
    tensors = sd1()
    tensors[key] = torch.ones(2, 4)
    if key.endswith(".lora_down.weight"):
        tensors[key.replace("lora_down", "lora_up")] = torch.ones(4, 2)
    error = refused(UnknownKeys, tensors, tmp_path)
    assert error.exit_code == 3
    assert key in error.evidence["keys"]
    assert error.hint
    pending = loratools.convert(tmp_path / "in.safetensors", to="diffusers", allow_partial=True)
    assert any(key in line for line in pending.plan.lost)
    done = pending.save(tmp_path / "out.safetensors")
    assert any(key in line for line in done.lost)
    assert len(read(tmp_path / "out.safetensors")) == 2 * pending.plan.adapters
    document = loratools.inspect(tmp_path / "in.safetensors").document
    assert document["architecture"] == "sd1"
    assert key in {item["key"] for item in document["unknown_keys"]}


def test_the_nearest_known_key_is_the_hint(tmp_path):
    tensors = sd1()
    tensors |= lora("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_kk", (320, 768))
    error = refused(UnknownKeys, tensors, tmp_path)
    assert stem(ONE_ONLY) in error.hint


def test_every_tensor_of_a_partial_conversion_is_written_or_listed(tmp_path):
    tensors = sd1()
    tensors |= {key: torch.ones(2, 2) for key in ("one.lora_down.weight", "one.lora_up.weight", "one.alpha", "two")}
    path = write(tensors, tmp_path / "in.safetensors")
    listed = loratools.convert(path, to="kohya", allow_partial=True).plan.lost
    assert {line.split(":")[0] for line in listed} == {
        "one.lora_down.weight",
        "one.lora_up.weight",
        "one.alpha",
        "two",
    }


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_dora_on_some_layers_only_has_no_place_in_one_configuration(to, tmp_path):
    tensors = sd1()
    tensors[f"{stem(ONE_ONLY)}.dora_scale"] = torch.ones(320, 1)
    error = refused(NotRepresentable, tensors, tmp_path, to=to)
    assert error.exit_code == 3
    assert "DoRA" in error.message
    assert "magnitude" in error.hint
    assert loratools.convert(tmp_path / "in.safetensors", to="kohya").plan.adapters


@pytest.mark.parametrize("to", ["diffusers", "peft"])
@pytest.mark.parametrize(
    ("native", "factors", "word"),
    [
        ("down_blocks.0.resnets.0.conv1", {".lora_mid.weight": (2, 2, 3, 3)}, "Tucker"),
        (ONE_ONLY, {".dora_scale": (1, 768)}, "output axis only"),
        (ONE_ONLY, {".diff_b": (320,)}, "bias"),
    ],
)
def test_a_factor_without_a_place_is_refused_or_left_out_and_listed(native, factors, word, to, tmp_path):
    tensors = sd1()
    if ".lora_mid.weight" in factors:
        tensors[stem(native) + KOHYA["down"]] = torch.ones(2, 320, 1, 1)
        tensors[stem(native) + KOHYA["up"]] = torch.ones(320, 2, 1, 1)
    tensors |= {stem(native) + suffix: torch.ones(shape) for suffix, shape in factors.items()}
    error = refused(NotRepresentable, tensors, tmp_path, to=to)
    assert word in error.message
    assert error.key == stem(native)
    assert "--allow-lossy" in error.hint
    pending = loratools.convert(tmp_path / "in.safetensors", to=to, allow_lossy=True)
    assert [line for line in pending.plan.lost if native in line]
    assert not any(native in key for key in pending.state_dict())


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_a_kind_without_a_place_is_refused_or_left_out_and_listed(to, tmp_path):
    native = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors, size = sd1(), {"w1_a": (1280, 2), "w1_b": (2, 1280), "w2_a": (1280, 2), "w2_b": (2, 1280)}
    tensors |= {f"{stem(native)}.hada_{role}": torch.ones(shape) for role, shape in size.items()}
    error = refused(NotRepresentable, tensors, tmp_path, to=to)
    assert f"{to} has no place for loha" in error.message
    assert error.hint
    done = loratools.convert(tmp_path / "in.safetensors", to=to, allow_lossy=True)
    assert [line for line in done.plan.lost if native in line]


def test_a_file_of_which_nothing_can_be_held_is_refused_even_if_lossy(tmp_path):
    native = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{stem(native)}.diff": torch.ones(1280, 768)}
    path = write(tensors, tmp_path / "in.safetensors")
    with pytest.raises(NotRepresentable):
        loratools.convert(path, to="diffusers", allow_lossy=True)


def base():
    return {f"down_blocks.{i}.attentions.0.proj_in.weight": torch.ones(320, 320, 1, 1) for i in range(3)}


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft", "original"])
@pytest.mark.parametrize("tensors", [base, lambda: {"emb_params": torch.ones(3, 768)}, lambda: {"x": torch.ones(2)}])
def test_a_file_that_is_no_adapter_is_of_the_wrong_role(tensors, to, tmp_path):
    path = write(tensors(), tmp_path / "in.safetensors")
    with pytest.raises(WrongRole) as refusal:
        loratools.convert(path, to=to)
    assert refusal.value.exit_code == 4
    assert refusal.value.path == str(path)
    assert "inspect" in refusal.value.hint


def language_model(folder, *, saved=False):
    tensors = {}
    for layer in range(2):
        tensors |= lora(f"base_model.model.model.layers.{layer}.self_attn.q_proj", (64, 48), PEFT)
    if saved:
        tensors["base_model.model.lm_head.weight"] = torch.ones(100, 48)
        tensors["base_model.model.score.bias"] = torch.ones(3)
    return write_peft(tensors, folder / "in", modules_to_save=["lm_head", "score"] if saved else None)


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_a_language_model_has_no_names_elsewhere(to, tmp_path):
    folder = language_model(tmp_path)
    with pytest.raises(NotRepresentable) as refusal:
        loratools.convert(folder, to=to)
    assert refusal.value.exit_code == 3
    assert "--to peft" in refusal.value.hint


def test_modules_saved_whole_go_along_to_peft(tmp_path):
    folder = language_model(tmp_path, saved=True)
    out = tmp_path / "out"
    loratools.convert(folder, to="peft").save(out)
    assert read(out).keys() == read(folder).keys()
    assert read(out)["base_model.model.lm_head.weight"].equal(torch.ones(100, 48))


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_modules_saved_whole_have_no_place_elsewhere(to, tmp_path):
    key = "base_model.model.conv_out.weight"
    tensors = lora(f"base_model.model.{ONE_ONLY}", (320, 768), PEFT) | {key: torch.ones(4, 320, 3, 3)}
    folder = write_peft(tensors, tmp_path / "in", modules_to_save=["conv_out"])
    with pytest.raises(NotRepresentable) as refusal:
        loratools.convert(folder, to=to)
    assert refusal.value.key == key
    pending = loratools.convert(folder, to=to, allow_lossy=True)
    assert pending.plan.lost == (f"{key}: saved whole",)


def test_a_model_that_no_table_knows_is_refused_and_described(tmp_path):
    tensors = lora("lora_unet_nothing_of_this_name_3_to_q", (64, 64))
    error = refused(ArchitectureMismatch, tensors, tmp_path)
    assert error.exit_code == 4
    document = loratools.inspect(tmp_path / "in.safetensors").document
    assert (document["role"], document["architecture"], document["candidates"]) == ("adapter", None, [])
    assert (document["kinds"], document["adapters"], document["ranks"]) == (["lora"], 1, {"2": 1})
    assert {item["key"] for item in document["unknown_keys"]} == tensors.keys()
    assert "no architecture" in document["warnings"][0]


def test_an_adapter_with_factors_amiss_is_described(tmp_path):
    tensors = sd1()
    del tensors[stem(ONE_ONLY) + KOHYA["up"]]
    document = loratools.inspect(write(tensors, tmp_path / "in.safetensors")).document
    assert document["role"] == "adapter"
    assert stem(ONE_ONLY) in document["warnings"][0]
    assert len(document["unknown_keys"]) == len(tensors)


def test_a_few_layers_of_a_larger_model_are_not_taken_for_a_smaller_one(tmp_path):
    tensors = lora("lora_unet_double_blocks_0_img_attn_qkv", (21504, 7168))
    tensors |= lora("lora_unet_single_blocks_0_linear2", (7168, 28672))
    error = refused(ArchitectureMismatch, tensors, tmp_path)
    assert "--arch flux1" in error.hint
    assert loratools.convert(tmp_path / "in.safetensors", to="kohya", arch="flux1").plan.adapters == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"unet.r": NaN}', '{"unet.r": 1, "unet.r": 2}', "\x00"])
def test_broken_metadata_is_malformed_and_named(text, tmp_path):
    tensors = lora(f"unet.{ONE_ONLY}", (320, 768), PEFT)
    path = write(tensors, tmp_path / "in.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(LoratoolsError) as refusal:
        loratools.convert(path, to="kohya")
    assert (refusal.value.exit_code, refusal.value.key) == (3, "lora_adapter_metadata")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"spellings": 3}', '{"spellings": {"unet": ["a"]}}', '{"more": 1}'])
def test_a_broken_record_of_the_original_is_malformed_and_named(text, tmp_path):
    path = write(sd1(), tmp_path / "in.safetensors", {"loratools.original": text})
    with pytest.raises(LoratoolsError) as refusal:
        loratools.convert(path, to="original")
    assert (refusal.value.exit_code, refusal.value.key) == (3, "loratools.original")


FIELDS = (
    "format",
    "folder",
    "alpha",
    "alpha_dtype",
    "keys",
    "shapes",
    "alphas",
    "targets",
    "metadata",
    "configs",
    "unfolded",
)


@pytest.mark.parametrize("value", ["x", [1], {"unet|conv_in": 7}, None])
@pytest.mark.parametrize("field", FIELDS)
def test_a_record_with_nonsense_in_a_field_never_ends_in_a_traceback(field, value, tmp_path):
    path = write(sd1(), tmp_path / "in.safetensors")
    loratools.convert(path, to="diffusers").save(tmp_path / "there.safetensors")
    document = loratools.inspect(tmp_path / "there.safetensors").document
    raw = json.loads(document["metadata"]["loratools.original"])
    metadata = document["metadata"] | {"loratools.original": json.dumps(raw | {field: value})}
    broken = write(read(tmp_path / "there.safetensors"), tmp_path / "broken.safetensors", metadata)
    try:
        loratools.convert(broken, to="original").save(tmp_path / "back.safetensors")
    except LoratoolsError as error:
        assert error.exit_code in (2, 3)  # noqa: PT017 - either outcome is lawful, a traceback is not


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"transformer:x": 3}', '{"transformer:x": [["x", 0, 1e9]]}'])
def test_a_broken_record_of_groups_never_ends_in_a_traceback(text, tmp_path):
    tensors = lora("lora_unet_double_blocks_0_img_attn_qkv", (9216, 3072))
    path = write(tensors, tmp_path / "in.safetensors", {"loratools.groups": text})
    try:
        assert loratools.convert(path, to="diffusers").plan.adapters
    except LoratoolsError as error:
        assert (error.exit_code, error.key) == (3, "loratools.groups")  # noqa: PT017 - both outcomes are lawful
