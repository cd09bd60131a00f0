"""Patterns of a PEFT configuration speak of the modules that PEFT itself would have them speak of."""

import json
import random
import re
import time

import pytest
import torch

import loratools
from loratools.adapters.expressions import expression
from loratools.errors import UnsupportedFile
from loratools.formats.patterns import matching
from tests.formats.making import PEFT, write_peft

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
    r"(\w+\.)*to_q",
    r"(?:.*\.)?(single_)?transformer_blocks\.([0-9]|1[0-9])\.(attn|.*)\.(to_[qkv]|proj_.*)",
    r"((single_)?transformer_blocks(\.\d+)+\.)+.+",
    r"(?=text).*proj",
)
# What takes Python's own matcher for ever over a name of some hundred letters.
HOSTILE = (
    r"(a+)+b",
    r"(a|a)*b",
    r"(a?){40}a{40}b",
    r"(.*)*(.*)*b",
    r".*.*.*.*.*.*.*b",
    r"((a*)*|(a+)+)+b",
    r"(a|aa)+b",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_match_is_pefts(name):
    from peft.utils.other import get_pattern_key

    for first in PATTERNS:
        for second in PATTERNS:
            keys = dict.fromkeys((first, second))
            table = {key: at for at, key in enumerate(keys)}
            chosen = get_pattern_key(list(keys), name)
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


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hostile_pattern_takes_no_time_that_anyone_notices(pattern):
    start = time.process_time()
    for name in ("a" * 300, "x." + "a" * 300, "a" * 60 + "b"):
        matching({pattern: 1}, [name])
    assert matching({pattern: 1}, ["x"]) is None
    assert time.process_time() - start < 1


def sentence(dice, depth):
    """A random expression over a few letters."""
    if not depth:
        return dice.choice(["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", "0", r"\w", "^", "$", "a{2}", "[0-9.]"])
    kind = dice.random()
    if kind < 0.3:
        return sentence(dice, depth - 1) + sentence(dice, depth - 1)
    if kind < 0.5:
        return f"({sentence(dice, depth - 1)}|{sentence(dice, depth - 1)})"
    if kind < 0.8:
        return f"({sentence(dice, depth - 1)}){dice.choice(['*', '+', '?', '{0,2}', '{1,3}', '*?'])}"
    return sentence(dice, depth - 1)


def test_states_match_what_pythons_matcher_matches():
    dice, slow = random.Random(5), 0
    for _ in range(3000):
        text = rf"(.*\.)?({sentence(dice, 3)})$"
        try:
            theirs = re.compile(text)
        except re.error:
            continue
        ours = expression(text)
        slow += not ours.quick
        for _ in range(4):
            name = "".join(dice.choice("ab.01\n") for _ in range(dice.randrange(8)))
            assert ours.matches(name) == (theirs.match(name) is not None), (text, name)
    assert slow > 500


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", [r"(?=(a+)+$)a", r"(a+)+\1b", "a" * 70000 + "*", "(" * 5000 + ")" * 5000])
def test_a_pattern_without_bounds_is_refused_by_name(field, pattern, tmp_path):
    tensors = {f"base_model.model.{'a' * 60}{suffix}": torch.ones(2, 2) for suffix in PEFT.values()}
    folder = write_peft(tensors, tmp_path / "in", **{field: {pattern: 2}})
    with pytest.raises(UnsupportedFile) as refusal:
        loratools.inspect(folder)
    assert (refusal.value.path, refusal.value.key) == (str(folder), field)
    assert pattern[:20] in refusal.value.message
    assert json.dumps(refusal.value.to_dict())


def test_a_hostile_list_of_feedforward_modules_stops_nothing(tmp_path):
    stem = f"base_model.model.{'a' * 60}"
    tensors = {f"{stem}.ia3_l": torch.ones(4, 1)}
    folder = write_peft(tensors, tmp_path / "in", peft_type="IA3", feedforward_modules="(a+)+b")
    assert loratools.inspect(folder).document["kinds"] == ["ia3"]
