"""Where a merge or an extraction may write, what else may happen to the place and the inputs meanwhile."""

import os
import shutil

import pytest

import loratools as lt
from loratools.errors import ResourceError
from tests.reliability.invariants import check_ended_well, command, contents, leftovers
from tests.reliability.jobs import JOBS, folder_base, jobs, single_base, two_models
from tests.reliability.victims import started

WRITING = [job for job in JOBS if job.verb != "convert"]


def named(job):
    return job.name


def link(path, to):
    path.symlink_to(to)
    return path


def hard(path, to):
    os.link(to, path)
    return path


PLACES = {
    "the base": lambda _folder, inputs: inputs[0],
    "the base by another path": lambda folder, inputs: folder / "x" / ".." / inputs[0].name,
    "the adapter": lambda _folder, inputs: inputs[1],
    "a link to the base": lambda folder, inputs: link(folder / "link.safetensors", inputs[0]),
    "a hard link to the base": lambda folder, inputs: hard(folder / "hard.safetensors", inputs[0]),
    "a hard link to the adapter": lambda folder, inputs: hard(folder / "hard.safetensors", inputs[1]),
    "a link to nothing": lambda folder, _inputs: link(folder / "link.safetensors", folder / "nowhere.safetensors"),
    "a pipe": lambda folder, _inputs: os.mkfifo(folder / "pipe.safetensors") or folder / "pipe.safetensors",
    "a missing folder": lambda folder, _inputs: folder / "missing" / "out.safetensors",
    "below a file": lambda _folder, inputs: inputs[0] / "out.safetensors",
    "a folder": lambda folder, _inputs: (folder / "x.safetensors").mkdir() or folder / "x.safetensors",
    "another sort of name": lambda folder, _inputs: folder / "out.ckpt",
}
FOLDERS = {
    "the base": lambda _folder, base: base,
    "in the base": lambda _folder, base: base / "merged",
    "a component of the base": lambda _folder, base: base / "unet",
    "above the base": lambda _folder, base: base.parent,
    "a link to the base": lambda folder, base: link(folder / "link", base),
    "a link into the base": lambda folder, base: link(folder / "link", base / "unet") / "merged",
    "a folder of something else": lambda folder, _base: stranger(folder / "work"),
    "a file": lambda _folder, base: base.parent / "in.safetensors",
}


