"""Manifests and items: every kind of list gives the same rows, and no row writes where it should not."""

import json

import pytest

from loratools.batch.items import items
from loratools.batch.manifest import home_of, rows
from loratools.batch.verbs import batch_verb
from loratools.errors import MalformedFile, OutputRefused, PathNotFound, UsageError

PATTERN = "out/{stem}.safetensors"


@pytest.fixture
def folder(tmp_path):
    for name in ("b.safetensors", "a.safetensors", "deep/c.safetensors", "peft/adapter_config.json", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("")
    (tmp_path / "in" / "peft" / "adapter_model.safetensors").write_text("")
    return tmp_path / "in"


def test_a_folder_is_its_files_and_its_adapter_folders_by_name(folder):
    found = [row["input"] for row in rows(folder, "input")]
    names = ["a.safetensors", "b.safetensors", "deep/c.safetensors", "peft"]
    assert found == [str(folder / name) for name in names]


def test_every_kind_of_list_gives_the_same_rows(folder, tmp_path):
    names = ["in/a.safetensors", "in/b.safetensors"]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n\n")
    (tmp_path / "list.csv").write_text("input\n" + "\n".join(names) + "\n")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"input": name}) + "\n" for name in names))
    absolute = [str(tmp_path / name) for name in names]
    for name in ("list.txt", "list.csv", "list.jsonl"):
        manifest = tmp_path / name
        found = items(batch_verb("inspect"), rows(manifest, "input"), home=home_of(manifest))
        assert [item.words for item in found] == [("inspect", path) for path in absolute]
    assert [row["input"] for row in rows(f"{folder}/*.safetensors", "input")] == absolute
    assert [row["input"] for row in rows(absolute, "input")] == absolute


def test_columns_options_and_constants_become_the_words_of_a_command(tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text("lora,strength,--dtype\nx.safetensors=0.5;y.safetensors,high,fp16\nz.safetensors,low,\n")
    found = list(
        items(
            batch_verb("merge"),
            rows(manifest, "lora"),
            options=["--allow-partial"],
            output=str(tmp_path / "{strength}/{stem}-{number}.safetensors"),
            constants={"base": "/base.safetensors"},
            home=tmp_path,
        )
    )
    first, second = (str(tmp_path / name) for name in ("high/x-000000.safetensors", "low/z-000001.safetensors"))
    assert [item.words for item in found] == [
        ("merge", "/base.safetensors", f"{tmp_path}/x.safetensors=0.5", f"{tmp_path}/y.safetensors", "-o", first,
         "--allow-partial", "--dtype", "fp16"),
        ("merge", "/base.safetensors", f"{tmp_path}/z.safetensors", "-o", second, "--allow-partial"),
    ]  # fmt: skip
    assert [item.output for item in found] == [first, second]
    assert found[0].source == f"{tmp_path}/x.safetensors"


def test_a_row_twice_is_one_item_and_two_rows_for_one_output_are_refused():
    verb = batch_verb("convert")
    assert len(list(items(verb, [{"input": "a"}, {"input": "a"}], output=PATTERN))) == 1
    with pytest.raises(UsageError, match="rows 1 and 2 would write one file"):
        list(items(verb, [{"input": "x/a"}, {"input": "y/a"}], output=PATTERN))


@pytest.mark.parametrize(
    "row", [{"style": "../../etc"}, {"output": "/etc/x.safetensors"}, {"output": "out/../../x.safetensors"}]
)
def test_no_row_writes_outside_the_folder_of_its_pattern(row):
    with pytest.raises(OutputRefused, match="row 1 would write outside out"):
        list(items(batch_verb("convert"), [{"input": "a", "style": "s", **row}], output="out/{style}/x.safetensors"))


@pytest.mark.parametrize(
    ("verb", "row", "output", "said"),
    [("inspect", {"inptu": "a"}, None, "no 'input'"), ("convert", {"input": "a"}, None, "writes files"),
     ("inspect", {"input": "a"}, PATTERN, "writes no files"), ("convert", {"input": "a"}, "{what}", "cannot be filled"),
     ("convert", {"input": "a"}, "out/{stem.__class__}", None), ("merge", {"lora": "a"}, PATTERN, "no 'base'")],
)  # fmt: skip
def test_what_makes_no_item_is_refused_before_anything_runs(verb, row, output, said):
    with pytest.raises((UsageError, OutputRefused), match=said):
        list(items(batch_verb(verb), [row], output=output))


def test_manifests_that_are_none_are_named(tmp_path):
    with pytest.raises(PathNotFound):
        list(rows(tmp_path / "none.csv", "input"))
    with pytest.raises(PathNotFound):
        list(rows(f"{tmp_path}/*.safetensors", "input"))
    for name, text, said in (
        ("a.jsonl", '{"input": "x"}\n[1]\n', "line 2"), ("b.jsonl", "{", "JSON Lines"),
        ("e.txt", b"\xff\n", "no text"), ("c.csv", "input,x\na\n", "line 2"), ("d.csv", "input\na,b\n", "line 2"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(MalformedFile, match=said):
            list(rows(tmp_path / name, "input"))
    with pytest.raises(UsageError, match="batch does not do 'converts'"):
        batch_verb("converts")
