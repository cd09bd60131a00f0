"""Tiny pipelines of every sort: each is its real model in small, placed whole by its table, and passes `validate`."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from safetensors import safe_open

import loratools as lt
from loratools.architectures.registry import architecture as table
from loratools.bases.checkpoint import open_checkpoint
from loratools.errors import UnsupportedFile
from loratools.pipelines.adapters import adapted, make_demo_adapter
from loratools.pipelines.blueprints import architectures, blueprint
from loratools.pipelines.blueprints_tiny import TINY
from loratools.pipelines.calls import asked, guided, sized
from loratools.pipelines.denoiser import denoisers_of
from loratools.pipelines.running import Drawing, Place, draw, load_pipeline
from loratools.pipelines.tokenizers import make_tokenizer

OTHERS = tuple(name for name in architectures() if name not in architectures("full"))
"""The published configurations of the rest are tested with them."""
WITHOUT_LOADER = ("hunyuan-dit", "kandinsky2.2", "kandinsky2.2-prior", "pixart", "stable-cascade")


def drawing(plan, **more):
    """Two steps of the smallest picture or film."""
    size = {"width": plan.pixels, "height": plan.pixels} if plan.paints else {}
    return Drawing(steps=2, frames=plan.frames, **size, **more)


@pytest.mark.parametrize("name", OTHERS)
def test_every_pipeline_loads_and_its_table_places_every_weight_of_its_denoisers(name, pipeline):
    plan = blueprint(name)
    loaded = DiffusionPipeline.from_pretrained(pipeline(name), local_files_only=True)
    assert type(loaded).__name__ == plan.pipeline
    assert tuple(denoisers_of(loaded)) == plan.denoisers
    base = open_checkpoint(pipeline(name)).base
    known = table(plan.architecture)
    assert plan.architecture in base.candidates
    assert set(base.candidates) <= {plan.architecture, *known.family}
    weights = base.of(known)
    for component, model in denoisers_of(loaded).items():
        matrices = [path for path, module in model.named_modules() if getattr(module, "weight", None) is not None]
        assert len(matrices) > 20
        assert [path for path in matrices if weights.weight(component, path) is None] == []
        assert all(
            weights.weight(component, path).shape == tuple(model.get_submodule(path).weight.shape) for path in matrices
        )
    assert adapted(pipeline(name))[: len(plan.denoisers)] == plan.denoisers


@pytest.mark.parametrize("entry", {entry: None for plan in TINY for entry in plan.tokenizers.values()}, ids=str)
def test_token_ids_stay_within_the_vocabulary_and_tell_prompts_apart(entry):
    tokenizer = make_tokenizer(entry)
    assert len(tokenizer) == entry.tokens
    assert max(tokenizer.get_vocab().values()) == entry.tokens - 1
    ids = tokenizer("A red cat, 3 boats & the sea", padding="max_length", truncation=True).input_ids
    assert len(ids) == entry.length
    assert len(set(ids)) > 10


def test_the_instruction_of_hunyuan_video_is_as_long_as_what_is_cut_off():
    instruction = DEFAULT_PROMPT_TEMPLATE["template"].partition("{}")[0]
    tokens = make_tokenizer(blueprint("hunyuan-video").tokenizers["tokenizer"])(instruction).input_ids
    assert 0 <= len(tokens) - DEFAULT_PROMPT_TEMPLATE["crop_start"] < 64


def call(**names):
    """The parameters of a call by their defaults."""
    return {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in names.items()
    }


def test_words_are_said_under_the_names_that_each_pipeline_has_for_them():
    assert guided(call(guidance_scale=5.0), None) == {}
    assert guided(call(guidance_scale=5.0), 3.0) == {"guidance_scale": 3.0}
    assert guided(call(guidance_scale=6.0, true_cfg_scale=1.0), 3.0) == {"guidance_scale": 3.0}
    assert guided(call(guidance_scale=None, true_cfg_scale=4.0), 3.0) == {"true_cfg_scale": 3.0, "negative_prompt": " "}
    assert sized(call(height=0, use_resolution_binning=True), 64, None) == {
        "width": 64,
        "use_resolution_binning": False,
    }
    assert sized(call(height=0), 64, 32) == {"width": 64, "height": 32}
    assert sized(call(use_resolution_binning=True), None, None) == {}


def decoder(**parameters):
    """A pipeline whose call takes these, over a UNet of embeddings four wide."""

    class Decoder:
        unet = SimpleNamespace(config=SimpleNamespace(encoder_hid_dim=4), dtype=torch.float32)

        def __call__(self):
            raise AssertionError

    Decoder.__call__.__signature__ = inspect.Signature([inspect.Parameter("self", 1), *call(**parameters).values()])
    return Decoder()


def test_a_decoder_is_given_one_embedding_a_prompt_and_other_pipelines_without_a_prompt_are_refused():
    made = decoder(image_embeds=None, negative_image_embeds=None)
    first, again, other = (asked(made, prompt) for prompt in ("a cat", "a cat", "the sea"))
    assert first["image_embeds"].shape == (1, 4)
    assert torch.equal(first["image_embeds"], again["image_embeds"])
    assert not torch.equal(first["image_embeds"], other["image_embeds"])
    assert not first["negative_image_embeds"].any()
    assert asked(decoder(prompt=None, image_embeds=None), "a cat") == {"prompt": "a cat"}
    with pytest.raises(UnsupportedFile, match="no prompt"):
        asked(decoder(image=None), "a cat")


@pytest.mark.parametrize(("name", "how"), [("kandinsky2.2-prior", {}), ("wan2.2", {"size": (32, 32), "frames": 1})])
def test_validate_passes_without_a_loader_and_without_pictures_and_where_two_models_share_the_steps(
    name, how, pipeline, tmp_path
):
    validated(name, pipeline, tmp_path, to=["diffusers"], **how)


def validated(name, pipeline, tmp_path, **how):
    """The verdict of `validate` on a tiny pipeline with a LoRA that peft made."""
    plan = blueprint(name)
    lora = make_demo_adapter(pipeline(name), tmp_path / "lora.safetensors")
    size = (plan.pixels, plan.pixels) if plan.paints else None
    options = {"steps": 2, "size": size, "frames": plan.frames, "arch": plan.architecture, "work": tmp_path}
    done = lt.validate(pipeline(name), [lora], **(options | how))
    assert done.verdict == "pass", done.reasons
    assert {spot.spot.component for spot in done.route("merged").modules.spots} == set(adapted(pipeline(name)))
    loaded = done.route("loaded")
    assert (loaded.status == "refused") == (name in WITHOUT_LOADER)
    if name in WITHOUT_LOADER:
        assert "has no loader" in loaded.remarks[0]
    return done


def test_rebuild_proves_a_model_whose_weights_are_renamed_as_they_load_and_a_scheduler_of_two_steps_at_least(
    pipeline, tmp_path
):
    trial = lt.rebuild(pipeline("qwen-image"), [], tmp_path / "rebuilt").trial
    with safe_open(pipeline("qwen-image") / "text_encoder" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    loaded = load_pipeline(tmp_path / "rebuilt", Place())
    assert not set(names) <= set(loaded.text_encoder.state_dict())
    assert loaded.scheduler.config.shift_terminal
    assert trial.tensors["text_encoder"] == len(names)
    assert trial.pixels == (64, 64)


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_every_pipeline_paints_the_same_for_the_same_words_and_passes_with_every_mistake_caught(
    name, pipeline, tmp_path
):
    plan = blueprint(name)
    made = load_pipeline(pipeline(name), Place())
    first, again, other = (draw(made, prompt, 0, drawing(plan)) for prompt in ("a cat", "a cat", "the sea at night"))
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, other.latents)
    assert first.latents.isfinite().all()
    if plan.paints:
        assert first.image.shape == (3, plan.pixels, plan.pixels)
        assert first.image.std() > 0.01
    done = validated(name, pipeline, tmp_path, negative_controls=True)
    assert done.controls
    assert all(control.caught for control in done.controls)
    assert lt.rebuild(pipeline(name), [tmp_path / "lora.safetensors"], tmp_path / "rebuilt").trial.pixels
