"""A recipe tells how an output was made, and making it again gives the same bytes."""

import json

import pytest
import torch
import yaml

import loratools as lt
from loratools.errors import (
    ArchitectureMismatch,
    MalformedFile,
    NotRepresentable,
    OutputRefused,
    PathNotFound,
    UsageError,
)
from loratools.operations.recipe import read_recipe, recipe_of, run_recipe, written_recipe
from tests.files import save
from tests.operations.making import file
from tests.reliability.invariants import command

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def place(tmp_path):
    """Two adapters, and a model with its tune, that share a folder."""
    file(tmp_path / "a.safetensors", seed=1)
    file(tmp_path / "b.safetensors", seed=2)
    draw = torch.Generator().manual_seed(0)
    names = [LAYER, LAYER.replace("to_q", "to_k"), "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"]
    sizes = [(320, 320), (320, 320), (10240, 1280)]
    base = {f"{name}.weight": torch.randn(size, generator=draw).half() for name, size in zip(names, sizes, strict=True)}
    save(base, tmp_path / "base.safetensors", {})
    tuned = {}
    for key, value in base.items():
        up, down = (torch.randn(size, generator=draw) for size in ((value.shape[0], 2), (2, value.shape[1])))
        tuned[key] = (value.float() + 0.02 * up @ down).half()
    save(tuned, tmp_path / "tuned.safetensors", {})
    return tmp_path


MADE = {
    "convert": lambda place, out: lt.convert(place / "a.safetensors", to="diffusers", dtype="F32").save(out),
    "resize": lambda place, out: lt.resize(place / "a.safetensors", rank=2).save(out),
    "combine": lambda place, out: lt.combine(
        [(place / "a.safetensors", 0.5), (place / "b.safetensors", -1.0)], method="dare_linear", density=0.5, seed=3
    ).save(out),
    "merge": lambda place, out: lt.merge(
        place / "base.safetensors", [(place / "a.safetensors", 0.5), place / "b.safetensors"], out, allow_partial=True,
        components=["unet"],
    ),
    "extract": lambda place, out: lt.extract(
        place / "base.safetensors", place / "tuned.safetensors", rank=2, arch="sd1", patterns=[("*.to_k", 1)],
        full=["norms"], force=True,
    ).save(out),
}  # fmt: skip


@pytest.mark.parametrize("operation", MADE)
def test_the_recipe_of_an_output_makes_it_again(place, tmp_path, operation):
    out = place / "out.safetensors"
    MADE[operation](place, out)
    text = written_recipe(recipe_of(out))
    assert str(place) not in text
    (place / "recipe.yaml").write_text(text)
    assert read_recipe(place / "recipe.yaml").to_dict() == recipe_of(out).to_dict()
    again = place / "again"
    again.mkdir()
    done = run_recipe(place / "recipe.yaml", again / "out.safetensors")
    assert (done.operation, done.same_bytes, done.differing) == (operation, True, ())
    assert (again / "out.safetensors").read_bytes() == out.read_bytes()


def test_a_folder_is_made_again_too(place):
    lt.convert(place / "a.safetensors", to="peft").save(place / "out")
    (place / "r.json").write_text(json.dumps(recipe_of(place / "out").to_dict()))
    done = run_recipe(place / "r.json", place / "again")
    assert done.same_bytes is True
    (place / "again").rename(place / "gone")
    document = json.loads((place / "r.json").read_text())
    document["output"]["files"][0]["sha256"] = "0" * 64
    (place / "r.json").write_text(json.dumps(document))
    ended = command("recipe", "run", place / "r.json", "-o", place / "again", "--json")
    assert ended.code == 1
    assert json.loads(ended.out)["differing"] == [document["output"]["files"][0]["name"]]


def test_inputs_of_several_files_are_told_apart_and_found_again(place):
    """Two adapters of two files each, whose folders have one name, and one of them once more."""
    for name in "ab":
        (place / name).mkdir()
        lt.convert(place / f"{name}.safetensors", to="peft").save(place / name / "set")
    lt.convert(place / "a" / "set", to="kohya").save(place / "one.safetensors")
    given = [(place / "a" / "set", 0.5), (place / "b" / "set", 0.25), (place / "b" / "set", 2.0)]
    lt.combine(given, method="concat", to="kohya").save(place / "all.safetensors")
    one, several = (recipe_of(place / f"{name}.safetensors") for name in ("one", "all"))
    assert [(item.name, len(item.files)) for item in one.inputs] == [("set", 2)]
    assert [(item.name, item.scale, len(item.files)) for item in several.inputs] == [
        ("set", 0.5, 2), ("set", 0.25, 2), ("set", 2.0, 2)
    ]  # fmt: skip
    assert run_recipe(one, place / "again.safetensors", folders=[place / "a"]).same_bytes
    with pytest.raises(ArchitectureMismatch, match="another file"):
        run_recipe(one, place / "other.safetensors", folders=[place / "b"])
    # Of folders with one name the one with the right bytes is taken.
    assert run_recipe(several, place / "both.safetensors", folders=[place / "a", place / "b"]).same_bytes


