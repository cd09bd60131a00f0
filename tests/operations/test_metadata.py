"""metadata: the tensors stay as they are, hashes stay true, and nothing changes what the weights mean."""

import json
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import loratools as lt
from loratools.errors import NotRepresentable, OutputExists, OutputRefused, UnsupportedFile, UsageError
from loratools.operations.header.private import stripped
from tests.files import save
from tests.operations.making import METADATA, file, same, tensors
from tests.reliability.invariants import command

SECRETS = {
    "ss_dataset_dirs": '{"/home/al/pics/3_cat": {"n_repeats": 3}}',
    "ss_tag_frequency": '{"3_cat": {"mycat": 10, "sitting": 2}}',
    "ss_training_comment": "for Bo",
    "ss_sd_model_name": r"C:\Users\al\models\v1-5.safetensors",
    "ss_network_args": '{"conv_dim": "4", "log": "/home/al/log.txt"}',
    "note": "see /mnt/disk/readme",
}
STATED = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": "0x" + "0" * 64}


def stored(path):
    with safe_open(path, "pt") as opened:
        return opened.metadata() or {}


def body(path):
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


@pytest.fixture
def given(tmp_path):
    return file(tmp_path / "in.safetensors", metadata=METADATA | SECRETS | STATED)


def test_an_edit_changes_the_header_alone(given, tmp_path):
    before = given.read_bytes()
    done = lt.set_metadata(given, {"modelspec.title": "another", "new": "ünïcode\n"}, out=tmp_path / "out.safetensors")
    assert body(done.path) == body(given)
    assert given.read_bytes() == before
    found = stored(done.path)
    assert (found["modelspec.title"], found["new"]) == ("another", "ünïcode\n")
    assert set(found) - set(stored(given)) == {"new", "loratools.provenance"}
    assert done.changes["new"] == "set"
    assert same(load_file(done.path), load_file(given))


def test_a_file_in_another_order_keeps_it(tmp_path):
    held = {"b.weight": torch.ones(2, dtype=torch.uint8), "a.weight": torch.zeros(3)}
    header = {
        "b.weight": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
        "a.weight": {"dtype": "F32", "shape": [3], "data_offsets": [2, 14]},
    }
    text = json.dumps(header).encode()
    source = tmp_path / "in.safetensors"
    source.write_bytes(len(text).to_bytes(8, "little") + text + bytes([1, 1]) + bytes(12))
    done = lt.set_metadata(source, {"title": "odd"}, out=tmp_path / "out.safetensors")
    assert body(done.path) == body(source)
    assert same(load_file(done.path), held)


def test_hashes_that_a_file_states_are_true_after_every_edit(given, tmp_path):
    done = lt.remove_metadata(given, ["note"], out=tmp_path / "out.safetensors")
    found = lt.hash(done.path)
    assert [claim.status for claim in found.files[0].claims] == ["ok"] * 3
    assert found.fingerprint == lt.hash(given).fingerprint
    assert {key: done.changes[key] for key in STATED} == dict.fromkeys(STATED, "recomputed")


def test_stripping_what_is_private_leaves_what_a_user_needs(given, tmp_path):
    done = lt.strip_metadata(given, out=tmp_path / "out.safetensors")
    text = (tmp_path / "out.safetensors").read_bytes()[:4000]
    assert not any(word in text for word in (b"/home", b"Users", b"mycat", b"3_cat", b"for Bo", b"/mnt"))
    found = stored(done.path)
    assert found["ss_sd_model_name"] == "v1-5.safetensors"
    assert json.loads(found["ss_network_args"]) == {"conv_dim": "4", "log": "log.txt"}
    assert set(METADATA) - {"note"} <= set(found)
    assert "mycat" in done.warnings[0]
    assert lt.read_metadata(done.path).private == ()


def test_stripping_everything_leaves_what_the_weights_need(tmp_path):
    source = lt.convert(file(tmp_path / "in.safetensors"), to="diffusers").save(tmp_path / "d.safetensors").path
    done = lt.strip_metadata(source, everything=True, out=tmp_path / "out.safetensors")
    assert "lora_adapter_metadata" in stored(done.path)
    assert "note" not in stored(done.path)
    assert lt.hash(done.path).fingerprint == lt.hash(source).fingerprint


@pytest.mark.parametrize("how", ["remove", "set"])
def test_what_decides_how_the_weights_are_read_is_not_changed(tmp_path, how):
    source = lt.convert(file(tmp_path / "in.safetensors"), to="diffusers").save(tmp_path / "d.safetensors").path
    key = "lora_adapter_metadata"
    change = lt.remove_metadata if how == "remove" else lt.set_metadata
    with pytest.raises(NotRepresentable) as caught:
        change(source, [key] if how == "remove" else {key: '{"unet.r": 8}'}, out=tmp_path / "out.safetensors")
    assert caught.value.key == "lora_adapter_metadata"
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("entries", "key"),
    [({"sshs_model_hash": "ab"}, "sshs_model_hash"), ({"loratools.provenance": "{}"}, "loratools.provenance"),
     ({"title": 3}, "title"), ({"": "x"}, "")],
)  # fmt: skip
def test_what_is_computed_or_no_text_is_not_set(given, tmp_path, entries, key):
    with pytest.raises(UsageError) as caught:
        lt.set_metadata(given, entries, out=tmp_path / "out.safetensors")
    assert (caught.value.key or "") == key
    assert not (tmp_path / "out.safetensors").exists()


