"""The tables of what diffusers' loaders of transformers take hold for all that was run, and for some run anew."""

import json
import random

import pytest

from benchmarks.loading_runs import RESULTS, run
from loratools.formats.loads_transformers import BY_ARCHITECTURE
from tests.judges.by_mixin import CASES

RUNS = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
CHOSEN = random.Random(6).sample(sorted((name, title) for name, found in RUNS.items() for title in found), 3)


def test_every_loader_was_run():
    mixins = {case.architecture: case.mixin for case in CASES}
    assert sorted(RUNS) == sorted(mixins)
    assert {name: loader.mixin for name, loader in BY_ARCHITECTURE.items()}.items() <= mixins.items()


def test_no_run_is_other_than_foretold():
    assert [(name, title) for name, found in RUNS.items() for title, row in found.items() if "differs" in row] == []


def test_what_the_tool_writes_for_diffusers_is_loaded_whole():
    written = {name: found["diffusers"] for name, found in RUNS.items()}
    assert [name for name, row in written.items() if row.get("right") != row.get("of")] == []


@pytest.mark.parametrize(("name", "title"), CHOSEN)
def test_a_spelling_is_loaded_as_it_was(name, title, tmp_path):
    case = next(case for case in CASES if case.architecture == name)
    assert run(case, tmp_path, (title,))[title] == RUNS[name][title]
