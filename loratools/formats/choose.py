"""Choose among the architectures that a file fits: names, then shapes, then metadata; or the generic transformer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from loratools.architectures.llm import are_ends, model_types
from loratools.architectures.naming import Placement
from loratools.architectures.registry import ARCHITECTURES, architecture, without_heirs
from loratools.errors import ArchitectureMismatch
from loratools.formats.detect import Candidate, Place, Sizes, Stem, by_names, by_shapes, claimed
from loratools.formats.extents import by_extents
from loratools.formats.opening import Opened
from loratools.formats.passing import PEFT_PASSES, Passing
from loratools.formats.prefixes import Prefix, prefixes

GENERIC = "llm"
GENERIC_COMPONENT = "model"
PEFT = "base_model.model."
# A model that no table knows shares names with one that is known. A few stray keys are no sign of that; more are.
STRAYS, STRAY_SHARE = 8, 0.02
FEW_LARGER, LARGER_SHARE = 3, 0.1


class Choice(NamedTuple):
    """The architectures that fit, likeliest first (none: the generic one), the variants of the first, and why.

    `misfits` are the layers whose sizes no variant of the first has, where most layers have known sizes.
    """

    found: tuple[Candidate, ...] = ()
    variants: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    misfits: tuple[Stem, ...] = ()


def candidates(
    opened: Opened,
    stems: Sequence[Stem],
    weights: Mapping[Stem, tuple[int | None, ...]],
    metadata: Mapping[str, str],
    arch: str | None,
    *,
    passing: Passing = PEFT_PASSES,
    families: Collection[str] = (),
) -> Choice:
    """Choose by names, then shapes, then metadata, by the spelling where that is one model's; `families` are those of
    the suffixes. Raises ArchitectureMismatch where nothing fits.
    """
    if arch is not None and arch.split("-")[0] == GENERIC:
        return Choice(evidence=(_generic_as_asked(arch, stems, passing, path=opened.name),))
    asked = (architecture(arch),) if arch is not None else ARCHITECTURES
    found = by_names(stems, asked)
    passable = all(_generic_prefix(stem, passing) is not None for stem in stems)
    stranger = _stranger_by_name(found, stems, passing) if arch is None and passable else None
    if stranger:
        return Choice(evidence=(f"{stranger}: names pass through",))
    if not found:
        raise ArchitectureMismatch(
            f"the keys fit {'no architecture' if arch is None else arch + ' nowhere'}",
            path=opened.name,
            key=stems[0][1],
            hint="loratools architectures lists what is known",
        )
    sizes = {item.architecture.id: by_shapes(item, weights) for item in found}
    if arch is None:
        found, sizes = _without_strays(found, sizes, stems, weights)
    evidence = [f"names: {len(found[0].places)} of {len(stems)} layers fit {', '.join(_ids(found))}"]
    if arch is not None:
        _require_best(found[0], sizes[found[0].architecture.id], stems, weights, path=opened.name)
    reason = _stranger(found, sizes, len(stems)) if arch is None else None
    if reason and passable:
        return Choice(evidence=(f"a PEFT adapter of another model ({reason}): names pass through",))
    if reason:
        raise ArchitectureMismatch(
            f"the keys fit no architecture ({reason})",
            path=opened.name,
            key=next(iter(found[0].missed or stems))[1],
            hint=f"--arch {found[0].architecture.id} takes it for the nearest; loratools architectures lists all",
        )
    compared = max(size.compared for size in sizes.values())
    fewest = min(len(size.misfits) for size in sizes.values())
    if compared and fewest < compared:
        found = [item for item in found if len(sizes[item.architecture.id].misfits) == fewest]
        evidence.append(f"shapes: {compared - fewest} of {compared} layers have the sizes of {', '.join(_ids(found))}")
    elif compared:
        if passable and arch is None and model_types(_paths(stems, passing)):
            return Choice(evidence=("a PEFT adapter of sizes that no table has: names pass through",))
        evidence.append("shapes: of no known size, so names alone decide")
    found, blocks = _by_blocks(found, sizes, metadata)
    found, spelt = _by_spelling(found, stems, families, metadata)
    found, claims = _by_claims(found, metadata)
    evidence += [*blocks, *spelt, *claims]
    if not compared or fewest == compared:
        return Choice(tuple(found), (), tuple(evidence))
    best = sizes[found[0].architecture.id]
    return Choice(tuple(found), best.variants, tuple(evidence), best.misfits)


def _stranger_by_name(found: Sequence[Candidate], stems: Sequence[Stem], passing: Passing) -> str | None:
    """What a PEFT adapter is that no table should name, or None."""
    if not found or found[0].missed:
        return "a PEFT adapter of no architecture in the tables"
    if _is_language_model(found, stems, passing):
        return "a PEFT adapter of a language model, alone"
    return None


def _is_language_model(found: Sequence[Candidate], stems: Sequence[Stem], passing: Passing) -> bool:
    """Whether a file that nothing ties to a pipeline has the names of a language model and no denoiser's.

    Anima's text encoder is Qwen 3, and most adapters of Qwen 3 have never seen a picture.
    """
    if any(stem[0] is not None for stem in stems):
        return False
    if any(place.component == item.architecture.denoiser.name for item in found for place in item.places.values()):
        return False
    paths = _paths(stems, passing)
    return bool(model_types(paths)) or are_ends(paths)


def _without_strays(
    found: list[Candidate],
    sizes: dict[str, Sizes],
    stems: Sequence[Stem],
    weights: Mapping[Stem, tuple[int | None, ...]],
) -> tuple[list[Candidate], dict[str, Sizes]]:
    """The candidates that place the most stems, unless one that misses a few more has fewer at odds with it in all.

    A stray key that only another model knows would else outweigh the sizes of all the others. Sizes that no candidate
    has in any layer say nothing.
    """
    if all(size.compared and len(size.misfits) == size.compared for size in sizes.values()):
        return found, sizes
    least = min(len(item.missed) + len(sizes[item.architecture.id].misfits) for item in found)
    allowed = _allowed(stems)
    if not least:
        return found, sizes
    near: dict[int, list[Candidate]] = {}
    others: dict[str, Sizes] = {}
    for item in by_names(stems, fewer=min(least, allowed)):
        if item.architecture.id not in sizes and len(item.missed) <= min(least - 1, allowed):
            size = others[item.architecture.id] = by_shapes(item, weights)
            near.setdefault(len(item.missed) + len(size.misfits), []).append(item)
    fewest = min(near, default=least)
    return (near[fewest], others) if fewest < least else (found, sizes)


def _allowed(stems: Sequence[Stem]) -> int:
    """How many layers a model may miss and still be the file's."""
    return max(STRAYS, int(STRAY_SHARE * len(stems)))


