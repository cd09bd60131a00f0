"""PEFT configurations: reading what they say about one module, and writing one that says it exactly.

The same fields stand in `adapter_config.json` and, by component, in diffusers' `lora_adapter_metadata`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import isfinite
from typing import Any, NamedTuple

from loratools.errors import MalformedFile, NonFinite

DIFFUSERS_KEY = "lora_adapter_metadata"
_PEFT_ALPHA = 8  # what PEFT's LoraConfig takes where a configuration states none

Config = Mapping[str, Any]


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} stands there twice")
        found[key] = value
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def parse_json(text: str | bytes, *, path: object, key: str | None = None, infinite: bool = False) -> dict[str, Any]:
    """A JSON object without duplicate keys, and (unless `infinite`, as diffusers writes of schedulers) without NaN or
    Infinity; raises MalformedFile otherwise.
    """
    constant = None if infinite else _no_constant
    try:
        found = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise MalformedFile(f"not valid JSON: {error}", path=path, key=key) from error
    if not isinstance(found, dict):
        raise MalformedFile("a JSON object was expected", path=path, key=key)
    return found


def by_component(raw: str, *, path: object) -> dict[str, dict[str, Any]]:
    """component → configuration, from diffusers' flat `component.field` metadata."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in parse_json(raw, path=path, key=DIFFUSERS_KEY).items():
        component, dot, field = key.partition(".")
        if dot:
            found.setdefault(component, {})[field] = value
    return found


def number(value: Any, *, path: object, key: str) -> Fraction:
    """An exact number from JSON or a metadata string; raises MalformedFile or NonFinite."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise MalformedFile(f"a number was expected, found {value!r}", path=path, key=key)
    try:
        rough = float(value)
        # Fraction would spell 1e999999999 out digit by digit.
        return Fraction(value) if rough and isfinite(rough) else Fraction(rough)
    except (ValueError, OverflowError) as error:
        kind = NonFinite if str(value).strip().lower().lstrip("+-") in ("nan", "inf", "infinity") else MalformedFile
        raise kind(f"a finite number was expected, found {value!r}", path=path, key=key) from error


def alpha_of(config: Config, names: Sequence[str], *, path: object) -> Fraction:
    """lora_alpha (LoHa and LoKr: alpha) of the module, patterns first, PEFT's default where none is stated.

    AdaLoRA has one alpha: PEFT does not look at its patterns.
    """
    found = None if _is_adalora(config) else _patterned(config, "alpha_pattern", names)
    if found is None:
        found = config.get("lora_alpha", config.get("alpha"))
    return number(_PEFT_ALPHA if found is None else found, path=path, key="lora_alpha")


def scale_of(config: Config, *, path: object) -> Fraction | None:
    """The scale that an MLX configuration states for every layer; None for a configuration of PEFT's.

    Raises MalformedFile for an MLX configuration without one: mlx-lm takes none for granted.
    """
    if "lora_parameters" not in config:
        return None
    parameters = config["lora_parameters"]
    if not isinstance(parameters, Mapping) or "scale" not in parameters:
        hint = 'add the scale of the training: "lora_parameters": {"scale": 20.0}'
        raise MalformedFile("the configuration states no scale", path=path, key="lora_parameters", hint=hint)
    return number(parameters["scale"], path=path, key="scale")


def rank_of(config: Config, names: Sequence[str]) -> int | None:
    """The rank that the configuration states for the module; AdaLoRA's are pruned, and what it states is not kept."""
    if _is_adalora(config):
        return None
    found = _patterned(config, "rank_pattern", names)
    found = config.get("r") if found is None else found
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _patterned(config: Config, field: str, names: Sequence[str]) -> Any | None:
    """What the patterns of a field say about a module, if anything."""
    pattern = config.get(field)
    if not pattern:
        return None
    from loratools.formats.patterns import matching  # few configurations have any

    return matching(pattern, names)


def _is_adalora(config: Config) -> bool:
    return str(config.get("peft_type", "")).upper() == "ADALORA"


class Module(NamedTuple):
    """What one module needs a configuration to say. `name` is what the reader matches, `pattern` how to say it."""

    name: str
    pattern: str
    rank: int
    alpha: Fraction


def as_number(value: Fraction) -> int | float:
    """An int where whole, else the double (exact for every alpha that came from a 64-bit float or narrower)."""
    return int(value) if value.denominator == 1 else float(value)


def build(modules: Sequence[Module], **fields: Any) -> dict[str, Any]:
    """A LoRA configuration: the commonest rank and alpha, patterns for the others, every module a target."""
    rank = Counter(module.rank for module in modules).most_common(1)[0][0]
    alpha = Counter(module.alpha for module in modules).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": as_number(alpha),
        "rank_pattern": {module.pattern: module.rank for module in modules if module.rank != rank},
        "alpha_pattern": {module.pattern: as_number(module.alpha) for module in modules if module.alpha != alpha},
        "target_modules": sorted({module.name for module in modules}),
        "bias": "none",
        **fields,
    }
