"""Commands that are stopped from outside: processes that can be started at once, and what they may leave behind."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

from tests.reliability.invariants import contents, leftovers

# Everything that a command imports is there before it begins: what is stopped is the work alone. Each command is a
# child of this process, because to import torch anew takes longer than what is to be measured.
_STORY = """
import json, os, resource, sys
import torch
from loratools.cli import convert, extract, merge, progress
from loratools.operations import convert, extract, merge
from loratools.cli.main import main
print("ready", flush=True)
ends = {}
for line in sys.stdin:
    asked = json.loads(line)
    if "room" in asked:
        print(int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize(), flush=True)
        continue
    if "wait" in asked:
        child = asked["wait"]
        said = [os.fdopen(end, errors="replace").read() for end in ends.pop(child)]
        _, status, used = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), *said, used.ru_maxrss]), flush=True)
        continue
    pipes = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for (_, end), standard in zip(pipes, (1, 2)):
            os.dup2(end, standard)
        sys.stdout, sys.stderr = (open(standard, "w", closefd=False) for standard in (1, 2))
        for name, most in asked["limits"].items():
            resource.setrlimit(getattr(resource, name), (most, most))
        sys.argv[1:] = asked["arguments"]
        main()
    for _, end in pipes:
        os.close(end)
    ends[child] = [end for end, _ in pipes]
    print(child, flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), what it printed, its largest memory in bytes."""

    code: int
    out: str
    err: str
    peak: int


class Victim:
    """A running command."""

    def __init__(self, starter, number):
        self._starter, self.number = starter, number

    def send(self, number):
        """Send it a signal; it may have ended already."""
        os.kill(self.number, number)

    def ended(self):
        """Wait for its end."""
        code, out, err, peak = json.loads(self._starter.ask({"wait": self.number}))
        return Ended(code, out, err, peak << 10)


class Starter:
    """The process whose children the commands are; one for all tests of a run."""

    _only: ClassVar = None

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _STORY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout.readline() == "ready\n"

    @classmethod
    def get(cls):
        """The one of this process."""
        if cls._only is None:
            cls._only = cls()
        return cls._only

    def ask(self, what):
        """One line to it, and its answer."""
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def room():
    """The bytes of address space that a command has before it begins: what RLIMIT_AS counts."""
    return int(Starter.get().ask({"room": True}))


def started(arguments, **limits):
    """A command that has just begun; `limits` are those of the resource module by name, in their units."""
    starter = Starter.get()
    return Victim(starter, int(starter.ask({"arguments": [str(item) for item in arguments], "limits": limits})))


class Stage:
    """A folder with the inputs of a job, and an old and a new output to tell apart."""

    def __init__(self, folder, job, **how):
        self.folder, self.job = folder, job
        self.inputs = job.make(folder, **how)
        self.out = job.out(folder)
        for _ in range(2):  # what the first one found on a cold disk tells nothing about the others
            began = time.time()
            done = self.run()
            assert done.code == 0, done
        # Until the output has its name; after that the interpreter takes a while to go down.
        self.seconds = self.out.stat().st_ctime - began + 0.02
        self.new = contents(folder)
        parts = [path for path in (self.out, *self.out.rglob("*")) if path.is_file()]
        self.largest = max(path.stat().st_size for path in parts)
        self.restore()
        self.old = contents(folder)

    @property
    def arguments(self):
        """The command line."""
        return self.job.arguments(self.inputs, self.out)

    def run(self, **limits):
        """The command from beginning to end."""
        return started(self.arguments, **limits).ended()

    def restore(self):
        """Puts the old output in the place of the new one."""
        if self.job.folder:
            shutil.rmtree(self.out)
            self.out.mkdir()
            (self.out / "adapter_model.safetensors").write_bytes(b"the old output")
        else:
            self.out.write_bytes(b"the old output")

    def stop(self, number, seed):
        """Send a signal at a random moment; gives how it ended, the state ("old", "new"), the temporaries left, and the
        seconds from the signal to the end.

        Raises AssertionError where the output is neither, the inputs changed, or more stands there than may.
        """
        rng = random.Random(seed)
        victim = started(self.arguments)
        time.sleep(rng.uniform(0.0 if number == signal.SIGKILL else 0.01, self.seconds))
        victim.send(number)
        sent = time.perf_counter()
        done = victim.ended()
        waited = time.perf_counter() - sent
        left = leftovers(self.folder)
        found = {name: what for name, what in contents(self.folder).items() if ".loratools-tmp" not in name}
        assert found in (self.old, self.new), (seed, set(found) ^ set(self.old))
        state = "old" if found == self.old else "new"
        for name in {name.split("/")[0] for name in left}:
            self._remove(name)
        if state == "new":
            self.restore()
        return done, state, left, waited

    def _remove(self, name):
        path = self.folder / name
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