@pytest.mark.parametrize(
    "name", ["/{place}/elsewhere.safetensors", "../elsewhere.safetensors", "a/../../b.safetensors"]
)
def test_a_strangers_recipe_writes_nowhere_but_beside_itself(name, place):
    lt.convert(place / "a.safetensors", to="diffusers").save(place / "out.safetensors")
    document = recipe_of(place / "out.safetensors").to_dict()
    document["output"]["name"] = name.format(place=place)
    (place / "in").mkdir()
    (place / "in" / "recipe.yaml").write_text(yaml.safe_dump(document))
    before = sorted(place.rglob("*"))
    with pytest.raises(OutputRefused, match="not beside it"):
        run_recipe(place / "in" / "recipe.yaml", folders=[place])
    assert sorted(place.rglob("*")) == before
    assert run_recipe(place / "in" / "recipe.yaml", place / "again.safetensors", folders=[place]).same_bytes


def test_other_inputs_than_the_recipes_are_refused(place):
    lt.convert(place / "a.safetensors", to="diffusers").save(place / "out.safetensors")
    recipe = recipe_of(place / "out.safetensors")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (place / "a.safetensors").rename(elsewhere / "a.safetensors")
    (place / "r.yaml").write_text(written_recipe(recipe))
    with pytest.raises(PathNotFound, match=r"the input .* is not there"):
        run_recipe(place / "r.yaml", place / "again.safetensors")
    assert run_recipe(place / "r.yaml", place / "again.safetensors", folders=[elsewhere]).same_bytes
    file(elsewhere / "a.safetensors", seed=9)
    with pytest.raises(ArchitectureMismatch, match="another file"):
        run_recipe(place / "r.yaml", place / "third.safetensors", folders=[elsewhere])
    assert not (place / "third.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [({"opration": "convert"}, MalformedFile, "opration: unknown"), ({"operation": "melt"}, MalformedFile, "operation"),
     ({"inputs": []}, MalformedFile, "one input with the role input"),
     ({"parameters": {"too": "peft"}}, UsageError, "no parameter 'too'"),
     ({"inputs": [{"role": "input", "name": "a", "scael": 1}]}, MalformedFile, "inputs.0.scael: unknown"),
     ({"inputs": [{"role": "input", "name": "a", "files": [{"name": "a", "sha256": "x"}]}]}, MalformedFile, "sha256"),
     ({"schema": "loratools.recipe/2"}, MalformedFile, "schema")],
)  # fmt: skip
def test_what_a_recipe_does_not_know_is_refused(tmp_path, change, error, said):
    document = {"operation": "convert", "inputs": [{"role": "input", "name": "a.safetensors"}]} | change
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(error, match=said):
        read_recipe(tmp_path / "r.yaml")


def test_what_was_not_made_by_us_has_no_recipe(place):
    with pytest.raises(NotRepresentable, match="no record"):
        recipe_of(place / "a.safetensors")
    lt.set_metadata(place / "a.safetensors", {"x": "y"}, out=place / "b2.safetensors")
    with pytest.raises(NotRepresentable, match="has no recipe"):
        recipe_of(place / "b2.safetensors")


def test_yaml_runs_no_code(tmp_path):
    (tmp_path / "r.yaml").write_text("!!python/object/apply:os.system ['touch harmed']")
    with pytest.raises(MalformedFile, match="not YAML"):
        read_recipe(tmp_path / "r.yaml")


def test_the_command_shows_and_runs(place):
    lt.convert(place / "a.safetensors", to="diffusers").save(place / "out.safetensors")
    shown = command("recipe", "show", place / "out.safetensors")
    (place / "r.yaml").write_text(shown.out)
    assert command("recipe", "run", place / "r.yaml").code == 2  # it is there already
    done = command("recipe", "run", place / "r.yaml", "-o", place / "again.safetensors")
    assert (done.code, "the bytes that the recipe states" in done.out) == (0, True)
