"""What a PEFT configuration says beyond the tensors: the fields, by PEFT's own names, that change an adapter's delta.

They are few: LoKr's r (whole factors hold no rank, and PEFT divides by it all the same), AdaLoRA's init_r (its scale
is divided by the rank that training began with, which the pruned factors no longer show), and OFT's form of rotation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from loratools.adapters.factors import Factors, Settings, refusal
from loratools.errors import MalformedFile, NotRepresentable
from loratools.model import Alpha, Scale

DEFAULTS: Mapping[str, Settings] = {
    "ADALORA": {"init_r": 12},
    "LOKR": {"r": 8},
    "OFT": {
        "use_cayley_neumann": True,
        "num_cayley_neumann_terms": 5,
        "coft": False,
        "eps": 6e-5,
        "block_share": False,
    },
}
"""peft_type → the fields that matter, with what PEFT 0.21 takes where a configuration states none."""

RANKNUM_EPSILON = Fraction(1, 100_000)
"""What PEFT adds to AdaLoRA's rank before it divides by it."""

_SCALING = ("r", "init_r")


def tuner_of(kind: str, factors: Factors) -> str:
    """PEFT's word for a configuration that holds such an adapter: adalora for a LoRA with singular values."""
    return "adalora" if "singular" in factors else kind


def feedforward(config: Mapping[str, Any], names: Sequence[str]) -> bool | None:
    """Whether PEFT's (IA)³ multiplies a module's inputs; None where no configuration of its says so.

    A list names ends of paths, a string is an expression for the whole of one.
    """
    if str(config.get("peft_type", "")).upper() != "IA3":
        return None
    stated = config.get("feedforward_modules") or []
    if isinstance(stated, str):
        from loratools.adapters.expressions import expression  # hardly a configuration states one

        try:
            named = expression(rf"(?:{stated})\Z")
        except re.error as error:
            raise MalformedFile(f"feedforward_modules is no expression: {error}", key="feedforward_modules") from error
        return any(named.matches(name) for name in names)
    return any(name.endswith(str(end)) for name in names for end in stated)


def settings_of(config: Mapping[str, Any], **module: Any) -> dict[str, Any]:
    """The settings of one module out of a PEFT configuration; `module` are fields that patterns set for it (its r)."""
    defaults = DEFAULTS.get(str(config.get("peft_type", "")).upper(), {})
    stated = {**config, **module}
    return {name: default if stated.get(name) is None else stated[name] for name, default in defaults.items()}


def scale_under(alpha: Alpha, rank: int | None, settings: Settings) -> Scale:
    """alpha / rank as `alpha` states it; AdaLoRA's is alpha / (init_r + 1e-5), the rank standing in for an alpha ≤ 0.

    The latter is what PEFT computes once a file is loaded: pruning keeps the divisor that training began with.
    """
    if "init_r" not in settings or alpha.value is None:
        return alpha.scale(rank)
    numerator = alpha.value if alpha.value > 0 else Fraction(rank or 0)
    return Scale(numerator / (Fraction(settings["init_r"]) + RANKNUM_EPSILON))


def require_known_scale(factors: Factors, alpha: Alpha, settings: Settings) -> None:
    """Raise NotRepresentable where the scale cannot be known: an AdaLoRA (its `singular` factor) without a config."""
    if "singular" in factors and alpha.value is not None and "init_r" not in settings:
        why = "its scale is lora_alpha / init_r, which stands in the configuration only"
        raise refusal("lora", "delta", why, "keep adapter_config.json beside the weights")


def beyond_scale(settings: Settings) -> dict[str, Any]:
    """The settings that are more than a scale."""
    return {name: value for name, value in settings.items() if name not in _SCALING}


def common_settings(name: str, found: Sequence[Settings]) -> Settings:
    """What the configurations of all parts of the target `name` say alike; NotRepresentable where they differ.

    Scales are not compared: parts are brought to one scale before they are fused.
    """
    if any(beyond_scale(settings) != beyond_scale(found[0]) for settings in found):
        raise NotRepresentable(
            f"{name}: its parts have different configurations and cannot become one adapter",
            layout="fuse_rows",
            found=[dict(settings) for settings in found],
        )
    return found[0]
