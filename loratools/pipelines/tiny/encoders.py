"""The text encoders of tiny pipelines, and the tokenizers that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loratools.pipelines.parts import Part, Tokenizer

VOCABULARY_CLIP = 514
"""Two symbols for each byte (inside and at the end of a word), then the start and the end of a text."""
VOCABULARY_T5 = 256
"""<pad>, </s>, <unk>, the characters, and some runs of letters."""
VOCABULARY = 1024
"""Of language models: marks, bytes, the characters, and what common words are merged from."""

CLIP = Tokenizer("clip", VOCABULARY_CLIP)

_QWEN_TURNS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MISTRAL_TURNS = (
    "{% for message in messages %}{% for piece in message.content %}{{ piece.text }}\n{% endfor %}{% endfor %}"
)

GEMMA = Tokenizer("gemma", VOCABULARY, length=512, padding="<pad>")
LLAMA = Tokenizer("llama", VOCABULARY, length=512, padding="<pad>")
MISTRAL = Tokenizer("llama", VOCABULARY, length=512, padding="<pad>", turns=_MISTRAL_TURNS)
QWEN = Tokenizer("qwen", VOCABULARY, length=1200, turns=_QWEN_TURNS)


def t5_tokenizer(length: int) -> Tokenizer:
    """T5's, for texts of at most `length` tokens."""
    return Tokenizer("t5", VOCABULARY_T5, length=length, padding="<pad>")


def clip(name: str, hidden: int, *, projection: int, activation: str, with_projection: bool = False) -> Part:
    """A CLIP text encoder; `with_projection` for the class that has one."""
    config = {
        "vocab_size": VOCABULARY_CLIP,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "projection_dim": projection,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "hidden_act": activation,
        "bos_token_id": VOCABULARY_CLIP - 2,
        "eos_token_id": VOCABULARY_CLIP - 1,
        "pad_token_id": VOCABULARY_CLIP - 1,
    }
    return Part(name, "transformers", "CLIPTextModelWithProjection" if with_projection else "CLIPTextModel", config)


def t5(name: str, width: int, class_name: str = "T5EncoderModel") -> Part:
    """A T5 1.1 encoder; UMT5's class has a bias of positions in every layer."""
    config = {
        "vocab_size": VOCABULARY_T5,
        "d_model": width,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    return Part(name, "transformers", class_name, config)


def language_model(width: int, layers: int = 2, **more: Any) -> Mapping[str, Any]:
    """The configuration of a decoder of Llama's sort."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        **more,
    }
