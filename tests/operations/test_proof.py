"""A proof that can fail: whatever goes wrong between the plan and the file, nothing wrong is left under the name."""

from dataclasses import replace

import pytest

import loratools as lt
from loratools.errors import InternalError
from loratools.operations import convert as convert_module
from loratools.tensors.lazy import LazyTensor
from tests.operations.making import file


def swapped(held):
    """q's factors under k's keys and the reverse."""

    def other(key):
        return key.replace("to_q", "to_x").replace("to_k", "to_q").replace("to_x", "to_k")

    return {key: held[other(key)] if "attn1" in key else tensor for key, tensor in held.items()}


def scaled(held):
    """One up factor off by a hundredth."""
    key = next(key for key in held if "to_q" in key and ("lora_B" in key or "lora_up" in key))
    made = held[key].load() * 1.01
    return {**held, key: LazyTensor.from_torch(made)}


def dropped(held):
    """One module less."""
    return {key: tensor for key, tensor in held.items() if "attn1.to_k" not in key and "attn1_to_k" not in key}


def flipped(held):
    """The lowest bit of one element."""
    key = next(key for key in held if "ff" in key and not key.endswith(".alpha"))
    data = bytearray(held[key].tobytes())
    data[len(data) // 2] ^= 1
    return {**held, key: LazyTensor.from_bytes(held[key].dtype, held[key].shape, bytes(data))}


def realphaed(held):
    """One alpha doubled."""
    key = next(key for key in held if key.endswith(".alpha"))
    return {**held, key: LazyTensor.from_torch(held[key].load() * 2)}


@pytest.mark.parametrize("old", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize(
    ("to", "fault"),
    [
        *((to, fault) for to in ("kohya", "diffusers", "peft") for fault in (swapped, scaled, dropped, flipped)),
        ("kohya", realphaed),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_of_the_writer_is_caught_and_nothing_is_left(tmp_path, monkeypatch, to, fault, old):
    path = file(tmp_path / "in.safetensors")
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    if old:
        lt.convert(path, to=to, dtype="BF16").save(out)
    before = {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()}
    honest = convert_module.render

    def render(*given, **how):
        found = honest(*given, **how)
        return replace(found, files=tuple(replace(one, tensors=_harmed(fault, one.tensors)) for one in found.files))

    monkeypatch.setattr(convert_module, "render", render)
    with pytest.raises(InternalError) as caught:
        lt.convert(path, to=to).save(out, overwrite=True)
    assert caught.value.exit_code == 70
    assert {item: item.read_bytes() for item in tmp_path.rglob("*") if item.is_file()} == before
    assert out.exists() is old


def _harmed(fault, held):
    """A text encoder's file of its own stays as it is: the faults are in the UNet."""
    return fault(held) if any("attn1" in key for key in held) else held


def test_a_configuration_with_another_alpha_is_caught(tmp_path, monkeypatch):
    path = file(tmp_path / "in.safetensors")
    honest = convert_module.render

    def render(*given, **how):
        found = honest(*given, **how)
        return replace(
            found,
            files=tuple(
                replace(one, config={**one.config, "lora_alpha": 2.02, "alpha_pattern": {}}) for one in found.files
            ),
        )

    monkeypatch.setattr(convert_module, "render", render)
    with pytest.raises(InternalError, match="differs"):
        lt.convert(path, to="peft").save(tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["in.safetensors"]
