"""push: the card that goes with an adapter, what stands on a card already, and what is not sent without leave."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import loratools as lt
from loratools.cli.main import main
from loratools.errors import Unavailable, UsageError, WrongRole
from tests.files import SD1_KOHYA, kohya_tensors, save
from tests.hub.conftest import TOKEN
from tests.hub.server import FAULTS

# The client hands files to its own HTTP library by a word that this has given up.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SECRET = "/home/alice/secret-project"
PICTURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """An adapter whose metadata tell nothing private."""
    path = tmp_path_factory.mktemp("public") / "style.safetensors"
    modules = dict(list(SD1_KOHYA.items())[:2])
    metadata = {"modelspec.title": "A style", "modelspec.trigger_phrase": "mystyle, oil", "note": "kept"}
    return save(kohya_tensors(modules), path, metadata)


@pytest.fixture(scope="module")
def telling(tmp_path_factory):
    """An adapter whose metadata name a folder of a person."""
    path = tmp_path_factory.mktemp("telling") / "style.safetensors"
    modules = dict(list(SD1_KOHYA.items())[:2])
    return save(kohya_tensors(modules), path, {"ss_dataset_dirs": json.dumps({SECRET: 1}), "note": "kept"})


def card_of(hub, name):
    return ModelCard(hub.files(name)["README.md"].decode())


def test_a_pushed_file_is_there_with_a_card_that_the_hub_reads(hub, public, tmp_path):
    picture = tmp_path / "cat.png"
    picture.write_bytes(PICTURE)
    done = lt.push(public, "owner/new", base_model="owner/base", images=[(picture, "a cat, mystyle")], private=True)
    assert hub.files("owner/new")["style.safetensors"] == public.read_bytes()
    assert hub.files("owner/new")["images/cat.png"] == PICTURE
    assert "owner/new" in hub.private
    card = card_of(hub, "owner/new")
    told = card.data.to_dict()
    assert told == {
        "base_model": "owner/base",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "instance_prompt": "mystyle",
        "tags": ["lora", "diffusers", "template:sd-lora", "loratools"],
        "widget": [{"text": "a cat, mystyle", "output": {"url": "images/cat.png"}}],
    }
    hashes = lt.hash(public)
    assert hashes.files[0].checksums.sha256 in card.text
    assert hashes.fingerprint in card.text
    assert "<Gallery />" in card.text
    assert done.sent.commit in done.sent.url
    assert done.sent.pull_request is None


def test_a_card_that_stands_keeps_its_keys_and_words_and_ours_are_put_in_place(hub, public):
    standing = (
        "---\nlicense: other\nlicense_name: mine\nbase_model: owner/theirs\ntags:\n- anime\nextra: [1, 2]\n---\n"
        "# By hand\n\nKeep me.\n"
    )
    hub.put("owner/old", {"README.md": standing.encode(), "other.txt": b"stays"})
    for _ in range(2):
        lt.push(public, "owner/old", base_model="owner/base")
        card = card_of(hub, "owner/old")
        told = card.data.to_dict()
        assert (told["license"], told["license_name"], told["extra"]) == ("other", "mine", [1, 2])
        assert told["base_model"] == "owner/theirs"
        assert told["tags"] == ["anime", "lora", "diffusers", "template:sd-lora", "loratools"]
        assert card.text.count("Keep me.") == card.text.count("## Hashes") == 1
    assert hub.files("owner/old")["other.txt"] == b"stays"


def test_a_recipe_that_the_file_records_stands_on_its_card(hub, public, tmp_path):
    made = tmp_path / "made.safetensors"
    lt.convert(public, to="diffusers").save(made)
    done = lt.push(made, "owner/new", dry_run=True)
    assert '"operation": "convert"' in done.card
    assert "## Use" not in done.card
    assert done.sent is None
    assert "owner/new" not in hub.repositories


def test_a_card_loads_by_diffusers_only_what_its_loader_is_right_about(hub, public, sdxl):
    for path, right in ((public, True), (sdxl, False)):
        answer = lt.inspect(path).to_dict()["loaders"]["diffusers"]
        assert (answer["loaded"] == answer["of"]) == right
        card = lt.push(path, "owner/new", base_model="owner/base", dry_run=True).card
        assert ("load_lora_weights" in card, "lt.apply" in card) == (right, not right)


def test_a_folder_is_sent_whole_less_what_is_hidden_and_its_own_card_is_built_upon(hub, peft_folder, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((peft_folder / name).read_bytes())
    (folder / "README.md").write_text("---\nlanguage: en\n---\n# Mine\n")
    (folder / ".secret").write_text("no")
    (folder / "link").symlink_to("/etc/hostname")
    lt.push(folder, "owner/peft")
    assert set(hub.files("owner/peft")) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    card = card_of(hub, "owner/peft")
    assert card.data.to_dict()["language"] == "en"
    assert card.text.lstrip().startswith("# Mine")
    assert lt.compare("hf://owner/peft", peft_folder).worst == 0


def test_private_metadata_are_not_sent_without_leave(hub, telling):
    with pytest.raises(UsageError, match="ss_dataset_dirs") as refused:
        lt.push(telling, "owner/new")
    assert "--strip-private" in refused.value.hint
    assert hub.requests == []
    lt.push(telling, "owner/kept", yes=True)
    assert SECRET.encode() in hub.files("owner/kept")["style.safetensors"]
    before = telling.read_bytes()
    lt.push(telling, "owner/new", strip_private=True)
    sent = hub.files("owner/new")["style.safetensors"]
    assert b"alice" not in sent
    assert b"kept" in sent
    assert telling.read_bytes() == before
    assert lt.compare("hf://owner/new", telling).worst == 0
    assert b"alice" not in hub.files("owner/new")["README.md"]


class Terminal(io.StringIO):
    """What somebody types, and sees."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("answer", "ending"),
    [("strip", (0, False)), ("send", (0, True)), ("stop", (2, None)), ("", (2, None)), ("what\nstop", (2, None))],
)
def test_on_a_terminal_one_is_asked_about_private_metadata(hub, telling, monkeypatch, answer, ending):
    (code, sent), screen = ending, Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer + "\n"))
    with (
        contextlib.redirect_stderr(screen),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as end,
    ):
        main(["push", str(telling), "owner/new"])
    assert end.value.code == code
    assert "ss_dataset_dirs" in screen.getvalue().partition("strip takes them out")[0]
    if sent is None:
        assert hub.requests == []
    else:
        assert (SECRET.encode() in hub.files("owner/new")["style.safetensors"]) is sent


