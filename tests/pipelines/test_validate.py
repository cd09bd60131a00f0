"""validate on tiny pipelines: files by third parties pass through every route, and every mistake is caught."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import loratools as lt
from loratools.cli.main import main
from loratools.errors import NotRepresentable, PathNotFound, UsageError
from loratools.operations.validation.inputs import Inputs
from loratools.operations.validation.plan import plan_validate
from loratools.operations.validation.result import LATENTS, MODULES
from tests.judges import by_kohya, by_lycoris, by_peft
from tests.pipelines.conftest import EVERY


def some(path):
    """A share of a model's layers: whole attentions, so that q and k can be exchanged, convolutions, feed-forward.

    Not those of the middle block: at this size it sees one place alone, whose attention nothing can turn elsewhere.
    """
    endings = ("to_q", "to_k", "conv1", "ff.net.2", "norm1.linear", "q_proj", "k_proj", "fc1")
    return path.startswith(("down_blocks.1", "transformer_blocks", "encoder.layers", "text_model.")) and path.endswith(
        endings
    )


def components(architecture):
    return dict.fromkeys(EVERY[architecture], some)


@pytest.fixture(scope="session")
def made(pipeline, tmp_path_factory):
    """(sort, architecture) → a file or folder of that sort, made by a third party."""
    found = {}

    def make(sort, architecture):
        out = tmp_path_factory.mktemp("sorts") / sort
        file, base, how = out.with_suffix(".safetensors"), pipeline(architecture), {"architecture": architecture}
        if sort == "kohya":
            return by_kohya.make(base, file, components=components(architecture), **how)
        if sort == "diffusers":
            return by_peft.make(base, file, components=components(architecture), **how)
        if sort.startswith("peft"):
            how["use_dora"] = sort == "peft-dora"
            return by_peft.make(base, out, container="peft", components=components(architecture), **how)
        return by_lycoris.make(base, file, sort, **how)

    def path(sort, architecture):
        if (sort, architecture) not in found:
            found[sort, architecture] = make(sort, architecture).path
        return found[sort, architecture]

    return path


@pytest.fixture(scope="session")
def small(made):
    """A LoRA over a few modules of sd1, with a text encoder part."""
    return made("diffusers", "sd1")


def assert_passed(result, *, loaded):
    assert (result.verdict, result.reasons[0].partition(":")[0] != "") == ("pass", True), result.reasons
    for route in result.routes:
        if route.decides:
            assert route.status == "pass", (route.name, route.remarks)
            assert route.modules.worst <= MODULES
            assert route.judged.worst_latents <= LATENTS
    assert result.route("loaded").status == loaded
    assert all(law.holds for law in result.laws)
    assert result.floors[0].closeness.worst_latents == 0, "two runs on one CPU are the same run"
    assert all(control.caught and control.by_modules and control.by_latents for control in result.controls)
    json.dumps(result.to_dict(), allow_nan=False)


def size(architecture):
    return {"size": (64, 64)} if architecture == "flux1" else {}


# sort → what diffusers' own loader makes of it
SORTS = {
    "kohya": "differs",
    "diffusers": "pass",
    "peft": "refused",
    "locon": "differs",
    "loha": "refused",
    "lokr": "refused",
    "dora": "differs",
    "peft-dora": "refused",
}
IN_THE_SUITE = [("loha", "sd1"), ("dora", "sdxl")]
EVERYTHING = [(sort, architecture) for sort in SORTS for architecture in ("sd1", "sd2", "sdxl")]


def test_a_kohya_file_passes_in_bfloat16_every_mistake_is_caught_and_the_table_says_which_the_dtype_sees(
    pipeline, made
):
    result = lt.validate(
        pipeline("sd1"),
        [(made("kohya", "sd1"), 0.8)],
        to=["diffusers"],
        dtype="BF16",
        scheduler="dpmsolver++-karras",
        steps=1,
        negative_controls=True,
    )
    assert_passed(result, loaded="differs")
    assert (result.dtype, result.judged_in) == ("BF16", "F32")
    assert [control.name for control in result.controls] == [
        "smallest module left out",
        "median module left out",
        "scale off by 1 %",
        "q and k exchanged",
        "text encoder left out",
    ]
    seen = {control.name: control.seen_in_dtype for control in result.controls}
    assert seen["scale off by 1 %"] is False, "bfloat16 cannot tell one per cent from its own rounding"
    assert seen["text encoder left out"] is True
    floors = {floor.name: floor.closeness.worst_latents for floor in result.floors}
    assert floors["dtype"] > 1000 * floors["unfused"]
    loaded = result.route("loaded").modules
    assert loaded.counts()["scaled"] > 4


@pytest.mark.parametrize(("sort", "architecture"), IN_THE_SUITE)
def test_every_route_of_a_third_party_file_makes_its_own_change(sort, architecture, pipeline, made):
    result = lt.validate(pipeline(architecture), [made(sort, architecture)], to=["kohya"], steps=1)
    assert_passed(result, loaded=SORTS[sort])


@pytest.mark.long
@pytest.mark.parametrize(("sort", "architecture"), EVERYTHING)
def test_every_route_to_every_format_makes_the_change_of_a_third_party_file(sort, architecture, pipeline, made):
    result = lt.validate(pipeline(architecture), [made(sort, architecture)], steps=4, negative_controls=True)
    assert result.verdict == "pass", result.reasons
    assert all(control.caught for control in result.controls)
    assert {route.name for route in result.routes} >= {"converted to kohya", "converted to peft", "converted to comfy"}


@pytest.mark.long
def test_flux_passes(pipeline, made):
    result = lt.validate(
        pipeline("flux1"),
        [made("kohya", "flux1")],
        steps=2,
        size=(64, 64),
        scheduler="euler-flow",
        negative_controls=True,
    )
    assert result.verdict == "pass", result.reasons


def test_a_conversion_at_a_wrong_scale_is_caught_and_named(pipeline, small, monkeypatch):
    right = Inputs.converted

    def off_by_one_per_cent(*given):
        return {name: [(path, 1.01 * scale) for path, scale in files] for name, files in right(*given).items()}

    monkeypatch.setattr(Inputs, "converted", off_by_one_per_cent)
    result = lt.validate(pipeline("sd1"), [small], to=["kohya"], skip=["loaded", "merged", "extracted"], steps=1)
    route = result.route("converted to kohya")
    assert (result.verdict, route.status) == ("fail", "fail")
    assert route.modules.counts()["scaled"] == len(route.modules.spots)
    assert route.modules.spots[0].ratio == pytest.approx(1.01, rel=1e-4)


def test_a_merge_that_left_out_one_weight_and_changed_another_is_caught_and_nothing_is_left_behind(
    pipeline, small, monkeypatch, tmp_path
):
    def bits():
        return {path: path.read_bytes() for path in sorted(pipeline("sd1").rglob("*")) if path.is_file()}

    before = bits()
    right = Inputs.merged

    def wrong(self):
        out = right(self)
        weights = out / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        base = load_file(self.folder / "unet" / "diffusion_pytorch_model.safetensors")
        changed = next(key for key in tensors if not torch.equal(tensors[key], base[key]))
        tensors[changed] = base[changed]
        tensors["conv_out.bias"] = tensors["conv_out.bias"] + 1e-4
        weights.unlink()
        save_file(tensors, weights)
        return out

    monkeypatch.setattr(Inputs, "merged", wrong)
    result = lt.validate(pipeline("sd1"), [small], skip=["loaded", "converted", "extracted"], steps=1, work=tmp_path)
    route = result.route("merged")
    assert list(tmp_path.iterdir()) == []
    assert bits() == before
    assert (result.verdict, route.status) == ("fail", "fail")
    assert route.modules.counts()["missing"] == 1
    assert route.modules.unexpected == ("unet.conv_out.bias",)


def test_an_adapter_that_changes_nothing_is_inconclusive_with_exit_code_1(pipeline, small, tmp_path, capsys):
    dead = tmp_path / "dead.safetensors"
    tensors = {key: torch.zeros_like(value) if "lora_B" in key else value for key, value in load_file(small).items()}
    save_file(tensors, dead, metadata=metadata_of(small))
    report = tmp_path / "report"
    words = ["validate", str(pipeline("sd1")), str(dead), "--steps", "1", "--skip", "loaded,converted", "--json"]
    assert ended([*words, "--report", str(report)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["verdict"]) == ("loratools.validate/1", "inconclusive")
    assert document["reasons"][0].startswith("the adapters change the latents by 0,")
    assert document["not_held"][0]["route"] == "extracted"
    assert document["adapters"][0]["files"][0]["name"] == "dead.safetensors"
    assert {"torch", "diffusers", "peft", "transformers", "loratools"} <= set(document["versions"])
    assert {path.name for path in report.iterdir()} >= {"index.html", "contact-sheet.png", "report.json"}


def test_the_page_says_what_passed_and_the_exit_code_is_0(pipeline, made, capsys):
    """Through the command line: a PEFT folder on the other architecture."""
    words = ["validate", str(pipeline("sd2")), f"{made('peft', 'sd2')}=0.7", "--steps", "1", "--to", "kohya"]
    assert ended([*words, "--negative-controls"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("pass: ")
    for words in ("refused", "noise floor", "scale off by 1 %", "unload"):
        assert words in told.out
    assert "merged" in told.err


def test_a_single_file_is_validated_as_the_pipeline_that_is_made_of_it(pipeline, small, tmp_path):
    single = tmp_path / "model.safetensors"
    lt.rebuild(pipeline("sd1"), (), single_file=single, arch="sd1", check=False)
    result = lt.validate(
        single, [small, (small, -0.5)], config=pipeline("sd1"), skip=["converted", "extracted", "loaded"], steps=1
    )
    assert result.route("merged").status == "pass", result.route("merged").remarks
    assert result.reasons == tuple(f"{name} was left out" for name in ("converted", "extracted", "loaded"))
    assert [row["name"] for row in result.pipeline["files"]] == ["model.safetensors"]


def test_what_cannot_be_validated_is_refused_before_anything_is_drawn(pipeline, made, small, tmp_path, monkeypatch):
    base = pipeline("sd1")
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(NotRepresentable):
        lt.validate(base, [made("loha", "sd1")], to=["diffusers"])
    for how in (
        {"scheduler": "ddimm"},
        {"dtype": "F8_E4M3"},
        {"device": "tpu"},
        {"skip": ["everything"]},
        {"prompts": []},
        {"steps": 0},
        {"to": ["kohia"]},
        {"config": str(base), "variant": "fp16", "skip": ["merged", "extracted"]},
        {"tokenizer": "tokenizer"},
        {"prediction_type": "epsilon"},
        {"report": str(tmp_path), "overwrite": False},
    ):
        for does in (lt.validate, plan_validate):
            with pytest.raises(UsageError):
                does(base, [small], **how)
    with pytest.raises(UsageError):
        lt.validate(base, [])
    with pytest.raises(PathNotFound):
        lt.validate(tmp_path / "nothing", [small])


def test_a_float32_pass_that_does_not_fit_leaves_the_verdict_open(pipeline, small, monkeypatch):
    monkeypatch.setattr("loratools.pipelines.room.bytes_free", lambda _device: 1000)
    plan = plan_validate(pipeline("sd1"), [small], dtype="F16")
    assert plan.passes == ("F16",)
    assert plan.memory > plan.free_memory
    result = lt.validate(pipeline("sd1"), [small], dtype="F16", steps=1, skip=["loaded", "converted", "extracted"])
    assert (result.dtype, result.judged_in, result.verdict) == ("F16", "F16", "inconclusive")
    assert "no float32 pass" in result.warnings[0]
    assert result.route("merged").status == "inconclusive"


def test_a_plan_draws_and_writes_nothing(pipeline, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("loratools.pipelines.running.load_pipeline", None)
    words = ["validate", str(pipeline("sd1")), str(made("loha", "sd1")), "--dry-run", "--work", str(tmp_path), "--json"]
    capsys.readouterr()  # what its trainer said
    assert ended([*words, "--seed", "1", "--seed", "2", "--dtype", "bf16"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "loratools.validate-plan/1"
    assert document["passes"] == ["F32", "BF16"]
    assert document["pictures"] == 2
    cannot = {f"converted to {name}" for name in ("diffusers", "gguf", "hcp", "mlx")}
    assert {row["route"] for row in document["not_held"]} == cannot
    assert "converted to kohya" in document["routes"]
    assert list(tmp_path.iterdir()) == []


def metadata_of(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def ended(words):
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code
