"""Row: one line of a loader's table, and the first that fits a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loratools.formats.loading import Sort, Subject, Verdict


class Row(NamedTuple):
    """A verdict for the layers that fit all of it; what is empty or None asks for nothing.

    `styles` and `words` are of the prefix, `families` of the suffixes, `native` whether the names are other than those
    of diffusers and transformers; a layer needs all `marks` and none of `unless`; `paths` are beginnings of its path;
    `metadata` and `folder` are about the whole file.
    """

    verdict: Verdict
    architectures: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    native: bool | None = None
    marks: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    metadata: bool | None = None
    folder: bool | None = None

    def asks_for(self, subject: Subject) -> bool:
        """Whether the file as a whole is one that the row speaks of."""
        return (
            (not self.architectures or subject.architecture in self.architectures)
            and self.metadata in (None, subject.has_diffusers_metadata)
            and self.folder in (None, subject.folder)
        )

    def fits(self, sort: Sort) -> bool:
        """Whether the row speaks of layers of that sort, their paths left aside."""
        return (
            (not self.styles or sort.style in self.styles)
            and (not self.words or sort.word in self.words)
            and (not self.families or sort.family in self.families)
            and (not self.kinds or sort.kind in self.kinds)
            and (not self.components or sort.component in self.components)
            and self.native in (None, sort.native)
            and sort.marks.issuperset(self.marks)
            and sort.marks.isdisjoint(self.unless)
        )


def by_rows(rows: Sequence[Row], subject: Subject, otherwise: Verdict) -> list[Verdict]:
    """The verdict of the first row that fits each layer; layers of one sort are looked up once."""
    asked = [row for row in rows if row.asks_for(subject)]
    known: dict[Sort, list[Row]] = {}
    found = []
    last, fitting = None, asked
    for layer in subject.layers:
        sort = layer.sort
        if sort is not last:
            if sort not in known:
                known[sort] = [row for row in asked if row.fits(sort)]
            last, fitting = sort, known[sort]
        for row in fitting:
            if not row.paths or layer.path.startswith(row.paths):
                found.append(row.verdict)
                break
        else:
            found.append(otherwise)
    return found
