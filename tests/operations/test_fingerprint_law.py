"""One fingerprint wherever a conversion is proven identical, another after one flipped bit: over files of the wild.

    pytest -m long tests/operations/test_fingerprint_law.py -s      every inventory, all its layers

The files are made by the corpus' own script, at rank 2; those of PEFT, whose configuration states it, at their own, and
LoKr's, which is small enough.
"""

import importlib.util
import json
import os
import random
import shutil
import sys
from pathlib import Path

import pytest

import loratools as lt
from loratools.errors import LoratoolsError
from loratools.formats.registry import FORMATS

CORPUS = os.environ.get("LORATOOLS_CORPUS")
EXPECTED = json.loads((Path(CORPUS) / "EXPECTED.json").read_text()) if CORPUS else {}
# Made by hand, their factors make no Kronecker product of the sizes of any layer; and a list of names without shapes.
NO_FILES = {
    "lora_anima_lokr_dora_fixture.json", "lora_flux1_lokr_bfl_fixture.json", "lora_qwen_image_kohya_lokr_fixture.json",
    "lora_sd15_lycoris_oft_diag_names_real.json",
}  # fmt: skip
NAMES = [name for name, truth in sorted(EXPECTED.items()) if truth["role"] == "adapter" and name not in NO_FILES]
LARGE = ("lycoris_full", "modules_to_save", "embed_lmhead")
SAMPLE = (
    "lora_llm_gpt2_gen.json", "lora_sd15_cloneofsimo_rank4_real.json", "lora_sd15_lycoris_locon_dora_gen.json.gz",
    "lora_sd15_lycoris_lokr_gen.json.gz", "lora_sd15_peft_ia3_gen.json", "lora_wan21_t2v_1_3b_musubi_r32_gen.json.gz",
)  # fmt: skip
TRIALS = 3

pytestmark = pytest.mark.skipif(not CORPUS, reason="LORATOOLS_CORPUS names no folder of key inventories")


@pytest.fixture(scope="module")
def materialize():
    """The script's own main, as a function of its words."""
    place = Path(CORPUS) / "materialize.py"
    specification = importlib.util.spec_from_file_location("materialize", place)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run(*words):
        before, sys.argv = sys.argv, [str(place), *map(str, words)]
        try:
            script.main()
        finally:
            sys.argv = before

    return run


def made(materialize, name, folder, *words):
    """An adapter of that inventory: a file, or a PEFT folder where it has a configuration."""
    folder.mkdir()
    file = folder / "adapter_model.safetensors"
    as_it_is = "peft" in EXPECTED[name]["format"] or "lokr" in EXPECTED[name]["kinds"]
    materialize(Path(CORPUS) / name, file, *words, *(() if as_it_is else ("--rank", 2, "--keep-small")))
    return folder if (folder / "adapter_config.json").exists() else file


def weights(place):
    return place / "adapter_model.safetensors" if place.is_dir() else place


def fingerprint(place, arch):
    found = lt.hash(place, arch=arch)
    assert found.fingerprint_of == "adapter", (place, found.warnings)
    return found.fingerprint


def flipped(place, folder, seed):
    """The same with the lowest bit of one element of one factor flipped."""
    shutil.copytree(place if place.is_dir() else place.parent, folder)
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    factors = [
        entry for key, entry in sorted(header.items())
        if key != "__metadata__" and entry["dtype"] in ("F16", "BF16", "F32") and len(entry["shape"]) > 1
    ] or [entry for key, entry in sorted(header.items()) if key.endswith(".weight")]  # fmt: skip
    entry = random.Random(seed).choice(factors)
    first, last = entry["data_offsets"]
    width = 4 if entry["dtype"] == "F32" else 2
    data[start + first + random.Random(seed + 1).randrange((last - first) // width) * width] ^= 1
    file.write_bytes(data)
    return folder if place.is_dir() else file


def identical_conversions(place, arch, folder):
    """format → what was written, for every format that holds it identically."""
    found = {}
    for kind in FORMATS:
        out = folder / (kind.id if kind.folder else f"{kind.id}.{kind.container}")
        try:
            done = lt.convert(place, to=kind.id, arch=arch).save(out)
        except LoratoolsError:
            continue  # what a format cannot hold is other tests' affair
        if done.proof.identical and not (done.proof.exact or done.proof.measured):
            found[kind.id] = out
    return found


def check(materialize, name, folder, *words):
    """The law for one inventory; the formats that it was judged by."""
    arch = EXPECTED[name]["architecture"]
    place = made(materialize, name, folder / "made", *words)
    before = fingerprint(place, arch)
    found = identical_conversions(place, arch, folder)
    assert {kind: fingerprint(out, arch) for kind, out in found.items()} == dict.fromkeys(found, before)
    for trial in range(TRIALS):
        other = flipped(place, folder / f"flipped-{trial}", trial)
        assert fingerprint(other, arch) != before, trial
    return sorted(found)


@pytest.mark.parametrize("name", SAMPLE)
def test_identical_conversions_keep_the_fingerprint_and_a_flipped_bit_does_not(materialize, tmp_path, name):
    assert check(materialize, name, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_so_it_is_for_the_whole_corpus(materialize, tmp_path, name):
    limit = ("--limit-modules", 24) if any(word in name for word in LARGE) else ()
    print(f"{name}: {', '.join(check(materialize, name, tmp_path, *limit))}")
    shutil.rmtree(tmp_path)