def stranger(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("two years")
    return folder


@pytest.mark.parametrize("make", [single_base, two_models], ids=["merge", "extract"])
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_the_output_is_refused(tmp_path, place, make):
    (tmp_path / "x").mkdir()
    inputs = make(tmp_path, small=True)
    out = PLACES[place](tmp_path, inputs)
    before = contents(tmp_path)
    done = command("merge" if make is single_base else "extract", *inputs, "-o", out, "--overwrite")
    check_ended_well(done)
    assert done.code == 2, done
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", FOLDERS)
def test_a_folder_that_cannot_be_the_output_is_refused(tmp_path, place):
    models = tmp_path / "models"
    models.mkdir()
    base, adapter = folder_base(models, small=True)
    out = FOLDERS[place](tmp_path, base)
    before = contents(tmp_path)
    done = command("merge", base, adapter, "-o", out, "--overwrite")
    check_ended_well(done)
    assert done.code == 2, done
    assert contents(tmp_path) == before


@pytest.mark.parametrize("make", [single_base, folder_base], ids=["file", "folder"])
def test_a_merge_into_an_adapters_folder_is_refused(tmp_path, make):
    base, adapter = make(tmp_path, small=True)
    folder = tmp_path / "peft"
    assert command("convert", adapter, folder, "--to", "peft").code == 0
    before = contents(tmp_path)
    name = "merged.safetensors" if make is single_base else "merged"
    done = command("merge", base, folder, "-o", folder / name)
    check_ended_well(done)
    assert done.code == 2, done
    assert contents(tmp_path) == before


@pytest.mark.parametrize("job", WRITING, ids=named)
def test_read_only_and_cached_and_existing_outputs_are_kept(tmp_path, monkeypatch, job):
    inputs, out = job.make(tmp_path, small=True), job.out(tmp_path)
    arguments = job.arguments(inputs, out)
    assert command(*arguments).code == 0
    before = contents(tmp_path)
    assert command(*arguments[:-1]).code == 2  # without --overwrite
    out.chmod(0o555)
    assert command(*arguments).code == 2
    out.chmod(0o755)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    done = command(*arguments)
    check_ended_well(done)
    assert done.code == 2
    assert "cache" in done.err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("job", jobs("merge"), ids=named)
def test_two_merges_into_one_output_leave_one_of_them_whole(tmp_path, job, overwrite):
    base, adapter = job.make(tmp_path, small=True)
    out = job.out(tmp_path)
    calls = [job.arguments(given, out) for given in ((base, adapter), (base, f"{adapter}=0.5"))]
    wholes = []
    for arguments in calls:
        assert command(*arguments).code == 0
        wholes.append(contents(tmp_path))
    for _ in range(4):
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        both = [started(arguments if overwrite else arguments[:-1]) for arguments in calls]
        ended = [victim.ended() for victim in both]
        found = sorted(done.code for done in ended)
        # Whoever comes second is told so, also where both were ready at the same instant.
        assert found == ([0, 0] if overwrite else [0, 2]), ended
        assert overwrite or any("the output" in done.err and "--overwrite" in done.err for done in ended)
        assert contents(tmp_path) in wholes
        assert leftovers(tmp_path) == []


CHANGES = ("touched", "shorter", "other bytes", "replaced")
INPUTS = [("file", "base"), ("file", "adapter"), ("folder", "base"), ("folder", "adapter"), ("folder", "beside")]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize(("form", "which"), INPUTS)
def test_an_input_that_changes_meanwhile_is_noticed(tmp_path, form, which, how):
    base, adapter = (single_base if form == "file" else folder_base)(tmp_path, small=True)
    victim = {"base": base, "adapter": adapter, "beside": base / "scheduler" / "scheduler_config.json"}[which]
    if victim.is_dir():
        victim = max((base / "unet").glob("*.safetensors"))
    out = tmp_path / ("out.safetensors" if form == "file" else "out")
    asked = 0

    def meddle(done, whole):
        nonlocal asked
        asked += 1
        if asked == 1:
            change(victim, how)

    if how == "replaced":  # the file that was opened is still the one that is read
        lt.merge(base, [adapter], out)
        wanted = contents(tmp_path)[str(out.relative_to(tmp_path))] if form == "file" else contents(out)
        lt.merge(base, [adapter], out, progress=meddle, overwrite=True)
        assert (contents(tmp_path)[out.name] if form == "file" else contents(out)) == wanted
    else:
        with pytest.raises(ResourceError, match="input changed") as caught:
            lt.merge(base, [adapter], out, progress=meddle)
        assert caught.value.exit_code == 5
        assert not out.exists()
    assert asked
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("how", ["touched", "shorter", "other bytes"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_model_that_changes_while_it_is_extracted_from_is_noticed(tmp_path, which, how):
    models = two_models(tmp_path, small=True)
    asked = 0

    def meddle(done, whole):
        nonlocal asked
        asked += 1
        if asked == 1:
            change(models[which], how)

    with pytest.raises(ResourceError, match="input changed"):
        lt.extract(*models, rank=8).save(tmp_path / "out.safetensors", progress=meddle)
    assert asked
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "tuned.safetensors"]


def change(path, how):
    """Somebody else writes."""
    size = path.stat().st_size
    if how == "touched":
        os.utime(path)
    elif how == "shorter":
        os.truncate(path, size // 2)
    elif how == "other bytes":
        with path.open("r+b") as file:
            file.seek(size - 2)
            file.write(b"{}")
    else:
        other = path.with_name("other")
        other.write_bytes(path.read_bytes()[:-2] + b"{}")
        other.replace(path)
