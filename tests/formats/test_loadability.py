"""Every architecture has an answer from every runtime: what it loads, or why not, or what nobody knows."""

import pytest

import loratools as lt
from loratools.architectures.architecture import shapes
from loratools.architectures.registry import ARCHITECTURES, architecture
from loratools.errors import NotRepresentable
from loratools.formats.loads_diffusers import LOADED, WITHOUT_LOADER
from loratools.formats.runtimes import RUNTIMES, choose, loads
from loratools.tensors.lazy import LazyTensor

IDS = [known.id for known in ARCHITECTURES]
BY_ID = {runtime.id: runtime for runtime in RUNTIMES}


def zeros(*shape):
    return LazyTensor.zeros("F32", shape)


def lora_of(name, most=12):
    """A LoRA without values over some layers of what removes the noise, as diffusers spells it."""
    known = architecture(name)
    component = known.denoiser.name
    table = shapes(known.variants[0].shapes)[component]
    # but embeddings, and Sana's convolutions in groups, of which PEFT takes no LoRA
    layers = {
        path: shape
        for path, shape in table.items()
        if len(shape) > 1 and "embed" not in path and not path.endswith(".conv_depth")
    }
    held = {}
    for path, (rows, columns, *kernel) in list(layers.items())[:: max(1, len(layers) // most)]:
        held[f"{component}.{path}.lora_A.weight"] = zeros(2, columns, *kernel)
        held[f"{component}.{path}.lora_B.weight"] = zeros(rows, 2, *(1 for _ in kernel))
    return held


def reading(held, name):
    return lt.open(held, arch=name).reading


@pytest.mark.parametrize("name", IDS)
def test_every_runtime_answers_for_every_architecture(name):
    for answer in loads(reading(lora_of(name), name)):
        assert answer.loaded + sum(len(stems) for _, stems in answer.reasons) == len(answer.verdicts) > 0
        assert all(reason.text.strip() and reason.evidence for reason, _ in answer.reasons)
        assert answer.unknown < len(answer.verdicts) or all(
            reason.evidence == "unknown" for reason, _ in answer.reasons
        )


@pytest.mark.parametrize("runtime", ["comfyui", "kohya", "diffusers"])
@pytest.mark.parametrize("name", IDS)
def test_what_is_written_for_a_runtime_is_loaded_or_refused_with_the_reason(name, runtime):
    held = lora_of(name)
    lacking = BY_ID[runtime].lacks(name)
    if lacking is not None:
        with pytest.raises(NotRepresentable) as refused:
            choose(runtime, reading(held, name))
        assert lacking.reason.text in refused.value.message
        return
    made = lt.convert(held, runtime=runtime, arch=name)
    written = lt.open(
        {key: value for file in made.rendered.files for key, value in file.tensors.items()}, arch=name
    ).reading
    (answer,) = loads(written, runtime)
    lost = [reason.text for reason, _ in answer.reasons]
    assert answer.loaded == len(answer.verdicts), lost


def test_the_loaders_of_diffusers_are_known_for_all_architectures():
    assert sorted([*LOADED, *WITHOUT_LOADER]) == sorted(IDS)
