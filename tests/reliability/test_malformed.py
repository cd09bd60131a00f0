"""Every hostile file through every command: the documented code, a message that names it, and nothing harmed."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch  # noqa: F401  (its import takes longer than any command may)

from fixtures.broken.adapter import good, whole
from fixtures.broken.make import CASES
from fixtures.broken.well_formed import HOSTILE_KEYS
from loratools.cli.text import visible
from tests.reliability.invariants import check_ended_well, check_printable, command, contents

OLD = b"the old output"
SLOWEST = 2.0


def arguments(verb, path, folder):
    """The command line of a verb on a path; `folder` holds the old output and the good adapter."""
    if verb == "convert":
        return verb, path, folder / "out.safetensors", "--to", "diffusers", "--overwrite"
    return (verb, path, folder / "good.safetensors") if verb == "compare" else (verb, path)


@pytest.fixture
def place(tmp_path):
    """A folder with an old output, a good adapter, and a folder `in` for the case."""
    (tmp_path / "out.safetensors").write_bytes(OLD)
    (tmp_path / "good.safetensors").write_bytes(whole(good()))
    (tmp_path / "in").mkdir()
    return tmp_path


def judge(case, path, verb, done, *, before, after):
    """What must hold of one command on one case; raises AssertionError."""
    check_ended_well(done)
    assert done.code == case.codes[verb], done
    assert done.seconds < SLOWEST, done.seconds
    if verb == "convert" and done.code == 0:
        assert after.pop("out.safetensors") != before.pop("out.safetensors")
    assert after == before
    if done.code > 1:
        named = case.key is None or visible(case.key) in done.err
        assert named, done.err
        assert visible(str(path)) in done.err or done.code == 5, done.err


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_hostile_file_ends_in_its_code_and_harms_nothing(place, case):
    path = case.make(place / "in")
    before = contents(place)
    for verb in ("inspect", "compare", "convert"):
        done = command(*arguments(verb, path, place))
        judge(case, path, verb, done, before=dict(before), after=contents(place))


def test_the_list_is_as_long_as_it_was():
    assert len({case.name for case in CASES}) == len(CASES) >= 120


SOME = [case for case in CASES if case.name in {"empty", "pipe", "device of zeros", "100,000 levels", "key: escape",
                                                "terabyte of an adapter", "up only", "link to itself"}]  # fmt: skip


@pytest.mark.parametrize("case", SOME, ids=[case.name for case in SOME])
def test_a_process_of_its_own_ends_in_the_same_code(place, case, run):
    path = case.make(place / "in")
    before = contents(place)
    done = run(*arguments("convert", path, place), timeout=20)
    assert done.returncode == case.convert, done.stderr
    assert "Traceback" not in done.stderr
    check_printable(done.stdout + done.stderr)
    assert contents(place) == before


@pytest.mark.parametrize("verb", ["inspect", "convert", "compare"])
def test_unreadable_file_is_a_matter_of_permission(verb, monkeypatch):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    root = os.geteuid() == 0
    try:
        folder.chmod(0o777)
        for name in ("in.safetensors", "good.safetensors"):
            (folder / name).write_bytes(whole(good()))
        (folder / "in.safetensors").chmod(0)
        before = contents(folder)
        if root:
            command("inspect", folder / "good.safetensors")  # imports, while everything can be read
            os.seteuid(65534)
        try:
            done = command(*arguments(verb, folder / "in.safetensors", folder))
        finally:
            if root:
                os.seteuid(0)
        check_ended_well(done)
        assert done.code == 5, done
        assert str(folder / "in.safetensors") in done.err
        assert contents(folder) == before
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("verb", ["inspect", "convert", "compare"])
@pytest.mark.parametrize("what", ["escape", "bidi override", "newline", "C1 control"])
def test_hostile_key_is_spelt_out(place, what, verb):
    case = next(case for case in CASES if case.name == f"key: {what}")
    done = command(*arguments(verb, case.make(place / "in"), place), *(["-v"] if verb == "inspect" else []))
    assert visible(HOSTILE_KEYS[what]).split("mystery")[1] in done.text.replace("\n        ", "\\n"), done.text


def test_json_carries_every_hostile_key_as_it_is(place):
    import json

    for what, key in HOSTILE_KEYS.items():
        case = next(case for case in CASES if case.name == f"key: {what}")
        document = json.loads(command("inspect", "--json", case.make(place / "in")).out)
        assert key in [item["key"] for item in document["unknown_keys"]]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_as_one_of_several_a_hostile_file_spoils_no_other(place, case):
    path = case.make(place / "in")
    done = command("inspect", path, place / "good.safetensors")
    assert done.code == case.inspect, done
    assert "good.safetensors" in done.out
    assert "sd1" in done.out
