"""Patterns of a PEFT configuration speak of the modules that PEFT itself would have them speak of."""

import time

import pytest

from loratools.formats.patterns import matching

NAMES = (
    "proj_out",
    "single_transformer_blocks.0.proj_out",
    "transformer_blocks.10.attn.to_q",
    "transformer_blocks.1.attn.to_q",
    "text_model.encoder.layers.0.self_attn.q_proj",
    "a-b.c",
    "xproj_out",
)
PATTERNS = (
    "proj_out",
    "^proj_out",
    "to_q",
    "attn.to_q",
    "attn_to_q",
    "1.attn.to_q",
    "transformer_blocks.1.attn.to_q",
    "^transformer_blocks.1.attn.to_q",
    r"transformer_blocks\.1\.attn\.to_q",
    "to_q|q_proj",
    r"layers\.\d+\.self_attn\.(q|k)_proj",
    ".*to_q",
    "b.c",
    "a-b.c",
    "q_pro.",
    "nothing",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_match_is_pefts(name):
    other = pytest.importorskip("peft.utils.other")
    for first in PATTERNS:
        for second in PATTERNS:
            keys = dict.fromkeys((first, second))
            table = {key: at for at, key in enumerate(keys)}
            chosen = other.get_pattern_key(list(keys), name)
            # PEFT answers with the name itself where no key matches.
            assert matching(table, [name]) == table.get(chosen), (first, second)


def test_a_pattern_for_every_module_takes_no_time_that_anyone_notices():
    names = [
        f"down_blocks.{a}.attentions.{b}.attn{c}.to_{d}"
        for a in range(10)
        for b in range(25)
        for c in "12"
        for d in "qk"
    ]
    table = {f"^{name}": at for at, name in enumerate(names)}
    start = time.process_time()
    assert [matching(table, [name, f"x.{name}"]) for name in names] == list(range(1000))
    assert time.process_time() - start < 5
