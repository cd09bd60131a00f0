"""What a pipeline consists of: parts with their classes and configurations, and the tokenizers beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Library = Literal["diffusers", "transformers"]
Size = Literal["tiny", "full"]

DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
"""Components that remove noise, as pipelines call them."""

END_OF_TEXT = "<|endoftext|>"
"""CLIP's mark at the end of a text, with which most models also pad."""


@dataclass(frozen=True)
class Part:
    """One component of a pipeline: its class in `library`, which is a model, scheduler or image processor, and its
    configuration.
    """

    name: str
    library: Library
    class_name: str
    config: Mapping[str, Any]

    @property
    def is_model(self) -> bool:
        """Whether it has weights."""
        return not self.class_name.endswith(("Scheduler", "Processor"))


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer: its kind, how many tokens it knows, the longest text, the token that fills shorter ones, how many of
    T5's sentinels (`<extra_id_0>`, …) end the vocabulary, and the Jinja template of a conversation's turns.
    """

    kind: Literal["bert", "clip", "gemma", "llama", "qwen", "t5"]
    tokens: int
    length: int = 77
    padding: str = END_OF_TEXT
    sentinels: int = 0
    turns: str | None = None


@dataclass(frozen=True)
class Blueprint:
    """A whole pipeline: its diffusers class, the parts, the tokenizers by name, the components left out, and the height
    and width in pixels at which it is meant to run.

    `frames` is the length of a short film, where it makes films. `variant` tells it from the architecture's other ones.
    """

    architecture: str
    pipeline: str
    pixels: int
    parts: tuple[Part, ...]
    tokenizers: Mapping[str, Tokenizer]
    absent: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    frames: int | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        """The word by which it is asked for: its architecture's id, and the variant where it is not the first one."""
        return f"{self.architecture}-{self.variant}" if self.variant else self.architecture

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The names of the text encoders, in order."""
        return tuple(part.name for part in self.parts if part.name.startswith("text_encoder"))

    @property
    def denoisers(self) -> tuple[str, ...]:
        """The names of the components that remove noise."""
        return tuple(part.name for part in self.parts if part.name in DENOISERS)

    @property
    def paints(self) -> bool:
        """Whether it makes pictures, of a size that can be asked for; a prior makes embeddings."""
        return "prior" not in self.denoisers

    def part(self, name: str) -> Part:
        """The part of that name; raises KeyError where there is none."""
        for entry in self.parts:
            if entry.name == name:
                return entry
        raise KeyError(name)
