"""Adapter files written straight from the architecture tables, by code that shares nothing with our writers."""

import json
from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file, save_file

from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture

# component → native names, by (architecture, naming): a few layers of every sort, small ones where there is a choice
LDM = {
    "sdxl": (
        "input_blocks.4.1.proj_in",
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.4.1.transformer_blocks.1.attn2.to_k",
        "input_blocks.1.0.in_layers.2",
        "output_blocks.8.0.skip_connection",
        "middle_block.1.transformer_blocks.9.attn2.to_out.0",
        "time_embed.0",
    ),
    "sdxl-refiner": (
        "input_blocks.4.1.proj_in",
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.4.1.transformer_blocks.3.attn2.to_k",
        "input_blocks.1.0.in_layers.2",
        "middle_block.1.transformer_blocks.3.attn2.to_out.0",
    ),
}
UNET = (
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.resnets.0.conv1",
    "up_blocks.3.resnets.0.conv_shortcut",
    "time_embedding.linear_1",
)
SDXL_UNET = (
    "down_blocks.1.attentions.0.proj_in",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    "down_blocks.0.resnets.0.conv1",
    "up_blocks.2.resnets.2.conv_shortcut",
    "mid_block.attentions.0.transformer_blocks.3.attn2.to_out.0",
    "time_embedding.linear_1",
)
BFL = (
    "double_blocks.0.img_attn.qkv",
    "double_blocks.0.txt_attn.proj",
    "double_blocks.18.img_mlp.0",
    "single_blocks.3.linear1",
    "single_blocks.37.linear2",
    "final_layer.adaLN_modulation.1",
    "final_layer.linear",
)
FLUX = (
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.attn.to_k",
    "transformer_blocks.0.attn.add_v_proj",
    "transformer_blocks.18.ff.net.0.proj",
    "single_transformer_blocks.3.attn.to_v",
    "single_transformer_blocks.3.proj_mlp",
    "single_transformer_blocks.37.proj_out",
    "norm_out.linear",
    "proj_out",
)
CLIP = (
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.11.mlp.fc1",
)
T5 = ("encoder.block.0.layer.0.SelfAttention.q", "encoder.block.23.layer.1.DenseReluDense.wi_0")
LAYERS = {
    ("sd1", "diffusers"): {"unet": UNET, "text_encoder": CLIP},
    ("sd2", "diffusers"): {"unet": UNET, "text_encoder": CLIP},
    ("sdxl", "ldm"): {"unet": LDM["sdxl"], "text_encoder": CLIP, "text_encoder_2": (*CLIP, "text_projection")},
    ("sdxl", "diffusers"): {"unet": SDXL_UNET, "text_encoder": CLIP, "text_encoder_2": (*CLIP, "text_projection")},
    ("sdxl-refiner", "ldm"): {"unet": LDM["sdxl-refiner"], "text_encoder_2": CLIP},
    ("sdxl-refiner", "diffusers"): {
        "unet": ("down_blocks.1.attentions.0.proj_in", "down_blocks.1.attentions.0.transformer_blocks.3.attn2.to_k"),
        "text_encoder_2": CLIP,
    },
    ("flux1", "bfl"): {"transformer": BFL, "text_encoder": CLIP, "text_encoder_2": T5},
    ("flux1", "diffusers"): {"transformer": FLUX, "text_encoder": CLIP, "text_encoder_2": T5},
}
# The words of sd-scripts for the components, as in its own networks/lora*.py.
WORDS = {
    "sd1": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sd2": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "sdxl-refiner": {"unet": "lora_unet", "text_encoder_2": "lora_te2"},
    "flux1": {"transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
}
KOHYA = {"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight"}
PEFT = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
NAMED = {"down": ".lora_A.default.weight", "up": ".lora_B.default.weight"}
OLD = {"down": ".lora.down.weight", "up": ".lora.up.weight"}


@dataclass
class Layers:
    """component → (native name, shape of its weight) of a small adapter."""

    arch: str
    naming: str
    by_component: dict = field(default_factory=dict)

    def __iter__(self):
        for component, rows in self.by_component.items():
            for native, shape in rows:
                yield component, native, shape


def layers(arch, naming, *, only=None, chosen=None):
    """The layers of LAYERS (or `chosen`) with the shapes of their weights, looked up by canonical path."""
    known = architecture(arch)
    tables = shapes(known.variants[0].shapes)
    found = Layers(arch, naming)
    for component, names in (chosen or LAYERS[arch, naming]).items():
        if only is not None and component not in only:
            continue
        spelt = known.by_name[component].naming(naming) or known.by_name[component].namings[0]
        natives = {placement.native: placement for placement in spelt.placements()}
        rows = []
        for name in names:
            parts = [tables[component][path] for path in natives[name].paths]
            rows.append((name, (sum(part[0] for part in parts), *parts[0][1:])))
        found.by_component[component] = rows
    return found


class Draw:
    """Random tensors, another one at every call, the same ones in every run."""

    def __init__(self, seed=0, dtype=torch.float16):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def __call__(self, *shape):
        return torch.randn(*shape, generator=self.generator).to(self.dtype)


def low_rank(shape, rank, draw):
    """down [r, in, kernel…] and up [out, r, 1…]."""
    rows, columns, *kernel = shape
    return {"down": draw(rank, columns, *kernel), "up": draw(rows, rank, *[1] * len(kernel))}


def kind_factors(kind, shape, draw):  # noqa: C901 - a table of cases
    """suffix → tensor of one layer, as LyCORIS 4 and sd-scripts name and shape them; None where a kind has no such."""
    rows, columns, *kernel = shape
    ones, rank = [1] * len(kernel), 2
    flat = columns
    for extent in kernel:
        flat *= extent
    pair = {KOHYA[role]: tensor for role, tensor in low_rank(shape, rank, draw).items()}
    alpha = {".alpha": torch.tensor(1.0, dtype=torch.float16)}
    if kind == "lora":
        return pair | alpha
    if kind == "dora":
        return pair | alpha | {".dora_scale": draw(rows, 1, *ones)}
    if kind == "dora-input":
        return None if rows == columns else pair | alpha | {".dora_scale": draw(1, columns, *ones)}
    if kind == "tucker":
        if not kernel or kernel == [1, 1]:
            return pair | alpha
        mid = draw(rank, rank, *kernel)
        down, up = draw(rank, columns, *ones), draw(rows, rank, *ones)
        return {KOHYA["down"]: down, KOHYA["up"]: up, KOHYA["mid"]: mid} | alpha
    if kind == "loha":
        names = {".hada_w1_a": (rows, rank), ".hada_w1_b": (rank, flat)}
        names |= {".hada_w2_a": (rows, rank), ".hada_w2_b": (rank, flat)}
        return {name: draw(*size) for name, size in names.items()} | alpha
    if kind == "lokr":
        size = {".lokr_w1": (4, 4), ".lokr_w2_a": (rows // 4, rank), ".lokr_w2_b": (rank, flat // 4)}
        return None if rows % 4 or columns % 4 else {name: draw(*extents) for name, extents in size.items()} | alpha
    if kind == "full":
        return {".diff": draw(*shape), ".diff_b": draw(rows)} if rows * flat < 2**18 else None
    if kind == "ia3":
        return {".weight": draw(rows), ".on_input": torch.tensor(False)}
    if kind == "glora":
        size = {".a1.weight": (columns, rank), ".a2.weight": (rank, columns)}
        size |= {".b1.weight": (rows, rank), ".b2.weight": (rank, columns)}
        return None if kernel else {name: draw(*extents) for name, extents in size.items()} | alpha
    if kind == "oft":
        return None if rows % 8 else {".oft_blocks": draw(rows // 8, 8, 8)} | alpha
    raise AssertionError(kind)


def kohya_stem(arch, component, native):
    """The flat stem of sd-scripts."""
    return f"{WORDS[arch][component]}_{native.replace('.', '_')}"


def alphas():
    """Every way in which an alpha tensor is met: dtype, shape [] and [1], and None for an absent one."""
    numbers = [
        torch.tensor(1.0, dtype=torch.float16),
        torch.tensor(3.0, dtype=torch.bfloat16),
        torch.tensor([2.5], dtype=torch.float32),
        torch.tensor(4, dtype=torch.int64),
        None,
        torch.tensor([0.1], dtype=torch.float16),
        torch.tensor(8.0, dtype=torch.float32),
    ]
    while True:
        yield from numbers


def pairs(found, stem, suffixes, *, ranks=(2, 3, 1), with_alpha=True, seed=0, dtype=torch.float16):
    """Low-rank pairs of mixed ranks and alphas for every layer; `stem(component, native)` begins their keys."""
    draw, tensors, numbers = Draw(seed, dtype), {}, alphas()
    for at, (component, native, shape) in enumerate(found):
        start = stem(component, native)
        for role, tensor in low_rank(shape, ranks[at % len(ranks)], draw).items():
            tensors[start + suffixes[role]] = tensor
        alpha = next(numbers)
        if with_alpha and alpha is not None:
            tensors[f"{start}.alpha"] = alpha.clone()
    return tensors


def write(tensors, path, metadata=None):
    """A safetensors file by safetensors itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    return path


def write_peft(tensors, folder, **config):
    """A PEFT folder."""
    write(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder


def read(path):
    """key → tensor of a file, or `component/key` of a folder of files."""
    if path.is_file():
        return load_file(path)
    found = {}
    for file in sorted(path.rglob("*.safetensors")):
        place = file.parent.relative_to(path).as_posix()
        found |= {key if place == "." else f"{place}/{key}": tensor for key, tensor in load_file(file).items()}
    return found


def assert_same_tensors(ours, theirs):
    """Equal keys, dtypes, shapes and bytes."""
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:6]
    for key, tensor in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        assert ours[key].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), key
