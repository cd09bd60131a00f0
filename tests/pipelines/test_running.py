"""What validate stands on: samplers, recorded denoisers, changes beside weights, fingerprints, float64 truth."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UnCLIPScheduler
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import loratools as lt
from loratools.architectures.registry import architecture
from loratools.bases.checkpoint import open_checkpoint
from loratools.errors import ResourceError, UnsupportedFile, UsageError
from loratools.operations.validation.result import MODULES
from loratools.operations.validation.stage import Stage
from loratools.operations.validation.truth import Spot, Truth
from loratools.pipelines.beside import beside
from loratools.pipelines.closeness import closeness, relative_error
from loratools.pipelines.denoiser import denoisers_of, recorded, replay
from loratools.pipelines.fingerprints import fingerprints
from loratools.pipelines.live import module_of
from loratools.pipelines.own_loader import Refused, change_of, load_adapters
from loratools.pipelines.running import Drawing, Place, draw, load_pipeline, require_device
from loratools.pipelines.schedulers import SAMPLERS, sampler, set_scheduler
from tests.judges import by_lycoris, by_peft

PROMPT = "a lighthouse"


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: row.name)
def test_every_sampler_is_a_class_of_diffusers_and_takes_the_models_own_noise(row):
    current = FlowMatchEulerDiscreteScheduler(shift=3.0) if row.flow else DDIMScheduler(beta_start=0.00085)
    pipeline = SimpleNamespace(scheduler=current)
    set_scheduler(pipeline, row.name)
    assert type(pipeline.scheduler).__name__ == row.class_name
    assert {name: pipeline.scheduler.config[name] for name in row.options} == dict(row.options)
    if not row.flow:
        assert pipeline.scheduler.config.beta_start == 0.00085
    if "karras" in row.name:
        assert pipeline.scheduler.config.use_karras_sigmas


def test_a_sampler_of_the_other_sort_of_model_and_an_unknown_one_are_refused():
    for current, name in (
        (FlowMatchEulerDiscreteScheduler(), "ddim"),
        (DDIMScheduler(), "euler-flow"),
        (UnCLIPScheduler(), "ddim"),
    ):
        with pytest.raises(UsageError) as problem:
            set_scheduler(SimpleNamespace(scheduler=current), name)
        assert problem.value.hint
    with pytest.raises(UsageError) as problem:
        sampler("dpmsolver++-karas")
    assert "dpmsolver++-karras" in problem.value.hint


@pytest.mark.parametrize("name", ["dpmsolver++-karras", "euler-a", "pndm"])
def test_one_seed_makes_one_picture_with_every_sampler(name, pipeline):
    made = load_pipeline(pipeline("sd1"), Place(), name)
    first, second = (draw(made, PROMPT, 3, Drawing(steps=2)) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(first.image, second.image)
    assert first.image.shape == (3, 64, 64)
    assert 0 <= float(first.image.min()) < float(first.image.max()) <= 1
    assert not torch.equal(first.latents, draw(made, PROMPT, 4, Drawing(steps=2)).latents)


def test_latents_are_those_that_diffusers_gives_out(pipeline):
    made = load_pipeline(pipeline("sdxl"), Place())
    ours = draw(made, PROMPT, 0, Drawing(steps=2, guidance=3.0, width=64, height=128))
    theirs = made(
        PROMPT,
        num_inference_steps=2,
        guidance_scale=3.0,
        width=64,
        height=128,
        output_type="latent",
        generator=torch.Generator("cpu").manual_seed(0),
    ).images
    assert torch.equal(ours.latents, theirs)
    assert ours.image.shape == (3, 128, 64)


def test_what_a_pipeline_or_a_machine_does_not_know_is_refused(pipeline, tmp_path):
    made = load_pipeline(pipeline("sd1"), Place())
    with pytest.raises(UsageError):
        draw(made, PROMPT, 0, Drawing(inputs={"colour": "blue"}))
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(UnsupportedFile):
        load_pipeline(tmp_path, Place())
    for device in ("tpu", "cuda:", "cuda:first"):
        with pytest.raises(UsageError):
            require_device(device)
    if not torch.cuda.is_available():
        with pytest.raises(ResourceError):
            require_device("cuda")
    with pytest.raises(UnsupportedFile):
        denoisers_of(SimpleNamespace())


def test_a_device_by_number_is_there_or_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for device in ("cpu", "cuda", "cuda:0", "cuda:1"):
        require_device(device)
    with pytest.raises(ResourceError, match="no cuda:2"):
        require_device("cuda:2")


def test_weights_of_other_sizes_than_the_configuration_has_are_what_diffusers_does_not_load(pipeline, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(pipeline("sd1"), base)
    place = base / "text_encoder" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"intermediate_size": 80}))
    with pytest.raises(UnsupportedFile) as refused:
        load_pipeline(base, Place())
    assert refused.value.path == str(base)


def test_the_denoiser_makes_of_recorded_inputs_what_it_made_the_first_time(pipeline):
    made = load_pipeline(pipeline("sdxl"), Place())
    models = denoisers_of(made)
    outputs = []
    handle = made.unet.register_forward_hook(lambda _module, _given, output: outputs.append(output[0].clone()))
    with recorded(models) as calls:
        draw(made, PROMPT, 0, Drawing(steps=3))
    handle.remove()
    again = replay(models, calls)
    assert [name for name, _, _ in calls] == list(models) * 3 == ["unet"] * 3
    assert len(calls) == len(again) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, outputs, strict=True))


LAYERS = {
    "linear": (nn.Linear(5, 4), (3, 5)),
    "linear without bias": (nn.Linear(5, 4, bias=False), (3, 5)),
    "convolution": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (1, 3, 8, 8)),
    "embedding": (nn.Embedding(9, 4), None),
    "layer norm": (nn.LayerNorm(6), (2, 6)),
    "group norm": (nn.GroupNorm(2, 4), (1, 4, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_change_beside_a_weight_is_the_change_in_it(name):
    layer, shape = LAYERS[name]
    layer = layer.double().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    given = torch.tensor([[1, 4, 8]]) if shape is None else torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    has_bias = getattr(layer, "bias", None) is not None
    bias = torch.randn(layer.bias.shape, generator=generator, dtype=torch.float64) if has_bias else None
    before = layer(given)
    for bias_too in (False, True) if has_bias else (False,):
        changes = {"weight": layer.weight + weight, **({"bias": layer.bias + bias} if bias_too else {})}
        inside = torch.func.functional_call(layer, changes, (given,))
        with beside([(layer, weight, bias if bias_too else None)]):
            assert relative_error(layer(given), inside) < 1e-14
        assert torch.equal(layer(given), before)


def test_fingerprints_see_one_bit_and_an_exchange_but_no_copy():
    class Pipe:
        components = {"unet": nn.Linear(4, 4), "scheduler": None}  # noqa: RUF012 - a stand-in

    model = Pipe.components["unet"].requires_grad_(False)
    first = fingerprints(Pipe)
    assert set(first) == {"unet.weight", "unet.bias"}
    model.weight.data = model.weight.data.clone()
    assert fingerprints(Pipe) == first
    model.weight.data[0, 0], model.weight.data[0, 1] = model.weight[0, 1].clone(), model.weight[0, 0].clone()
    assert fingerprints(Pipe)["unet.weight"] != first["unet.weight"]
    model.bias.data.view(torch.int32)[2] ^= 1
    assert fingerprints(Pipe)["unet.bias"] != first["unet.bias"]


@pytest.mark.parametrize("kind", ["locon-tucker", "dora-input", "norm", "ia3"])
def test_the_truth_is_what_the_trainers_own_forward_pass_does(kind, pipeline, tmp_path):
    made = by_lycoris.make(pipeline("sd1"), tmp_path / "file.safetensors", kind)
    truth = truth_of(pipeline("sd1"), made.path, 0.5)
    leaves = {"weight": made.deltas, "bias": made.biases}
    assert {(spot.component, spot.path) for spot in truth.spots if spot.leaf == "weight"} == set(made.deltas)
    assert {(spot.component, spot.path) for spot in truth.spots if spot.leaf == "bias"} == set(made.biases)
    for spot in truth.spots:
        theirs = 0.5 * leaves[spot.leaf][spot.component, spot.path]
        assert relative_error(truth.delta(spot).reshape(theirs.shape), theirs) < 1e-6, spot


def truth_of(folder, file, scale=1.0):
    table = architecture("sd1")
    lora = lt.open(file, arch="sd1")
    return Truth([(lora.reading.bind("sd1"), scale)], open_checkpoint(folder).base.of(table), table)


@pytest.fixture
def stage(pipeline, tmp_path):
    """A stage over sd1 with a LoRA of a few layers; and its file."""
    chosen = {"unet": lambda path: path.endswith("attn1.to_q")}
    made = by_peft.make(pipeline("sd1"), tmp_path / "lora.safetensors", architecture="sd1", components=chosen, most=4)
    found = Stage(
        load_pipeline(pipeline("sd1"), Place()), truth_of(pipeline("sd1"), made.path), ((PROMPT, 0),), Drawing(1)
    )
    return found, made.path


def test_a_stage_tells_every_wrong_weight_and_puts_back_what_it_wrote(stage):
    found, _ = stage
    before = fingerprints(found.pipeline)
    spots = found.truth.spots
    changes = {spot: found.truth.delta(spot) for spot in spots}
    assert found.modules(before).counts() == {"missing": len(spots), "scaled": 0, "wrong": 0}
    with found.written(changes):
        assert found.modules(before).holds
        assert not found.modules(before, scale=1.001).holds
        with found.written({spots[0]: None}):
            (wrong,) = found.modules(before).beyond
            assert (wrong.spot, wrong.error) == (spots[0], 1)
        with torch.no_grad():
            found.parameter(Spot("unet", "conv_in", "bias"))[0] += 1
        assert found.modules(before).unexpected == ("unet.conv_in.bias",)
        with torch.no_grad():
            found.parameter(Spot("unet", "conv_in", "bias")).copy_(found.truth.base(Spot("unet", "conv_in", "bias")))
    assert fingerprints(found.pipeline) == before


def test_rounding_widens_a_limit_but_never_hides_a_missing_change(stage):
    """A change far below the weight's last place: float32 holds half of it, and one that is not there is still seen."""
    found, path = stage
    truth = truth_of(open_folder(found), path, 1e-7)
    spot = truth.spots[0]
    base, delta = truth.base(spot), truth.delta(spot)
    held = truth.judge_weight(spot, (base + delta).float(), MODULES)
    assert held.rounding > MODULES
    assert MODULES < held.limit <= 0.5
    assert held.error == 0
    missing = truth.judge_weight(spot, base.float(), MODULES)
    assert not missing.holds


