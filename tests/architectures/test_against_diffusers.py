"""diffusers' own single-file converters judge the tables: same names, same rows in the same order."""

from types import SimpleNamespace

import pytest
import torch

from fixtures import make_shapes
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture


def checkpoint(naming, table, *, square=()):
    """A native checkpoint of one-column weights whose rows are all different, and what the table says each holds."""
    native, expected = {}, {}
    start = 0
    for placement in naming.placements():
        parts = [table[path] for path in placement.paths if path in table]
        if len(parts) < len(placement.paths):
            continue
        rows = sum(part[0] for part in parts)
        columns = parts[0][1] if placement.native in square else 1
        weight = torch.arange(start, start + rows * columns, dtype=torch.float64).reshape(rows, columns)
        start += rows * columns
        native[placement.weight_key] = weight
        layout = placement.settled(parts[0]).layout
        if layout == "transpose":
            weight = weight.T
        if layout == "swap_halves":
            weight = torch.cat(weight.chunk(2)[::-1])
        for path, part in zip(placement.paths, weight.split([part[0] for part in parts]), strict=True):
            expected[path + ".weight"] = part
    return native, expected


def same(converted, expected):
    assert set(converted) == set(expected)
    return all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl", "sdxl-refiner"])
def test_ldm_unet_is_what_diffusers_makes_of_it(name):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = architecture(name).by_name["unet"]
    native, expected = checkpoint(unet.naming("ldm"), shapes(name)["unet"])
    config = {"layers_per_block": 2, **make_shapes.TABLES[name]["unet"][1]}
    # diffusers asks for the biases of the ends and of the samplers by name.
    biases = {key.removesuffix("weight") + "bias": None for key in native}
    prefixed = {f"model.diffusion_model.{key}": value for key, value in {**native, **biases}.items()}
    converted = convert_ldm_unet_checkpoint(prefixed, config)
    assert same({key: value for key, value in converted.items() if value is not None}, expected)


@pytest.mark.parametrize(
    ("name", "component", "prefix"),
    [
        ("sd2", "text_encoder", "cond_stage_model.model."),
        ("sdxl", "text_encoder_2", "conditioner.embedders.1.model."),
        ("sdxl-refiner", "text_encoder_2", "conditioner.embedders.0.model."),
    ],
)
def test_open_clip_is_what_diffusers_makes_of_it(name, component, prefix):
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    model = SimpleNamespace(
        config=SimpleNamespace(hidden_size=shapes(name)[component]["text_model.final_layer_norm"][0])
    )
    known = architecture(name).by_name[component]
    assert prefix in known.checkpoint
    native, expected = checkpoint(known.naming("open_clip"), shapes(name)[component], square=("text_projection",))
    converted = convert_open_clip_checkpoint(model, {prefix + key: value for key, value in native.items()}, prefix)
    assert same(converted, expected)


@pytest.mark.parametrize("variant", ["flux1-dev", "flux1-schnell"])
def test_bfl_flux_is_what_diffusers_makes_of_it(variant):
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    table = shapes(variant)["transformer"]
    native, expected = checkpoint(architecture("flux1").by_name["transformer"].naming("bfl"), table)
    expected_biases = {}
    for key, value in list(native.items()):
        if key.endswith(".weight"):
            native[key.removesuffix("weight") + "bias"] = value[:, 0]
    for key, value in expected.items():
        if not key.endswith(tuple(f"norm_{name}.weight" for name in ("q", "k", "added_q", "added_k"))):
            expected_biases[key.removesuffix("weight") + "bias"] = value[:, 0]
    converted = convert_flux_transformer_checkpoint_to_diffusers(native)
    assert same(converted, expected | expected_biases)


