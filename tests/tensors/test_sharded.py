"""Shards: the index and the files must say the same, and nothing outside the folder is opened."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loratools.errors import LoratoolsError, MalformedFile, PathNotFound, UnsafeFile, UsageError
from loratools.tensors.sharded import open_sharded

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def make(folder: Path, index: object | None = None, *, total: int = 28) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.ones(3), "b": torch.zeros(2)}, folder / ONE, {"format": "pt"})
    save_file({"c": torch.full((2,), 7.0)}, folder / TWO, {"format": "pt"})
    places = {"a": ONE, "b": ONE, "c": TWO}
    document = {"metadata": {"total_size": total}, "weight_map": places} if index is None else index
    (folder / INDEX).write_text(document if isinstance(document, str) else json.dumps(document))
    return folder


def weight_map(**places: str) -> dict:
    return {"weight_map": places}


@pytest.mark.parametrize("by", ["folder", "index", "numbers"])
def test_shards_are_one_source(tmp_path, by):
    make(tmp_path)
    if by == "numbers":
        (tmp_path / INDEX).unlink()
    source = open_sharded(tmp_path / INDEX if by == "index" else tmp_path)
    assert source.keys() == ("a", "b", "c")
    assert len(source) == 3
    assert source["c"].load().tolist() == [7.0, 7.0]
    assert source.metadata == {"format": "pt"}
    assert source.warnings == ()
    names = {Path(file.name).name for file in source.files}
    assert names == {ONE, TWO} | ({INDEX} if by != "numbers" else set())


def test_single_file_in_a_folder_is_read(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert open_sharded(tmp_path).keys() == ("a",)


def test_wrong_total_size_is_a_warning(tmp_path):
    assert "total_size of 5" in open_sharded(make(tmp_path, total=5)).warnings[0]


HOSTILE = [
    "../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "C:x.safetensors",
    "C:\\x.safetensors", "\\\\host\\x.safetensors", ".x.safetensors", "..", "", "x", "x.bin", "x.safetensors ",
    "x\0.safetensors", "x\n.safetensors", "con.safetensors", "NUL.safetensors", "é" * 200 + ".safetensors",
    "http://host/x.safetensors", "~/x.safetensors", "x.safetensors/", "x.safetensors:stream",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_shard_names_that_are_no_plain_names_are_refused_unopened(tmp_path, name, monkeypatch):
    make(tmp_path / "in", weight_map(a=name))
    real, opened = os.open, []
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **named: (opened.append(str(path)), real(path, *rest, **named))[1]
    )
    with pytest.raises(UnsafeFile):
        open_sharded(tmp_path / "in")
    assert opened == [str(tmp_path / "in" / INDEX)]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (weight_map(a=ONE, b=ONE, c="model-00003-of-00002.safetensors"), PathNotFound),
        (weight_map(a=ONE, b=ONE, c=TWO, d=TWO), MalformedFile),
        (weight_map(a=ONE, c=TWO), MalformedFile),
        (weight_map(a=TWO, b=ONE, c=TWO), MalformedFile),
        (weight_map(a=ONE, b=ONE, c=1), MalformedFile),
        ({}, MalformedFile),
        ([], MalformedFile),
        ("", MalformedFile),
        ("{", MalformedFile),
        (f'{{"weight_map":{{"a":"{ONE}","a":"{ONE}"}}}}', MalformedFile),
        ("[" * 100_000, MalformedFile),
        ({"weight_map": {f"k{n}": f"{n}.safetensors" for n in range(10_001)}}, MalformedFile),
    ],
)
def test_index_that_does_not_fit_its_shards_is_refused(tmp_path, index, expected):
    with pytest.raises(LoratoolsError) as caught:
        open_sharded(make(tmp_path, index))
    assert type(caught.value) is expected


def test_key_in_two_shards_is_refused(tmp_path):
    make(tmp_path)
    save_file({"a": torch.zeros(3), "c": torch.zeros(2)}, tmp_path / TWO)
    with pytest.raises(MalformedFile, match="'a' is in"):
        open_sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(MalformedFile, match="'a' is in"):
        open_sharded(tmp_path)


def test_shard_that_is_a_link_outside_is_refused(tmp_path):
    make(tmp_path / "in")
    (tmp_path / "in" / TWO).rename(tmp_path / "secret.safetensors")
    (tmp_path / "in" / TWO).symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(UnsafeFile, match="link out of its folder"):
        open_sharded(tmp_path / "in")


@pytest.mark.parametrize("below", ["", "transformer"])
def test_links_into_the_blobs_of_a_hub_cache_are_followed(tmp_path, below):
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc" / below
    snapshot.mkdir(parents=True)
    make(snapshot)
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir()
    for name in (ONE, TWO):
        (snapshot / name).rename(blobs / name[:11])
        (snapshot / name).symlink_to(os.path.relpath(blobs / name[:11], snapshot))
    assert open_sharded(snapshot)["c"].load().tolist() == [7.0, 7.0]


def test_shard_that_is_a_pipe_does_not_block(tmp_path):
    make(tmp_path)
    (tmp_path / TWO).unlink()
    os.mkfifo(tmp_path / TWO)
    with pytest.raises(MalformedFile, match="pipe"):
        open_sharded(tmp_path)


def test_folders_that_are_no_one_set_are_refused(tmp_path):
    with pytest.raises(PathNotFound):
        open_sharded(tmp_path)
    make(tmp_path)
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(UsageError, match="2 indices"):
        open_sharded(tmp_path)
    for index in tmp_path.glob("*.json"):
        index.unlink()
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="no one set"):
        open_sharded(tmp_path)
    (tmp_path / "x.safetensors").unlink()
    (tmp_path / TWO).rename(tmp_path / "model-00003-of-00002.safetensors")
    with pytest.raises(MalformedFile, match="2 shards are numbered"):
        open_sharded(tmp_path)
