"""A command that is killed, stopped, or fails at any call leaves the old output or the whole new one."""

import errno
import os
import shutil
import signal

import pytest

from loratools.tensors.output import TEMPORARY_SUFFIX
from tests.reliability.invariants import check_ended_well, check_printable, command, contents
from tests.reliability.jobs import JOBS
from tests.reliability.victims import Stage

CALLS = ("open", "write", "pwrite", "pread", "preadv", "copy_file_range", "sendfile", "posix_fallocate", "fsync",
         "fdatasync", "replace", "rename", "mkdir", "fchmod", "fstat", "lstat", "statvfs")  # fmt: skip
KILLS = {"convert": 10, "merge": 5, "extract": 6, "rebuild": 3}
STOPS = {"convert": 5, "merge": 4, "extract": 3, "rebuild": 2}
IN_PROCESS = [job for job in JOBS if job.verb in ("convert", "merge")]


def named(job):
    return job.name


@pytest.fixture(scope="module", params=JOBS, ids=named)
def stage(request, tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("stage"), request.param)


def test_killed_command_loses_nothing(stage):
    codes = []
    for seed in range(KILLS[stage.job.verb]):
        done, _, left, _ = stage.stop(signal.SIGKILL, seed)
        assert done.code in (-signal.SIGKILL, 0)
        assert len({name for name in left if name.startswith(".out")}) <= 1, left
        codes.append(done.code)
    assert -signal.SIGKILL in codes


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_command_cleans_up_and_says_so(stage, number, expected):
    codes = []
    for seed in range(STOPS[stage.job.verb]):
        done, state, left, waited = stage.stop(number, seed)
        assert left == []
        assert waited < 2
        assert "Traceback" not in done.err, done
        # Once the output stands and the interpreter is going down, there is nobody left to say it.
        assert done.code == expected or (done.code in (0, -number) and state == "new"), (state, done)
        codes.append(done.code)
    assert expected in codes


@pytest.mark.parametrize("part", [0.0001, 0.1, 0.5, 0.9])
def test_full_disk_leaves_the_old_output(stage, part):
    done = stage.run(RLIMIT_FSIZE=max(1, int(stage.largest * part)))
    assert done.code == 5, done
    assert "Traceback" not in done.err
    check_printable(done.err)
    assert contents(stage.folder) == stage.old


def test_room_for_exactly_the_output_is_enough(stage):
    assert stage.run(RLIMIT_FSIZE=stage.largest - 1).code == 5
    assert contents(stage.folder) == stage.old
    done = stage.run(RLIMIT_FSIZE=stage.largest)
    assert done.code == 0, done
    stage.restore()


@pytest.mark.parametrize("how", [(errno.ENOSPC, False), (errno.EIO, True)], ids=["full once", "broken from then on"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("job", IN_PROCESS, ids=named)
def test_any_failing_call_leaves_old_or_new(tmp_path, monkeypatch, job, call, how):
    code, persistent = how
    out = job.out(tmp_path)
    arguments = job.arguments(job.make(tmp_path, small=True), out)
    assert command(*arguments).code == 0
    new = contents(tmp_path)
    real = getattr(os, call)
    # A path is resolved by one lstat for each of its folders, over and over: every fifth will do.
    step = 5 if (job.verb, call) == ("merge", "lstat") else 1
    for fatal in range(1, 1000, step):
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
        if job.folder and persistent and call in ("open", "lstat", "fstat"):
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