def test_in_place_a_complete_new_file_takes_the_name(given):
    given.chmod(0o640)
    before, contents = given.stat(), body(given)
    with given.open("rb") as held:
        lt.set_metadata(given, {"note": "mine"}, in_place=True)
        assert stored(given)["note"] == "mine"
        assert held.read()[-len(contents) :] == contents
    after = given.stat()
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert body(given) == contents
    assert [item.name for item in given.parent.iterdir()] == ["in.safetensors"]


def test_a_place_is_asked_for_and_another_file_is_not_replaced_unasked(given, tmp_path):
    with pytest.raises(UsageError, match="one place"):
        lt.remove_metadata(given, ["note"])
    with pytest.raises(UsageError, match="one place"):
        lt.remove_metadata(given, ["note"], out=tmp_path / "out.safetensors", in_place=True)
    with pytest.raises((OutputExists, OutputRefused)):
        lt.remove_metadata(given, ["note"], out=given, overwrite=True)
    other = file(tmp_path / "other.safetensors")
    with pytest.raises(OutputExists):
        lt.remove_metadata(given, ["note"], out=other)
    with pytest.raises(UnsupportedFile):
        lt.read_metadata(tmp_path / "x.ckpt")
    link = tmp_path / "link.safetensors"
    link.symlink_to(given)
    with pytest.raises(OutputRefused):
        lt.set_metadata(link, {"note": "mine"}, in_place=True)


@pytest.mark.parametrize(
    ("value", "left"),
    [("a style", "a style"), ("1/2", "1/2"), ("https://example.org/home/x", "https://example.org/home/x"),
     ("/home/al/x.ckpt", "x.ckpt"), ("~/x", "x"), (r"\\server\share\x.pt", "x.pt"), ("D:/models/x/", "x"),
     ("look at /home/al", None), ('{"a": ["/root/x", 1], "/mnt/b": {}}', '{"a":["x",1],"b":{}}'),
     ('{"a": "see /root/x"}', None), ('{"a": "/root/x', None)],
)  # fmt: skip
def test_paths_keep_their_last_part(value, left):
    assert stripped({"key": value})[0].get("key") == left


def test_words_beside_the_file_are_found(given):
    name = given.stem
    given.with_name(f"{name}.civitai.info").write_text('{"trainedWords": ["ohwx cat", " "]}')
    given.with_name(f"{name}.json").write_text('{"activation text": "ohwx, cat ,"}')
    given.with_name(f"{name}.metadata.json").write_text("no JSON")
    assert [(item.words, item.source) for item in lt.read_metadata(given).triggers] == [
        (("ohwx cat",), f"{name}.civitai.info"),
        (("ohwx", "cat"), f"{name}.json"),
        (("mycat",), "ss_tag_frequency"),
    ]


def test_the_commands_do_the_same(given, tmp_path):
    shown = command("metadata", "show", given)
    assert (shown.code, "mycat (ss_tag_frequency)" in shown.out) == (0, True)
    assert json.loads(command("--json", "metadata", "show", given).out) == lt.read_metadata(given).to_dict()
    assert command("metadata", "get", given, "note").out == SECRETS["note"] + "\n"
    missing = command("metadata", "get", given, "notes")
    assert (missing.code, "did you mean 'note'?" in missing.err) == (2, True)
    exported = tmp_path / "entries.json"
    exported.write_text(command("metadata", "export", given).out)
    bare = save(tensors(), tmp_path / "bare.safetensors", {})
    out = tmp_path / "out.safetensors"
    assert command("metadata", "import", bare, exported, "-o", out).code == 0
    assert set(stored(out)) == (set(stored(given)) - set(STATED)) | {"loratools.provenance"}
    for words in (["set", "note=b=c"], ["remove", "note"], ["strip", "--private"], ["strip", "--all"]):
        done = command("metadata", words[0], out, *words[1:], "--in-place", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["schema"] == "loratools.metadata-edit/1"
    assert set(stored(out)) == {"loratools.provenance"}
    for words in (["set", given, "x"], ["strip", given], ["set", given, "x=y"]):
        assert command("metadata", *words).code == 2


DEEP = f'{"[" * 100_000}"/home/al/x"{"]" * 100_000}'
"""What no parser of JSON follows to its end."""


@pytest.mark.parametrize("key", ["note", "ss_tag_frequency", "ss_network_args", "modelspec.trigger_phrase"])
def test_texts_nested_too_deep_to_read_are_strangers_texts(key, tmp_path):
    given = file(tmp_path / "in.safetensors", metadata={key: DEEP})
    for ending in (".json", ".civitai.info", ".metadata.json"):
        (tmp_path / f"in{ending}").write_text(DEEP)
    assert lt.read_metadata(given).private == (key,)
    assert lt.inspect(given).document["metadata"][key] == DEEP
    assert key not in stored(lt.strip_metadata(given, out=tmp_path / "out.safetensors").path)


def test_a_tag_that_is_counted_beyond_all_numbers_calls_nothing(tmp_path):
    given = file(tmp_path / "in.safetensors", metadata={"ss_tag_frequency": '{"3_cat": {"mycat": 1e999}}'})
    assert lt.read_metadata(given).triggers == ()
