"""What the runtime that a conversion is for will not load of its output, from the output as re-opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loratools.formats.parse import Reading


@dataclass(frozen=True, slots=True)
class Losses:
    """How many of a file's adapters a runtime loads with another delta or not at all, why, and under which keys.

    `unknown` counts those of which no table tells; `reasons` are (reason, adapters), the most frequent first; `keys`
    are (key, reason).
    """

    runtime: str
    of: int
    lost: int
    unknown: int
    reasons: tuple[tuple[str, int], ...]
    keys: tuple[tuple[str, str], ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line a reason; none where the runtime loads every adapter that is known of."""
        return tuple(
            f"{self.runtime} will not load {count} of {self.of} adapters as they are: {reason}"
            for reason, count in self.reasons
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "runtime": self.runtime,
            "of": self.of,
            "lost": self.lost,
            "unknown": self.unknown,
            "reasons": [{"reason": reason, "count": count} for reason, count in self.reasons],
            "keys": [{"key": key, "reason": reason} for key, reason in self.keys],
        }


def losses(reading: Reading, runtime: str | None) -> Losses | None:
    """The answer for one runtime, or None where a conversion is for none."""
    if runtime is None:
        return None
    from loratools.formats.runtimes import loads

    found = loads(reading, runtime)[0]
    lost = [verdict.loads is False for verdict in found.verdicts]
    failing = {verdict.reason for verdict in found.verdicts if verdict.loads is False}
    return Losses(
        runtime,
        len(found.verdicts),
        sum(lost),
        found.unknown,
        tuple((reason.text, len(stems)) for reason, stems in found.reasons if reason in failing),
        tuple((row["key"], row["reason"]) for row in found.rows() if row["loads"] is False),
    )
