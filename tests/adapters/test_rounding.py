"""A change is what rounding cannot explain: every cast of a weight is none, three units in the last place are one."""

import pytest
import torch

from loratools.adapters.rounding import beyond_rounding

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn}
BITS = {"F16": 10, "BF16": 7, "F8_E4M3": 3}


def weights():
    """Normal numbers over many magnitudes, zero and the smallest of half precision among them."""
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 1, 4000)
    return torch.cat([values, torch.tensor([0.0, 6e-8, -6e-5, 1.0])])


@pytest.mark.parametrize("coarse", ["F16", "BF16", "F8_E4M3"])
@pytest.mark.parametrize("fine", ["F32", "F16"])
def test_a_cast_is_no_change_in_either_direction(coarse, fine):
    values = weights().clamp(-400, 400).to(TORCH[fine]).float()
    cast = values.to(TORCH[coarse]).float()
    assert not beyond_rounding(values, cast, (fine, coarse))
    assert not beyond_rounding(cast, values, (coarse, fine))


@pytest.mark.parametrize("coarse", ["F16", "BF16", "F8_E4M3"])
@pytest.mark.parametrize("place", [0, 17, 31])
def test_one_element_that_moved_by_three_units_is_a_change_and_by_two_is_none(coarse, place):
    values = torch.linspace(1.0, 1.4, 32).to(TORCH[coarse]).float()
    unit = 2.0 ** -BITS[coarse]
    for units, expected in ((2, False), (3, True), (-2, False), (-3, True)):
        moved = values.clone()
        moved[place] += units * unit
        assert beyond_rounding(values, moved, (coarse, coarse)) is expected


def test_a_large_gap_between_large_numbers_does_not_hide_a_small_one():
    base = torch.tensor([1000.0, 1.0])
    assert not beyond_rounding(base, torch.tensor([1000.5, 1.0]), ("F16", "F16"))
    assert beyond_rounding(base, torch.tensor([1000.5, 1.01]), ("F16", "F16"))


def test_integers_have_no_rounding():
    assert beyond_rounding(torch.tensor([1.0]), torch.tensor([2.0]), ("I8", "I8"))
    assert not beyond_rounding(torch.tensor([1.0]), torch.tensor([1.0]), ("I8", "F16"))
