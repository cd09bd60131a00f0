"""Any kind as a plain LoRA: exact where it says so, else as near as a matrix of that rank can be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loratools.adapters.kind import bias_delta_of, delta_of
from loratools.adapters.to_lora import to_lora
from loratools.errors import IncompleteAdapter, NonFinite, NotRepresentable, UsageError
from tests.adapters.making import adapter, lora, made, values

# (kind, form, rows, columns, the rank that algebra needs)
EXACT = [
    ("lora", "", 12, 6, 2), ("lora", "conv", 12, 6, 2), ("lora", "tucker", 12, 6, 2),
    ("loha", "", 12, 6, 4), ("loha", "conv", 12, 6, 4), ("loha", "tucker", 12, 6, 4),
    ("lokr", "", 24, 12, 4), ("lokr", "both", 24, 12, 4), ("lokr", "conv", 24, 12, 4), ("lokr", "tucker", 24, 12, 4),
]  # fmt: skip
DENSE = [("full", "conv"), ("full", ""), ("ia3", ""), ("ia3", "input"), ("oft", ""), ("boft", "")]


def doubles(kind: str, form: str = "", **more) -> dict:
    found = made(kind, form=form, **more)
    return {role: tensor.double() if tensor.is_floating_point() else tensor for role, tensor in found.items()}


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖, summed in float64."""
    assert float(torch.linalg.vector_norm(theirs.double())) > 0
    return float(torch.linalg.vector_norm((ours - theirs.reshape(ours.shape)).double().reshape(-1))) / float(
        torch.linalg.vector_norm(theirs.double().reshape(-1))
    )


def by_sum(kind: str, factors: dict) -> torch.Tensor:
    """The delta at scale 1, [out, in·kernel], from plain loops: nothing of the library's own arithmetic."""

    def product(left, right, core=None):
        if core is None:
            return left.flatten(1) @ right.flatten(1)
        return torch.einsum("ijk,io,jx->oxk", core.flatten(2), left, right.flatten(1)).flatten(1)

    if kind == "lora":
        if "mid" in factors:
            return product(factors["up"].flatten(1).T, factors["down"], factors["mid"])
        return product(factors["up"], factors["down"])
    one, two = (
        factors[f"w{n}"].flatten(1)
        if f"w{n}" in factors
        else product(factors[f"w{n}_a"], factors[f"w{n}_b"], factors.get(f"t{n}"))
        for n in (1, 2)
    )
    if kind == "loha":
        return one * two
    return torch.cat([torch.cat([entry * two for entry in row], 1) for row in one], 0)


@pytest.mark.parametrize("alpha", [None, 3])
@pytest.mark.parametrize("case", EXACT, ids=lambda case: "-".join(map(str, case)))
def test_exact_conversions_make_the_delta_of_a_plain_sum(case, alpha):
    kind, form, rows, columns, rank = case
    factors = doubles(kind, form, rows=rows, columns=columns)
    item = adapter("q", factors, kind, alpha=alpha)
    found = to_lora(item)
    assert (found.exact, found.error, found.rank) == (True, 0.0, rank)
    plain = found.adapter
    assert (plain.kind, plain.rank, set(plain.factors)) == ("lora", rank, {"down", "up"})
    assert plain.scale.equals(item.scale)
    held = {role: tensor.load() for role, tensor in plain.factors.items()}
    assert far(by_sum("lora", held), by_sum(kind, factors)) <= 1e-12
    assert far(delta_of(plain, dtype="float64"), delta_of(item, dtype="float64")) <= 1e-12


