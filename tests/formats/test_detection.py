"""The confusion matrix over candidate sets: what full files and small subsets of them may be, and what decides."""

from functools import cache

import pytest
import torch

import loratools
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import ARCHITECTURES
from loratools.errors import ArchitectureMismatch, UsageError
from loratools.formats.opening import Opened, Part
from loratools.formats.parse import parse
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import MemoryTensors
from tests.formats.making import KOHYA, PEFT, WORDS, Draw, kohya_stem, low_rank, write

IDS = [known.id for known in ARCHITECTURES]


def word(arch, part):
    """The word of sd-scripts for a component; that of the table for a model that sd-scripts does not train."""
    if arch in WORDS:
        return WORDS[arch][part]
    short = next(known for known in ARCHITECTURES if known.id == arch).by_name[part].short
    return f"lora_{short[0]}" if short else None


DENOISERS = {known.id: known.denoiser.name for known in ARCHITECTURES}
# How sd-scripts and diffusers begin the keys of each model's layers.
FORMATS = {
    "kohya": (lambda arch, part, native: f"{word(arch, part)}_{native.replace('.', '_')}", KOHYA),
    "diffusers": (lambda _, part, native: f"{part}.{native}", PEFT),
    "peft": (lambda _arch, _part, native: f"base_model.model.{native}", PEFT),
}


def in_family(known, found):
    """Whether the true id is among the candidates, and no other but those that share all its paths and shapes."""
    return known.id in found and set(found) <= {known.id, *known.family}


def natives(known, form, component):
    """(native name, shape of the weight) of every layer that the format's naming of a component has."""
    kohya = form == "kohya" and component is known.denoiser
    return named(known.id, component.name, component.naming(known.kohya) if kohya else component.namings[0])


@cache
def named(arch, part, naming):
    """The same of a naming, made once for all the subsets of it."""
    return tuple(walked(next(known for known in ARCHITECTURES if known.id == arch), part, naming))


def walked(known, part, naming):
    table = shapes(known.variants[0].shapes).get(part, {})  # some components are in other variants only
    for placement in naming.placements():
        parts = [table[path] for path in placement.paths if path in table]
        if len(parts) == len(placement.paths) and len(parts[0]) > 1:
            yield placement.native, (sum(part[0] for part in parts), *parts[0][1:])


def adapter(known, form, *, part=None, keep=lambda _: True, metadata=None):
    """A file of every layer that is kept, with rank-1 factors that take no memory."""
    stem, suffixes = FORMATS[form]
    tensors = {}
    for component in known.components:
        if component.name != (part or component.name) or (form == "peft" and component is not known.denoiser):
            continue
        if form == "kohya" and word(known.id, component.name) is None:
            continue
        for native, (rows, columns, *kernel) in natives(known, form, component):
            if keep(native) and "embed" not in native.rsplit(".", 1)[-1]:
                start = stem(known.id, component.name, native)
                tensors[start + suffixes["down"]] = LazyTensor.zeros("F16", (1, columns, *kernel))
                tensors[start + suffixes["up"]] = LazyTensor.zeros("F16", (rows, 1, *[1] * len(kernel)))
    if not tensors:
        pytest.skip("this model has no such layers")
    return Opened("made.safetensors", (Part(None, MemoryTensors(tensors, metadata or {})),))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("known", ARCHITECTURES, ids=IDS)
def test_a_full_file_is_settled(known, form):  # in a PEFT folder the denoiser is alone
    reading = parse(adapter(known, form))
    assert in_family(known, reading.adapters.architectures)
    assert reading.settled == (known.id if len(reading.adapters.architectures) == 1 else None)
    assert reading.unknown == ()


