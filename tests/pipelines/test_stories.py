"""Whole stories, each in a few lines of Python: from a file as people have it to what a pipeline paints with it."""

import copy
import os

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.errors import UnsafeFile
from tests.judges import by_kohya, by_peft, early
from tests.judges.live import bits, changes, same_bits
from tests.judges.truth import compare, module_path

BOTH = {"unet": None, "text_encoder": None}
CLOSE = 1e-5
FELT = 100 * CLOSE


def load(folder, **how):
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **how)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def paint(pipe, prompt="a painting of a lighthouse"):
    """The latents of a Stable Diffusion pipeline after two steps."""
    generator = torch.Generator().manual_seed(1)
    size = {"width": 64, "height": 64}
    return pipe(prompt, num_inference_steps=2, output_type="latent", generator=generator, **size).images


def apart(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.fixture(scope="module")
def folder(pipeline):
    return pipeline("sd1")


@pytest.fixture(scope="module")
def plain(folder):
    """A live pipeline that nobody touches, and what it paints."""
    pipe = load(folder)
    return pipe, paint(pipe)


@pytest.fixture
def pipe(plain):
    """A live pipeline of its own for every story."""
    return copy.deepcopy(plain[0])


@pytest.fixture(scope="module")
def processors(plain, tmp_path_factory):
    """What `unet.save_attn_procs` wrote: a bare UNet's processors, without any prefix."""
    return early.processors(plain[0].unet, "unet", tmp_path_factory.mktemp("old") / "pytorch_lora_weights.safetensors")


@pytest.fixture(scope="module")
def dreambooth(folder, tmp_path_factory):
    """What a DreamBooth script saves through diffusers: UNet and text encoder."""
    out = tmp_path_factory.mktemp("dreambooth") / "pytorch_lora_weights.safetensors"
    return by_peft.make(folder, out, architecture="sd1", components=BOTH, most=24)


def test_a_file_of_attention_processors_at_scale_0_is_the_base_and_at_one_half_makes_half_the_change(
    pipe, plain, processors
):
    before = bits(pipe)
    applied = lt.apply(pipe, processors.path, 0.5, how="weights")
    half = {where: delta / 2 for where, delta in processors.deltas.items()}
    judgement = compare(changes(pipe, before), half)
    assert (judgement.missing, judgement.unexpected, judgement.beyond(CLOSE)) == ((), (), {})
    halfway = paint(pipe)
    applied.set_scale(1)
    assert apart(paint(pipe), halfway) > FELT
    applied.set_scale(0)
    assert same_bits(pipe, before)
    applied.remove()
    lt.apply(pipe, processors.path, 0)
    assert torch.equal(paint(pipe), plain[1])


def test_a_dreambooth_lora_with_text_encoder_rebuilt_into_a_folder_paints_what_it_paints_applied(
    folder, pipe, plain, dreambooth, tmp_path
):
    lt.rebuild(folder, [(dreambooth.path, 0.8)], tmp_path / "mine")
    applied = lt.apply(pipe, dreambooth.path, 0.8)
    assert {row.component for row in applied.modules} == {"unet", "text_encoder"}
    wanted = paint(pipe)
    assert apart(plain[1], wanted) > FELT
    assert apart(paint(load(tmp_path / "mine")), wanted) <= CLOSE


def test_a_kohya_file_passes_on_a_pipeline_with_karras_sigmas_in_float16(pipe, folder, tmp_path):
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    pipe.save_pretrained(tmp_path / "karras")
    style = by_kohya.make(folder, tmp_path / "style.safetensors", architecture="sd1", components=BOTH, most=8).path
    result = lt.validate(tmp_path / "karras", [(style, 0.8)], to=["diffusers"], dtype="F16", steps=2)
    assert result.verdict == "pass", result.reasons
    assert (result.dtype, result.judged_in) == ("F16", "F32")
    assert {route.name for route in result.routes if route.status == "pass"} >= {"merged", "converted to diffusers"}


def kandinsky_decoder(pipe):
    image = torch.randn(2, 1, early.EMBEDDING, generator=torch.Generator().manual_seed(0))
    how = {"image_embeds": image[0], "negative_image_embeds": image[1], "height": 32, "width": 32}
    return pipe(**how, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(1)).images


def kandinsky_prior(pipe):
    generator = torch.Generator().manual_seed(1)
    return pipe("a lighthouse", num_inference_steps=2, generator=generator).image_embeds


def wuerstchen_prior(pipe):
    generator = torch.Generator().manual_seed(1)
    size = {"height": 128, "width": 128}
    return pipe("a lighthouse", num_inference_steps=2, generator=generator, **size).image_embeddings


OLD = {
    "Kandinsky 2.2 decoder": (early.decoder, "unet", "", kandinsky_decoder),
    "Kandinsky 2.2 prior": (early.prior, "prior", "", kandinsky_prior),
    "Würstchen prior": (early.stage_c, "prior", "prior.", wuerstchen_prior),
}


@pytest.mark.parametrize("name", OLD)
def test_a_lora_whose_pipeline_has_no_loader_or_is_not_loaded_itself_is_merged_into_its_component(
    name, folder, tmp_path, monkeypatch
):
    make, component, prefix, generate = OLD[name]
    base = make(tmp_path / "base", folder / "tokenizer")
    if make is early.stage_c:  # diffusers saves its class by a name under which it does not find it again
        with pytest.raises(ValueError, match="no class `WuerstchenPrior`"):
            load(base)
        monkeypatch.setattr(diffusers, "WuerstchenPrior", early.wuerstchen_prior(), raising=False)
    live = load(base)
    assert hasattr(live, "load_lora_weights") == (make is early.stage_c)
    model = getattr(live, component)
    lora = early.processors(model, component, tmp_path / "pytorch_lora_weights.bin", prefix=prefix)
    lt.rebuild(base, [(lora.path, 0.7)], tmp_path / "merged", unsafe_pickle=True)
    merged = load(tmp_path / "merged")

    plain = generate(live)
    for (_, path), delta in lora.deltas.items():
        weight = model.get_submodule(module_path(model, path)).weight.data
        weight.copy_(weight.double() + 0.7 * delta)
    ours, theirs = getattr(merged, component).state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(apart(ours[key], value) < 1e-6 for key, value in theirs.items() if value.norm())
    assert apart(generate(merged), generate(live)) <= CLOSE
    assert apart(plain, generate(live)) > CLOSE


def test_the_embedding_inside_a_lora_file_is_found_and_its_token_is_painted(pipe, plain, dreambooth, tmp_path):
    token, width = "<s0>", pipe.text_encoder.config.hidden_size
    learned = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    key = f"bundle_emb.{token}.string_to_param.*"
    kohya = lt.convert(dreambooth.path, to="kohya").save(tmp_path / "kohya.safetensors").path
    pivotal = tmp_path / "pivotal.safetensors"
    save_file({**load_file(kohya), key: learned}, pivotal)

    (found,) = lt.open(pivotal).adapter_set.extras[""].items()
    pipe.load_textual_inversion({token: found[1].load()}, token=token)
    applied = lt.apply(pipe, pivotal, 0.8)
    assert found[0] == key
    assert applied.left_out
    prompt = f"a painting of {token}"
    painted = paint(pipe, prompt)
    embedding = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(embedding[pipe.tokenizer.convert_tokens_to_ids(token)], learned[0])
    applied.remove()
    with_token = paint(pipe, prompt)
    assert apart(with_token, painted) > FELT
    assert apart(paint(copy.deepcopy(plain[0]), prompt), with_token) > FELT


def test_an_embedding_beside_a_lora_is_told_from_it(dreambooth, tmp_path):
    save_file({"emb_params": torch.zeros(2, 768)}, tmp_path / "token.safetensors")
    torch.save({"<s0>": torch.zeros(768)}, tmp_path / "learned_embeds.bin")
    roles = {
        path.name: lt.inspect(path, unsafe_pickle=True).document["role"]
        for path in (tmp_path / "token.safetensors", tmp_path / "learned_embeds.bin", dreambooth.path)
    }
    assert list(roles.values()) == ["embedding", "embedding", "adapter"], roles


def test_the_base_that_a_card_names_is_found_in_the_local_cache(folder, pipe, dreambooth, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    repository = cache / "models--someone--a-tiny-model"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mine = tmp_path / "lora"
    mine.mkdir()
    os.link(dreambooth.path, mine / dreambooth.path.name)
    (mine / "README.md").write_text("---\nbase_model: someone/a-tiny-model\ntags: [lora]\n---\n# Mine\n")

    lt.rebuild("auto", [mine], tmp_path / "out", check=False)
    lt.apply(pipe, mine)
    assert apart(paint(load(tmp_path / "out")), paint(pipe)) <= CLOSE
    assert 'base_model: "someone/a-tiny-model"' in (tmp_path / "out" / "README.md").read_text()


def test_several_loras_are_what_pefts_weighted_adapters_are(folder, pipe, plain, dreambooth, tmp_path):
    other = by_peft.make(folder, tmp_path / "other.safetensors", architecture="sd1", components=BOTH, most=18, seed=7)
    for name, file in (("first", dreambooth.path), ("second", other.path)):
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    pipe.set_adapters(["first", "second"], [0.7, 0.4])
    theirs = paint(pipe)
    live = copy.deepcopy(plain[0])
    lt.apply(live, dreambooth.path, 0.7)
    lt.apply(live, other.path, 0.4)
    lt.merge(folder, [(dreambooth.path, 0.7), (other.path, 0.4)], tmp_path / "merged")
    assert apart(plain[1], theirs) > FELT
    assert apart(paint(live), theirs) <= CLOSE
    assert apart(paint(load(tmp_path / "merged")), theirs) <= CLOSE


@pytest.mark.parametrize("sort", ["processors", "dreambooth"])
def test_a_pickled_file_is_refused_unless_asked_for_and_is_then_the_same_adapter(sort, pipe, request, tmp_path):
    pickled, safe = tmp_path / "pytorch_lora_weights.bin", tmp_path / "pytorch_lora_weights.safetensors"
    held = load_file(request.getfixturevalue(sort).path)
    torch.save(held, pickled)
    save_file(held, safe)  # as bare as a pickle: what metadata say of alpha has no place in one
    with pytest.raises(UnsafeFile):
        lt.apply(pipe, pickled)
    before = bits(pipe)
    how = {"how": "weights", "arch": "sd1"}
    with lt.apply(pipe, safe, **how):
        wanted = bits(pipe)
    with lt.apply(pipe, pickled, unsafe_pickle=True, **how):
        assert same_bits(pipe, wanted)
        assert not same_bits(pipe, before)
