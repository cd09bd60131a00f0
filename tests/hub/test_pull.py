"""pull, and every verb that takes something of the Hub: fetched into its cache, checked, and then a path."""

import hashlib
import json

import pytest

import loratools as lt
from loratools.errors import OutputExists, OutputRefused, Unavailable, UsageError
from loratools.hub.contents import contents
from loratools.hub.references import HubReference
from loratools.tensors.carried import carry
from tests.hub.conftest import TOKEN
from tests.hub.server import FAULTS

FILE = "hf://owner/style/style.safetensors"
CARD = b"---\nbase_model: owner/base\n---\n# A style\n"


@pytest.fixture
def style(hub, sd1):
    """A repository with one file and a card; gives its commit."""
    return hub.put("owner/style", {"style.safetensors": sd1.read_bytes(), "README.md": CARD, "notes.txt": b"mine"})


def test_a_file_comes_with_its_hash_checked_and_its_commit_named(hub, style, sd1, tmp_path):
    done = lt.pull(FILE, tmp_path / "here")
    assert done.path == tmp_path / "here" / "style.safetensors"
    assert done.path.read_bytes() == sd1.read_bytes()
    assert not done.path.is_symlink()
    assert done.commit == style
    assert [(item.sha256, item.stated) for item in done.files] == [(hashlib.sha256(sd1.read_bytes()).hexdigest(), True)]
    asked = len(hub.requests)
    assert lt.pull(f"hf://owner/style@{style}/style.safetensors", tmp_path / "here").path == done.path
    assert len(hub.requests) == asked


def test_a_repository_means_its_adapter_and_card(hub, style, peft_folder, tmp_path):
    done = lt.pull("owner/style")
    assert [item.name for item in done.files] == ["style.safetensors", "README.md"]
    assert done.base_model == "owner/base"
    names = ("adapter_config.json", "adapter_model.safetensors")
    hub.put("owner/peft", {name: (peft_folder / name).read_bytes() for name in names} | {"optimizer.pt": b"large"})
    folder = lt.pull("hf://owner/peft", tmp_path / "peft").path
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert lt.compare(folder, peft_folder).worst == 0


def test_other_bytes_are_replaced_only_when_asked(hub, style, sd1, tmp_path):
    (tmp_path / "style.safetensors").write_bytes(b"other")
    with pytest.raises(OutputExists):
        lt.pull(FILE, tmp_path)
    assert (tmp_path / "style.safetensors").read_bytes() == b"other"
    lt.pull(FILE, tmp_path, overwrite=True)
    assert (tmp_path / "style.safetensors").read_bytes() == sd1.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*style*")) == ["style.safetensors"]


