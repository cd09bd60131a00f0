"""hash: every name by its own definition, claims held against the file, one fingerprint for one content."""

import hashlib
import json
import zlib

import blake3
import pytest
import torch
from safetensors.torch import load_file, save
from safetensors.torch import save_file as save_by_safetensors

import loratools as lt
from loratools.errors import MalformedFile
from loratools.tensors import checksums
from tests.files import save as write
from tests.operations.making import METADATA, MODULES, QUERY, file, tensors
from tests.reliability.invariants import command

LARGE = {**MODULES, "lora_unet_up_blocks_1_attentions_0_transformer_blocks_1_ff_net_0_proj": (10240, 1280)}
NOTHING = hashlib.sha256().hexdigest()


def test_every_hash_is_what_its_definition_makes_of_the_bytes(tmp_path):
    metadata = {"ss_network_dim": "64", "modelspec.title": "a style"}
    held = tensors(rank=64, modules=LARGE)
    path = tmp_path / "a.safetensors"
    save_by_safetensors(held, path, metadata)
    raw = path.read_bytes()
    payload = raw[8 + int.from_bytes(raw[:8], "little") :]
    # sd-scripts hashes what safetensors makes of the tensors with `ss_` metadata alone
    bare = save(held, {"ss_network_dim": "64"})
    assert len(raw) > 0x200000
    found = lt.hash(path).to_dict()["files"][0]
    assert found == {
        "path": str(path),
        "size": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "autov1": hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8],
        "autov2": hashlib.sha256(raw).hexdigest()[:10],
        "autov3": hashlib.sha256(payload).hexdigest()[:12],
        "crc32": f"{zlib.crc32(raw):08x}",
        "blake3": blake3.blake3(raw).hexdigest(),
        "sshs_model_hash": hashlib.sha256(bare[8 + int.from_bytes(bare[:8], "little") :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(bare[0x100000:0x110000]).hexdigest()[:8],
        "modelspec.hash_sha256": f"0x{hashlib.sha256(payload).hexdigest()}",
        "stated": [],
    }


@pytest.mark.parametrize("size", [0, 1, 0x100000, 0x10FFFF, 0x1FFFFF, 0x200000, (4 << 20) + 1])
def test_bytes_of_any_size_that_are_no_weights_are_hashed_too(tmp_path, size):
    path = tmp_path / "picture.png"
    path.write_bytes(bytes(number % 251 for number in range(size)))
    raw = path.read_bytes()
    with checksums.LocalFile(path) as opened:
        found = checksums.checksums(opened, None)
    assert (found.sha256, found.crc32) == (hashlib.sha256(raw).hexdigest(), f"{zlib.crc32(raw):08x}")
    assert found.blake3 == blake3.blake3(raw).hexdigest()
    assert found.autov3 is None
    assert found.autov1 == (hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8] if size >= 0x200000 else None)


def test_claims_are_held_against_the_file(tmp_path):
    honest = lt.hash(write(tensors(), tmp_path / "a.safetensors", METADATA)).files[0]
    claims = {
        "sshs_model_hash": honest.sshs_model_hash,
        "sshs_legacy_hash": "00000000",
        "modelspec.hash_sha256": f"0x{NOTHING}",
    }
    found = lt.hash(write(tensors(), tmp_path / "b.safetensors", METADATA | claims))
    assert [(claim.key, claim.stated, claim.status) for claim in found.files[0].claims] == [
        ("sshs_model_hash", claims["sshs_model_hash"], "ok"),
        ("sshs_legacy_hash", "00000000", "stale"),
        ("modelspec.hash_sha256", f"0x{NOTHING}", "of nothing"),
    ]
    assert found.warnings == (
        f"{found.files[0].path}: sshs_legacy_hash is stale",
        f"{found.files[0].path}: modelspec.hash_sha256 is the hash of nothing",
    )


@pytest.mark.parametrize("to", ["diffusers", "peft", "comfy"])
def test_a_conversion_that_is_identical_keeps_the_fingerprint(tmp_path, to):
    source = file(tmp_path / "in.safetensors")
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    done = lt.convert(source, to=to).save(out)
    assert (done.proof.exact, done.proof.measured) == (0, 0)
    assert lt.hash(out).fingerprint == lt.hash(source).fingerprint
    assert lt.hash(out).fingerprint_of == "adapter"


