"""Names that would leave their folder, under the rules of POSIX and Windows: nothing outside is ever opened."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from fixtures.broken.adapter import good, whole
from loratools.errors import LoratoolsError
from loratools.tensors.folder import check_relative_name
from loratools.tensors.sharded import check_shard_name
from tests.reliability.invariants import check_ended_well, command, contents

S = ".safetensors"
STEMS = (
    "../x", "../../x", "/x", "//x", "a/x", "a/../x", "./x", ".x", "..x", "x/", "x/.", "a//x", "~/x", "~root/x",
    "$HOME/x/", "..\\x", "\\x", "\\\\host\\share\\x", "\\\\?\\C:\\x", "C:\\x", "C:x", "c:/x", "a\\..\\x", "x:stream",
    "x::$DATA", "con", "CON", "prn", "aux", "nul", "NUL.tar", "com1", "COM9.x", "lpt1", "Lpt5.y",
    "x\0", "x\0.png", "\0", "x\n", "x\r\ny", "\tx", "x\x1b[31m", "x\x7f", "file:///x", "http://host/x", "hf://x/y",
    "\\\\.\\pipe\\x", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/fd/0", "fifo/x", " x", "%2e%2e/x",
    "a/%2e%2e/x", "x|touch canary", "x<y", "x>y", 'x"y', "x?y", "x*y", "..", ".", "...", "....//x", "..;/x",
    "\u2215x/", "\uff0e\uff0e/x", "x" * 250, "é" * 200, "COM¹", "x/con", "nul/x", "/x/../../x", "a\x00/../x",
    "\ufeff/x", "x\\", "x:", "\\", "/", ":", "*", "conin$/",
)  # fmt: skip


def opened_outside(folder, work):
    """The paths outside `folder` (and outside Python) that are opened while `work` runs."""
    found, watching = [], True

    def hook(event, arguments):
        if watching and event in ("open", "os.listdir", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
            path = arguments[0]
            if isinstance(path, str | bytes):
                found.append(os.path.realpath(os.fsdecode(path)) if b"\0" not in os.fsencode(path) else path)

    sys.addaudithook(hook)
    try:
        work()
    finally:
        watching = False
    inside = (os.path.realpath(folder), os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix))
    ours = str(Path(__file__).resolve().parents[2])
    return [path for path in found if not path.startswith((*inside, ours)) and not path.endswith(".pyc")]


def test_the_list_has_eighty_names():
    assert len(set(STEMS)) == len(STEMS) >= 80


@pytest.mark.parametrize("stem", STEMS)
def test_shard_of_such_a_name_is_not_opened(tmp_path, stem):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / f"x{S}").write_bytes(whole(good()))
    (folder / "fifo").mkdir()
    os.mkfifo(folder / "fifo" / f"x{S}")
    os.mkfifo(folder / f"pipe{S}")
    index = folder / f"model{S}.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(good(), stem + S)}))
    done = []
    outside = opened_outside(folder, lambda: done.append(command("inspect", index)))
    check_ended_well(done[0])
    assert done[0].code in (2, 3), done
    assert outside == []


@pytest.mark.parametrize("stem", [stem for stem in STEMS if set(stem) & set("/\\:\0\n") or stem.startswith(".")])
def test_both_systems_rules_refuse_what_either_would_take_out_of_the_folder(stem):
    with pytest.raises(LoratoolsError):
        check_shard_name(stem + S, path="x")
    with pytest.raises(LoratoolsError):
        check_relative_name(f"unet/../{stem}{S}")


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "link out", "folder"])
def test_shard_that_is_no_file_of_the_folder_never_blocks(tmp_path, kind):
    folder = tmp_path / "model"
    folder.mkdir()
    shard = folder / f"a{S}"
    (tmp_path / f"x{S}").write_bytes(whole(good()))
    os.mkfifo(folder / "pipe")
    {
        "pipe": lambda: os.mkfifo(shard),
        "link to a pipe": lambda: shard.symlink_to(folder / "pipe"),
        "link out": lambda: shard.symlink_to(tmp_path / f"x{S}"),
        "folder": shard.mkdir,
    }[kind]()
    (folder / f"model{S}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(good(), shard.name)}))
    done = command("inspect", folder)
    check_ended_well(done)
    assert done.code == 3, done


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "model_index.json"])
def test_pipe_in_the_place_of_a_known_file_never_blocks(tmp_path, name):
    (tmp_path / "adapter_model.safetensors").write_bytes(whole(good()))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if name == "model_index.json":
        (tmp_path / "adapter_config.json").unlink()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    done = command("inspect", tmp_path)
    check_ended_well(done)
    assert done.code == 3, done


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..", "unet/../../evil"])
def test_component_of_a_pipeline_outside_its_folder_is_not_opened(tmp_path, name):
    folder = tmp_path / "pipe"
    folder.mkdir()
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "model.safetensors").write_bytes(whole(good()))
    (folder / "model_index.json").write_text(json.dumps({name: ["diffusers", "UNet2DConditionModel"]}))
    done = []
    outside = opened_outside(folder, lambda: done.append(command("inspect", folder)))
    check_ended_well(done[0])
    assert [path for path in outside if "evil" in path] == []
    assert done[0].code in (2, 3), done


ALIASES = {
    "same": lambda folder: folder / "in.safetensors",
    "dot": lambda folder: f"{folder}/./in.safetensors",
    "double slash": lambda folder: f"{folder}//in.safetensors",
    "up and down": lambda folder: f"{folder}/sub/../in.safetensors",
    "relative": lambda folder: os.path.relpath(folder / "in.safetensors"),
    "symbolic link": lambda folder: folder / "link.safetensors",
    "hard link": lambda folder: folder / "hard.safetensors",
    "linked folder": lambda folder: folder / "other" / "in.safetensors",
    "link to a link": lambda folder: folder / "twice.safetensors",
}


@pytest.mark.parametrize("alias", ALIASES)
def test_output_that_is_the_input_by_another_name_is_refused(tmp_path, alias):
    (tmp_path / "in.safetensors").write_bytes(whole(good()))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.safetensors").symlink_to("in.safetensors")
    (tmp_path / "twice.safetensors").symlink_to("link.safetensors")
    (tmp_path / "hard.safetensors").hardlink_to(tmp_path / "in.safetensors")
    (tmp_path / "other").symlink_to(".")
    before = contents(tmp_path)
    done = command("convert", tmp_path / "in.safetensors", ALIASES[alias](tmp_path), "--to", "diffusers", "--overwrite")
    check_ended_well(done)
    assert done.code == 2, done
    assert contents(tmp_path) == before


@pytest.mark.parametrize("out", ["in", "in/sub", "linked", ".", "in/.", "in/../in"])
def test_output_in_an_input_folder_is_refused(tmp_path, out, peft_folder):
    shutil.copytree(peft_folder, tmp_path / "in")
    (tmp_path / "linked").symlink_to("in")
    before = contents(tmp_path)
    done = command("convert", tmp_path / "in", f"{tmp_path}/{out}", "--to", "peft", "--overwrite")
    check_ended_well(done)
    assert done.code == 2, done
    assert contents(tmp_path) == before
