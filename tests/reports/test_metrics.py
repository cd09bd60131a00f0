"""Figures of pictures: by their definition, by scikit-image, and never by something that was fetched."""

import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from loratools.reports import metrics
from loratools.reports.metrics import measure
from tests.reports.made import nudged, picture


def figures(picture, reference):
    return {figure.name: figure for figure in measure(picture, reference)}


def test_plain_figures_are_those_of_the_definition():
    reference = picture(1)
    other = nudged(reference, steps=7, share=0.1)
    apart = np.abs(other.astype(float) - reference)
    found = figures(other, reference)
    assert found["largest"].value == apart.max()
    assert found["mean"].value == pytest.approx(apart.mean(), rel=1e-12)
    assert found["PSNR"].value == pytest.approx(10 * math.log10(255**2 / (apart**2).mean()), rel=1e-12)


def test_psnr_and_ssim_are_scikit_images():
    judge = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    reference = picture(1)
    other = nudged(reference, steps=30, share=0.3)
    found = figures(other, reference)
    assert found["PSNR"].value == pytest.approx(
        judge.peak_signal_noise_ratio(reference, other, data_range=255), rel=1e-9
    )
    wanted = judge.structural_similarity(
        reference.astype(float),
        other.astype(float),
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert found["SSIM"].value == pytest.approx(wanted, abs=1e-6)
    for setting in ("data_range 255", "win_size 11", "gaussian_weights True", "sigma 1.5"):
        assert setting in found["SSIM"].remark


def test_equal_pictures_are_infinitely_good():
    found = figures(picture(1), picture(1))
    assert (found["largest"].value, found["mean"].value, found["PSNR"].value) == (0, 0, math.inf)
    assert found["SSIM"].value in {None, 1.0}


def test_pictures_of_different_sizes_are_not_measured_and_say_so():
    (only,) = measure(picture(1), picture(1, side=32))
    assert only.value is None
    assert only.remark == "the pictures have different sizes: 64 × 64 and 32 × 32"


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", {}.get)
    found = figures(picture(1), picture(2))
    assert found["SSIM"].value is None
    assert "loratools[report]" in found["SSIM"].remark
    assert found["LPIPS"].value is None
    assert found["LPIPS"].remark == "torchmetrics is not installed"
    assert found["largest"].value > 0


def test_a_picture_smaller_than_the_window_has_no_ssim():
    assert figures(picture(1, side=8), picture(2, side=8))["SSIM"].value is None


def test_lpips_is_not_measured_where_its_weights_would_have_to_be_fetched(monkeypatch, tmp_path):
    weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="https://nowhere.invalid/models/alexnet-0123.pth"))
    for name, content in (
        ("torchmetrics", {}),
        ("torchvision", {}),
        ("torchvision.models", {"AlexNet_Weights": weights}),
    ):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lpips = figures(picture(1), picture(2))["LPIPS"]
    assert lpips.value is None
    assert lpips.remark == "AlexNet's weights are not on this machine (alexnet-0123.pth), and none are fetched"
    assert list(tmp_path.iterdir()) == []


def test_a_torchvision_that_does_not_fit_torch_is_named(monkeypatch):
    for name in ("torchmetrics", "torchvision"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert figures(picture(1), picture(2))["LPIPS"].remark.startswith("torchvision cannot be imported: ")
