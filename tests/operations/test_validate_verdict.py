"""The words that a validation ends in, from made-up figures: what may pass, what must not."""

import shlex
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from loratools.cli.validate import command
from loratools.operations.validation.one_pass import Pass, Seen
from loratools.operations.validation.report import command_line
from loratools.operations.validation.result import EFFECT, LATENTS, MODULES, Control, Floor, Law, Modules, Route, fault
from loratools.operations.validation.stage import Shown
from loratools.operations.validation.truth import Spot, SpotError
from loratools.operations.validation.verdict import Found, controls, routes, verdict
from loratools.pipelines.closeness import Closeness, closeness
from loratools.pipelines.running import Drawn, Place

SPOT = Spot("unet", "mid_block.attentions.0.proj_in", "weight")


def spot(error=0.0, ratio=1.0, limit=MODULES):
    return SpotError(SPOT, norm=1.0, base=10.0, error=error, ratio=ratio, rounding=0.0, limit=limit)


def seen(latents=0.0, error=0.0, **more):
    modules = more.pop("modules", Modules((spot(error),)))
    return Seen(None, modules, Closeness((latents,)), **more)


def judged(*, effect=0.3, dtype="F32", noise=1e-6, laws=(), **others):
    """A pass with a reference, every route that decides, and `others` in their place."""
    found = Pass(Place(dtype=dtype))
    found.seen = {
        "base": Seen(None, None, Closeness((effect,))),
        "reference": seen(),
        "loaded": seen(),
        "converted to kohya": seen(),
        "merged": seen(),
        "extracted": seen(),
        **{name.replace("_", " "): value for name, value in others.items()},
    }
    found.floors = [Floor("repeat", "", Closeness((0.0,))), Floor("unfused", "", Closeness((noise,)))]
    found.laws = list(laws)
    return found


def word(found, *, tried=(), require_loaded=False, skipped=()):
    shown = routes(Found(found))
    return verdict(Found(found), shown, tried, require_loaded=require_loaded, skipped=skipped)


def status(found, name):
    return next(route.status for route in routes(Found(found)) if route.name == name)


def test_all_within_their_limits_is_pass():
    assert word(judged())[0] == "pass"


@pytest.mark.parametrize("name", ["reference", "converted_to_kohya", "merged", "extracted"])
def test_one_module_off_is_fail_whatever_the_latents_say(name):
    told, reasons = word(judged(**{name: seen(error=2 * MODULES)}))
    assert told == "fail"
    assert reasons[0].startswith(name.replace("_", " "))


def test_a_weight_that_should_not_have_changed_is_fail():
    assert word(judged(merged=seen(modules=Modules((spot(),), ("vae.encoder.weight",)))))[0] == "fail"


@pytest.mark.parametrize(
    ("latents", "noise", "expected"),
    [
        (LATENTS, 1e-6, "pass"),
        (2 * LATENTS, 1e-6, "fail"),
        (2 * LATENTS, LATENTS, "inconclusive"),
        (float("inf"), float("inf"), "fail"),
    ],
)
def test_latents_fail_beyond_the_tolerance_unless_noise_is_as_large(latents, noise, expected):
    found = judged(noise=noise, merged=seen(latents))
    assert status(found, "merged") == expected
    assert word(found)[0] == expected


def test_an_effect_of_less_than_a_hundred_tolerances_proves_nothing():
    assert word(judged(effect=EFFECT * LATENTS))[0] == "pass"
    told, reasons = word(judged(effect=0.99 * EFFECT * LATENTS))
    assert told == "inconclusive"
    assert "change the latents" in reasons[0]


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_alone_is_inconclusive_and_fails_only_for_gross_errors(dtype):
    assert word(judged(dtype=dtype))[0] == "inconclusive"
    assert word(judged(dtype=dtype, merged=seen(0.5)))[0] == "fail"


def test_loaded_decides_only_where_that_is_asked_for():
    refused = judged(loaded=Seen(None, refused="ValueError: no such key"))
    differs = judged(loaded=seen(error=1.0, modules=Modules((spot(1.0, 0.0),))))
    assert (status(refused, "loaded"), status(differs, "loaded")) == ("refused", "differs")
    for found in (refused, differs):
        assert word(found)[0] == "pass"
        assert word(found, require_loaded=True)[0] == "fail"


def test_a_broken_law_is_fail():
    told, reasons = word(judged(laws=[Law("unload", "", 3.0, 0.0)]))
    assert told == "fail"
    assert "unload" in reasons[0]


