"""Deduplicated: every output has the bytes that its command alone would have written, and each adapter is done once."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import loratools as lt
from loratools.batch import copies
from loratools.batch.answer import sha256_of_output, standing
from loratools.batch.identity import UNKNOWN, identity, unchanged
from loratools.batch.items import Item, Twin
from loratools.errors import UsageError
from tests.files import save
from tests.operations.making import METADATA, file, tensors
from tests.reliability.invariants import command, leftovers

FIRST, SAME_NAME, OTHER_NAME, OTHER_WORDS, SPELLING, OTHER, TORN, TORN_TOO = range(8)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """One adapter five times: twice under one name, under another name, with other metadata, in another spelling."""
    folder = tmp_path_factory.mktemp("shelf")
    for name in "abcdefgh":
        (folder / name).mkdir()
    first = file(folder / "a" / "style.safetensors", rank=2)
    shutil.copy(first, folder / "b" / "style.safetensors")
    shutil.copy(first, folder / "c" / "otherwise.safetensors")
    save(tensors(rank=2), folder / "d" / "style.safetensors", {**METADATA, "note": "yours"})
    lt.convert(first, to="diffusers").save(folder / "e" / "style.safetensors")
    file(folder / "f" / "style.safetensors", rank=2, seed=1)
    for name in "gh":
        (folder / name / "torn.safetensors").write_bytes(b"torn")
    return folder


def run(shelf, folder, verb, *words, only="*", **how):
    """The batch, deduplicated: its rows, and its outputs by number."""
    names = sorted(str(path) for path in shelf.glob(f"{only}/*"))
    batch = lt.Batch(
        verb=verb, manifest=names, options=words, output=str(folder / "out" / "{parent}-{stem}.safetensors"),
        state=folder / "state.sqlite", results=folder / "r.jsonl", workers=1, deduplicate=True, **how,
    )  # fmt: skip
    batch.run()
    return [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()]


def files(place):
    return {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}


MERGED = ("--arch", "sd1", "--allow-partial")
VERBS = {"convert": ("--to", "diffusers"), "resize": ("--rank", "1")}


@pytest.mark.parametrize("verb", ["convert", pytest.param("resize", marks=pytest.mark.long)])
def test_outputs_have_the_bytes_that_the_command_alone_would_have_written(shelf, tmp_path, verb):
    rows = run(shelf, tmp_path, verb, *VERBS[verb])
    for row in rows[:TORN]:
        alone = tmp_path / "alone.safetensors"
        told = command(verb, row["source"], alone, *VERBS[verb], "--json", "--overwrite")
        assert Path(row["output"]).read_bytes() == alone.read_bytes(), row["source"]
        assert row["document"] == json.loads(told.out.replace(str(alone), row["output"]))
    assert [row["same_as"] for row in rows] == [None, 0, 0, 0, 0, None, None, None]
    assert [row["copied"] for row in rows] == [False, True, True, False, False, False, False, False]
    assert [row["code"] for row in rows[TORN:]] == ["malformed-file"] * 2
    assert len({row["fingerprint"] for row in rows[:OTHER]}) == 1 != rows[OTHER]["fingerprint"]
    first, second = (Path(rows[number]["output"]).stat() for number in (FIRST, SAME_NAME))
    assert first.st_ino == second.st_ino
    assert leftovers(tmp_path) == []


def test_folders_are_copied_whole(shelf, tmp_path):
    words = ("convert", str(shelf / "a" / "style.safetensors"))
    names = [str(shelf / name) for name in ("a/style.safetensors", "b/style.safetensors", "c/otherwise.safetensors")]
    lt.Batch(
        verb="convert", manifest=names, options=["--to", "peft"], output=str(tmp_path / "out" / "{parent}"),
        state=tmp_path / "state.sqlite", results=tmp_path / "r.jsonl", workers=1, deduplicate=True,
    ).run()  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["copied"] for row in rows] == [False, True, True]
    for row in rows:
        alone = tmp_path / "alone"
        assert command(words[0], row["source"], alone, "--to", "peft").code == 0
        assert files(Path(row["output"])) == files(alone)
        shutil.rmtree(alone)


@pytest.mark.long
def test_merges_are_linked_where_the_names_are_equal(shelf, tmp_path):
    stems = (f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.{name}.weight" for name in ("to_q", "to_k"))
    base = save({stem: torch.ones(320, 320) for stem in stems}, tmp_path / "base.safetensors")
    rows = run(shelf, tmp_path, "merge", *MERGED, constants={"base": str(base)}, only="[abc]")
    assert [row["copied"] for row in rows] == [False, True, False]
    alone = tmp_path / "alone.safetensors"
    command("merge", base, rows[SAME_NAME]["source"], "-o", alone, *MERGED)
    assert Path(rows[SAME_NAME]["output"]).read_bytes() == alone.read_bytes()


def test_a_lost_copy_is_made_again_and_a_changed_input_is_no_copy_any_more(shelf, tmp_path):
    own = tmp_path / "shelf"
    shutil.copytree(shelf, own)
    before = run(own, tmp_path, "convert", *VERBS["convert"])
    for number in (SAME_NAME, OTHER_NAME):
        Path(before[number]["output"]).unlink()
    file(Path(before[OTHER_NAME]["source"]), rank=2, seed=9)
    after = run(own, tmp_path, "convert", *VERBS["convert"])
    assert [after[number]["copied"] for number in (SAME_NAME, OTHER_NAME)] == [True, False]
    assert [after[number]["same_as"] for number in (SAME_NAME, OTHER_NAME)] == [0, None]
    with safe_open(after[OTHER_NAME]["output"], "pt") as ours, safe_open(before[FIRST]["output"], "pt") as theirs:
        assert not all(ours.get_tensor(key).equal(theirs.get_tensor(key)) for key in ours.keys())  # noqa: SIM118 - a file, not a mapping


def test_options_keep_items_apart(shelf, tmp_path):
    (tmp_path / "m.csv").write_text(
        "input,--to\n"
        + "".join(f"{shelf}/{name}/style.safetensors,{to}\n" for name, to in (("a", "comfy"), ("b", "diffusers")))
    )
    lt.Batch(
        verb="convert", manifest=tmp_path / "m.csv", output=str(tmp_path / "{number}.safetensors"),
        state=tmp_path / "state.sqlite", results=tmp_path / "r.jsonl", workers=1, deduplicate=True,
    ).run()  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(row["same_as"], row["copied"]) for row in rows] == [(None, False), (0, False)]


@pytest.fixture
def pair(shelf, tmp_path):
    """A converted adapter, and the item of the same adapter elsewhere, which has it for its twin."""
    made = lt.convert(shelf / "a" / "style.safetensors", to="diffusers").save(tmp_path / "a.safetensors").path
    sources = [shelf / name / "style.safetensors" for name in "ab"]
    words = [("convert", str(source), str(tmp_path / "b.safetensors"), "--to", "diffusers") for source in sources]
    known = [identity(one) for one in words]
    assert known[0].content == known[1].content
    twin = Twin(
        words[0], str(made), *standing(made), sha256_of_output(made), "{}",
        (known[0].names, known[1].names), known[0].files + known[1].files,
    )  # fmt: skip
    return twin, Item(1, "", words[1], words[1][2], str(sources[1]), twin=twin)


def test_without_links_there_are_copies(pair, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "no links here")

    twin, item = pair
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert copies.copied(item).copied
    assert (tmp_path / "b.safetensors").read_bytes() == Path(twin.output).read_bytes()
    assert Path(item.output).stat().st_ino != Path(twin.output).stat().st_ino


def test_what_is_in_doubt_is_left_to_the_command(pair, tmp_path):
    twin, item = pair
    path, size, changed = twin.files[1]
    for doubtful in (
        item._replace(twin=twin._replace(files=((path, size, changed + 1),))),
        item._replace(twin=twin._replace(time=twin.time + 1)),
        item._replace(twin=twin._replace(output=str(tmp_path / "none.safetensors"))),
        item._replace(twin=twin._replace(sha256="0" * 64)),
    ):
        assert copies.copied(doubtful) is None
        Path(item.output).unlink(missing_ok=True)
    merge = ("merge", "base.safetensors", item.source, "-o", item.output)
    assert copies.copied(item._replace(words=merge, twin=twin._replace(names=(("a",), ("b",))))) is None
    Path(item.output).write_text("mine")
    assert copies.copied(item) is None
    assert Path(item.output).read_text() == "mine"
    assert copies.copied(item._replace(begun=True)).copied


def test_another_file_of_the_same_size_and_time_is_no_twin(pair):
    _, item = pair
    before = Path(item.source).stat()
    time.sleep(0.02)  # a tick of the clock that files are stamped by
    Path(item.source).write_bytes(Path(item.source).read_bytes())
    os.utime(item.source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert copies.copied(item) is None


def test_what_is_no_copy_after_all_does_not_stay(pair, tmp_path):
    twin, item = pair
    other = (("theirs",), ("ours",))
    for doubtful in (twin._replace(sha256="0" * 64), twin._replace(sha256="0" * 64, names=other)):
        assert copies.copied(item._replace(twin=doubtful)) is None
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]


@pytest.mark.parametrize("index", [False, True])
def test_a_base_that_changes_parts_its_merges(shelf, tmp_path, index):
    base = tmp_path / "base" / "model.safetensors"
    base.parent.mkdir()
    save({"weight": torch.ones(2)}, base)
    told = str(base.with_name("model.safetensors.index.json")) if index else str(base.parent)
    Path(told).exists() or Path(told).write_text("{}")
    known = identity(("merge", told, str(shelf / "a" / "style.safetensors"), "-o", str(tmp_path / "out.safetensors")))
    assert known.content is not None
    assert unchanged(known.files)
    save({"weight": torch.zeros(2)}, base)
    assert not unchanged(known.files)


def test_a_base_that_the_hub_may_change_is_not_counted_on(shelf):
    adapter, commit = str(shelf / "a" / "style.safetensors"), "0" * 40
    assert identity(("merge", "owner/name", adapter, "-o", "out.safetensors")) == UNKNOWN
    assert identity(("merge", f"hf://owner/name@{commit}", adapter, "-o", "out.safetensors")).content is not None


def test_the_document_of_a_merge_names_its_own_adapters(shelf, tmp_path):
    first, item = tmp_path / "first.safetensors", str(tmp_path / "second.safetensors")
    shutil.copy(shelf / "a" / "style.safetensors", first)
    stored = [[str(shelf / part / "style.safetensors") for part in parts] for parts in ("af", "bf")]
    words = [
        ("merge", "base", f"{one}=0.5", other, "-o", place)
        for (one, other), place in zip(stored, (str(first), item), strict=True)
    ]
    known = [identity(one) for one in words]
    document = json.dumps({"path": str(first), "adapters": [{"path": path} for path in stored[0]]})
    twin = Twin(
        words[0], str(first), *standing(first), sha256_of_output(first), document,
        (known[0].names, known[1].names), known[0].files + known[1].files,
    )  # fmt: skip
    made = copies.copied(Item(1, "", words[1], item, stored[1][0], twin=twin))
    assert made.document == {"path": item, "adapters": [{"path": path} for path in stored[1]]}
    twice = twin._replace(words=("merge", "base", stored[0][0], stored[0][0], "-o", str(first)))
    Path(item).unlink()
    assert copies.copied(Item(1, "", words[1], item, stored[1][0], twin=twice)) is None


def test_an_adapter_that_cannot_be_looked_at_spoils_no_batch(shelf, monkeypatch):
    def burst(*_):
        raise MemoryError

    monkeypatch.setattr("loratools.operations.hash.fingerprint_of", burst)
    assert identity(("convert", str(shelf / "a" / "style.safetensors"), "out.safetensors")) == UNKNOWN
    assert identity(("merge", "base", "a.safetensors=nan", "-o", "out.safetensors")) == UNKNOWN


@pytest.mark.parametrize("place", ["b.gguf", "a/b.safetensors"])
def test_a_copy_stands_where_its_command_would_write(pair, tmp_path, place):
    twin, item = pair
    folder = tmp_path / "a"
    folder.mkdir()
    shutil.copy(item.source, folder / "style.safetensors")
    words = ("merge", str(folder), item.source, "-o", str(tmp_path / place))
    assert copies.copied(item._replace(words=words, output=words[4], twin=twin._replace(words=words))) is None
    assert not (tmp_path / place).exists()


def test_a_gguf_file_of_another_name_is_left_to_the_command(pair, tmp_path):
    twin, item = pair
    first, place = tmp_path / "one.gguf", tmp_path / "two.gguf"
    first.write_bytes(b"GGUF, and a record that names the inputs")
    words = [("convert", item.source, str(path), "--to", "gguf") for path in (first, place)]
    told = twin._replace(
        words=words[0], output=words[0][2], size=standing(first)[0], time=standing(first)[1],
        sha256=sha256_of_output(first), names=(("theirs",), ("ours",)),
    )  # fmt: skip
    here = item._replace(words=words[1], output=words[1][2])
    assert copies.copied(here._replace(twin=told)) is None
    assert not place.exists()
    assert copies.copied(here._replace(twin=told._replace(names=(("same",), ("same",))))).copied


def test_verbs_that_make_nothing_of_adapters_are_refused(shelf, tmp_path):
    with pytest.raises(UsageError, match="could be copied"):
        lt.Batch(verb="inspect", manifest=shelf, state=tmp_path / "s.sqlite", deduplicate=True).run()
    assert command("batch", "hash", shelf, "--deduplicate", "--state", tmp_path / "t.sqlite").code == 2
