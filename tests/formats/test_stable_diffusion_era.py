"""The spellings of Stable Diffusion's first years: processors, numbered layers, ComfyUI's names, motion LoRAs."""

import gzip
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import loratools
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.errors import ArchitectureMismatch, IncompleteAdapter, NotRepresentable, UnknownKeys, UnsafeFile
from tests.formats.making import KOHYA, Draw, assert_same_tensors, kohya_stem, layers, low_rank, pairs, read, write
from tests.formats.test_round_trips import assert_round_trip, converted

CORPUS = os.environ.get("LORATOOLS_CORPUS")
HEADS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
TEXT_HEADS = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
PROCESSOR_MODELS = (
    ("sd1", "unet", "sd1", "unet."),
    ("sd1", "unet", "sd1", ""),
    ("sd2", "unet", "sd2", "unet."),
    ("sdxl", "unet", "sdxl", "unet."),
    ("kandinsky2.2", "unet", "kandinsky22-decoder", ""),
    ("kandinsky2.2", "prior", "kandinsky22-prior", ""),
    ("wuerstchen", "prior", "wuerstchen", "prior."),
)


def attentions(component, table):
    """canonical path → shape of a model's attention projections, one in seven where there are hundreds of them."""
    heads = tuple(f".{head}" for head in HEADS)
    found = {path: shape for path, shape in shapes(table)[component].items() if path.endswith(heads)}
    return dict(list(found.items())[:: 7 if table != "sd1" else 1])


def processor_key(path):
    """What LoRAAttnProcessor calls the LoRA of a projection."""
    head = next(head for head in HEADS if path.endswith(f".{head}"))
    return f"{path.removesuffix(head)}processor.{head.removesuffix('.0')}_lora"


def processors(known, prefix="", key=processor_key, seed=0):
    """(tensors of a file, path → its down and up) with a processor's LoRA on every layer."""
    draw, tensors, held = Draw(seed, torch.float32), {}, {}
    for path, shape in known.items():
        factors = low_rank(shape, 2, draw)
        for role, tensor in factors.items():
            tensors[f"{prefix}{key(path)}.{role}.weight"] = tensor
        held[path] = factors
    return tensors, held


def read_factors(path, component, **options):
    lora = loratools.open(path, **options)
    assert lora.reading.unknown == ()
    found = {}
    for item in lora.adapters:
        assert item.target.component == component
        assert float(item.scale) == 1
        found[item.target.paths[0]] = {role: tensor.load() for role, tensor in item.factors.items()}
    return found


def assert_equal_factors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, factors in theirs.items():
        assert ours[path].keys() == factors.keys()
        assert all(torch.equal(ours[path][role], tensor) for role, tensor in factors.items()), path


