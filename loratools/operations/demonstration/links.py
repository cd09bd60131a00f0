"""The demo's chain of conversions: every format in turn, and back to the first spelling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.errors import NotRepresentable
from loratools.operations.compare import Comparison, compare
from loratools.operations.conversion.result import Conversion
from loratools.operations.convert import convert
from loratools.operations.demonstration.made import Made, Say
from loratools.operations.lora import open_lora

# (target format, output); each is made of the output before.
CHAIN: tuple[tuple[str, str], ...] = (
    ("kohya", "lora.kohya.safetensors"),
    ("peft", "lora.peft"),
    ("diffusers", "lora.diffusers.safetensors"),
    ("original", "lora.back.safetensors"),
)
OUTPUTS = dict(CHAIN)
BACK = OUTPUTS["original"]
"""The output that is the adapter of the beginning again."""


@dataclass(frozen=True, slots=True)
class Link:
    """One conversion of the chain, and how its output compares with the adapter that the demo began with."""

    to: str
    conversion: Conversion
    comparison: Comparison

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, the comparison without its modules."""
        compared = {key: value for key, value in self.comparison.to_dict().items() if key != "modules"}
        return {"to": self.to, "conversion": self.conversion.to_dict(), "comparison": compared}


@dataclass(frozen=True, slots=True)
class NotHeld:
    """A format of the chain that cannot hold the adapter, and why."""

    to: str
    why: str


def convert_around(made: Made, say: Say) -> Iterator[Link | NotHeld]:
    """Convert the demo's adapter along the chain, past formats that cannot hold it."""
    given = made.adapter
    for to, name in CHAIN:
        say(f"converting {Path(given.name).name} to {to}")
        out = made.folder / name
        try:
            done = convert(given, to=to, arch=made.architecture).save(out)
        except NotRepresentable as problem:
            yield NotHeld(to, problem.message)
            continue
        given = open_lora(out, arch=made.architecture)
        yield Link(to, done, compare(made.adapter, given, arch=made.architecture))


def same_tensors(left: Path, right: Path) -> bool:
    """Whether two files hold the same keys with the same bytes, judged by the safetensors library."""
    import torch
    from safetensors.torch import load_file

    a, b = load_file(left), load_file(right)
    return a.keys() == b.keys() and all(
        a[key].dtype == b[key].dtype and a[key].shape == b[key].shape and torch.equal(a[key], b[key]) for key in a
    )
