"""The options of a validation: what makes no sense is refused before anything is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from loratools.errors import UsageError, nearest
from loratools.pipelines.running import DTYPES, require_device
from loratools.pipelines.schedulers import sampler

ROUTES = ("loaded", "converted", "merged", "extracted")
"""The routes that may be left out."""


def require_options(
    *,
    skip: Sequence[str],
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    scheduler: str | None,
    dtype: str,
    device: str,
    report: str | os.PathLike[str] | None,
    overwrite: bool,
) -> None:
    """Raise UsageError for words that mean nothing and where nothing is to be drawn, ResourceError for a device that is
    not there, and what `guard_report` raises.
    """
    if report is not None:
        from loratools.reports.report import guard_report

        guard_report(Path(report), overwrite=overwrite)
    for name in skip:
        if name not in ROUTES:
            raise UsageError(
                f"there is no route {name!r} to leave out", hint=nearest(name, ROUTES) or ", ".join(ROUTES)
            )
    if dtype not in DTYPES:
        raise UsageError(f"a pipeline does not run in {dtype!r}", hint=f"one of {', '.join(DTYPES)}")
    if not prompts or not seeds or steps < 1:
        raise UsageError("at least one prompt, one seed and one step are needed")
    if scheduler is not None:
        sampler(scheduler)
    require_device(device)
