"""The page: one self-contained HTML file, which can fetch nothing and run nothing but its own script."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from string import Template

from loratools import __version__
from loratools.reports import gallery, sections, viewer
from loratools.reports.evidence import Evidence
from loratools.reports.markup import Markup, joined, text


def page(evidence: Evidence) -> str:
    """The document, all pictures in it; the same for the same evidence."""
    body = joined(
        (
            sections.header(evidence),
            viewer.viewer(evidence.scenes),
            gallery.pictures(evidence.scenes),
            sections.figures(evidence),
            sections.repeating(evidence),
        )
    )
    return framed(f"{evidence.verdict}: {evidence.title}", body)


def framed(title: str, body: Markup) -> str:
    """A whole document around `body`, with the style and the script of our pages allowed by their hashes alone."""
    style, script = _part("page.css"), _part("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return Template(_part("page.html")).substitute(
        policy=policy, version=__version__, title=text(title), style=style, script=script, body=body
    )


def _part(name: str) -> str:
    return (files("loratools.reports") / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + b64encode(sha256(content.encode()).digest()).decode("ascii")
