"""DiffSynth deals the rows of MiniMax-H3's q, k and v out by heads; the adapter's name in its keys tells, not sizes."""

import pytest
import torch

import loratools
from tests.formats.making import Draw, assert_same_tensors, kind_factors, low_rank, read, write
from tests.formats.test_round_trips import assert_round_trip, converted

WIDTH, HEADS, HEAD = 6144, 48, 128


def size():
    from loratools.architectures.architecture import shapes

    return shapes("minimax-h3")["transformer"]["transformer_blocks.0.attn.to_q"]


def h3(infix):
    rows, columns = size()
    draw, tensors = Draw(1, torch.bfloat16), {}
    for stem, shape in (
        ("blocks.0.attn.qkv_proj", (3 * rows, columns)),
        ("token_refiner.blocks.1.attn.qkv_proj", (3 * rows, columns)),
    ):
        factors = low_rank(shape, 2, draw)
        tensors |= {f"{stem}.lora_A{infix}.weight": factors["down"], f"{stem}.lora_B{infix}.weight": factors["up"]}
    return tensors


@pytest.mark.parametrize("infix", ["", ".default"])
def test_rows_are_dealt_where_the_adapter_is_named_as_diffusers_reads_it(infix, tmp_path):
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_minimax_h3_lora_to_diffusers

    tensors = h3(infix)
    source = write(tensors, tmp_path / "in.safetensors")
    found = loratools.inspect(source).document
    assert found["unknown_keys"] == []
    assert [line for line in found["warnings"] if "dealt out by heads" in line] == [
        "rows are read as dealt out by heads, which the adapter's name inside the keys tells alone (2 layers)"
    ] * bool(infix)
    ours = read(converted(source, "diffusers", tmp_path / "out.safetensors", arch="minimax-h3"))
    theirs = _convert_non_diffusers_minimax_h3_lora_to_diffusers(dict(tensors))
    assert_same_tensors(
        ours, {f"transformer.{key.removeprefix('transformer.')}": value for key, value in theirs.items()}
    )
    for to in ("kohya", "comfy"):
        assert_round_trip(source, [to], tmp_path / to, arch="minimax-h3")


def test_what_has_no_row_for_each_of_the_weights_is_refused(tmp_path):
    rows, columns = size()
    factors = kind_factors("lokr", (3 * rows, columns), Draw(2))
    named = {f"blocks.0.attn.qkv_proj{suffix}": tensor for suffix, tensor in factors.items()}
    named |= {key: tensor for key, tensor in h3(".default").items() if "refiner" in key}
    source = write(named, tmp_path / "in.safetensors")
    lora = loratools.open(source, arch="minimax-h3")  # the Kronecker product itself has no adapter's name in its keys
    assert {item.kind for item in lora.adapters} == {"lora", "lokr"}
