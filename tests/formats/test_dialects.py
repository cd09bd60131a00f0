"""The list of what is read: every word that a file can get stands in it, and every key in it is known."""

import re
from pathlib import Path

import pytest

from loratools.formats import dialect
from loratools.formats.dialects import AS_IT_WAS, DIALECTS, REFUSED
from loratools.formats.format import NUMBERED
from loratools.formats.refused import FORMS
from loratools.formats.registry import FORMATS
from loratools.formats.suffixes import cut

README = Path(__file__).resolve().parents[2] / "README.md"
NUMBERS = ("cloneofsimo", "stable-cascade")


def test_every_word_of_a_key_grammar_is_listed():
    words = {*dialect._WORDS.values(), *dialect._FAMILIES.values(), *dialect._NAMINGS.values(), "bare", "bfl", "comfy"}
    assert {row.id for row in DIALECTS} == words | {form.id for form in FORMATS} | {form.name for form in FORMS}
    assert [row.id for row in DIALECTS] == sorted(row.id for row in DIALECTS)


def test_what_is_written_is_a_format_of_that_name():
    written = {row.written for row in DIALECTS} - {AS_IT_WAS, REFUSED}
    assert written == {form.id for form in FORMATS}
    assert all(row.written in (row.id, AS_IT_WAS, REFUSED) for row in DIALECTS)


@pytest.mark.parametrize("row", DIALECTS, ids=lambda row: row.id)
def test_its_key_is_one(row):
    if row.id in NUMBERS:
        assert row.key == NUMBERED or re.fullmatch(r"unet:\d+:up", row.key)
    else:
        assert cut(row.key) is not None


def test_the_readme_has_the_list():
    text = README.read_text(encoding="utf-8").partition("<!-- formats -->")[2].partition("<!-- end of formats -->")[0]
    rows = [tuple(cell.strip(" `") for cell in line.strip("| ").split(" | ")) for line in text.strip().splitlines()[2:]]
    assert rows == [(row.id, row.title, ", ".join(row.writers), row.key, row.written) for row in DIALECTS]
