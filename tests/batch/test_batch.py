"""A batch ends as its items would alone: one by one in a shell, in any number of pieces, whoever dies on the way."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
from safetensors.torch import load_file

import loratools as lt
from loratools.batch import batch as batch_module
from loratools.batch.worker import Limits
from loratools.errors import ResourceError, UsageError
from tests.operations.making import file
from tests.reliability.invariants import command, leftovers

COUNT, POISON = 24, 5
PATTERN = "out/{stem}.safetensors"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Adapters, one of them no adapter at all."""
    folder = tmp_path_factory.mktemp("many") / "in"
    folder.mkdir()
    for number in range(COUNT):
        place = folder / f"{number:03d}.safetensors"
        if number == POISON:
            place.write_bytes(b"no header")
        else:
            file(place, seed=number, rank=2)
    return folder


def batch(inputs, folder, verb="inspect", **how):
    how.setdefault("workers", 2)
    return lt.Batch(verb=verb, manifest=inputs, state=folder / "state.sqlite", **how)


def states(folder):
    with sqlite3.connect(folder / "state.sqlite") as base:
        return dict(base.execute("SELECT number, state FROM item"))


def lines(path):
    """The rows of a results file without what differs from run to run."""
    return [{**json.loads(line), "seconds": 0, "attempts": 0} for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = batch(
        inputs, folder, "convert", options=["--to", "diffusers"], output=str(folder / PATTERN), workers=1,
        results=folder / "r.jsonl",
    ).run()  # fmt: skip
    return folder, done


def same_files(ours, theirs):
    return {path.name: path.read_bytes() for path in ours.iterdir()} == {
        path.name: path.read_bytes() for path in theirs.iterdir()
    }


def test_items_end_as_the_commands_alone_would(inputs, tmp_path, undisturbed):
    folder, done = undisturbed
    assert (done.items, done.done, done.failed, done.codes) == (COUNT, COUNT - 1, 1, {"malformed-file": 1})
    rows = lines(folder / "r.jsonl")
    assert [row["number"] for row in rows] == list(range(COUNT))
    alone = command("convert", inputs / "001.safetensors", tmp_path / "001.safetensors", "--to", "diffusers", "--json")
    text = json.dumps(rows[1]["document"]).replace(str(folder / "out"), str(tmp_path))
    assert json.loads(text) == json.loads(alone.out)
    assert (folder / "out" / "001.safetensors").read_bytes() == (tmp_path / "001.safetensors").read_bytes()
    refused = json.loads(command("inspect", inputs / f"{POISON:03d}.safetensors", "--json").out)
    assert (rows[POISON]["code"], rows[POISON]["message"]) == (refused["code"], refused["message"])
    assert len(list((folder / "out").iterdir())) == COUNT - 1


def test_a_second_run_has_nothing_to_do_and_a_lost_output_is_made_again(inputs, tmp_path):
    how = {"options": ["--to", "diffusers"], "output": str(tmp_path / PATTERN)}
    assert batch(inputs, tmp_path, "convert", **how).run().worked == COUNT
    assert batch(inputs, tmp_path, "convert", **how).run().worked == 0
    (tmp_path / "out" / "003.safetensors").unlink()
    again = batch(inputs, tmp_path, "convert", **how).run()
    assert (again.worked, again.done) == (1, COUNT - 1)
    assert load_file(tmp_path / "out" / "003.safetensors")


def test_failures_are_tried_again_when_asked(inputs, tmp_path):
    assert batch(inputs, tmp_path).run().failed == 1
    assert batch(inputs, tmp_path).run().worked == 0
    assert batch(inputs, tmp_path, retry=True).run().worked == 1


def test_shards_are_the_whole_in_parts(inputs, tmp_path):
    seen = []
    for index in (1, 2, 3):
        part = tmp_path / str(index)
        part.mkdir()
        done = batch(inputs, part, shard=(index, 3), results=part / "r.jsonl").run()
        assert done.items == COUNT // 3
        seen += [row["number"] for row in lines(part / "r.jsonl")]
    assert sorted(seen) == list(range(COUNT))


def test_names_that_are_no_text_are_names_all_the_same(inputs, tmp_path):
    (tmp_path / "in").mkdir()
    odd = os.fsdecode(os.fsencode(tmp_path / "in") + b"/\xff\n.safetensors")
    os.link(inputs / "000.safetensors", odd)
    done = batch(tmp_path / "in", tmp_path, results=tmp_path / "r.jsonl").run()
    assert (done.done, done.failed) == (1, 0)
    assert json.loads((tmp_path / "r.jsonl").read_text())["source"] == odd


def test_parquet_holds_what_json_lines_hold(inputs, tmp_path):
    batch(inputs, tmp_path, results=tmp_path / "r.jsonl").run()
    batch(inputs, tmp_path, results=tmp_path / "r.parquet").run()
    rows = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    written = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [{**row, "document": json.loads(row["document"])} for row in rows] == written


def test_a_state_is_one_batchs_alone(inputs, tmp_path):
    batch(inputs, tmp_path).run()
    with pytest.raises(UsageError, match="of another batch"):
        batch(inputs, tmp_path, "hash").run()
    with pytest.raises(UsageError, match="rows may only be added at its end"):
        batch([str(inputs / "007.safetensors"), str(inputs / "006.safetensors"), "new"], tmp_path).run()
    names = [str(path) for path in sorted(inputs.iterdir())]
    assert batch([*names, str(inputs)], tmp_path).run().worked == 1


def test_two_runs_never_share_a_state(inputs, tmp_path):
    def second(*_):
        with pytest.raises(ResourceError, match="another run"):
            batch(inputs, tmp_path).run()
        tried.append(True)

    tried = []
    batch(inputs, tmp_path, progress=second).run()
    assert tried


def test_limits_cost_one_item_each(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_module, "RUNNER", "tests.batch.odd_items:run")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    done = batch(inputs, tmp_path, limits=Limits(seconds=2.0, memory=None, size=100_000), results=tmp_path / "r.jsonl")
    summary = done.run()
    rows = {row["number"]: row for row in lines(tmp_path / "r.jsonl")}
    assert rows[3]["code"] == "timeout"
    assert rows[8]["code"] == "worker-died"
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[8])["attempts"] == batch_module.ATTEMPTS
    assert summary.codes == {"malformed-file": 1, "timeout": 1, "worker-died": 1}
    assert summary.done == COUNT - 3
    assert {row["code"] for row in rows.values() if row["number"] not in (3, POISON, 8)} == {None}
    too_large = batch(inputs, tmp_path / "..", limits=Limits(size=10), results=tmp_path / "s.jsonl")
    (tmp_path / ".." / "state.sqlite").unlink(missing_ok=True)
    assert too_large.run().codes == {"malformed-file": 1, "too-large": COUNT - 1}


