"""Laws that every table keeps, over the registry: a new architecture is tested the minute it is listed."""

import json
import zlib
from collections import Counter
from functools import cache

import pytest

from fixtures import make_shapes
from loratools.architectures.architecture import TABLES, shapes
from loratools.architectures.naming import Placement, Template, skeleton, words_of
from loratools.architectures.registry import ARCHITECTURES, architecture, namings_of
from loratools.errors import UsageError

COMPONENTS = [
    pytest.param(known, component, id=f"{known.id}-{component.name}")
    for known in ARCHITECTURES
    for component in known.components
]
NAMINGS = [
    pytest.param(known, component, naming, id=f"{known.id}-{component.name}-{naming.name}")
    for known in ARCHITECTURES
    for component in known.components
    for naming in component.namings
]
# Classes are built for one variant of each architecture; the others' tables, made by the same script, with `-m long`.
VARIANTS = [
    pytest.param(known, variant, id=variant.shapes, marks=() if variant is known.variants[0] else pytest.mark.long)
    for known in ARCHITECTURES
    for variant in known.variants
]
# Modules that single-file checkpoints hold and pipelines do not: open_clip's last block and its projection in SD2.
CHECKPOINT_ONLY = {("sd2", "text_encoder"): ("text_model.encoder.layers.23.", "text_projection")}
# Of Mochi's blocks the last calls one layer by another name in diffusers, and by the same one in its own files.
SPLIT_SKELETONS = {("mochi", "original"): {("blocks", "#", "mod", "y")}}
# HunyuanDiT counts its norms in another order than diffusers does: the layers beside them tell whose names they are.
CROSSED = {"hunyuan-dit": ("norm2", "norm3")}


@cache
def placements(naming):
    """Every placement of a naming, made once for all the laws."""
    return tuple(naming.placements())


def canonical_paths(component):
    return {placement.native for placement in placements(component.namings[0])}


def checkpoint_only(known, component, path):
    return path.startswith(CHECKPOINT_ONLY.get((known.id, component.name), ("\0",)))


def table_of(variant, component):
    """The shapes of a component; empty for a variant that does not have it (Kandinsky's prior has no decoder)."""
    return shapes(variant.shapes).get(component.name, {})


def table_paths(known, component):
    return set().union(*(table_of(variant, component) for variant in known.variants))


@pytest.mark.parametrize(("known", "component", "naming"), NAMINGS)
def test_each_skeleton_has_one_set_of_fixed_positions(known, component, naming):
    for table in (naming.natives.table, naming.canonicals.table):
        split = {words for words, by_positions in table.items() if len(by_positions) > 1}
        assert split <= SPLIT_SKELETONS.get((known.id, naming.name), set())


@pytest.mark.parametrize(("known", "component", "naming"), NAMINGS)
def test_native_paths_are_unambiguous_flat_and_dotted(known, component, naming):
    natives = [placement.native for placement in placements(naming)]
    for spelling in (natives, [native.replace(".", "_") for native in natives]):
        assert [path for path, times in Counter(spelling).items() if times > 1] == []


@pytest.mark.parametrize(("known", "component", "naming"), NAMINGS)
def test_every_native_path_is_found_flat_and_dotted(known, component, naming):
    for placement in placements(naming):
        assert naming.at_native(*skeleton(placement.native)) == placement
        assert naming.at_native(*skeleton(placement.native.replace(".", "_"))) == placement


@pytest.mark.parametrize(("known", "component", "naming"), NAMINGS)
def test_canonical_then_native_then_canonical_is_identity(known, component, naming):
    seen = []
    for placement in placements(naming):
        for path in placement.paths:
            assert naming.at_canonical(path) == placement
        seen += placement.paths
    assert [path for path, times in Counter(seen).items() if times > 1] == []


@pytest.mark.parametrize(("known", "component"), COMPONENTS)
def test_first_naming_is_canonical(known, component):
    for placement in placements(component.namings[0]):
        assert placement == Placement(placement.native, (placement.native,), (1,), "rows", placement.joint)


@pytest.mark.parametrize(("known", "component", "naming"), NAMINGS)
def test_every_naming_covers_every_canonical_path_and_no_rule_is_dead(known, component, naming):
    covered = {path for placement in placements(naming) for path in placement.paths}
    assert canonical_paths(component) - covered == set()
    beyond = covered - canonical_paths(component)
    assert {path for path in beyond if not checkpoint_only(known, component, path)} == set()


@pytest.mark.parametrize(("known", "component"), COMPONENTS)
def test_namings_agree_where_they_spell_alike(known, component):
    meanings = {}
    for naming in component.namings:
        for placement in placements(naming):
            # A bare parameter and a module of one name are told apart by their keys: text_projection[.weight].
            key = (skeleton(placement.native), bool(placement.joint))
            if placement.native.rpartition(".")[2] in CROSSED.get(known.id, ()):
                continue
            assert meanings.setdefault(key, (placement.paths, placement.layout)) == (placement.paths, placement.layout)


