"""inspect: one document for whatever a reference holds."""

import json
from pathlib import Path

import pytest
import torch

import loratools as lt
from loratools.cli.options import RUNTIMES
from loratools.errors import MalformedFile, PathNotFound, UsageError
from loratools.formats import runtimes
from tests.files import save
from tests.operations.making import METADATA, MODULES, QUERY, file, tensors

# The contract within schema /1: keys may be added, never renamed or retyped.
PROMISED = {
    "schema": str,
    "path": str,
    "role": str,
    "format": (str, type(None)),
    "producer": (str, type(None)),
    "architecture": (str, type(None)),
    "candidates": list,
    "variant": (str, type(None)),
    "kinds": list,
    "components": dict,
    "adapters": int,
    "tensors": int,
    "parameters": int,
    "dtypes": dict,
    "ranks": dict,
    "alpha": (dict, type(None)),
    "base_model": (str, type(None)),
    "trigger_words": list,
    "metadata": dict,
    "unknown_keys": list,
    "loaders": dict,
    "warnings": list,
    "evidence": list,
}
BASE = {
    "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(320, 4, 3, 3),
    "model.diffusion_model.input_blocks.0.0.bias": torch.zeros(320),
    "model.diffusion_model.out.2.weight": torch.zeros(4, 320, 3, 3),
}
EMBEDDING = {"string_to_param": torch.zeros(2, 768), "emb_params": torch.zeros(2, 768)}


@pytest.mark.parametrize(
    ("held", "role"),
    [(tensors(), "adapter"), (BASE, "base"), (EMBEDDING, "embedding"), ({"foo": torch.zeros(1)}, "unknown")],
    ids=["adapter", "base", "embedding", "unknown"],
)
def test_every_promised_key_is_there_whatever_the_file_is(tmp_path, held, role):
    document = lt.inspect(save(held, tmp_path / "in.safetensors", METADATA)).to_dict()
    assert document["schema"] == "loratools.inspect/1"
    assert document["role"] == role
    for key, kind in PROMISED.items():
        assert isinstance(document[key], kind), key
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["tensors"] == len(held)
    assert document["metadata"] == METADATA


def test_an_adapter_is_described_by_its_numbers(tmp_path):
    document = lt.inspect(file(tmp_path / "in.safetensors", alpha=3.0)).to_dict()
    count = len(MODULES)
    assert (document["format"], document["architecture"], document["kinds"]) == ("kohya", "sd1", ["lora"])
    assert (document["adapters"], document["components"]) == (count, {"unet": 3, "text_encoder": 1})
    assert document["ranks"] == {"4": count}
    assert document["alpha"]["source"] == "tensor"
    assert document["alpha"]["values"] == {"3.0": count}
    assert document["alpha"]["scales"] == {"0.75": count}
    assert document["dtypes"] == {"F16": 2 * count, "F32": count}
    assert document["parameters"] == sum(4 * (rows + columns) for rows, columns in MODULES.values())
    assert document["unknown_keys"] == []


def test_weights_are_measured_as_dense_svd_does(tmp_path):
    from tests.operations.making import QUERY_NAME, delta

    held = tensors()
    found = lt.inspect(save(held, tmp_path / "in.safetensors", METADATA), weights=True).to_dict()["weights"]
    (row,) = [row for row in found["modules"] if row["module"] == QUERY_NAME]
    truth = torch.linalg.svdvals(delta(held, QUERY))[:4]
    assert torch.allclose(torch.tensor(row["singular_values"], dtype=torch.float64), truth, rtol=1e-9)
    assert row["norm"] == pytest.approx(float(truth.norm()), rel=1e-9)
    assert (found["non_finite"], found["dead"]) == (0, [])


def test_weights_count_what_is_not_finite_and_name_what_is_dead(tmp_path):
    from tests.operations.making import KEY

    held = tensors()
    held[f"{QUERY}.lora_up.weight"].view(-1)[:2] = torch.tensor([float("nan"), float("inf")])
    held[f"{KEY}.lora_up.weight"].zero_()
    found = lt.inspect(save(held, tmp_path / "in.safetensors", METADATA), weights=True).to_dict()["weights"]
    assert (found["non_finite"], found["not_measured"]) == (2, 1)
    assert found["dead"] == ["unet:down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"]