# subset → which layers it keeps
SUBSETS = {
    "attn1": lambda native: ".attn1." in native or "attn.to_" in native or "attn.qkv" in native,
    "attn2": lambda native: ".attn2." in native or "add_" in native or "txt_attn" in native,
    "cross": lambda native: native.endswith(("attn2.to_k", "attn2.to_v", "txt_attn.qkv", "add_k_proj")),
    "feed-forward": lambda native: ".ff.net." in native or "mlp" in native,
    "middle": lambda native: "mid_block" in native or "middle_block" in native or ".18." in native,
    "one block": lambda native: (
        native.startswith(
            ("down_blocks.1.attentions.0.transformer_blocks.0.", "input_blocks.4.1.transformer_blocks.0.")
        )
        or (".0." in native[:28] and "blocks.0." in native and "attn" in native)
    ),
    "resnets": lambda native: "resnets" in native or "in_layers" in native or "linear1" in native or "norm" in native,
}


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("known", ARCHITECTURES, ids=IDS)
def test_the_true_architecture_is_always_among_the_candidates(known, form, subset):
    reading = parse(adapter(known, form, part=DENOISERS[known.id], keep=SUBSETS[subset]))
    found = reading.adapters.architectures
    assert known.id in found or set(known.yields_to) & set(found)
    assert reading.settled == (found[0] if len(found) == 1 else None)
    # Sizes tell a text width of 768, 1024, 1280 and 2048 apart wherever a layer has one.
    if subset == "cross" and known.id in WORDS:
        assert set(found) & set(WORDS) == {known.id}


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
@pytest.mark.parametrize("name", ["sd1", "sd2"])
@pytest.mark.parametrize("subset", ["attn1", "feed-forward", "resnets"])
def test_sd1_and_sd2_share_what_has_no_text_width(name, form, subset):
    known = next(item for item in ARCHITECTURES if item.id == name)
    reading = parse(adapter(known, form, part="unet", keep=SUBSETS[subset]))
    assert set(reading.adapters.architectures) & set(WORDS) == {"sd1", "sd2"}
    assert reading.settled is None


@pytest.mark.parametrize(
    ("name", "part", "form", "candidates"),
    [
        ("sd1", "text_encoder", "diffusers", {"sd1", "sdxl", "flux1"}),
        ("sdxl", "text_encoder", "diffusers", {"sd1", "sdxl", "flux1"}),
        ("flux1", "text_encoder", "kohya", {"sd1", "sdxl", "flux1"}),
        ("sdxl", "text_encoder", "kohya", {"sd1", "sdxl", "flux1"}),
        ("sd1", "text_encoder", "kohya", {"sd1", "flux1"}),
        ("sd2", "text_encoder", "kohya", {"sd2"}),
        ("sd2", "text_encoder", "diffusers", {"sd2"}),
        ("sdxl", "text_encoder_2", "diffusers", {"sdxl", "sdxl-refiner"}),
        ("sdxl", "text_encoder_2", "kohya", {"sdxl", "sdxl-refiner"}),
        ("flux1", "text_encoder_2", "kohya", {"flux1"}),
        ("flux1", "text_encoder_2", "diffusers", {"flux1"}),
    ],
)
def test_a_text_encoder_alone_is_every_model_that_has_it(name, part, form, candidates):
    known = next(item for item in ARCHITECTURES if item.id == name)
    reading = parse(adapter(known, form, part=part))
    found = reading.adapters.architectures
    assert set(found) & set(WORDS) == candidates
    assert reading.settled == (name if len(found) == 1 else None)


def attention_only(name, metadata, form="kohya"):
    known = next(item for item in ARCHITECTURES if item.id == name)
    return parse(adapter(known, form, part="unet", keep=SUBSETS["attn1"], metadata=metadata))


