"""Items that misbehave by their number: one never ends, one ends its process, once or every time."""

import os
import time
from pathlib import Path

from loratools.cli.items import run as answer


def run(words):
    """As the real one."""
    name = words[1].rpartition("/")[2]
    if name.startswith("003"):
        time.sleep(60)
    if name.startswith("008"):
        os._exit(9)
    return answer(words)


def dies_once(words):
    """As the real one; but the process of one item ends, the first time, when its output stands."""
    found = answer(words)
    died = Path(os.environ["DIED_ONCE"])
    if words[1].endswith("004.safetensors") and not died.exists():
        died.touch()
        os._exit(9)
    return found
