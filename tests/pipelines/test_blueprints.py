"""Full blueprints are the published models: every shape is that of the inventories of real files, and of our tables."""

import gzip
import json
import os
from functools import cache
from pathlib import Path

import pytest

from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.architectures.vae import VAE_ATTENTION, VAE_ORIGINAL
from loratools.errors import UsageError
from loratools.pipelines.blueprints import BLUEPRINTS, architectures, blueprint
from loratools.pipelines.random_models import make_skeleton

CORPUS = os.environ.get("LORATOOLS_CORPUS")
with_corpus = pytest.mark.skipif(not CORPUS, reason="LORATOOLS_CORPUS names no folder of key inventories")

TABLES = {"flux1": "flux1-dev", "sd1": "sd1", "sd2": "sd2", "sdxl": "sdxl"}


@cache
def skeleton_shapes(name, component):
    """Key → shape of one model of a full blueprint, CLIP's keys with their `text_model.` level."""
    model = make_skeleton(blueprint(name, "full").part(component))
    assert all(parameter.is_meta for parameter in model.parameters())
    level = "text_model." if type(model).__name__ == "CLIPTextModel" and not hasattr(model, "text_model") else ""
    return {level + key: tuple(parameter.shape) for key, parameter in model.named_parameters()}


@cache
def inventory(name):
    """Key → shape of a file of the corpus."""
    raw = (Path(CORPUS) / name).read_bytes()
    document = json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)
    return {key: tuple(entry["shape"]) for key, entry in document["tensors"].items()}


@pytest.mark.parametrize("plan", BLUEPRINTS["full"], ids=lambda plan: f"{plan.architecture}-{plan.pixels}")
def test_full_blueprint_has_the_weights_of_our_tables(plan):
    for component, table in shapes(TABLES[plan.architecture]).items():
        held = skeleton_shapes(plan.architecture, component)
        weights = {key.removesuffix(".weight"): shape for key, shape in held.items() if not key.endswith(".bias")}
        assert weights == table, component


DIFFUSERS = {
    ("sd1", "unet"): "base_sd15_unet_diffusers_gen.json.gz",
    ("sd1", "text_encoder"): "base_sd15_te_clipl_gen.json",
    ("sd2", "unet"): "base_sd21_unet_diffusers_gen.json.gz",
    ("sd2", "text_encoder"): "base_sd21_te_openclip_h_gen.json",
    ("sdxl", "unet"): "base_sdxl_unet_diffusers_real.json.gz",
    ("sdxl", "text_encoder"): "base_sd15_te_clipl_gen.json",
    ("sdxl", "text_encoder_2"): "base_sdxl_te2_openclip_g_gen.json",
    ("flux1", "text_encoder"): "base_sd15_te_clipl_gen.json",
}


@with_corpus
@pytest.mark.parametrize(("name", "component"), DIFFUSERS, ids="-".join)
def test_full_component_has_the_keys_and_shapes_of_diffusers_files(name, component):
    published = {
        key: shape for key, shape in inventory(DIFFUSERS[name, component]).items() if "position_ids" not in key
    }
    assert skeleton_shapes(name, component) == published


@with_corpus
def test_full_flux_dev_is_schnell_and_its_guidance_embedder():
    schnell = inventory("base_flux1_schnell_transformer_diffusers_gen.json.gz")
    dev = skeleton_shapes("flux1", "transformer")
    assert {key: shape for key, shape in dev.items() if "guidance_embedder" not in key} == schnell
    assert len(dev) == len(schnell) + 4


def native_shapes(naming, held, prefix):
    """The keys and shapes that a component of canonical keys and shapes has under another naming."""
    found = {}
    for placement in naming.placements():
        for leaf, native in ((".weight", placement.weight_key), (".bias", placement.bias_key)):
            parts = [held.get(path + leaf, held.get(path) if leaf == ".weight" else None) for path in placement.paths]
            if native is None or None in parts:
                continue
            rows, *columns = (sum(part[0] for part in parts), *parts[0][1:])
            shape = (*columns, rows) if placement.layout == "transpose" else (rows, *columns)
            found[prefix + native] = shape
    return found


def vae_shapes(held):
    """The same for the VAE, whose attention is linear in diffusers and a 1 × 1 convolution in the file."""
    found = {}
    for key, shape in held.items():
        path, _, leaf = key.rpartition(".")
        native = VAE_ORIGINAL.at_canonical(path).native
        kernel = leaf == "weight" and len(shape) == 2 and native.rpartition(".")[2] in VAE_ATTENTION
        found[f"first_stage_model.{native}.{leaf}"] = (*shape, 1, 1) if kernel else shape
    return found


SINGLE = {
    "sd1": "base_sd15_ldm_pruned_real.json.gz",
    "sd2": "base_sd21_ldm_real.json.gz",
    "sdxl": "base_sdxl_sgm_real.json.gz",
}
# What single files hold beyond the pipeline's weights: schedules, constants, flags of how they were trained, and what
# OpenCLIP has after the last layer that the pipeline runs.
BEYOND = (
    *("alphas", "betas", "log_one_minus", "posterior_", "sqrt_", "lvlb_weights", "denoiser.sigmas"),
    *("position_ids", "logit_scale", "attn_mask", "edm_vpred", "v_pred", "ztsnr"),
    *("cond_stage_model.model.transformer.resblocks.23.", "cond_stage_model.model.text_projection"),
)


@with_corpus
@pytest.mark.parametrize("name", SINGLE)
def test_full_blueprint_has_the_keys_and_shapes_of_the_real_single_file(name):
    file = {key: shape for key, shape in inventory(SINGLE[name]).items() if not any(word in key for word in BEYOND)}
    ours = vae_shapes(skeleton_shapes(name, "vae"))
    for known in architecture(name).components:
        naming = known.naming("ldm") or known.naming("open_clip") or known.namings[0]
        ours |= native_shapes(naming, skeleton_shapes(name, known.name), known.checkpoint[0])
    assert {key: (ours.get(key), shape) for key, shape in file.items() if ours.get(key) != shape} == {}
    assert ours.keys() - file.keys() == set()


@with_corpus
def test_full_flux_has_the_keys_and_shapes_of_the_real_original_file():
    file = inventory("base_flux1_dev_bfl_real.json.gz")
    naming = architecture("flux1").denoiser.naming("bfl")
    assert native_shapes(naming, skeleton_shapes("flux1", "transformer"), "") == file


def test_sizes_and_resolutions_pick_the_blueprint():
    assert blueprint("sd2", "full").part("scheduler").config["prediction_type"] == "v_prediction"
    assert blueprint("sd2", "full", pixels=512).part("scheduler").config["prediction_type"] == "epsilon"
    for name in architectures("full"):
        tiny, full = blueprint(name), blueprint(name, "full")
        assert [part.class_name for part in tiny.parts if part.is_model] == [
            part.class_name for part in full.parts if part.is_model
        ]
        assert tiny.tokenizers.keys() == full.tokenizers.keys()


def test_unknown_sizes_and_resolutions_are_usage_errors():
    with pytest.raises(UsageError, match="tiny and full"):
        blueprint("sd1", "huge")
    with pytest.raises(UsageError, match="768, 512"):
        blueprint("sd2", "full", pixels=1024)
