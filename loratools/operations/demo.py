"""demo: the whole story on a pipeline and an adapter made on the spot, offline."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.operations.demonstration.chapters import CHAPTERS, COPIES, Chapter
from loratools.operations.demonstration.links import BACK, Link, NotHeld, convert_around, same_tensors
from loratools.operations.demonstration.made import Made, Say, Size, make_demo
from loratools.operations.inspect import Inspection, inspect


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo made and proved; `folder` is None where nothing was kept."""

    folder: Path | None
    made: Made
    inspection: Inspection
    links: tuple[Link, ...]
    identical_bytes: bool
    chapters: tuple[Chapter, ...]
    not_held: tuple[NotHeld, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every link makes the same delta, the way back gave every byte back, and every claim holds."""
        links = all(link.comparison.equal for link in self.links)
        return self.identical_bytes and links and all(chapter.holds for chapter in self.chapters)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.demo/1",
            "folder": str(self.folder) if self.folder else None,
            "passed": self.passed,
            "made": self.made.to_dict(),
            "identical_bytes": self.identical_bytes,
            "inspection": self.inspection.to_dict(),
            "links": [link.to_dict() for link in self.links],
            "not_held": [{"to": item.to, "why": item.why} for item in self.not_held],
            "chapters": [chapter.to_dict() for chapter in self.chapters],
        }


def demo(
    keep: str | os.PathLike[str] | None = None,
    *,
    architecture: str = "sd1",
    size: Size = "tiny",
    dtype: str | None = None,
    device: str = "cpu",
    seed: int = 0,
    report: Say | None = None,
) -> Demo:
    """Make a pipeline and a LoRA; convert it through every format and back; merge it, extract it again, resize and
    combine it; rebuild the pipeline with it and validate it, with a report; and measure every claim.

    Nothing is downloaded. `keep` is a new or empty folder that stays; `architecture`, `size`, `dtype`, `device` and
    `seed` are those of `make_pipeline`; `report` is told each step in words. A format that cannot hold the LoRA is
    named with the reason.
    """
    say = report or (lambda _: None)
    folder = Path(keep) if keep is not None else Path(tempfile.mkdtemp(prefix="loratools-demo-"))
    try:
        made = make_demo(
            folder,
            architecture=architecture,
            size=size,
            dtype=dtype,
            device=device,
            seed=seed,
            copies=COPIES,
            report=say,
        )
        return _story(made, say, kept=keep is not None)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _story(made: Made, say: Say, *, kept: bool) -> Demo:
    inspection = inspect(made.lora)
    tried = tuple(convert_around(made, say))
    links = tuple(item for item in tried if isinstance(item, Link))
    not_held = tuple(item for item in tried if isinstance(item, NotHeld))
    same = same_tensors(made.lora, made.folder / BACK)
    chapters = tuple(tell(made, say) for tell in CHAPTERS)
    return Demo(made.folder if kept else None, made, inspection, links, same, chapters, not_held)
