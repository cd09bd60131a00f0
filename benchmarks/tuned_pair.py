"""Two SD1.5 checkpoints of real size with random float16 weights, one tuned from the other, for benchmarks/extract.py.

    python benchmarks/tuned_pair.py FOLDER easy|slow

FOLDER gets `base.safetensors` and `tuned-<spectrum>.safetensors`, UNet and text encoder under LDM's names. A layer
changes by 5 % of its norm: `easy` is a change of rank 64 whose singular values fall as i^-0.7, with noise of 1e-4 of
its norm; `slow` is one of full rank whose values fall as i^-0.5. One layer is in memory at a time.
"""

from __future__ import annotations

import sys
import zlib
from math import prod
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from loratools.architectures.architecture import shapes
from loratools.architectures.registry import architecture
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.writer import write

RANK, SIZE, NOISE = 64, 0.05, 1e-4
SPECTRA = ("easy", "slow")


def drawn(shape: tuple[int, ...], name: str) -> torch.Tensor:
    """Normal numbers that depend on the name alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def weight(path: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The base's weight, float16: ones for norms, else normal numbers over the root of the fan-in."""
    if len(shape) < 2:
        return torch.ones(shape, dtype=torch.float16)
    return (drawn(shape, path) / prod(shape[1:]) ** 0.5).half()


def change(rows: int, columns: int, spectrum: str, name: str) -> torch.Tensor:
    """A float32 change [rows, columns] of norm 1."""
    inner = RANK if spectrum == "easy" else min(rows, columns)
    values = torch.arange(1, inner + 1) ** (-0.7 if spectrum == "easy" else -0.5)
    # Columns of normal numbers are nearly orthogonal where they are few, orthogonal after a QR where they are many.
    left, right = drawn((rows, inner), f"{name}/left"), drawn((inner, columns), f"{name}/right")
    if spectrum == "slow":
        left, right = torch.linalg.qr(left).Q, torch.linalg.qr(right.T).Q.T
    found = (left * values) @ right
    found /= found.norm()
    if spectrum == "easy":
        found += NOISE * drawn((rows, columns), f"{name}/noise") / (rows * columns) ** 0.5
    return found


def tuned(path: str, shape: tuple[int, ...], spectrum: str) -> torch.Tensor:
    """The tuned weight, float16."""
    before = weight(path, shape)
    if len(shape) < 2 or "embedding" in path.rpartition(".")[2]:
        return before
    moved = change(shape[0], prod(shape[1:]), spectrum, path).reshape(shape)
    return (before.float() + SIZE * float(before.float().norm()) * moved).half()


def checkpoint(spectrum: str | None) -> dict[str, LazyTensor]:
    """The tensors of a checkpoint, made when they are asked for."""
    known, table = architecture("sd1"), shapes("sd1")
    found = {}
    for component in known.components:
        naming = component.naming("ldm") or component.namings[0]
        for path, shape in table[component.name].items():
            placement = naming.at_canonical(path)
            assert placement is not None, path

            def produce(path: str = path, shape: tuple[int, ...] = shape) -> torch.Tensor:
                return weight(path, shape) if spectrum is None else tuned(path, shape, spectrum)

            found[component.checkpoint[0] + placement.weight_key] = LazyTensor.computed("F16", shape, produce)
    return found


def main() -> None:
    """Make what is not there yet."""
    torch.set_num_threads(1)
    folder, spectrum = Path(sys.argv[1]), sys.argv[2]
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in (("base", None), (f"tuned-{spectrum}", spectrum)):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            write(path, checkpoint(kind), {})


if __name__ == "__main__":
    main()
