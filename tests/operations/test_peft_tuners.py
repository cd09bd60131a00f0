"""AdaLoRA and OFT as PEFT saves them: who holds them, as they are and as plain LoRA, judged by PEFT as it loads."""

from __future__ import annotations

import json
import os
from dataclasses import replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import load_file, save_file

from loratools.adapters.kind import delta_of
from loratools.errors import MalformedFile, NotRepresentable
from loratools.formats.peft_kinds import config as config_of
from loratools.formats.registry import FORMATS
from loratools.operations.compare import compare
from loratools.operations.convert import convert
from loratools.operations.lora import open_lora
from loratools.pipelines.synthetic import make_pipeline

LAYERS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
)
CONVOLUTION = "down_blocks.0.attentions.0.proj_in"
TUNERS = ("adalora", "adalora-pruned", "oft", "oft-constrained", "oft-shared")
TOLERANCE = {name: 1e-5 if name.startswith("oft") else 1e-6 for name in TUNERS}


def config(name):
    """PEFT's own configuration of a tuner."""
    from peft import AdaLoraConfig, OFTConfig

    if name.startswith("adalora"):
        return AdaLoraConfig(
            init_r=6, target_r=3, lora_alpha=5, total_step=10, tinit=1, tfinal=1, target_modules=list(LAYERS)
        )
    how = {
        "oft": {},
        "oft-constrained": {"coft": True, "eps": 1e-3, "use_cayley_neumann": False},
        "oft-shared": {"block_share": True},
    }[name]
    return OFTConfig(r=0, oft_block_size=8, target_modules=list(LAYERS), **how)


def randomised(model, name):
    """Seeded parameters; in a pruned AdaLoRA some singular values are masked as its allocator does."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key or "oft_" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
            if name == "adalora-pruned" and "lora_E" in key:
                parameter[1::2] = 0
    return model


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    torch.set_num_threads(1)
    return make_pipeline("sd1", tmp_path_factory.mktemp("base") / "sd1")


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    """name → (folder that PEFT wrote, path → what the layer of a model that PEFT loaded it into adds to a probe)."""
    from diffusers import UNet2DConditionModel
    from peft import PeftModel, get_peft_model

    made = {}

    def one(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("peft") / name
            unet = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet", local_files_only=True)
            randomised(get_peft_model(unet, config(name)), name).save_pretrained(str(folder))
            fresh = UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet", local_files_only=True)
            loaded = PeftModel.from_pretrained(fresh, str(folder)).eval().double()
            made[name] = folder, {path: added(loaded.get_base_model().get_submodule(path)) for path in LAYERS}
        return made[name]

    return one


def added(layer):
    """The change of a linear layer's weight: what its forward pass adds to the unit vectors."""
    base = layer.get_base_layer()
    units = torch.eye(base.in_features, dtype=torch.float64)
    with torch.no_grad():
        return (layer(units) - base(units)).T


def assert_deltas(reference, truth, tolerance):
    found = {
        item.target.paths[0]: delta_of(item, dtype="float64") for item in open_lora(reference, arch="sd1").adapters
    }
    assert found.keys() == truth.keys()
    for path, delta in truth.items():
        assert delta.norm() > 0
        assert (found[path].reshape(delta.shape) - delta).norm() <= tolerance * delta.norm(), path


@pytest.mark.parametrize(
    "form", [form for form in FORMATS if form.id not in ("gguf", "mlx", "peft")], ids=lambda form: form.id
)
@pytest.mark.parametrize("name", TUNERS)
def test_no_other_format_says_it_so_each_names_the_layer_and_what_to_do(saved, name, form):
    folder, _ = saved(name)
    with pytest.raises(NotRepresentable) as refusal:
        convert(folder, to=form.id, arch="sd1")
    assert any(path in refusal.value.message for path in LAYERS)
    assert (refusal.value.key, bool(refusal.value.hint)) != (None, False)


