"""What a file that is no adapter is: from the tables, and from a corpus of inventories where there is one."""

import gzip
import json
import os
from pathlib import Path

import pytest

from loratools.architectures.architecture import shapes
from loratools.architectures.registry import ARCHITECTURES, architecture
from loratools.bases.companions import companion
from loratools.bases.identify import identify
from loratools.bases.matching import native_shape

CORPUS = os.environ.get("LORATOOLS_CORPUS")
EXPECTED = json.loads((Path(CORPUS) / "EXPECTED.json").read_text()) if CORPUS else {}
INVENTORIES = [Path(CORPUS) / name for name in sorted(EXPECTED)] if CORPUS else []
needs_corpus = pytest.mark.skipif(not CORPUS, reason="LORATOOLS_CORPUS names no folder of key inventories")
REGISTERED = {known.id for known in ARCHITECTURES}
TABLED = [
    path
    for path in INVENTORIES
    # A text encoder alone has no architecture to expect.
    if EXPECTED[path.name]["role"] == "base" and EXPECTED[path.name].get("architecture", "sd1") in REGISTERED
]
SPELLINGS = [
    pytest.param(known, variant, component, naming, id=f"{variant.shapes}-{component.name}-{naming.name}")
    for known in ARCHITECTURES
    for variant in known.variants
    for component in known.components
    for naming in component.namings
    if component.name in shapes(variant.shapes) and (component is known.denoiser or variant is known.variants[0])
]
# Built from a class without a configuration: the published model has the width of its text encoder there.
OF_CLASS_DEFAULTS = {
    "base_lumina2_transformer_diffusers_gen.json": (
        "time_caption_embed.caption_embedder.0.weight",
        "time_caption_embed.caption_embedder.1.weight",
    )
}
# Those that are published as one file with everything in it.
SINGLE_FILES = [known for known in ARCHITECTURES if all(component.checkpoint for component in known.components)]


def spelt(component, naming, table, prefix=""):
    """The keys and shapes of a component in one naming, as a file has them."""
    sizes = {}
    for placement in naming.placements():
        shape = native_shape(placement, table)
        if shape is not None:
            sizes[prefix + placement.weight_key] = shape
            if placement.bias_key and len(shape) > 1:
                sizes[prefix + placement.bias_key] = shape[:1]
    return sizes


def inventory(path):
    raw = path.read_bytes()
    tensors = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["tensors"]
    return {key: None if entry["shape"] is None else tuple(entry["shape"]) for key, entry in tensors.items()}


@pytest.mark.parametrize(("known", "variant", "component", "naming"), SPELLINGS)
def test_a_component_alone_is_a_base_of_its_architecture(known, variant, component, naming):
    found = identify(spelt(component, naming, shapes(variant.shapes)[component.name]))
    assert found.role == "base"
    heirs = set(known.yields_to) & set(found.candidates)  # such as SkyReels', which are Wan's trained on
    assert known.id in found.candidates or heirs
    assert found.unmatched == found.misfits == ()
    assert {part.naming for part in found.components.values()} == {naming.name}
    if component is known.denoiser:
        assert set(found.candidates) <= {known.id, *known.family, *known.yields_to}
        if found.candidates == (known.id,):
            assert found.variants == (variant.name,)


@pytest.mark.parametrize("known", SINGLE_FILES, ids=lambda known: known.id)
def test_a_single_file_has_every_component_under_its_prefix(known):
    variant = known.variants[0]
    sizes, prefixes = {}, {}
    for component in known.components:
        prefixes[component.name] = component.checkpoint[0]
        table = shapes(variant.shapes)[component.name]
        sizes |= spelt(component, component.namings[-1], table, component.checkpoint[0])
    sizes |= {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3), "alphas_cumprod": (1000,)}
    found = identify(sizes)
    assert (found.role, found.candidates, found.variants) == ("base", (known.id,), (variant.name,))
    assert {name: part.prefix for name, part in found.components.items()} == prefixes
    assert found.unmatched == found.misfits == ()


