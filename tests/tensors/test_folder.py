"""Folders: whole or not at all, exchanged in one step, and never in the place of something else."""

from __future__ import annotations

import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loratools.errors import InternalError, LoratoolsError, OutputExists, OutputRefused, ResourceError
from loratools.tensors import folder as folder_module
from loratools.tensors.carried import LateBytes, Linked
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.safetensors_file import open_safetensors
from loratools.tensors.source import LocalFile
from loratools.tensors.writer import write_folder


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def content(value: float) -> dict:
    tensors = {"a": LazyTensor.from_torch(torch.full((50,), value)), "b": LazyTensor.zeros("F16", (3, 3))}
    return {
        "unet/adapter_model.safetensors": (tensors, {"v": str(value)}),
        "unet/adapter_config.json": json.dumps({"v": value}).encode(),
        "README.md": b"# " + str(value).encode(),
    }


def value_of(folder: Path) -> float:
    value = json.loads((folder / "unet/adapter_config.json").read_bytes())["v"]
    assert load_file(folder / "unet/adapter_model.safetensors")["a"].eq(value).all()
    assert (folder / "README.md").read_bytes() == b"# " + str(value).encode()
    return value


def test_folder_holds_what_was_given(tmp_path):
    done = write_folder(tmp_path / "out", content(1.0))
    assert value_of(tmp_path / "out") == 1.0
    assert done.files.keys() == content(1.0).keys()
    assert done.size == sum(item.path.stat().st_size for item in done.files.values())
    assert names(tmp_path) == ["out"]


def test_files_are_copied_as_they_are(tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "vocab.json").write_bytes(data)
    file = LocalFile(tmp_path / "vocab.json")
    write_folder(tmp_path / "out", {"tokenizer/vocab.json": file, "empty.txt": b""}, inputs=[file])
    assert (tmp_path / "out/tokenizer/vocab.json").read_bytes() == data
    assert (tmp_path / "out/empty.txt").read_bytes() == b""


@pytest.mark.parametrize("exchange", [True, False])
def test_existing_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    write_folder(tmp_path / "out", {**content(1.0), "old.json": b"{}"})
    with pytest.raises(OutputExists):
        write_folder(tmp_path / "out", content(2.0))
    assert value_of(tmp_path / "out") == 1.0
    if not exchange:
        monkeypatch.setattr(folder_module, "_exchange", lambda *_: False)
    write_folder(tmp_path / "out", content(2.0), overwrite=True)
    assert value_of(tmp_path / "out") == 2.0
    assert not (tmp_path / "out/old.json").exists()
    assert names(tmp_path) == ["out"]


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", content(1.0))
    assert value_of(tmp_path / "out") == 1.0
    assert names(tmp_path) == ["out"]


def test_folder_with_other_things_is_not_replaced(tmp_path):
    write_folder(tmp_path / "out", content(1.0))
    (tmp_path / "out/thesis.docx").write_bytes(b"years of work")
    with pytest.raises(OutputRefused, match=r"thesis\.docx"):
        write_folder(tmp_path / "out", content(2.0), overwrite=True)
    assert (tmp_path / "out/thesis.docx").exists()