@pytest.mark.parametrize(
    "form", [form for form in FORMATS if form.id in ("hcp", "kohya", "peft")], ids=lambda form: form.id
)
@pytest.mark.parametrize("name", TUNERS)
def test_as_plain_lora_it_makes_the_change_that_peft_makes(saved, pipeline, tmp_path, name, form):
    folder, truth = saved(name)
    out = tmp_path / ("out" if form.folder else "out.safetensors")
    base = None if name.startswith("adalora") else pipeline
    convert(folder, to=form.id, to_kind="lora", base=base, arch="sd1", error=1e-7).save(out)
    assert_deltas(out, truth, TOLERANCE[name])


@pytest.mark.parametrize("name", TUNERS)
def test_compared_over_the_base_it_is_its_plain_lora(saved, pipeline, tmp_path, name):
    folder, _ = saved(name)
    out = tmp_path / "out.safetensors"
    base = None if name.startswith("adalora") else pipeline
    convert(folder, to="kohya", to_kind="lora", base=base, arch="sd1", error=1e-7).save(out)
    assert compare(folder, out, arch="sd1", base=pipeline, tolerance=1e-6).equal


UNETS = {
    "adalora": [*LAYERS, CONVOLUTION],
    "adalora-pruned": [*LAYERS, CONVOLUTION],
    "oft": [*LAYERS, CONVOLUTION],
    "oft-constrained": [*LAYERS],
    "oft-adjusted": [*LAYERS],
}
OPTIONS = {
    "oft": {"oft_block_size": 4, "num_cayley_neumann_terms": 3},
    "oft-constrained": {"oft_block_size": 8, "coft": True, "eps": 1e-3, "use_cayley_neumann": False},
    "oft-shared": {"oft_block_size": 8, "block_share": True},
    "oft-adjusted": {"oft_block_size": 20},  # divides none of the widths: PEFT takes another for each
    "oft-counted": {"r": 4, "oft_block_size": 0},
    "oft-shared-counted": {"r": 4, "oft_block_size": 0, "block_share": True},
}
CLIP = ["q_proj", "fc1"]


def made(base, name, folder, targets, **fields):
    """A folder that peft saved of a tuner on a model; a pruned AdaLoRA has another rank in every layer."""
    from peft import AdaLoraConfig, OFTConfig, get_peft_model

    if name.startswith("adalora"):
        schedule = {"total_step": 9, "tinit": 2, "tfinal": 3, "deltaT": 2, "target_r": 3}
        tuner = AdaLoraConfig(init_r=6, lora_alpha=5, target_modules=targets, **schedule, **fields)
    else:
        tuner = OFTConfig(target_modules=targets, **{"r": 0, **OPTIONS[name]}, **fields)
    model = randomised(get_peft_model(base, tuner), name.partition("-pruned")[0])
    if name == "adalora-pruned":
        keys = [key for key, _ in model.base_model.model.named_parameters() if "lora_E" in key]
        tuner.rank_pattern = {key: [(at + row) % 3 != 0 for row in range(6)] for at, key in enumerate(keys)}
        first = tuner.rank_pattern[keys[0]]
        first[:] = [False, False, True, False, False, False]
    model.save_pretrained(str(folder))
    return folder


def answer(base, folder, probe):
    """What the model answers with a folder that PEFT loaded, and without."""
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad(), loaded.disable_adapter():
        without = probe(loaded)
    with torch.no_grad():
        return probe(loaded), without


def assert_written_for_peft(make, probe, folder, tmp_path, **how):
    """PEFT answers with the same bits from the converted folder; the tensors and, on the way back, all are the same."""
    out, back = tmp_path / "out", tmp_path / "back"
    result = convert(folder, to="peft", **how).save(out)
    assert (result.proof.exact, result.proof.measured) == (0, 0)
    (theirs, without), (ours, _) = answer(make(), folder, probe), answer(make(), out, probe)
    assert not torch.equal(theirs, without)
    assert torch.equal(ours, theirs)
    convert(out, to="original").save(back)
    before = load_file(folder / "adapter_model.safetensors")
    for place in (out, back):
        after = load_file(place / "adapter_model.safetensors")
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    name = "adapter_config.json"
    assert json.loads((back / name).read_text()) == json.loads((folder / name).read_text())
    return json.loads((out / name).read_text())


