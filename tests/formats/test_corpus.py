"""Every inventory of the corpus that our tables cover is read whole; every other one is refused in our own words."""

import gzip
import json
import os
import struct
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from loratools.adapters.kind import kind_of
from loratools.architectures.registry import ARCHITECTURES
from loratools.errors import LoratoolsError
from loratools.formats.dialects import DIALECTS, REFUSED
from loratools.formats.opening import Opened, Part
from loratools.formats.parse import parse
from loratools.operations.convert import convert
from loratools.operations.inspect import inspect
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import MemoryTensors

CORPUS = os.environ.get("LORATOOLS_CORPUS")
EXPECTED = json.loads((Path(CORPUS) / "EXPECTED.json").read_text()) if CORPUS else {}
REGISTERED = {known.id for known in ARCHITECTURES}
READABLE = {row.id for row in DIALECTS if row.written != REFUSED}
# fixtures made by hand whose factors make no Kronecker product of the sizes of any layer
BROKEN = {
    "lora_anima_lokr_dora_fixture.json", "lora_flux1_lokr_bfl_fixture.json", "lora_qwen_image_kohya_lokr_fixture.json"
}  # fmt: skip
# Names and shapes leave open what metadata would settle:
# (IA)³ vectors on the outputs of SD1's and SD2's projections have one length.
UNDECIDABLE = {
    "lora_sd15_peft_ia3_gen.json": {"sd1", "sd2"},
}

pytestmark = pytest.mark.skipif(not CORPUS, reason="LORATOOLS_CORPUS names no folder of key inventories")


def tabled(name):
    architecture = EXPECTED[name].get("architecture", "")
    return architecture in REGISTERED or architecture.startswith("llm-")


def ours(name):
    truth = EXPECTED[name]
    return truth["role"] == "adapter" and tabled(name) and name not in BROKEN


def test_every_adapter_of_the_corpus_is_of_a_known_architecture_and_a_known_key_grammar():
    adapters = {name: truth for name, truth in EXPECTED.items() if truth["role"] == "adapter"}
    assert [name for name in adapters if not tabled(name)] == []
    assert [name for name, truth in adapters.items() if not set(truth["format"]) & READABLE] == []


def in_family(candidate, truth):
    return any(candidate == name or (name == "llm-*" and candidate.startswith("llm")) for name in truth["family"])


def document(name):
    raw = (Path(CORPUS) / name).read_bytes()
    return json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)


def shaped(name):
    """key → (dtype, shape), or a skip where the inventory is a list of names."""
    tensors = document(name)["tensors"]
    if any(entry["shape"] is None for entry in tensors.values()):
        pytest.skip("a list of names without shapes: which axis or rank a factor has cannot be told")
    return {key: (entry["dtype"] or "F16", entry["shape"]) for key, entry in tensors.items()}


def tensor(key, dtype, shape):
    """Zeros; an alpha holds one, and so does `on_input` of the layers that LyCORIS trains on their input."""
    if not key.endswith((".alpha", "ff_net_2.on_input", "mlp_fc2.on_input")):
        return LazyTensor.zeros(dtype, shape)
    one = {"F16": b"\x00\x3c", "BF16": b"\x80\x3f", "F32": struct.pack("<f", 1), "F64": struct.pack("<d", 1)}
    return LazyTensor.from_bytes(dtype, shape, one.get(dtype) or struct.pack("<q", 1))


def opened(name):
    metadata = dict(document(name).get("metadata") or {})
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    config = json.loads(metadata.pop("adapter_config")) if "adapter_config" in metadata else None
    tensors = {key: tensor(key, *found) for key, found in shaped(name).items()}
    return Opened(name, (Part(None, MemoryTensors(tensors, metadata), config),))


