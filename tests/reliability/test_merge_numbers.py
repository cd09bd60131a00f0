"""NaN, infinity and overflow in a merge: named and refused where they are computed with, untouched where not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.broken.adapter import DOWN, QUERY, UP
from tests.reliability.invariants import check_ended_well, command, contents
from tests.reliability.jobs import single_base

TOUCHED = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
UNTOUCHED = "first_stage_model.decoder.conv_in.weight"
VALUES = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture
def inputs(tmp_path):
    return single_base(tmp_path, small=True)


def put(path, key, value, at=3):
    """Write `value` into one element (None: into all) of a tensor."""
    held = load_file(path)
    flat = held[key].view(-1)
    flat[slice(None) if at is None else at] = value
    save_file(held, path)


def refused(tmp_path, *arguments):
    """A merge that must end in exit code 7 and change nothing."""
    before = contents(tmp_path)
    done = command("merge", *arguments, "-o", tmp_path / "out.safetensors")
    check_ended_well(done)
    assert done.code == 7, done
    assert contents(tmp_path) == before
    return done


def allowed(tmp_path, *arguments):
    """The report of a merge that goes on, and what it wrote."""
    out = tmp_path / "out.safetensors"
    given = ("merge", *arguments, "-o", out, "--allow-nonfinite", "--overwrite")
    assert command(*given).code == 0
    done = command(*given, "--json")
    assert done.code == 0, done
    return json.loads(done.out), load_file(out)


@pytest.mark.parametrize("value", VALUES)
def test_a_base_that_is_not_finite_is_refused_by_key_and_goes_on_where_allowed(tmp_path, inputs, value):
    base, adapter = inputs
    put(base, TOUCHED, value)
    done = refused(tmp_path, base, adapter)
    assert all(text in done.err for text in (TOUCHED, base.name, "--allow-nonfinite"))
    report, made = allowed(tmp_path, base, adapter)
    assert [line for line in report["warnings"] if TOUCHED in line and "1 values" in line]
    assert int((~torch.isfinite(made[TOUCHED])).sum()) == 1


@pytest.mark.parametrize("value", VALUES)
def test_what_no_adapter_touches_is_copied_whatever_it_holds(tmp_path, inputs, value):
    base, adapter = inputs
    put(base, UNTOUCHED, value)
    out = tmp_path / "out.safetensors"
    assert command("merge", base, adapter, "-o", out).code == 0
    assert load_file(out)[UNTOUCHED].numpy().tobytes() == load_file(base)[UNTOUCHED].numpy().tobytes()
    out.unlink()
    assert UNTOUCHED in refused(tmp_path, base, adapter, "--dtype", "float32").err  # a cast computes it


@pytest.mark.parametrize("key", [UP, DOWN])
@pytest.mark.parametrize("value", VALUES)
def test_factors_that_are_not_finite_are_refused_by_file_and_layer(tmp_path, inputs, key, value):
    base, adapter = inputs
    put(adapter, key, value)
    done = refused(tmp_path, base, adapter)
    assert all(text in done.err for text in (QUERY, adapter.name, "--allow-nonfinite"))
    report, made = allowed(tmp_path, base, adapter)
    assert [line for line in report["warnings"] if TOUCHED in line]
    assert not torch.isfinite(made[TOUCHED]).all()


@pytest.mark.parametrize("option", [(), ("--allow-nonfinite",)])
def test_an_overflow_of_ours_is_refused_even_where_inputs_may_be_anything(tmp_path, inputs, option):
    base, adapter = inputs
    put(adapter, UP, 6e4, at=None)
    put(adapter, DOWN, 6e4, at=None)
    done = refused(tmp_path, base, adapter, *option)
    assert all(text in done.err for text in (TOUCHED, base.name, "F16", "--dtype"))
    out = tmp_path / "out.safetensors"
    assert command("merge", base, adapter, "-o", out, "--dtype", "float32").code == 0
    assert float(load_file(out)[TOUCHED].max()) == pytest.approx(3.584e9, rel=0.01)
    out.unlink()
    done = refused(tmp_path, base, f"{adapter}=1e35", "--dtype", "float32", *option)
    assert "smaller scale" in done.err


def test_dora_over_a_base_that_is_not_finite_blames_the_base(tmp_path, inputs):
    base, adapter = inputs
    held = load_file(adapter)
    held[f"{QUERY}.dora_scale"] = torch.ones(320, 1, dtype=torch.float16)
    save_file(held, adapter)
    put(base, TOUCHED, float("nan"))
    done = refused(tmp_path, base, adapter)
    assert all(text in done.err for text in (TOUCHED, base.name))
    assert allowed(tmp_path, base, adapter)[0]["changed"] == 2


@pytest.mark.parametrize(("dtype", "most"), [("fp8_e4m3", 448.0), ("fp8_e5m2", 57344.0)])
def test_what_lies_beyond_eight_bits_is_cut_and_counted(tmp_path, inputs, dtype, most):
    base, adapter = inputs
    put(base, TOUCHED, 6e4)
    out = tmp_path / "out.safetensors"
    done = command("merge", base, adapter, "-o", out, "--dtype", dtype, "--json")
    assert done.code == 0, done
    (line,) = [line for line in json.loads(done.out)["warnings"] if "beyond" in line]
    assert TOUCHED in line
    assert "1 values" in line
    assert float(load_file(out)[TOUCHED].float().max()) == most


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf", "1e999", "x", ""])
def test_a_scale_that_is_no_number_is_a_usage_error(tmp_path, inputs, scale):
    base, adapter = inputs
    before = contents(tmp_path)
    for arguments in ((f"{adapter}={scale}",), (adapter, "--scale", scale), (adapter, "--weights", f"unet.*={scale}")):
        done = command("merge", base, *arguments, "-o", tmp_path / "out.safetensors")
        check_ended_well(done)
        assert done.code == 2, (arguments, done)
    assert contents(tmp_path) == before
