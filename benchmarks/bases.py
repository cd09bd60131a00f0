"""Base models of real size with random weights, and an adapter for each: `python benchmarks/bases.py OUT NAME [RANK]`.

NAME is sd1 or sdxl. OUT gets `pipeline/` (as diffusers saves it, float16), `single.safetensors` (the same weights under
the LDM names) and `lora32.safetensors` (as sd-scripts names it, of rank 32). Nothing is downloaded: configurations are
written out here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import diffusers
import torch
import transformers
from safetensors.torch import load_file, save_file

from loratools.architectures.naming import skeleton
from loratools.pipelines.single_file import export_single_file
from loratools.pipelines.synthetic import make_clip_tokenizer

SCALING = {"sd1": 0.18215, "sdxl": 0.13025}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 49408, "projection_dim": 768,
}  # fmt: skip
CLIP_G = {**CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
          "projection_dim": 1280, "hidden_act": "gelu"}  # fmt: skip
UNET_SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048,
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816, "sample_size": 128,
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
TILE = 1 << 20


def fill(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model in float16, its weights repetitions of one block of random numbers: quick, and nothing is zero."""
    model = model.to_empty(device="cpu").to(torch.float16)
    generator = torch.Generator().manual_seed(seed)
    tile = torch.randn(TILE, generator=generator)
    with torch.no_grad():
        for number, parameter in enumerate([*model.parameters(), *model.buffers()]):
            if not parameter.is_floating_point():
                parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape))
                continue
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 64
            rows = tile.roll(number).mul(fan_in**-0.5).half()
            flat = parameter.data.view(-1)
            for start in range(0, flat.numel(), TILE):
                part = flat[start : start + TILE]
                part.copy_(rows[: part.numel()])
    return model


def make_pipeline(name: str, folder: Path) -> None:
    """The pipeline as diffusers saves it."""
    tokenizer = make_clip_tokenizer()
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            **(UNET_SDXL if name == "sdxl" else {"cross_attention_dim": 768, "sample_size": 64})
        )
        vae = diffusers.AutoencoderKL(**VAE, scaling_factor=SCALING[name])
        clip_l = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L))
        clip_g = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP_G))
    parts: dict[str, Any] = {"unet": fill(unet, 1), "vae": fill(vae, 2), "text_encoder": fill(clip_l, 3)}
    parts |= {"tokenizer": tokenizer, "scheduler": diffusers.DDIMScheduler()}
    if name == "sdxl":
        parts |= {"text_encoder_2": fill(clip_g, 4), "tokenizer_2": tokenizer}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts)
    else:
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.save_pretrained(folder, max_shard_size="50GB")


def canonical(component: str, key: str) -> str:
    """transformers' own key with the `text_model.` level."""
    if component.startswith("text_encoder") and not key.startswith(("text_model.", "text_projection")):
        return f"text_model.{key}"
    return key


def make_lora(name: str, pipeline: Path, out: Path, rank: int) -> None:
    """A LoRA of every attention and feed-forward layer, as sd-scripts names it, and small beside the base."""
    generator = torch.Generator().manual_seed(9)
    tensors: dict[str, torch.Tensor] = {}
    prefixes = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_" if name == "sdxl" else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }
    for component, prefix in prefixes.items():
        folder = pipeline / component
        if not folder.is_dir():
            continue
        for key, value in load_file(next(folder.glob("*.safetensors"))).items():
            path = canonical(component, key).removesuffix(".weight")
            words = skeleton(path)[0]
            trained = "attentions" in words if component == "unet" else bool({"attn", "mlp"} & set(words))
            if value.ndim < 2 or not trained or not key.endswith(".weight"):
                continue
            out_features, in_features = value.shape[:2]
            tail = (1,) * (value.ndim - 2)
            stem = prefix + path.replace(".", "_")
            down = torch.randn(rank, in_features, *tail, generator=generator) / in_features**0.5
            up = torch.randn(out_features, rank, *tail, generator=generator) * 0.02 / rank**0.5
            tensors |= {
                f"{stem}.lora_down.weight": down.half(),
                f"{stem}.lora_up.weight": up.half(),
                f"{stem}.alpha": torch.tensor(float(rank)).half(),
            }
    save_file(tensors, out, {"ss_network_dim": str(rank)})


def main() -> None:
    """Make what is asked for; what is there already stays."""
    out, name = Path(sys.argv[1]), sys.argv[2]
    rank = int(sys.argv[3]) if len(sys.argv) > 3 else 32
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "pipeline").exists():
        make_pipeline(name, out / "pipeline")
    if not (out / "single.safetensors").exists():
        export_single_file(out / "pipeline", out / "single.safetensors", name)
    lora = out / f"lora{rank}.safetensors"
    if not lora.exists():
        make_lora(name, out / "pipeline", lora, rank)
    print(json.dumps({item.name: item.stat().st_size for item in out.iterdir() if item.is_file()}))


if __name__ == "__main__":
    main()
