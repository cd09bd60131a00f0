"""README's page about a whole hub, run as it stands, and what it asks of the Hub for each adapter."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import loratools as lt
from tests.hub.conftest import TOKEN

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PAGE = re.search(r"^## A whole hub\n(.*?)^## ", README, flags=re.MULTILINE | re.DOTALL)[1]
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def shelf(hub, sd1, peft_folder, tmp_path):
    """An artist's repositories: a kohya file, the same for diffusers, a PEFT folder, and a file that is none."""
    lt.convert(sd1, to="diffusers").save(tmp_path / "made.safetensors")
    hub.put("artist/kohya", {"style.safetensors": sd1.read_bytes()})
    hub.put("artist/diffusers", {"style.safetensors": (tmp_path / "made.safetensors").read_bytes()})
    hub.put("artist/peft", {path.name: path.read_bytes() for path in peft_folder.iterdir()})
    hub.put("artist/torn", {"style.safetensors": b"torn"})
    return hub


@pytest.fixture
def run(hub, tmp_path):
    """A block of the page, in a folder of its own, against the Hub on loopback."""
    program = tmp_path / "bin" / "loratools"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m loratools "$@"\n')
    program.chmod(0o755)
    (tmp_path / "work").mkdir()
    env = {
        **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "home" / "hub"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    env.pop("HF_HUB_OFFLINE", None)

    def block(language, text):
        words = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(
            words, cwd=tmp_path / "work", env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return tmp_path / "work"

    return block


def asked(hub):
    """(repository, route) → how often the Hub was asked; its store, which it sends one to, does not count."""
    found = Counter(
        (re.search("artist/([a-z]+)", item.path)[1], item.route)
        for item in hub.requests
        if item.route in ("resolve", "info")
    )
    hub.requests.clear()
    return found


def stated(what):
    """Requests for files and of the API, as the page's table has them for a row."""
    cells = next(line for line in PAGE.splitlines() if line.startswith(f"| {what}")).split("|")
    return [float(cell) for cell in cells[2:4]]


def rows(place):
    return {
        row["source"].split("/")[3].partition("@")[0]: row for row in map(json.loads, place.read_text().splitlines())
    }


def test_the_page_runs_as_it_stands_and_asks_for_no_more_than_it_says(shelf, run, peft_folder, sd1):
    assert [language for language, _ in BLOCKS] == ["bash", "python", "bash"]
    work = run(*BLOCKS[0])
    found = rows(work / "adapters.jsonl")
    assert {name: row["state"] for name, row in found.items()} == {
        "kohya": "done", "diffusers": "done", "peft": "done", "torn": "failed"
    }  # fmt: skip
    headers = asked(shelf)
    assert [headers["kohya", route] for route in ("resolve", "info")] == stated("headers of single files")
    assert [headers["peft", route] for route in ("resolve", "info")] == stated("headers of PEFT folders")
    run(*BLOCKS[1])
    wanted = {name: (work / f"{name}.txt").read_text() for name in ("diffusers", "comfyui", "kohya")}
    assert "artist/diffusers@" in wanted["kohya"]
    assert "artist/kohya@" not in wanted["kohya"]
    run(*BLOCKS[2])
    files = asked(shelf)
    times = sum("artist/peft@" in text for text in wanted.values())
    assert [files["diffusers", route] for route in ("resolve", "info")] == stated("whole single files")
    assert files["peft", "info"] == times * stated("whole PEFT folders")[1] > 0
    assert files["peft", "resolve"] == stated("whole PEFT folders")[0]
    done = rows(work / "kohya.jsonl")["diffusers"]
    assert done["document"]["proof"]["worst"] == 0
    assert lt.compare(work / done["output"], sd1).worst == 0
