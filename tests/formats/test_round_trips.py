"""There and back again: converting to any format and then to "original" gives back every key, dtype, shape and byte."""

import json

import pytest
import torch

import loratools
from loratools.errors import LoratoolsError, NotRepresentable
from loratools.formats.gguf import GGUF
from loratools.formats.mlx import MLX
from loratools.formats.registry import FORMATS
from tests.formats.making import (
    KOHYA,
    LAYERS,
    NAMED,
    OLD,
    PEFT,
    WORDS,
    Draw,
    assert_same_tensors,
    kind_factors,
    kohya_stem,
    layers,
    low_rank,
    pairs,
    read,
    write,
    write_peft,
)

TARGETS = [form.id for form in FORMATS if form.id not in (GGUF.id, MLX.id)]  # which are for language models alone
ARCHS = sorted(WORDS)
SPELLINGS = sorted(LAYERS)
KINDS = ("lora", "dora", "dora-input", "tucker", "loha", "lokr", "full", "ia3", "glora", "oft")
# What diffusers and PEFT have no place for must be refused; everything else must be converted.
LORA_ONLY = {"lora", "dora"}


def converted(source, to, out, **options):
    loratools.convert(source, to=to, **options).save(out)
    return out


def place(folder, name, to):
    return folder / name if to == "peft" else folder / f"{name}.safetensors"


def assert_round_trip(source, chain, folder, *, arch=None):
    """Convert along a chain of formats, then back, and compare with what safetensors itself reads from the source."""
    folder.mkdir(parents=True, exist_ok=True)
    at = source
    for step, to in enumerate(chain):
        at = converted(at, to, place(folder, f"step{step}", to), arch=arch)
        assert read(at)
    back = converted(at, "original", folder / ("back.safetensors" if source.is_file() else "back"), arch=arch)
    assert_same_tensors(read(back), read(source))
    return back


def flat(arch):
    return lambda component, native: kohya_stem(arch, component, native)


def dotted(component, native):
    return f"{component}.{native}"