@pytest.mark.parametrize(
    ("metadata", "settled"),
    [
        ({"ss_base_model_version": "sd_v1"}, "sd1"),
        ({"ss_base_model_version": "sd_1.5"}, "sd1"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
        ({"ss_base_model_version": "sd_v2"}, "sd2"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "sd2"),
        ({"ss_base_model_version": "unheard-of"}, None),
        ({}, None),
    ],
)
def test_metadata_breaks_a_tie(metadata, settled):
    reading = attention_only("sd1", metadata)
    assert reading.settled == settled
    assert set(reading.adapters.architectures) == {"sd1", "sd2"}
    assert settled is None or reading.adapters.architectures[0] == settled


@pytest.mark.parametrize("claim", ["sdxl_base_v1-0", "sd_v2", "flux1"])
def test_metadata_never_speaks_against_the_shapes(claim):
    known = next(item for item in ARCHITECTURES if item.id == "sd1")
    reading = parse(adapter(known, "kohya", metadata={"ss_base_model_version": claim}))
    assert (reading.settled, reading.adapters.architectures) == ("sd1", ("sd1",))
    assert "do not fit" in " ".join(reading.evidence)


# A layer that only the other of the two models has, as a merged or edited file may carry one.
STRAYS = {
    "sd1": {"lora_te_text_model_encoder_layers_20_mlp_fc1": (4096, 1024)},
    "sd2": {"lora_unet_up_blocks_3_attentions_2_transformer_blocks_3_attn2_to_k": (320, 768)},
}


def with_strays(name, count=1):
    """A full file with `count` layers beside that another model alone has; the keys of those."""
    known = next(item for item in ARCHITECTURES if item.id == name)
    opened = adapter(known, "kohya", part="unet" if name == "sd1" else None)
    tensors = {key: opened.parts[0].source[key] for key in opened.parts[0].source}
    strays = {}
    for at in range(count):
        for stem, (rows, columns) in STRAYS[name].items():
            stray = stem.replace("layers_20", f"layers_{12 + at}")
            strays[stray + KOHYA["down"]] = LazyTensor.zeros("F16", (1, columns))
            strays[stray + KOHYA["up"]] = LazyTensor.zeros("F16", (rows, 1))
    return opened._replace(parts=(Part(None, MemoryTensors(tensors | strays)),)), set(strays)


@pytest.mark.parametrize("arch", [None, "sd1"])
@pytest.mark.parametrize("count", [1, 7])
def test_a_stray_key_of_another_model_outweighs_no_sizes(count, arch):
    opened, strays = with_strays("sd1", count)
    reading = parse(opened, arch=arch)
    assert (reading.settled, reading.adapters.architectures) == ("sd1", ("sd1",))
    assert {item.key for item in reading.unknown} == strays
    assert {item.kind for item in reading.unknown} == {"wrong family"}


def test_the_wrong_architecture_is_refused_though_it_has_a_place_for_the_stray():
    with pytest.raises(ArchitectureMismatch, match="for sd1, not sd2"):
        parse(with_strays("sd1")[0], arch="sd2")


def test_a_stray_key_that_no_model_has_changes_nothing():
    opened, strays = with_strays("sd2")
    reading = parse(opened)
    assert reading.settled == "sd2"
    assert {item.key for item in reading.unknown} == strays


def test_the_caller_speaks_before_the_metadata():
    known = next(item for item in ARCHITECTURES if item.id == "sd1")
    opened = adapter(known, "kohya", keep=SUBSETS["attn1"], metadata={"ss_base_model_version": "sd_v1"})
    assert parse(opened, arch="sd2").settled == "sd2"
    with pytest.raises(UsageError) as refusal:
        parse(opened, arch="sd3000")
    assert "sd" in refusal.value.hint


def test_an_architecture_that_fits_nowhere_is_refused():
    known = next(item for item in ARCHITECTURES if item.id == "flux1")
    with pytest.raises(ArchitectureMismatch) as refusal:
        parse(adapter(known, "kohya", part="transformer"), arch="sdxl")
    assert refusal.value.exit_code == 4
    assert refusal.value.hint


@pytest.mark.parametrize("known", ARCHITECTURES, ids=IDS)
def test_sizes_of_no_known_variant_leave_the_names_to_decide(known):
    opened = adapter(known, "diffusers")
    tiny = {}
    for key, tensor in ((key, opened.parts[0].source[key]) for key in opened.parts[0].source):
        extents = [min(extent, 8) for extent in tensor.shape]
        tiny[key] = LazyTensor.zeros("F16", extents)
    reading = parse(opened._replace(parts=(Part(None, MemoryTensors(tiny)),)))
    assert known.id in reading.adapters.architectures
    assert reading.unknown == ()


def attention_file(folder, *, text=False):
    """A kohya file that SD1 and SD2 explain alike, or SD1, SDXL and Flux."""
    draw, tensors = Draw(), {}
    if text:
        stems = {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768)}
    else:
        stems = {
            kohya_stem("sd1", "unet", f"mid_block.attentions.0.transformer_blocks.0.attn1.{x}"): (1280, 1280)
            for x in ("to_q", "to_k")
        }
    for stem, shape in stems.items():
        tensors |= {stem + KOHYA[role]: tensor for role, tensor in low_rank(shape, 2, draw).items()}
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    return write(tensors, folder / "in.safetensors")


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_a_conversion_goes_on_where_all_candidates_agree(to, tmp_path):
    path = attention_file(tmp_path)
    pending = loratools.convert(path, to=to)
    assert loratools.inspect(path).document["architecture"] is None
    done = pending.save(tmp_path / ("out" if to == "peft" else "out.safetensors"))
    assert done.proof.worst == 0


