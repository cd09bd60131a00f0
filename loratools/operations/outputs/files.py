"""The files of an adapter as rendered: where they may go, what is recorded in them, and how they get there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loratools.errors import LoratoolsError, NotRepresentable, OutputRefused, UsageError
from loratools.formats.opening import CONFIG
from loratools.formats.render import OutputFile, Rendered
from loratools.model import Container
from loratools.operations.header.hashes import recomputed
from loratools.operations.lora import open_lora
from loratools.operations.outputs.provenance import PROVENANCE_KEY, InputHashes, record
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.output import check_free_space, guard_folder, guard_output
from loratools.tensors.source import LocalFile
from loratools.tensors.writer import Progress, layout_in, write, write_folder

if TYPE_CHECKING:
    import torch


class Saved(NamedTuple):
    """What stands there now: its size in bytes, and the SHA-256 of the payload where one file was hashed. `skipped`
    when it was made from these inputs before.
    """

    path: Path
    size: int
    payload_sha256: str | None
    skipped: bool = False


@dataclass(frozen=True)
class AdapterOutput:
    """An adapter that an operation made, laid out in `format` and not yet written.

    `folders` are the folders that inputs were opened from, in none of which the output may lie; `folder` says whether
    the format is one.
    """

    operation: str
    parameters: Mapping[str, Any]
    inputs: tuple[LocalFile, ...]
    folders: tuple[Path, ...]
    rendered: Rendered
    format: str
    folder: bool

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(tensor.nbytes for file in self.rendered.files for tensor in file.tensors.values())

    @property
    def size(self) -> int:
        """The bytes of the finished files, headers and configurations among them; no value is read."""
        text = record(self.operation, self.parameters, InputHashes.awaited(self.inputs, self.folders))
        total = 0
        for content in self._contents().values():
            if isinstance(content, bytes):
                total += len(content)
            else:
                tensors, metadata = content
                total += layout_in(self._container).of(tensors, {**metadata, PROVENANCE_KEY: text}).size
        return total

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor by its key, computed now; keys of several files are joined by `component/`."""
        several = len(self.rendered.files) > 1
        return {
            f"{file.name}/{key}" if several else key: tensor.load()
            for file in self.rendered.files
            for key, tensor in file.tensors.items()
        }

    def preview(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> int:
        """The disk space, in bytes, that is free for an output; raises what `save` would before it writes."""
        path = Path(out)
        self.guard(path, overwrite=overwrite)
        check_free_space(path.parent, self.nbytes)
        room = os.statvfs(path.parent)
        return room.f_bavail * room.f_frsize

    def guard(self, path: Path, *, overwrite: bool) -> None:
        """Raise OutputExists, OutputRefused, UsageError or NotRepresentable for a place that the output cannot have."""
        self._require_place(path)
        if self._is_folder(path):
            guard_folder(path, self.inputs, self._contents(), overwrite=overwrite)
        else:
            guard_output(path, self.inputs, overwrite=overwrite)

    def stands(self, path: Path) -> bool:
        """Whether this output was made there before, by this version from these inputs."""
        self._require_place(path)
        hashes = InputHashes(self.inputs, self.folders)
        try:
            return made_from(path, record(self.operation, self.parameters, hashes.inputs()))
        finally:
            hashes.close()

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        check: Callable[[Path], None],
        digest: bool,
        overwrite: bool = False,
        if_needed: bool = False,
        progress: Progress | None = None,
    ) -> Saved:
        """Write and verify; `check` is given the complete file or folder before it gets its name, and may refuse it.

        Without `digest` nothing is hashed, and `check` must compare every byte that was only copied. Raises
        OutputExists, OutputRefused, UsageError, NotRepresentable, ResourceError, and what `check` raises.
        """
        path = Path(out)
        self._require_place(path)
        hashes = InputHashes(self.inputs, self.folders)
        try:
            if if_needed and made_from(path, record(self.operation, self.parameters, hashes.inputs())):
                return Saved(path, 0, None, skipped=True)
            late = {
                self._name(file): late_metadata(self.operation, self.parameters, file.metadata, file.tensors, hashes)
                for file in self.rendered.files
            }
            if self._is_folder(path):
                done = write_folder(
                    path,
                    self._contents(),
                    inputs=self.inputs,
                    overwrite=overwrite,
                    progress=progress,
                    check=check,
                    late_metadata=late,
                    digest=digest,
                )
                return Saved(path, done.size, None)
            file = self.rendered.files[0]
            one = write(
                path,
                file.tensors,
                file.metadata,
                inputs=self.inputs,
                overwrite=overwrite,
                progress=progress,
                check=check,
                late_metadata=late[self._name(file)],
                digest=digest,
                container=file.container,
            )
            return Saved(path, one.size, one.payload_sha256)
        finally:
            hashes.close()

    @property
    def _container(self) -> Container:
        return self.rendered.files[0].container

    def _name(self, file: OutputFile) -> str:
        """The place of a file in the output folder: one component at its root, several in folders of their own."""
        return file.weights if len(self.rendered.files) == 1 else f"{file.name}/{file.weights}"

    def _contents(self) -> dict[str, Any]:
        contents: dict[str, Any] = {}
        for file in self.rendered.files:
            name = self._name(file)
            contents[name] = (file.tensors, file.metadata)
            if file.config is not None:
                text = json.dumps(file.config, indent=2, sort_keys=True) + "\n"
                contents[name.removesuffix(file.weights) + CONFIG] = text.encode()
        return contents

    def _is_folder(self, path: Path) -> bool:
        return self.folder and path.suffix != ".safetensors"

    def _require_place(self, path: Path) -> None:
        """Raise UsageError or OutputRefused for a place that this output cannot have."""
        if self.folder and path.suffix == ".safetensors":
            self._require_bare(path)
        elif not self.folder and path.suffix != f".{self._container}":
            hint = f"name it {path.name or 'out'}.{self._container}"
            raise UsageError(f"{self.format} is one .{self._container} file", path=path, hint=hint)
        if any(path.resolve().is_relative_to(folder.resolve()) for folder in self.folders):
            raise OutputRefused("the output lies in the input", path=path, hint="give the output another name")

    def _require_bare(self, path: Path) -> None:
        """One PEFT file without its configuration can hold one component whose factors are multiplied by 1."""
        if len(self.rendered.files) > 1:
            raise UsageError("several components need a folder", path=path, hint=f"write to {path.with_suffix('')}/")
        scaled = next((item for item in self.rendered.adapters if float(item.scale) != 1.0), None)
        if scaled is not None:
            raise NotRepresentable(
                f"a bare PEFT file has no place for the alpha of {scaled.target.name}",
                path=path,
                hint="write to a folder, or multiply alpha into the factors with --alpha fold",
            )


def late_metadata(
    operation: str,
    parameters: Mapping[str, Any],
    metadata: Mapping[str, str],
    tensors: Mapping[str, LazyTensor],
    hashes: InputHashes,
) -> Callable[[str], Mapping[str, str]]:
    """The metadata of a file that depend on hashes, which run while it is written: its record, and those it states."""

    def late(payload_sha256: str) -> Mapping[str, str]:
        found = {PROVENANCE_KEY: record(operation, parameters, hashes.beside(payload_sha256))}
        return found | recomputed(metadata, tensors, payload_sha256)

    return late


def made_from(path: Path, wanted: str) -> bool:
    """Whether an adapter's own record says that it was made by this version from these inputs and parameters."""
    try:
        opened = open_lora(path).reading.opened
    except LoratoolsError:  # nothing, or nothing of ours: whether it may be replaced is the writer's question
        return False
    return all(part.source.metadata.get(PROVENANCE_KEY) == wanted for part in opened.parts)
