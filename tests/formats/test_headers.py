"""Every header that an installed library wrote for a model is read whole, and for that model."""

import gzip
import json
from pathlib import Path

import pytest

from loratools.architectures.registry import ARCHITECTURES
from loratools.formats.opening import Opened, Part
from loratools.formats.parse import parse
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import MemoryTensors

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "headers"
ONES = (".alpha", "ff_net_2.on_input", "mlp_fc2.on_input")  # LyCORIS' (IA)³ scales the inputs of these
FAMILIES = {known.id: known.family for known in ARCHITECTURES}
YIELDS = {known.id: known.yields_to for known in ARCHITECTURES}
HEADERS = sorted(path for name in FAMILIES for path in (FOLDER / name).glob("*.json*"))


def document(path):
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("path", HEADERS, ids=lambda path: f"{path.parent.name}-{path.name.split('.')[0]}")
def test_every_header_is_read_whole_by_its_own_table(path):
    name, held = path.parent.name, document(path)
    scalar = LazyTensor.from_bytes("F16", (), b"\x00\x3c")
    tensors = {
        key: scalar if key.endswith(ONES) else LazyTensor.zeros(dtype, shape)
        for key, (dtype, shape) in held["tensors"].items()
    }
    reading = parse(Opened("in", (Part(None, MemoryTensors(tensors, held["metadata"]), held.get("config")),)))
    assert reading.unknown == ()
    assert {name, *YIELDS[name]} & set(reading.adapters.architectures)
    assert len(reading.adapters.architectures) == 1 or path.name.startswith(("peft", "diffusers"))


@pytest.mark.parametrize("name", ["sd3", "wan2.1", "wan2.2", "z-image", "auraflow", "lumina2", "sana", "pixart"])
def test_sizes_and_names_leave_no_other_family(name):
    for path in (path for path in HEADERS if path.parent.name == name):
        tensors = {key: LazyTensor.zeros(dtype, shape) for key, (dtype, shape) in document(path)["tensors"].items()}
        found = parse(Opened("in", (Part(None, MemoryTensors(tensors)),))).adapters.architectures
        assert set(found) <= {name, *FAMILIES[name]}