def test_what_appears_while_a_file_is_copied_stays(hub, style, tmp_path, monkeypatch):
    def slow(path, content):
        (tmp_path / "style.safetensors").write_bytes(b"another's")
        return carry(path, content)

    monkeypatch.setattr("loratools.operations.pull.carry", slow)
    with pytest.raises(OutputExists):
        lt.pull(FILE, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*style*")} == {"style.safetensors": b"another's"}


def test_bytes_whose_hash_is_another_are_refused(hub, style, tmp_path):
    blob = lt.pull(FILE).path.resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    with pytest.raises(Unavailable, match="not those whose SHA-256") as refused:
        lt.pull(FILE, tmp_path / "out")
    assert refused.value.evidence["reason"] == "wrong-hash"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_of_a_download_is_taken_for_success(hub, style, inside, tmp_path, fault):
    hub.faults["store" if fault == "short" else "resolve"] = FAULTS[fault]
    done = inside("pull", FILE, "-o", tmp_path / "out", "--json", "--debug")
    assert done.returncode == 6
    assert json.loads(done.stdout)["code"] == "unavailable"
    assert not (tmp_path / "out").exists()
    assert TOKEN not in done.stdout + done.stderr


def test_what_is_no_reference_to_the_hub_is_refused(hub, tmp_path):
    for text in ("style.safetensors", str(tmp_path)):
        with pytest.raises(UsageError, match="no reference"):
            lt.pull(text)


def test_every_verb_takes_a_reference_and_only_fetches_it(hub, style, sd1, tmp_path):
    assert lt.compare(FILE, sd1).worst == 0
    assert lt.hash(FILE).fingerprint == lt.hash(sd1).fingerprint
    result = lt.convert(FILE, to="diffusers").save(tmp_path / "out.safetensors")
    assert result.proof.identical > 0
    assert lt.open("https://huggingface.co/owner/style/blob/main/style.safetensors").adapters
    assert {item.method for item in hub.requests} == {"GET", "HEAD"}


def test_metadata_of_a_file_on_the_hub_are_its_header_and_an_edit_goes_elsewhere(hub, style, sd1, tmp_path):
    assert lt.read_metadata(FILE).entries == lt.read_metadata(sd1).entries
    assert lt.get_metadata(FILE, "modelspec.title") == "a style"
    assert not (hub.cache).exists()
    lt.set_metadata(FILE, {"note": "mine"}, out=tmp_path / "out.safetensors")
    assert lt.get_metadata(tmp_path / "out.safetensors", "note") == "mine"
    with pytest.raises(OutputRefused):
        lt.set_metadata(FILE, {"note": "mine"}, in_place=True)


def test_the_base_that_a_repositorys_card_names_is_auto(hub, style, tmp_path):
    from loratools.operations.located import base_of

    assert base_of(lt.open(FILE)) == "owner/base"
    with pytest.raises(Unavailable, match="no repository of that name") as refused:
        lt.merge("auto", [FILE], tmp_path / "out.safetensors")
    assert refused.value.path == "hf://owner/base"


def test_a_pipeline_of_the_hub_is_the_base_that_auto_means(hub, pipeline, tmp_path):
    from loratools.pipelines.adapters import make_demo_adapter

    make_demo_adapter(pipeline, tmp_path / "style.safetensors")
    held = {path.relative_to(pipeline).as_posix(): path.read_bytes() for path in pipeline.rglob("*") if path.is_file()}
    hub.put("owner/base", held | {"unet/diffusion_flax_model.msgpack": b"not needed"})
    hub.put("owner/style", {"style.safetensors": (tmp_path / "style.safetensors").read_bytes(), "README.md": CARD})
    out = lt.merge("auto", ["hf://owner/style"], tmp_path / "out", arch="sd1").path
    here = lt.merge(pipeline, [tmp_path / "style.safetensors"], tmp_path / "here", arch="sd1").path
    names = {path.relative_to(here) for path in here.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == names
    for name in names:  # the records in the weights name the folder that the base was read from
        of_tensors = name.suffix == ".safetensors"
        assert not of_tensors or lt.hash(out / name).fingerprint == lt.hash(here / name).fingerprint
        assert of_tensors or (out / name).read_bytes() == (here / name).read_bytes()
    assert not [item for item in hub.requests if "msgpack" in item.path]


WHERE = HubReference("owner/name")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["x.safetensors", "README.md"], ["x.safetensors", "README.md"]),
        (["pytorch_lora_weights.safetensors", "checkpoint.safetensors"], ["pytorch_lora_weights.safetensors"]),
        (["adapter_config.json", "adapter_model.bin"], ["adapter_config.json", "adapter_model.bin"]),
        (
            ["unet/adapter_config.json", "unet/adapter_model.safetensors", "x.safetensors"],
            ["unet/adapter_config.json", "unet/adapter_model.safetensors"],
        ),
        (["model_index.json", "unet/diffusion_pytorch_model.safetensors"], []),
    ],
)
def test_the_adapter_of_a_repository_is_told_by_names(files, found):
    told = contents(files, WHERE)
    assert list(told.files) == found
    assert told.is_pipeline == ("model_index.json" in files)


@pytest.mark.parametrize("files", [[], ["README.md"], ["adapter_config.json"], ["a/x.safetensors"]])
def test_a_repository_without_an_adapter_is_told_so(files):
    with pytest.raises(Unavailable) as refused:
        contents(files, WHERE)
    assert refused.value.evidence["reason"] == "no-adapter"
