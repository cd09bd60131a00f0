"""A GGUF file to be, planned to the byte: its header is made by the `gguf` package, its tensors are copied as any."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from itertools import pairwise
from pathlib import Path

from loratools.errors import InternalError, UsageError
from loratools.tensors.gguf_check import ALPHA, ARCHITECTURE, DTYPES, gguf_package
from loratools.tensors.header import Entry
from loratools.tensors.layout import PLACEHOLDER, LateMetadata, Layout
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.segments import Zeros

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
        """Lays `tensors` out; raises UsageError for metadata that are no text, UnsupportedFile without the `gguf`
        package.
        """
        del keep_order  # there is no other order
        align = gguf_package().GGUF_DEFAULT_ALIGNMENT
        for key, tensor in tensors.items():
            if tensor.dtype not in DTYPES:
                raise InternalError(f"{tensor.dtype} in a GGUF file", key=key)
        whole = {**metadata, **(late(PLACEHOLDER) if late else {})}
        for name, text in whole.items():
            if not isinstance(text, str):
                raise UsageError(f"metadata must be text, {name!r} is {type(text).__name__}", key=name)
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
        planned = {key: str(float(text)) if key in _FLOATS else text for key, text in metadata.items()}
        if any(file.metadata.get(key) != text for key, text in planned.items()):
            raise InternalError("the written metadata are not the planned ones", path=path)


def _padded(tensor: LazyTensor, length: int) -> LazyTensor:
    """The tensor's bytes, and zeros up to the place of the next."""
    rest = length - tensor.nbytes
    return LazyTensor("U8", (length,), (*tensor.segments, Zeros(rest))) if rest else tensor


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors, padding included, as the package writes it."""
    package = gguf_package()
    writer = package.GGUFWriter(None, metadata[ARCHITECTURE])
    for key, text in metadata.items():
        if key in _FLOATS:
            writer.add_float32(key, float(text))
        elif key != ARCHITECTURE:
            writer.add_key_value(key, text, package.GGUFValueType.STRING)  # `add_string` leaves an empty one out
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
