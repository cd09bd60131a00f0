"""Tokenizers made on the spot: no download, every id within the vocabulary, special tokens where models expect them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count, islice, product
from string import ascii_lowercase
from typing import Any

from loratools.pipelines.parts import END_OF_TEXT, Tokenizer

START_OF_TEXT = "<|startoftext|>"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in the tokens of SentencePiece."""
BYTE_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""What stands for a space where every byte has a letter."""

WORDS = (
    "the", "a", "and", "of", "to", "in", "for", "with", "on", "user", "prompt", "image", "images", "picture", "video",
    "describe", "description", "main", "content", "theme", "color", "colors", "shape", "shapes", "size", "texture",
    "quantity", "text", "spatial", "relationships", "objects", "object", "actions", "events", "behaviors", "temporal",
    "physical", "movement", "changes", "background", "environment", "light", "style", "atmosphere", "camera",
    "angles", "movements", "transitions", "used", "following", "aspects", "detailing", "specifics", "details",
    "simple", "enhanced", "generate", "evaluate", "that", "you", "are", "an", "reasons", "about", "give",
    "structured", "responses", "focusing", "attribution", "without", "speculation", "only", "please",
)  # fmt: skip
"""Words of the instructions that pipelines put before a prompt: one token each, or the prompt would be cut off."""


def make_tokenizer(plan: Tokenizer) -> Any:
    """A tokenizer of `plan.tokens` tokens, as `plan` describes it."""
    return _MAKERS[plan.kind](plan)


def _bert(plan: Tokenizer) -> Any:
    """BERT's word pieces: the marks, printable ASCII at the beginning of a word and within it, runs of letters."""
    import transformers

    characters = [character for code in range(33, 127) if (character := chr(code)).lower() == character]
    pieces = [plan.padding, "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{item}" for item in characters)]
    pieces += islice((f"{inside}{run}" for run in _runs() for inside in ("", "##")), plan.tokens - len(pieces))
    return transformers.BertTokenizer(
        vocab={piece: at for at, piece in enumerate(pieces)}, pad_token=plan.padding, model_max_length=plan.length
    )


def _clip(plan: Tokenizer) -> Any:
    """CLIP's byte pairs: bytes within and at the end of a word, runs of letters merged from them, and the two marks
    last, where CLIP has them (49406 and 49407 of 49408).
    """
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    symbols = [*letters, *(letter + "</w>" for letter in letters)]
    merges = list(islice(_merges(), plan.tokens - len(symbols) - 2))
    symbols += [head + tail for head, tail in merges] + [START_OF_TEXT, END_OF_TEXT]
    return transformers.CLIPTokenizer(
        vocab={symbol: at for at, symbol in enumerate(symbols)},
        merges=merges,
        pad_token=plan.padding,
        model_max_length=plan.length,
    )


def _t5(plan: Tokenizer) -> Any:
    """T5's unigrams: printable ASCII and runs of letters, of which the longest that fits is taken."""
    import transformers

    pieces = [(plan.padding, 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, -2.0)]
    pieces += [(chr(code), -4.0) for code in range(33, 127)]
    pieces += [(run, -3.0 - len(run)) for run in islice(_runs(), plan.tokens - plan.sentinels - len(pieces))]
    pieces += [(f"<extra_id_{at}>", 0.0) for at in reversed(range(plan.sentinels))]
    return transformers.T5TokenizerFast(
        vocab=pieces, extra_ids=plan.sentinels, pad_token=plan.padding, model_max_length=plan.length
    )


def _qwen(plan: Tokenizer) -> Any:
    """Qwen's byte pairs: the bytes, common words, runs of letters, and the marks of a conversation last."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    marks = ["<|im_start|>", "<|im_end|>", END_OF_TEXT]
    vocabulary, merges = _language(sorted(ByteLevel.alphabet()), BYTE_SPACE, plan.tokens - len(marks))
    return transformers.Qwen2Tokenizer(
        vocab={token: at for at, token in enumerate([*vocabulary, *marks])},
        merges=merges,
        pad_token=plan.padding,
        model_max_length=plan.length,
        chat_template=plan.turns,
        extra_special_tokens=marks[:2],
    )


def _gemma(plan: Tokenizer) -> Any:
    """Gemma's byte pairs, with the marks first."""
    import transformers

    vocabulary, merges = _language(
        [plan.padding, "<eos>", "<bos>", "<unk>", "<mask>", *_fallback()], SPACE, plan.tokens
    )
    return transformers.GemmaTokenizer(
        vocab={token: at for at, token in enumerate(vocabulary)},
        merges=merges,
        pad_token=plan.padding,
        model_max_length=plan.length,
    )


def _llama(plan: Tokenizer) -> Any:
    """Llama's byte pairs, with the marks first, those of Llama 3's conversations among them."""
    import transformers

    turns = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    vocabulary, merges = _language(["<unk>", "<s>", "</s>", plan.padding, *turns, *_fallback()], SPACE, plan.tokens)
    return transformers.LlamaTokenizerFast(
        vocab={token: at for at, token in enumerate(vocabulary)},
        merges=merges,
        pad_token=plan.padding,
        model_max_length=plan.length,
        chat_template=plan.turns,
        extra_special_tokens=turns,
    )


def _fallback() -> list[str]:
    """The tokens of bytes that no other token covers, a space, and printable ASCII."""
    return [*(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *map(chr, range(33, 127))]


def _language(first: list[str], space: str, size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """A vocabulary of `size` tokens that begins with `first`, and the merges that make the rest of it."""
    words = ((space + word[:at], word[at]) for word in WORDS for at in range(len(word)))
    runs = ((run[:-1], run[-1]) for run in _runs())
    merges = list(islice(chain(dict.fromkeys(words), runs), size - len(first)))
    return [*first, *(head + tail for head, tail in merges)], merges


def _runs() -> Iterator[str]:
    """Every run of lower-case letters, short ones first."""
    return ("".join(letters) for length in count(2) for letters in product(ascii_lowercase, repeat=length))


def _merges() -> Iterator[tuple[str, str]]:
    """The pairs of symbols that make those runs one letter at a time, each within a word and at its end."""
    for run in _runs():
        yield run[:-1], run[-1]
        yield run[:-1], run[-1] + "</w>"


_MAKERS: Mapping[str, Callable[[Tokenizer], Any]] = {
    "bert": _bert,
    "clip": _clip,
    "gemma": _gemma,
    "llama": _llama,
    "qwen": _qwen,
    "t5": _t5,
}
