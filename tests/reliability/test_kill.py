"""A conversion that is killed, stopped, or fails at any call leaves the old output or the whole new one."""

import errno
import os
import shutil
import signal

import pytest

from fixtures.broken.make import good, whole
from loratools.tensors.output import TEMPORARY_SUFFIX
from tests.reliability.invariants import check_ended_well, check_printable, command, contents
from tests.reliability.victims import Stage

FORMATS = ("diffusers", "peft")
CALLS = ("open", "write", "pwrite", "pread", "preadv", "copy_file_range", "sendfile", "posix_fallocate", "fsync",
         "fdatasync", "replace", "rename", "mkdir", "fchmod", "fstat", "lstat", "statvfs")  # fmt: skip


@pytest.fixture(scope="module", params=FORMATS)
def stage(request, tmp_path_factory):
    return Stage(tmp_path_factory.mktemp(f"stage-{request.param}"), request.param)


def test_killed_conversion_loses_nothing(stage):
    codes = []
    for seed in range(10):
        code, _, left, _, _ = stage.stop(signal.SIGKILL, seed)
        assert code in (-signal.SIGKILL, 0)
        assert len({name for name in left if name.startswith(".out")}) <= 1, left
        codes.append(code)
    assert -signal.SIGKILL in codes


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_conversion_cleans_up_and_says_so(stage, number, expected):
    codes = []
    for seed in range(5):
        code, state, left, waited, err = stage.stop(number, seed)
        assert left == []
        assert waited < 2
        assert "Traceback" not in err, err
        # Once the output stands and the interpreter is going down, there is nobody left to say it.
        assert code == expected or (code in (0, -number) and state == "new"), (code, state, err)
        codes.append(code)
    assert expected in codes


@pytest.mark.parametrize("part", [0.0001, 0.1, 0.5, 0.9])
def test_full_disk_leaves_the_old_output(stage, part):
    code, out, err = stage.run(limit=max(1, int(stage.largest * part)))
    assert code == 5, (out, err)
    assert "Traceback" not in err
    check_printable(err)
    assert contents(stage.folder) == stage.old


def test_room_for_exactly_the_output_is_enough(stage):
    assert stage.run(limit=stage.largest - 1)[0] == 5
    assert contents(stage.folder) == stage.old
    code, out, err = stage.run(limit=stage.largest)
    assert code == 0, (out, err)
    stage.restore()


@pytest.mark.parametrize("how", [(errno.ENOSPC, False), (errno.EIO, True)], ids=["full once", "broken from then on"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("to", FORMATS)
def test_any_failing_call_of_a_conversion_leaves_old_or_new(tmp_path, monkeypatch, to, call, how):
    code, persistent = how
    inside = tmp_path / "in.safetensors"
    inside.write_bytes(whole(good()))
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    arguments = ("convert", inside, out, "--to", to, "--overwrite")
    assert command(*arguments).code == 0
    new = contents(tmp_path)
    real = getattr(os, call)
    for fatal in range(1, 400):
        held = next(out.rglob("*.safetensors")) if out.is_dir() else out
        held.write_bytes(b"the old output")
        old = contents(tmp_path)
        count = 0

        def fail(*given, **named):
            nonlocal count
            count += 1
            if count == fatal or (persistent and count > fatal):  # noqa: B023 - called within this turn
                raise OSError(code, os.strerror(code))
            return real(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            done = command(*arguments)
        check_ended_well(done)
        found = contents(tmp_path)
        if to == "peft" and persistent and call in ("open", "lstat", "fstat"):
            # Nobody removes a folder without them: what stays is one temporary that tells what it is.
            found = {name: what for name, what in found.items() if TEMPORARY_SUFFIX not in name}
            for path in tmp_path.glob(f".*{TEMPORARY_SUFFIX}"):
                shutil.rmtree(path)
        assert found in (old, new), (fatal, done)
        assert done.code in (0, 2, 3, 5), done
        assert done.code != 0 or found == new
        if count < fatal:
            assert done.code == 0
            return
    pytest.fail("never came to an end")
