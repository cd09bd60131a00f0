"""The tables of what diffusers and peft load, against what the installed ones do: which layers get their own delta."""

import json

import pytest
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.formats.loading import EVIDENCE
from loratools.formats.runtimes import loads
from tests.judges import by_peft
from tests.judges.fresh import fresh
from tests.judges.load import deltas_after_diffusers_load, deltas_after_peft_load
from tests.judges.truth import Truth, compare
from tests.judges.wild import (
    ALL,
    ATTENTION,
    BOTH,
    METADATA,
    TEXT,
    as_base_model,
    attention_old,
    bare_magnitude,
    diffusers,
    down_up,
    kohya,
    lycoris,
    processors,
    rewritten,
    where,
    with_adapter,
    without_component,
)

RIGHT = 1e-4
REFUSALS = (ValueError, RuntimeError, IndexError, KeyError, NotImplementedError, TypeError)


def without_alpha_of_two(name, value):
    return name.endswith(".alpha") and value == 2


def middle_otherwise(name):
    return name.replace("lora_unet_middle_block_1_", "lora_unet_mid_block_attentions_0_")


def with_text_level(said):
    """diffusers' metadata as it was with transformers before 5.6, whose CLIP had a `text_model.` level."""
    name = "text_encoder.target_modules"
    return {**said, name: [f"text_model.{path}" for path in said[name]]}


# What is made → how. E2E: each of these was seen in the world.
SD1 = {
    "kohya, mixed alphas": kohya(most=60),
    "kohya, one alpha": kohya(scales=((4, 2),)),
    "kohya, mixed ranks and one alpha": kohya(scales=((4, 2), (2, 2), (6, 2))),
    "kohya, text without out_proj": kohya({"text_encoder": where("q_proj", "v_proj", "fc1")}, most=None),
    "kohya, text with q and v alone": kohya({"text_encoder": where("q_proj", "v_proj")}, most=None),
    "kohya, text with mixed alphas": kohya(TEXT, most=None),
    "kohya, UNet without out_proj in text": kohya({"unet": None, "text_encoder": where("q_proj", "fc1")}),
    "kohya, some layers without alpha": rewritten(kohya(scales=((4, 4), (2, 2))), without=without_alpha_of_two),
    "kohya, with metadata of diffusers": rewritten(
        kohya(scales=((4, 2),), most=6), metadata={METADATA: json.dumps({"unet.r": 4, "text_encoder.r": 4})}
    ),
    "diffusers, mixed": diffusers(mixed=True),
    "diffusers, mixed, no metadata": diffusers(mixed=False, key=str, metadata=None),
    "diffusers, DoRA": diffusers(use_dora=True),
    "diffusers, DoRA, bare magnitudes": diffusers(use_dora=True, key=bare_magnitude, metadata=dict),
    "diffusers, mixed names": diffusers(key=attention_old, most=60),
    "diffusers, text of fc1 alone": diffusers({"text_encoder": where("fc1")}, key=str, most=None),
    "diffusers, text of q_proj alone": diffusers({"text_encoder": where("q_proj")}, key=str, most=None),
    "diffusers, metadata of one component": diffusers(
        metadata=lambda said: {name: value for name, value in said.items() if name.startswith("unet.")}
    ),
    "diffusers, metadata with text_model.": diffusers(metadata=with_text_level),
    "diffusers, DoRA on some layers": rewritten(
        diffusers(use_dora=True), without=lambda name, value: "magnitude" in name and value.numel() > 32
    ),
    "no component": diffusers({"unet": None}, key=without_component),
    "base_model.model.": diffusers({"unet": None}, key=as_base_model),
    "the adapter's name": diffusers({"unet": None}, key=with_adapter),
    "lora_A with alpha": diffusers(key=str, alphas=True),
    "lora_down under dotted names": diffusers(key=down_up),
    "processors": diffusers(ATTENTION, key=processors),
    "processors, no component": diffusers({"unet": ATTENTION["unet"]}, key=lambda name: without_component(
        processors(name))),
    **{f"lycoris {kind}": lycoris(kind) for kind in (
        "locon", "locon-tucker", "dora", "loha", "lokr", "full", "norm", "diag-oft")},
}  # fmt: skip
SDXL = {
    "kohya, mixed alphas": kohya(ALL, most=40),
    "kohya, text encoder 2 with mixed alphas": kohya({"text_encoder_2": None}, scales=((4, 4), (4, 2), (4, 1))),
    "kohya, text_projection of another rank": kohya(
        {"text_encoder_2": None}, scales=((4, 4), (4, 2), (2, 1)), most=None
    ),
    "kohya, blocks named in both ways": rewritten(
        kohya({"unet": where("attentions.0.transformer_blocks.0.attn1")}, scales=((4, 2),)), key=middle_otherwise
    ),
    "kohya, ends of the UNet": kohya({"unet": where("embedding.linear", "conv_in", "conv_out")}, scales=((4, 2),)),
    "diffusers, mixed names": diffusers(ALL, key=attention_old, most=60),
}
CASES = [("sd1", name) for name in SD1] + [("sdxl", name) for name in SDXL]


