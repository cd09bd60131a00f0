"""The process that unpickles: one for all files, a confined child for each, and nothing of it outlives whose it is."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from loratools.errors import ResourceError, UnsafeFile
from loratools.tensors import pickle_process
from loratools.tensors.pickle_file import open_pickle
from loratools.tensors.pickle_process import UNPICKLER

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# What stands in for the zygote's program: as it is, but for what a child does; without torch, where none is needed.
PROGRAM = """
import json, os, signal, sys, time
sys.path[:] = json.loads(sys.argv.pop(1))
from loratools.tensors import pickle_child

def answer(source, target, size):
    name = os.path.basename(os.readlink("/proc/self/fd/%d" % source))
BODY

pickle_child.answer = answer
pickle_child.warm = lambda: None
from loratools.tensors.pickle_zygote import main
main()
"""


def program(body):
    return PROGRAM.replace("BODY", "\n".join("    " + line for line in body.strip().splitlines()))


@pytest.fixture
def programmed(monkeypatch):
    """Gives the children of another zygote another body; the first one stands aside until the test is over."""

    def give(body):
        monkeypatch.setattr(UNPICKLER, "_zygote", None)
        monkeypatch.setattr(pickle_process, "_RUN", program(body))

    yield give
    UNPICKLER.close()


def saved(path, value=1.0):
    torch.save({"a": torch.full((2,), value)}, path)
    return path


def zygote():
    return UNPICKLER._zygote.process.pid


def runs(pid):
    """Whether a process is there; one that only waits to be buried by another's parent is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while runs(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not runs(pid)


def test_one_process_of_one_thread_reads_every_file_whichever_thread_asks(tmp_path):
    paths = [saved(tmp_path / f"{n}.pt", float(n)) for n in range(4)]
    open_pickle(paths[0], allowed=True)
    first, found = zygote(), {}

    def read(n):
        found[n] = open_pickle(paths[n], allowed=True)["a"].load().tolist()

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [n, n] for n in range(4)}
    assert zygote() == first
    assert len(list(Path(f"/proc/{first}/task").iterdir())) == 1
    assert Path(f"/proc/{first}/task/{first}/children").read_text() == ""


def test_a_child_has_its_two_files_and_its_answer_alone_and_can_open_nothing_once_confined(tmp_path, programmed):
    programmed("""
held = sorted(int(name) for name in os.listdir("/proc/self/fd"))
extra = set(held) - set([0, 1, 2, source, target])
import socket, subprocess
pickle_child.confine(1000)
done = []
for attempt in (lambda: open("/etc/passwd"), lambda: socket.socket(), lambda: os.system("true"), lambda: os.fork(),
                lambda: subprocess.run(["true"])):
    try:
        attempt()
        done.append("did")
    except Exception as error:
        done.append(type(error).__name__)
# The listing itself takes one.
return json.dumps(dict(refused=" ".join([str(len(extra)), *done])))
""")
    with pytest.raises(UnsafeFile) as caught:
        open_pickle(saved(tmp_path / "x.pt"), allowed=True)
    assert caught.value.message.endswith(": 1 OSError Refused Refused Refused Refused")


DEATHS = {
    "killed.pt": ("os.kill(os.getpid(), signal.SIGKILL)", "exit status -9"),
    "seconds.pt": ("os.kill(os.getpid(), signal.SIGXCPU)", "exit status -24"),
    "memory.pt": ("pickle_child.confine(1000); bytearray(1 << 40)", "MemoryError"),
    "disk.pt": ("pickle_child.confine(1000); os.pwrite(target, b'x', 1 << 40)", "File too large"),
}


def test_a_child_that_its_limits_end_is_an_error_of_the_machine_and_spoils_no_next_file(tmp_path, programmed):
    body = "".join(f"if name == {name!r}: {what}\n" for name, (what, _) in DEATHS.items())
    programmed(body + "return json.dumps(dict(skipped=[], refused=name))")
    for name, (_, said) in DEATHS.items():
        with pytest.raises(ResourceError, match=said):
            open_pickle(saved(tmp_path / name), allowed=True)
        first = zygote()
        with pytest.raises(UnsafeFile, match=r"good\.pt"):
            open_pickle(saved(tmp_path / "good.pt"), allowed=True)
        assert zygote() == first


