"""What a loader makes of a file: a verdict for each adapter, with the reason and how it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.formats.configs import DIFFUSERS_KEY, Config
from loratools.formats.parse import Reading
from loratools.formats.prefixes import prefixes
from loratools.formats.suffixes import BY_TEXT, OLD_SET_WEIGHT, cut

Evidence = Literal["run", "read", "reported", "unknown"]

# How the rows were come by: what was run, with which versions, and what was not.
RUN_WITH = "diffusers 0.42.1, peft 0.21.2, transformers 5.23"
EVIDENCE: Mapping[Evidence, str] = {
    "run": f"checked by running {RUN_WITH}",
    "read": "read in the runtime's source or documentation, not run",
    "reported": "reported by others, not run",
    "unknown": "not known",
}


class Reason(NamedTuple):
    """Why an adapter is not loaded with its own delta, and how that is known ("unknown": nobody has looked)."""

    text: str
    evidence: Evidence


class Verdict(NamedTuple):
    """One adapter: `loads` with the right delta, or not, or None where that is not known.

    `whole` is that of a loader which raises an exception: one such adapter, and none of its file is loaded.
    """

    loads: bool | None
    reason: Reason | None = None
    whole: bool = False


LOADS = Verdict(True)


def fails(text: str, evidence: Evidence) -> Verdict:
    """The verdict of an adapter that is left out, refused, or loaded with another delta."""
    return Verdict(False, Reason(text, evidence))


def refuses(text: str, evidence: Evidence = "run") -> Verdict:
    """The verdict of an adapter for whose sake the loader refuses the file."""
    return Verdict(False, Reason(f"refuses the file: {text}", evidence), whole=True)


def unknown(text: str) -> Verdict:
    """The verdict where nobody has looked, with what would have to be looked at."""
    return Verdict(None, Reason(text, "unknown"))


class Sort(NamedTuple):
    """What loaders look at in a layer, and most layers share: the beginning of its keys, their ends, and its kind.

    `style` and `word` are those of the prefix, `family` that of the factors' suffixes, `native` whether modules are
    named otherwise than diffusers or transformers name them; `marks` are the details that a row may ask for.
    """

    style: str
    word: str
    family: str
    native: bool
    kind: str
    component: str
    marks: frozenset[str]


class Layer(NamedTuple):
    """One adapter as loaders look at it."""

    adapter: Adapter
    sort: Sort

    @property
    def component(self) -> str:
        """The component that the adapter changes."""
        return self.sort.component

    @property
    def kind(self) -> str:
        """Its kind."""
        return self.sort.kind

    @property
    def marks(self) -> frozenset[str]:
        """The details that a row may ask for."""
        return self.sort.marks

    @property
    def path(self) -> str:
        """The first canonical path that it changes."""
        return self.adapter.target.paths[0]

    @property
    def flat_path(self) -> str:
        """The same as trainers write it into flat keys."""
        return self.path.replace(".", "_")

    @property
    def keys(self) -> Mapping[str, str]:
        """Its keys in the file by role; alpha is among them."""
        return self.adapter.origin.keys if self.adapter.origin else {}

    @property
    def stem(self) -> str:
        """What its keys have in common."""
        return self.adapter.origin.stem if self.adapter.origin else ""


class Subject(NamedTuple):
    """A parsed file as loaders are asked about it; `by_component` has the places of its layers, in file order."""

    reading: Reading
    architecture: str
    layers: tuple[Layer, ...]
    keys: tuple[str, ...]
    by_component: Mapping[str, Sequence[int]]

    @property
    def adapters(self) -> AdapterSet:
        """The parsed set."""
        return self.reading.adapters

    @property
    def folder(self) -> bool:
        """Whether it is a PEFT folder: weights beside a configuration."""
        return self.reading.opened.layout == "peft"

    @property
    def has_diffusers_metadata(self) -> bool:
        """Whether the file carries diffusers' own configuration block."""
        return DIFFUSERS_KEY in self.adapters.metadata

    def config(self, component: str) -> Config | None:
        """The configuration of a component, wherever it stood."""
        return self.adapters.configs.get(component) or self.adapters.configs.get("")