def flux(path, *, shared):
    """A LoRA of one fused qkv of Flux by its own names, and what is in it by those of diffusers."""
    draw = torch.Generator().manual_seed(4)
    down = torch.randn(4, 3072, generator=draw)
    ups = torch.randn(3, 3072, 4, generator=draw)
    if not shared:
        down = torch.randn(12, 3072, generator=draw)
        ups = torch.stack([torch.nn.functional.pad(up, (4 * at, 8 - 4 * at)) for at, up in enumerate(ups)])
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    held = {
        f"{stem}.lora_down.weight": down,
        f"{stem}.lora_up.weight": ups.reshape(9216, -1).contiguous(),
        f"{stem}.alpha": torch.tensor(4.0 if shared else 12.0),
    }
    return write(held, path, {"ss_base_model_version": "flux1"})


@pytest.mark.parametrize("shared", [True, False])
def test_fused_layers_have_the_fingerprint_of_their_parts(tmp_path, shared):
    source = flux(tmp_path / "in.safetensors", shared=shared)
    done = lt.convert(source, to="diffusers").save(tmp_path / "out.safetensors")
    assert len(load_file(done.path)) == 6
    assert lt.hash(done.path).fingerprint == lt.hash(source).fingerprint
    back = lt.convert(done.path, to="original").save(tmp_path / "back.safetensors")
    assert lt.hash(back.path).fingerprint == lt.hash(source).fingerprint


@pytest.mark.parametrize("change", ["bit", "alpha", "layer"])
def test_another_content_has_another_fingerprint(tmp_path, change):
    held = tensors()
    first = lt.hash(write(held, tmp_path / "a.safetensors", METADATA)).fingerprint
    if change == "bit":
        held[f"{QUERY}.lora_up.weight"].view(torch.int16)[7, 1] ^= 1
    elif change == "alpha":
        held[f"{QUERY}.alpha"] *= 2
    else:
        held = {key: tensor for key, tensor in held.items() if not key.startswith(QUERY)}
    assert lt.hash(write(held, tmp_path / "b.safetensors", METADATA)).fingerprint != first


def test_metadata_and_the_order_of_tensors_are_no_content(tmp_path):
    held = tensors()
    first = lt.hash(write(held, tmp_path / "a.safetensors", METADATA))
    again = lt.hash(write(dict(reversed(held.items())), tmp_path / "b.safetensors", {**METADATA, "note": "yours"}))
    assert again.fingerprint == first.fingerprint
    assert again.files[0].checksums.sha256 != first.files[0].checksums.sha256
    assert again.files[0].checksums.payload_sha256 == first.files[0].checksums.payload_sha256


def test_what_is_no_adapter_has_the_fingerprint_of_its_tensors(tmp_path):
    base = {"a.weight": torch.ones(3, 4), "b.weight": torch.zeros(2)}
    found = lt.hash(write(base, tmp_path / "a.safetensors", {}))
    assert (found.fingerprint_of, found.warnings) == ("tensors", ())
    again = lt.hash(write(dict(reversed(base.items())), tmp_path / "b.safetensors", {}))
    other = lt.hash(write({**base, "b.weight": torch.ones(2)}, tmp_path / "c.safetensors", {}))
    assert again.fingerprint == found.fingerprint != other.fingerprint


def test_an_adapter_with_strange_keys_is_not_fingerprinted_as_if_it_had_none(tmp_path):
    held = {**tensors(), "lora_unet_stranger": torch.ones(3)}
    found = lt.hash(write(held, tmp_path / "a.safetensors", METADATA))
    assert found.fingerprint_of == "tensors"
    assert "belong to no adapter" in found.warnings[0]


def test_a_pickle_is_hashed_and_not_opened(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save(tensors(), path)
    found = lt.hash(path)
    assert found.files[0].checksums.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.fingerprint, found.files[0].checksums.payload_sha256) == (None, None)
    assert "no fingerprint" in found.warnings[0]


def test_a_damaged_file_is_no_file_to_hash(tmp_path):
    path = file(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(MalformedFile):
        lt.hash(path)


def test_without_blake3_the_others_are_there(tmp_path, monkeypatch):
    monkeypatch.setitem(checksums.__dict__, "_blake3", lambda: None)
    found = lt.hash(file(tmp_path / "a.safetensors")).files[0].checksums
    assert (found.blake3, len(found.sha256)) == (None, 64)


def test_the_command_says_the_same(tmp_path):
    stale = write(tensors(), tmp_path / "a.safetensors", {**METADATA, "sshs_model_hash": NOTHING})
    done = command("hash", stale)
    assert done.code == 0
    document = lt.hash(stale).to_dict()
    assert document["fingerprint"] in done.out
    assert f"(the file says {NOTHING}: of nothing)" in done.out
    both = command("hash", "--json", stale, tmp_path / "none.safetensors")
    assert both.code == 2
    results = json.loads(both.out)
    assert (results["schema"], results["results"][0]) == ("loratools.hash/1", document)
    assert results["results"][1]["code"] == "path-not-found"
