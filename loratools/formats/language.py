"""The layers of an adapter of a language model: where each belongs, whatever the file calls and fuses."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from loratools.architectures.llm import model_types
from loratools.architectures.llm_namings import (
    ATTENTION_OUT,
    FUSED_QKV,
    LanguageNaming,
    Switch,
    canonical,
    naming_of,
    shares,
    stacked_name,
)
from loratools.formats.choose import generic
from loratools.formats.detect import Place, Stem, WeightShape
from loratools.formats.experts import ROUTER, WEIGHT
from loratools.formats.format import Options
from loratools.formats.passing import PEFT_PASSES, Passing
from loratools.model import Spelling


def language_places(
    stems: Collection[Stem],
    weights: Mapping[Stem, WeightShape],
    stacked: Collection[Stem],
    passing: Passing = PEFT_PASSES,
    switch: Switch = "",
) -> dict[Stem, Place]:
    """The place of every stem of a model without a table; those in `stacked` are single experts of a parameter, and
    `switch` tells the form of a file in which MLX stacks them.
    """
    found: dict[Stem, Place] = {}
    verbatim = generic(list(stems), passing)
    for component in dict.fromkeys(place.component for place in verbatim.values()):
        members = {stem: place for stem, place in verbatim.items() if place.component == component}
        natives = {stem: place.placement.native for stem, place in members.items()}
        qkv = _shares(natives, weights)
        naming = naming_of((native for stem, native in natives.items() if stem not in stacked), qkv)
        if any(stem in stacked for stem in members):
            naming = naming._replace(experts="stacked")
        naming = naming._replace(switched=switch)
        for stem, place in members.items():
            found[stem] = place._replace(naming=naming.name, placement=canonical(natives[stem], qkv))
    return found


def _shares(natives: Mapping[Stem, str], weights: Mapping[Stem, WeightShape]) -> tuple[int, ...]:
    """How the rows of a fused query, key and value are shared out, by the inputs of the layer behind them.

    Empty where no layer tells, or not all tell the same.
    """
    sizes = {native: weights[stem] for stem, native in natives.items() if stem in weights}
    found = set()
    for native, shape in sizes.items():
        fused = native.endswith(FUSED_QKV)
        beside = sizes.get(f"{native.removesuffix(FUSED_QKV)}{ATTENTION_OUT}") if fused else None
        if beside and shape[0] and len(beside) > 1 and beside[1]:
            found.add(shares(shape[0], beside[1]))
    return found.pop() if len(found) == 1 else ()


def configured_names(place: Place) -> list[str]:
    """How a PEFT configuration speaks of a layer that is a part of a parameter, or the whole of one: by its name.

    One expert is a part; the router, whose module holds nothing but a matrix, is the whole of its `weight`.
    """
    spelt = LanguageNaming.named(place.naming)
    if spelt is None or spelt.experts != "stacked":
        return []
    native = place.placement.native
    whole = stacked_name(native)
    return [whole] if whole else [f"{native}.{WEIGHT}"] * native.endswith(ROUTER)


def naming_to_write(own: Spelling | None, options: Options, *, stacks: bool) -> str:
    """The name of the naming of a language model to write: the one asked for, else the source's `own`.

    `stacks` says that the format can tell a pair of matrices that is for a parameter.
    """
    naming = options.names or (LanguageNaming.named(own.naming) if own else None) or LanguageNaming()
    experts = "each" if naming.experts == "stacked" and not stacks else naming.experts
    return naming._replace(experts=experts, switched="").name


def types_of(places: Collection[Place]) -> tuple[str, ...]:
    """The model types that have these layers, by the names that the file has for them."""
    named = {place.placement.native: _experts_name(place) for place in places}
    return model_types([whole or native for native, whole in named.items()])


def _experts_name(place: Place) -> str | None:
    spelt = LanguageNaming.named(place.naming)
    return stacked_name(place.placement.native) if spelt and spelt.experts == "stacked" else None
