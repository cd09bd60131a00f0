"""A report's folder: whole or not at all, and only where it may be."""

import json

import pytest

from loratools.errors import OutputExists, OutputRefused, PathNotFound
from loratools.reports.evidence import Figure
from loratools.reports.report import guard_report, write_report
from loratools.reports.text import beside, number, shown, spoken
from tests.reports.made import evidence, scene

SMALL = evidence((scene(),))


def test_a_report_is_a_page_a_sheet_and_the_document(tmp_path):
    paths = write_report(tmp_path / "report", SMALL)
    assert [path.name for path in paths] == ["index.html", "contact-sheet.png", "report.json"]
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)
    assert json.loads(paths[2].read_text()) == {"schema": "loratools.validate/1", "verdict": "pass"}
    again = write_report(tmp_path / "again", SMALL)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_a_report_without_pictures_or_document_is_a_page(tmp_path):
    assert [path.name for path in write_report(tmp_path / "report", evidence((), document=None))] == ["index.html"]


def test_a_report_is_replaced_only_when_asked_and_never_with_what_is_not_its_own(tmp_path):
    folder = tmp_path / "report"
    write_report(folder, SMALL)
    with pytest.raises(OutputExists):
        write_report(folder, SMALL)
    write_report(folder, evidence((), document=None), overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["index.html"]
    (folder / "thesis.docx").write_text("years of work")
    with pytest.raises(OutputRefused, match="thesis"):
        guard_report(folder, overwrite=True)
    with pytest.raises(PathNotFound):
        guard_report(tmp_path / "nowhere" / "report")


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path / "report", evidence((), document={"value": float("nan")}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (None, "–"),
        (0.0, "0"),
        (1.0, "1"),
        (0.99961, "0.99961"),
        (0.99999999, "0.999999"),
        (1.0004, "1.0004"),
        (3.24e-6, "3.24e-6"),
        (1e-5, "1e-5"),
        (0.0831, "0.0831"),
        (63.14, "63.1"),
        (27000.4, "27,000"),
        (2.5e9, "2.5e9"),
        (float("inf"), "infinite"),
        (float("nan"), "NaN"),
    ],
)
def test_numbers_are_short_and_claim_no_more_than_they_are(value, word):
    assert number(value) == word


def test_a_figure_is_said_with_what_it_is_held_to():
    figure = Figure("latent error", 1.1e-6, limit=1e-5, floor=9.4e-7)
    assert spoken(figure) == "latent error 1.1e-6 (limit 1e-5 · noise 9.4e-7)"
    assert beside(Figure("PSNR", 40.0, limit=30, better="high", unit="dB")) == "at least 30"
    assert spoken(Figure("SSIM", None)) == "SSIM: not measured"


@pytest.mark.parametrize(
    ("value", "limit", "better", "within"),
    [(1, 2, "low", True), (2, 1, "low", False), (1, 1, "low", True), (1, 2, "high", False), (3, 2, "high", True)],
)
def test_a_figure_knows_whether_it_keeps_its_limit(value, limit, better, within):
    assert Figure("x", value, limit, better=better).within is within
    assert Figure("x", None, limit, better=better).within is None
    assert Figure("x", value, better=better).within is None


def test_text_keeps_what_people_write_and_shows_what_hides():
    assert shown("ночь 夜 👩‍🚀\n§") == "ночь 夜 👩‍🚀\n§"
    assert shown("a\u202e\x07\ufeff") == "a\\u202e\\x07\\ufeff"
