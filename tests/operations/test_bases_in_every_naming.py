"""Merging into and extracting from bases in each naming, whole and 8-bit, judged by a float64 sum over the registry."""

import json
import os
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.architectures.architecture import shapes
from loratools.architectures.naming import skeleton
from loratools.architectures.registry import ARCHITECTURES, architecture
from loratools.bases.checkpoint import open_checkpoint
from loratools.bases.identify import identify
from loratools.bases.matching import native_shape
from loratools.operations.merge import plan_merge
from loratools.tensors.lazy import LazyTensor
from tests.bases.making import canonical, shrunk, spelt
from tests.formats.test_corpus import sparse

CORPUS = os.environ.get("LORATOOLS_CORPUS")
EXPECTED = json.loads((Path(CORPUS) / "EXPECTED.json").read_text()) if CORPUS else {}
RANK = 2

# How a file holds its numbers: the dtype of its matrices, and what their scales are called and shaped like.
FORMS = {
    "F32": (torch.float32, None),
    "BF16": (torch.bfloat16, None),
    "F8_E4M3": (torch.float8_e4m3fn, None),
    "F8_E5M2": (torch.float8_e5m2, None),
    "scale_weight": (torch.float8_e4m3fn, 1),
    "weight_scale": (torch.float8_e4m3fn, "rows"),
}
# dtype → (half a step of a number, as a share of it; half of the smallest step, near zero)
ROUNDING = {
    torch.float32: (2.0**-22, 2.0**-22), torch.bfloat16: (2.0**-8, 2.0**-22), torch.float8_e4m3fn: (2.0**-4, 2.0**-10),
    torch.float8_e5m2: (2.0**-3, 2.0**-17),
}  # fmt: skip


def has_layouts(naming):
    """Whether a naming does more than rename: it fuses, turns or swaps."""
    return any(rule.layout != "rows" or len(rule.canonical) > 1 for rule in naming.rules)


# Every model under the names that are the farthest from its canonical ones; names alone are quick to believe.
CASES = [
    pytest.param(
        known, known.denoiser.namings[-1], form, id=f"{known.id}-{known.denoiser.namings[-1].name}-{form}",
        marks=() if has_layouts(known.denoiser.namings[-1]) else pytest.mark.long,
    )
    for known, form in zip(ARCHITECTURES, cycle(FORMS), strict=False)
]  # fmt: skip
GIVEN_BACK = ("flux1", "hunyuan-video", "sd3", "sdxl", "wan2.1")


def excerpt(known, naming):
    """A table with one layer of each skeleton, small, and their placements."""
    table = shapes(known.variants[0].shapes)[known.denoiser.name]
    seen, kept, chosen = set(), {}, []
    for placement in naming.placements():
        if native_shape(placement, table) is None or (words := skeleton(placement.native)[0]) in seen:
            continue
        seen.add(words)
        kept |= {path: shrunk(table[path], 32) for path in placement.paths}
        chosen.append(placement)
    return kept, chosen


def to_change(chosen, table):
    """Layers of every sort that there is: fused, turned, swapped, plain; matrices all."""
    sorts = {}
    for placement in chosen:
        shape = table[placement.paths[0]]
        if len(shape) >= 2 and placement.bias_key and min(shape[:2]) > RANK:
            sorts.setdefault((placement.layout, len(placement.paths), len(shape)), placement)
    return list(sorts.values())


def adapter(known, placements, table):
    """PEFT's factors of canonical layers, under diffusers' names, and the float64 deltas of their paths."""
    generator = torch.Generator().manual_seed(3)
    held, deltas = {}, {}
    for placement in placements:
        for path in placement.paths:
            rows, columns, *kernel = table[path]
            down = torch.randn(RANK, columns, *kernel, generator=generator) * 0.1
            up = torch.randn(rows, RANK, *(1 for _ in kernel), generator=generator) * 0.1
            stem = f"{known.denoiser.name}.{path}"
            held |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            deltas[path] = (up.double().flatten(1) @ down.double().flatten(1)).reshape(table[path])
    return held, deltas


def stored(tensors, form):
    """The tensors as a file of that form holds them, and the numbers that they stand for."""
    dtype, per = FORMS[form]
    held, numbers = {}, {}
    for key, tensor in tensors.items():
        if tensor.ndim < 2 or not key.endswith(".weight"):
            held[key] = numbers[key] = tensor
            continue
        if per is None:
            held[key] = tensor.to(dtype)
            numbers[key] = held[key].double()
            continue
        flat = tensor.flatten(1)
        peak = flat.abs().amax(1, keepdim=True) if per == "rows" else flat.abs().amax().reshape(1)
        scale = (peak / 448).float()
        held[key] = (flat / scale).to(dtype).reshape(tensor.shape)
        held[f"{key.removesuffix('weight')}{form}"] = scale
        numbers[key] = (held[key].double().flatten(1) * scale.double()).reshape(tensor.shape)
    return held, numbers


def read(path, form):
    """What the matrices of a file stand for."""
    tensors = load_file(path)
    _, per = FORMS[form]
    if per is None:
        return {key: tensor.double() for key, tensor in tensors.items()}
    found = {}
    for key, tensor in tensors.items():
        scale = tensors.get(f"{key.removesuffix('weight')}{form}") if key.endswith(".weight") else None
        found[key] = (
            tensor.double() if scale is None else (tensor.double().flatten(1) * scale.double()).reshape(tensor.shape)
        )
    return found


