"""Items that misbehave by their number: one never ends, one ends its process, the others are hashed."""

import os
import time

from loratools.cli.items import run as answer


def run(words):
    """As the real one."""
    name = words[1].rpartition("/")[2]
    if name.startswith("003"):
        time.sleep(60)
    if name.startswith("008"):
        os._exit(9)
    return 0, {"words": list(words)} if name else answer(words)
