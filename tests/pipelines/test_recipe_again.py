"""Merged and rebuilt pipelines are made again from their recipes, byte for byte, from inputs found by their hashes."""

import shutil

import pytest
from safetensors.torch import load_file

import loratools as lt
from loratools.errors import ArchitectureMismatch, PathNotFound
from loratools.operations.recipe import recipe_of, run_recipe, written_recipe
from loratools.pipelines.single_file import export_single_file
from tests.judges import by_peft


def test_a_merge_into_a_folder_of_components_is_made_again(pipeline, tmp_path):
    both = {"unet": None, "text_encoder": None}
    how = {"architecture": "sd1", "components": both, "most": 3, "container": "peft"}
    adapters = by_peft.make(pipeline("sd1"), tmp_path / "adapters", **how).path
    out = tmp_path / "out"
    lt.merge(pipeline("sd1"), [(adapters, 0.5), (adapters, -0.25)], out, arch="sd1")
    recipe = recipe_of(out)
    assert [(item.role, item.name, len(item.files) > 1) for item in recipe.inputs] == [
        ("base", pipeline("sd1").name, True), ("adapter", adapters.name, True),
        ("adapter", adapters.name, True),
    ]  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(written_recipe(recipe))
    folders = [pipeline("sd1").parent, adapters.parent]
    done = run_recipe(tmp_path / "recipe.yaml", tmp_path / "again", folders=folders)
    assert (done.same_bytes, done.differing) == (True, ())


@pytest.fixture(scope="module")
def rebuilt(pipeline, tmp_path_factory):
    """A pipeline rebuilt from a single file, with configurations from one folder and its tokenizer from another."""
    place = tmp_path_factory.mktemp("rebuilt")
    export_single_file(pipeline("sd1"), place / "model.safetensors", "sd1")
    shutil.copytree(pipeline("sd1"), place / "configs", ignore=shutil.ignore_patterns("tokenizer", "*.safetensors"))
    shutil.copytree(pipeline("sd1") / "tokenizer", place / "words" / "tokenizer")
    lt.rebuild(
        place / "model.safetensors",
        [],
        place / "out",
        config=place / "configs",
        tokenizer=place / "words" / "tokenizer",
        arch="sd1",
        check=False,
    )
    (place / "recipe.yaml").write_text(written_recipe(recipe_of(place / "out")))
    return place


def test_the_tokenizer_of_a_rebuilt_pipeline_is_found_again(rebuilt, tmp_path):
    done = run_recipe(rebuilt / "recipe.yaml", tmp_path / "again", folders=[rebuilt / "words"])
    assert (done.same_bytes, done.differing) == (True, ())
    ours, theirs = tmp_path / "again", rebuilt / "out"
    names = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert "tokenizer/tokenizer.json" in {name.as_posix() for name in names}
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert load_file(ours / "unet/diffusion_pytorch_model.safetensors")


def test_another_tokenizer_is_refused_and_a_missing_one_named(rebuilt, tmp_path):
    with pytest.raises(PathNotFound, match="the tokenizer is not there"):
        run_recipe(rebuilt / "recipe.yaml", tmp_path / "again")
    shutil.copytree(rebuilt / "words", tmp_path / "words")
    words = tmp_path / "words" / "tokenizer" / "tokenizer.json"
    words.write_text(words.read_text() + "\n")
    with pytest.raises(ArchitectureMismatch, match=r"another one than the recipe's: tokenizer/tokenizer\.json"):
        run_recipe(rebuilt / "recipe.yaml", tmp_path / "again", folders=[tmp_path / "words"])
    assert not (tmp_path / "again").exists()
