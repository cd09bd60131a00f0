"""A live pipeline before and after: its weights bit by bit, what changed in them, and what the models answer."""

from __future__ import annotations

from typing import Any

import torch

from tests.judges.truth import Place, place

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


def models(pipe: Any) -> dict[str, Any]:
    """The models that adapters are for."""
    return {name: part for name in PARTS if (part := getattr(pipe, name, None)) is not None}


def bits(pipe: Any) -> dict[tuple[str, str], torch.Tensor]:
    """Every tensor of every model, copied."""
    return {
        (part, key): value.clone() for part, model in models(pipe).items() for key, value in model.state_dict().items()
    }


def same_bits(pipe: Any, before: dict[tuple[str, str], torch.Tensor]) -> bool:
    """Whether names, order, dtypes and bits are those of `before`."""
    now = bits(pipe)
    alike = list(now) == list(before) and all(now[key].dtype == value.dtype for key, value in before.items())
    return alike and all(_raw(now[key]).equal(_raw(value)) for key, value in before.items())


def changes(pipe: Any, before: dict[tuple[str, str], torch.Tensor], leaf: str = "weight") -> dict[Place, torch.Tensor]:
    """The change of every weight (or bias) that changed, in float64, PEFT's layers merged by PEFT itself in float64."""
    found: dict[Place, torch.Tensor] = {}
    for part, model in models(pipe).items():
        for path, module in model.named_modules():
            if any(word.startswith("lora_") for word in path.split(".")) or "base_layer" in path.split("."):
                continue
            base = module.get_base_layer() if hasattr(module, "get_base_layer") else module
            tensor = base._parameters.get(leaf)
            if tensor is None:
                continue
            change = tensor.detach().double() - before[part, f"{path}.{leaf}"].double()
            if base is not module and leaf == "weight":
                for name in module.active_adapters:
                    if name in module.scaling:
                        change = change + _delta(module, name).reshape(change.shape)
            if bool(change.any()):
                found[place(part, path)] = change
    return found


@torch.no_grad()
def answers(pipe: Any) -> list[torch.Tensor]:
    """What the text encoders and the denoiser of a tiny SD pipeline answer to one seeded input each."""
    generator = torch.Generator().manual_seed(0)
    dtype = pipe.unet.dtype
    hidden = pipe.text_encoder(torch.arange(77)[None] % 500).last_hidden_state
    noise = torch.randn(1, 4, 8, 8, generator=generator).to(dtype)
    context = torch.randn(1, 7, pipe.unet.config.cross_attention_dim, generator=generator).to(dtype)
    return [hidden.float(), pipe.unet(noise, 5, context).sample.float()]


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest relative difference between two answers."""
    return max(float((left - right).norm() / right.norm()) for left, right in zip(ours, theirs, strict=True))


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Whether two answers are the same bits."""
    return all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


def _delta(layer: Any, name: str) -> torch.Tensor:
    """What PEFT's layer computes from its factors, in float64."""
    down, up = (getattr(layer, side)[name].weight.detach().double().flatten(1) for side in ("lora_A", "lora_B"))
    return layer.scaling[name] * up @ down


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
