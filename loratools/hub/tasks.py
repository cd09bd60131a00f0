"""What models make, in the Hub's word for it and in the words of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Task(NamedTuple):
    """The Hub's word, the field of a pipeline's result and what one of it is called; `ids` begin the ids of the
    architectures whose models make that.
    """

    tag: str
    results: str
    one: str
    ids: tuple[str, ...] = ()


TASKS = (
    Task("text-generation", "", "", ("llm",)),
    Task("text-to-audio", "audios", "audio", ("ace-step",)),
    Task(
        "text-to-video",
        "frames",
        "film",
        (
            "animatediff", "cogvideo", "framepack", "helios", "hunyuan-video", "latte", "ltx", "mochi", "sana-video",
            "skyreels", "wan",
        ),
    ),
)  # fmt: skip
PICTURES = Task("text-to-image", "images", "image")
"""What the models of all other architectures make."""
SEVERAL = ("cosmos", "kandinsky5", "minimax-h3")
"""Architectures some of whose models make pictures, and others films."""


def task_of(architectures: Sequence[str]) -> Task | None:
    """The task of a model that may be of any of these architectures; None where that is not told."""
    found = {None if name in SEVERAL else _task(name) for name in architectures}
    return found.pop() if len(found) == 1 else None


def _task(architecture: str) -> Task:
    return next((task for task in TASKS if architecture.startswith(task.ids)), PICTURES)