def test_a_conversion_stops_where_candidates_differ_and_names_the_option(tmp_path):
    path = attention_file(tmp_path, text=True)
    assert loratools.convert(path, to="diffusers").plan.adapters == 1
    tensors = {
        f"text_encoder.text_model.encoder.layers.0.mlp.fc1{PEFT[role]}": tensor
        for role, tensor in low_rank((3072, 768), 2, Draw()).items()
    }
    source = write(tensors, tmp_path / "text.safetensors")
    with pytest.raises(ArchitectureMismatch) as refusal:
        loratools.convert(source, to="kohya")
    assert refusal.value.exit_code == 4
    assert "--arch" in refusal.value.hint
    assert set(refusal.value.evidence["candidates"]) >= {"sd1", "sdxl", "flux1"}
    for arch, word in (("sd1", "lora_te_"), ("sdxl", "lora_te1_"), ("flux1", "lora_te1_")):
        keys = loratools.convert(source, to="kohya", arch=arch).state_dict()
        assert all(key.startswith(word) for key in keys)


def bare(paths, suffixes=KOHYA, prefix=""):
    """Layers of [3072, 3072] under a model's own names, nothing before them."""
    draw = Draw(2)
    return {
        f"{prefix}{path}{suffixes[role]}": tensor
        for path in paths
        for role, tensor in low_rank((3072, 3072), 2, draw).items()
    }


def test_a_spelling_that_one_models_trainers_alone_have_decides_among_models_of_the_same_layers(tmp_path):
    shared = ["transformer_blocks.0.attn.to_k", "transformer_blocks.1.attn.to_q"]
    found = loratools.inspect(bare(shared)).document
    assert (found["candidates"], found["architecture"]) == (["qwen-image"], "qwen-image")
    assert any("spelling" in line for line in found["evidence"])
    for other in (bare(shared, PEFT), bare(shared, KOHYA, "transformer.")):
        assert {"flux1", "qwen-image"} <= set(loratools.inspect(other).document["candidates"])
    # It stands back behind names, sizes and metadata.
    by_names = loratools.inspect(bare([*shared, "single_transformer_blocks.0.attn.to_q"])).document["candidates"]
    assert "flux1" in by_names
    assert "qwen-image" not in by_names
    noted = write(bare(shared), tmp_path / "a.safetensors", {"modelspec.architecture": "flux-1-dev/lora"})
    assert loratools.inspect(noted).document["architecture"] == "flux1"
    assert loratools.open(bare(shared), arch="flux1").architecture == "flux1"
