"""How far two runs lie apart: latents, what the denoiser made of the same inputs, and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loratools.pipelines.running import Drawn

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PictureError:
    """Two pictures in [0, 1]: largest and mean difference, that of 8-bit values, and PSNR in dB (inf if equal)."""

    largest: float
    mean: float
    eight_bit: int
    psnr: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; the infinite PSNR of equal pictures is null."""
        psnr = self.psnr if math.isfinite(self.psnr) else None
        return {"largest": self.largest, "mean": self.mean, "eight_bit": self.eight_bit, "psnr": psnr}


@dataclass(frozen=True, slots=True)
class Closeness:
    """Relative errors (Frobenius norms in float64) of one run against another: of the latents of every scene, of the
    denoiser's output at every step of the first, and of the pictures (None for a pipeline that makes none).
    """

    latents: tuple[float, ...]
    denoiser: tuple[float, ...] = ()
    pictures: tuple[PictureError | None, ...] = ()

    @property
    def worst_latents(self) -> float:
        """The largest error of any scene's latents."""
        return max(self.latents, default=0.0)

    @property
    def worst_denoiser(self) -> float | None:
        """The largest error of any step, None where the denoiser was not asked."""
        return max(self.denoiser, default=None)

    @property
    def worst_picture(self) -> PictureError | None:
        """The picture that differs most, None where there is none."""
        found = [picture for picture in self.pictures if picture is not None]
        return max(found, key=lambda picture: picture.largest, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; an infinite error (NaN in the latents) is null."""
        return {
            "latents": [finite(value) for value in self.latents],
            "denoiser": [finite(value) for value in self.denoiser],
            "pictures": [None if picture is None else picture.to_dict() for picture in self.pictures],
        }


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64: 0 for two zeros, infinite where only `wanted` is zero, and for NaN."""
    ours, theirs = found.double(), wanted.double()
    distance, norm = float((ours - theirs).norm()), float(theirs.norm())
    if not math.isfinite(distance) or not math.isfinite(norm):
        return math.inf
    return distance / norm if norm else (math.inf if distance else 0.0)


def closeness(
    found: Sequence[Drawn],
    wanted: Sequence[Drawn],
    probes: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]] = ((), ()),
) -> Closeness:
    """Compare two runs scene by scene (as far as `found` goes), and the outputs for the same inputs step by step."""
    pairs = list(zip(found, wanted, strict=False))
    return Closeness(
        tuple(relative_error(ours.latents, theirs.latents) for ours, theirs in pairs),
        tuple(relative_error(ours, theirs) for ours, theirs in zip(*probes, strict=False)),
        tuple(_picture(ours.image, theirs.image) for ours, theirs in pairs),
    )


def _picture(found: torch.Tensor | None, wanted: torch.Tensor | None) -> PictureError | None:
    if found is None or wanted is None:
        return None
    apart = (found.double() - wanted.double()).abs()
    square = float(apart.square().mean())
    eight = int((eight_bit(found).int() - eight_bit(wanted).int()).abs().max())
    return PictureError(
        float(apart.max()), float(apart.mean()), eight, -10 * math.log10(square) if square else math.inf
    )


def eight_bit(image: torch.Tensor) -> torch.Tensor:
    """A picture [3, height, width] in [0, 1] as bytes [height, width, 3]."""
    import torch

    return (image.permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous()


def finite(value: float) -> float | None:
    """The number for JSON, which has none that is not finite."""
    return value if math.isfinite(value) else None