@pytest.mark.parametrize("name", [name for name in sorted(EXPECTED) if ours(name)])
def test_an_adapter_of_a_known_architecture_is_read_whole(name):
    truth, file = EXPECTED[name], opened(name)
    reading = parse(file)
    adapters = reading.adapters
    assert reading.unknown == ()
    assert adapters.dialect.format in truth["format"]
    assert (
        sorted({word for item in adapters.adapters for word in kind_of(item.kind).kinds(item.factors)})
        == (truth["kinds"])
    )
    assert truth["architecture"] in adapters.architectures
    outside = {found for found in adapters.architectures if not in_family(found, truth)}
    assert outside <= UNDECIDABLE.get(name, set())
    if truth["architecture"] in REGISTERED and name not in UNDECIDABLE:
        assert reading.settled == (truth["architecture"] if len(adapters.architectures) == 1 else None)
    # Each key is a factor or an alpha of exactly one adapter, or was recognised as no adapter.
    taken = Counter(key for item in adapters.adapters for key in set(item.origin.keys.values()))
    taken.update(key for saved in adapters.extras.values() for key in saved)
    assert taken == Counter(file.parts[0].source.keys())


def sparse(name, path):
    """A safetensors file of the inventory's names and shapes whose data is a hole."""
    widths = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
    header, at = {}, 0
    for key, (dtype, shape) in shaped(name).items():
        end = at + widths.get(dtype, 1)
        for extent in shape:
            end = at + (end - at) * extent
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    return path


def named(name):
    """key → (dtype, shape) of an inventory; a list of names gets a shape that no factor has."""
    tensors = document(name)["tensors"]
    return {key: (entry["dtype"] or "F16", entry["shape"] or [1] * 9) for key, entry in tensors.items()}


NAMES_ONLY = ("lora_sd15_lycoris_oft_diag_names_real.json",)


@pytest.mark.parametrize("name", [*sorted(BROKEN), *NAMES_ONLY])
def test_keys_tell_what_an_adapter_is_whose_factors_make_none(name):
    truth = EXPECTED[name]
    tensors = {key: LazyTensor.zeros(dtype, shape) for key, (dtype, shape) in named(name).items()}
    found = inspect(tensors).document
    assert (found["role"], found["architecture"]) == ("adapter", None)
    assert found["format"] in truth["format"]
    assert found["kinds"] == truth["kinds"]
    assert truth["architecture"] in found["candidates"]
    assert {key["key"] for key in found["unknown_keys"]} == set(tensors)
    assert found["warnings"]


@pytest.mark.parametrize(
    "name", [name for name in sorted(EXPECTED) if EXPECTED[name]["role"] != "adapter" and tabled(name)]
)
def test_what_is_no_adapter_is_named(name, tmp_path):
    truth = EXPECTED[name]
    found = inspect(sparse(name, tmp_path / "model.safetensors")).document
    assert found["role"] == truth["role"]
    assert truth["architecture"] in found["candidates"]
    if truth["architecture"] in REGISTERED:
        assert found["architecture"] == (truth["architecture"] if len(found["candidates"]) == 1 else None)
    assert all(in_family(candidate, truth) for candidate in found["candidates"])


@pytest.mark.parametrize("name", [name for name in sorted(EXPECTED) if not tabled(name)])
def test_a_stranger_is_described_and_never_taken_for_another(name, tmp_path):
    truth = EXPECTED[name]
    found = inspect(sparse(name, tmp_path / "stranger.safetensors")).document
    assert found["role"] in (truth["role"], "unknown")
    if "family" in truth:
        assert found["architecture"] is None
        assert all(in_family(candidate, truth) or candidate == "llm" for candidate in found["candidates"])


@contextmanager
def suppress_ours():
    """The LoratoolsError of the block, in a list, if there was one."""
    found = []
    try:
        yield found
    except LoratoolsError as error:
        found.append(error)


@pytest.mark.parametrize(
    "name", [name for name in sorted(EXPECTED) if EXPECTED[name].get("architecture") not in REGISTERED]
)
def test_a_conversion_of_a_stranger_is_planned_or_refused_in_our_own_words(name, tmp_path):
    path = sparse(name, tmp_path / "stranger.safetensors")
    with suppress_ours() as refusal:
        convert(path, to="kohya")
    if refusal:
        assert refusal[0].exit_code in (3, 4)
        assert refusal[0].path == str(path)
