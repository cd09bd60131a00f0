"""What loratools writes loads right in diffusers and peft, and why each line of the recipe is there.

A line of the recipe comes with its negative: the same file without that line, and the wrong thing that happens then.
"""

import json

import pytest
import torch
from peft.utils.error import NoMatchingPeftModuleError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loratools as lt
from tests.judges import by_kohya, by_lycoris, by_peft
from tests.judges.fresh import fresh
from tests.judges.load import deltas_after_diffusers_load, deltas_after_peft_load
from tests.judges.truth import compare

EXACT = 1e-6
ARCHITECTURES = ("flux1", "sd1", "sd2", "sdxl")
METADATA = "lora_adapter_metadata"


def rewritten(source, out, *, key=None, tensors=None, metadata=None):
    """A copy of a file with its keys, its tensors or its adapter metadata changed."""
    with safe_open(source, "pt") as file:
        stored = dict(file.metadata())
    held = {(key or str)(name): value for name, value in load_file(source).items()}
    if tensors:
        tensors(held)
    if metadata:
        block = json.loads(stored[METADATA])
        stored[METADATA] = json.dumps(metadata(block))
    save_file(held, out, metadata=stored)
    return out


def adapter_metadata(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[METADATA])


def assert_loads(folder, file, truth):
    loaded = deltas_after_diffusers_load(folder, file)
    judgement = compare(loaded.deltas, truth.deltas)
    assert (judgement.missing, judgement.unexpected, judgement.beyond(EXACT)) == ((), (), {})
    of_biases = compare(loaded.biases, truth.biases)
    assert of_biases.wrong(EXACT) == 0
    assert loaded.complaints == ()


def to_diffusers(truth, out, **options):
    lt.convert(truth.path, to="diffusers", arch=truth.architecture, **options).save(out)
    return out


@pytest.fixture(scope="module")
def flux(third_party, tmp_path_factory):
    """A Flux file of ours, from kohya's, and its truth."""
    truth = third_party("kohya", "flux1")
    return to_diffusers(truth, tmp_path_factory.mktemp("flux") / "flux.safetensors"), truth


@pytest.fixture(scope="module")
def sd1(third_party, tmp_path_factory):
    """An SD1 file of ours, from kohya's, and its truth."""
    truth = third_party("kohya", "sd1")
    return to_diffusers(truth, tmp_path_factory.mktemp("sd1") / "sd1.safetensors"), truth


@pytest.fixture(scope="module")
def sdxl(third_party, tmp_path_factory):
    """An SDXL file of ours, from kohya's, and its truth."""
    truth = third_party("kohya", "sdxl")
    return to_diffusers(truth, tmp_path_factory.mktemp("sdxl") / "sdxl.safetensors"), truth


# What we write loads right.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("container", ["diffusers", "kohya", "peft"])
def test_diffusers_file_loads_with_every_delta(container, architecture, pipeline, third_party, tmp_path):
    truth = third_party(container, architecture)
    assert_loads(pipeline(architecture), to_diffusers(truth, tmp_path / "lora.safetensors"), truth)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("container", ["diffusers", "kohya", "peft"])
def test_peft_folders_load_with_every_delta(container, architecture, pipeline, third_party, tmp_path):
    truth = third_party(container, architecture)
    out = tmp_path / "peft"
    lt.convert(truth.path, to="peft", arch=architecture).save(out)
    parts = fresh(pipeline(architecture))
    for component in {component for component, _ in truth.deltas}:
        loaded = deltas_after_peft_load(component, getattr(parts, component), out / component)
        want = {place: delta for place, delta in truth.deltas.items() if place[0] == component}
        judgement = compare(loaded.deltas, want)
        assert (judgement.missing, judgement.unexpected, judgement.beyond(EXACT)) == ((), (), {})
        assert loaded.complaints == ()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kohya_file_of_a_diffusers_file_makes_the_same_delta(architecture, third_party, tmp_path):
    truth = third_party("diffusers", architecture)
    out = tmp_path / "kohya.safetensors"
    lt.convert(truth.path, to="kohya", arch=architecture).save(out)
    # unequal scales of fused parts are folded into a factor, which float64 sees to its own rounding
    assert lt.compare(truth.path, out, arch=architecture).worst <= 1e-14


# 1. Names.


def test_clip_keys_have_their_text_model_level(sdxl):
    file, _ = sdxl
    texts = [key for key in load_file(file) if key.startswith("text_encoder") and "text_projection" not in key]
    assert texts
    assert all(key.split(".")[1] == "text_model" for key in texts)