@pytest.mark.parametrize("name", UNETS)
def test_peft_answers_with_the_same_bits_from_a_converted_unet(pipeline, tmp_path, name):
    from diffusers import UNet2DConditionModel

    def make():
        return UNet2DConditionModel.from_pretrained(pipeline, subfolder="unet", local_files_only=True)

    def probe(model):
        config = model.get_base_model().config
        generator = torch.Generator().manual_seed(5)
        image = torch.randn(1, config.in_channels, 8, 8, generator=generator)
        return model(image, 3, torch.randn(1, 4, config.cross_attention_dim, generator=generator)).sample

    folder = made(make(), name, tmp_path / "in", UNETS[name])
    written = assert_written_for_peft(make, probe, folder, tmp_path, arch="sd1")
    stated = json.loads((folder / "adapter_config.json").read_text())
    for field in ("rank_pattern", "total_step", "tinit", "tfinal", "r", "oft_block_size", "eps", "peft_type"):
        assert written.get(field) == stated.get(field), field


@pytest.mark.parametrize("name", ["adalora-pruned", "oft", "oft-shared-counted"])
def test_peft_answers_with_the_same_bits_from_a_converted_clip(pipeline, tmp_path, name):
    from transformers import CLIPTextModel

    def make():
        return CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder", local_files_only=True)

    folder = made(make(), name, tmp_path / "in", CLIP)
    tokens = torch.arange(6)[None]
    assert_written_for_peft(make, lambda model: model(input_ids=tokens).last_hidden_state, folder, tmp_path, arch="sd1")


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=100, **sizes))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes))


LANGUAGE = {"adalora": gpt2, "adalora-pruned": gpt2} | dict.fromkeys(OPTIONS, llama)  # OFT knows no Conv1D


@pytest.mark.parametrize("name", LANGUAGE)
def test_peft_answers_with_the_same_bits_from_a_converted_language_model(tmp_path, name):
    make = LANGUAGE[name]
    how = (
        {"fan_in_fan_out": True, "targets": ["c_attn", "c_fc"]}
        if make is gpt2
        else {"targets": ["q_proj", "down_proj"]}
    )
    folder = made(make(), name, tmp_path / "in", modules_to_save=["lm_head"], **how)
    tokens = torch.arange(6)[None]
    assert_written_for_peft(make, lambda model: model(input_ids=tokens).logits, folder, tmp_path)


def test_masks_follow_the_names_of_another_clip(pipeline, tmp_path):
    from transformers import CLIPTextModel

    clip = CLIPTextModel.from_pretrained(pipeline, subfolder="text_encoder", local_files_only=True)
    folder = made(clip, "adalora-pruned", tmp_path / "in", CLIP)
    before = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    convert(folder, to="peft", arch="sd1", clip_prefix="text_model").save(tmp_path / "out")
    after = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["rank_pattern"]
    assert after == {f"text_model.{name}": mask for name, mask in before.items()}
    held = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, mask in after.items():
        assert held[f"base_model.model.{name}"].shape == (sum(mask), 1)


def test_adalora_has_one_alpha_whatever_a_pattern_says(saved, tmp_path):
    folder, truth = saved("adalora")
    held = load_file(folder / "adapter_model.safetensors")
    stated = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "in").mkdir()
    save_file(held, tmp_path / "in" / "adapter_model.safetensors")
    text = json.dumps({**stated, "alpha_pattern": {"to_q": 50}})
    (tmp_path / "in" / "adapter_config.json").write_text(text)
    assert_deltas(tmp_path / "in", truth, 1e-6)


def rewritten(folder, out, tensors=None, **fields):
    """A copy of a folder with other tensors or fields of its configuration; a field of None is left out."""
    out.mkdir()
    held = load_file(folder / "adapter_model.safetensors")
    save_file({**held, **(tensors or {})}, out / "adapter_model.safetensors")
    stated = json.loads((folder / "adapter_config.json").read_text()) | fields
    text = json.dumps({name: value for name, value in stated.items() if value is not None})
    (out / "adapter_config.json").write_text(text)
    return out


