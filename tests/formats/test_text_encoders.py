"""Text encoders as trainers and ComfyUI spell them: which one a key is about, and what the others call it."""

import pytest

import loratools
from loratools.errors import ArchitectureMismatch, NotRepresentable
from loratools.formats.opening import open_reference
from loratools.formats.parse import parse
from loratools.tensors.lazy import LazyTensor

Q = "self_attn.q_proj"
# a layer of each denoiser, so that the file says what it is for: architecture → (path in a kohya key, out, in)
DENOISERS = {
    "flux1": ("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072),
    "hidream": ("lora_unet_double_stream_blocks_0_block_attn1_to_q", 2560, 2560),
    "hunyuan-video": ("lora_unet_double_blocks_0_img_attn_proj", 3072, 3072),
    "lumina2": ("lora_unet_layers_0_attention_out", 2304, 2304),
    "qwen-image": ("lora_unet_transformer_blocks_59_attn_to_q", 3072, 3072),
    "sana": ("lora_unet_transformer_blocks_0_attn1_to_q", 2240, 2240),
}
# architecture, kohya's stem, (out, in), component, canonical path, ComfyUI's stem
T5_Q = "encoder.block.23.layer.0.SelfAttention.q"
CASES = [
    ("flux1", "lora_te2_" + T5_Q, (4096, 4096), "text_encoder_2", T5_Q, f"text_encoders.t5xxl.transformer.{T5_Q}"),
    ("flux1", "lora_te3_" + T5_Q, (4096, 4096), "text_encoder_2", T5_Q, f"text_encoders.t5xxl.transformer.{T5_Q}"),
    ("hidream", "lora_te3_" + T5_Q, (4096, 4096), "text_encoder_3", T5_Q, f"text_encoders.t5xxl.transformer.{T5_Q}"),
    (
        "hidream", f"lora_te4_model.layers.31.{Q}", (4096, 4096), "text_encoder_4", f"model.layers.31.{Q}",
        f"text_encoders.llama.transformer.model.layers.31.{Q}",
    ),
    (
        "hunyuan-video", f"lora_te1_layers.31.{Q}", (4096, 4096), "text_encoder", f"layers.31.{Q}",
        f"text_encoders.llama.transformer.model.layers.31.{Q}",
    ),
    (
        "lumina2", f"lora_te_layers.25.{Q}", (2048, 2304), "text_encoder", f"layers.25.{Q}",
        f"text_encoders.gemma2_2b.transformer.model.layers.25.{Q}",
    ),
    ("sana", f"lora_te_layers.25.{Q}", (2048, 2304), "text_encoder", f"layers.25.{Q}", None),
    (
        "qwen-image", f"lora_te_model.language_model.layers.27.{Q}", (3584, 3584), "text_encoder",
        f"model.language_model.layers.27.{Q}", f"text_encoders.qwen25_7b.transformer.model.layers.27.{Q}",
    ),
    (
        "qwen-image", "lora_te_model.visual.blocks.31.attn.qkv", (3840, 1280), "text_encoder",
        "model.visual.blocks.31.attn.qkv", "text_encoders.qwen25_7b.transformer.visual.blocks.31.attn.qkv",
    ),
]  # fmt: skip


def layer(stem, rows, columns, suffixes=(".lora_down.weight", ".lora_up.weight")):
    shapes = ((1, columns), (rows, 1))
    return {stem + suffix: LazyTensor.zeros("F16", shape) for suffix, shape in zip(suffixes, shapes, strict=True)}


def flat(stem):
    return stem.replace(".", "_")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}-{case[1].partition('.')[0]}")
def test_every_spelling_of_an_encoder_is_one_layer(case):
    arch, stem, size, component, path, comfy = case
    tensors = layer(*DENOISERS[arch]) | layer(flat(stem), *size)
    reading = parse(open_reference(tensors))
    assert reading.adapters.architectures[0] == arch
    assert (component, (path,)) in [(item.target.component, item.target.paths) for item in reading.adapters.adapters]
    keys = loratools.convert(tensors, to="diffusers", arch=arch).rendered.files[0].tensors
    assert f"{component}.{path}.lora_A.weight" in keys
    if comfy is None:
        with pytest.raises(NotRepresentable, match="no names"):
            loratools.convert(tensors, to="comfy", arch=arch)
        return
    keys = loratools.convert(tensors, to="comfy", arch=arch).rendered.files[0].tensors
    assert f"{comfy}.lora_down.weight" in keys
    again = parse(open_reference(dict(keys)), arch=arch)
    assert (component, (path,)) in [(item.target.component, item.target.paths) for item in again.adapters.adapters]


def test_the_encoder_of_wan_learns_distances_in_every_block():
    stem = "text_encoders.umt5xxl.transformer.encoder.block.7.layer.0.SelfAttention.q"
    tensors = layer(stem, 4096, 4096) | layer("diffusion_model.blocks.0.self_attn.q", 5120, 5120)
    reading = parse(open_reference(tensors))
    assert {"wan2.1", "wan2.2"} <= set(reading.adapters.architectures)
    assert {item.target.component for item in reading.adapters.adapters} == {"transformer", "text_encoder"}


@pytest.mark.parametrize("prefix", ["text_encoders.byt5_small.transformer.", "text_encoder_2."])
def test_the_encoder_of_letters_is_the_second_one_of_hunyuan_image(prefix):
    stem = f"{prefix}encoder.block.11.layer.1.DenseReluDense.wi_0"
    tensors = layer(stem, 3584, 1472, (".lora_A.weight", ".lora_B.weight"))
    tensors |= layer("diffusion_model.byt5_in.fc1", 2048, 1472, (".lora_A.weight", ".lora_B.weight"))
    reading = parse(open_reference(tensors))
    assert reading.adapters.architectures == ("hunyuan-image", "hunyuan-video-1.5")
    assert {item.target.component for item in reading.adapters.adapters} == {"transformer", "text_encoder_2"}


def test_a_stack_of_t5_as_deep_as_the_large_one_is_not_the_encoder_of_letters():
    stem = "text_encoder_2.encoder.block.12.layer.0.SelfAttention.q"
    tensors = layer(stem, 384, 1472, (".lora_A.weight", ".lora_B.weight"))
    with pytest.raises(ArchitectureMismatch):
        parse(open_reference(tensors), arch="hunyuan-image")
