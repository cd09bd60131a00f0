"""The page: one file that fetches nothing, in which every name is text."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from loratools.reports.evidence import BASE, REFERENCE, Control, Figure, ModuleRow, Panel, Route, Scene
from loratools.reports.page import page
from tests.reports.made import evidence, picture, scene

HOSTILE = (
    "<script>document.documentElement.dataset.error = 'ran'</script>",
    '"><img src=x onerror="document.documentElement.dataset.error=\'ran\'">',
    "' onmouseover='alert(1)' x='",
    "</title></style></script><h1>gone</h1>",
    "$body ${title} $$ {{7*7}}",
    "&lt;b&gt; &amp; &#x3c;",
    "javascript:alert(1)",
    "<!-- <script>",
    "]]><svg onload=alert(1)>",
)


class Reader(HTMLParser):
    """What a browser would see: elements with their attributes, and text outside of style and script."""

    def __init__(self, content):
        super().__init__(convert_charrefs=True)
        self.elements = []
        self.words = []
        self.raw = {"style": [], "script": []}
        self.inside = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in self.raw:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if self.inside:
            self.raw[self.inside[-1]].append(data)
        else:
            self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def hostile(name):
    """Evidence in which every text is the same hostile one."""
    made = scene(name)
    panels = [made.panel(BASE), made.panel(REFERENCE)]
    pixels = picture(3)
    panels.append(Panel(name, "differs", pixels, (Figure(name, 1.0, 2.0, unit=name, remark=name),), (name,)))
    panels.append(Panel(name + "2", "refused", None, (), (name,)))
    return evidence(
        (Scene(name, 0, tuple(panels)),),
        title=name,
        summary=name,
        facts={name: name},
        routes=(Route(name, "fail", (Figure(name, 1.0, 0.5, 0.1),), name, (name,), (name,)),),
        modules=(ModuleRow(name, name, name, 1.0),),
        repeat=name,
        versions={name: name},
        hashes={name: name},
        remarks=(name,),
    )


def test_the_same_evidence_gives_the_same_bytes():
    assert page(evidence()) == page(evidence())


def test_nothing_is_fetched_and_the_policy_forbids_it():
    found = Reader(page(evidence()))
    addresses = [
        value
        for _, attributes in found.elements
        for name, value in attributes.items()
        if name in {"src", "href", "srcset", "action", "data", "poster", "background"}
    ]
    assert addresses
    assert all(address.startswith("data:image/") for address in addresses)
    assert not re.search(r"url\(|@import|https?://", "".join(found.raw["style"] + found.raw["script"]))
    policy = next(item["content"] for item in found.named("meta") if item.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256("".join(found.raw[kind]).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not [item for _, item in found.elements if any(name == "style" or name[:2] == "on" for name in item)]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name):
    plain, found = Reader(page(hostile("plain"))), Reader(page(hostile(name)))
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert [set(item) for _, item in found.elements] == [set(item) for _, item in plain.elements]
    assert found.raw == plain.raw
    cut = len(name) > 60  # by the list of scenes
    assert found.text.count(name) == plain.text.count("plain") - cut


def test_characters_that_hide_or_reorder_are_shown_as_their_escapes():
    text = Reader(page(evidence(title="a\u202eb\x1b[31m\x00c\ud800"))).text
    assert "a\\u202eb\\x1b[31m\\x00c\\ud800" in text
    assert not re.search("[\u202e\x00\x1b\ud800]", text)


def test_everything_that_was_found_stands_in_the_page():
    given = evidence()
    text = Reader(page(given)).text
    for word in (
        given.title,
        given.summary,
        given.repeat,
        *given.facts.values(),
        *given.versions.values(),
        *given.hashes.values(),
        *(row.name for rows in (given.routes, given.noise, given.controls, given.laws) for row in rows),
        *(remark for row in given.routes for remark in row.remarks),
        *(item.prompt for item in given.scenes),
        *(row.path for row in given.modules[:8]),  # three of one route, the worst five of the other
        "the worst 5 of each route, of 60 in all",
        "5.7e-4",  # a control's figure
        "limit 1e-5 · noise 9.4e-7",
        "infinite",  # the PSNR of equal pictures
        "data_range 255",  # how a figure was measured
    ):
        assert word in text, word


def test_every_picture_is_in_the_page_as_it_was_made():
    given = evidence()
    found = {
        (item["data-scene"], item["data-route"]): item
        for item in Reader(page(given)).named("img")
        if "data-scene" in item
    }
    panels = {
        (str(at), panel.route): panel
        for at, one in enumerate(given.scenes)
        for panel in one.panels
        if panel.pixels is not None
    }
    assert set(found) == set(panels)
    for place, panel in panels.items():
        content = base64.b64decode(found[place]["src"].partition("base64,")[2])
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), panel.pixels)


def test_large_pictures_are_shown_smaller_and_that_is_said(monkeypatch):
    monkeypatch.setattr("loratools.reports.gallery.EMBEDDED_PIXELS", 6 * 64 * 64 // 4)
    found = Reader(page(evidence((scene(),))))
    assert "shown here at 50% of their size" in found.text
    assert {(item["width"], item["height"]) for item in found.named("img") if "data-scene" in item} == {("32", "32")}


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_the_verdict_is_the_first_word(verdict):
    words = Reader(page(evidence(verdict=verdict))).text.partition("tiny-sdxl")[2]
    assert words.split()[1].startswith(verdict.upper())


def test_a_report_without_pictures_rows_or_facts_is_a_page():
    bare = evidence(
        (), routes=(), modules=(), noise=(), controls=(), laws=(), facts=None, versions=None, hashes=None, repeat=""
    )
    found = Reader(page(bare))
    assert bare.summary in found.text
    assert not found.named("table")
    assert not found.named("img")


def test_every_cell_of_a_table_names_its_column_for_narrow_screens():
    cells = Reader(page(evidence())).named("td")
    assert cells
    assert all(cell["data-label"] for cell in cells)


def test_a_mistake_that_was_caught_is_right_and_one_that_was_missed_is_not():
    def marked(caught):
        control = Control("scale off", caught, (Figure("latents", 1.0 if caught else 1e-7, limit=1e-5),))
        only = evidence((), routes=(), modules=(), noise=(), laws=(), controls=(control,))
        return [item["class"] for item in Reader(page(only)).named("span") if "figure" in (item.get("class") or "")]

    assert marked(True) == ["figure"]
    assert marked(False) == ["figure over"]
