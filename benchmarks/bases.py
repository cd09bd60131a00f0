"""Base models of real size with random weights, and an adapter for each: `python benchmarks/bases.py OUT NAME [RANK]`.

NAME is sd1 or sdxl. OUT gets `pipeline/` (as diffusers saves it, float16), `single.safetensors` (the same weights under
the LDM names) and `lora32.safetensors` (as sd-scripts names it, of rank 32). Nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file, save_file

import loratools
from loratools.architectures.naming import skeleton
from loratools.pipelines.single_file import export_single_file


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
        loratools.make_pipeline(name, out / "pipeline", size="full", dtype="float16")
    if not (out / "single.safetensors").exists():
        export_single_file(out / "pipeline", out / "single.safetensors", name)
    lora = out / f"lora{rank}.safetensors"
    if not lora.exists():
        make_lora(name, out / "pipeline", lora, rank)
    print(json.dumps({item.name: item.stat().st_size for item in out.iterdir() if item.is_file()}))


if __name__ == "__main__":
    main()
