"""diffusers' own loaders without the rest of their pipelines: models of real width and few blocks, on the meta device.

A LoRA needs nothing of the weights that it changes, so a model without any tells which factors it was given, and where.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import nn

from fixtures import make_shapes

FEWER = (
    "num_layers", "num_single_layers", "num_hidden_layers", "num_mmdit_layers", "num_single_dit_layers",
    "num_visual_blocks", "num_text_blocks", "n_layers", "transformer_layers_per_block",
)  # fmt: skip
BLOCKS = 2
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Case(NamedTuple):
    """An architecture, the mixin of its pipeline, a table of make_shapes, and the component that the mixin fills."""

    architecture: str
    mixin: str
    table: str
    component: str = "transformer"


CASES: tuple[Case, ...] = (
    Case("ace-step", "AceStepLoraLoaderMixin", "ace-step-1.5"),
    Case("anima", "AnimaLoraLoaderMixin", "anima"),
    Case("auraflow", "AuraFlowLoraLoaderMixin", "auraflow"),
    Case("bria-fibo", "FluxLoraLoaderMixin", "bria-fibo"),
    Case("bria-fibo-2", "BriaFibo2LoraLoaderMixin", "bria-fibo-2"),
    Case("chroma", "FluxLoraLoaderMixin", "chroma"),
    Case("cogvideox", "CogVideoXLoraLoaderMixin", "cogvideox-2b"),
    Case("cogview4", "CogView4LoraLoaderMixin", "cogview4"),
    Case("cosmos", "CosmosLoraLoaderMixin", "cosmos2-2b-t2i"),
    Case("ernie-image", "ErnieImageLoraLoaderMixin", "ernie-image"),
    Case("flux1", "FluxLoraLoaderMixin", "flux1-dev"),
    Case("flux2", "Flux2LoraLoaderMixin", "flux2-klein-4b"),
    Case("flux3", "Flux3LoraLoaderMixin", "flux3"),
    Case("framepack", "HunyuanVideoLoraLoaderMixin", "framepack"),
    Case("helios", "HeliosLoraLoaderMixin", "helios"),
    Case("hidream", "HiDreamImageLoraLoaderMixin", "hidream-i1"),
    Case("hunyuan-video", "HunyuanVideoLoraLoaderMixin", "hunyuan-video-t2v"),
    Case("hunyuan-video-1.5", "HunyuanVideoLoraLoaderMixin", "hunyuan-video-1.5"),
    Case("ideogram4", "Ideogram4LoraLoaderMixin", "ideogram4"),
    Case("kandinsky5", "KandinskyLoraLoaderMixin", "kandinsky5-lite-video"),
    Case("krea2", "Krea2LoraLoaderMixin", "krea2"),
    Case("ltx-video", "LTXVideoLoraLoaderMixin", "ltx-video-2b"),
    Case("ltx2", "LTX2LoraLoaderMixin", "ltx2-2.0"),
    Case("lumina2", "Lumina2LoraLoaderMixin", "lumina2"),
    Case("minimax-h3", "MiniMaxH3LoraLoaderMixin", "minimax-h3"),
    Case("mochi", "Mochi1LoraLoaderMixin", "mochi"),
    Case("qwen-image", "QwenImageLoraLoaderMixin", "qwen-image"),
    Case("qwen-image-2.1", "QwenImageLoraLoaderMixin", "qwen-image-2.1"),
    Case("sana", "SanaLoraLoaderMixin", "sana-1600m"),
    Case("sana-video", "SanaLoraLoaderMixin", "sana-video"),
    Case("sd3", "SD3LoraLoaderMixin", "sd35-medium"),
    Case("sdxl-refiner", "StableDiffusionXLLoraLoaderMixin", "sdxl-refiner", "unet"),
    Case("skyreels-v2", "SkyReelsV2LoraLoaderMixin", "skyreels-v2-df-1.3b"),
    Case("wan2.1", "WanLoraLoaderMixin", "wan21-t2v-1.3b"),
    Case("wan2.2", "WanLoraLoaderMixin", "wan22-ti2v-5b"),
    Case("z-image", "ZImageLoraLoaderMixin", "z-image"),
)
"""Every architecture whose pipeline loads adapters of a transformer, and the refiner, which has no tiny pipeline."""


class Pair(NamedTuple):
    """A LoRA's two factors as matrices, in float64, and the number that their product is multiplied by."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


def small(case: Case) -> nn.Module:
    """The model with BLOCKS blocks of each sort, of its published width, without weights."""
    import diffusers

    build, config = make_shapes.TABLES[case.table][case.component]
    known = inspect.signature(getattr(diffusers, build.name).__init__).parameters
    with torch.device("meta"):
        made: nn.Module = build({**config, **{word: BLOCKS for word in FEWER if word in known}})
    return made.eval()


def pipeline(case: Case, model: nn.Module) -> Any:
    """What a pipeline of the case is to its loader: the mixin, with the model in its place and no other."""
    from diffusers.loaders import lora_pipeline

    parts = {case.component: model}
    body = {"components": parts, "hf_device_map": None, "text_encoder": None, "text_encoder_2": None, **parts}
    return type("Alone", (getattr(lora_pipeline, case.mixin),), body)()


def loaded(case: Case, model: nn.Module, file: Path) -> dict[str, Pair]:
    """path → what `load_lora_weights` gave the layer; nothing where it left the layer's factors without values.

    The model is as before afterwards. Whatever the loader raises is its answer.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Factors follow their layer to its device, and on the meta device nothing has values.
    stay = mock.patch.object(BaseTunerLayer, "_move_adapter_to_device_of_base_layer", return_value=None)
    with _without_adapters(model), stay:
        pipeline(case, model).load_lora_weights(file.parent, weight_name=file.name, adapter_name="judged")
        return {path: pair for path, layer in _layers(model).items() if (pair := _pair(layer)) is not None}


@contextlib.contextmanager
def _without_adapters(model: Any) -> Iterator[None]:
    """Take out of the model what was put in while the block ran."""
    try:
        yield
    finally:
        for path, layer in _layers(model).items():
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        model._hf_peft_config_loaded = False


def _layers(model: nn.Module) -> dict[str, Any]:
    return {path: part for path, part in model.named_modules() if hasattr(part, "get_base_layer")}


def _pair(layer: Any) -> Pair | None:
    if "judged" not in getattr(layer, "lora_A", {}):
        return None
    down, up = layer.lora_A["judged"].weight.detach(), layer.lora_B["judged"].weight.detach()
    if down.is_meta or up.is_meta:
        return None
    return Pair(down.double().flatten(1), up.double().flatten(1), float(layer.scaling["judged"]))


def error(found: Pair, true: Pair) -> float:
    """The relative error of the product, from the factors: none is ever multiplied out."""
    up = torch.cat((found.up * found.scale, -true.up * true.scale), dim=1)
    down = torch.cat((found.down, true.down))
    return (_square(up, down) / _square(true.up * true.scale, true.down)) ** 0.5


def _square(up: torch.Tensor, down: torch.Tensor) -> float:
    return max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0)


def right(found: Mapping[str, Pair], true: Mapping[str, Pair], tolerance: float = 1e-4) -> set[str]:
    """The paths whose delta is that of `true`."""
    return {path for path, pair in true.items() if path in found and error(found[path], pair) <= tolerance}