def test_places_that_are_no_outputs_are_refused(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", content(1.0))
    monkeypatch.chdir(tmp_path / "out/unet")
    with pytest.raises(OutputRefused, match="current folder"):
        write_folder(tmp_path / "out", content(2.0), overwrite=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("out")
    for name in ("file", "link"):
        with pytest.raises(OutputRefused):
            write_folder(tmp_path / name, content(2.0), overwrite=True)
    source = open_safetensors(tmp_path / "out/unet/adapter_model.safetensors")
    with pytest.raises(OutputRefused, match="holds an input"):
        write_folder("out", {"a.safetensors": ({"a": source["a"]}, {})}, inputs=source.files, overwrite=True)
    assert value_of(tmp_path / "out") == 1.0


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/x",
        "a/../../x",
        ".hidden",
        "a//b",
        "",
        "a/",
        "con",
        "a/NUL.json",
        "a\\b",
        "a:b",
        "x" * 101,
        "a\0b",
        "a\nb",
        "é",
    ],
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(OutputRefused):
        write_folder(tmp_path / "out", {name: b"x"})
    assert names(tmp_path) == []


def test_proof_sees_the_folder_and_can_undo_it(tmp_path):
    seen = []

    def check(folder: Path) -> None:
        seen.append(value_of(folder))
        raise InternalError("no")

    with pytest.raises(InternalError):
        write_folder(tmp_path / "out", content(3.0), check=check)
    assert seen == [3.0]
    assert names(tmp_path) == []


def test_progress_and_late_metadata_reach_every_file(tmp_path):
    steps: list[tuple[int, int]] = []
    done = write_folder(
        tmp_path / "out",
        content(1.0),
        progress=lambda *at: steps.append(at),
        late_metadata={"unet/adapter_model.safetensors": lambda digest: {"h": digest}},
    )
    name = "unet/adapter_model.safetensors"
    assert open_safetensors(tmp_path / "out" / name).metadata == {"v": "1.0", "h": done.files[name].payload_sha256}
    assert steps == sorted(steps)
    assert steps[-1][1] == done.size


@pytest.mark.parametrize("call", ["mkdir", "open", "pwrite", "fsync", "fdatasync", "rename", "preadv"])
def test_any_failing_call_leaves_the_old_folder_or_the_whole_new_one(tmp_path, monkeypatch, call):
    real = getattr(os, call)
    for exchange in (True, False):
        for fatal in range(1, 100):
            if not (tmp_path / "out").exists():
                write_folder(tmp_path / "out", content(1.0))
            count, failed = 0, None

            def fail(*arguments: object, **named: object) -> object:
                nonlocal count
                count += 1
                if count == fatal:  # noqa: B023 - called within this turn
                    raise OSError(28, "No space left on device")
                return real(*arguments, **named)

            with monkeypatch.context() as patch:
                patch.setattr(os, call, fail)
                if not exchange:
                    patch.setattr(folder_module, "_exchange", lambda *_: False)
                try:
                    write_folder(tmp_path / "out", content(2.0), overwrite=True)
                except LoratoolsError as error:
                    failed = error
            assert failed is None or isinstance(failed, ResourceError)
            assert names(tmp_path) == ["out"]
            assert value_of(tmp_path / "out") in (1.0, 2.0)
            if count < fatal:
                assert not failed
                break
            if not failed:
                assert call == "mkdir", "only making a folder that is there already may fail unnoticed"
                assert value_of(tmp_path / "out") == 2.0
            write_folder(tmp_path / "out", content(1.0), overwrite=True)


def test_shards_are_read_back_by_diffusers_rules(tmp_path):
    save_file({"x": torch.ones(3)}, tmp_path / "in.safetensors")
    source = open_safetensors(tmp_path / "in.safetensors")
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"metadata": {"total_size": 24}, "weight_map": {"a": names[0], "b": names[1]}}
    write_folder(
        tmp_path / "out",
        {
            names[0]: ({"a": source["x"]}, {"format": "pt"}),
            names[1]: ({"b": source["x"]}, {"format": "pt"}),
            "model.safetensors.index.json": json.dumps(index).encode(),
        },
        inputs=source.files,
    )
    from loratools.tensors.sharded import open_sharded

    assert {key: open_sharded(tmp_path / "out")[key].tobytes() for key in "ab"} == dict.fromkeys(
        "ab", source["x"].tobytes()
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_writers_of_one_new_folder_none_is_lost_unasked(tmp_path, overwrite):
    def files(writer):
        return {"model.safetensors": ({"a": LazyTensor.from_bytes("U8", (4096,), bytes(4096))}, {"writer": writer})}

    for number in range(10):
        out, ready = tmp_path / str(number), threading.Barrier(2)

        def one(writer, out=out, ready=ready):
            try:
                write_folder(out, files(writer), overwrite=overwrite, check=lambda _: ready.wait(20) and None)
            except OutputExists:
                return None
            return writer

        with ThreadPoolExecutor(2) as pool:
            ended = list(pool.map(one, "ab"))
        winners = [end for end in ended if end]
        assert len(winners) == (2 if overwrite else 1)
        assert open_safetensors(out / "model.safetensors").metadata["writer"] in winners
    assert len(list(tmp_path.iterdir())) == 10


def test_a_linked_file_is_the_same_file_and_a_link_of_a_link_is_none(tmp_path):
    held, pointer = tmp_path / "held.bin", tmp_path / "pointer.bin"
    held.write_bytes(b"weights")
    pointer.symlink_to(held)
    files = {"a.bin": Linked(LocalFile(held)), "b.bin": Linked(LocalFile(pointer)), "c.bin": LocalFile(held)}
    write_folder(tmp_path / "out", files)
    inodes = [(tmp_path / "out" / name).lstat().st_ino for name in files]
    assert inodes[0] == inodes[1] == held.stat().st_ino != inodes[2]
    assert (tmp_path / "out" / "c.bin").read_bytes() == b"weights"


def test_a_file_that_cannot_be_linked_is_copied(tmp_path, monkeypatch):
    held = tmp_path / "held.bin"
    held.write_bytes(b"weights")

    def refuse(*_):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    write_folder(tmp_path / "out", {"a.bin": Linked(LocalFile(held))})
    assert (tmp_path / "out" / "a.bin").read_bytes() == b"weights"
    assert (tmp_path / "out" / "a.bin").stat().st_ino != held.stat().st_ino


def test_a_file_that_was_replaced_since_it_was_opened_is_not_linked(tmp_path):
    held, other = tmp_path / "held.bin", tmp_path / "other.bin"
    held.write_bytes(b"weights")
    file = LocalFile(held)
    assert file.size == 7
    other.write_bytes(b"another")
    other.replace(held)
    write_folder(tmp_path / "out", {"a.bin": Linked(file)})
    assert (tmp_path / "out" / "a.bin").read_bytes() == b"weights"


def test_late_bytes_are_made_when_their_turn_comes_and_keep_their_word(tmp_path):
    seen = []

    def late():
        seen.append(next(path.name for path in tmp_path.glob(".out*/a.bin")))
        return b"late"

    write_folder(tmp_path / "out", {"a.bin": b"first", "b.txt": LateBytes(4, late)})
    assert seen == ["a.bin"]
    assert (tmp_path / "out" / "b.txt").read_bytes() == b"late"
    with pytest.raises(InternalError):
        write_folder(tmp_path / "other", {"b.txt": LateBytes(5, lambda: b"late")})
    assert not (tmp_path / "other").exists()