def test_keys_without_their_component_load_nothing(sd1, pipeline, tmp_path):
    file, _ = sd1
    bare = rewritten(file, tmp_path / "bare.safetensors", key=lambda key: key.split(".", 1)[1])
    loaded = deltas_after_diffusers_load(pipeline("sd1"), bare)
    assert loaded.deltas == {}


def test_flat_clip_keys_load_too_where_the_class_is_flat(sd1, pipeline, tmp_path):
    file, truth = sd1
    flat = rewritten(file, tmp_path / "flat.safetensors", key=lambda key: key.replace(".text_model.", "."))
    assert compare(deltas_after_diffusers_load(pipeline("sd1"), flat).deltas, truth.deltas).wrong(EXACT) == 0


# 2. Metadata for every component.


def test_metadata_speaks_of_every_component(sdxl):
    file, truth = sdxl
    block = adapter_metadata(file)
    for component in {component for component, _ in truth.deltas}:
        fields = {name.removeprefix(f"{component}.") for name in block if name.startswith(f"{component}.")}
        assert fields >= {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "bias", "use_dora"}
        assert len(block[f"{component}.target_modules"]) == sum(place[0] == component for place in truth.deltas)


def test_metadata_for_some_components_only_is_refused(sd1, pipeline, tmp_path):
    file, _ = sd1

    def unet_only(block):
        return {name: value for name, value in block.items() if name.startswith("unet.")}

    partial = rewritten(file, tmp_path / "partial.safetensors", metadata=unet_only)
    with pytest.raises(ValueError, match="target_modules"):
        deltas_after_diffusers_load(pipeline("sd1"), partial)


# 3. Patterns.


def test_denoiser_patterns_are_anchored(flux):
    block = adapter_metadata(flux[0])
    patterns = [*block["transformer.rank_pattern"], *block["transformer.alpha_pattern"]]
    assert patterns
    assert all(pattern.startswith("^") for pattern in patterns)


def test_alphas_are_whole_numbers_where_they_can_be(flux):
    block = adapter_metadata(flux[0])
    alphas = [block["transformer.lora_alpha"], *block["transformer.alpha_pattern"].values()]
    assert {type(alpha) for alpha in alphas} == {int}


def test_unanchored_proj_out_hits_other_modules_of_flux(pipeline, tmp_path):
    """`proj_out` also ends the name of every single block's `proj_out`."""
    truth = by_peft.make(
        pipeline("flux1"),
        tmp_path / "theirs.safetensors",
        architecture="flux1",
        components={"transformer": lambda path: path.endswith("proj_out")},
        mixed=False,
    )

    def alpha_of_the_last(block, pattern):
        return {**block, "transformer.alpha_pattern": {pattern: 2 * block["transformer.lora_alpha"]}}

    anchored = rewritten(
        truth.path, tmp_path / "a.safetensors", metadata=lambda block: alpha_of_the_last(block, "^proj_out")
    )
    loose = rewritten(
        truth.path, tmp_path / "b.safetensors", metadata=lambda block: alpha_of_the_last(block, "proj_out")
    )
    singles = {place for place in truth.deltas if place[1].startswith("single_transformer_blocks.")}
    assert singles
    for file, doubled in ((anchored, set()), (loose, singles)):
        errors = compare(deltas_after_diffusers_load(pipeline("flux1"), file).deltas, truth.deltas).beyond(EXACT)
        assert errors == {place: pytest.approx(1) for place in {("transformer", "proj_out"), *doubled}}


def text_patterns(block, change):
    """The block with the names in the text encoders' patterns and targets changed."""
    changed = dict(block)
    for name, value in block.items():
        if name.startswith("text_encoder"):
            if name.endswith("_pattern"):
                changed[name] = {change(path): number for path, number in value.items()}
            elif name.endswith("target_modules"):
                changed[name] = [change(path) for path in value]
    return changed


def test_text_patterns_have_neither_text_model_nor_anchor(sdxl):
    block = adapter_metadata(sdxl[0])
    names = []
    text_patterns(block, lambda path: names.append(path) or path)
    assert names
    assert not any(name.startswith(("^", "text_model.")) for name in names)


def test_text_patterns_with_text_model_are_refused(sd1, pipeline, tmp_path):
    nested = rewritten(
        sd1[0],
        tmp_path / "nested.safetensors",
        metadata=lambda block: text_patterns(block, lambda path: f"text_model.{path}"),
    )
    with pytest.raises(NoMatchingPeftModuleError):
        deltas_after_diffusers_load(pipeline("sd1"), nested)


