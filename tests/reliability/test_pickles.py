"""Hostile pickles through every command, allowed or not: no code of theirs runs, and nothing is left."""

import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

from tests.reliability.invariants import check_ended_well, command, contents

VERBS = ("inspect", "convert", "compare")


def arguments(verb, path, out):
    """The command line of a verb on a path."""
    return {
        "inspect": ("inspect", path),
        "convert": ("convert", path, out, "--to", "diffusers"),
        "compare": ("compare", path, path),
    }[verb]


class Runs:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


PAYLOADS = {
    "os.system": lambda canary: Runs(os.system, f"touch {canary}"),
    "subprocess": lambda canary: Runs(subprocess.Popen, ["touch", str(canary)]),
    "exec": lambda canary: Runs(exec, f"open({str(canary)!r}, 'w')"),
    "torch.load": lambda canary: Runs(torch.load, str(canary)),
    "runpy": lambda canary: Runs(__import__("runpy").run_path, str(canary)),
}


@pytest.fixture
def hostile(tmp_path):
    """Every payload in every protocol, as an archive and bare."""
    paths = []
    for name, payload in PAYLOADS.items():
        for protocol in range(6):
            data = pickle.dumps({"a": payload(tmp_path / "canary")}, protocol)
            bare, archive = tmp_path / f"{name}-{protocol}.ckpt", tmp_path / f"{name}-{protocol}.pt"
            bare.write_bytes(data)
            with zipfile.ZipFile(archive, "w") as made:
                made.writestr("archive/data.pkl", data)
                made.writestr("archive/version", "3\n")
            paths += [bare, archive]
    return paths


@pytest.mark.parametrize("allowed", [False, True], ids=["refused", "allowed"])
@pytest.mark.parametrize("verb", VERBS)
def test_no_payload_runs_by_any_command(tmp_path, hostile, verb, allowed):
    before = contents(tmp_path)
    for path in hostile:
        more = ["--unsafe-pickle"] if allowed else []
        done = command(*arguments(verb, path, tmp_path / "out.safetensors"), *more)
        check_ended_well(done)
        assert done.code == 3, (path, done)
        assert allowed or "--unsafe-pickle" in done.err
    assert contents(tmp_path) == before


_WATCHED = """
import sys
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event in WATCH else None)
WATCH = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"}
from loratools.cli.main import main
for path in sys.argv[1:]:
    try:
        main(["inspect", path, "--unsafe-pickle"])
    except SystemExit as end:
        assert end.code == 3, path
print(seen)
"""


def test_no_process_is_even_started_for_a_hostile_pickle(hostile):
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, *map(str, hostile)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n", done


def test_plain_tensors_are_converted_when_allowed(tmp_path):
    from safetensors.torch import load_file

    from tests.operations.making import tensors

    held = tensors()
    torch.save(held, tmp_path / "in.pt")
    out = tmp_path / "out.safetensors"
    done = command("convert", tmp_path / "in.pt", out, "--to", "kohya", "--unsafe-pickle")
    assert done.code == 0, done
    found = load_file(out)
    assert all(torch.equal(found[key].float(), tensor.float()) for key, tensor in held.items())
