"""The demo's things and its story: what is made, for whom, and where there is no room for it."""

import json
import os

import pytest
from click.testing import CliRunner

from loratools.architectures.registry import ARCHITECTURES
from loratools.cli import demo as command
from loratools.cli.main import cli
from loratools.errors import OutputExists, ResourceError
from loratools.operations.demo import demo
from loratools.operations.demonstration import made as demo_made
from loratools.operations.demonstration.chapters import CHAPTERS
from loratools.operations.demonstration.made import make_demo
from loratools.pipelines.blueprints import architectures, blueprint
from loratools.pipelines.blueprints_tiny import TINY
from loratools.pipelines.synthetic import BYTES


def size(path):
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return sum(item.stat().st_size for item in files)


@pytest.mark.parametrize(
    ("architecture", "things"),
    [("sd1", {"pipeline", "single.safetensors", "lora.safetensors"}), ("flux1", {"pipeline", "lora.safetensors"})],
)
def test_make_makes_its_things_and_stops(architecture, things, tmp_path):
    words = ["demo", "--make", "--keep", str(tmp_path / "new"), "--architecture", architecture, "--json"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert {item.name for item in (tmp_path / "new").iterdir()} == things
    assert document["schema"] == "loratools.demo-made/1"
    assert {row["file"]: row["size"] for row in document["files"]} == {
        name: size(tmp_path / "new" / name) for name in things
    }


def test_a_word_that_one_pipeline_is_called_by_makes_that_one_and_says_so(tmp_path):
    done = CliRunner().invoke(cli, ["demo", "--make", "--keep", str(tmp_path / "new"), "--architecture", "Wan"])
    assert done.exit_code == 0, done.output
    assert "Wan is taken to mean wan2.1" in done.stderr
    assert json.loads((tmp_path / "new" / "pipeline" / "model_index.json").read_text())["_class_name"] == "WanPipeline"


@pytest.mark.parametrize(
    ("word", "said"),
    [("sd", ["sd1", "sd2", "sd3", "sdxl"]), ("ltx2", ["ltx-video", "no tiny"]), ("z-imagine", ["'z-image'"])],
)
def test_a_word_that_means_several_pipelines_or_none_is_a_usage_error_that_names_them(word, said, tmp_path):
    done = CliRunner().invoke(cli, ["demo", "--keep", str(tmp_path / "new"), "--architecture", word, "--json"])
    assert done.exit_code == 2
    assert all(name in done.stdout for name in said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", architectures())
def test_a_pipeline_is_found_by_every_word_that_its_architecture_alone_is_called_by(name):
    known = [row for row in ARCHITECTURES if any(plan.architecture == row.id for plan in TINY)]
    plan = blueprint(name)
    mine = {word.lower() for row in known if row.id == plan.architecture for word in row.words}
    others = {word.lower() for row in ARCHITECTURES if row.id != plan.architecture for word in row.words}
    assert mine
    for word in mine - others:
        assert blueprint(word).architecture == plan.architecture
        assert blueprint(word.upper().replace("-", "_")).architecture == plan.architecture


def test_make_without_a_place_to_keep_is_a_usage_error(run):
    done = run("demo", "--make")
    assert done.returncode == 2
    assert "--keep" in done.stderr


@pytest.mark.parametrize("made", [make_demo, demo])
def test_a_full_size_pipeline_says_its_size_and_is_refused_where_it_has_no_room(made, tmp_path, monkeypatch):
    class Room:
        f_bavail, f_bfree, f_blocks, f_frsize = 1_000_000, 1_000_000, 9_000_000, 1000

    monkeypatch.setattr(os, "statvfs", lambda _path: Room)
    said = []
    with pytest.raises(ResourceError) as refused:
        made(tmp_path / "new" / "folder", size="full", report=said.append)
    assert refused.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []
    assert "is 2.1 GB" in said[0]
    copies = {make_demo: 2, demo: 6}[made]  # the folder and the single file, and what is merged, rebuilt and validated
    assert refused.value.evidence["needed"] == copies * 2 * (859_520_964 + 123_060_480 + 83_653_863)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists):
        make_demo(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.long
@pytest.mark.parametrize(("architecture", "dtype"), [("flux1", "bfloat16"), ("sdxl", "float16")])
def test_the_story_holds_for_other_architectures_in_narrow_dtypes_and_leaves_its_report(architecture, dtype, tmp_path):
    told = demo(tmp_path / "kept", architecture=architecture, dtype=dtype)
    assert told.passed, told.to_dict()["chapters"]
    assert told.folder == tmp_path / "kept"
    assert "<html" in (tmp_path / "kept" / told.chapters[-1].name).read_text()
    assert len(told.chapters) == len(CHAPTERS)
    assert all(0 < chapter.error < chapter.limit for chapter in told.chapters if chapter.limit)


def test_the_options_are_those_of_the_pipelines():
    assert tuple(command.ARCHITECTURES) == architectures()
    assert set(command.DTYPES) == set(BYTES)
    assert set(demo_made.DTYPES) == {"tiny", "full"}