@given(
    st.sampled_from([("loha", ""), ("loha", "tucker"), ("lokr", ""), ("lokr", "whole"), ("lokr", "both")]),
    st.integers(1, 3),
    st.integers(1, 9).map(lambda n: 2 * n),
    st.integers(1, 6).map(lambda n: 2 * n),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_what_is_called_exact_is_exact_for_any_shape(case, rank, rows, columns, seed):
    kind, form = case
    factors = doubles(kind, form, seed=seed, rows=rows, columns=columns, rank=rank)
    found = to_lora(adapter("q", factors, kind))
    theirs = by_sum(kind, factors)
    ours = by_sum("lora", {role: tensor.load() for role, tensor in found.adapter.factors.items()})
    assert found.rank <= min(theirs.shape) or kind == "lora"
    assert far(ours, theirs) <= (1e-12 if found.exact else 1.001e-5)


def test_sixteen_bit_factors_multiply_without_rounding():
    factors = made("loha", rows=12, columns=8)
    factors = {role: tensor.half() for role, tensor in factors.items()}
    found = to_lora(adapter("q", factors, "loha"))
    left = torch.einsum("oi,oj->oij", factors["w1_a"].double(), factors["w2_a"].double()).flatten(1)
    assert found.adapter.factors["up"].dtype == "F32"
    assert torch.equal(found.adapter.factors["up"].load().double(), left)


def test_an_exact_conversion_reads_nothing_until_asked():
    class Unread:
        name = "unread"

        def read(self, *_):
            raise AssertionError("read")

    from loratools.tensors.lazy import Bytes, LazyTensor

    def unread(*shape):
        tensor = LazyTensor.zeros("F16", shape)
        return LazyTensor("F16", shape, (Bytes(Unread(), 0, tensor.nbytes),))

    roles = {"w1_a": (12, 2), "w1_b": (2, 6), "w2_a": (12, 2), "w2_b": (2, 6)}
    found = to_lora(adapter("q", {role: unread(*shape) for role, shape in roles.items()}, "loha"))
    assert found.adapter.factors["down"].shape == (4, 6)
    with pytest.raises(AssertionError, match="read"):
        found.adapter.factors["down"].load()


@pytest.mark.parametrize(("kind", "form"), DENSE)
def test_other_kinds_keep_to_the_default_error(kind, form):
    base = values(9, 12, 6, *((3, 3) if form == "conv" else ()), dtype=torch.float64)
    item = adapter("q", {**doubles(kind, form)}, kind)
    found = to_lora(item, base=base)
    theirs = delta_of(item, base, dtype="float64")
    assert not found.exact
    assert found.error <= 1e-5
    ours = delta_of(found.adapter, base, dtype="float64")
    assert abs(far(ours, theirs) - found.error) <= 1e-12
    assert found.adapter.factors["down"].shape == (found.rank, *base.shape[1:])
    assert found.adapter.factors["up"].shape == (12, found.rank, *(1,) * (base.ndim - 2))


CUT = [("full", ""), ("lora", ""), ("loha", ""), ("loha", "tucker"), ("lokr", ""), ("lokr", "whole"), ("lokr", "both"),
       ("glora", ""), ("oft", "")]  # fmt: skip


@given(st.sampled_from(CUT), st.integers(1, 8), st.integers(0, 30))
@settings(max_examples=80, deadline=None)
def test_a_rank_keeps_to_eckart_and_young(case, rank, seed):
    kind, form = case
    base = values(90 + seed, 16, 8, *((3, 3) if form == "tucker" else ()), dtype=torch.float64)
    factors = doubles(kind, form, seed=seed, rows=16, columns=8, rank=3)
    item = adapter("q", factors, kind, alpha=None if kind == "oft" else 2)
    found = to_lora(item, rank=rank, base=base)
    assert found.rank <= rank
    delta = delta_of(item, base, dtype="float64").flatten(1)
    singular = torch.linalg.svdvals(delta)
    best = float(torch.linalg.vector_norm(singular[rank:]) / torch.linalg.vector_norm(singular))
    error = far(delta_of(found.adapter, base, dtype="float64"), delta)
    assert error <= best * 1.001 + 1e-12
    assert found.error == pytest.approx(error, rel=1e-3, abs=1e-10)


@given(st.sampled_from(CUT), st.sampled_from([0.5, 0.2, 0.05, 1e-3]), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_an_error_is_kept_by_the_smallest_rank_that_can(case, error, seed):
    kind, form = case
    base = values(90 + seed, 16, 8, *((3, 3) if form == "tucker" else ()), dtype=torch.float64)
    factors = doubles(kind, form, seed=seed, rows=16, columns=8, rank=3)
    item = adapter("q", factors, kind)
    found = to_lora(item, error=error, base=base)
    delta = delta_of(item, base, dtype="float64").flatten(1)
    assert far(delta_of(found.adapter, base, dtype="float64"), delta) <= error * 1.001
    singular = torch.linalg.svdvals(delta)
    if found.rank > 1:
        below = torch.linalg.vector_norm(singular[found.rank - 1 :]) / torch.linalg.vector_norm(singular)
        assert float(below) > error


@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_glora_is_an_exact_product_once_the_base_is_known(layer):
    base = values(9, 40, 30, *((3, 3) if layer == "conv" else ()), dtype=torch.float64)
    factors = doubles("glora", "", rows=40, columns=30)
    if layer == "conv":
        factors["b2"] = values(7, 2, 30, 3, 3, dtype=torch.float64)
    item = adapter("q", factors, "glora", alpha=4)
    found = to_lora(item, base=base)
    assert (found.exact, found.rank) == (True, 2 * (9 if layer == "conv" else 1) + 2)
    assert far(delta_of(found.adapter, dtype="float64"), delta_of(item, base, dtype="float64")) <= 1e-12


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("role", ["magnitude", "input_magnitude"])
def test_dora_becomes_the_lora_of_what_it_does_to_its_base(kind, role):
    base = values(9, 12, 6, dtype=torch.float64)
    extra = {role: values(5, 12 if role == "magnitude" else 6, dtype=torch.float64).abs()}
    item = adapter("q", {**doubles(kind), **extra}, kind, alpha=2)
    with pytest.raises(NotRepresentable, match="base") as caught:
        to_lora(item)
    assert "--base" in caught.value.hint
    found = to_lora(item, base=base)
    assert not found.exact
    assert set(found.adapter.factors) == {"down", "up"}
    assert far(delta_of(found.adapter, dtype="float64"), delta_of(item, base, dtype="float64")) <= 1.001e-5


@pytest.mark.parametrize("kind", ["ia3", "glora", "oft", "boft"])
def test_kinds_that_change_the_base_ask_for_it(kind):
    with pytest.raises(NotRepresentable) as caught:
        to_lora(adapter("q", made(kind), kind))
    assert "--base" in caught.value.hint


@pytest.mark.parametrize("factors", [{"norm_diff": (6,)}, {"diff": (6,)}, {"bias_diff": (6,)}])
def test_vectors_have_no_low_rank(factors):
    kind = "norm" if "norm_diff" in factors else "full"
    with pytest.raises(NotRepresentable):
        to_lora(adapter("q", {role: torch.ones(shape) for role, shape in factors.items()}, kind))


@pytest.mark.parametrize(("kind", "rank"), [("lora", None), ("lora", 1), ("loha", None), ("lokr", 1), ("full", 2)])
def test_biases_are_carried(kind, rank):
    bias = values(3, 12, dtype=torch.float64)
    more = {"bias_diff": bias} | ({"up_bias": bias * 2} if kind == "lora" else {})
    item = adapter("q", {**doubles(kind), **more}, kind, alpha=3)
    found = to_lora(item, rank=rank)
    ours, theirs = bias_delta_of(found.adapter, dtype="float64"), bias_delta_of(item, dtype="float64")
    assert theirs is not None
    assert torch.allclose(ours, theirs, rtol=1e-14)


def test_the_bias_that_pefts_ia3_multiplies_becomes_a_difference():
    base, bias = values(9, 12, 6, dtype=torch.float64), values(8, 12, dtype=torch.float64)
    item = adapter("q", {"scale_vector": values(4, 12, 1, dtype=torch.float64)}, "ia3")
    found = to_lora(item, base=base, bias=bias)
    vector = item.factors["scale_vector"].load().reshape(-1)
    assert torch.allclose(found.adapter.factors["bias_diff"].load(), bias * (vector - 1), rtol=1e-14)


def test_a_flattened_convolution_gets_its_kernel_back_from_the_weights_shape():
    item = adapter("q", doubles("loha", "conv"), "loha")
    assert to_lora(item).adapter.factors["down"].shape == (4, 54)
    shaped = to_lora(item, shape=(12, 6, 3, 3)).adapter
    assert shaped.factors["down"].shape == (4, 6, 3, 3)
    assert shaped.factors["up"].shape == (12, 4, 1, 1)


def test_rank_stabilised_alpha_keeps_its_scale():
    item = lora("q", 1, rank=2, alpha=3, dtype=torch.float64)
    stabilized = item.alpha._replace(rank_stabilized=True)
    item = replace(adapter("q", doubles("loha", rows=30, columns=30, rank=3), "loha"), alpha=stabilized)
    found = to_lora(item)
    assert float(found.adapter.scale) == pytest.approx(3 / math.sqrt(3), rel=1e-15)
    assert far(delta_of(found.adapter, dtype="float64"), delta_of(item, dtype="float64")) <= 1e-12


def test_zeros_stay_zeros():
    found = to_lora(adapter("q", {"diff": torch.zeros(5, 4)}, "full"))
    assert (found.rank, found.error) == (1, 0.0)
    assert not delta_of(found.adapter).any()


def test_numbers_that_are_not_finite_are_named_by_stem():
    with pytest.raises(NonFinite) as caught:
        to_lora(adapter("q", {"diff": torch.full((5, 4), math.nan)}, "full"))
    assert caught.value.key == "q"


def test_what_cannot_be_asked_for_is_refused():
    item = adapter("q", made("full"), "full")
    for wish in ({"rank": 0}, {"error": -0.1}, {"error": 1.0}, {"rank": 1, "error": 0.1}):
        with pytest.raises(UsageError):
            to_lora(item, **wish)


def test_a_residual_is_part_of_the_delta():
    from tests.adapters.test_rare_layouts import with_residual

    item, expected = with_residual()
    found = to_lora(item)
    assert not found.exact
    assert far(delta_of(found.adapter, dtype="float64"), expected) <= 1.001e-5
    with pytest.raises(IncompleteAdapter):
        delta_of(replace(item, factors={**item.factors, "residual_size": item.factors["residual_values"].rows(0, 2)}))
