"""The commands that are abused: what each reads, is called with, and writes, large enough to be caught in the act."""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from fixtures.broken.adapter import good, tensor, whole

SIDES = ("q", "k", "v", "out_0")
TEXTS = 3  # layers of the text encoder in a base model of some megabytes
_CHANGED = 8  # rank of what was tuned


@dataclass(frozen=True)
class Job:
    """A command: its verb and options, what makes its inputs in a folder (all of a few kB with `small`), and whether
    its output is a folder.
    """

    name: str
    verb: str
    make: Callable[..., tuple[Path, ...]]
    options: tuple[str, ...] = ()
    folder: bool = False

    def out(self, folder):
        """Where its output goes."""
        return folder / ("out" if self.folder else "out.safetensors")

    def arguments(self, inputs, out):
        """The command line after the program's name."""
        places = (*inputs, out) if self.verb == "convert" else (*inputs, "-o", out)
        return [self.verb, *map(str, places), *self.options, "--overwrite"]


def adapter(path, *, rank=64, texts=12):
    """An adapter of some megabytes: many small runs that are gathered and large ones that the kernel copies."""
    tensors = {}
    for number in range(8):
        block, side = divmod(number, 4)
        attention = f"lora_unet_down_blocks_0_attentions_{block}_transformer_blocks_0_attn1_to_{SIDES[side]}"
        tensors[f"{attention}.lora_down.weight"] = tensor("F16", rank, 320, fill=bytes([number + 1, 60]))
        tensors[f"{attention}.lora_up.weight"] = tensor("F16", 320, rank, fill=bytes([number + 1, 61]))
        tensors[f"{attention}.alpha"] = tensor("F16", fill=b"\0\x3c")
    for number in range(texts):
        mlp = f"lora_te_text_model_encoder_layers_{number}_mlp_fc1"
        tensors[f"{mlp}.lora_down.weight"] = tensor("F16", rank, 768, fill=bytes([number + 1, 62]))
        tensors[f"{mlp}.lora_up.weight"] = tensor("F16", 3072, rank, fill=bytes([number + 1, 63]))
        tensors[f"{mlp}.alpha"] = tensor("F16", fill=b"\0\x3c")
    path.write_bytes(whole(tensors, {"ss_base_model_version": "sd_v1"}))
    return path


def converted(folder, *, small=False):
    """One adapter."""
    path = folder / "in.safetensors"
    if small:
        path.write_bytes(whole(good()))
        return (path,)
    return (adapter(path),)


def single_base(folder, *, small=False):
    """A single-file model of Stable Diffusion 1, in part, and an adapter for it."""
    path = folder / "base.safetensors"
    unet, text, vae = _parts(small=small)
    held = {f"model.diffusion_model.{_in_ldm(key)}": value for key, value in unet.items()}
    held |= {f"cond_stage_model.transformer.{key}": value for key, value in text.items()}
    held |= {f"first_stage_model.{key}": value for key, value in vae.items()}
    path.write_bytes(whole(held, {"title": "a base"}))
    return path, _matching(folder, small=small)


