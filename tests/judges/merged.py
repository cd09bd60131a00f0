"""What a merge made of a pipeline's weights, from the files themselves."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from tests.judges.load import Loaded
from tests.judges.truth import place


def deltas_after_merge(before: Path, after: Path) -> Loaded:
    """The change of every weight and bias between two pipeline folders."""
    found: dict[str, dict[tuple[str, str], object]] = {"weight": {}, "bias": {}}
    for file in sorted(after.glob("*/*.safetensors")):
        old, new = load_file(before / file.parent.name / file.name), load_file(file)
        assert old.keys() == new.keys()
        for name, tensor in new.items():
            path, _, leaf = name.rpartition(".")
            if not tensor.equal(old[name]):
                found[leaf][place(file.parent.name, path)] = tensor.double() - old[name].double()
    return Loaded(found["weight"], found["bias"], ())