def test_anchored_text_patterns_do_not_reach_a_nested_class(pipeline, tmp_path):
    """SDXL's second text encoder keeps its `text_model.`: an anchored alpha pattern is ignored there."""
    truth = by_kohya.make(
        pipeline("sdxl"),
        tmp_path / "theirs.safetensors",
        architecture="sdxl",
        components={"text_encoder_2": lambda path: path.endswith(("q_proj", "k_proj"))},
        scales=((4, 4), (4, 2), (4, 1)),
    )
    file = to_diffusers(truth, tmp_path / "ours.safetensors")
    assert_loads(pipeline("sdxl"), file, truth)

    def anchored(block):
        patterns = block["text_encoder_2.alpha_pattern"]
        return {**block, "text_encoder_2.alpha_pattern": {f"^{path}": alpha for path, alpha in patterns.items()}}

    spoiled = rewritten(file, tmp_path / "anchored.safetensors", metadata=anchored)
    loaded = deltas_after_diffusers_load(pipeline("sdxl"), spoiled)
    deviating = len(adapter_metadata(file)["text_encoder_2.alpha_pattern"])
    assert deviating
    assert len(compare(loaded.deltas, truth.deltas).beyond(EXACT)) == deviating


# 4. Bytes, and no alpha tensors.


def test_factors_are_the_bytes_they_were(sd1):
    file, truth = sd1
    theirs = sorted(
        value.numpy().tobytes() for key, value in load_file(truth.path).items() if not key.endswith("alpha")
    )
    ours = load_file(file)
    assert not any("alpha" in key for key in ours)
    assert sorted(value.numpy().tobytes() for value in ours.values()) == theirs


def test_alpha_tensors_beside_lora_a_are_refused(sd1, pipeline, tmp_path):
    def add(tensors):
        for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
            tensors[key.replace(".lora_A.weight", ".alpha")] = torch.tensor(1.0)

    with_alpha = rewritten(sd1[0], tmp_path / "alpha.safetensors", tensors=add)
    with pytest.raises(ValueError, match="lora"):
        deltas_after_diffusers_load(pipeline("sd1"), with_alpha)


# 5. DoRA.


@pytest.fixture(scope="module")
def dora(pipeline, tmp_path_factory):
    """A DoRA file of ours, from a PEFT folder, and its truth."""
    folder = tmp_path_factory.mktemp("dora")
    truth = by_peft.make(
        pipeline("sd1"),
        folder / "theirs",
        architecture="sd1",
        container="peft",
        components={"unet": None, "text_encoder": None},
        most=30,
        use_dora=True,
    )
    return to_diffusers(truth, folder / "dora.safetensors"), truth


def test_dora_loads_in_unet_and_text_encoder(dora, pipeline):
    file, truth = dora
    assert_loads(pipeline("sd1"), file, truth)
    block = adapter_metadata(file)
    assert block["unet.use_dora"] is block["text_encoder.use_dora"] is True


def test_dora_of_lycoris_loads_after_conversion_and_wrong_before(pipeline, tmp_path):
    truth = by_lycoris.make(pipeline("sd1"), tmp_path / "theirs.safetensors", "dora")
    before = deltas_after_diffusers_load(pipeline("sd1"), truth.path)
    assert compare(before.deltas, truth.deltas).wrong(1e-3) == len(truth.deltas)
    assert_loads(pipeline("sd1"), to_diffusers(truth, tmp_path / "ours.safetensors"), truth)


def test_dora_magnitude_without_weight_is_silently_wrong_in_text_encoders(dora, pipeline, tmp_path):
    file, truth = dora
    bare = rewritten(file, tmp_path / "bare.safetensors", key=lambda key: key.replace("_vector.weight", "_vector"))
    loaded = deltas_after_diffusers_load(pipeline("sd1"), bare)
    wrong = compare(loaded.deltas, truth.deltas).beyond(1e-3)
    assert set(wrong) == {place for place in truth.deltas if place[0] == "text_encoder"}


def test_dora_on_some_modules_only_leaves_modules_without_data(dora, pipeline, tmp_path):
    def thin(tensors):
        magnitudes = [key for key in tensors if key.startswith("unet.") and "magnitude" in key]
        for key in magnitudes[::2]:
            del tensors[key]

    partial = rewritten(dora[0], tmp_path / "partial.safetensors", tensors=thin)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        deltas_after_diffusers_load(pipeline("sd1"), partial)


# 6. Folded alphas.


@pytest.mark.parametrize("architecture", ["flux1", "sdxl"])
def test_folded_alphas_load_with_every_delta(architecture, pipeline, third_party, tmp_path):
    truth = third_party("kohya", architecture)
    assert_loads(pipeline(architecture), to_diffusers(truth, tmp_path / "lora.safetensors", alpha="fold"), truth)