def _at_odds(item: Candidate, size: Sizes) -> int:
    """The layers that a candidate has no place for, and those of another size where any has its own."""
    return len(item.missed) + (len(size.misfits) if len(size.misfits) < size.compared else 0)


def _by_blocks(
    found: list[Candidate], sizes: Mapping[str, Sizes], metadata: Mapping[str, str]
) -> tuple[list[Candidate], list[str]]:
    """The candidates that the file has all blocks of, and those that the metadata name; heirs give way."""
    if len(found) == 1:
        return found, []
    whole = by_extents(found, {item.architecture.id: sizes[item.architecture.id].variants for item in found})
    claims = claimed(metadata)
    evidence = [f"blocks: all of {', '.join(_ids(whole))}, not of others"] if len(whole) < len(found) else []
    kept = [item for item in found if item in whole or item.architecture.id in claims]
    return without_heirs([item.architecture for item in kept], kept, claims), evidence


def _by_spelling(
    found: list[Candidate], stems: Sequence[Stem], families: Collection[str], metadata: Mapping[str, str]
) -> tuple[list[Candidate], list[str]]:
    """The candidates whose trainers alone spell keys as this file does, unless the metadata name another."""
    claims = claimed(metadata)
    habits = [item for item in found if item.architecture.spelt]
    if len(found) == 1 or not habits or any(item.architecture.id in claims for item in found):
        return found, []
    styles = {next(prefixes(stem[1]))[0].style for stem in stems}
    ways = {(style, family) for style in styles for family in families}
    kept = [item for item in habits if ways <= set(item.architecture.spelt)]
    return (kept, [f"spelling: that of trainers of {', '.join(_ids(kept))} alone"]) if ways and kept else (found, [])


def heirs(arch: str, stems: Collection[Stem]) -> list[Candidate]:
    """The file as an architecture reads it that took over the names and sizes of others, which come first."""
    known = [item for item in ARCHITECTURES if item.id == arch and item.yields_to]
    return by_names(list(stems), known) if known else []