@pytest.mark.parametrize(("known", "component"), COMPONENTS)
def test_index_knows_every_path(known, component):
    for naming in component.namings:
        for placement in placements(naming):
            assert (known.id, component.name, naming.name) in namings_of(skeleton(placement.native)[0])


@pytest.mark.parametrize(("known", "variant"), VARIANTS)
def test_shape_table_is_what_the_real_classes_have(known, variant):
    written = json.loads(zlib.decompress((TABLES / f"{variant.shapes}.json.gz").read_bytes(), wbits=31))
    made = json.loads(zlib.decompress(make_shapes.document(variant.shapes), wbits=31))
    assert written == made


def test_every_shape_table_belongs_to_a_variant():
    listed = {variant.shapes for known in ARCHITECTURES for variant in known.variants}
    assert {path.name.removesuffix(".json.gz") for path in TABLES.iterdir()} == listed == set(make_shapes.TABLES)


@pytest.mark.parametrize(("known", "component"), COMPONENTS)
def test_canonical_paths_are_the_weights_of_the_real_class(known, component):
    assert canonical_paths(component) == table_paths(known, component)


@pytest.mark.parametrize(("known", "component"), COMPONENTS)
def test_canonical_paths_are_modules_of_the_real_class(known, component):
    variant = next(variant for variant in known.variants if table_of(variant, component))
    bare = make_shapes.bare(*make_shapes.TABLES[variant.shapes][component.name])
    for path in table_of(variant, component):
        assert (component.namings[0].at_canonical(path).joint == "") == (path in bare)


@pytest.mark.parametrize(("known", "component", "naming"), NAMINGS)
def test_ratios_are_those_of_the_real_shapes(known, component, naming):
    for variant in known.variants:
        table = table_of(variant, component)
        for placement in placements(naming):
            parts = [table[path] for path in placement.paths if path in table]
            assert len(placement.ratio) == len(placement.paths)
            if len(parts) == len(placement.paths):
                unit = parts[0][0] // placement.ratio[0]
                assert [part[0] for part in parts] == [unit * share for share in placement.ratio]
                assert len({part[1:] for part in parts}) == 1


@pytest.mark.parametrize(("known", "component", "naming"), NAMINGS)
def test_layouts_fit_the_real_shapes(known, component, naming):
    for variant in known.variants:
        table = table_of(variant, component)
        for placement in placements(naming):
            shape = table.get(placement.paths[0])
            if placement.layout == "swap_halves":
                assert shape is None or shape[0] % 2 == 0
            if placement.layout == "transpose":
                assert shape is None or len(shape) == 2
            if placement.layout != "rows":
                assert len(placement.paths) == 1


def test_ids_are_alphabetical_and_unique():
    ids = [known.id for known in ARCHITECTURES]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("known", ARCHITECTURES, ids=lambda known: known.id)
def test_words_of_an_architecture_are_unambiguous(known):
    words = [word for component in known.components for word in component.short]
    assert len(words) == len(set(words))
    prefixes = [prefix for component in known.components for prefix in component.checkpoint]
    assert len(prefixes) == len(set(prefixes))
    assert known.denoiser.naming(known.kohya) is not None


def test_claims_name_one_architecture_each():
    claims = [word for known in ARCHITECTURES for word in {*known.specification, *known.base_versions}]
    assert [word for word, times in Counter(claims).items() if times > 1] == []


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        architecture("sdxl-refinr")
    assert "sdxl-refiner" in caught.value.hint
    assert architecture("sdxl").id == "sdxl"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("down_blocks.0.resnets.0.conv1", (("down", "blocks", "#", "resnets", "#", "conv1"), (0, 0))),
        ("to__q_", (("to", "q"), ())),
        ("a.007.1234567.²", (("a", "007", "1234567", "²"), ())),
        ("a.#.0", (("a", "##", "#"), (0,))),
    ],
)
def test_skeleton_has_a_hole_for_every_number(path, found):
    assert skeleton(path) == found


def test_holes_are_bounded_and_agree():
    template = Template.parse("a.{i<3}.b.{i<3}.2")
    assert template.holes((2, 2, 2)) == {"i": 2}
    assert template.holes((3, 3, 2)) is None
    assert template.holes((1, 2, 2)) is None
    assert template.fill({"i": 1}) == "a.1.b.1.2"


def test_strided_holes_take_every_nth_number_and_no_other():
    template = Template.parse("a.{i<3*4+1}.b")
    assert [number for number in range(20) if template.holes((number,)) is not None] == [1, 5, 9]
    assert [template.fill(values) for values in template.expand()] == ["a.1.b", "a.5.b", "a.9.b"]
    for values in template.expand():
        assert template.holes(skeleton(template.fill(values))[1]) == values


SINGLE = "single_transformer_blocks.37."


