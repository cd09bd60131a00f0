"""Stability AI's LoRAs of Stable Cascade number their layers: torch's own parametrisations say in which order."""

import pytest
import torch
from torch.nn.utils import parametrize

import loratools
from loratools.adapters.kind import delta_of
from loratools.errors import ArchitectureMismatch, IncompleteAdapter, NotRepresentable
from tests.formats.making import Draw, low_rank, write
from tests.formats.test_round_trips import assert_round_trip

WIDTH, HEADS, BLOCKS = 1536, 24, ((4, 12), (12, 4))  # the smaller of the two models


class Pair(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.shape = tuple(weight.shape)

    def forward(self, weight):
        return weight


def stage_c():
    """The attentions of stage C where the model has them; resnets and time steps stand between."""

    def block():
        found = torch.nn.Module()
        found.attention = torch.nn.Module()
        found.attention.attn = torch.nn.MultiheadAttention(WIDTH, HEADS, device="meta")
        return found

    def level(count):
        return torch.nn.ModuleList([[torch.nn.Module, torch.nn.Module, block][at % 3]() for at in range(3 * count)])

    model = torch.nn.Module()
    model.down_blocks = torch.nn.ModuleList(map(level, BLOCKS[0]))
    model.up_blocks = torch.nn.ModuleList(map(level, BLOCKS[1]))
    return model


def wrapped(model):
    """The weights in modules whose name has `.attn`, wrapped one by one, in the order in which torch finds them."""
    for name, module in model.named_modules():
        if ".attn" in name and not isinstance(module, Pair):
            leaf = next(
                (
                    leaf
                    for leaf in ("weight", "in_proj_weight")
                    if isinstance(getattr(module, leaf, None), torch.nn.Parameter)
                ),
                None,
            )
            if leaf and not parametrize.is_parametrized(module, leaf):
                parametrize.register_parametrization(module, leaf, Pair(getattr(module, leaf)), unsafe=True)
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Pair):
            found.append((name.replace(".parametrizations.", ".").removesuffix(".0"), module.shape))
    return found


@pytest.fixture(scope="module")
def layers():
    return wrapped(stage_c())


def numbered(layers, rank=2):
    draw, tensors = Draw(1), {"embeddings.embeddings": torch.zeros(0, 1280), "embeddings.indices": torch.zeros(0)}
    for number, (_, shape) in enumerate(layers):
        factors = low_rank(shape, rank, draw)
        tensors |= {f"weights.{number}.lora_{role}": factors[role] for role in ("down", "up")}
    return tensors


def test_layers_have_the_order_in_which_torch_walks_the_model_and_a_scale_of_one_by_rank(layers, tmp_path):
    tensors = numbered(layers)
    source = write(tensors, tmp_path / "in.safetensors")
    lora = loratools.open(source)
    assert (lora.architecture, lora.format, lora.reading.unknown) == ("stable-cascade", "stable-cascade", ())
    assert len(layers) == len(lora.adapters) == 64
    known = lora.reading.opened and {item.origin.keys["up"]: item for item in lora.adapters}
    for number, (name, shape) in enumerate(layers):
        item = known[f"weights.{number}.lora_up"]
        block = name.partition(".attn.")[0]
        parts = ("to_q", "to_k", "to_v") if name.endswith("in_proj_weight") else ("to_out.0",)
        assert item.target.paths == tuple(f"{block}.{part}" for part in parts)
        if number % 21 == 0:
            down, up = (tensors[f"weights.{number}.lora_{role}"].double() for role in ("down", "up"))
            assert torch.equal(delta_of(item, dtype="float64"), up @ down / 2)
            assert tuple(delta_of(item).shape) == shape


def test_numbers_come_back(layers, tmp_path):
    tensors = {key: tensor for key, tensor in numbered(layers).items() if key.startswith("weights")}
    source = write(tensors, tmp_path / "in.safetensors")
    for to in ("kohya", "diffusers"):
        assert_round_trip(source, [to], tmp_path / to)


def test_trained_words_have_no_place(layers, tmp_path):
    source = write(numbered(layers), tmp_path / "in.safetensors")
    with pytest.raises(NotRepresentable, match="2 tensors saved whole"):
        loratools.convert(source, to="kohya")


def test_other_numbers_of_layers_are_refused(layers, tmp_path):
    tensors = numbered(layers[:10])
    with pytest.raises(ArchitectureMismatch, match="10 numbered layers"):
        loratools.open(write(tensors, tmp_path / "few.safetensors"))
    del tensors["weights.3.lora_up"]
    with pytest.raises(IncompleteAdapter, match="layer 3"):
        loratools.open(write(tensors, tmp_path / "half.safetensors"))
