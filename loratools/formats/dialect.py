"""How most keys of a file are spelt, by component: prefix, naming, encoding, suffixes, and where its alphas stand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from loratools.adapters.adapter import Adapter
from loratools.formats.collect import Group, canonical_roles
from loratools.formats.detect import Place, Stem
from loratools.formats.opening import Opened
from loratools.formats.suffixes import Suffix
from loratools.model import Dialect, Spelling

# (prefix style, suffix family) → the format's word; what is not here is decided by the naming.
_WORDS = {
    ("component", "diffusers-old"): "diffusers-old",
    ("component", "kohya"): "onetrainer",
    ("component", "peft"): "diffusers",
    ("kohya", "kohya"): "kohya",
    ("lycoris", "kohya"): "lycoris",
    ("peft", "kohya"): "peft",
    ("peft", "peft"): "peft",
}
# namings that tell the word alone, and suffix families that do
_NAMINGS = {"animatediff": "animatediff", "xlabs": "xlabs"}
_FAMILIES = {"attn-procs": "diffusers-attn-procs"} | {
    name: name for name in ("cloneofsimo", "gguf", "hcp", "mlx", "stable-cascade")
}


def dialect_of(
    groups: Mapping[Stem, Group], places: Mapping[Stem, Place], adapters: Sequence[Adapter], opened: Opened
) -> Dialect:
    """The dialect of a file whose groups have their places."""
    votes: defaultdict[str, Counter[tuple[str, str, bool]]] = defaultdict(Counter)
    suffixes: defaultdict[str, defaultdict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    styles: Counter[tuple[str, str, str]] = Counter()
    spelt: Counter[tuple[str, str, str, str, Suffix]] = Counter()
    for stem, place in places.items():
        component, naming, start = place.component, place.naming, place.prefix
        flat = "." in place.placement.native and "." not in stem[1][len(start.text) :]
        votes[component][start.text, naming, flat] += 1
        for item in groups[stem].found.values():
            spelt[component, naming, start.style, item.cut.suffix, item.cut.row] += 1
    for (component, naming, style, suffix, row), count in spelt.items():
        for canonical in canonical_roles(row.role):
            suffixes[component][f"{row.kind}.{canonical}" if row.kind else canonical][suffix] += count
        if row.kind:
            styles[style, row.family, naming] += count
    spellings = {}
    for component, counter in votes.items():
        prefix, naming, _ = counter.most_common(1)[0][0]
        flat = any(was_flat for _, _, was_flat in counter)
        written = {name: counts.most_common(1)[0][0] for name, counts in suffixes[component].items()}
        spellings[component] = Spelling(prefix, naming, flat, written)
    stored = Counter(item.alpha.stored[0] for item in adapters if item.alpha.stored)
    source = Counter(item.alpha.source for item in adapters).most_common(1)
    policy = source[0][0] if source else "absent"
    return Dialect(
        _word(styles, opened),
        spellings,
        "none" if policy == "absent" else "tensor" if policy == "tensor (not read)" else policy,
        stored.most_common(1)[0][0] if stored else None,
    )


def _word(styles: Counter[tuple[str, str, str]], opened: Opened) -> str:
    """The word for the key grammar of most factors."""
    if not styles:
        return "unknown"
    style, family, naming = styles.most_common(1)[0][0]
    if naming in _NAMINGS or family in _FAMILIES:
        return _NAMINGS.get(naming) or _FAMILIES[family]
    if style in ("comfy", "comfy-text"):
        return "comfy"
    if style == "bare":
        return "peft" if opened.layout == "peft" else naming if naming in ("bfl", "diffusers") else "bare"
    return _WORDS.get((style, family), style)