class Made(NamedTuple):
    """A base in a file, an adapter of some of its layers, and the numbers by native key: the base's, and the change."""

    base: Path
    lora: Path
    numbers: dict
    added: dict
    touched: set
    fused: int


def make(known, naming, form, folder):
    table, chosen = excerpt(known, naming)
    prefix = known.denoiser.checkpoint[0] if known.denoiser.checkpoint else ""
    held, numbers = stored(spelt(naming, table, canonical(table), prefix), form)
    placements = to_change(chosen, table)
    factors, deltas = adapter(known, placements, table)
    save_file({key: tensor.contiguous() for key, tensor in held.items()}, folder / "base.safetensors")
    save_file(factors, folder / "lora.safetensors")
    changed = {path: deltas.get(path, torch.zeros(shape)).double() for path, shape in table.items()}
    added = spelt(naming, table, {path: (delta, torch.zeros(len(delta))) for path, delta in changed.items()}, prefix)
    touched = {prefix + placement.weight_key for placement in placements}
    fused = max(len(placement.paths) for placement in placements)
    return Made(folder / "base.safetensors", folder / "lora.safetensors", numbers, added, touched, fused)


@pytest.mark.parametrize(("known", "naming", "form"), CASES)
def test_a_base_in_its_own_names_and_dtype_gets_the_sum(known, naming, form, tmp_path):
    made = make(known, naming, form, tmp_path)
    lt.merge(made.base, [made.lora], tmp_path / "out.safetensors", arch=known.id)
    after = read(tmp_path / "out.safetensors", form)
    dtype, per = FORMS[form]
    share, least = ROUNDING[dtype]
    for key in made.touched:
        wanted = made.numbers[key].double() + made.added[key]
        unit = 1.0 if per is None else float(wanted.abs().amax()) / 448
        bound = (wanted.abs() * share).clamp(min=least * unit) * 1.01
        assert bool(((after[key] - wanted).abs() <= bound).all()), key
    before, same = load_file(made.base), load_file(tmp_path / "out.safetensors")
    moved = {*made.touched, *(key.removesuffix("weight") + form for key in made.touched)}
    assert list(before) == list(same)
    assert all(same[key].equal(before[key]) for key in before if key not in moved)


@pytest.mark.parametrize(("name", "form"), list(zip(GIVEN_BACK, list(FORMS)[1:], strict=True)))
def test_what_was_added_to_a_base_in_its_own_names_is_extracted(name, form, tmp_path):
    known = architecture(name)
    made = make(known, known.denoiser.namings[-1], form, tmp_path)
    tuned = {key: (value.double() + made.added[key].double()).float() for key, value in made.numbers.items()}
    save_file({key: tensor.contiguous() for key, tensor in tuned.items()}, tmp_path / "tuned.safetensors")
    options = {"rank": made.fused * RANK, "dtype": "F32", "arch": known.id, "force": True}
    lt.extract(made.base, tmp_path / "tuned.safetensors", **options).save(tmp_path / "found.safetensors")
    assert lt.compare(made.lora, tmp_path / "found.safetensors", tolerance=1e-3, arch=known.id).equal


# What the name of an inventory says about its names → the naming.
WORDS = {
    "_diffusers": "diffusers",
    "_bfl": "bfl",
    "_ldm": "ldm",
    "_sgm": "ldm",
    "_mmdit": "original",
    "_sd3_": "original",
}
BASES = sorted(name for name, truth in EXPECTED.items() if truth["role"] == "base" and "architecture" in truth)
QUICK = (
    "base_flux1_dev_bfl_real.json.gz", "base_llm_gpt2_gen.json", "base_llm_llama31_8b_gen.json",
    "base_lumina2_kohya_gen.json", "base_sd3_medium_mmdit_gen.json", "base_wan21_t2v_1_3b_gen.json",
)  # fmt: skip


@pytest.mark.skipif(not CORPUS, reason="LORATOOLS_CORPUS names no folder of key inventories")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in BASES]
)
def test_every_inventory_of_a_base_is_known_by_its_names_and_merged_into_on_paper(name, tmp_path):
    path, arch = sparse(name, tmp_path / "base.safetensors"), EXPECTED[name]["architecture"]
    known = None if arch.startswith("llm") else architecture(arch)
    base = open_checkpoint(path).base
    if known is not None:
        ((_, source),) = base.parts
        parts = identify({key: source[key].shape for key in source}).components
        part = parts.get(known.denoiser.name) or next(iter(parts.values()))
        assert part.naming == next((naming for word, naming in WORDS.items() if word in name), part.naming)
    chosen = {}
    for component, native in base.natives(known):
        if not native.is_bias and len(native.tensor.shape) >= 2 and native.placement.bias_key:
            chosen.setdefault((component, native.placement.layout, len(native.placement.paths)), native.placement)
    weights, held = base.of(known), {}
    for (component, *_), placement in chosen.items():
        for at in placement.paths:
            rows, columns, *kernel = weights.weight(component, at).shape
            stem = f"{component}.{at}" if known else f"base_model.model.{at}"
            held[f"{stem}.lora_A.weight"] = LazyTensor.zeros("F32", (1, columns, *kernel))
            held[f"{stem}.lora_B.weight"] = LazyTensor.zeros("F32", (rows, 1, *(1 for _ in kernel)))
    plan = plan_merge(path, [held], arch=arch).plan
    assert plan.changed == len(chosen) > 0
    assert not plan.adapters[0].unmatched