class Loading(NamedTuple):
    """How much of a file a runtime loads with the right delta, adapter by adapter."""

    runtime: str
    subject: Subject
    verdicts: tuple[Verdict, ...]
    reasons: tuple[tuple[Reason, tuple[str, ...]], ...] = ()

    @property
    def loaded(self) -> int:
        """The adapters that it is known to load with the right delta."""
        return sum(verdict.loads is True for verdict in self.verdicts)

    @property
    def unknown(self) -> int:
        """The adapters of which nobody knows."""
        return sum(verdict.loads is None for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """The share and the reasons, as the inspect document has them under `loaders`."""
        return {
            "loaded": self.loaded,
            "of": len(self.verdicts),
            "unknown": self.unknown,
            "reasons": [
                {"reason": reason.text, "count": len(stems), "evidence": EVIDENCE[reason.evidence]}
                for reason, stems in self.reasons
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every key of every adapter: whether it loads (null: not known), and why not."""
        return [
            {"key": key, "loads": verdict.loads, "reason": verdict.reason.text if verdict.reason else None}
            for layer, verdict in zip(self.subject.layers, self.verdicts, strict=True)
            for key in layer.keys.values()
        ]


def loading(runtime: str, subject: Subject, verdicts: Sequence[Verdict]) -> Loading:
    """The answer for one runtime, with the layers behind each reason, the most frequent first."""
    grouped: dict[Reason, list[str]] = {}
    for layer, verdict in zip(subject.layers, verdicts, strict=True):
        if verdict.reason is not None:
            grouped.setdefault(verdict.reason, []).append(layer.stem)
    ordered = sorted(grouped.items(), key=lambda item: -len(item[1]))
    return Loading(runtime, subject, tuple(verdicts), tuple((reason, tuple(stems)) for reason, stems in ordered))


def subject_of(reading: Reading) -> Subject:
    """The file as loaders look at it."""
    held = reading.adapters
    architecture = reading.settled or held.architectures[0]
    keys = tuple(key for part in reading.opened.parts for key in part.source)
    layers = _layers(held)
    by_component: dict[str, list[int]] = {}
    for at, layer in enumerate(layers):
        by_component.setdefault(layer.sort.component, []).append(at)
    return Subject(reading, architecture, layers, keys, by_component)


# Namings that are module names of diffusers or transformers; every other is a checkpoint's or a trainer's own.
_MODULE_NAMES = ("diffusers", "transformers", "flat", "")


def _sort(item: Adapter, ends: Sequence[str], naming: str, scaled: bool) -> Sort:  # noqa: FBT001 (an answer, no option)
    """The sort of an adapter whose keys go on with `ends` after their stem."""
    stem = item.origin.stem if item.origin else ""
    prefix, _ = next(prefixes(stem))
    marks: set[str] = set()
    family = ""
    for end in ends:
        row = BY_TEXT.get(end)
        if row is None:
            named = cut("x" + end)
            row = named.row if named else None
            if named is not None and named.adapter is not None:
                marks |= {"named"} if named.adapter == "default" else {"named", "named otherwise"}
        if row is not None and row.kind and not family:
            family = row.family
        if end.startswith((".dora_scale", ".lora_magnitude", OLD_SET_WEIGHT)):
            marks.add(end)
    if ".alpha" in ends:
        marks.add("alpha")
    elif scaled:
        marks.add("alpha elsewhere")
    marks |= {role for role in ("mid", "input_magnitude", "up_bias", "bias_diff") if role in item.factors}
    if item.kind in ("oft", "boft") and item.alpha.value:
        marks.add("constraint")
    component = item.target.component
    return Sort(prefix.style, prefix.word, family, naming not in _MODULE_NAMES, item.kind, component, frozenset(marks))


def _layers(held: AdapterSet) -> tuple[Layer, ...]:
    """Every adapter as loaders look at it."""
    namings = {name: spelling.naming for name, spelling in held.dialect.spellings.items()}
    sorts: dict[tuple[object, ...], Sort] = {}
    layers = []
    for item in held.adapters:
        origin = item.origin
        stem, keys = (origin.stem, origin.keys) if origin else ("", {})
        ends = tuple([key[len(stem) :] for key in keys.values()])
        value = item.alpha.value
        scaled = value is not None and "alpha" not in keys and float(item.scale) != 1.0
        constrained = item.kind in ("oft", "boft") and bool(value)
        # Sixteen characters tell every prefix from every other (`transformer.base` from `transformer.tran`).
        asked = (stem[:16], ends, item.kind, item.target.component, scaled, constrained)
        sort = sorts.get(asked)
        if sort is None:
            sort = sorts[asked] = _sort(item, ends, namings.get(item.target.component, ""), scaled)
        layers.append(Layer(item, sort))
    return tuple(layers)
