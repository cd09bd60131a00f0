"""References to the Hub, and what of a repository a pipeline needs, from a cache made on the spot: no network."""

import json
import shutil

import pytest

import loratools as lt
from loratools.errors import Unavailable, UsageError
from loratools.hub.cards import base_named_by
from loratools.hub.needed import needed_files
from loratools.hub.references import HubReference, hub_reference
from loratools.hub.snapshot import cached_pipeline, local_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, offline; call it with (id, folder) to put a repository into it, as blobs and links."""
    home = tmp_path / "hub"
    home.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(home))

    def put(identifier, folder):
        repository = home / f"models--{identifier.replace('/', '--')}"
        for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
            (repository / part).mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        for at, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
            blob = repository / "blobs" / f"{at:040x}"
            shutil.copyfile(path, blob)
            link = repository / "snapshots" / COMMIT / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return repository

    return put


@pytest.fixture(scope="session")
def style(pipeline, tmp_path_factory):
    """A folder with an adapter for it."""
    from loratools.pipelines.adapters import make_demo_adapter

    folder = tmp_path_factory.mktemp("style")
    make_demo_adapter(pipeline, folder / "style.safetensors")
    return folder


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("owner/name", HubReference("owner/name")),
        ("hf://owner/name", HubReference("owner/name")),
        ("hf://owner/name@v1/a/b.safetensors", HubReference("owner/name", "v1", "a/b.safetensors")),
        ("https://huggingface.co/owner/name", HubReference("owner/name")),
        (
            "https://huggingface.co/owner/name/blob/main/x.safetensors",
            HubReference("owner/name", "main", "x.safetensors"),
        ),
        ("https://hf.co/owner/name/tree/v1?show=1", HubReference("owner/name", "v1")),
        ("hf://models/owner/name/x.safetensors", HubReference("owner/name", None, "x.safetensors")),
        ("hf://owner/name@refs/pr/3/x.safetensors", HubReference("owner/name", "refs/pr/3", "x.safetensors")),
        ("hf://owner/name@a%2Fb/x.safetensors", HubReference("owner/name", "a/b", "x.safetensors")),
        (
            "https://huggingface.co/owner/name/resolve/main/my%20style.safetensors?download=true",
            HubReference("owner/name", "main", "my style.safetensors"),
        ),
        ("model.safetensors", None),
        ("./owner/name", None),
        ("/owner/name", None),
        ("a/b/c", None),
        ("../name", None),
    ],
)
def test_references_are_read_as_people_write_them(text, meant):
    assert hub_reference(text) == meant
    assert meant is None or hub_reference(meant.name) == meant


def test_what_exists_here_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner/name").mkdir(parents=True)
    assert hub_reference("owner/name") is None


@pytest.mark.parametrize("text", ["hf://", "hf://owner", "hf://owner/name/../../x", "hf://../x"])
def test_addresses_without_a_repository_are_refused(text):
    with pytest.raises(UsageError):
        hub_reference(text)


INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "image_encoder": [None, None],
    "requires_safety_checker": True,
}
FILES = (
    "README.md", "v1-5-pruned.ckpt", "v1-5.safetensors", "model_index.json", "tokenizer/vocab.json",
    "tokenizer/merges.txt", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_flax_model.msgpack", "other/model.safetensors",
)  # fmt: skip
PLAIN = {"model_index.json", "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json"}


def test_one_form_of_the_weights_is_needed_and_nothing_beside_the_components():
    assert needed_files(INDEX, FILES) == (needed_files(INDEX, FILES)[0], ())
    assert set(needed_files(INDEX, FILES)[0]) == PLAIN | {"unet/diffusion_pytorch_model.safetensors"}
    assert set(needed_files(INDEX, FILES, "fp16")[0]) == PLAIN | {"unet/diffusion_pytorch_model.fp16.safetensors"}


def test_a_lone_variant_is_taken_and_pickles_need_leave():
    only = [name for name in FILES if name != "unet/diffusion_pytorch_model.safetensors"]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in needed_files(INDEX, only)[0]
    pickled = [name for name in only if "fp16" not in name]
    assert needed_files(INDEX, pickled)[1] == ("unet",)
    assert "unet/diffusion_pytorch_model.bin" in needed_files(INDEX, pickled, pickles=True)[0]


def test_shards_and_their_index_are_needed_together():
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}-0000{at}-of-00002.safetensors" for at in (1, 2)]
    files = [*PLAIN, *shards, f"{stem}.safetensors.index.json", f"{stem}.fp16.safetensors"]
    assert set(needed_files(INDEX, files)[0]) == PLAIN | {*shards, f"{stem}.safetensors.index.json"}


def test_a_pipeline_of_the_cache_is_rebuilt_as_hard_links_of_its_blobs_never_links_into_it(
    cache, pipeline, style, tmp_path
):
    repository = cache("owner/tiny", pipeline)
    out = tmp_path / "out"
    done = lt.rebuild("owner/tiny", [style / "style.safetensors"], out, arch="sd1")
    assert done.trial.pixels == (64, 64)
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    blob = (repository / "snapshots" / COMMIT / VAE).resolve()
    assert (out / VAE).stat().st_ino == blob.stat().st_ino
    card = (out / "README.md").read_text()
    assert 'base_model: "owner/tiny"' in card
    assert json.loads((out / "loratools-recipe.json").read_text())["inputs"][0]["name"] == "hf://owner/tiny"


def test_auto_is_the_base_that_card_configuration_or_metadata_name(cache, pipeline, style, tmp_path):
    cache("owner/tiny", pipeline)
    folder = tmp_path / "carded"
    shutil.copytree(style, folder)
    with pytest.raises(UsageError, match="no adapter names"):
        lt.rebuild("auto", [folder / "style.safetensors"], tmp_path / "out", arch="sd1")
    (folder / "README.md").write_text("---\nbase_model:\n- owner/tiny\n---\n# A style\n")
    assert base_named_by(folder) == "owner/tiny"
    lt.rebuild("auto", [folder / "style.safetensors"], tmp_path / "out", arch="sd1", check=False)
    assert (tmp_path / "out" / VAE).exists()
    (folder / "README.md").write_text("---\nbase_model: owner/other\n---\n")
    with pytest.raises(Unavailable) as refused:
        lt.rebuild("auto", [folder / "style.safetensors"], tmp_path / "new", arch="sd1")
    assert refused.value.exit_code == 6
    assert "hf download owner/other" in refused.value.hint


def test_an_incomplete_snapshot_is_no_pipeline(cache, pipeline, tmp_path):
    repository = cache("owner/tiny", pipeline)
    assert cached_pipeline(HubReference("owner/tiny")) is not None
    (repository / "snapshots" / COMMIT / VAE).unlink()
    assert cached_pipeline(HubReference("owner/tiny")) is None
    with pytest.raises(Unavailable, match="whole pipeline") as refused:
        lt.rebuild("owner/tiny", [], tmp_path / "out")
    assert "local files only" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_a_file_of_a_repository_is_taken_from_the_cache_or_told_to_be_missing(cache, style):
    cache("owner/style", style)
    found = local_path(HubReference("owner/style", None, "style.safetensors"))
    assert found.read_bytes() == (style / "style.safetensors").read_bytes()
    with pytest.raises(Unavailable, match="not in the Hub's cache"):
        local_path(HubReference("owner/style", None, "other.safetensors"))
