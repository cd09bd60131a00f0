"""An adapter of one architecture is never merged into the base model of another, nor taken for its fine-tune."""

from functools import cache

import pytest

from fixtures.broken.adapter import tensor, whole
from loratools.architectures.architecture import shapes
from loratools.architectures.naming import skeleton
from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.matching import native_shape
from tests.reliability.invariants import check_ended_well, command, contents
from tests.reliability.jobs import claiming

ADAPTED = 12  # layers of an adapter, spread over the whole denoiser
LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
         "mlp.up_proj", "mlp.down_proj")  # fmt: skip
GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MODELS = {
    "llm-llama": {f"model.layers.{n}.{name}": (64, 64) for n in range(4) for name in LLAMA},
    "llm-gpt2": {f"h.{n}.{name}": (64, 64) for n in range(4) for name in GPT2},
}
NAMES = (*(known.id for known in ARCHITECTURES), *MODELS)
# Models that one was made of, and what else was: an adapter of one looks like one of the others.
MADE_OF = {known.id: {known.id, *known.yields_to} for known in ARCHITECTURES}
FAMILIES = {
    known.id: {*known.family, *(name for name, made in MADE_OF.items() if made & MADE_OF[known.id])}
    for known in ARCHITECTURES
}
BLOCKS = 4  # of each stack: names and sizes tell the models apart, and a whole one would fill the disk
NEAREST, FARTHER = 4, 2


def strangers(name):
    """The models outside its family that share most layers, by name and size, with a model, and a few that do not."""
    mine = set(weights(name)[1].items())
    others = [other for other in NAMES if other not in (name, *FAMILIES.get(name, ()))]
    others.sort(key=lambda other: -len(mine & set(weights(other)[1].items())))
    return (*others[:NEAREST], *others[NEAREST :: len(others) // FARTHER])


@cache
def weights(name):
    """(prefix in an adapter, key → shape of every weight and bias, path → shape of every weight) of a base model."""
    if name in MODELS:
        return "base_model.model.", {f"{path}.weight": shape for path, shape in MODELS[name].items()}, MODELS[name]
    known = next(known for known in ARCHITECTURES if known.id == name)
    component = known.denoiser
    table = shapes(known.variants[0].shapes)[component.name]
    table = {path: shape for path, shape in table.items() if next(iter(skeleton(path)[1]), 0) < BLOCKS}
    sizes = {}
    for placement in component.namings[0].placements():
        shape = native_shape(placement, table)
        if shape is not None:
            sizes[placement.weight_key] = shape
            if placement.bias_key and len(shape) > 1:
                sizes[placement.bias_key] = shape[:1]
    return f"{component.name}.", sizes, table


def adapter(path, prefix, table):
    """Rank 1 for some linear layers, by their real shapes."""
    linear = [name for name, shape in table.items() if len(shape) == 2]
    held = {}
    for name in linear[:: max(1, len(linear) // ADAPTED)]:
        rows, columns = table[name]
        held[f"{prefix}{name}.lora_A.weight"] = tensor("F16", 1, columns)
        held[f"{prefix}{name}.lora_B.weight"] = tensor("F16", rows, 1)
    path.write_bytes(whole(held))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for name in NAMES:
        prefix, sizes, table = weights(name)
        claiming(folder / f"{name}-base.safetensors", sizes)
        adapter(folder / f"{name}.safetensors", prefix, table)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_only_the_adapters_own_base_is_merged_into(place, tmp_path, name):
    model = place / f"{name}-base.safetensors"
    out = tmp_path / "out.safetensors"
    for other in (name, *strangers(name)):
        # Leaving out what does not match is no reason to take another model: without the option even less is done.
        option = () if other == name else ("--allow-partial",)
        done = command("merge", model, place / f"{other}.safetensors", "-o", out, "--dry-run", *option)
        check_ended_well(done)
        assert done.code == (0 if other == name else 4), (other, done)
        assert other == name or f"{other}.safetensors" in done.err
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", NAMES)
def test_models_of_two_architectures_are_not_taken_for_one_and_its_tune(place, tmp_path, name):
    model = place / f"{name}-base.safetensors"
    for other in strangers(name):
        done = command("extract", model, place / f"{other}-base.safetensors", "-o", tmp_path / "out.safetensors")
        check_ended_well(done)
        assert done.code == 4, (other, done)
    assert contents(tmp_path) == {}