# architecture, naming, the converter's name, its tables; what a converter asks for and drops, or makes of nothing.
CONVERTERS = [
    ("sd3", "original", "convert_sd3_transformer_checkpoint_to_diffusers", ("sd3-medium", "sd35-medium", "sd35-large")),
    ("chroma", "bfl", "convert_chroma_transformer_checkpoint_to_diffusers", ("chroma",)),
    ("flux2", "bfl", "convert_flux2_transformer_checkpoint_to_diffusers", ("flux2-dev", "flux2-klein-9b")),
    ("cosmos", "original", "convert_cosmos_transformer_checkpoint_to_diffusers", ("cosmos25-2b", "cosmos2-2b-t2i")),
    ("flux3", "bfl", "convert_flux3_transformer_checkpoint_to_diffusers", ("flux3",)),
    ("krea2", "original", "convert_krea2_transformer_checkpoint_to_diffusers", ("krea2",)),
    ("ltx-video", "original", "convert_ltx_transformer_checkpoint_to_diffusers", ("ltx-video-2b",)),
    ("ltx2", "original", "convert_ltx2_transformer_to_diffusers", ("ltx2-2.0",)),
    ("minimax-h3", "original", "convert_minimax_h3_transformer_checkpoint_to_diffusers", ("minimax-h3",)),
    ("mochi", "original", "convert_mochi_transformer_checkpoint_to_diffusers", ("mochi",)),
    ("qwen-image-2.1", "comfy", "convert_qwen_image21_transformer_checkpoint_to_diffusers", ("qwen-image-2.1",)),
    ("hunyuan-video", "original", "convert_hunyuan_video_transformer_to_diffusers", ("hunyuan-video-t2v",)),
    ("auraflow", "original", "convert_auraflow_transformer_checkpoint_to_diffusers", ("auraflow",)),
    ("lumina2", "original", "convert_lumina2_to_diffusers", ("lumina2",)),
    ("sana", "original", "convert_sana_transformer_to_diffusers", ("sana-1600m", "sana-600m")),
    ("wan2.1", "original", "convert_wan_transformer_to_diffusers", ("wan21-i2v-14b", "wan21-t2v-1.3b")),
    ("wan2.2", "original", "convert_wan_transformer_to_diffusers", ("wan22-ti2v-5b",)),
    ("z-image", "comfy", "convert_z_image_transformer_checkpoint_to_diffusers", ("z-image",)),
]
DROPPED = {"sd3": ("pos_embed",), "sana": ("pos_embed", "y_embedder.y_embedding")}
# The few layers with a bias, where not all have one.
BIASED = {"auraflow": ("init_x_linear", "t_embedder.mlp.0", "t_embedder.mlp.2"), "flux2": (), "minimax-h3": ()}


@pytest.mark.parametrize(
    ("name", "naming", "converter", "table"),
    [(name, naming, converter, table) for name, naming, converter, tables in CONVERTERS for table in tables],
    ids=[table for *_, tables in CONVERTERS for table in tables],
)
def test_native_transformer_is_what_diffusers_makes_of_it(name, naming, converter, table):
    from diffusers.loaders import single_file_utils

    denoiser = architecture(name).denoiser
    native, expected = checkpoint(denoiser.naming(naming), shapes(table)["transformer"])
    bare = {placement.weight_key for placement in denoiser.namings[0].placements() if not placement.joint}
    expected = {key.removesuffix(".weight") if key[:-7] in bare else key: row for key, row in expected.items()}
    file = dict(native) | {key: torch.zeros(1) for key in DROPPED.get(name, ())}
    biased = BIASED.get(name, [key[:-7] for key in native if key.endswith(".weight")])
    file |= {f"{path}.bias": native[f"{path}.weight"][:, 0] for path in biased}  # a bias goes with its rows
    made = getattr(single_file_utils, converter)(file, config={})
    wanted = {key for key in made if not key.endswith(".bias") and key != "pos_embed.pos_embed"} | expected.keys()
    for key in wanted:
        assert made[key].equal(expected[key]), key
    for key in made:  # a bias is the first, and here only, column of its weight
        if key.endswith(".bias") and key[:-4] + "weight" in expected:
            assert made[key].equal(expected[key[:-4] + "weight"][:, 0]), key


