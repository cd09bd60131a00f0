"""Merged weights are the float64 sum of the base's and of what third parties' own layers add, in every container."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.architectures.registry import architecture
from loratools.errors import ArchitectureMismatch, OutputRefused, PartialMatch
from loratools.pipelines.single_file import export_single_file
from tests.bases.making import spelt
from tests.judges import by_lycoris, by_peft
from tests.judges.fresh import fresh
from tests.judges.truth import place

SCALE = 0.7
EXACT = 1e-6


def weights_of(folder):
    """(component, canonical path, leaf) → tensor, from the files of a pipeline folder."""
    found = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        for key, tensor in load_file(file).items():
            path, _, leaf = key.rpartition(".")
            found[*place(file.parent.name, path), leaf] = tensor
    return found


def weights_in_single_file(file, folder, dtype=torch.float32):
    """The same of a single file, as diffusers itself renames it."""
    cls = type(fresh(folder))
    pipeline = cls.from_single_file(str(file), config=str(folder), local_files_only=True, torch_dtype=dtype)
    found = {}
    for component in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(pipeline, component, None)
        for key, tensor in (model.state_dict() if model is not None else {}).items():
            path, _, leaf = key.rpartition(".")
            found[*place(component, path), leaf] = tensor
    return found


def expected(before, truths):
    """The float64 sums, for the places that truths (with their scales) touch."""
    found = {}
    for truth, scale in truths:
        for leaf, changes in (("weight", truth.deltas), ("bias", truth.biases)):
            for where, delta in changes.items():
                key = (*where, leaf)
                found.setdefault(key, before[key].double())
                found[key] = found[key] + scale * delta.reshape(before[key].shape)
    return found


def assert_sums(before, after, truths, tolerance=EXACT):
    wanted = expected(before, truths)
    assert wanted
    assert before.keys() == after.keys()
    wrong = {
        key: float((after[key].double() - value).norm() / value.norm())
        for key, value in wanted.items()
        if not (after[key].double() - value).norm() <= tolerance * value.norm()
    }
    assert not wrong
    assert all(torch.equal(after[key], before[key]) for key in before if key not in wanted)


@pytest.fixture(scope="session")
def single(pipeline, tmp_path_factory):
    """architecture → the single LDM file of its tiny pipeline."""
    made = {}

    def file(architecture):
        if architecture not in made:
            made[architecture] = tmp_path_factory.mktemp("single") / f"{architecture}.safetensors"
            export_single_file(pipeline(architecture), made[architecture], architecture)
        return made[architecture]

    return file


@pytest.mark.parametrize("container", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_merged_folder_is_the_float64_sum(architecture, container, pipeline, third_party, tmp_path):
    truth = third_party(container, architecture)
    done = lt.merge(pipeline(architecture), [(truth.path, SCALE)], tmp_path / "merged", arch=architecture)
    assert_sums(weights_of(pipeline(architecture)), weights_of(tmp_path / "merged"), [(truth, SCALE)])
    assert done.plan.changed == len(done.layers) == len(truth.deltas) + len(truth.biases)
    DiffusionPipeline.from_pretrained(tmp_path / "merged", local_files_only=True)


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_merged_single_file_is_the_float64_sum_as_diffusers_reads_it(
    architecture, pipeline, third_party, single, tmp_path
):
    truth = third_party("kohya", architecture)
    out = tmp_path / "merged.safetensors"
    lt.merge(single(architecture), [(truth.path, SCALE)], out, arch=architecture)
    before = weights_in_single_file(single(architecture), pipeline(architecture))
    assert_sums(before, weights_in_single_file(out, pipeline(architecture)), [(truth, SCALE)])
    source, made = load_file(single(architecture)), load_file(out)
    assert list(source) == list(made)
    assert all(torch.equal(source[key], made[key]) for key in source if key.startswith("first_stage_model."))


@pytest.mark.parametrize("container", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize("naming", ["diffusers", "bfl"])
def test_fused_and_split_layers_get_the_same_sum(naming, container, pipeline, third_party, tmp_path):
    truth = third_party(container, "flux1")
    before = weights_of(pipeline("flux1"))
    changes = [(truth, SCALE)]
    places = {
        where: before[key].shape for key in before if (where := key[:2])[0] == "transformer" and key[2] == "weight"
    }
    named = architecture("flux1").denoiser.naming(naming)
    table = {path: shape for (_, path), shape in places.items()}

    def file(values):
        pairs = {path: (values["transformer", path, "weight"], bias(values, path)) for path in table}
        return spelt(named, table, pairs)

    def bias(values, path):
        found = values.get(("transformer", path, "bias"))
        return (
            torch.zeros(table[path][0], dtype=values["transformer", path, "weight"].dtype) if found is None else found
        )

    save_file(file(before), tmp_path / "base.safetensors")
    how = {"arch": "flux1", "components": ["transformer"]}
    lt.merge(tmp_path / "base.safetensors", [(truth.path, SCALE)], tmp_path / "merged.safetensors", **how)
    wanted = file({key: value.double() for key, value in before.items()} | expected(before, changes))
    after = load_file(tmp_path / "merged.safetensors")
    assert after.keys() == wanted.keys()
    for key, value in wanted.items():
        assert (after[key].double() - value).norm() <= EXACT * value.norm(), key


@pytest.mark.parametrize("kind", by_lycoris.KINDS)
def test_every_lycoris_kind_merges_as_its_layers_compute(kind, pipeline, tmp_path):
    truth = by_lycoris.make(pipeline("sd1"), tmp_path / "lycoris.safetensors", kind)
    lt.merge(pipeline("sd1"), [truth.path], tmp_path / "merged", arch="sd1")
    tolerance = 1e-5 if kind in by_lycoris.FLOAT32_INSIDE else EXACT
    assert_sums(weights_of(pipeline("sd1")), weights_of(tmp_path / "merged"), [(truth, 1.0)], tolerance)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}])
def test_peft_options_merge_as_peft_merges_them(options, pipeline, tmp_path):
    truth = by_peft.make(
        pipeline("sd1"),
        tmp_path / "adapter",
        architecture="sd1",
        container="peft",
        components={"unet": None, "text_encoder": None},
        most=24,
        **options,
    )
    lt.merge(pipeline("sd1"), [truth.path], tmp_path / "merged")
    assert_sums(weights_of(pipeline("sd1")), weights_of(tmp_path / "merged"), [(truth, 1.0)])


def test_several_adapters_of_several_formats_add_up(pipeline, third_party, tmp_path):
    truths = [(third_party("kohya", "sd1"), 0.5), (third_party("peft", "sd1"), -0.25)]
    loha = by_lycoris.make(pipeline("sd1"), tmp_path / "loha.safetensors", "loha")
    truths.append((loha, 1.5))
    lt.merge(pipeline("sd1"), [(truth.path, scale) for truth, scale in truths], tmp_path / "merged", arch="sd1")
    assert_sums(weights_of(pipeline("sd1")), weights_of(tmp_path / "merged"), truths)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_float64_sum(dtype, pipeline, third_party, tmp_path):
    half = DiffusionPipeline.from_pretrained(pipeline("sd1"), local_files_only=True, torch_dtype=dtype)
    half.save_pretrained(tmp_path / "half")
    truth = third_party("kohya", "sd1")
    done = lt.merge(tmp_path / "half", [(truth.path, SCALE)], tmp_path / "merged", arch="sd1")
    before, after = weights_of(tmp_path / "half"), weights_of(tmp_path / "merged")
    equal = total = 0
    for key, value in expected(before, [(truth, SCALE)]).items():
        rounded = value.to(dtype)
        assert after[key].dtype == dtype
        equal += int((after[key] == rounded).sum())
        total += rounded.numel()
        steps = (after[key].view(torch.int16).int() - rounded.view(torch.int16).int()).abs()
        assert int(steps[after[key].sign() == rounded.sign()].max()) <= 1
    assert equal >= 0.999 * total
    layer = max(done.layers, key=lambda item: item.lost)
    assert 0 < layer.lost < 1


def test_merge_is_what_fuse_lora_does(pipeline, third_party, tmp_path):
    truth = third_party("diffusers", "sdxl")
    lt.merge(pipeline("sdxl"), [(truth.path, SCALE)], tmp_path / "merged")
    fused = fresh(pipeline("sdxl"))
    fused.load_lora_weights(truth.path)
    fused.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"], lora_scale=SCALE)
    fused.unload_lora_weights()
    ours = DiffusionPipeline.from_pretrained(tmp_path / "merged", local_files_only=True)
    for component in ("unet", "text_encoder", "text_encoder_2"):
        theirs = getattr(fused, component).state_dict()
        for key, value in getattr(ours, component).state_dict().items():
            assert (value - theirs[key]).norm() <= EXACT * theirs[key].norm()


def test_a_scale_by_component_by_pattern_and_by_block(pipeline, third_party, tmp_path):
    truth = third_party("kohya", "sd1")
    before = weights_of(pipeline("sd1"))
    lt.merge(pipeline("sd1"), [truth.path], tmp_path / "a", arch="sd1", scale="unet=0.5,text_encoder=0")
    lt.merge(
        pipeline("sd1"), [truth.path], tmp_path / "b", arch="sd1", weights=["unet.down_blocks.*=0", "*.mid_block.*=2"]
    )
    blocks = ",".join(["0"] * 13 + ["1"] + ["0"] * 11 + ["0.5"])
    lt.merge(pipeline("sd1"), [truth.path], tmp_path / "c", arch="sd1", weights=[blocks])
    full = expected(before, [(truth, 1.0)])
    weigh = {
        "a": lambda key: 0.5 if key[0] == "unet" else 0.0,
        "b": lambda key: 0.0 if key[1].startswith("down_blocks.") else 2.0 if key[1].startswith("mid_block.") else 1.0,
        "c": lambda key: (
            1.0 if key[1].startswith("mid_block.") else 0.5 if key[1].startswith("up_blocks.3.attentions.2.") else 0.0
        ),
    }
    for name, weight in weigh.items():
        after = weights_of(tmp_path / name)
        for key, value in full.items():
            if name == "c" and key[1].startswith("up_blocks.3.resnets.2"):
                continue
            wanted = before[key].double() + weight(key) * (value - before[key].double())
            assert (after[key].double() - wanted).norm() <= EXACT * wanted.norm(), (name, key)


def test_scale_zero_gives_the_bases_bytes(pipeline, third_party, single, tmp_path):
    out = tmp_path / "same.safetensors"
    done = lt.merge(single("sd1"), [(third_party("kohya", "sd1").path, 0.0)], out, arch="sd1")
    assert done.plan.changed == 0
    source, made = load_file(single("sd1")), load_file(out)
    assert list(source) == list(made)
    assert all(torch.equal(source[key], made[key]) for key in source)


def test_a_change_and_its_opposite_cancel_within_rounding(pipeline, third_party, tmp_path):
    path = third_party("kohya", "sd1").path
    lt.merge(pipeline("sd1"), [(path, 1.0)], tmp_path / "there", arch="sd1")
    lt.merge(tmp_path / "there", [(path, -1.0)], tmp_path / "back", arch="sd1")
    before, after = weights_of(pipeline("sd1")), weights_of(tmp_path / "back")
    assert all((after[key] - before[key]).norm() <= 1e-6 * before[key].norm() + 1e-7 for key in before)


def test_a_partial_match_is_refused_and_a_wrong_base_always(pipeline, third_party, tmp_path):
    truth = third_party("kohya", "sd1")
    unet = pipeline("sd1") / "unet"
    with pytest.raises(PartialMatch) as caught:
        lt.merge(unet, [truth.path], tmp_path / "merged", arch="sd1")
    assert caught.value.exit_code == 4
    assert "text_encoder" in caught.value.message
    done = lt.merge(unet, [truth.path], tmp_path / "merged", arch="sd1", allow_partial=True)
    (applied,) = done.plan.adapters
    assert applied.matched == {"unet": applied.modules["unet"]}
    assert len(applied.unmatched) == applied.modules["text_encoder"]
    chosen = lt.merge(unet, [truth.path], tmp_path / "chosen", arch="sd1", components=["unet"])
    assert not chosen.plan.adapters[0].unmatched
    UNet2DConditionModel.from_pretrained(tmp_path / "merged", local_files_only=True)
    with pytest.raises(ArchitectureMismatch):
        lt.merge(pipeline("sdxl"), [truth.path], tmp_path / "wrong", arch="sd1", allow_partial=True)
    only = tmp_path / "te.safetensors"
    save_file({key: value for key, value in load_file(truth.path).items() if key.startswith("lora_te")}, only)
    with pytest.raises(PartialMatch):
        lt.merge(unet, [only], tmp_path / "none", arch="sd1", allow_partial=True)
    assert not (tmp_path / "wrong").exists()
    assert not (tmp_path / "none").exists()


def test_a_folder_keeps_its_variants_and_leaves_stale_weights_out(pipeline, third_party, tmp_path):
    whole = fresh(pipeline("sd1"))
    whole.save_pretrained(tmp_path / "base")
    whole.to(dtype=torch.float16).save_pretrained(tmp_path / "base", variant="fp16")
    (tmp_path / "base" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"old")
    (tmp_path / "base" / "README.md").write_text("mine")
    truth = third_party("kohya", "sd1")
    done = lt.merge(tmp_path / "base", [(truth.path, SCALE)], tmp_path / "merged", arch="sd1")
    assert [line.partition(":")[0] for line in done.plan.left_out] == ["unet/diffusion_pytorch_model.bin"]
    assert (tmp_path / "merged" / "README.md").read_text() == "mine"
    assert not (tmp_path / "merged" / "unet" / "diffusion_pytorch_model.bin").exists()
    full = DiffusionPipeline.from_pretrained(tmp_path / "merged", local_files_only=True)
    half = DiffusionPipeline.from_pretrained(
        tmp_path / "merged", local_files_only=True, variant="fp16", torch_dtype=torch.float16
    )
    for component in ("unet", "text_encoder"):
        theirs = getattr(half, component).state_dict()
        for key, value in getattr(full, component).state_dict().items():
            assert (theirs[key].float() - value).norm() <= 2e-3 * value.norm() + 1e-6


def test_shards_are_written_and_read(pipeline, third_party, single, tmp_path):
    truth = third_party("kohya", "sd1")
    lt.merge(pipeline("sd1"), [(truth.path, SCALE)], tmp_path / "small", arch="sd1", max_shard_size=1_000_000)
    index = json.loads((tmp_path / "small/unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert_sums(weights_of(pipeline("sd1")), weights_of(tmp_path / "small"), [(truth, SCALE)])
    DiffusionPipeline.from_pretrained(tmp_path / "small", local_files_only=True)
    again = lt.merge(tmp_path / "small", [(truth.path, -SCALE)], tmp_path / "back", arch="sd1")
    assert again.plan.changed
    assert (tmp_path / "back/unet/diffusion_pytorch_model.safetensors.index.json").exists()
    lt.merge(single("sd1"), [truth.path], tmp_path / "shards", arch="sd1", max_shard_size=2_000_000)
    assert (tmp_path / "shards/model.safetensors.index.json").exists()


def test_the_output_is_never_in_the_input_and_if_needed_does_nothing_twice(pipeline, third_party, tmp_path):
    truth = third_party("kohya", "sd1")
    base = tmp_path / "base"
    fresh(pipeline("sd1")).save_pretrained(base)
    with pytest.raises(OutputRefused):
        lt.merge(base, [truth.path], base / "merged", arch="sd1")
    first = lt.merge(base, [truth.path], tmp_path / "merged", arch="sd1")
    again = lt.merge(base, [truth.path], tmp_path / "merged", arch="sd1", overwrite=True, if_needed=True)
    other = lt.merge(base, [(truth.path, 0.5)], tmp_path / "merged", arch="sd1", overwrite=True, if_needed=True)
    assert (first.skipped, again.skipped, other.skipped) == (False, True, False)


def test_any_number_of_threads_gives_the_same_bytes(single, third_party, tmp_path):
    for threads in (1, 3):
        lt.merge(
            single("sd1"), [third_party("kohya", "sd1").path], tmp_path / f"{threads}.safetensors", arch="sd1",
            threads=threads,
        )  # fmt: skip
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "3.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_another_dtype_is_every_floats(dtype, single, third_party, tmp_path):
    names = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    out = tmp_path / "cast.safetensors"
    lt.merge(single("sd1"), [third_party("kohya", "sd1").path], out, arch="sd1", dtype=dtype)
    assert {tensor.dtype for tensor in load_file(out).values() if tensor.is_floating_point()} == {names[dtype]}