@pytest.mark.parametrize("known", ARCHITECTURES, ids=lambda known: known.id)
def test_a_model_of_unknown_sizes_keeps_its_names(known):
    sizes = spelt(known.denoiser, known.denoiser.namings[0], shapes(known.variants[0].shapes)[known.denoiser.name])
    tiny = {key: tuple(max(1, extent // 10) for extent in shape) for key, shape in sizes.items()}
    found = identify(tiny)
    assert found.role == "base"
    assert known.id in found.candidates


def test_one_strange_key_is_named_and_changes_nothing():
    known = architecture("sd1")
    sizes = spelt(known.denoiser, known.denoiser.namings[0], shapes("sd1")["unet"])
    found = identify({**sizes, "mid_block.attentions.0.stranger.weight": (4, 4)})
    assert found.candidates == ("sd1",)
    assert found.unmatched == ("mid_block.attentions.0.stranger.weight",)


def test_one_strange_shape_is_named_and_changes_nothing():
    known = architecture("sd1")
    sizes = spelt(known.denoiser, known.denoiser.namings[0], shapes("sd1")["unet"])
    found = identify({**sizes, "conv_in.weight": (320, 12, 3, 3)})
    assert found.candidates == ("sd1",)
    assert found.misfits == ("conv_in.weight",)


@pytest.mark.parametrize(("variant", "component"), [("decoder", "unet"), ("prior", "prior")])
def test_a_component_of_one_variant_settles_it(variant, component):
    known = architecture("kandinsky2.2")
    table = shapes(f"kandinsky22-{variant}")[component]
    found = identify(spelt(known.by_name[component], known.by_name[component].namings[0], table))
    assert (found.candidates, found.variants, set(found.components)) == (("kandinsky2.2",), (variant,), {component})


@pytest.mark.parametrize("naming", ["diffusers", "original"])
def test_positions_of_motion_modules_are_no_weights(naming):
    known = architecture("animatediff")
    sizes = spelt(known.denoiser, known.denoiser.naming(naming), shapes("animatediff-v2")["unet"])
    word = "pos_embed" if naming == "diffusers" else "attention_blocks.0.pos_encoder"
    found = identify({**sizes, f"mid_block.motion_modules.0.transformer_blocks.0.{word}.pe": (1, 32, 1280)})
    assert (found.candidates, found.variants, found.unmatched) == (("animatediff",), ("v2",), ())


@pytest.mark.parametrize(
    ("sizes", "candidates"),
    [
        ({"emb_params": (5, 768)}, ("sd1",)),
        ({"string_to_param.*": (2, 1024)}, ("sd2",)),
        ({"<token>": (768,)}, ("sd1",)),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, ("sd3", "sdxl")),
        ({"clip_l": (4, 768), "t5": (4, 4096)}, ("flux1", "sd3")),
    ],
)
def test_embeddings_tell_their_encoder(sizes, candidates):
    found = identify(sizes)
    assert (found.role, found.candidates) == ("embedding", candidates)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_an_autoencoder_alone_is_a_vae(prefix):
    names = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "decoder.conv_in.weight": (512, 4, 3, 3),
        "quant_conv.bias": (8,),
    }
    found = identify({prefix + key: shape for key, shape in names.items()})
    assert found.role == "vae"
    assert "sdxl" in found.candidates


def test_a_controlnet_is_no_base():
    half = {f"down_blocks.{i}.resnets.0.conv1.weight": (320 * 2 ** min(i, 2), 320, 3, 3) for i in range(4)}
    found = identify({**half, "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)})
    assert found.role == "controlnet"


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"x": ()},
        {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 1280)},
        {"unet:0:up": (320, 4), "unet:0:down": (4, 320)},
        {f"down_blocks.{i}.attentions.0.to_q.lora_A.weight": (4, 320) for i in range(9)},
        {f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.weight": (4, 320) for i in range(9)},
        {"down_blocks.#.conv.weight": (4, 4), "..": (1,), ".weight": (3, 3)},
    ],
)
def test_adapters_and_nonsense_are_not_ours(sizes):
    assert identify(sizes) is None


@needs_corpus
@pytest.mark.parametrize("path", INVENTORIES, ids=lambda path: path.name)
def test_corpus_roles_and_architectures(path):
    truth = EXPECTED[path.name]
    found = identify(inventory(path))
    if truth["role"] == "adapter":
        assert found is None
        return
    assert found.role == truth["role"]
    name = truth.get("architecture", "")
    if name in REGISTERED:
        assert name in found.candidates
        assert set(found.candidates) <= {name, *architecture(name).family}
    elif name.startswith("llm-"):
        assert found.candidates[0] == name
    elif name:
        assert found.candidates == ()


@needs_corpus
@pytest.mark.parametrize("path", TABLED, ids=lambda path: path.name)
def test_corpus_bases_leave_nothing_unexplained(path):
    sizes = inventory(path)
    found = identify(sizes)
    assert found.unmatched == ()
    assert found.misfits == OF_CLASS_DEFAULTS.get(path.name, ())
    placed = sum(len(part.keys) for part in found.components.values())
    assert placed + sum(companion(key) is not None for key in sizes) == len(sizes)
    assert ("inpaint" in found.variants) == ("inpainting" in path.name) or len(found.variants) != 1
