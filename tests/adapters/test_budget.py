"""The budget of bytes over layers: never above, never a unit short, and the best that those bytes can buy."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loratools.adapters.budget import share_out
from loratools.errors import UsageError

values = st.floats(0, 100, allow_nan=False, width=32)
spectrum = st.lists(values, max_size=8).map(lambda found: sorted(found, reverse=True))
layers = st.lists(st.tuples(spectrum, st.integers(1, 50)), min_size=1, max_size=5)


@given(layers, st.integers(0, 600))
def test_budget_is_never_exceeded_and_no_wanted_unit_still_fits(layers, budget):
    spectra, units = [item[0] for item in layers], [item[1] for item in layers]
    ranks = share_out(spectra, units, budget, least=0)
    spent = sum(rank * unit for rank, unit in zip(ranks, units, strict=True))
    assert spent <= budget
    for rank, values, unit in zip(ranks, spectra, units, strict=True):
        assert 0 <= rank <= len(values)
        assert rank == 0 or values[rank - 1] > 0
        assert rank == len(values) or values[rank] == 0 or unit > budget - spent


def kept(spectra, ranks):
    return sum(value**2 for values, rank in zip(spectra, ranks, strict=True) for value in values[:rank])


@given(st.lists(spectrum, min_size=1, max_size=4), st.integers(0, 20))
def test_with_equal_units_no_other_choice_keeps_more(spectra, units):
    ranks = share_out(spectra, [7] * len(spectra), 7 * units + 3, least=0)
    every = product(*(range(len(values) + 1) for values in spectra))
    best = max(kept(spectra, choice) for choice in every if sum(choice) <= units)
    assert kept(spectra, ranks) >= best * (1 - 1e-12)


@given(layers, st.integers(0, 600), st.integers(0, 3))
def test_every_layer_has_the_least_or_it_is_refused(layers, budget, least):
    spectra, units = [item[0] for item in layers], [item[1] for item in layers]
    needed = sum(min(least, len(values)) * unit for values, unit in zip(spectra, units, strict=True))
    if needed > budget:
        with pytest.raises(UsageError) as caught:
            share_out(spectra, units, budget, least=least)
        assert caught.value.evidence["needed"] == needed
    else:
        ranks = share_out(spectra, units, budget, least=least)
        assert all(rank >= min(least, len(values)) for rank, values in zip(ranks, spectra, strict=True))


def test_a_cheap_layer_goes_first_at_equal_energy():
    assert share_out([[3.0, 1.0], [3.0, 1.0]], [10, 5], 12, least=0) == [0, 2]
    assert share_out([[3.0, 1.0], [3.0, 1.0]], [10, 5], 15, least=0) == [1, 1]


def test_ties_go_to_the_earlier_layer():
    assert share_out([[1.0], [1.0], [1.0]], [4, 4, 4], 9, least=0) == [1, 1, 0]
