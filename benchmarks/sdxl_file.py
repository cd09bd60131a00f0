"""An SDXL adapter as sd-scripts writes it, without weights from anywhere: `python benchmarks/sdxl_file.py OUT RANK`."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loratools.architectures.architecture import shapes

# component → (kohya's prefix, which of its weights sd-scripts trains)
TRAINED = {
    "unet": ("lora_unet_", re.compile(r"\.attentions\.")),
    "text_encoder": ("lora_te1_", re.compile(r"\.(self_attn|mlp)\.")),
    "text_encoder_2": ("lora_te2_", re.compile(r"\.(self_attn|mlp)\.")),
}
MODULES = 986


def tensors(rank: int) -> dict[str, list[int]]:
    """key → shape of a file of that rank; names and shapes come from the architecture's own tables."""
    found: dict[str, list[int]] = {}
    for component, (prefix, pattern) in TRAINED.items():
        for path, shape in shapes("sdxl")[component].items():
            if len(shape) > 1 and pattern.search(path):
                stem = prefix + path.replace(".", "_")
                found[f"{stem}.alpha"] = []
                found[f"{stem}.lora_down.weight"] = [rank, shape[1]]
                found[f"{stem}.lora_up.weight"] = [shape[0], rank]
    if len(found) != 3 * MODULES:
        raise RuntimeError(f"an SDXL file has {MODULES} modules, the tables gave {len(found) // 3}")
    return found


def write(path: Path, rank: int) -> None:
    """Write the file: alphas of half the rank, random finite half floats."""
    header: dict[str, object] = {
        "__metadata__": {"ss_network_dim": str(rank), "ss_base_model_version": "sdxl_base_v1-0"}
    }
    at = 0
    for key, shape in tensors(rank).items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, shape in tensors(rank).items():
            alpha = key.endswith(".alpha")
            file.write(struct.pack("<e", rank / 2) if alpha else finite_halves(2 * math.prod(shape)))


def finite_halves(size: int) -> bytes:
    """`size` random bytes that are finite half floats: the top bit of every exponent is cleared."""
    bits = int.from_bytes(os.urandom(size), "little")
    mask = int.from_bytes(b"\xff\xbf" * (size // 2), "little")
    return (bits & mask).to_bytes(size, "little")


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(sys.argv[2]))
