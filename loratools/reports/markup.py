"""HTML and SVG elements whose text is always text: what is not made here is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from loratools.reports.text import shown

_VOID = frozenset({"br", "hr", "img", "input", "meta"})

Child = object | None


class Markup(str):
    """Markup that `element` and `joined` made; any other string is text."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as text: every sign that means something in HTML is escaped."""
    return value if isinstance(value, Markup) else Markup(escape(shown(value), quote=True))


def joined(children: Iterable[Child]) -> Markup:
    """Children one after the other; None is nothing."""
    return Markup("".join(text(child) for child in children if child is not None))


def element(name: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """One element. An attribute of None or False is left out, True stands alone; class_ is class, data_at data-at."""
    opened = [name]
    for attribute, value in attributes.items():
        if value is None or value is False:
            continue
        spelt = attribute.rstrip("_").replace("_", "-")
        opened.append(spelt if value is True else f'{spelt}="{text(value)}"')
    start = f"<{' '.join(opened)}>"
    return Markup(start if name in _VOID else f"{start}{joined(children)}</{name}>")
