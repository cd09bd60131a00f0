"""Row: one line of a loader's table, and the first that fits a layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from loratools.formats.loading import Layer, Sort, Subject, Verdict, fails


class Row(NamedTuple):
    """A verdict for the layers that fit all of it; what is empty or None asks for nothing.

    `styles` and `words` are of the prefix, `families` of the suffixes, `native` whether the names are other than those
    of diffusers and transformers; a layer needs all `marks` and none of `unless`; `paths` are beginnings of its path,
    `match` a regular expression that is searched for in it, `spelt` one in the layer's name as the file has it,
    `renamed` whether the file names the layer itself by other words, `scaled` whether its factors are multiplied by
    another number than 1; `metadata` and `folder` are about the whole file.
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
    match: str = ""
    spelt: str = ""
    renamed: bool | None = None
    scaled: bool | None = None
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
        """Whether the row speaks of layers of that sort, their names and scales left aside."""
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

    def names(self, layer: Layer) -> bool:
        """Whether the row speaks of a layer of that name and scale."""
        return (
            (not self.paths or layer.path.startswith(self.paths))
            and (not self.match or re.search(self.match, layer.path) is not None)
            and (not self.spelt or re.search(self.spelt, layer.stem) is not None)
            and (self.renamed is None or self.renamed != layer.stem.endswith((layer.path, layer.flat_path)))
            and (self.scaled is None or self.scaled == (float(layer.adapter.scale) != 1.0))
        )


_BESIDE = ("lora", "loha", "lokr")
# sd-scripts, musubi-tuner and the web UI's own networks know no such key; LyCORIS and the web UI only that of a `diff`.
NO_BIAS = Row(fails("wrong: a bias beside factors (diff_b) is left out", "read"), kinds=_BESIDE, marks=("bias_diff",))


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
            if row.names(layer):
                found.append(row.verdict)
                break
        else:
            found.append(otherwise)
    return found