def test_modules_lists_every_adapter(sd1):
    rows = lt.inspect(sd1, modules=True).to_dict()["modules"]
    assert len(rows) == 6
    assert {row["rank"] for row in rows} == {4}
    assert {row["scale"] for row in rows} == {0.5}


def test_every_runtime_has_its_share_with_reasons(sd1, peft_folder):
    for reference in (sd1, peft_folder):
        document = lt.inspect(reference).to_dict()
        assert tuple(document["loaders"]) == RUNTIMES
        for share in document["loaders"].values():
            assert share["of"] == document["adapters"]
            assert share["loaded"] + sum(row["count"] for row in share["reasons"]) == share["of"]
    assert document["loaders"]["peft"]["loaded"] == document["adapters"]
    assert document["loaders"]["diffusers"]["loaded"] == 0


def test_for_a_runtime_every_key_is_answered(inside, tmp_path):
    held = tensors()
    held[f"{QUERY}.alpha"] = torch.tensor(1.0)
    path = save({**held, "mystery": torch.ones(2)}, tmp_path / "in.safetensors", METADATA)
    rows = json.loads(inside("inspect", path, "--for", "comfyui", "--json").stdout)["loading"]["keys"]
    assert {row["key"] for row in rows} == {*held, "mystery"}
    assert [row["key"] for row in rows if row["loads"] is not True] == ["mystery"]
    whole = lt.inspect(path, runtime="diffusers").to_dict()
    assert not any(row["loads"] for row in whole["loading"]["keys"])
    page = inside("inspect", path, "--for", "diffusers").stdout
    assert "refuses the file: a key has no `lora` in it" in page
    assert QUERY in page


def test_an_unknown_runtime_is_a_usage_error(inside, sd1):
    assert inside("inspect", sd1, "--for", "comfy").returncode == 2
    with pytest.raises(UsageError, match="comfy"):
        lt.inspect(sd1, runtime="comfy")


def test_the_command_line_names_every_runtime():
    assert tuple(row.id for row in runtimes.RUNTIMES) == RUNTIMES


def test_several_references_answer_in_order_as_one_alone_does(inside, sd1, sdxl, peft_folder):
    done = inside("inspect", "--json", sdxl, peft_folder, sd1)
    results = json.loads(done.stdout)["results"]
    assert results == [lt.inspect(str(path)).to_dict() for path in (sdxl, peft_folder, sd1)]


def test_strict_is_about_unknown_keys_alone(inside, sd1, tmp_path):
    assert inside("inspect", "--strict", sd1).returncode == 0
    stray = save({**tensors(), "mystery": torch.ones(2)}, tmp_path / "stray.safetensors", METADATA)
    assert inside("inspect", stray).returncode == 0
    assert inside("inspect", "--strict", stray).returncode == 3
    assert inside("inspect", "--strict", sd1, stray, sd1).returncode == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "LFS"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"PK\x03\x04" + bytes(60), "zip"),
    ],
)
def test_what_is_no_safetensors_file_is_called_what_it_is(tmp_path, content, says):
    path = tmp_path / "in.safetensors"
    path.write_bytes(content)
    with pytest.raises(MalformedFile, match=says) as caught:
        lt.inspect(path)
    assert caught.value.hint


def test_a_download_that_broke_off_says_how_much_is_missing(sd1, tmp_path):
    path = tmp_path / "in.safetensors"
    path.write_bytes(sd1.read_bytes()[:100_000])
    with pytest.raises(MalformedFile, match=f"{Path(sd1).stat().st_size}.*100000"):
        lt.inspect(path)


def test_an_empty_folder_holds_nothing_to_read(tmp_path):
    with pytest.raises(PathNotFound):
        lt.inspect(tmp_path)


@pytest.mark.parametrize("end", ["img_attn.norm.query_norm.scale.set_weight", "img_attn.qkv.set_weight"])
def test_a_scalar_in_the_place_of_a_weight_is_told_and_not_a_crash(end, tmp_path):
    held = {f"diffusion_model.double_blocks.0.{end}": torch.tensor(1.0)}
    found = lt.inspect(save(held, tmp_path / "in.safetensors", {})).document
    assert found["role"] == "adapter"
    assert "scalar" in found["evidence"][0]
    assert [row["key"] for row in found["unknown_keys"]] == list(held)