def test_text_projection_of_another_rank_needs_the_metadata(sdxl, pipeline, tmp_path):
    file, truth = sdxl
    assert ("text_encoder_2", "text_projection") in truth.deltas
    with safe_open(file, "pt") as opened:
        stored = {name: value for name, value in opened.metadata().items() if name != METADATA}
    save_file(load_file(file), tmp_path / "bare.safetensors", metadata=stored)
    with pytest.raises(RuntimeError, match="mismatch"):
        deltas_after_diffusers_load(pipeline("sdxl"), tmp_path / "bare.safetensors")


# 7. Sources that diffusers gets wrong as they are.


def test_kohya_alphas_by_module_are_scaled_wrong_without_conversion(sd1, pipeline):
    file, truth = sd1
    theirs = compare(deltas_after_diffusers_load(pipeline("sd1"), truth.path).deltas, truth.deltas)
    wrong = theirs.beyond(1e-3)
    assert any(".attn" in path for component, path in wrong if component == "unet")
    assert any(component == "text_encoder" for component, _ in wrong)
    assert not any(".attn" not in path for component, path in wrong if component == "unet")
    assert_loads(pipeline("sd1"), file, truth)


def test_kohya_text_encoder_without_out_proj_loses_attention_without_conversion(pipeline, tmp_path):
    truth = by_kohya.make(
        pipeline("sd1"),
        tmp_path / "theirs.safetensors",
        architecture="sd1",
        components={"text_encoder": lambda path: path.endswith(("q_proj", "v_proj", "fc1"))},
    )
    theirs = compare(deltas_after_diffusers_load(pipeline("sd1"), truth.path).deltas, truth.deltas)
    assert {path.rsplit(".", 1)[1] for _, path in theirs.missing} == {"q_proj", "v_proj"}
    assert_loads(pipeline("sd1"), to_diffusers(truth, tmp_path / "ours.safetensors"), truth)


def test_rslora_loads_in_diffusers_and_in_peft(pipeline, tmp_path):
    truth = by_peft.make(
        pipeline("sd1"),
        tmp_path / "theirs",
        architecture="sd1",
        container="peft",
        components={"unet": None, "text_encoder": None},
        most=20,
        use_rslora=True,
    )
    assert_loads(pipeline("sd1"), to_diffusers(truth, tmp_path / "ours.safetensors"), truth)
    lt.convert(truth.path, to="peft", arch="sd1").save(tmp_path / "ours")
    unet = fresh(pipeline("sd1")).unet
    loaded = deltas_after_peft_load("unet", unet, tmp_path / "ours" / "unet")
    want = {place: delta for place, delta in truth.deltas.items() if place[0] == "unet"}
    assert compare(loaded.deltas, want).wrong(EXACT) == 0


def test_text_encoder_alone_loads(pipeline, tmp_path):
    truth = by_kohya.make(
        pipeline("sdxl"), tmp_path / "theirs.safetensors", architecture="sdxl", components={"text_encoder_2": None}
    )
    assert_loads(pipeline("sdxl"), to_diffusers(truth, tmp_path / "ours.safetensors"), truth)


# PEFT folders.


def test_peft_folder_spells_clip_as_the_installed_class(sdxl, tmp_path):
    _, truth = sdxl
    out = tmp_path / "peft"
    lt.convert(truth.path, to="peft", arch="sdxl").save(out)
    first = load_file(out / "text_encoder" / "adapter_model.safetensors")
    second = load_file(out / "text_encoder_2" / "adapter_model.safetensors")
    assert all(key.startswith("base_model.model.encoder.") for key in first)
    assert all(key.startswith(("base_model.model.text_model.", "base_model.model.text_projection.")) for key in second)


def test_peft_folder_with_text_model_is_refused_by_the_flat_class(third_party, pipeline, tmp_path):
    out = tmp_path / "peft"
    lt.convert(third_party("kohya", "sd1").path, to="peft", arch="sd1", clip_prefix="text_model").save(out)
    text_encoder = fresh(pipeline("sd1")).text_encoder
    with pytest.raises(NoMatchingPeftModuleError):
        deltas_after_peft_load("text_encoder", text_encoder, out / "text_encoder")


def test_peft_patterns_are_anchored(flux, tmp_path):
    out = tmp_path / "peft"
    lt.convert(flux[1].path, to="peft", arch="flux1").save(out)
    config = json.loads((out / "transformer" / "adapter_config.json").read_text())
    patterns = [*config["rank_pattern"], *config["alpha_pattern"]]
    assert patterns
    assert all(pattern.startswith("^") for pattern in patterns)


def test_diffusers_does_not_read_a_peft_folder(third_party, pipeline, tmp_path):
    out = tmp_path / "peft"
    lt.convert(third_party("kohya", "sd1").path, to="peft", arch="sd1").save(out)
    loaded = deltas_after_diffusers_load(pipeline("sd1"), out / "unet" / "adapter_model.safetensors")
    assert loaded.deltas == {}
