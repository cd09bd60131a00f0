"""How far two pictures lie apart: 8-bit differences and PSNR always, SSIM and LPIPS where their libraries are."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.reports.evidence import Figure
from loratools.reports.pictures import difference

if TYPE_CHECKING:
    from loratools.reports.evidence import Pixels

# Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, section III.C.
SSIM_SETTINGS = {"data_range": 255, "win_size": 11, "gaussian_weights": True, "sigma": 1.5}
LPIPS_NETWORK = "alex"


def measure(picture: Pixels, reference: Pixels) -> tuple[Figure, ...]:
    """The figures of one picture against another of the same size, both uint8 [height, width, 3].

    "largest" and "mean" are of |difference| over all channels, in steps of 255; "PSNR" is 10 log10(255² / mean squared
    difference), infinite for equal pictures. What could not be measured has the value None and says why.
    """
    found = difference(picture, reference)
    if found is None:
        sizes = " and ".join(f"{image.shape[1]} × {image.shape[0]}" for image in (picture, reference))
        return (Figure("largest", None, unit="of 255", remark=f"the pictures have different sizes: {sizes}"),)
    squares = float((found.astype("float64") ** 2).mean())
    signal = 10 * math.log10(255**2 / squares) if squares else math.inf
    return (
        Figure("largest", int(found.max()), unit="of 255", remark="largest 8-bit difference of any channel"),
        Figure("mean", float(found.mean(dtype="float64")), unit="of 255", remark="mean 8-bit difference"),
        Figure("PSNR", signal, better="high", unit="dB", remark="data_range 255"),
        _ssim(picture, reference),
        _lpips(picture, reference),
    )


def _ssim(picture: Pixels, reference: Pixels) -> Figure:
    """The mean structural similarity by scikit-image: 1 for equal pictures."""
    if find_spec("skimage") is None:
        return Figure("SSIM", None, better="high", remark="scikit-image is not installed: loratools[report] brings it")
    if min(picture.shape[:2]) < SSIM_SETTINGS["win_size"]:
        return Figure("SSIM", None, better="high", remark="the pictures are smaller than its window of 11 pixels")
    from skimage.metrics import structural_similarity

    settings: dict[str, Any] = {**SSIM_SETTINGS, "use_sample_covariance": False}
    value = float(structural_similarity(picture, reference, channel_axis=2, **settings))
    told = ", ".join(f"{name} {setting}" for name, setting in settings.items())
    return Figure("SSIM", value, better="high", remark=f"scikit-image, mean over three channels: {told}")


def _lpips(picture: Pixels, reference: Pixels) -> Figure:
    """The perceptual distance by torchmetrics, where AlexNet's weights lie on this machine; none are ever fetched."""
    missing = _lpips_lacks()
    if missing is not None:
        return Figure("LPIPS", None, remark=missing)
    if min(picture.shape[:2]) < 64:
        return Figure("LPIPS", None, remark="the pictures are smaller than the 64 pixels that AlexNet needs")
    import torch

    def batch(image: Pixels) -> torch.Tensor:
        """[1, 3, height, width] in 0…1."""
        return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255

    with torch.inference_mode():
        value = float(_lpips_score()(batch(picture), batch(reference)))
    return Figure("LPIPS", value, remark=f"torchmetrics, net_type {LPIPS_NETWORK}, inputs 0…1 normalised")


def _lpips_lacks() -> str | None:
    """What LPIPS would need and this machine does not have, or None."""
    for library in ("torchmetrics", "torchvision"):
        if find_spec(library) is None:
            return f"{library} is not installed"
    from torch.hub import get_dir

    try:
        from torchvision.models import AlexNet_Weights
    except (ImportError, OSError, RuntimeError) as error:  # built for another torch: no reason to fail a validation
        return f"torchvision cannot be imported: {error}"
    name = AlexNet_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    place = Path(get_dir()) / "checkpoints" / name
    return None if place.is_file() else f"AlexNet's weights are not on this machine ({name}), and none are fetched"


@lru_cache(maxsize=1)
def _lpips_score() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type=LPIPS_NETWORK, normalize=True).eval()
