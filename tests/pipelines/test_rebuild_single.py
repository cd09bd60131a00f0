"""A single file becomes the pipeline it was made of: the same bytes under other names, configured or refused."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.architectures.registry import architecture
from loratools.bases.checkpoint import Checkpoint, WeightsFile, open_checkpoint
from loratools.bases.weights import open_base
from loratools.errors import (
    ArchitectureMismatch,
    PathNotFound,
    ResourceError,
    Unavailable,
    UnknownKeys,
    UnsafeFile,
    UnsupportedFile,
    UsageError,
    WrongRole,
)
from loratools.operations.rebuild import plan_rebuild
from loratools.pipelines import trial
from loratools.pipelines.assembly import assemble
from loratools.pipelines.hints import built_in_settings
from loratools.pipelines.single_file import export_single_file
from loratools.pipelines.unpack import unpack
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import MemoryTensors
from tests.formats.test_corpus import CORPUS, document

UNET = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="session")
def single(pipeline, tmp_path_factory):
    """architecture → the LDM file of its tiny pipeline."""
    made = {}

    def file(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("single") / f"{name}.safetensors"
            export_single_file(pipeline(name), made[name], name)
        return made[name]

    return file


def weights(folder):
    """(component, key) → tensor, with the level that versions of transformers differ in."""
    return {
        (file.parent.name, key.removeprefix("text_model.")): tensor
        for file in folder.glob("*/*.safetensors")
        for key, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_a_single_file_gives_back_every_byte_of_its_pipeline(name, pipeline, single, tmp_path):
    done = lt.rebuild(single(name), [], tmp_path / "out", config=pipeline(name), arch=name, check=name == "sd1")
    ours, theirs = weights(tmp_path / "out"), weights(pipeline(name))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(value) and ours[key].dtype == value.dtype for key, value in theirs.items())
    assert name != "sd1" or done.trial.pixels == (64, 64)
    assert done.plan.left_out == ()


@pytest.mark.skipif(not CORPUS, reason="LORATOOLS_CORPUS names no folder of key inventories")
@pytest.mark.parametrize(
    ("name", "real"), [("sd1", "sd15_ldm_pruned_real"), ("sd2", "sd21_ldm_real"), ("sdxl", "sdxl_sgm_real")]
)
def test_names_and_dimensions_are_those_of_the_files_in_circulation(name, real, single):
    known = document(f"base_{real}.json.gz")["tensors"]
    for key, tensor in load_file(single(name)).items():
        assert tensor.ndim == len(known[key]["shape"]), key


def test_a_merge_into_a_single_file_is_the_merge_into_its_pipeline(pipeline, single, third_party, tmp_path):
    given = [(third_party("kohya", "sd2").path, 0.5), third_party("peft", "sd2").path]
    lt.rebuild(pipeline("sd2"), given, tmp_path / "a", arch="sd2", check=False)
    out = tmp_path / "c.safetensors"
    lt.rebuild(single("sd2"), given, tmp_path / "b", single_file=out, config=pipeline("sd2"), arch="sd2", check=False)
    ours, theirs = weights(tmp_path / "b"), weights(tmp_path / "a")
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(value) for key, value in theirs.items())
    alone = tmp_path / "d.safetensors"
    lt.rebuild(pipeline("sd2"), given, single_file=alone, arch="sd2")
    one, other = load_file(out), load_file(alone)
    assert one.keys() == other.keys()
    assert all(one[key].equal(value) for key, value in other.items())


def test_averages_and_schedules_are_listed_and_unknown_tensors_refused(pipeline, single, tmp_path):
    held = load_file(single("sd1"))
    extra = {"model_ema.decay": torch.tensor(0.9), "alphas_cumprod": torch.rand(10)}
    save_file(held | extra, tmp_path / "full.safetensors")
    done = lt.rebuild(
        tmp_path / "full.safetensors", [], tmp_path / "a", config=pipeline("sd1"), arch="sd1", check=False
    )
    assert len(done.plan.left_out) == 2
    save_file(held | {"first_stage_model.mystery.weight": torch.rand(3)}, tmp_path / "odd.safetensors")
    how = {"config": pipeline("sd1"), "arch": "sd1", "check": False}
    with pytest.raises(UnknownKeys) as refused:
        lt.rebuild(tmp_path / "odd.safetensors", [], tmp_path / "b", **how)
    assert refused.value.key == "first_stage_model.mystery.weight"
    done = lt.rebuild(tmp_path / "odd.safetensors", [], tmp_path / "b", **how, allow_partial=True)
    assert "first_stage_model.mystery.weight" in done.plan.left_out[0]


def test_a_pickled_checkpoint_needs_leave(pipeline, single, tmp_path):
    torch.save({"state_dict": load_file(single("sd1"))}, tmp_path / "base.ckpt")
    how = {"config": pipeline("sd1"), "arch": "sd1", "check": False}
    with pytest.raises(UnsafeFile):
        lt.rebuild(tmp_path / "base.ckpt", [], tmp_path / "out", **how)
    lt.rebuild(tmp_path / "base.ckpt", [], tmp_path / "out", **how, unsafe_pickle=True)
    ours = weights(tmp_path / "out")
    assert all(ours[key].equal(value) for key, value in weights(pipeline("sd1")).items())


def test_shapes_that_disagree_with_the_configuration_are_refused_before_anything_is_written(pipeline, single, tmp_path):
    config = tmp_path / "config"
    shutil.copytree(pipeline("sd1"), config, ignore=shutil.ignore_patterns("*.safetensors"))
    told = json.loads((config / "unet/config.json").read_text())
    (config / "unet/config.json").write_text(json.dumps(told | {"cross_attention_dim": 40}))
    with pytest.raises(ArchitectureMismatch) as refused:
        lt.rebuild(single("sd1"), [], tmp_path / "out", config=config, arch="sd1")
    assert "attn2.to_k" in refused.value.key
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArchitectureMismatch):
        lt.rebuild(single("sd1"), [], tmp_path / "out", arch="sd1")  # a tiny model is none of the published ones


def test_a_scheduler_with_infinity_in_its_configuration_goes_along(pipeline, single, tmp_path):
    """diffusers writes -Infinity into the configuration of its DPM-Solver."""
    from diffusers import DPMSolverMultistepScheduler

    shutil.copytree(pipeline("sd2"), tmp_path / "base")
    DPMSolverMultistepScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "base" / "scheduler")
    stated = (tmp_path / "base" / SCHEDULER).read_bytes()
    assert b"-Infinity" in stated
    how = {"arch": "sd2", "check": False}
    lt.rebuild(single("sd2"), [], tmp_path / "of_file", config=tmp_path / "base", **how)
    assert (tmp_path / "of_file" / SCHEDULER).read_bytes() == stated
    lt.rebuild(tmp_path / "base", [], single_file=tmp_path / "out.safetensors", **how)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "v"


def test_layers_that_the_configuration_lacks_are_named(pipeline, single, tmp_path):
    config = tmp_path / "config"
    shutil.copytree(pipeline("sd1"), config, ignore=shutil.ignore_patterns("*.safetensors"))
    told = json.loads((config / "text_encoder/config.json").read_text())
    (config / "text_encoder/config.json").write_text(json.dumps(told | {"num_hidden_layers": 1}))
    with pytest.raises(ArchitectureMismatch, match="no place for 16 weights") as refused:
        lt.rebuild(single("sd1"), [], tmp_path / "out", config=config, arch="sd1")
    assert "encoder.layers.1" in refused.value.key


def test_what_the_file_lacks_comes_from_the_configuration_or_is_asked_for(pipeline, single, tmp_path):
    held = load_file(single("sd1"))
    unet = {key: value for key, value in held.items() if not key.startswith(("first_stage", "cond_stage"))}
    save_file(unet, tmp_path / "unet.safetensors")
    done = lt.rebuild(tmp_path / "unet.safetensors", [], tmp_path / "out", config=pipeline("sd1"), arch="sd1")
    assert len(done.linked) == 2
    assert sum("taken from" in line for line in done.warnings) == 2
    config = tmp_path / "config"
    shutil.copytree(pipeline("sd1"), config, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(Unavailable, match="holds no") as refused:
        lt.rebuild(tmp_path / "unet.safetensors", [], tmp_path / "other", config=config, arch="sd1")
    assert "--config" in refused.value.hint


@pytest.fixture
def bare(pipeline, tmp_path):
    """architecture → a configuration without tokenizers and weights."""

    def folder(name):
        shutil.copytree(pipeline(name), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
        return tmp_path / "bare"

    return folder


def test_a_tokenizer_is_never_invented(pipeline, single, bare, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    config = bare("sdxl")
    how = {"config": config, "arch": "sdxl"}
    with pytest.raises(Unavailable, match="no tokenizer and no tokenizer_2") as refused:
        plan_rebuild(single("sdxl"), **how)
    assert "--tokenizer tokenizer=DIR" in refused.value.hint
    first, second = (str(pipeline("sdxl") / name) for name in ("tokenizer", "tokenizer_2"))
    with pytest.raises(UsageError, match="2 tokenizers"):
        plan_rebuild(single("sdxl"), **how, tokenizer=first)
    with pytest.raises(PathNotFound):
        plan_rebuild(single("sdxl"), **how, tokenizer=[f"tokenizer={first}", f"tokenizer_2={config}"])
    for given in (pipeline("sdxl"), [f"tokenizer={first}", f"tokenizer_2={second}"]):
        planned = plan_rebuild(single("sdxl"), **how, tokenizer=given).output.extra
        for name in ("tokenizer", "tokenizer_2"):
            file = planned[f"{name}/tokenizer.json"]
            assert file.read(0, file.size) == (pipeline("sdxl") / name / "tokenizer.json").read_bytes()


def test_a_tokenizer_is_found_in_the_cache_of_the_hub(pipeline, single, bare, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    repository = cache / "models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    place = repository / "snapshots" / ("a" * 40) / "tokenizer"
    shutil.copytree(pipeline("sd1") / "tokenizer", place)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    lt.rebuild(single("sd1"), [], tmp_path / "out", config=bare("sd1"), arch="sd1")
    assert (tmp_path / "out/tokenizer/tokenizer.json").read_bytes() == (place / "tokenizer.json").read_bytes()


def test_options_for_single_files_make_no_sense_for_folders(pipeline, tmp_path):
    with pytest.raises(UsageError, match="--config"):
        lt.rebuild(pipeline("sd1"), [], tmp_path / "out", config=pipeline("sd1"))
    with pytest.raises(WrongRole):
        lt.rebuild(pipeline("sd1") / "vae", [], tmp_path / "out")


def shaped(sizes, metadata=None):
    """A single file of these keys and shapes, all zeros, without memory."""
    tensors = {key: LazyTensor.zeros(dtype or "F32", shape) for key, (dtype, shape) in sizes.items()}
    source = MemoryTensors(tensors, metadata, name="file")
    item = WeightsFile("file.safetensors", source, tuple(source.keys()), source.metadata)
    return Checkpoint("file", False, (item,), {}, open_base("file", [(None, source)]))


def inventory(name):
    return {key: (entry["dtype"], entry["shape"]) for key, entry in document(name)["tensors"].items()}


@pytest.mark.skipif(not CORPUS, reason="LORATOOLS_CORPUS names no folder of key inventories")
@pytest.mark.parametrize(
    ("name", "identifier", "pipeline_class", "counts"),
    [
        ("base_sd15_ldm_real.json.gz", "sd1", "StableDiffusionPipeline", (686, 196, 248)),
        ("base_sd15_inpainting_ldm_real.json.gz", "sd1", "StableDiffusionInpaintPipeline", (686, 196, 248)),
        ("base_sd21_ldm_real.json.gz", "sd2", "StableDiffusionPipeline", (686, 372, 248)),
        ("base_sdxl_sgm_real.json.gz", "sdxl", "StableDiffusionXLPipeline", (1680, 196, 517, 248)),
    ],
)
def test_published_files_fit_the_built_in_configurations_to_the_last_weight(name, identifier, pipeline_class, counts):
    file, table = shaped(inventory(name)), architecture(identifier)
    settings = built_in_settings(file, table).settings
    assembly = assemble(file, unpack(file, table), table, settings)
    assert tuple(len(item.keys) for item in assembly.checkpoint.weights) == counts
    assert assembly.index["_class_name"] == pipeline_class


def test_what_stable_diffusion_2_predicts_is_told_by_metadata_marks_or_an_assumption(pipeline, single):
    held = {key: (tensor.dtype, tensor.shape) for key, tensor in _tensors(single("sd2")).items()}
    table = architecture("sd2")

    def predicted(sizes, metadata=None, given=None):
        hints = built_in_settings(shaped(sizes, metadata), table, given)
        return hints.settings.configs["scheduler"]["prediction_type"], len(hints.warnings)

    assert predicted(held) == ("v_prediction", 1)
    assert predicted(held, given="epsilon") == ("epsilon", 0)
    assert predicted(held, {"modelspec.architecture": "stable-diffusion-v2-512"}) == ("epsilon", 0)
    assert predicted(held, {"modelspec.architecture": "stable-diffusion-v2-768-v"}) == ("v_prediction", 0)
    assert predicted(held, {"modelspec.prediction_type": "eps"}) == ("epsilon", 0)
    assert predicted(held | {"v_pred": ("F32", (0,))}) == ("v_prediction", 0)
    with pytest.raises(UsageError):
        predicted(held, given="epsilonn")


def _tensors(file):
    source = open_checkpoint(file).weights[0].part
    return {key: source[key] for key in source}


def test_the_single_file_of_stable_diffusion_2_says_what_it_predicts(pipeline, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(ArchitectureMismatch, match="sd1 or sd2"):  # which nothing but the widths would tell
        lt.rebuild(pipeline("sd2"), [], single_file=out, check=False)
    lt.rebuild(pipeline("sd2"), [], single_file=out, arch="sd2", check=False)
    hints = built_in_settings(open_checkpoint(out), architecture("sd2"))
    scheduler = json.loads((pipeline("sd2") / SCHEDULER).read_text())
    assert hints.settings.configs["scheduler"]["prediction_type"] == scheduler["prediction_type"]
    assert hints.warnings == ()


def test_inputs_of_more_channels_pick_the_pipeline_that_feeds_them(single):
    held = {key: (tensor.dtype, tensor.shape) for key, tensor in _tensors(single("sd1")).items()}
    first = "model.diffusion_model.input_blocks.0.0.weight"
    dtype, (rows, _, *kernel) = held[first]
    hints = built_in_settings(shaped(held | {first: (dtype, (rows, 9, *kernel))}), architecture("sd1"))
    assert hints.settings.index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert hints.settings.configs["unet"]["in_channels"] == 9


def test_nothing_is_left_where_the_disk_has_no_room_or_the_user_stops(pipeline, single, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("loratools.operations.rebuilding.pending.try_folder", stop)
    with pytest.raises(KeyboardInterrupt):
        lt.rebuild(single("sd1"), [], tmp_path / "out", config=pipeline("sd1"), arch="sd1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["pipelines.trial.run_step", "tensors.folder._rename_folder"])
def test_a_folder_and_a_single_file_are_both_there_or_neither(fault, pipeline, single, tmp_path, monkeypatch):
    """Whichever of the two fails last: the file that diffusers does not run, the folder that gets no name."""
    run = trial.run_step

    def fail(subject, place, **_):
        if fault.endswith("run_step") and place.is_dir():
            return run(subject, place)
        raise UnsupportedFile("not so", path=place)

    how = {"config": pipeline("sd1"), "arch": "sd1", "single_file": tmp_path / "out.safetensors"}
    monkeypatch.setattr(f"loratools.{fault}", fail)
    with pytest.raises(UnsupportedFile) as refused:
        lt.rebuild(single("sd1"), [], tmp_path / "out", **how)
    assert not fault.endswith("run_step") or refused.value.path == str(tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    done = lt.rebuild(single("sd1"), [], tmp_path / "out", **how, check=False)
    assert done.single_size == (tmp_path / "out.safetensors").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.safetensors"]


def test_a_disk_with_room_for_one_of_two_outputs_is_full_before_anything_is_written(
    pipeline, single, tmp_path, monkeypatch
):
    size = sum(file.stat().st_size for file in pipeline("sd1").rglob("*.safetensors"))
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_bavail=int(1.5 * size), f_frsize=1))
    how = {"config": pipeline("sd1"), "arch": "sd1"}
    pending = plan_rebuild(single("sd1"), [], **how)
    pending.preview(tmp_path / "out")
    pending.preview(None, single_file=tmp_path / "out.safetensors")
    with pytest.raises(ResourceError, match="not enough disk space"):
        pending.preview(tmp_path / "out", single_file=tmp_path / "out.safetensors")