def test_killed_workers_cost_nothing(inputs, tmp_path, undisturbed):
    killed = []

    def kill(done, *_):
        if done % 6 == 0 and len(killed) < 3:
            listed = subprocess.run(
                ["pgrep", "-P", str(os.getpid()), "-f", "spawn_main"], capture_output=True, text=True, check=False
            )
            for pid in listed.stdout.split()[:1]:
                os.kill(int(pid), signal.SIGKILL)
                killed.append(pid)

    folder, done = undisturbed
    how = {"options": ["--to", "diffusers"], "output": str(tmp_path / PATTERN), "results": tmp_path / "r.jsonl"}
    found = batch(inputs, tmp_path, "convert", progress=kill, **how).run()
    assert killed
    assert (found.done, found.codes) == (done.done, done.codes)
    assert same_files(tmp_path / "out", folder / "out")
    assert leftovers(tmp_path) == []


def test_a_killed_run_goes_on_where_it_was(inputs, tmp_path, undisturbed):
    folder, done = undisturbed
    words = [
        "batch",
        "convert",
        inputs,
        "-o",
        tmp_path / PATTERN,
        "--state",
        tmp_path / "state.sqlite",
        "--workers",
        "2",
    ]
    line = [sys.executable, "-m", "loratools", *map(str, words), "--to", "diffusers", "-q"]
    for _ in range(2):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        before = len(list((tmp_path / "out").glob("[0-9]*"))) if (tmp_path / "out").exists() else 0
        while time.monotonic() < deadline and process.poll() is None:
            if (tmp_path / "out").exists() and len(list((tmp_path / "out").glob("[0-9]*"))) >= before + 4:
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
    finished = subprocess.run([*line, "--json"], check=False, capture_output=True, text=True)
    assert finished.returncode == 1, finished.stderr  # one of the files is none
    summary = json.loads(finished.stdout)
    assert (summary["done"], summary["codes"]) == (done.done, dict(done.codes))
    assert set(states(tmp_path).values()) == {"done", "failed"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("[0-9]*")} == {
        path.name: path.read_bytes() for path in (folder / "out").iterdir()
    }


def test_the_command_says_how_it_ended(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command("batch", "hash", inputs, "--results", "r.jsonl", "--workers", "1")
    assert (done.code, f"hash: {COUNT - 1} of {COUNT} done" in done.out) == (1, True)
    assert lines(tmp_path / "r.jsonl")[0]["document"] == lt.hash(inputs / "000.safetensors").to_dict()
    assert command("hash", "-h").code == 0
    wrong = command("batch", "convert", inputs, "-o", PATTERN, "--too", "diffusers")
    assert (wrong.code, "did you mean '--to'?" in wrong.err) == (2, True)
    for words in (["--shard", "3/2"], ["--set", "x"], ["--results", "r.txt"], ["-o", "x"]):
        assert command("batch", "inspect", inputs, *words).code == 2, words


@pytest.mark.parametrize("engine", ["processes", pytest.param("ray", marks=pytest.mark.long)])
def test_an_output_whose_process_died_is_written_once_more(inputs, tmp_path, undisturbed, monkeypatch, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(batch_module, "RUNNER", "tests.batch.odd_items:dies_once")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("DIED_ONCE", str(tmp_path / "died"))
    folder, done = undisturbed
    found = batch(
        inputs, tmp_path, "convert", options=["--to", "diffusers"], output=str(tmp_path / PATTERN), engine=engine
    ).run()
    assert (tmp_path / "died").exists()
    assert (found.done, found.codes) == (done.done, done.codes)
    assert same_files(tmp_path / "out", folder / "out")


@pytest.mark.long
def test_a_cluster_ends_as_processes_do(inputs, tmp_path, undisturbed):
    pytest.importorskip("ray", reason="Ray is not installed")
    folder, done = undisturbed
    how = {"options": ["--to", "diffusers"], "output": str(tmp_path / PATTERN), "results": tmp_path / "r.jsonl"}
    found = batch(inputs, tmp_path, "convert", engine="ray", **how).run()
    assert (found.done, found.codes) == (done.done, done.codes)
    assert same_files(tmp_path / "out", folder / "out")


@pytest.mark.long
def test_an_actor_that_dies_costs_its_item(inputs, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(batch_module, "RUNNER", "tests.batch.odd_items:run")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    done = batch(inputs, tmp_path, engine="ray", limits=Limits(seconds=5.0)).run()
    assert done.codes == {"malformed-file": 1, "timeout": 1, "worker-died": 1}
    assert done.done == COUNT - 3