@pytest.mark.parametrize(("arch", "component", "table", "prefix"), PROCESSOR_MODELS)
def test_processors_are_read_as_the_projections_they_added_to(arch, component, table, prefix, tmp_path):
    tensors, held = processors(attentions(component, table), prefix)
    source = write(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    found = loratools.inspect(source).document
    assert (found["format"], found["architecture"]) == ("diffusers-attn-procs", arch)
    assert_equal_factors(read_factors(source, component), held)
    for to in ("diffusers", "kohya"):
        assert_round_trip(source, [to], tmp_path / to)


def text_layers():
    return {f"text_model.encoder.layers.{n}.self_attn.{name}": (768, 768) for n in range(12) for name in TEXT_HEADS}


def text_key(path):
    start, _, leaf = path.rpartition(".")
    return f"{start}.{TEXT_HEADS[leaf]}"


def test_a_text_encoder_of_the_processors_time_is_read(tmp_path):
    tensors, _ = processors(attentions("unet", "sd1"), "unet.")
    text, held = processors(text_layers(), "text_encoder.", text_key, seed=1)
    source = write(tensors | text, tmp_path / "pytorch_lora_weights.safetensors")
    alone = write(text, tmp_path / "text.safetensors")
    assert loratools.inspect(source).document["components"] == {"unet": 128, "text_encoder": 48}
    assert_equal_factors(read_factors(alone, "text_encoder", arch="sd1"), held)
    for to in ("comfy", "diffusers", "kohya", "peft"):
        assert_round_trip(source, [to], tmp_path / to)


def early(deltas_of=None):
    """The first layout: four layers under each projection, of which the one of its own name was run."""
    draw, tensors = Draw(3, torch.float32), {}
    for path, shape in text_layers().items():
        for leaf in TEXT_HEADS.values():
            factors = low_rank(shape, 4, draw)
            for role, tensor in factors.items():
                tensors[f"text_encoder.{path}.{leaf}.{role}.weight"] = tensor
            if leaf == TEXT_HEADS[path.rpartition(".")[2]] and deltas_of is not None:
                deltas_of[path] = factors["up"].double() @ factors["down"].double()
    return tensors


def test_of_four_layers_under_a_projection_its_own_is_read_and_the_others_are_listed(tmp_path):
    deltas = {}
    tensors, _ = processors(attentions("unet", "sd1"), "unet.")
    text = early(deltas)
    source = write(tensors | text, tmp_path / "early.safetensors")
    lora = loratools.open(source)
    assert {item.kind for item in lora.reading.unknown} == {"never run"}
    assert len(lora.reading.unknown) == 3 * 48 * 2
    lora.reading.require_known()
    pending = loratools.convert(source, to="kohya")
    assert sum(": never run" in line for line in pending.plan.lost) == 3 * 48 * 2
    pending.save(tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    for path, delta in deltas.items():
        stem = f"lora_te_{path.replace('.', '_')}"
        factors = [written[f"{stem}.lora_{role}.weight"].double() for role in ("up", "down")]
        assert torch.equal(factors[0] @ factors[1], delta)


def test_fewer_than_four_layers_under_a_projection_prove_nothing(tmp_path):
    tensors, _ = processors(attentions("unet", "sd1"), "unet.")
    tensors |= {key: tensor for key, tensor in early().items() if ".0.self_attn.q_proj.to_" in key}
    for role in ("up", "down"):
        del tensors[f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.to_v_lora.{role}.weight"]
    with pytest.raises(UnknownKeys):
        loratools.convert(write(tensors, tmp_path / "in.safetensors"), to="kohya")


def test_a_base_models_down_and_up_are_no_factors(tmp_path):
    tensors = {f"blocks.{n}.mlp.{leaf}.weight": torch.zeros(4, 4) for n in range(4) for leaf in ("up", "down", "gate")}
    assert loratools.inspect(write(tensors, tmp_path / "base.safetensors")).document["role"] == "base"


def test_spellings_of_several_times_in_one_file_come_back(tmp_path):
    draw, tensors = Draw(4), {}
    for at, (path, shape) in enumerate(attentions("unet", "sd1").items()):
        factors = low_rank(shape, 2, draw)
        spelt = (
            (f"{path}.lora.down.weight", f"{path}.lora.up.weight"),
            (f"{path}.lora_A.weight", f"{path}.lora_B.weight"),
            (f"{processor_key(path)}.down.weight", f"{processor_key(path)}.up.weight"),
        )[at % 3]
        tensors |= {f"unet.{key}": factors[role] for key, role in zip(spelt, ("down", "up"), strict=True)}
    source = write(tensors, tmp_path / "in.safetensors")
    assert loratools.inspect(source).document["adapters"] == 128
    for to in ("diffusers", "kohya"):
        assert_round_trip(source, [to], tmp_path / to)


# cloneofsimo's numbered layers, on modules registered in the order of diffusers 0.10 and transformers 4.25


class CrossAttention(torch.nn.Module):
    def __init__(self, width, context):
        super().__init__()
        self.to_q = torch.nn.Linear(width, width, bias=False)
        self.to_k = torch.nn.Linear(context, width, bias=False)
        self.to_v = torch.nn.Linear(context, width, bias=False)
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(width, width), torch.nn.Dropout()])


class GEGLU(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = torch.nn.Linear(width, width * 8)


def feed_forward(width):
    found = torch.nn.Module()
    found.net = torch.nn.ModuleList([GEGLU(width), torch.nn.Dropout(), torch.nn.Linear(width * 4, width)])
    return found


def transformer(width, context):
    block = torch.nn.Module()
    block.attn1, block.ff = CrossAttention(width, width), feed_forward(width)
    block.attn2 = CrossAttention(width, context)
    found = torch.nn.Module()
    found.proj_in = torch.nn.Conv2d(width, width, 1)
    found.transformer_blocks = torch.nn.ModuleList([block])
    return found


class ResnetBlock2D(torch.nn.Module):
    def __init__(self, inner, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inner, width, 3)
        self.time_emb_proj = torch.nn.Linear(1280, width)
        self.conv2 = torch.nn.Conv2d(width, width, 3)
        if inner != width:
            self.conv_shortcut = torch.nn.Conv2d(inner, width, 1)


def level(width, inners, context):
    found = torch.nn.Module()
    if context:
        found.attentions = torch.nn.ModuleList([transformer(width, context) for _ in inners])
    found.resnets = torch.nn.ModuleList([ResnetBlock2D(inner, width) for inner in inners])
    return found


class OldUNet(torch.nn.Module):
    """The parts that a LoRA could be put on, in the order in which UNet2DConditionModel made them then."""

    def __init__(self, context):
        super().__init__()
        self.down_blocks, self.mid_block = torch.nn.ModuleList([]), None
        self.up_blocks = torch.nn.ModuleList([])
        down = ((320, (320, 320)), (640, (320, 640)), (1280, (640, 1280)), (1280, (1280, 1280)))
        for at, (width, inners) in enumerate(down):
            self.down_blocks.append(level(width, inners, context if at < 3 else None))
        self.mid_block = level(1280, (1280,), context)
        self.mid_block.resnets.append(ResnetBlock2D(1280, 1280))
        up = ((1280, (2560, 2560, 2560)), (1280, (2560, 2560, 1920)), (640, (1920, 1280, 960)), (320, (960, 640, 640)))
        for at, (width, inners) in enumerate(up):
            self.up_blocks.append(level(width, inners, context if at else None))


class CLIPAttention(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, torch.nn.Linear(width, width))


def old_clip(width, count):
    found = torch.nn.Module()
    found.text_model = torch.nn.Module()
    found.text_model.encoder = torch.nn.Module()
    members = [torch.nn.Module() for _ in range(count)]
    for member in members:
        member.self_attn = CLIPAttention(width)
    found.text_model.encoder.layers = torch.nn.ModuleList(members)
    return found


def numbered(model, classes):
    """(path, shape) in the order in which cloneofsimo's injection met the layers."""
    names = {module: name for name, module in model.named_modules()}
    return [
        (names[layer], tuple(layer.weight.shape))
        for ancestor in model.modules()
        if type(ancestor).__name__ in classes
        for layer in ancestor.modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    ]


@pytest.fixture(scope="module")
def old_models():
    with torch.device("meta"):
        return {
            "sd1": {"unet": OldUNet(768), "text_encoder": old_clip(768, 12)},
            "sd2": {"unet": OldUNet(1024), "text_encoder": old_clip(1024, 23)},
        }


UNET_CLASSES = (
    ("CrossAttention", "Attention", "GEGLU"),
    ("CrossAttention", "Attention"),
    ("ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"),
)


def cloneofsimo(models, classes, *, only=("unet", "text_encoder")):
    """(tensors, metadata, component → path → down and up) of a numbered file."""
    draw, tensors, metadata, held = Draw(5), {}, {}, {}
    for component in only:
        wanted = classes if component == "unet" else ("CLIPAttention",)
        metadata[component] = json.dumps(wanted)
        for at, (path, shape) in enumerate(numbered(models[component], wanted)):
            factors = low_rank(shape, 2, draw)
            tensors |= {f"{component}:{at}:{role}": tensor for role, tensor in factors.items()}
            metadata[f"{component}:{at}:rank"] = "2"
            held.setdefault(component, {})[path] = factors
    return tensors, metadata, held


@pytest.mark.parametrize("classes", UNET_CLASSES, ids=len)
@pytest.mark.parametrize("arch", ["sd1", "sd2"])
def test_numbered_layers_are_those_that_the_old_modules_had_there(arch, classes, old_models, tmp_path):
    tensors, metadata, held = cloneofsimo(old_models[arch], classes)
    source = write(tensors, tmp_path / "in.safetensors", metadata)
    lora = loratools.open(source)
    assert (lora.adapter_set.dialect.format, lora.architecture) == ("cloneofsimo", arch)
    assert lora.reading.unknown == ()
    for component, factors in held.items():
        members = [item for item in lora.adapters if item.target.component == component]
        assert all(float(item.scale) == 1 for item in members)
        ours = {item.target.paths[0]: {role: t.load() for role, t in item.factors.items()} for item in members}
        assert_equal_factors(ours, factors)
    if len(classes) == 3:
        for to in ("comfy", "diffusers", "kohya", "peft"):
            assert_round_trip(source, [to], tmp_path / to)


def test_a_bare_list_of_ups_and_downs_is_numbered_too(old_models, tmp_path):
    tensors, _, held = cloneofsimo(old_models["sd1"], UNET_CLASSES[0], only=("unet",))
    bare = [tensors[f"unet:{at // 2}:{('up', 'down')[at % 2]}"] for at in range(len(tensors))]
    torch.save(bare, tmp_path / "lora.pt")
    with pytest.raises(UnsafeFile):
        loratools.convert(tmp_path / "lora.pt", to="kohya")
    out = converted(tmp_path / "lora.pt", "kohya", tmp_path / "out.safetensors", unsafe_pickle=True)
    written = load_file(out)
    for path, factors in held["unet"].items():
        stem = kohya_stem("sd1", "unet", path)
        assert all(torch.equal(written[f"{stem}.lora_{role}.weight"], tensor) for role, tensor in factors.items())


def test_numbered_layers_out_of_order_are_refused_with_the_first_that_does_not_fit(old_models, tmp_path):
    tensors, metadata, _ = cloneofsimo(old_models["sd1"], UNET_CLASSES[0], only=("unet",))
    swapped = {"unet:4:up": "unet:5:up", "unet:5:up": "unet:4:up", "unet:4:down": "unet:5:down"}
    swapped["unet:5:down"] = "unet:4:down"
    moved = {swapped.get(key, key): tensor for key, tensor in tensors.items()}
    with pytest.raises(ArchitectureMismatch, match=r"at number 4, .*ff\.net\.0\.proj") as refusal:
        loratools.open(write(moved, tmp_path / "moved.safetensors", metadata))
    assert refusal.value.key == "unet:0:up"
    del tensors["unet:7:down"]
    with pytest.raises(IncompleteAdapter, match="layer 7"):
        loratools.open(write(tensors, tmp_path / "short.safetensors", metadata))


def test_numbered_layers_of_unknown_classes_are_refused(old_models, tmp_path):
    tensors, metadata, _ = cloneofsimo(old_models["sd1"], UNET_CLASSES[0], only=("unet",))
    metadata["unet"] = '["SpatialTransformer"]'
    with pytest.raises(ArchitectureMismatch):
        loratools.open(write(tensors, tmp_path / "in.safetensors", metadata))


def test_a_tokens_embedding_beside_numbered_layers_is_kept_or_refused(old_models, tmp_path):
    tensors, metadata, _ = cloneofsimo(old_models["sd1"], UNET_CLASSES[0])
    source = write(tensors | {"<s1>": torch.ones(768)}, tmp_path / "in.safetensors", metadata | {"<s1>": "<embed>"})
    assert loratools.inspect(source).document["extras"] == ["<s1>"]
    with pytest.raises(NotRepresentable):
        loratools.convert(source, to="kohya")
    assert loratools.convert(source, to="kohya", allow_lossy=True).plan.lost == ("<s1>: saved whole",)


# ComfyUI's own names

COMFY = {
    "sd1": ("ldm", "clip_l", "base_sd15_ldm_real.json.gz", "cond_stage_model.transformer."),
    "sdxl": ("ldm", "clip_l", "base_sdxl_sgm_real.json.gz", "conditioner.embedders.0.transformer."),
    "flux1": ("bfl", "clip_l", "base_flux1_dev_bfl_real.json.gz", None),
}


@pytest.mark.skipif(not CORPUS, reason="LORATOOLS_CORPUS names no folder of key inventories")
@pytest.mark.parametrize("arch", COMFY)
def test_comfys_names_are_the_checkpoints_own(arch, tmp_path):
    naming, word, base, text = COMFY[arch]
    assert architecture(arch).denoiser.naming(naming)
    known = layers(
        arch, "bfl" if arch == "flux1" else "diffusers", only=[architecture(arch).denoiser.name, "text_encoder"]
    )
    source = write(pairs(known, lambda part, name: kohya_stem(arch, part, name), KOHYA), tmp_path / "in.safetensors")
    out = converted(source, "comfy", tmp_path / "out.safetensors", arch=arch)
    weights = set(json.loads(gzip.decompress((Path(CORPUS) / base).read_bytes()))["tensors"])
    stems = {key.removesuffix(suffix) for key in load_file(out) for suffix in KOHYA.values() if key.endswith(suffix)}
    assert any(stem.startswith("diffusion_model.") for stem in stems)
    for stem in stems:
        if stem.startswith("diffusion_model."):
            name = f"{stem.removeprefix('diffusion_model.')}.weight"
            assert {name, f"model.diffusion_model.{name}"} & weights, stem
        else:
            path = stem.removeprefix(f"text_encoders.{word}.transformer.")
            assert path != stem
            assert text is None or f"{text}{path}.weight" in weights
    assert loratools.inspect(out).document["format"] == "comfy"


def test_comfy_gets_every_alpha_as_a_tensor(tmp_path):
    known = layers("sd1", "diffusers")
    tensors = pairs(known, lambda part, name: f"{part}.{name}", {"down": ".lora_A.weight", "up": ".lora_B.weight"})
    source = write({key: t for key, t in tensors.items() if not key.endswith(".alpha")}, tmp_path / "in.safetensors")
    written = load_file(converted(source, "comfy", tmp_path / "out.safetensors", arch="sd1"))
    for key, tensor in written.items():
        if key.endswith(KOHYA["down"]):
            assert written[f"{key.removesuffix(KOHYA['down'])}.alpha"].item() == tensor.shape[0]


@pytest.mark.parametrize("to", ["comfy", "hcp"])
def test_a_sparse_residual_is_refused_where_no_reader_knows_it(to, tmp_path):
    tensors = pairs(layers("sd1", "diffusers", only=["unet"]), lambda part, name: kohya_stem("sd1", part, name), KOHYA)
    stem = next(key.removesuffix(KOHYA["down"]) for key in tensors if key.endswith("to_q" + KOHYA["down"]))
    tensors[f"{stem}.bias_indices"] = torch.tensor([[0, 1], [2, 3]])
    tensors[f"{stem}.bias_values"] = torch.ones(2)
    tensors[f"{stem}.bias_size"] = torch.tensor([320, 320])
    source = write(tensors, tmp_path / "in.safetensors")
    with pytest.raises(NotRepresentable, match="sparse residual") as refusal:
        loratools.convert(source, to=to, arch="sd1")
    assert refusal.value.key == stem
    assert loratools.convert(source, to="kohya", arch="sd1").plan.adapters


def test_comfy_has_no_names_for_models_that_it_does_not_know(tmp_path):
    tensors, _ = processors(attentions("prior", "kandinsky22-prior"))
    with pytest.raises(NotRepresentable, match="comfy has no names"):
        loratools.convert(write(tensors, tmp_path / "in.safetensors"), to="comfy")


# bundles, motion LoRAs, embeddings


@pytest.mark.parametrize("to", ["comfy", "kohya"])
def test_bundled_embeddings_travel_with_the_adapter(to, tmp_path):
    known = layers("sdxl", "ldm")
    tensors = pairs(known, lambda part, name: kohya_stem("sdxl", part, name), KOHYA)
    bundle = {"bundle_emb.my cat.clip_l": torch.ones(2, 768), "bundle_emb.my cat.clip_g": torch.ones(2, 1280)}
    source = write(tensors | bundle, tmp_path / "in.safetensors")
    assert loratools.inspect(source).document["unknown_keys"] == []
    out = converted(source, to, tmp_path / "out.safetensors", arch="sdxl")
    assert_same_tensors({key: tensor for key, tensor in read(out).items() if key in bundle}, bundle)
    assert_round_trip(source, [to], tmp_path / "back", arch="sdxl")
    with pytest.raises(NotRepresentable, match="no place for 2 tensors"):
        loratools.convert(source, to="diffusers", arch="sdxl")


def motion_layers(*, prefix=""):
    draw, tensors = Draw(7), {}
    for path, shape in shapes("animatediff-v2")["unet"].items():
        head = next((head for head in HEADS[:4] if path.endswith(f".{head}")), None)
        if head:
            start = path.removesuffix(head).replace(
                "transformer_blocks.0.attn1", "transformer_blocks.0.attention_blocks.0"
            )
            start = start.replace("transformer_blocks.0.attn2", "transformer_blocks.0.attention_blocks.1")
            start = start.replace(".transformer_blocks", ".temporal_transformer.transformer_blocks")
            for role, tensor in low_rank(shape, 2, draw).items():
                tensors[f"{prefix}{start}processor.{head.removesuffix('.0')}_lora.{role}.weight"] = tensor
    return tensors


@pytest.mark.parametrize("prefix", ["", "module."])
def test_motion_loras_are_read_from_their_checkpoints(prefix, tmp_path):
    tensors = motion_layers(prefix=prefix)
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "motion.ckpt")
    found = loratools.inspect(tmp_path / "motion.ckpt", unsafe_pickle=True).document
    assert (found["architecture"], found["unknown_keys"]) == ("animatediff", [])
    assert found["adapters"] == len(tensors) // 2
    out = converted(tmp_path / "motion.ckpt", "diffusers", tmp_path / "out.safetensors", unsafe_pickle=True)
    key = f"{prefix}mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.1.processor."
    ours = "unet.mid_block.motion_modules.0.transformer_blocks.0.attn2."
    written = load_file(out)
    assert torch.equal(written[f"{ours}to_out.0.lora_A.weight"], tensors[f"{key}to_out_lora.down.weight"])
    assert torch.equal(written[f"{ours}to_q.lora_B.weight"], tensors[f"{key}to_q_lora.up.weight"])
    back = converted(out, "original", tmp_path / "back.safetensors")
    assert_same_tensors(read(back), tensors)


EMBEDDINGS = {
    "a1111.pt": ({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": torch.ones(4, 768)}}, "sd1"),
    "learned.bin": ({"<cat>": torch.ones(768)}, "sd1"),
    "wide.bin": ({"<cat>": torch.ones(3, 1024)}, "sd2"),
    "pivotal.pt": ({"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}, None),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_pickled_embedding_is_named(name, tmp_path):
    document, arch = EMBEDDINGS[name]
    torch.save({**document, "step": 500} if name == "a1111.pt" else document, tmp_path / name)
    found = loratools.inspect(tmp_path / name, unsafe_pickle=True).document
    assert found["role"] == "embedding"
    assert found["architecture"] == arch or (arch is None and "sdxl" in found["candidates"])


def test_early_oft_blocks_are_named_and_come_back(tmp_path):
    draw, tensors = Draw(8), {}
    for component, native, shape in layers("sd1", "diffusers"):
        tensors[f"{kohya_stem('sd1', component, native)}.oft_diag"] = draw(shape[0] // 8, 8, 8)
    source = write(tensors, tmp_path / "in.safetensors")
    assert loratools.inspect(source, arch="sd1").document["kinds"] == ["oft"]
    assert_round_trip(source, ["kohya"], tmp_path / "kohya", arch="sd1")


def test_a_trailing_underscore_is_no_part_of_a_name(tmp_path):
    known = layers("flux1", "diffusers", only=["transformer"])
    source = write(
        pairs(known, lambda _, name: f"lora_unet_{name.replace('.', '_')}_", KOHYA), tmp_path / "in.safetensors"
    )
    assert loratools.inspect(source).document["candidates"][0] == "flux1"
    assert_round_trip(source, ["diffusers"], tmp_path / "diffusers", arch="flux1")
