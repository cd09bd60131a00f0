"""The published matrix of what diffusers and PEFT make of files still holds, for a few of its cells."""

import json
import random

import pytest

from benchmarks.loading_matrix import ARCHITECTURES, HALVES, RESULTS, cell, sorts

CELLS = json.loads(RESULTS.read_text(encoding="utf-8"))["cells"]
MADE = sorted((name, sort) for name, found in CELLS.items() for sort, known in found.items() if "after" in known)
CHOSEN = random.Random(6).sample(MADE, 3)


def test_the_matrix_is_whole():
    assert tuple(CELLS) == ARCHITECTURES
    assert all(list(CELLS[name]) == list(sorts(name)) for name in ARCHITECTURES)
    assert all({"before", *HALVES} <= known.keys() for name, sort in MADE for known in [CELLS[name][sort]])


def test_nothing_is_wrong_after_a_conversion():
    halves = [CELLS[name][sort][half] for name, sort in MADE for half in HALVES]
    assert {half["outcome"] for half in halves} <= {"ok", "refused"}
    assert all(CELLS[name][sort]["after"]["outcome"] == "ok" for name, sort in MADE)
    assert all(half["why"] for half in halves if half["outcome"] == "refused")


@pytest.mark.parametrize(("architecture", "sort"), CHOSEN)
def test_a_cell_is_as_published(architecture, sort, pipeline, tmp_path):
    found = cell(sorts(architecture)[sort], pipeline(architecture), tmp_path / "files", architecture)
    published = CELLS[architecture][sort]
    for half, answer in found.items():
        assert (answer["outcome"], answer.get("wrong")) == (published[half]["outcome"], published[half].get("wrong"))
