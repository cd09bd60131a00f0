"""A rebuilt pipeline is the base with the adapters' deltas in its weights, as diffusers itself loads and runs it."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

import loratools as lt
from loratools.errors import OutputExists, UnsupportedFile
from loratools.pipelines.trial import PROMPT
from tests.judges.truth import module_path

SCALE = 0.7
EXACT, CLOSE = 1e-6, 1e-5
VAE = "vae/diffusion_pytorch_model.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
MODELS = ("unet", "text_encoder", "text_encoder_2", "vae")


def loaded(folder, **how):
    found = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **how)
    found.set_progress_bar_config(disable=True)
    return found


def injected(folder, truth, scale):
    """The base with the float64 sum W + scale·Δ in every weight, rounded once."""
    pipeline = loaded(folder)
    with torch.no_grad():
        for leaf, deltas in (("weight", truth.deltas), ("bias", truth.biases)):
            for (component, path), delta in deltas.items():
                model = getattr(pipeline, component)
                held = getattr(model.get_submodule(module_path(model, path)), leaf)
                held.copy_(held.double() + scale * delta.reshape(held.shape))
    return pipeline


def latents(pipeline):
    with torch.no_grad():
        return pipeline(
            PROMPT,
            num_inference_steps=2,
            height=64,
            width=64,
            output_type="latent",
            generator=torch.Generator().manual_seed(1),
        ).images


def apart(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def parameters(pipeline):
    return {
        (name, key): value
        for name in MODELS
        if getattr(pipeline, name, None) is not None
        for key, value in getattr(pipeline, name).state_dict().items()
    }


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_folder_and_single_file_are_the_pipeline_that_diffusers_fuses_and_paint_what_float64_sums_paint(
    architecture, pipeline, third_party, tmp_path
):
    truth = third_party("diffusers", architecture)
    out, file = tmp_path / "out", tmp_path / "out.safetensors"
    how = {"arch": architecture, "check": architecture == "sd1"}
    done = lt.rebuild(pipeline(architecture), [(truth.path, SCALE)], out, single_file=file, **how)
    if how["check"]:
        assert done.trial.pixels == done.single_trial.pixels == (64, 64)

    fused = loaded(pipeline(architecture))
    fused.load_lora_weights(truth.path.parent, weight_name=truth.path.name)
    fused.fuse_lora(components=[name for name in MODELS[:3] if getattr(fused, name, None)], lora_scale=SCALE)
    fused.unload_lora_weights()
    rebuilt = loaded(out)
    wanted, found = parameters(fused), parameters(rebuilt)
    assert found.keys() == wanted.keys()
    assert max(apart(found[key], value) for key, value in wanted.items() if value.norm()) <= EXACT

    reference = latents(injected(pipeline(architecture), truth, SCALE))
    assert apart(latents(loaded(pipeline(architecture))), reference) > 100 * CLOSE
    assert apart(latents(rebuilt), reference) <= CLOSE
    single = type(rebuilt).from_single_file(str(file), config=str(out), local_files_only=True)
    single.set_progress_bar_config(disable=True)
    assert apart(latents(single), reference) <= CLOSE


def test_unchanged_weights_are_hard_links_and_configurations_are_copies(pipeline, third_party, tmp_path):
    base, out = pipeline("sd1"), tmp_path / "out"
    done = lt.rebuild(base, [third_party("kohya", "sd1").path], out, arch="sd1", check=False)
    assert done.linked == (VAE,)
    for path in sorted(path.relative_to(base) for path in base.rglob("*") if path.is_file()):
        same = (out / path).stat().st_ino == (base / path).stat().st_ino
        assert same == (str(path) == VAE), path
        if path.suffix == ".json":
            assert (out / path).read_bytes() == (base / path).read_bytes()
    assert not [path for path in out.rglob("*") if path.is_symlink()]


def test_copies_share_no_file_with_the_base(pipeline, tmp_path):
    base, out = pipeline("sd1"), tmp_path / "out"
    done = lt.rebuild(base, [], out, copy=True, check=False)
    assert done.linked == ()
    for name in (VAE, UNET):
        assert (out / name).stat().st_ino != (base / name).stat().st_ino
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_replacing_a_rebuilt_folder_leaves_the_linked_base_alone(pipeline, third_party, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(pipeline("sd1"), base)
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    lt.rebuild(base, [], out, check=False)
    with pytest.raises(OutputExists):
        lt.rebuild(base, [third_party("kohya", "sd1").path], out, arch="sd1", check=False)
    lt.rebuild(base, [third_party("kohya", "sd1").path], out, arch="sd1", check=False, overwrite=True)
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before
    assert (out / UNET).read_bytes() != (base / UNET).read_bytes()


def test_a_variant_keeps_its_names_and_loads_as_such(pipeline, third_party, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    loaded(pipeline("sd1")).to(torch.float16).save_pretrained(base, variant="fp16")
    done = lt.rebuild(base, [third_party("kohya", "sd1").path], out, arch="sd1")
    assert done.trial.variants == ("fp16",)
    names = {str(path.relative_to(base)) for path in base.rglob("*.safetensors")}
    assert {str(path.relative_to(out)) for path in out.rglob("*.safetensors")} == names
    assert all(".fp16." in name for name in names)
    found = loaded(out, variant="fp16", torch_dtype=torch.float16)
    assert 'variant="fp16"' in (out / "README.md").read_text()
    assert not torch.equal(found.unet.conv_in.weight, loaded(base, variant="fp16").unet.conv_in.weight)


def test_one_variant_of_two_is_taken_where_it_is_named(pipeline, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(pipeline("sd1"), base)
    loaded(base).to(torch.float16).unet.save_pretrained(base / "unet", variant="fp16")
    both = lt.rebuild(base, [], tmp_path / "both", check=False)
    assert both.plan.variants == (None, "fp16")
    done = lt.rebuild(base, [], out, variant="fp16", check=False)
    assert [path.name for path in (out / "unet").glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert (out / VAE).exists()
    assert any(UNET in line for line in done.plan.left_out)


def test_shards_stay_shards(pipeline, third_party, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    loaded(pipeline("sd1")).save_pretrained(base, max_shard_size="2MB")
    shards = sorted(path.name for path in (base / "unet").glob("*.safetensors*"))
    assert len(shards) > 2
    truth = third_party("diffusers", "sd1")
    lt.rebuild(base, [(truth.path, SCALE)], out, arch="sd1")
    assert sorted(path.name for path in (out / "unet").glob("*.safetensors*")) == shards
    whole = lt.rebuild(pipeline("sd1"), [(truth.path, SCALE)], tmp_path / "whole", arch="sd1", check=False)
    ours = {key: value for file in (out / "unet").glob("*.safetensors") for key, value in load_file(file).items()}
    assert all(value.equal(ours[key]) for key, value in load_file(whole.path / UNET).items())


def test_card_and_recipe_tell_hashes_and_neither_path_nor_time(pipeline, third_party, tmp_path):
    import hashlib

    path = third_party("kohya", "sd1").path
    lt.rebuild(pipeline("sd1"), [(path, SCALE)], tmp_path / "a", arch="sd1", check=False)
    shutil.copytree(pipeline("sd1"), tmp_path / "elsewhere" / "sd1")
    lt.rebuild(tmp_path / "elsewhere" / "sd1", [(path, SCALE)], tmp_path / "b", arch="sd1", check=False)
    for name in ("README.md", "loratools-recipe.json", UNET):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    recipe = json.loads((tmp_path / "a" / "loratools-recipe.json").read_text())
    base, adapter = recipe["inputs"]
    assert (base["role"], adapter["role"], adapter["scale"]) == ("base", "adapter", SCALE)
    assert adapter["files"] == [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
    assert {item["name"] for item in base["files"]} >= {UNET, VAE}
    card = (tmp_path / "a" / "README.md").read_text()
    assert adapter["files"][0]["sha256"] in card
    assert "license" in card
    assert str(tmp_path) not in card + json.dumps(recipe)
    with safe_open(tmp_path / "a" / UNET, "pt") as file:
        assert json.loads(file.metadata()["loratools.provenance"])["operation"] == "rebuild"


def test_what_stands_there_is_not_made_again(pipeline, third_party, tmp_path):
    out = tmp_path / "out"
    how = {"arch": "sd1", "check": False, "if_needed": True}
    path = third_party("kohya", "sd1").path
    lt.rebuild(pipeline("sd1"), [(path, SCALE)], out, **how)
    before = (out / UNET).stat().st_ino
    assert lt.rebuild(pipeline("sd1"), [(path, SCALE)], out, **how).skipped
    assert (out / UNET).stat().st_ino == before
    again = lt.rebuild(pipeline("sd1"), [(path, 0.5)], out, **how, overwrite=True)
    assert not again.skipped


@pytest.mark.parametrize("fault", ["class", "config", "missing"])
def test_a_folder_that_does_not_load_is_never_there(fault, pipeline, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(pipeline("sd1"), base)
    if fault == "missing":
        (base / "scheduler" / "scheduler_config.json").unlink()
    else:
        place = base / ("model_index.json" if fault == "class" else "unet/config.json")
        told = json.loads(place.read_text())
        told |= {"unet": ["diffusers", "UNet2DConditionModell"]} if fault == "class" else {"layers_per_block": 3}
        place.write_text(json.dumps(told))
    with pytest.raises(UnsupportedFile) as refused:
        lt.rebuild(base, [], out)
    assert refused.value.path == str(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]
    lt.rebuild(base, [], out, check=False)
    assert out.is_dir()


def test_a_safety_checker_stays_and_takes_part(pipeline, tmp_path):
    from diffusers import StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes = {"image_size": 32, "patch_size": 8, "projection_dim": 12}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision | sizes, projection_dim=12))
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    parts = loaded(pipeline("sd1")).components | {"safety_checker": checker, "feature_extractor": extractor}
    base, out = tmp_path / "base", tmp_path / "out"
    StableDiffusionPipeline(**parts).save_pretrained(base)
    done = lt.rebuild(base, [], out, single_file=tmp_path / "out.safetensors", arch="sd1")
    assert done.trial.tensors["safety_checker"] > 50
    assert loaded(out).safety_checker is not None
    assert any(line.startswith("safety_checker") for line in done.plan.left_out)


def test_without_an_adapter_every_weight_is_a_link(pipeline, tmp_path):
    done = lt.rebuild(pipeline("sdxl"), [], tmp_path / "out", check=False)
    assert len(done.linked) == 4
    assert done.plan.merge.changed == 0


def test_scale_zero_and_opposite_scales_give_the_base_back(pipeline, third_party, tmp_path):
    path = third_party("kohya", "sd1").path
    lt.rebuild(pipeline("sd1"), [(path, 0.0)], tmp_path / "zero", arch="sd1", check=False)
    assert (tmp_path / "zero" / UNET).stat().st_ino == (pipeline("sd1") / UNET).stat().st_ino
    lt.rebuild(pipeline("sd1"), [(path, 0.5), (path, -0.5)], tmp_path / "both", arch="sd1", check=False)
    ours, theirs = load_file(tmp_path / "both" / UNET), load_file(pipeline("sd1") / UNET)
    assert max(apart(ours[key], value) for key, value in theirs.items() if value.norm()) <= EXACT
