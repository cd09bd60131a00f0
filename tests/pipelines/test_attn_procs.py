"""A file of the attention processors' time does in diffusers what our reading of it does."""

import pytest
import torch
from safetensors.torch import save_file

import loratools as lt
from tests.judges.fresh import fresh
from tests.judges.load import deltas_after_diffusers_load
from tests.judges.truth import compare

TEXT = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}
HEADS = ("to_q", "to_k", "to_v", "to_out.0")


def attn_procs(folder):
    """key → tensor, as save_attn_procs and the text encoder's writer named them, for every attention of a pipeline."""
    parts, draw = fresh(folder), torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in parts.unet.named_modules():
        head = next((head for head in HEADS if name.endswith(f".{head}")), None)
        if head and isinstance(module, torch.nn.Linear):
            stem = f"unet.{name.removesuffix(head)}processor.{head.removesuffix('.0')}_lora"
            tensors |= pair(stem, module.weight.shape, draw)
    for component in ("text_encoder", "text_encoder_2"):
        model = getattr(parts, component, None)
        for name, module in model.named_modules() if model else ():
            start, _, leaf = name.rpartition(".")
            if leaf in TEXT:
                nested = start if start.startswith("text_model.") else f"text_model.{start}"
                tensors |= pair(f"{component}.{nested}.{TEXT[leaf]}", module.weight.shape, draw)
    return tensors


def pair(stem, shape, draw):
    down, up = torch.randn(2, shape[1], generator=draw), torch.randn(shape[0], 2, generator=draw)
    return {f"{stem}.down.weight": down / 8, f"{stem}.up.weight": up / 8}


@pytest.mark.parametrize("architecture", ["sd1", "sd2", "sdxl"])
def test_diffusers_loads_the_file_and_ours_alike(architecture, pipeline, tmp_path):
    folder = pipeline(architecture)
    source, ours = tmp_path / "pytorch_lora_weights.safetensors", tmp_path / "ours.safetensors"
    tensors = attn_procs(folder)
    save_file(tensors, source)
    lt.convert(source, to="diffusers", arch=architecture).save(ours)
    theirs, read = deltas_after_diffusers_load(folder, source), deltas_after_diffusers_load(folder, ours)
    assert len(theirs.deltas) == len(tensors) // 2
    judgement = compare(read.deltas, theirs.deltas)
    assert (judgement.missing, judgement.unexpected, judgement.beyond(1e-6)) == ((), (), {})
    assert read.complaints == ()
