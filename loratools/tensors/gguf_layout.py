"""A GGUF file to be, planned to the byte: its header is made by the `gguf` package, its tensors are copied as any."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

from loratools.errors import InternalError, NotRepresentable, UnsupportedFile, UsageError
from loratools.tensors.gguf_check import ALPHA, ARCHITECTURE
from loratools.tensors.header import Entry
from loratools.tensors.layout import PLACEHOLDER, LateMetadata, Layout
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.segments import Zeros

DTYPES = ("BF16", "F16", "F32")
"""What llama.cpp multiplies by, of the dtypes that are copied as they are."""

_FLOATS = (ALPHA,)  # every other value is text


class GgufLayout(Layout):
    """Tensors in the mapping's order, each padded to the alignment; metadata as key-value pairs of the header."""

    __slots__ = ()

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, LazyTensor],
        metadata: Mapping[str, str],
        late: LateMetadata | None = None,
        *,
        keep_order: bool = True,
    ) -> GgufLayout:
        """Lays `tensors` out; raises NotRepresentable for a dtype that llama.cpp has no use for, UsageError for
        metadata that are no text, UnsupportedFile without the `gguf` package.
        """
        del keep_order  # there is no other order
        from_package = _package()
        for key, tensor in tensors.items():
            if tensor.dtype not in DTYPES:
                raise NotRepresentable(
                    f"llama.cpp multiplies by {', '.join(DTYPES)}, and this is {tensor.dtype}",
                    key=key,
                    hint="--dtype float32, or float16",
                )
        whole = {**metadata, **(late(PLACEHOLDER) if late else {})}
        for name, text in whole.items():
            if not isinstance(text, str):
                raise UsageError(f"metadata must be text, {name!r} is {type(text).__name__}", key=name)
        align = from_package.GGUF_DEFAULT_ALIGNMENT
        starts, entries = [0], {}
        for key, tensor in tensors.items():
            entries[key] = Entry(tensor.dtype, tensor.shape, starts[-1], starts[-1] + tensor.nbytes)
            starts.append(-(-entries[key].stop // align) * align)
        padded = {
            key: _padded(tensor, stop - start)
            for (key, tensor), (start, stop) in zip(tensors.items(), pairwise(starts), strict=True)
        }
        header = _header(entries, whole)
        return cls(padded, entries, whole, late, header, len(header) + starts[-1])

    def _encoded(self, metadata: Mapping[str, str]) -> bytes:
        return _header(self.entries, metadata)

    def compare(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Raise InternalError where the file at `path`, opened anew, states other tensors or metadata than planned."""
        from loratools.tensors.gguf_file import GgufFile

        file = GgufFile(path)
        if {key: (file[key].dtype, file[key].shape) for key in file} != {
            key: (entry.dtype, entry.shape) for key, entry in self.entries.items()
        }:
            raise InternalError("the written header is not the planned one", path=path)
        if any(file.metadata.get(key) != text for key, text in metadata.items() if text and key not in _FLOATS):
            raise InternalError("the written metadata are not the planned ones", path=path)


def _padded(tensor: LazyTensor, length: int) -> LazyTensor:
    """The tensor's bytes, and zeros up to the place of the next."""
    rest = length - tensor.nbytes
    return LazyTensor("U8", (length,), (*tensor.segments, Zeros(rest))) if rest else tensor


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors, padding included, as the package writes it."""
    package = _package()
    writer = package.GGUFWriter(None, metadata[ARCHITECTURE])
    for key, text in metadata.items():
        if key in _FLOATS:
            writer.add_float32(key, float(text))
        elif key != ARCHITECTURE:
            writer.add_string(key, text)
    for key, entry in entries.items():
        kind = package.GGMLQuantizationType[entry.dtype]
        writer.add_tensor_info(key, entry.shape, entry.dtype, entry.stop - entry.start, raw_dtype=kind)
    made = BytesIO()
    writer.fout, writer.state = [made], package.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.write_padding(made, made.tell())
    return made.getvalue()


def _package() -> Any:
    """The `gguf` package; raises UnsupportedFile where it is not there."""
    try:
        import gguf
    except ImportError as error:
        hint = "pip install 'loratools[gguf]'"
        raise UnsupportedFile("writing GGUF files needs the package gguf", hint=hint) from error
    return gguf
