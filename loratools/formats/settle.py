"""Scales that only a PEFT configuration states, multiplied into the factors for formats without one."""

from __future__ import annotations

from dataclasses import replace

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.kind import kind_of
from loratools.adapters.recast import fold
from loratools.formats.format import Format


def scaled_in_factors(source: AdapterSet, form: Format | None) -> AdapterSet:
    """The set as `form` can say it; the very same where nothing has to change (None is a spelling that was recorded).

    PEFT divides the alpha of a LoKr by its r even where both factors are whole. Readers of other formats multiply such
    a LoKr by 1, so the scale goes into a factor. What else a configuration says stays for `limits` to refuse.
    """
    if form is None or form.alpha == "config" or not any(_stated(item) for item in source.adapters):
        return source
    adapters = tuple(replace(fold(item), settings={}) if _stated(item) else item for item in source.adapters)
    return replace(source, adapters=adapters)


def _stated(item: Adapter) -> bool:
    """Whether the scale's divisor stands in the configuration only."""
    return item.kind == "lokr" and kind_of(item.kind).rank(item.factors) is None and "r" in item.settings
