"""The weights of a base by canonical path: from every naming, prefix, fused row and layout, bit for bit."""

from __future__ import annotations

import pytest
import torch

from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.bases.matching import native_shape
from loratools.bases.weights import open_base
from loratools.errors import ArchitectureMismatch, UnsupportedFile, WrongRole
from loratools.model import Target
from loratools.tensors.source import MemoryTensors
from tests.bases.making import canonical, shrunk, spelt

CASES = [
    ("flux1", "transformer", "bfl", ""),
    ("flux1", "transformer", "bfl", "model.diffusion_model."),
    ("flux1", "transformer", "diffusers", ""),
    ("sd1", "unet", "diffusers", ""),
    ("sd1", "unet", "ldm", "model.diffusion_model."),
    ("sdxl", "text_encoder_2", "open_clip", "conditioner.embedders.1.model."),
    ("sdxl", "text_encoder_2", "transformers", ""),
]


@pytest.mark.parametrize(("arch", "component", "naming_id", "prefix"), CASES)
def test_weights_and_biases_are_those_of_the_canonical_paths(arch, component, naming_id, prefix):
    known = architecture(arch)
    table = shapes(known.variants[0].shapes)[component]
    naming = known.by_name[component].naming(naming_id)
    if naming is None:
        names = [item.name for item in known.by_name[component].namings]
        pytest.fail(f"{naming_id} is not among {names}")
    small = {path: shrunk(shape) for path, shape in table.items()}
    values = canonical(small)
    source = MemoryTensors(spelt(naming, small, values, prefix))
    weights = open_base("memory", [(None, source)]).of(known)
    asked = 0
    for placement in naming.placements():
        for path in placement.paths:
            if native_shape(placement, table) is None:
                continue
            found = weights.weight(component, path)
            assert found is not None, path
            assert torch.equal(found.load(), values[path][0]), path
            if placement.bias_key and len(small[path]) > 1:
                assert torch.equal(weights.bias(component, path).load(), values[path][1]), path
            asked += 1
    assert asked > 20
    assert weights.weight(component, "no.such.path") is None


def test_an_adapter_of_a_fused_layer_gets_its_rows_stacked():
    known = architecture("flux1")
    table = {path: shrunk(shape) for path, shape in shapes(known.variants[0].shapes)["transformer"].items()}
    values = canonical(table)
    naming = known.denoiser.naming("diffusers")
    base = open_base("memory", [(None, MemoryTensors(spelt(naming, table, values)))]).of(known)
    parts = tuple(f"single_transformer_blocks.3.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
    target = Target("transformer", parts, (1, 1, 1, 4))
    assert torch.equal(base.weight_of(target).load(), torch.cat([values[path][0] for path in parts]))
    assert torch.equal(base.bias_of(target).load(), torch.cat([values[path][1] for path in parts]))
    beyond = Target("transformer", (*parts, "nowhere"), (1, 1, 1, 4, 1))
    assert base.weight_of(beyond) is None
    assert base.missing(beyond) == "nowhere"


def test_the_folder_tells_encoders_apart_whose_sizes_do_not():
    known = architecture("sdxl")
    table = {path: shrunk(shape) for path, shape in shapes(known.variants[0].shapes)["text_encoder"].items()}
    values = canonical(table)
    held = spelt(known.by_name["text_encoder"].namings[0], table, values)
    base = open_base("pipeline", [("text_encoder_2", MemoryTensors(held))]).of(known)
    path = "text_model.encoder.layers.0.self_attn.q_proj"
    assert base.weight("text_encoder", path) is None
    assert torch.equal(base.weight("text_encoder_2", path).load(), values[path][0])


def test_a_language_model_has_its_own_names():
    held = {f"model.layers.{n}.self_attn.{part}_proj.weight": torch.randn(8, 8) for n in range(4) for part in "qkvo"}
    held |= {
        f"model.layers.{n}.mlp.{part}_proj.weight": torch.randn(8, 8)
        for n in range(4)
        for part in ("up", "down", "gate")
    }
    base = open_base("memory", [(None, MemoryTensors(held))]).of(None)
    path = "model.layers.2.mlp.up_proj"
    assert torch.equal(base.weight("model", path).load(), held[f"{path}.weight"])


def test_what_is_no_base_is_refused():
    adapter = {"lora_unet_conv_in.lora_down.weight": torch.zeros(2, 4)}
    with pytest.raises(WrongRole):
        open_base("memory", [(None, MemoryTensors(adapter))])


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.int8, "scale_weight"), (torch.float8_e4m3fn, "weight_scale_inv"), (torch.uint8, "weight_scale_2")],
)
def test_weights_whose_scales_are_not_read_are_refused(dtype, scale):
    stem = "double_blocks.0.img_attn.qkv"
    scaled = {f"{stem}.weight": torch.zeros(6, 2, dtype=dtype), f"{stem}.{scale}": torch.ones(1)}
    with pytest.raises(UnsupportedFile, match="quantised"):
        open_base("memory", [(None, MemoryTensors(scaled))])


def test_parts_of_two_architectures_are_no_base():
    parts = []
    for arch in ("sd1", "flux1"):
        known = architecture(arch)
        table = {path: shrunk(shape) for path, shape in shapes(known.variants[0].shapes)[known.denoiser.name].items()}
        parts.append((known.denoiser.name, MemoryTensors(spelt(known.denoiser.namings[0], table, canonical(table)))))
    with pytest.raises(ArchitectureMismatch, match="different architectures"):
        open_base("memory", parts)
