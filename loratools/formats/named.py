"""Namings that only the adapter's name inside the keys tells from another: `….attn.qkv_proj.lora_A.default.weight`."""

from __future__ import annotations

from collections.abc import Mapping

from loratools.architectures.architecture import Architecture
from loratools.architectures.naming import skeleton
from loratools.formats.collect import Group
from loratools.formats.detect import Place, Stem


def by_adapters_name(
    places: Mapping[Stem, Place], groups: Mapping[Stem, Group], arch: Architecture
) -> Mapping[Stem, Place]:
    """The places, those in the naming that the name of the adapter speaks for where one does."""
    told = {component.name: [naming for naming in component.adapters if naming.named] for component in arch.components}
    if not any(told.values()):
        return places
    found = dict(places)
    for stem, place in places.items():
        names = {item.cut.adapter for item in groups[stem].found.values()}
        for naming in told[place.component]:
            placement = naming.at_native(*skeleton(place.placement.native)) if naming.named in names else None
            if placement is not None:
                found[stem] = place._replace(naming=naming.name, placement=placement)
    return found
