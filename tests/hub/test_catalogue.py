"""The adapters of a repository or an owner, as the rows of a batch: pinned, and asked for by pages."""

import json

import pytest

from loratools.batch.manifest import rows
from loratools.errors import Unavailable
from tests.hub.server import FAULTS


@pytest.fixture
def shelf(hub, sd1, sdxl):
    """Three repositories of one owner: two files, a PEFT folder, a pipeline; gives their commits."""
    return [
        hub.put("owner/two", {"a.safetensors": sd1.read_bytes(), "b.safetensors": sdxl.read_bytes()}),
        hub.put("owner/peft", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}),
        hub.put("owner/pipeline", {"model_index.json": b"{}", "x.safetensors": b""}),
    ]


def listed(manifest):
    return [row["ref"] for row in rows(manifest, "ref")]


def test_an_owner_means_every_adapter_at_its_commit_by_pages_of_the_listing(hub, shelf):
    two, peft, _ = shelf
    assert listed("hf://owner") == [
        f"hf://owner/two@{two}/a.safetensors",
        f"hf://owner/two@{two}/b.safetensors",
        f"hf://owner/peft@{peft}",
    ]
    assert [item.route for item in hub.requests] == ["models"] * 3


def test_a_repository_means_its_adapters(hub, shelf):
    assert listed("hf://owner/two") == [f"hf://owner/two@{shelf[0]}/{name}.safetensors" for name in "ab"]
    assert listed("hf://owner/two/a.safetensors") == ["hf://owner/two/a.safetensors"]
    for nothing in ("hf://owner/pipeline", "hf://nobody", "hf://owner/missing"):
        with pytest.raises(Unavailable):
            listed(nothing)


def test_a_listing_that_fails_or_may_not_be_asked_for_is_no_short_list(hub, shelf, monkeypatch):
    hub.faults["models"] = FAULTS["limited"]
    with pytest.raises(Unavailable) as refused:
        listed("hf://owner")
    assert refused.value.evidence["retry_after"] == 55
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="not asked"):
        listed("hf://owner")


def test_a_batch_inspects_a_repository_by_its_headers(hub, shelf, run, tmp_path):
    env = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    results, state = tmp_path / "rows.jsonl", tmp_path / "state.sqlite"
    done = run("batch", "inspect", "hf://owner/two", "--results", results, "--state", state, "--json", env=env)
    assert done.returncode == 0, done.stderr + done.stdout
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(found) == 2
    assert {item.range for item in hub.requests if item.route == "store"} == {"bytes=0-131071"}
