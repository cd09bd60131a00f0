"""What a pipeline consists of: parts with their classes and configurations, and the tokenizers beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Library = Literal["diffusers", "transformers"]
Size = Literal["tiny", "full"]

END_OF_TEXT = "<|endoftext|>"
"""CLIP's mark at the end of a text, with which most models also pad."""


@dataclass(frozen=True)
class Part:
    """One component of a pipeline: a model or scheduler class of `library`, and its configuration."""

    name: str
    library: Library
    class_name: str
    config: Mapping[str, Any]

    @property
    def is_model(self) -> bool:
        """Whether it has weights."""
        return not self.class_name.endswith("Scheduler")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer: its kind, how many tokens it knows, the longest text, the token that fills shorter ones, and how
    many of T5's sentinels (`<extra_id_0>`, …) end the vocabulary.
    """

    kind: Literal["clip", "t5"]
    tokens: int
    length: int = 77
    padding: str = END_OF_TEXT
    sentinels: int = 0


@dataclass(frozen=True)
class Blueprint:
    """A whole pipeline: its diffusers class, the parts, the tokenizers by name, the components left out, and the height
    and width in pixels at which it is meant to run.
    """

    architecture: str
    pipeline: str
    pixels: int
    parts: tuple[Part, ...]
    tokenizers: Mapping[str, Tokenizer]
    absent: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The names of the text encoders, in order."""
        return tuple(part.name for part in self.parts if part.name.startswith("text_encoder"))

    @property
    def denoiser(self) -> str:
        """The name of the component that removes noise."""
        return next(part.name for part in self.parts if part.name in ("unet", "transformer"))

    def part(self, name: str) -> Part:
        """The part of that name; raises KeyError where there is none."""
        for entry in self.parts:
            if entry.name == name:
                return entry
        raise KeyError(name)