def folder_base(folder, *, small=False):
    """The same as a pipeline folder whose UNet is in two shards, and an adapter for it."""
    root = folder / "base"
    unet, text, vae = _parts(small=small)
    for name in ("unet", "text_encoder", "vae", "scheduler"):
        (root / name).mkdir(parents=True)
    (root / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (root / "scheduler" / "scheduler_config.json").write_text("{}")
    stem = "diffusion_pytorch_model"
    keys = list(unet)
    shards = {f"{stem}-00001-of-00002.safetensors": keys[:1], f"{stem}-00002-of-00002.safetensors": keys[1:]}
    for name, held in shards.items():
        (root / "unet" / name).write_bytes(whole({key: unet[key] for key in held}, {"format": "pt"}))
    index = {"metadata": {"total_size": sum(len(data) for _, _, data in unet.values())},
             "weight_map": {key: name for name, held in shards.items() for key in held}}  # fmt: skip
    (root / "unet" / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    if text:
        (root / "text_encoder" / "model.safetensors").write_bytes(whole(text, {"format": "pt"}))
    (root / "vae" / f"{stem}.safetensors").write_bytes(whole(vae, {"format": "pt"}))
    return root, _matching(folder, small=small)


def two_models(folder, *, small=False):
    """A model before and after tuning: random numbers, and a change of low rank to every matrix but the VAE's."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    unet, text, vae = _parts(small=small)
    held = {f"model.diffusion_model.{_in_ldm(key)}": value for key, value in unet.items()}
    held |= {f"cond_stage_model.transformer.{key}": value for key, value in list(text.items())[:1]}
    base = {key: 0.05 * torch.randn(shape, generator=generator) for key, (_, shape, _) in held.items()}
    tuned = {}
    for key, weight in base.items():
        up, down = (torch.randn(size, _CHANGED, generator=generator) for size in weight.shape)
        tuned[key] = (weight + 0.002 * up @ down.T).half()
    rest = {f"first_stage_model.{key}": torch.zeros(shape, dtype=torch.float16) for key, (_, shape, _) in vae.items()}
    places = folder / "base.safetensors", folder / "tuned.safetensors"
    save_file({**{key: weight.half() for key, weight in base.items()}, **rest}, places[0])
    save_file({**tuned, **rest}, places[1])
    return places


def claiming(path, shapes, *, size=None):
    """A file whose header claims these F16 shapes; `size` bytes (all of them: None) are there, as a hole."""
    header, at = {}, 0
    for key, shape in shapes.items():
        count = 2 * prod(shape)
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + count]}
        at += count
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + (at if size is None else size))
    return path


def _matching(folder, *, small):
    """An adapter for the models below."""
    path = folder / "in.safetensors"
    if small:
        path.write_bytes(whole(good()))
        return path
    return adapter(path, rank=16, texts=TEXTS)


def _parts(*, small):
    """The UNet, the text encoder and the VAE under diffusers' names, each in part."""
    block = "down_blocks.0.attentions.{}.transformer_blocks.0"
    if small:
        unet = {
            f"{block.format(0)}.attn1.to_q.weight": tensor("F16", 320, 320, fill=b"\1\x30"),
            f"{block.format(0)}.attn2.to_k.weight": tensor("F16", 320, 768, fill=b"\2\x30"),
        }
        return unet, {}, {"decoder.conv_in.weight": tensor("F16", 512, 4, 3, 3)}
    unet = {
        f"{block.format(number // 4)}.attn1.to_{SIDES[number % 4].replace('_', '.')}.weight": tensor(
            "F16", 320, 320, fill=bytes([number + 1, 48])
        )
        for number in range(8)
    }
    text = {
        f"text_model.encoder.layers.{number}.mlp.fc1.weight": tensor("F16", 3072, 768, fill=bytes([number + 1, 49]))
        for number in range(TEXTS)
    }
    vae = {
        "decoder.conv_in.weight": tensor("F16", 512, 4, 3, 3),
        "decoder.mid_block.resnets.0.conv1.weight": tensor("F16", 512, 512, 3, 3, fill=b"\3\x30"),
    }
    return unet, text, vae


def _in_ldm(key):
    """A key of the UNet's first blocks under CompVis' names."""
    _, _, _, number, rest = key.split(".", 4)
    return f"input_blocks.{int(number) + 1}.1.{rest}"


JOBS = (
    Job("convert to a file", "convert", converted, ("--to", "diffusers")),
    Job("convert to a folder", "convert", converted, ("--to", "peft"), folder=True),
    Job("merge into a file", "merge", single_base),
    Job("merge into a folder", "merge", folder_base, folder=True),
    Job("extract", "extract", two_models, ("--rank", "8")),
    Job("rebuild a folder", "rebuild", folder_base, ("--no-check",), folder=True),
)


def jobs(verb):
    """The commands of one verb."""
    return [job for job in JOBS if job.verb == verb]