def open_folder(found):
    return found.truth.weights.name


def test_diffusers_loader_is_heard_and_its_layers_are_measured_without_being_touched(stage):
    found, path = stage
    answer = load_adapters(found.pipeline, [(path, 0.5)])
    assert not isinstance(answer, Refused)
    spot = found.truth.spots[0]
    layer = found.pipeline.unet.get_submodule(spot.path)
    bits = {name: value.clone() for name, value in layer.state_dict().items()}
    change = change_of(layer)
    assert relative_error(change.weight, 0.5 * found.truth.delta(spot)) < 1e-12
    assert all(torch.equal(value, bits[name]) for name, value in layer.state_dict().items())
    assert found.loaded_modules().counts()["scaled"] == len(found.truth.spots)
    assert module_of(found.pipeline.unet, spot.path) is layer.get_base_layer()


def test_a_bias_that_should_not_have_changed_is_told(stage):
    """PEFT's layers around a module may change its bias, which no adapter of this file does."""
    found, path = stage
    load_adapters(found.pipeline, [(path, 1.0)])
    assert found.loaded_modules().holds
    name = "down_blocks.0.resnets.0.conv1"
    inject_adapter_in_model(LoraConfig(r=1, lora_bias=True, target_modules=[name]), found.pipeline.unet, "other")
    layer = found.pipeline.unet.get_submodule(name)
    layer.set_adapter("other")
    with torch.no_grad():
        layer.lora_B["other"].bias.fill_(0.5)
    (told,) = found.loaded_modules().unexpected
    assert name in told
    assert told.endswith("(bias)")


def test_what_the_loader_raises_is_its_answer(pipeline, tmp_path):
    made = by_lycoris.make(pipeline("sd1"), tmp_path / "loha.safetensors", "loha")
    answer = load_adapters(DiffusionPipeline.from_pretrained(pipeline("sd1")), [(made.path, 1.0)])
    assert isinstance(answer, Refused)
    assert answer.why.startswith("ValueError")
    assert load_adapters(SimpleNamespace(), [(made.path, 1.0)]).why.endswith("no loader of adapters")


def test_pictures_are_compared_in_eight_bits_and_decibels(pipeline):
    made = load_pipeline(pipeline("sd1"), Place())
    first = draw(made, PROMPT, 0, Drawing(steps=1))
    same = closeness([first], [first]).worst_picture
    assert (same.largest, same.mean, same.eight_bit, same.psnr) == (0, 0, 0, float("inf"))
