"""Words on a terminal: escaping, progress, the page."""

import io

import pytest

from loratools.cli import progress as module
from loratools.cli import render
from loratools.cli.progress import Progress
from loratools.cli.render import Page, typeset
from loratools.cli.text import human_bytes, visible


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("unet.conv_in", "unet.conv_in"),
        ("Größe 大きさ 🎨", "Größe 大きさ 🎨"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u200b\ufeff\u2028", r"\u200b\ufeff\u2028"),
        ("\udc80", r"\udc80"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_what_steers_or_hides_is_spelt_out_and_the_rest_is_left(raw, shown):
    assert visible(raw) == shown


def test_markup_in_cells_is_text():
    page = Page()
    page.table(("a", ">b"), [("[red]x[/red]", ":smile:"), ("y", 2)])
    page.facts([("[bold]", "[/nothing]"), ("absent", None)])
    text = typeset(page, styled=False)
    assert "[red]x[/red]" in text
    assert ":smile:" in text
    assert "[/nothing]" in text
    assert "absent" not in text


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (56_900_000, "56.9 MB"), (2 * 10**12, "2.0 TB")]
)
def test_sizes_are_decimal(count, shown):
    assert human_bytes(count) == shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def work(clock, monkeypatch, stream, seconds, quiet=False):
    monkeypatch.setattr(module.sys, "stderr", stream)
    with Progress("convert", quiet=quiet) as show:
        for step in range(101):
            show(step * 10**6, 10**8)
            clock[0] += seconds / 100
    return stream.getvalue()


def test_a_pipe_gets_a_line_every_tenth(clock, monkeypatch):
    lines = work(clock, monkeypatch, io.StringIO(), seconds=100).splitlines()
    assert [line.split(" ")[1] for line in lines[:-1]] == [f"{tenth}0" for tenth in range(1, 10)]
    assert lines[-1] == "convert: 100.0 MB written, 1.0 MB/s; now proving"
    assert lines[4] == "convert: 50 %, 50.0 MB of 100.0 MB, 1.0 MB/s, 50 s left"


def test_a_terminal_gets_one_living_line_that_is_wiped_at_the_end(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = work(clock, monkeypatch, Terminal(), seconds=100)
    assert "\n" not in text
    assert "\x1b" not in text
    assert "50 s left" in text
    assert text.endswith("\r")
    assert text.split("\r")[-2].strip() == ""


def test_the_living_line_never_folds(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    text = work(clock, monkeypatch, Terminal(), seconds=100)
    assert max(len(line) for line in text.split("\r")) == 29


@pytest.mark.parametrize("width", [20, 40])
def test_a_table_that_a_narrow_terminal_would_cut_words_of_is_stacked(monkeypatch, width):
    monkeypatch.setattr(render.sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    page = Page()
    page.table(("format", ">readers"), [("diffusers-like-name", "somebody-or-other-reads-it")])
    lines = typeset(page, styled=False).splitlines()
    assert lines[0] == "diffusers-like-name"
    assert "".join(line.strip() for line in lines[1:]).replace(" ", "") == "readers:somebody-or-other-reads-it"
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize(("seconds", "quiet"), [(0.9, False), (100, True)])
def test_short_or_quiet_work_shows_nothing(clock, monkeypatch, seconds, quiet):
    assert work(clock, monkeypatch, io.StringIO(), seconds=seconds, quiet=quiet) == ""