def test_more_singular_values_than_training_began_with_are_refused(saved, tmp_path):
    folder = rewritten(saved("adalora")[0], tmp_path / "in", init_r=4)
    with pytest.raises(NotRepresentable, match="no more than init_r, 4") as refusal:
        convert(folder, to="peft", arch="sd1")
    assert refusal.value.hint


def test_blocks_that_no_size_cuts_are_refused_with_the_layer(saved, tmp_path):
    folder, _ = saved("oft")
    key = f"base_model.model.{LAYERS[0]}.oft_R.weight"
    width = load_file(folder / "adapter_model.safetensors")[key].shape[0] * 8
    odd = {key: torch.ones(width // 2, 1)}
    with pytest.raises(NotRepresentable, match="no oft_block_size") as refusal:
        convert(rewritten(folder, tmp_path / "in", odd), to="peft", arch="sd1")
    assert LAYERS[0] in refusal.value.message


@pytest.mark.parametrize(("name", "reason"), [("adalora", "init_r"), ("oft", "form of rotation")])
def test_without_its_configuration_the_refusal_names_what_is_missing(saved, tmp_path, name, reason):
    held = load_file(saved(name)[0] / "adapter_model.safetensors")
    save_file(held, tmp_path / "bare.safetensors")
    with pytest.raises(NotRepresentable, match=reason):
        convert(tmp_path / "bare.safetensors", to="peft", arch="sd1")


def test_a_folded_alpha_is_no_adaloras(saved):
    """PEFT divides by init_r whatever alpha is, so a scale of 1 cannot be said."""
    with pytest.raises(NotRepresentable, match="no lora_alpha / init_r"):
        convert(saved("adalora")[0], to="peft", arch="sd1", alpha="fold")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("oft", "num_cayley_neumann_terms", 4), ("oft", "coft", True), ("adalora", "init_r", 9)],
)
def test_a_layer_with_settings_of_its_own_is_refused_by_name(saved, name, field, value):
    """PEFT has no patterns for them."""
    first, *others = open_lora(saved(name)[0], arch="sd1").adapters
    odd = replace(others[-1], settings={**others[-1].settings, field: value})

    def written(members):
        return config_of(members, lambda item: item.target.paths[0], {}, {})

    assert written([first, *others])["peft_type"] == name.upper()
    with pytest.raises(NotRepresentable, match=field) as refusal:
        written([first, *others[:-1], odd])
    assert odd.target.paths[0] in refusal.value.message


@pytest.mark.parametrize(
    ("field", "value"), [("init_r", "12"), ("init_r", 10**9), ("init_r", True), ("tinit", "x"), ("tfinal", -1)]
)
def test_a_count_that_is_none_is_named(saved, tmp_path, field, value):
    folder = rewritten(saved("adalora")[0], tmp_path / "in", **{"total_step": None, field: value})
    with pytest.raises(MalformedFile) as error:
        convert(folder, to="peft", arch="sd1")
    assert error.value.key == field


@pytest.mark.parametrize("stated", [(-(10**12), 0), (0, -(10**12)), (4, 4), ("4", 0), (0, None), (10**12, 0)])
def test_a_size_that_peft_refuses_is_not_the_one_that_is_written(saved, tmp_path, stated):
    folder = rewritten(saved("oft")[0], tmp_path / "in", **dict(zip(("r", "oft_block_size"), stated, strict=True)))
    convert(folder, to="peft", arch="sd1").save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (written["r"], written["oft_block_size"]) == (0, 8)


def test_an_adalora_without_a_schedule_gets_one_that_peft_takes(saved, tmp_path):
    from peft import PeftConfig

    silent = dict.fromkeys(("total_step", "tinit", "tfinal", "target_r"))
    folder = rewritten(saved("adalora")[0], tmp_path / "in", **silent)
    convert(folder, to="peft", arch="sd1").save(tmp_path / "out")
    assert PeftConfig.from_pretrained(str(tmp_path / "out")).total_step == 1