# name → (stem of a component's layer, suffixes, whether alpha tensors stand beside, components it can speak of)
DIALECTS = {
    "kohya": (flat, KOHYA, True, None),
    "flat-peft": (flat, PEFT, True, None),
    "hybrid": (lambda arch: lambda part, name: f"{WORDS[arch][part]}.{name}", PEFT, False, None),
    "half-flat": (
        lambda arch: lambda part, name: f"{WORDS[arch][part]}_{name.replace('.', '_', 2)}",
        KOHYA,
        True,
        None,
    ),
    "underscore": (lambda arch: lambda part, name: kohya_stem(arch, part, name) + "_", KOHYA, True, None),
    "diffusers": (lambda _: dotted, PEFT, False, None),
    "diffusers-alpha": (lambda _: dotted, PEFT, True, None),
    "named": (lambda _: dotted, NAMED, False, None),
    "onetrainer": (lambda _: dotted, KOHYA, True, None),
    "old": (lambda _: dotted, OLD, False, None),
    "peft-wrapped": (lambda _: lambda part, name: f"{part}.base_model.model.{name}", PEFT, False, None),
    "peft-bare": (lambda _: lambda _part, name: f"base_model.model.{name}", PEFT, False, 1),
    "comfy": (lambda _: lambda _part, name: f"diffusion_model.{name}", PEFT, True, 1),
    "lycoris": (lambda _: lambda _part, name: f"lycoris_{name.replace('.', '_')}", KOHYA, True, 1),
    "bare": (lambda _: lambda _part, name: name, PEFT, False, 1),
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(("arch", "naming"), SPELLINGS)
def test_every_dialect_comes_back_from_every_format(arch, naming, dialect, tmp_path):
    stem, suffixes, with_alpha, count = DIALECTS[dialect]
    known = layers(arch, naming, only=list(LAYERS[arch, naming])[:count])
    source = write(
        pairs(known, stem(arch), suffixes, with_alpha=with_alpha), tmp_path / "in.safetensors", {"note": "ours"}
    )
    # Every target from the one that fuses, one of the three from each other: prefixes and suffixes do not know them.
    turn = (SPELLINGS.index((arch, naming)) + list(DIALECTS).index(dialect)) % len(TARGETS)
    for to in TARGETS if naming == "bfl" else TARGETS[turn : turn + 1]:
        back = assert_round_trip(source, [to], tmp_path / to, arch=arch)
        assert loratools.inspect(back).document["metadata"]["note"] == "ours"


# PEFT has LoHa and LoKr of its own; a LoKr over Flux' fused layers cannot be cut into PEFT's.
PEFT_HOLDS = {(arch, kind) for arch in ARCHS for kind in ("loha", "lokr")} - {("flux1", "lokr")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_kind_comes_back_from_every_format_that_holds_it(arch, kind, tmp_path):
    naming = {"sdxl": "ldm", "sdxl-refiner": "ldm", "flux1": "bfl"}.get(arch, "diffusers")
    draw, tensors = Draw(1), {}
    for component, native, shape in layers(arch, naming):
        for suffix, tensor in (kind_factors(kind, shape, draw) or {}).items():
            tensors[kohya_stem(arch, component, native) + suffix] = tensor
    if not tensors or (kind == "tucker" and not any(".lora_mid" in key for key in tensors)):
        pytest.skip("this model has no layer for the kind: no convolution, or none small enough for a full difference")
    source = write(tensors, tmp_path / "in.safetensors")
    assert_round_trip(source, ["kohya"], tmp_path / "kohya", arch=arch)
    for to in ("diffusers", "peft"):
        if kind in LORA_ONLY or (to == "peft" and (arch, kind) in PEFT_HOLDS):
            assert_round_trip(source, [to], tmp_path / to, arch=arch)
        else:
            with pytest.raises(NotRepresentable) as refusal:
                loratools.convert(source, to=to, arch=arch)
            assert refusal.value.key
            assert refusal.value.hint


def test_norms_come_back(tmp_path):
    draw, tensors = Draw(2), {}
    for native, rows in (("down_blocks.0.resnets.0.norm1", 320), ("conv_norm_out", 320)):
        stem = kohya_stem("sd1", "unet", native)
        tensors |= {f"{stem}.w_norm": draw(rows), f"{stem}.b_norm": draw(rows)}
    tensors |= pairs(layers("sd1", "diffusers"), flat("sd1"), KOHYA)
    source = write(tensors, tmp_path / "in.safetensors")
    assert_round_trip(source, ["kohya"], tmp_path / "there")
    with pytest.raises(NotRepresentable, match="norm"):
        loratools.convert(source, to="diffusers")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("chain", [("diffusers", "peft", "kohya"), ("kohya", "diffusers", "peft"), ("peft", "kohya")])
def test_chains_lose_nothing(arch, chain, tmp_path):
    naming = {"sdxl": "ldm", "sdxl-refiner": "ldm", "flux1": "bfl"}.get(arch, "diffusers")
    source = write(pairs(layers(arch, naming), flat(arch), KOHYA), tmp_path / "in.safetensors")
    assert_round_trip(source, chain, tmp_path, arch=arch)


@pytest.mark.parametrize("to", TARGETS)
def test_a_file_with_sgm_and_diffusers_names_comes_back(to, tmp_path):
    sgm = layers("sdxl", "ldm", chosen={"unet": ("input_blocks.4.1.proj_in", "middle_block.1.proj_out")})
    ours = layers(
        "sdxl", "diffusers", chosen={"unet": ("up_blocks.0.attentions.0.proj_in", "down_blocks.0.resnets.1.conv2")}
    )
    tensors = pairs(sgm, flat("sdxl"), KOHYA) | pairs(ours, flat("sdxl"), KOHYA, seed=1)
    assert_round_trip(write(tensors, tmp_path / "in.safetensors"), [to], tmp_path)


@pytest.mark.parametrize("to", TARGETS)
def test_alphas_of_every_dtype_and_shape_come_back(to, tmp_path):
    draw, tensors = Draw(3), {}
    values = [(1.5, "float16"), (3.0, "bfloat16"), (0.3, "float32"), (5, "int64"), (0.7, "float64"), (2, "int32")]
    for at, (value, dtype) in enumerate((value, dtype) for value, dtype in values for _ in range(2)):
        stem = f"lora_te_text_model_encoder_layers_{at}_mlp_fc2"
        tensors |= {stem + KOHYA[role]: t for role, t in low_rank((768, 3072), 1 + at % 3, draw).items()}
        number = torch.tensor(value, dtype=getattr(torch, dtype))
        tensors[f"{stem}.alpha"] = number.reshape(1) if at % 2 else number
    tensors |= pairs(layers("sd1", "diffusers", only=["unet"]), flat("sd1"), KOHYA)
    assert_round_trip(write(tensors, tmp_path / "in.safetensors"), [to], tmp_path)


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_of_every_dtype_come_back(dtype, to, tmp_path):
    tensors = pairs(layers("sd1", "diffusers"), flat("sd1"), KOHYA, dtype=dtype)
    assert_round_trip(write(tensors, tmp_path / "in.safetensors"), [to], tmp_path)


@pytest.mark.parametrize("to", TARGETS)
def test_sd2_files_with_1x1_factors_on_linear_layers_come_back(to, tmp_path):
    tensors = pairs(layers("sd2", "diffusers"), flat("sd2"), KOHYA)
    for key in [key for key in tensors if "proj_in" in key and tensors[key].ndim == 2]:
        tensors[key] = tensors[key][..., None, None]
    source = write(tensors, tmp_path / "in.safetensors")
    assert any(tensor.ndim == 4 for key, tensor in tensors.items() if "proj_in" in key)
    assert_round_trip(source, [to], tmp_path)
    if to not in ("kohya", "comfy"):  # whose readers take either
        there = {key: t for key, t in read(place(tmp_path, "step0", to)).items() if "proj_in." in key and t.numel() > 1}
        assert there
        assert all(tensor.ndim == 2 for tensor in there.values())


PARTS = {
    "double": [f"transformer_blocks.3.attn.{part}" for part in ("to_q", "to_k", "to_v")],
    "context": [f"transformer_blocks.3.attn.{part}" for part in ("add_q_proj", "add_k_proj", "add_v_proj")],
    "single": [f"single_transformer_blocks.5.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
}


@pytest.mark.parametrize("group", PARTS)
@pytest.mark.parametrize("missing", [0, 1, 2])
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "unequal"])
def test_flux_parts_come_back_from_fused_layers(group, missing, equal, tmp_path):
    kept = PARTS[group][missing:]
    found = layers("flux1", "diffusers", chosen={"transformer": [*kept, "proj_out"]})
    ranks = (2,) if equal else (2, 3, 1)
    tensors = pairs(found, dotted, PEFT, ranks=ranks, with_alpha=not equal)
    source = write(tensors, tmp_path / "in.safetensors", {"from": "elsewhere"})
    # A block alone is HunyuanVideo's and Qwen-Image's as well.
    assert_round_trip(source, ["kohya"] if missing else ["kohya", "peft", "kohya"], tmp_path, arch="flux1")


def test_untrained_flux_parts_come_back(tmp_path):
    tensors = pairs(
        layers("flux1", "diffusers", chosen={"transformer": PARTS["single"]}), dotted, PEFT, with_alpha=False
    )
    for key in [key for key in tensors if "to_k.lora_B" in key or "proj_mlp.lora_B" in key]:
        tensors[key] = torch.zeros_like(tensors[key])
    assert_round_trip(write(tensors, tmp_path / "in.safetensors"), ["kohya"], tmp_path, arch="flux1")


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_flux_fused_layers_come_back_from_their_parts(to, tmp_path):
    tensors = pairs(layers("flux1", "bfl"), flat("flux1"), KOHYA)
    assert_round_trip(write(tensors, tmp_path / "in.safetensors"), [to, "kohya", to], tmp_path)


@pytest.mark.parametrize("to", TARGETS)
def test_lora_adapter_metadata_comes_back_word_for_word(to, tmp_path):
    found = layers("sd1", "diffusers")
    blocks = {"unet.r": 2, "unet.lora_alpha": 3, "unet.alpha_pattern": {"proj_in": 5}, "unet.custom": ["x"]}
    raw = json.dumps(blocks | {"text_encoder.r": 2, "text_encoder.lora_alpha": 7}, indent=1)
    source = write(
        pairs(found, dotted, PEFT, ranks=(2,), with_alpha=False),
        tmp_path / "in.safetensors",
        {"format": "pt", "lora_adapter_metadata": raw},
    )
    back = assert_round_trip(source, [to], tmp_path)
    assert loratools.inspect(back).document["metadata"]["lora_adapter_metadata"] == raw


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_peft_folders_come_back_with_their_configurations(to, several, tmp_path):
    source = tmp_path / "in"
    for component in ("unet", "text_encoder") if several else ("unet",):
        tensors = pairs(
            layers("sd1", "diffusers", only=[component]),
            lambda _, name: f"base_model.model.{name}",
            PEFT,
            with_alpha=False,
        )
        write_peft(
            tensors,
            source / component if several else source,
            lora_alpha=3,
            rank_pattern={"attn1.to_q": 3, "mlp.fc1": 3, "attn2.to_k": 1},
            use_rslora=not several,
            base_model_name_or_path="somewhere/sd",
        )
    back = assert_round_trip(source, [to], tmp_path)
    for file in source.rglob("adapter_config.json"):
        assert json.loads((back / file.relative_to(source)).read_text()) == json.loads(file.read_text())


@pytest.mark.parametrize("lora_bias", [False, True])
def test_language_models_come_back(lora_bias, tmp_path):
    draw, tensors = Draw(5), {}
    for layer in range(2):
        for name, rows, columns in (("self_attn.q_proj", 64, 48), ("mlp.down_proj", 48, 32)):
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors |= {stem + PEFT[role]: t for role, t in low_rank((rows, columns), 2 + layer, draw).items()}
            if lora_bias:
                tensors[f"{stem}.lora_B.bias"] = draw(rows)
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = draw(2, 100)
    tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = draw(48, 2)
    if not lora_bias:
        tensors["base_model.model.lm_head.weight"] = draw(100, 48)
    source = write_peft(tensors, tmp_path / "in", rank_pattern={"layers.1.self_attn.q_proj": 3}, lora_bias=lora_bias)
    assert_round_trip(source, ["peft"], tmp_path)


def test_a_file_that_was_never_converted_has_no_original(tmp_path):
    source = write(pairs(layers("sd1", "diffusers"), flat("sd1"), KOHYA), tmp_path / "in.safetensors")
    with pytest.raises(LoratoolsError) as refusal:
        loratools.convert(source, to="original")
    assert refusal.value.exit_code == 2
