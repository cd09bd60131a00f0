"""Pixels: differences, their amplification, sizes, and PNG bytes that are the same for the same pixels."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loratools.errors import InternalError

if TYPE_CHECKING:
    from PIL import Image

    from loratools.reports.evidence import Pixels

LARGEST_FACTOR = 128  # one step of 255 becomes plain to see; more would make a white square of it


def require_pixels(pixels: Pixels, what: str) -> Pixels:
    """The same pixels, if they are uint8 [height, width, 3]; raises InternalError for anything else."""
    import numpy as np

    if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3):
        raise InternalError(f"the picture of {what} is not uint8 [height, width, 3]")
    if pixels.shape[2] != 3 or not pixels.size:
        raise InternalError(f"the picture of {what} is {list(pixels.shape)}, not [height, width, 3]")
    return pixels


def difference(pixels: Pixels, reference: Pixels) -> Pixels | None:
    """|pixels - reference| for every channel, or None where their sizes differ."""
    import numpy as np

    if pixels.shape != reference.shape:
        return None
    return np.maximum(pixels, reference) - np.minimum(pixels, reference)


def factor_of(found: Pixels) -> int:
    """The largest power of two, up to LARGEST_FACTOR, that brings no value of a difference above 255."""
    most = int(found.max())
    factor = LARGEST_FACTOR
    while factor > 1 and most * factor > 255:
        factor //= 2
    return factor


def amplified(found: Pixels, factor: int) -> Pixels:
    """A difference times `factor`, cut at 255."""
    import numpy as np

    return np.minimum(found.astype(np.int32) * factor, 255).astype(np.uint8)


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    """A picture at another size: whole pixels where it grows, Lanczos where it shrinks."""
    import numpy as np
    from PIL import Image

    if (pixels.shape[1], pixels.shape[0]) == (width, height):
        return pixels
    grows = width >= pixels.shape[1] and height >= pixels.shape[0]
    how = Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def pooled(found: Pixels, side: int) -> Pixels:
    """A difference no larger than `side`, each pixel the largest of those it stands for: none vanishes."""
    import numpy as np

    step = -(-max(found.shape[:2]) // side)
    if step <= 1:
        return found
    height, width = found.shape[:2]
    padded = np.pad(found, ((0, -height % step), (0, -width % step), (0, 0)))
    rows, columns = padded.shape[0] // step, padded.shape[1] // step
    largest: Pixels = padded.reshape(rows, step, columns, step, 3).max(axis=(1, 3))
    return largest


def png(pixels: Pixels | Image.Image, words: Mapping[str, str] | None = None) -> bytes:
    """A PNG file, with `words` as its text and no time: the same pixels give the same bytes."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    notes = PngInfo()
    for name, value in (words or {}).items():
        notes.add_text(name, value)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=False, compress_level=6, pnginfo=notes)
    return buffer.getvalue()


def data_uri(pixels: Pixels) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + b64encode(png(pixels)).decode("ascii")
