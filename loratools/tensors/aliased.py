"""A TensorSource one of whose tensors answers to a second name as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import LocalFile, TensorSource


class Aliased:
    """The tensors of another source, and after them `name`, which is the tensor `key` once more."""

    def __init__(self, source: TensorSource, name: str, key: str) -> None:
        self.source = source
        self._name, self._key = name, key

    @property
    def name(self) -> str:
        """The name of the other source."""
        return self.source.name

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the other source."""
        return self.source.metadata

    @property
    def files(self) -> tuple[LocalFile, ...]:
        """The files of the other source."""
        return self.source.files

    def keys(self) -> Sequence[str]:
        """The keys of the other source, then the second name."""
        return (*self.source.keys(), self._name)

    def __getitem__(self, key: str) -> LazyTensor:
        return self.source[self._key if key == self._name else key]

    def __len__(self) -> int:
        return len(self.source) + 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())