def predicted(path, architecture, runtime):
    """The places that the table says get the right delta, and the answer."""
    reading = lt.open(path, arch=architecture).reading
    (answer,) = loads(reading, runtime)
    assert answer.unknown == 0
    assert answer.loaded + sum(len(stems) for _, stems in answer.reasons) == len(answer.verdicts)
    layers = zip(answer.subject.layers, answer.verdicts, strict=True)
    found = {
        (layer.component, path) for layer, verdict in layers if verdict.loads for path in layer.adapter.target.paths
    }
    return found, answer


def right(loaded: dict, truth: Truth):
    judgement = compare(loaded, truth.deltas)
    return set(judgement.errors) - set(judgement.beyond(RIGHT))


@pytest.mark.parametrize(("architecture", "name"), CASES, ids=[f"{one}-{two}" for one, two in CASES])
def test_share_that_diffusers_loads_is_the_share_foretold(architecture, name, pipeline, tmp_path):
    truth = {"sd1": SD1, "sdxl": SDXL}[architecture][name](
        pipeline(architecture), tmp_path / "in.safetensors", architecture
    )
    foretold, answer = predicted(truth.path, architecture, "diffusers")
    try:
        done = right(deltas_after_diffusers_load(pipeline(architecture), truth.path).deltas, truth)
        refused = None
    except REFUSALS as error:
        done, refused = set(), error
    assert done == foretold, (refused, [reason.text for reason, _ in answer.reasons])
    said = [reason.text for reason, _ in answer.reasons]
    assert any(text.startswith("refuses") for text in said) == (refused is not None), (refused, said)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["plain", "rslora", "dora"])
def test_share_that_peft_loads_is_the_share_foretold(options, pipeline, tmp_path):
    folder = pipeline("sd1")
    out = tmp_path / "peft"
    truth = by_peft.make(folder, out, architecture="sd1", container="peft", components=BOTH, most=24, **options)
    foretold, _ = predicted(out, "sd1", "peft")
    assert foretold == set(truth.deltas)
    for component in BOTH:
        model = getattr(fresh(folder), component)
        done = right(deltas_after_peft_load(component, model, out / component).deltas, truth)
        assert done == {place for place in foretold if place[0] == component}


def named(adapter):
    return lambda name: name.replace(".weight", f".{adapter}.weight")


def nested(name):
    return name.replace("model.model.", "model.model.text_model.")


@pytest.mark.parametrize(("rename", "share"), [(named("default"), 12), (named("style"), 0), (nested, 0)])
def test_peft_folder_with_other_names_is_as_foretold(rename, share, pipeline, tmp_path):
    folder, out = pipeline("sd1"), tmp_path / "peft"
    truth = by_peft.make(folder, out, architecture="sd1", container="peft", components=TEXT, most=12)
    weights = out / "adapter_model.safetensors"
    save_file({rename(name): value for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    if rename is nested:
        config = json.loads((out / "adapter_config.json").read_text())
        config["target_modules"] = [f"text_model.{path}" for path in config["target_modules"]]
        (out / "adapter_config.json").write_text(json.dumps(config))
    foretold, _ = predicted(out, "sd1", "peft")
    try:
        model = fresh(folder).text_encoder
        done = right(deltas_after_peft_load("text_encoder", model, out).deltas, truth)
    except REFUSALS:
        done = set()
    assert done == foretold
    assert len(done) == share


def test_a_peft_folder_is_nothing_to_diffusers(third_party):
    foretold, _ = predicted(third_party("peft", "sd1").path, "sd1", "diffusers")
    assert foretold == set()


@pytest.mark.parametrize("architecture", ["sd1", "sdxl", "flux1"])
def test_what_is_written_for_a_runtime_is_what_it_loads(architecture, third_party, tmp_path):
    truth = third_party("kohya", architecture)
    for runtime in ("diffusers", "peft", "comfyui", "kohya"):
        out = tmp_path / (runtime if runtime == "peft" else f"{runtime}.safetensors")
        lt.convert(truth.path, runtime=runtime, arch=architecture).save(out)
        foretold, answer = predicted(out, architecture, runtime)
        assert foretold == set(truth.deltas), [reason.text for reason, _ in answer.reasons]


def test_every_reason_says_how_it_is_known(third_party):
    for answer in loads(lt.open(third_party("kohya", "sd1").path, arch="sd1").reading):
        for reason in answer.to_dict()["reasons"]:
            assert reason["evidence"] in EVIDENCE.values()
            assert reason["count"] > 0
