"""Tokenizers made on the spot: no download, every id within the vocabulary, special tokens where models expect them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice, product
from string import ascii_lowercase
from typing import Any

from loratools.pipelines.parts import END_OF_TEXT, Tokenizer

START_OF_TEXT = "<|startoftext|>"


def make_tokenizer(plan: Tokenizer) -> Any:
    """A tokenizer of `plan.tokens` tokens, as `plan` describes it."""
    return _MAKERS[plan.kind](plan)


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

    pieces = [(plan.padding, 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -2.0)]
    pieces += [(chr(code), -4.0) for code in range(33, 127)]
    pieces += [(run, -3.0 - len(run)) for run in islice(_runs(), plan.tokens - plan.sentinels - len(pieces))]
    pieces += [(f"<extra_id_{at}>", 0.0) for at in reversed(range(plan.sentinels))]
    return transformers.T5TokenizerFast(
        vocab=pieces, extra_ids=plan.sentinels, pad_token=plan.padding, model_max_length=plan.length
    )


def _runs() -> Iterator[str]:
    """Every run of lower-case letters, short ones first."""
    return ("".join(letters) for length in count(2) for letters in product(ascii_lowercase, repeat=length))


def _merges() -> Iterator[tuple[str, str]]:
    """The pairs of symbols that make those runs one letter at a time, each within a word and at its end."""
    for run in _runs():
        yield run[:-1], run[-1]
        yield run[:-1], run[-1] + "</w>"


_MAKERS: Mapping[str, Callable[[Tokenizer], Any]] = {"clip": _clip, "t5": _t5}
