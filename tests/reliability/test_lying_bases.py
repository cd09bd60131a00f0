"""Base models that lie about their size, their shards or their keys: refused before any memory is spent."""

import json
import struct

import pytest

from fixtures.broken.adapter import packed, tensor, whole
from tests.reliability.invariants import check_ended_well, command, contents
from tests.reliability.jobs import claiming, folder_base, single_base
from tests.reliability.victims import started

TOUCHED = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
MIB = 1 << 20
STEM = "diffusion_pytorch_model"
ONE, TWO = (f"{STEM}-0000{number}-of-00002.safetensors" for number in (1, 2))


def pair(rows, columns, rank=1):
    return {f"{LAYER}.lora_down.weight": (rank, columns), f"{LAYER}.lora_up.weight": (rows, rank)}


# name → (base, adapter as (shapes, bytes that are there), exit code)
BOMBS = {
    "factors of 2³¹ over few bytes": (None, (pair(2**31, 2**31), 4096), 3),
    "factors of 2³¹ in a hole": (None, (pair(2**31, 2**31), None), 4),
    "factors of 65536": (None, (pair(65536, 65536), None), 4),
    "a rank of 2³¹": (None, (pair(320, 320, 2**31), None), 5),
    "a base of 2⁴⁰ elements over few bytes": ({TOUCHED: (2**20, 2**20)}, (pair(320, 320), None), 3),
    "a base of 2⁶³ bytes": ({TOUCHED: (2**31, 2**31)}, (pair(320, 320), None), 3),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_product_bomb_is_refused_before_memory_is_spent(tmp_path, bomb):
    shapes, adapter, code = BOMBS[bomb]
    base = single_base(tmp_path, small=True)[0]
    if shapes is not None:
        base = claiming(tmp_path / "b.safetensors", shapes, size=9)
    lora = claiming(tmp_path / "l.safetensors", adapter[0], size=adapter[1])
    before = contents(tmp_path)
    done = started(["merge", base, lora, "-o", tmp_path / "out.safetensors"]).ended()
    assert done.code == code, done
    assert done.err.startswith("error: ")
    assert done.peak < 300 * MIB, done
    assert contents(tmp_path) == before


def test_a_base_larger_than_the_disk_is_refused_before_memory_is_spent(tmp_path):
    base = claiming(tmp_path / "b.safetensors", {TOUCHED: (2**20, 2**21)})
    lora = claiming(tmp_path / "l.safetensors", pair(2**20, 2**21))
    done = started(["merge", base, lora, "-o", tmp_path / "out.safetensors"]).ended()
    assert done.code in (4, 5), done
    assert done.peak < 300 * MIB, done
    assert not (tmp_path / "out.safetensors").exists()


def _edit(root, edit):
    place = root / "unet" / f"{STEM}.safetensors.index.json"
    document = json.loads(place.read_text())
    edit(document)
    place.write_text(json.dumps(document))


def outside(root, name):
    (root.parent / "secret.safetensors").write_bytes(whole({"x": tensor("F16", 4)}))
    _edit(root, lambda document: document["weight_map"].update({next(iter(document["weight_map"])): name}))


def swapped(root):
    _edit(root, lambda document: document["weight_map"].update(dict.fromkeys(document["weight_map"], TWO)))


def missing_shard(root):
    (root / "unet" / TWO).unlink()


def missing_key(root):
    (root / "unet" / ONE).write_bytes(whole({"more.weight": tensor("F16", 4), **_held(root / "unet" / ONE)}))


def _held(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return {
        key: (entry["dtype"], entry["shape"], data[8 + length :][slice(*entry["data_offsets"])])
        for key, entry in header.items()
        if key != "__metadata__"
    }


def extra_key(root):
    _edit(root, lambda document: document["weight_map"].update({"nowhere.weight": ONE}))


def doubled(root):
    (root / "unet" / TWO).write_bytes((root / "unet" / ONE).read_bytes())


def shard_linked_out(root):
    place = root / "unet" / TWO
    moved = root.parent / "elsewhere.safetensors"
    place.rename(moved)
    place.symlink_to(moved)


def file_linked_out(root):
    (root.parent / "secret.txt").write_text("mine")
    (root / "scheduler" / "notes.txt").symlink_to(root.parent / "secret.txt")


def same_key_twice(root):
    entry = '"a.weight":{"dtype":"F16","shape":[1],"data_offsets":[%d,%d]}'
    (root / "unet" / ONE).write_bytes(packed(f"{{{entry % (0, 2)},{entry % (2, 4)}}}", bytes(4)))


def truncated(root):
    place = root / "unet" / TWO
    place.write_bytes(place.read_bytes()[:-1])


LIES = {
    "a shard above the folder": lambda root: outside(root, "../secret.safetensors"),
    "a shard by an absolute path": lambda root: outside(root, str(root.parent / "secret.safetensors")),
    "a shard by a Windows path": lambda root: outside(root, "..\\secret.safetensors"),
    "a shard that is a pickle": lambda root: outside(root, "secret.bin"),
    "keys in other shards": swapped,
    "a missing shard": missing_shard,
    "a key that the index lacks": missing_key,
    "a key that no shard has": extra_key,
    "one key in two shards": doubled,
    "a shard that is a link out of the folder": shard_linked_out,
    "a file that is a link out of the folder": file_linked_out,
    "a key twice in one header": same_key_twice,
    "a truncated shard": truncated,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_index_is_refused(tmp_path, lie):
    root, adapter = folder_base(tmp_path, small=True)
    LIES[lie](root)
    before = contents(tmp_path)
    done = command("merge", root, adapter, "-o", tmp_path / "out")
    check_ended_well(done)
    assert done.code == (2 if lie == "a missing shard" else 3), done
    assert contents(tmp_path) == before


def test_a_wrong_total_size_is_a_warning(tmp_path):
    root, adapter = folder_base(tmp_path, small=True)
    _edit(root, lambda document: document["metadata"].update(total_size=12))
    done = command("merge", root, adapter, "-o", tmp_path / "out", "--json")
    assert done.code == 0, done
    assert [line for line in json.loads(done.out)["warnings"] if "total_size" in line]
    plan = command("merge", root, adapter, "-o", tmp_path / "other", "--json", "--dry-run")
    assert [line for line in json.loads(plan.out)["warnings"] if "total_size" in line]


def test_two_spellings_of_one_layer_are_refused(tmp_path):
    base, _ = single_base(tmp_path, small=True)
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    held = {f"{LAYER}.lora_down.weight": tensor("F16", 1, 320), f"{LAYER}.lora_up.weight": tensor("F16", 320, 1),
            f"{path}.lora_A.weight": tensor("F16", 1, 320), f"{path}.lora_B.weight": tensor("F16", 320, 1)}  # fmt: skip
    lora = tmp_path / "l.safetensors"
    lora.write_bytes(whole(held))
    done = command("merge", base, lora, "-o", tmp_path / "out.safetensors")
    check_ended_well(done)
    assert done.code == 3, done
