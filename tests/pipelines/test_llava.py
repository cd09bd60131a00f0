"""LLaVA, HunyuanVideo's first text encoder: the Llama in it takes adapters in every spelling that its files have."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import loratools as lt
from loratools.architectures.registry import architecture
from loratools.pipelines.live import module_of

TARGETS = ["q_proj", "o_proj", "gate_proj", "down_proj"]
LLAMA = architecture("hunyuan-video").by_name["text_encoder"]


def llava(layers, width, seeing=2):
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4}
    text = LlamaConfig(**sizes, num_hidden_layers=layers, num_key_value_heads=2, vocab_size=64)
    sight = CLIPVisionConfig(**sizes, num_hidden_layers=seeing, image_size=28, patch_size=14, projection_dim=width)
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=sight))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    llava(2, 16).save_pretrained(tmp_path / "text_encoder")
    return tmp_path / "text_encoder"


def natives(naming, depth=99):
    """The names of a naming, of the first layers."""
    found = {placement.weight_key for placement in LLAMA.naming(naming).placements()}
    return {name for name in found if all(int(word) < depth for word in name.split(".") if word.isdigit())}


def older_name(key):
    """As transformers named what LLaVA sees with before CLIP lost a level."""
    return key.replace("vision_tower.", "vision_tower.vision_model.")


def test_every_name_of_the_class_is_a_weight_of_it():
    with torch.device("meta"):
        model = llava(32, 16, 24)
    weights = {name for name, _ in model.named_parameters() if not name.endswith(".bias")}
    assert natives("llava") == weights


def test_every_name_of_the_files_is_a_key_of_them(folder):
    held = load_file(folder / "model.safetensors")
    keys = {key for key in held if not key.endswith(".bias")}
    assert natives("llava-saved", 2) == keys
    assert natives("llava-older", 2) == set(map(older_name, keys))
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    older = dict(zip(map(older_name, held), held.values(), strict=True))
    save_file(older, folder / "model.safetensors", {"format": "pt"})
    again, told = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def trained(part, targets):
    wrapped = get_peft_model(part, LoraConfig(r=2, lora_alpha=3, target_modules=targets))
    for number, (name, parameter) in enumerate(wrapped.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 4
    return wrapped


@pytest.mark.parametrize("spelling", ["class", "bare"])
def test_an_adapter_is_merged_as_peft_merges_it(spelling, folder, tmp_path):
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    part = model if spelling == "class" else model.model.language_model
    pattern = rf".*language_model\..*({'|'.join(TARGETS)})" if spelling == "class" else TARGETS
    wrapped = trained(part, pattern)
    wrapped.save_pretrained(tmp_path / "lora")
    before = load_file(folder / "model.safetensors")
    lt.merge(folder / "model.safetensors", [tmp_path / "lora"], tmp_path / "merged.safetensors", arch="hunyuan-video")
    wrapped.merge_and_unload()
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = load_file(tmp_path / "merged.safetensors"), load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    changed = {key for key, tensor in ours.items() if not torch.equal(tensor, before[key])}
    assert len(changed) == 2 * len(TARGETS)
    assert all((ours[key] - theirs[key]).norm() <= 1e-6 * theirs[key].norm() for key in ours)


def test_an_adapter_of_the_class_is_the_one_of_the_llama_in_it(tmp_path):
    stem = "layers.1.self_attn.q_proj"
    factors = {"lora_A.weight": torch.randn(2, 4096), "lora_B.weight": torch.randn(4096, 2)}
    for name, level in (("inner", ""), ("class", "model.language_model."), ("saved", "language_model.model.")):
        held = {f"text_encoder.{level}{stem}.{leaf}": tensor for leaf, tensor in factors.items()}
        save_file(held, tmp_path / f"{name}.safetensors")
    for name in ("class", "saved"):
        found = lt.compare(tmp_path / f"{name}.safetensors", tmp_path / "inner.safetensors", arch="hunyuan-video")
        assert (found.worst, found.equal) == (0, True)


def test_a_live_encoder_answers_as_peft_makes_it_and_gets_its_bits_back(folder, tmp_path):
    tokens = torch.arange(5)[None]
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    before, plain = {key: value.clone() for key, value in model.state_dict().items()}, model(input_ids=tokens).logits
    adapted = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    trained(adapted.model.language_model, TARGETS).save_pretrained(tmp_path / "lora")
    done = lt.apply({"text_encoder": model}, tmp_path / "lora", arch="hunyuan-video", how="weights")
    answer, wanted = model(input_ids=tokens).logits, adapted(input_ids=tokens).logits
    assert (answer - wanted).norm() <= 1e-5 * wanted.norm()
    assert (answer - plain).norm() > 1e-3 * plain.norm()
    assert {module_of(model, row.path) for row in done.modules} < set(model.modules())
    done.remove()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
