"""Complete tiny diffusers pipelines, made on the spot: real block layouts and names, seeded weights, no download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.pipelines.blueprints import PIXELS, Part, blueprint

if TYPE_CHECKING:
    from torch import nn

SPREAD_BIAS = 0.05
"""Standard deviation of biases: classes that start them at zero would hide a bias that was lost."""

PAIRS = ("th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "st", "or", "te", "es")
"""Letter pairs that the tiny vocabularies know as one symbol."""


def make_pipeline(architecture: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny pipeline of `architecture` (sd1, sd2, sdxl, flux1) into `folder` and return the folder.

    `DiffusionPipeline.from_pretrained(folder)` loads it without a network. It runs at 64 × 64 pixels (the default
    of the U-Net pipelines; Flux must be told `height` and `width`).
    The same seed makes the same weights. Raises UsageError for an architecture without a blueprint.
    """
    import diffusers

    plan = blueprint(architecture)
    parts: dict[str, Any] = {part.name: make_part(part, seed=seed + at) for at, part in enumerate(plan.parts)}
    tokenizers = {name: _TOKENIZERS[kind]() for name, kind in plan.tokenizers.items()}
    absent = dict.fromkeys(plan.absent)
    pipeline = getattr(diffusers, plan.pipeline)(**parts, **tokenizers, **absent, **(plan.options or {}))
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_part(part: Part, *, seed: int = 0) -> Any:
    """The model (in evaluation mode, float32) or scheduler that `part` describes; weights depend on `seed` alone."""
    import diffusers
    import torch
    import transformers

    cls = getattr(diffusers if part.library == "diffusers" else transformers, part.class_name)
    if not part.is_model:
        return cls(**part.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(**part.config) if part.library == "diffusers" else cls(cls.config_class(**part.config))
        _seed_weights(model, seed)
    return model.eval()


def make_clip_tokenizer() -> Any:
    """A CLIP tokenizer of `VOCABULARY_CLIP` symbols: bytes in and at the end of words, two marks."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    special = ("<|startoftext|>", "<|endoftext|>")
    symbols = [*letters, *(letter + "</w>" for letter in letters), *special]
    return transformers.CLIPTokenizer(
        vocab={symbol: at for at, symbol in enumerate(symbols)}, merges=[], model_max_length=77
    )


def make_t5_tokenizer() -> Any:
    """A T5 tokenizer (unigram) of printable ASCII and a few letter pairs, within `VOCABULARY_T5` symbols."""
    import transformers

    characters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -2.0)]
    pieces += [(character, -4.0) for character in characters] + [(pair, -5.0) for pair in PAIRS]
    return transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=PIXELS)


_TOKENIZERS = {"clip": make_clip_tokenizer, "t5": make_t5_tokenizer}


def _seed_weights(model: nn.Module, seed: int) -> None:
    """Weights as the class draws them, save where it draws none: norms around one, biases around zero, wide enough
    that every module shows in the picture.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            bias = getattr(module, "bias", None)
            if isinstance(weight, torch.Tensor):
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    fan_in = weight[0].numel()
                    weight.copy_(torch.randn(weight.shape, generator=generator) / fan_in**0.5)
                elif weight.ndim == 1:
                    weight.copy_(1 + SPREAD_BIAS * torch.randn(weight.shape, generator=generator))
                else:
                    weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
            if isinstance(bias, torch.Tensor):
                bias.copy_(SPREAD_BIAS * torch.randn(bias.shape, generator=generator))