def test_a_mistake_that_is_not_caught_or_a_route_left_out_is_inconclusive():
    missed = Control("scale off by 1 %", "", 0.0, 0.0, by_modules=False, by_latents=False)
    assert word(judged(), tried=[missed])[0] == "inconclusive"
    assert word(judged(), tried=[replace(missed, by_latents=True)])[0] == "pass"
    assert word(judged(), skipped=["loaded"])[0] == "inconclusive"


def test_pictures_alone_never_change_a_verdict():
    drawn = [Drawn(torch.ones(4), torch.zeros(3, 8, 8)), Drawn(torch.ones(4), torch.ones(3, 8, 8))]
    apart = closeness([drawn[0]], [drawn[1]])
    assert apart.worst_picture.eight_bit == 255
    assert word(judged(merged=Seen(None, Modules((spot(),)), apart)))[0] == "pass"


def test_controls_are_seen_in_a_dtype_only_above_twice_its_noise():
    from loratools.operations.validation.checks import Mistake

    def mistaken(latents):
        return [Mistake("scale off by 1 %", "", modules=Modules((spot(0.01, 1.01),)), closeness=Closeness((latents,)))]

    judge, half = judged(), judged(dtype="BF16", noise=0.02)
    judge.mistakes = mistaken(0.005)
    for latents, expected in ((0.039, False), (0.041, True)):
        half.mistakes = mistaken(latents)
        (row,) = controls(Found(judge, half))
        assert (row.caught, row.by_modules, row.by_latents, row.seen_in_dtype) == (True, True, True, expected)


@pytest.mark.parametrize(
    ("error", "ratio", "expected"),
    [(1.0, 0.0, "missing"), (0.5, 1.5, "scaled"), (0.75, 0.25, "scaled"), (1.4, 0.0, "wrong"), (0.5, 1.0, "wrong")],
)
def test_what_is_wrong_with_a_module_is_told_from_error_and_ratio(error, ratio, expected):
    assert fault(spot(error, ratio)) == expected


def test_latents_without_numbers_are_infinitely_far():
    nan = Drawn(torch.tensor([1.0, float("nan")]), None)
    good = Drawn(torch.tensor([1.0, 2.0]), None)
    assert closeness([nan], [good]).latents == (float("inf"),)
    assert closeness([nan], [nan]).latents == (float("inf"),)
    assert closeness([good], [good]).latents == (0.0,)
    assert Route("x", "fail", "", judged=closeness([nan], [good])).to_dict()["judged"]["latents"] == [None]


def test_the_command_of_a_report_is_the_validation_again():
    """Every parameter stands in it, under the names of the command line's own options."""
    parameters = {
        "to": ["kohya", "peft"], "skip": ["loaded", "merged"], "steps": 3, "guidance": 2.5, "size": [64, 32],
        "frames": 5, "scheduler": "ddim", "inputs": {}, "dtype": "BF16", "device": "cuda", "offload": True,
        "negative_controls": True, "require_loaded": True, "config": "a folder", "prediction_type": "epsilon",
        "tokenizer": ["one", "tokenizer_2=two"], "variant": "fp16", "arch": "sd1", "allow_partial": True,
        "unsafe_pickle": True,
    }  # fmt: skip
    adapters = [{"path": "a b.safetensors", "scale": 0.1}]
    scenes = [(prompt, seed) for prompt in ("one", "two") for seed in (3, 4)]
    result = SimpleNamespace(parameters=parameters, pipeline={"path": "base"}, adapters=adapters, scenes=scenes)
    program, verb, *words = shlex.split(command_line(result))
    assert (program, verb) == ("loratools", "validate")
    found = command.make_context("validate", words).params
    assert (found["pipeline"], found["loras"]) == ("base", ("a b.safetensors=0.1",))
    assert (found["prompts"], found["seeds"]) == (("one", "two"), (3, 4))
    for name, value in parameters.items():
        if name != "inputs":
            assert found[name] == (tuple(value) if isinstance(value, list) else value), name
    parameters["inputs"] = {"sigmas": "[1.0]"}
    assert "sigmas" in command_line(result).partition("#")[2]


def test_shown_compares_only_the_scenes_that_were_drawn():
    drawn = tuple(Drawn(torch.full((2,), float(at + 1)), None) for at in range(3))
    assert Shown(drawn[:1]).against(Shown(drawn)).latents == (0.0,)
