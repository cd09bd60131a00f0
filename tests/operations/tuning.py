"""Models and their fine-tunes whose every change a test chooses: pipeline folders, LDM's single files, small Llamas."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loratools.architectures.registry import architecture
from tests.judges.truth import place

# Which naming the single files of an architecture have for a component; what is not here has the first one.
LDM = {"unet": "ldm", ("sd2", "text_encoder"): "open_clip", ("sdxl", "text_encoder_2"): "open_clip"}
TABLES = ("embedding", "embeddings", "wte", "wpe", "embed_tokens")


def weights_files(folder):
    """(component, file) of every model of a pipeline that a LoRA is about, or of a model folder ("model")."""
    found = [(path.parent.name, path) for path in sorted(Path(folder).glob("*/*.safetensors"))]
    found = [(name, path) for name, path in found if name == "unet" or name.startswith(("text_encoder", "transformer"))]
    return found or [("model", path) for path in sorted(Path(folder).glob("*.safetensors"))]


def is_layer(key, tensor):
    """Whether a tensor of a model folder is the weight of a linear layer or a convolution."""
    return key.endswith(".weight") and tensor.ndim > 1 and not key.split(".")[-2].endswith(TABLES)


def low_rank(tensor, generator, rank=3, size=0.2):
    """A float64 change of that rank, `size` times the weight's norm."""
    flat = tensor.flatten(1)
    left = torch.randn(flat.shape[0], rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, flat.shape[1], generator=generator, dtype=torch.float64)
    change = left @ right
    return (change * (size * float(tensor.double().norm()) / float(change.norm()))).reshape(tensor.shape)


def full_rank(tensor, generator, decay=0.5, size=0.2):
    """A float64 change of full rank whose singular values fall as i to the power of minus `decay`."""
    flat = tensor.flatten(1)
    left, _, right = torch.linalg.svd(
        torch.randn(flat.shape, generator=generator, dtype=torch.float64), full_matrices=False
    )
    values = torch.arange(1, left.shape[1] + 1, dtype=torch.float64) ** -decay
    change = (left * values) @ right
    return (change * (size * float(tensor.double().norm()) / float(change.norm()))).reshape(tensor.shape)


def tune(folder, out, change=low_rank, choose=is_layer, seed=1):
    """A copy of a pipeline or model with changed weights; (component, canonical path) → the change, in float64.

    The changes are those of the float32 numbers that were stored, not of those that were drawn.
    """
    shutil.copytree(folder, out)
    generator, deltas = torch.Generator().manual_seed(seed), {}
    for component, path in weights_files(out):
        held = load_file(path)
        for key in sorted(held):
            tensor = held[key]
            if not choose(key, tensor):
                continue
            held[key] = (tensor.double() + change(tensor, generator)).to(tensor.dtype)
            deltas[place(component, key.rpartition(".")[0])] = held[key].double() - tensor.double()
        save_file(held, path, {"format": "pt"})
    return deltas


def single_file(folder, arch, out, dtype=None, extra=None):
    """The denoiser and the text encoders of a pipeline as one checkpoint, by the names that the architecture's have."""
    known, held = architecture(arch), {}
    for component, path in weights_files(folder):
        values = {}
        for key, tensor in load_file(path).items():
            stem, _, leaf = key.rpartition(".")
            values[place(component, stem)[1], leaf] = tensor
        part = known.by_name[component]
        naming = part.naming(LDM.get(component) or LDM.get((arch, component)) or part.namings[0].name)
        for placement in naming.placements():
            for leaf, key in (("weight", placement.weight_key), ("bias", placement.bias_key)):
                parts = [values.pop((item, leaf), None) for item in placement.paths]
                if key is None or any(item is None for item in parts):
                    continue
                whole = torch.cat(parts)
                held[part.checkpoint[0] + key] = whole.T.contiguous() if placement.layout == "transpose" else whole
        assert not values, (component, list(values)[:5])
    held = {key: tensor.to(dtype) if dtype else tensor for key, tensor in held.items()}
    save_file(held | (extra or {}), out)
    return out


def llama(folder, *, hidden=32, tied=False, layers=2, seed=0):
    """A small Llama, saved by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(num_hidden_layers=layers, vocab_size=100, tie_word_embeddings=tied, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def written(path):
    """(component, path) → float64 delta, of a file in kohya's UNet spelling by diffusers' names, or of a PEFT folder:
    the product of the stored factors times alpha / rank, by nothing but safetensors.
    """
    held = load_file(path / "adapter_model.safetensors" if Path(path).is_dir() else path)
    ends = (".lora_A.weight", ".lora_B.weight") if Path(path).is_dir() else (".lora_down.weight", ".lora_up.weight")
    found = {}
    for key, down in held.items():
        if not key.endswith(ends[0]):
            continue
        stem = key.removesuffix(ends[0])
        up = held[stem + ends[1]]
        alpha = held.get(f"{stem}.alpha")
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        found[stem] = scale * (up.double().flatten(1) @ down.double().flatten(1))
    return found


def optimum(delta, rank):
    """The relative error that no matrix of that rank goes below (Eckart and Young), by torch's float64 values."""
    values = torch.linalg.svdvals(delta.flatten(1))
    return float(values[rank:].norm() / values.norm())