def _by_claims(found: list[Candidate], metadata: Mapping[str, str]) -> tuple[list[Candidate], list[str]]:
    """The candidates with those first that the metadata name, and what the metadata say."""
    claims = claimed(metadata)
    if not claims:
        return found, []
    if any(item.architecture.id in claims for item in found):
        ordered = sorted(found, key=lambda item: item.architecture.id not in claims)
        return ordered, [f"metadata names {', '.join(claims)}"]
    return found, [f"metadata names {', '.join(claims)}, which the keys and shapes do not fit"]


def _stranger(found: Sequence[Candidate], sizes: Mapping[str, Sizes], count: int) -> str | None:
    """Why the nearest architecture is not the file's: many layers it has not, or sizes beyond all of its variants."""
    best = min(found, key=lambda item: len(sizes[item.architecture.id].misfits))
    missed, size = len(best.missed), sizes[best.architecture.id]
    if missed > max(STRAYS, STRAY_SHARE * count):
        return f"the nearest, {best.architecture.id}, has no place for {missed} of {count} layers"
    few = size.larger <= FEW_LARGER and 2 * size.larger < size.compared  # of an excerpt
    if size.larger > LARGER_SHARE * size.compared and not few:
        return f"the nearest, {best.architecture.id}, is smaller in {size.larger} of {size.compared} layers"
    return None


def _generic_as_asked(arch: str, stems: Sequence[Stem], passing: Passing, *, path: str) -> str:
    """The evidence for the generic transformer; raises ArchitectureMismatch for keys that PEFT does not write."""
    if not any(_generic_prefix(stem, passing) for stem in stems):
        raise ArchitectureMismatch(
            f"{arch} is for PEFT adapters, whose keys begin with {PEFT}",
            path=path,
            key=stems[0][1],
            hint="leave --arch out: it is for files that do not tell",
        )
    return f"{arch} as asked"


def _require_best(
    asked: Candidate,
    size: Sizes,
    stems: Sequence[Stem],
    weights: Mapping[Stem, tuple[int | None, ...]],
    *,
    path: str,
) -> None:
    """Raise ArchitectureMismatch where another architecture has more of the names, or all of the sizes."""
    if not asked.missed and not size.misfits:
        return
    better: list[tuple[int, Candidate]] = []
    some_fit = len(size.misfits) < size.compared  # then another that none fits is no nearer for that
    for other in by_names(stems, fewer=_allowed(stems)):
        theirs = by_shapes(other, weights)
        odds = len(other.missed) + len(theirs.misfits) if some_fit else _at_odds(other, theirs)
        same_names = len(other.places) == len(asked.places) and not theirs.misfits
        if other.architecture is not asked.architecture and (odds < _at_odds(asked, size) or same_names):
            better.append((odds, other))
    if not better:
        return
    _, best = min(better, key=lambda item: item[0])
    more = len(best.places) > len(asked.places)
    raise ArchitectureMismatch(
        f"the file is for {best.architecture.id}, not {asked.architecture.id}: "
        + (f"{len(asked.missed)} of {len(stems)} layers are not in it" if more else "its sizes are others"),
        path=path,
        key=(asked.missed or size.misfits)[0][1],
        hint="leave --arch out: it is for files that do not tell",
    )


def _ids(found: Sequence[Candidate]) -> list[str]:
    return [item.architecture.id for item in found]


def settled(found: Sequence[Candidate], metadata: Mapping[str, str], arch: str | None) -> str | None:
    """The one architecture that names, shapes, metadata or the caller settle, or None."""
    if arch is not None or len(found) == 1:
        return found[0].architecture.id if found else arch
    claims = claimed(metadata)
    named = [item.architecture.id for item in found if item.architecture.id in claims]
    return named[0] if len(named) == 1 else None


def _generic_prefix(stem: Stem, passing: Passing) -> tuple[Prefix, str] | None:
    """The cut that an adapter of any model has, or None for keys that only a known architecture could explain."""
    return next(((prefix, rest) for prefix, rest in prefixes(stem[1]) if prefix.style == passing.style), None)


def _paths(stems: Sequence[Stem], passing: Passing) -> list[str]:
    """The modules of a generic transformer."""
    return [passing.path(stem[1].removeprefix(PEFT)) for stem in stems]


def generic(stems: Sequence[Stem], passing: Passing = PEFT_PASSES) -> dict[Stem, Place]:
    """Every stem under its own name: the generic transformer."""
    places = {}
    for stem in stems:
        found = _generic_prefix(stem, passing)
        if found:
            prefix, path = found[0], passing.path(found[1])
            placement = Placement(path, (path,), (1,), "rows", ".")
            places[stem] = Place(stem[0] or GENERIC_COMPONENT, "", prefix, placement)
    return places
