"""A rebuild that has been planned: its preview, and how it becomes a folder, a single file, or both."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from loratools.errors import ArchitectureMismatch, LoratoolsError, NonFinite, UsageError
from loratools.operations.merge import PendingMerge
from loratools.operations.merging.result import Merge
from loratools.operations.outputs.provenance import InputHashes
from loratools.operations.rebuilding.output import RebuildOutput
from loratools.operations.rebuilding.result import Rebuild, RebuildPlan
from loratools.pipelines.single_file import homeless, require_single_file
from loratools.pipelines.trial import Trial, try_folder, try_single_file
from loratools.tensors.writer import Progress


@dataclass(frozen=True)
class PendingRebuild:
    """A rebuild that has been planned from headers and configurations: nothing has been computed or written."""

    plan: RebuildPlan
    pending: PendingMerge
    output: RebuildOutput

    def preview(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        single_file: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> RebuildPlan:
        """The plan for the outputs, with the disk space that is free; raises what `save` would before it writes."""
        folder, single = self._places(out, single_file)
        free = self.output.preview(folder, single, overwrite=overwrite)
        return replace(
            self._plan_for(single),
            path=str(folder) if folder else None,
            single_file=str(single) if single else None,
            free_disk=free,
        )

    def _plan_for(self, single: Path | None) -> RebuildPlan:
        """The plan, with what a single file leaves out where one is written."""
        if single is None or self.output.table is None:
            return self.plan
        lost = homeless(self.output.merged.checkpoint, self.output.table)
        lines = tuple(f"{name}: a single file has no place for it" for name in lost)
        return replace(self.plan, left_out=(*self.plan.left_out, *lines))

    def save(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        single_file: str | os.PathLike[str] | None = None,
        check: bool = True,
        overwrite: bool = False,
        if_needed: bool = False,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> Rebuild:
        """Compute, write and verify a folder, a single file, or both: then both or neither. With `check` each is loaded
        by diffusers, compared tensor by tensor and run for one step before it gets its name.

        Raises OutputExists, OutputRefused, ResourceError, NonFinite, and UnsupportedFile for what diffusers refuses.
        """
        folder, single = self._places(out, single_file)
        if folder is None and single is None:
            raise UsageError("no output was named", hint="rebuild BASE LORA=0.8 -o DIR")
        hashes = InputHashes(self.output.hashed, self.output.merged.folders)
        how: dict[str, Any] = {"overwrite": overwrite, "threads": threads, "progress": progress}
        trials: dict[str, Trial] = {}
        size = single_size = 0

        def pack(place: Path, complete: Path | None) -> None:
            nonlocal single_size
            attempt = partial(try_single_file, architecture_id=self.plan.merge.architecture or "")
            proof = _proving(place, partial(_keep, trials, "single", attempt)) if check else None
            single_size = self.output.save_single(place, complete, hashes, prove=proof, **how).size

        def prove(place: Path, complete: Path) -> None:
            """The folder is right, and what is made of it stands, before it gets its name."""
            if check:
                _proving(place, partial(_keep, trials, "folder", try_folder))(complete)
            if single is not None:
                pack(single, complete)

        try:
            if if_needed and self.output.stands(folder, single, hashes):
                return self._done(folder, single, trials, 0, 0, skipped=True)
            self.output.preview(folder, single, overwrite=overwrite)
            if folder is not None:
                before = _standing(folder), _standing(single)
                try:
                    size = self.output.save_folder(folder, hashes, prove=partial(prove, folder), **how).size
                except BaseException:
                    if single is not None and single_size and before == (_standing(folder), None):
                        single.unlink(missing_ok=True)
                    raise
            elif single is not None:
                pack(single, None)
        except NonFinite as error:
            error.path = error.path or self.plan.merge.base
            raise
        finally:
            hashes.close()
        return self._done(folder, single, trials, size, single_size)

    def _places(self, out: Any, single_file: Any) -> tuple[Path | None, Path | None]:
        if single_file is not None:
            candidates = self.output.merged.checkpoint.base.candidates
            if self.output.table is None and len(candidates) > 1:
                raise ArchitectureMismatch(
                    f"the base model could be {' or '.join(candidates)}, whose single files have other names",
                    path=self.plan.merge.base,
                    hint=f"--arch {candidates[0]}, if that is what it is",
                )
            require_single_file(self.plan.merge.architecture)
        return Path(out) if out is not None else None, Path(single_file) if single_file is not None else None

    def _done(
        self,
        folder: Path | None,
        single: Path | None,
        trials: Mapping[str, Trial],
        size: int,
        single_size: int,
        *,
        skipped: bool = False,
    ) -> Rebuild:
        merged: Merge = self.pending.told(folder or single or Path(), size, skipped=skipped)
        linked = [name for name, _ in self.plan.linked if folder is not None and (folder / name).stat().st_nlink > 1]
        return Rebuild(
            folder,
            single,
            self._plan_for(single),
            merged,
            tuple(linked),
            trials.get("folder"),
            trials.get("single"),
            single_size,
            skipped,
        )


def _standing(path: Path | None) -> int | None:
    """Which file or folder has a name, by its number; None for none."""
    return path.lstat().st_ino if path is not None and os.path.lexists(path) else None


def _keep(trials: dict[str, Trial], name: str, attempt: Callable[..., Trial], *places: Path) -> None:
    trials[name] = attempt(*places)


def _proving(out: Path, prove: Callable[..., None]) -> Callable[..., None]:
    """A proof whose complaints name the output, not the temporary that it was given."""

    def proving(*places: Path) -> None:
        try:
            prove(*places)
        except LoratoolsError as error:
            error.path = str(out)
            raise

    return proving
