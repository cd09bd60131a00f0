"""Two models side by side: what both hold is paired in one layout, and what only one holds is named."""

import torch

from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.bases.pairing import pair
from loratools.bases.weights import open_base
from loratools.model import Target
from loratools.tensors.source import MemoryTensors
from tests.bases.test_weights import canonical, shrunk, spelt

KNOWN = architecture("flux1")
TABLE = {path: shrunk(shape) for path, shape in shapes(KNOWN.variants[0].shapes)["transformer"].items()}


def model(naming, seed):
    values = canonical(TABLE, seed)
    held = spelt(KNOWN.denoiser.naming(naming), TABLE, values)
    return open_base(naming, [(None, MemoryTensors(held))]), values


def alone(component, path):
    return Target(component, (path,))


def test_two_namings_of_one_model_are_paired_tensor_by_tensor():
    (ours, before), (theirs, after) = model("diffusers", 0), model("bfl", 1)
    found = pair(ours, theirs, KNOWN, ("flux1",), alone)
    assert (found.misshapen, found.unpaired, found.one_sided, found.beyond) == ((), (), (), ())
    assert found.coverage == {"transformer": 1.0}
    assert {twin.target.paths[0] for twin in found.twins if not twin.is_bias} == set(TABLE)
    for twin in found.twins:
        path = twin.target.paths[0]
        assert torch.equal(twin.base.load(), before[path][twin.is_bias]), twin.name
        assert torch.equal(twin.tuned.load(), after[path][twin.is_bias]), twin.name
        rows = torch.cat([block for _, block, _ in twin.blocks()])
        assert torch.equal(rows.reshape(twin.base.shape), before[path][twin.is_bias])
        assert twin.sort == ("norm" if len(TABLE[path]) < 2 else "bias" if twin.is_bias else "layer")


def test_parts_that_an_output_fuses_are_paired_as_one():
    (ours, before), (theirs, _) = model("diffusers", 0), model("bfl", 1)
    fused = KNOWN.denoiser.naming("bfl")

    def target_of(component, path):
        placement = fused.at_canonical(path)
        return Target(component, placement.paths, placement.ratio)

    twins = {twin.name: twin for twin in pair(ours, theirs, KNOWN, ("flux1",), target_of).twins}
    parts = [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    assert torch.equal(
        twins[f"transformer:{'+'.join(parts)}"].base.load(), torch.cat([before[part][0] for part in parts])
    )


def test_what_only_one_side_holds_is_named():
    ours, _ = model("diffusers", 0)
    values = canonical(TABLE, 1)
    held = spelt(KNOWN.denoiser.naming("diffusers"), TABLE, values)
    dropped = "transformer_blocks.3.ff.net.2"
    held = {key: tensor for key, tensor in held.items() if not key.startswith(dropped)}
    held["proj_out.weight"] = torch.zeros(3, 7)
    found = pair(ours, open_base("fewer", [(None, MemoryTensors(held))]), KNOWN, ("flux1",), alone)
    assert found.unpaired == (f"transformer:{dropped}: only in base",)
    assert [line.partition(":")[2].partition(":")[0] for line in found.misshapen] == ["proj_out"]
    assert dropped not in {twin.target.paths[0] for twin in found.twins}


def llama(prefix, seed):
    generator = torch.Generator().manual_seed(seed)
    held = {f"{prefix}embed_tokens.weight": torch.randn(20, 8, generator=generator)}
    for layer in range(4):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            held[f"{prefix}layers.{layer}.{name}.weight"] = torch.randn(8, 8, generator=generator)
        for name in ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"):
            held[f"{prefix}layers.{layer}.{name}.weight"] = torch.randn(8, 8, generator=generator)
        for name in ("input_layernorm", "post_attention_layernorm"):
            held[f"{prefix}layers.{layer}.{name}.weight"] = torch.ones(8)
    held[f"{prefix}norm.weight"] = torch.ones(8)
    return held


def test_language_models_that_differ_by_a_level_before_all_names_are_paired_by_the_bases():
    ours, theirs = llama("model.", 0), llama("", 1)
    for first, second in ((ours, theirs), (theirs, ours)):
        bases = [open_base("x", [(None, MemoryTensors(held))]) for held in (first, second)]
        found = pair(*bases, None, bases[0].candidates, alone)
        assert found.coverage == {"model": 1.0}
        assert {f"{twin.target.paths[0]}.weight" for twin in found.twins} == set(first)
        sorts = {twin.sort for twin in found.twins if "embed" in twin.name}
        assert sorts == {"embedding"}


def test_tensors_that_no_table_places_are_kept_beside():
    held = llama("model.", 0)
    both = [held | {"model.layers.0.mlp.experts": torch.full((2, 3, 4), float(value))} for value in (1, 2)]
    bases = [open_base("x", [(None, MemoryTensors(item))]) for item in both]
    found = pair(*bases, None, bases[0].candidates, alone)
    (ours, theirs) = found.unplaced["model.layers.0.mlp.experts"]
    assert not ours.same_bytes(theirs)