@pytest.mark.parametrize(
    ("name", "component", "naming", "native", "paths"),
    [
        ("sd1", "unet", "ldm", "output_blocks.2.1.conv", ("up_blocks.0.upsamplers.0.conv",)),
        ("sd1", "unet", "ldm", "output_blocks.5.2.conv", ("up_blocks.1.upsamplers.0.conv",)),
        ("sdxl", "unet", "ldm", "output_blocks.2.2.conv", ("up_blocks.0.upsamplers.0.conv",)),
        ("sdxl", "unet", "ldm", "input_blocks.3.0.op", ("down_blocks.0.downsamplers.0.conv",)),
        ("sdxl", "unet", "ldm", "label_emb.0.2", ("add_embedding.linear_2",)),
        ("flux1", "transformer", "bfl", "final_layer.adaLN_modulation.1", ("norm_out.linear",)),
        (
            "flux1", "transformer", "bfl", "single_blocks.37.linear1",
            tuple(f"{SINGLE}{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        ),
        (
            "stable-cascade", "prior", "original", "up_blocks.0.71.attention.attn.in_proj",
            tuple(f"up_blocks.0.71.attention.{part}" for part in ("to_q", "to_k", "to_v")),
        ),
        (
            "stable-cascade", "prior", "comfy", "down_blocks_0_11_attention_attn_to_q",
            ("down_blocks.0.11.attention.to_q",),
        ),
        (
            "animatediff", "unet", "original",
            "up_blocks.3.motion_modules.2.temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0",
            ("up_blocks.3.motion_modules.2.transformer_blocks.0.attn2.to_out.0",),
        ),
    ],
)  # fmt: skip
def test_known_places(name, component, naming, native, paths):
    placement = architecture(name).by_name[component].naming(naming).at_native(*skeleton(native))
    assert placement.paths == paths


@pytest.mark.parametrize(
    ("name", "component", "path"),
    [
        ("wuerstchen", "prior", "blocks.3.attention.to_q"),
        ("wuerstchen", "prior", "blocks.98.attention.to_q"),
        ("stable-cascade", "prior", "down_blocks.0.26.attention.to_q"),
        ("stable-cascade", "prior", "down_blocks.1.3.mapper"),
        ("kandinsky2.2", "unet", "down_blocks.0.attentions.0.to_q"),
        ("kandinsky2.2", "unet", "up_blocks.3.attentions.0.to_q"),
        ("kandinsky2.2", "unet", "down_blocks.1.resnets.1.conv_shortcut"),
    ],
)
def test_places_that_are_not_there(name, component, path):
    for naming in architecture(name).by_name[component].namings:
        assert naming.at_native(*skeleton(path)) is None
        assert naming.at_canonical(path) is None


def test_motion_modules_are_those_of_the_motion_unet():
    import torch
    from diffusers import UNetMotionModel

    with torch.device("meta"):
        model = UNetMotionModel(use_motion_mid_block=True)
    found = {path: shape for path, shape in make_shapes.weights(model).items() if ".motion_modules." in path}
    assert {path: tuple(shape) for path, shape in found.items()} == shapes("animatediff-v2")["unet"]


def test_keys_of_bare_and_odd_parameters():
    flux, clip = architecture("flux1").by_name["transformer"], architecture("sdxl").by_name["text_encoder_2"]
    norm = flux.naming("bfl").at_canonical("transformer_blocks.0.attn.norm_added_q")
    assert (norm.weight_key, norm.bias_key) == (
        "double_blocks.0.txt_attn.norm.query_norm.scale",
        "double_blocks.0.txt_attn.norm.query_norm.bias",
    )
    qkv = clip.naming("open_clip").at_canonical("text_model.encoder.layers.31.self_attn.k_proj")
    assert (qkv.weight_key, qkv.bias_key) == (
        "transformer.resblocks.31.attn.in_proj_weight",
        "transformer.resblocks.31.attn.in_proj_bias",
    )
    projection = clip.naming("open_clip").at_canonical("text_projection")
    assert (projection.weight_key, projection.bias_key, projection.layout) == ("text_projection", None, "transpose")
    stage_c = architecture("stable-cascade").by_name["prior"]
    for naming in stage_c.namings:
        gamma = naming.at_canonical("down_blocks.0.0.channelwise.2.gamma")
        assert (gamma.weight_key, gamma.bias_key) == ("down_blocks.0.0.channelwise.2.gamma", None)
    fused = stage_c.naming("original").at_canonical("down_blocks.0.2.attention.to_k")
    assert (fused.weight_key, fused.bias_key) == (
        "down_blocks.0.2.attention.attn.in_proj_weight",
        "down_blocks.0.2.attention.attn.in_proj_bias",
    )


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda arch: arch.id)
def test_words_without_parsing_are_the_words_of_the_parsed_template(arch):
    for component in arch.components:
        for naming in (*component.namings, *component.adapters):
            for rule in naming.rules:
                assert words_of(rule.native) == Template.parse(rule.native).words
