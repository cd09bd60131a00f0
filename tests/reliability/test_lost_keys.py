"""One key dropped, misspelt, added or doubled in a real header: every command counts it and names it."""

import gzip
import json
import struct
from pathlib import Path

import pytest

from fixtures.broken.adapter import BITS
from tests.reliability.invariants import check_ended_well, command

HEADERS = Path(__file__).resolve().parents[2] / "fixtures" / "headers"
# header → a factor without which its layer is none
FACTORS = {
    "sd1/kohya": ".lora_down.weight", "sd1/diffusers": ".lora_A.weight", "sd1/peft": ".lora_B.weight",
    "sd1/lycoris-loha": ".hada_w1_a", "sd1/lycoris-lokr": ".lokr_w1", "sd1/lycoris-dora": ".lora_up.weight",
    "sd1/lycoris-tucker": ".lora_down.weight", "sd2/kohya": ".lora_up.weight", "sdxl/kohya": ".lora_down.weight",
    "sdxl/diffusers": ".lora_B.weight", "flux1/kohya": ".lora_down.weight", "llm-llama/peft": ".lora_A.weight",
}  # fmt: skip


def header(name):
    plain, packed = HEADERS / f"{name}.json", HEADERS / f"{name}.json.gz"
    return json.loads(plain.read_text() if plain.exists() else gzip.decompress(packed.read_bytes()))


def target(name):
    return "peft" if name.startswith("llm") else "kohya"


def made(place, document, tensors):
    """A file of that header whose data are a hole, or a PEFT folder of it."""
    entries, at = ({"__metadata__": document["metadata"]} if document["metadata"] else {}), 0
    for key, (dtype, shape) in tensors:
        size = BITS[dtype] // 8
        for extent in shape:
            size *= extent
        entries[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    # Written by hand: a document may name a key twice, a dictionary may not.
    doubled = len(entries) - bool(document["metadata"]) < len(tensors)
    text = json.dumps(entries)
    if doubled:
        key = tensors[-1][0]
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(entries[key])}}}"
    path = place / "in.safetensors"
    if "config" in document:
        path = place / "in" / "adapter_model.safetensors"
        path.parent.mkdir()
        (path.parent / "adapter_config.json").write_text(json.dumps(document["config"]))
    raw = text.encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    return path.parent if "config" in document else path


def dropped(tensors, at):
    return tensors[:at] + tensors[at + 1 :], tensors[at][0]


def misspelt(tensors, at):
    key, what = tensors[at]
    stem = key.removesuffix(next(suffix for suffix in FACTORS.values() if key.endswith(suffix)))
    return [*tensors[:at], (f"{stem}.x{key[len(stem) + 1 :]}", what), *tensors[at + 1 :]], key


def added(tensors, at):
    return [*tensors, ("mystery.weight", ["F16", [3]])], "mystery.weight"


def doubled(tensors, at):
    return [*tensors, tensors[at]], tensors[at][0]


@pytest.mark.parametrize("name", FACTORS)
def test_untouched_header_is_converted(tmp_path, name):
    document = header(name)
    done = command(
        "convert", made(tmp_path, document, list(document["tensors"].items())), "--to", target(name), "--dry-run"
    )
    assert done.code == 0, done


@pytest.mark.parametrize("change", [dropped, misspelt, added, doubled])
@pytest.mark.parametrize("name", FACTORS)
def test_one_key_that_is_lost_or_strange_is_counted_and_named(tmp_path, name, change):
    document = header(name)
    tensors = list(document["tensors"].items())
    candidates = [at for at, (key, _) in enumerate(tensors) if key.endswith(FACTORS[name])]
    altered, key = change(tensors, candidates[len(candidates) // 2])
    path = made(tmp_path, document, altered)
    done = command("convert", path, "--to", target(name), "--dry-run", "--json")
    assert done.code == 3, done
    failure = json.loads(done.out)
    stem = key.removesuffix(FACTORS[name])
    assert stem in json.dumps(failure), failure
    seen = command("inspect", path, "--json", "--strict")
    assert seen.code == 3, seen
    assert stem in seen.out
    check_ended_well(command("inspect", path))


@pytest.mark.parametrize("name", ["sd1/kohya", "sdxl/kohya", "sd1/lycoris-loha"])
def test_one_alpha_that_is_lost_shows_as_absent(tmp_path, name):
    document = header(name)
    tensors = list(document["tensors"].items())
    alphas = [at for at, (key, _) in enumerate(tensors) if key.endswith(".alpha")]
    altered, _ = dropped(tensors, alphas[3])
    document = json.loads(command("inspect", made(tmp_path, document, altered), "--json").out)
    assert document["alpha"]["source"] == "tensor+absent"