@pytest.mark.parametrize("when", ["at work", "before"])
def test_where_the_zygote_dies_the_next_file_has_a_new_one(tmp_path, programmed, when):
    programmed("""
if name == "last.pt": os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)
return json.dumps(dict(refused=name))
""")
    if when == "at work":
        with pytest.raises(ResourceError, match="exit status -9"):
            open_pickle(saved(tmp_path / "last.pt"), allowed=True)
    else:
        with pytest.raises(UnsafeFile):
            open_pickle(saved(tmp_path / "first.pt"), allowed=True)
        UNPICKLER._zygote.process.kill()
        UNPICKLER._zygote.process.wait()
    with pytest.raises(UnsafeFile, match=r"good\.pt"):
        open_pickle(saved(tmp_path / "good.pt"), allowed=True)


def test_a_zygote_that_cannot_start_says_why(tmp_path, programmed, monkeypatch):
    programmed("")
    monkeypatch.setattr(pickle_process, "_RUN", "import nothing_of_that_name")
    with pytest.raises(ResourceError, match="No module named 'nothing_of_that_name'"):
        open_pickle(saved(tmp_path / "x.pt"), allowed=True)


OWNER = """
import os, sys
sys.path.insert(0, REPOSITORY)
from loratools.errors import LoratoolsError
from loratools.tensors import pickle_process
from loratools.tensors.pickle_file import open_pickle
pickle_process._RUN = PROGRAM

def read(name):
    try:
        open_pickle(os.path.join(FOLDER, name), allowed=True)
    except LoratoolsError as error:
        return error.message.split(": ")[-1], pickle_process.UNPICKLER._zygote.process.pid
"""


def owner(folder, body, rest):
    text = OWNER.replace("REPOSITORY", repr(str(REPOSITORY))).replace("FOLDER", repr(str(folder)))
    return subprocess.Popen(
        [sys.executable, "-I", "-c", text.replace("PROGRAM", repr(program(body))) + rest],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("end", ["exit", "killed", "killed while a child is at work"])
def test_the_zygote_and_its_child_are_gone_when_their_owner_is(tmp_path, end):
    saved(tmp_path / "quick.pt")
    saved(tmp_path / "slow.pt")
    body = f"""
if name == "slow.pt":
    open({str(tmp_path / "child")!r}, "w").write("%d %d" % (os.getppid(), os.getpid()))
    os.rename({str(tmp_path / "child")!r}, {str(tmp_path / "told")!r})
    time.sleep(60)
return json.dumps(dict(refused=name))
"""
    work = 'read("slow.pt")' if "work" in end else "sys.stdin.read()"
    with owner(tmp_path, body, f'print(*read("quick.pt"), flush=True); {work}') as process:
        said, pid = process.stdout.readline().split()
        assert said == "quick.pt"
        pids = [int(pid)]
        while "work" in end and not (tmp_path / "told").exists():
            time.sleep(0.01)
        if "work" in end:
            assert (tmp_path / "told").read_text().split()[0] == pid
            pids.append(int((tmp_path / "told").read_text().split()[1]))
        assert all(runs(pid) for pid in pids)
        if end == "exit":
            process.stdin.close()
        else:
            process.kill()
        process.wait()
    assert all(gone(pid, 0 if end == "exit" else 10) for pid in pids)


def test_a_forked_process_has_a_zygote_of_its_own_and_keeps_none_alive(tmp_path):
    for name in ("one.pt", "two.pt"):
        saved(tmp_path / name)
    rest = """
said, first = read("one.pt")
answer, told = os.pipe()
child = os.fork()
if not child:
    os.write(told, " ".join(map(str, read("two.pt"))).encode())
    sys.stdin.read()
    os._exit(0)
name, own = os.read(answer, 100).decode().split()
print(said, first, name, own, read("two.pt")[1], child, flush=True)
os.kill(os.getpid(), 9)
"""
    with owner(tmp_path, "return json.dumps(dict(refused=name))", rest) as process:
        said, first, name, own, again, child = process.stdout.readline().split()
        assert (said, name) == ("one.pt", "two.pt")
        assert first == again != own
        assert gone(int(first))
        assert runs(int(own))
        assert runs(int(child))
        process.stdin.close()
        assert gone(int(own))
