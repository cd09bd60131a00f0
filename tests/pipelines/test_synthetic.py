"""Tiny pipelines are whole pipelines: they load without a network, run, and come out the same for the same seed."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

import loratools as lt
from loratools.errors import OutputExists, UnsupportedFile, UsageError
from loratools.pipelines import synthetic
from loratools.pipelines.adapters import make_demo_adapter
from loratools.pipelines.blueprints import architectures, blueprint
from loratools.pipelines.parts import Tokenizer
from loratools.pipelines.random_models import make_skeleton
from loratools.pipelines.synthetic import make_pipeline, write_pipeline
from loratools.pipelines.tiny.autoencoders import PIXELS
from loratools.pipelines.tokenizers import make_tokenizer
from tests.judges.load import deltas_after_diffusers_load
from tests.judges.read import deltas_as_read
from tests.judges.truth import compare

ARCHITECTURES = architectures("full")


def weight_files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pipeline_loads_offline_and_paints(architecture, pipeline):
    loaded = DiffusionPipeline.from_pretrained(pipeline(architecture), local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    images = [
        loaded(
            prompt,
            num_inference_steps=2,
            height=PIXELS,
            width=PIXELS,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images[0]
        for prompt in ("a cat", "a cat", "the sea at night")
    ]
    assert images[0].shape == (3, PIXELS, PIXELS)
    assert images[0].isfinite().all()
    assert images[0].std() > 0.01
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_same_seed_makes_the_same_pipeline(pipeline, tmp_path):
    again = make_pipeline("sd1", tmp_path / "again")
    other = make_pipeline("sd1", tmp_path / "other", seed=7)
    assert weight_files(again)
    for name in weight_files(again):
        assert (again / name).read_bytes() == (pipeline("sd1") / name).read_bytes()
        assert (again / name).read_bytes() != (other / name).read_bytes()


def tensors(folder):
    return {
        f"{path.parent.name}/{key}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for key, value in load_file(path).items()
    }


@pytest.mark.parametrize("variant", [None, "bf16"])
def test_a_model_written_in_shards_is_the_one_made_whole_and_no_shard_is_larger_than_asked(variant, pipeline, tmp_path):
    limit = 100_000
    plan, how = blueprint("flux1"), {"variant": variant, "dtype": "bfloat16" if variant else "float32"}
    folder = write_pipeline(plan, tmp_path / "shards", limit=limit, **how)
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    largest = max(value.nbytes for file in shards for value in load_file(file).values())
    assert all(sum(value.nbytes for value in load_file(file).values()) <= max(limit, largest) for file in shards)
    dtype = torch.bfloat16 if variant else torch.float32
    loaded = DiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype, variant=variant)
    whole = DiffusionPipeline.from_pretrained(pipeline("flux1"), local_files_only=True)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(loaded, name).state_dict(), getattr(whole, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], value.to(ours[key].dtype)) for key, value in theirs.items())
    assert {**loaded.transformer.config, "_name_or_path": ""} == {**whole.transformer.config, "_name_or_path": ""}


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_narrow_weights_are_the_float32_ones_rounded_once(dtype, pipeline, tmp_path):
    narrow = tensors(make_pipeline("flux1", tmp_path / dtype, dtype=dtype, variant="small"))
    wide = tensors(pipeline("flux1"))
    assert {path.name.split(".")[1] for path in (tmp_path / dtype).rglob("*.safetensors")} == {"small"}
    assert narrow.keys() == wide.keys()
    assert all(torch.equal(narrow[key], wide[key].to(getattr(torch, dtype))) for key in wide)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / dtype, dtype=getattr(torch, dtype), variant="small")
    assert loaded.transformer.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pipeline_is_as_diffusers_itself_would_save_it(architecture, pipeline, tmp_path):
    loaded = DiffusionPipeline.from_pretrained(pipeline(architecture), local_files_only=True)
    loaded.save_pretrained(tmp_path)
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    made = {path.relative_to(pipeline(architecture)) for path in pipeline(architecture).rglob("*") if path.is_file()}
    assert made == files
    index, again = (
        json.loads((folder / "model_index.json").read_text()) for folder in (pipeline(architecture), tmp_path)
    )
    assert index == {key: value for key, value in again.items() if key != "_name_or_path"}
    wrote, given = tensors(tmp_path), tensors(pipeline(architecture))
    assert wrote.keys() == given.keys()
    assert all(torch.equal(wrote[key], value) for key, value in given.items())


def test_single_file_is_what_diffusers_loads_as_that_pipeline(tmp_path):
    single = tmp_path / "one.safetensors"
    folder = make_pipeline("sdxl", tmp_path / "sdxl", dtype="float16", single_file=single)
    loaded = StableDiffusionXLPipeline.from_single_file(single, config=str(folder), local_files_only=True)
    given = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for name in ("unet", "text_encoder", "text_encoder_2", "vae"):
        ours, theirs = getattr(loaded, name).state_dict(), getattr(given, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_tied_weights_are_drawn_once(pipeline):
    model = DiffusionPipeline.from_pretrained(pipeline("flux1"), local_files_only=True).text_encoder_2
    skeleton = make_skeleton(blueprint("flux1").part("text_encoder_2"))
    assert skeleton.shared.weight is skeleton.encoder.embed_tokens.weight
    assert torch.equal(model.shared.weight, model.encoder.embed_tokens.weight)


def test_nothing_is_written_where_something_stands_or_words_are_unknown(tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    single = tmp_path / "one.safetensors"
    with pytest.raises(OutputExists):
        make_pipeline("sd1", taken, single_file=single)
    with pytest.raises(UnsupportedFile, match="flux1"):
        make_pipeline("flux1", tmp_path / "new", single_file=single)
    with pytest.raises(UsageError, match="float64"):
        make_pipeline("sd1", tmp_path / "new", dtype="float64")
    with pytest.raises(UsageError, match="abacus"):
        make_pipeline("sd1", tmp_path / "new", device="abacus")

    def fails(*_arguments, **_options):
        raise MemoryError

    monkeypatch.setattr(synthetic, "fill", fails)
    with pytest.raises(MemoryError):
        make_pipeline("sd1", tmp_path / "new", single_file=single)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "mine.txt"]


def test_making_a_pipeline_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(3)
    make_pipeline("flux1", tmp_path / "one")
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(4))


def test_unknown_architecture_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="sdxl") as refused:
        make_pipeline("sdxxl", tmp_path)
    assert refused.value.hint == "did you mean 'sdxl'?"


@pytest.mark.parametrize("size", ["tiny", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_ids_stay_within_the_vocabulary_of_the_text_encoder(architecture, size):
    plan = blueprint(architecture, size)
    for name, entry in plan.tokenizers.items():
        tokenizer = make_tokenizer(entry)
        text = plan.part(name.replace("tokenizer", "text_encoder")).config
        assert len(tokenizer) == entry.tokens <= text["vocab_size"]
        assert max(tokenizer.get_vocab().values()) == entry.tokens - 1
        ids = tokenizer("A red cat, 3 boats & the sea", padding="max_length", truncation=True).input_ids
        assert len(ids) == entry.length
        assert len(set(ids)) > 10
        assert tokenizer.unk_token_id not in ids[1 : ids.index(tokenizer.eos_token_id)]


@pytest.mark.parametrize("padding", ["<|endoftext|>", "!"])
def test_full_clip_tokens_have_the_ids_that_clip_gives_them(padding):
    tokenizer = make_tokenizer(Tokenizer("clip", 49408, padding=padding))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)
    assert tokenizer("a", padding="max_length").input_ids[:3] == [49406, 320, 49407]
    assert tokenizer.pad_token_id == {"!": 0, "<|endoftext|>": 49407}[padding]


@pytest.mark.parametrize("architecture", ["flux1", "sd1"])
def test_demo_adapter_is_read_as_diffusers_loads_it(architecture, pipeline, tmp_path):
    file = make_demo_adapter(pipeline(architecture), tmp_path / "demo.safetensors")
    loaded = deltas_after_diffusers_load(pipeline(architecture), file)
    assert loaded.complaints == ()
    lora = lt.open(file, arch=architecture)
    read, _ = deltas_as_read(lora.adapters, pipeline(architecture))
    assert compare(read, loaded.deltas).wrong(1e-6) == 0
    assert {float(item.scale) for item in lora.adapters} == {0.5, 1.0, 2.0}


def contents(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return metadata, {key: value.numpy().tobytes() for key, value in load_file(path).items()}


def test_demo_adapter_has_the_same_contents_for_the_same_seed(pipeline, tmp_path):
    one, again, other = (
        contents(make_demo_adapter(pipeline("sd1"), tmp_path / name, seed=seed))
        for name, seed in (("one.safetensors", 0), ("again.safetensors", 0), ("other.safetensors", 1))
    )
    assert one == again
    assert one[0] == other[0]
    assert "unet.alpha_pattern" in json.loads(one[0]["lora_adapter_metadata"])
    assert one[1].keys() == other[1].keys()
    assert all(one[1][key] != other[1][key] for key in one[1])


def test_demo_adapter_has_the_dtype_of_its_pipeline_and_every_clip_text_encoder(tmp_path):
    folder = make_pipeline("sdxl", tmp_path / "sdxl", dtype="float16", variant="fp16")
    made = load_file(make_demo_adapter(folder, tmp_path / "demo.safetensors", variant="fp16"))
    assert {tensor.dtype for tensor in made.values()} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in made.values())
    assert {key.partition(".")[0] for key in made} == {"unet", "text_encoder", "text_encoder_2"}