def test_a_pipeline_is_told_from_an_adapter(hub, pipeline):
    with pytest.raises(WrongRole, match="a pipeline") as refused:
        lt.push(pipeline, "owner/new")
    assert "hf upload owner/new" in refused.value.hint
    assert hub.requests == []


@pytest.mark.parametrize("quiet", ["--json", "--quiet"])
def test_a_machine_is_never_asked(hub, telling, monkeypatch, quiet):
    monkeypatch.setattr(sys, "stdin", Terminal("send\n"))
    with (
        contextlib.redirect_stderr(Terminal()),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as end,
    ):
        main(["push", str(telling), "owner/new", quiet])
    assert (end.value.code, hub.requests) == (2, [])


def test_a_path_in_a_configuration_is_private_too(hub, peft_folder, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes((peft_folder / "adapter_model.safetensors").read_bytes())
    config = json.loads((peft_folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": f"{SECRET}/base"}))
    with pytest.raises(UsageError, match="base_model_name_or_path"):
        lt.push(folder, "owner/new")
    lt.push(folder, "owner/new", strip_private=True)
    sent = json.loads(hub.files("owner/new")["adapter_config.json"])
    assert sent == {**config, "base_model_name_or_path": "base"}


@pytest.mark.parametrize("named", [f"{SECRET}/base", [f"{SECRET}/base"]], ids=["one", "list"])
def test_a_path_in_the_card_that_peft_wrote_is_private_too(named, hub, peft_folder, tmp_path):
    """PEFT's own card names the base model by the path that it was loaded from, also in a list of tags."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_bytes((peft_folder / name).read_bytes())
    front = {"base_model": named, "library_name": "peft", "tags": [f"base_model:adapter:{SECRET}/base", "lora"]}
    (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n# Mine\n")
    with pytest.raises(UsageError, match=r"README\.md: base_model, tags"):
        lt.push(folder, "owner/new")
    lt.push(folder, "owner/new", strip_private=True)
    card = hub.files("owner/new")["README.md"].decode()
    assert "alice" not in card
    assert "# Mine" in card
    assert "lora" in card_of(hub, "owner/new").data.tags
    assert "alice" in (folder / "README.md").read_text()


def test_a_pull_request_makes_no_repository_and_leaves_main_alone(hub, public):
    with pytest.raises(Unavailable):
        lt.push(public, "owner/nowhere", create_pr=True)
    hub.put("other/theirs", {"README.md": b"# Theirs\n"})
    done = lt.push(public, "other/theirs", create_pr=True)
    assert done.sent.pull_request.endswith("/discussions/1")
    assert set(hub.files("other/theirs")) == {"README.md"}
    assert set(hub.pull_requests[0][1]) == {"README.md", "style.safetensors"}


@pytest.mark.parametrize(
    ("route", "fault"),
    [("create", "forbidden"), ("preupload", "bad-token"), ("batch", "broken"), ("commit", "forbidden")],
)
def test_a_refusal_on_the_way_ends_with_exit_code_6_and_never_shows_the_token(hub, public, inside, route, fault):
    hub.faults[route] = FAULTS[fault]
    done = inside("push", public, "owner/new", "--json", "--debug")
    assert done.returncode == 6, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert ("--create-pr" in done.stdout) == (fault == "forbidden")


def test_nothing_is_sent_offline(hub, public, offline):
    with pytest.raises(Unavailable) as refused:
        lt.push(public, "owner/new")
    assert refused.value.evidence["reason"] == "offline"
    assert hub.requests == []


def test_what_is_no_adapter_and_what_is_no_repository_is_refused(hub, public, tmp_path):
    import torch

    with pytest.raises(WrongRole):
        lt.push(save({"x": torch.zeros(2)}, tmp_path / "x.safetensors"), "owner/new")
    for name in ("name", "hf://owner/name/file", "../x"):
        with pytest.raises(UsageError):
            lt.push(public, name)
    assert hub.requests == []


def test_the_command_says_what_would_be_sent_and_warns(hub, telling, inside):
    done = inside("push", telling, "owner/new", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "nothing was sent" in done.stdout
    assert "base_model_relation" not in done.stdout
    assert "ss_dataset_dirs" in done.stderr
    done = inside("push", telling, "owner/new", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"{hub.address}/owner/new/commit/" in done.stdout
    assert "are sent" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_the_readmes_block_about_the_hub_runs_as_it_stands(hub, telling, tmp_path, monkeypatch):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = next(
        text for text in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if "lt.push" in text
    )
    hub.put("owner/style", {"style.safetensors": telling.read_bytes()})
    (tmp_path / "style.safetensors").write_bytes(telling.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["plan"].private == {"style.safetensors": ("ss_dataset_dirs",)}
    assert b"alice" not in hub.files("owner/new")["style.safetensors"]