# architecture, naming, its beginning, the converter's name, its table; how the layers begin that it does not know
ADAPTERS = [
    ("ace-step", "original", "base_model.model.", "ace_step", "ace-step-1.5", ("proj_in.1", "proj_out.1")),
    ("anima", "original", "diffusion_model.", "anima", "anima", ()),
    ("flux3", "bfl", "diffusion_model.", "flux3", "flux3", (
        "final_layer.", "emb_in.", "txt_in", "time_in.", "early_", "single_stream_",
    )),
    ("ideogram4", "original", "diffusion_model.", "ideogram4", "ideogram4", (
        "input_", "llm_", "t_emb", "adaln_", "embed_", "final_",
    )),
    ("krea2", "original", "diffusion_model.", "krea2", "krea2", ()),
    ("ltx2", "original", "diffusion_model.", "ltx2", "ltx2-2.3", ()),
    ("minimax-h3", "original", "diffusion_model.", "minimax_h3", "minimax-h3", ()),
]  # fmt: skip


def native_adapter(part, naming, table, prefix, unknown):
    """A native LoRA of rank 1 whose rows are all different, and what the table says each part of it holds."""
    file, expected = {}, {}
    for placement in part.naming(naming).placements():
        found = [table[path] for path in placement.paths if path in table]
        if len(found) < len(placement.paths) or len(found[0]) < 2 or not placement.joint:
            continue
        if not placement.native.startswith(unknown):
            up = torch.arange(sum(size[0] for size in found), dtype=torch.float32)[:, None]
            stem = prefix + placement.native
            file |= {f"{stem}.lora_A.weight": up[:1], f"{stem}.lora_B.weight": up}
            up = torch.cat(up.chunk(2)[::-1]) if placement.layout == "swap_halves" else up
            for path, rows in zip(placement.paths, up.split([size[0] for size in found]), strict=True):
                expected[f"{part.name}.{path}.lora_B.weight"] = rows
    return file, expected


@pytest.mark.parametrize("row", ADAPTERS, ids=[row[0] for row in ADAPTERS])
def test_native_adapters_are_what_diffusers_makes_of_them(row):
    from diffusers.loaders import lora_conversion_utils

    name, naming, prefix, converter, table, unknown = row
    known, file, expected = architecture(name), {}, {}
    # The converter of LTX-2 knows the connectors by their one projection alone.
    for part in (known.denoiser, *(part for part in known.components if part.inside and name != "ltx2")):
        more, meant = native_adapter(part, naming, shapes(table)[part.name], prefix, unknown)
        file |= more
        expected |= meant
    made = getattr(lora_conversion_utils, f"_convert_non_diffusers_{converter}_lora_to_diffusers")(file)
    assert same({key: value for key, value in made.items() if ".lora_B." in key}, expected)


@pytest.mark.parametrize("variant", ["stable-cascade", "stable-cascade-lite"])
def test_original_stage_c_is_what_diffusers_makes_of_it(variant):
    from diffusers.loaders.single_file_utils import convert_stable_cascade_unet_single_file_to_diffusers

    known = architecture("stable-cascade").by_name["prior"]
    native, expected = checkpoint(known.naming("original"), shapes(variant)["prior"])
    bare = {placement.weight_key for placement in known.namings[0].placements() if not placement.joint}
    expected = {name.removesuffix(".weight") if name[:-7] in bare else name: row for name, row in expected.items()}
    biases = {key[:-6] + "bias": value[:, 0] for key, value in native.items() if key.endswith("weight")}
    expected |= {key[:-6] + "bias": value[:, 0] for key, value in expected.items() if key.endswith("weight")}
    assert same(convert_stable_cascade_unet_single_file_to_diffusers(native | biases), expected)


@pytest.mark.parametrize("variant", ["animatediff-v1", "animatediff-v2", "animatediff-sdxl"])
def test_original_motion_modules_are_what_diffusers_makes_of_them(variant):
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    naming = architecture("animatediff").by_name["unet"].naming("original")
    native, expected = checkpoint(naming, shapes(variant)["unet"])
    assert same(convert_animatediff_checkpoint_to_diffusers(native), expected)
