"""inspect from afar: one range request or two, no value of any tensor, the commit pinned; every fault has its words."""

import json
from math import prod

import pytest

import loratools as lt
from benchmarks.sdxl_file import tensors as sdxl_shapes
from loratools.errors import MalformedFile, Unavailable, UsageError
from loratools.hub.ranges import FIRST
from loratools.tensors.header import canonical_header
from tests.files import save
from tests.hub.conftest import TOKEN
from tests.hub.server import FAULTS, Fault

FILE = "hf://owner/style/style.safetensors"
SLACK = 256 << 10


@pytest.fixture
def style(hub, sd1):
    """A repository with one file in it; gives its commit."""
    return hub.put("owner/style", {"style.safetensors": sd1.read_bytes(), "README.md": b"# A style\n"})


@pytest.fixture(scope="module")
def whole_sdxl():
    """The header of an SDXL file with all 986 modules, and the file: all values zero."""
    shapes = {key: ("F16", shape) for key, shape in sdxl_shapes(1).items()}
    header = canonical_header(shapes, {"ss_network_module": "networks.lora"})
    return header, header + bytes(sum(2 * prod(shape) for _, shape in shapes.values()))


def ranges(hub):
    """What was asked of the store."""
    return [item.range for item in hub.requests if item.route == "store"]


def test_a_small_file_takes_one_request_and_says_which_commit_it_is_of(hub, style, sd1):
    document, here = lt.inspect(FILE).to_dict(), lt.inspect(sd1).to_dict()
    assert [item.route for item in hub.requests] == ["resolve", "store"]
    assert ranges(hub) == [f"bytes=0-{FIRST - 1}"]
    assert document["path"] == f"hf://owner/style@{style}/style.safetensors"
    assert document["hub"]["commit"] == style
    for key in ("architecture", "adapters", "ranks", "kinds", "components", "metadata", "dtypes", "parameters"):
        assert document[key] == here[key], key


def test_a_header_of_986_modules_takes_two_range_requests_and_at_most_256_kib_more(hub, whole_sdxl):
    header, data = whole_sdxl
    hub.put("owner/big", {"big.safetensors": data})
    document = lt.inspect("hf://owner/big/big.safetensors", modules=True).to_dict()
    assert document["adapters"] == 986
    assert document["architecture"] == "sdxl"
    assert len(header) > 300_000
    assert ranges(hub) == [f"bytes=0-{FIRST - 1}", f"bytes={FIRST}-{len(header) - 1}"]
    assert [item.route for item in hub.requests] == ["resolve", "store", "store"]
    assert hub.bytes_sent() <= len(header) + SLACK
    assert document["hub"]["requests"] == 2
    assert document["hub"]["bytes"] == hub.bytes_sent()
    assert document["alpha"] == {
        "source": "tensor (not read)", "values": {}, "scales": {}, "rank_stabilized": False,
    }  # fmt: skip
    assert {row["scale"] for row in document["modules"]} == {None}


def test_the_token_goes_to_the_hub_and_never_to_its_store(hub, whole_sdxl):
    hub.put("owner/big", {"big.safetensors": whole_sdxl[1]})
    lt.inspect("hf://owner/big/big.safetensors")
    told = {(item.route, item.authorization) for item in hub.requests}
    assert told == {("resolve", f"Bearer {TOKEN}"), ("store", None)}


def test_alpha_is_what_the_trainer_noted_for_layers_of_that_rank(hub, style):
    alpha = lt.inspect(FILE).to_dict()["alpha"]
    assert (alpha["source"], alpha["values"]) == ("metadata", {"2.0": 6})


def test_an_ia3_file_is_placed_by_its_names_where_its_flags_are_out_of_reach(hub, tmp_path):
    import torch

    stems = [f"lora_te1_text_model_encoder_layers_{at}_self_attn_{name}_proj" for at in (0, 9) for name in "kv"]
    tensors = {f"{stem}.weight": torch.zeros(768) for stem in stems}
    tensors |= {f"{stem}.on_input": torch.tensor(1.0) for stem in stems}
    hub.put("owner/ia3", {"ia3.safetensors": save(tensors, tmp_path / "ia3.safetensors").read_bytes()})
    document = lt.inspect("hf://owner/ia3").to_dict()
    assert (document["adapters"], document["kinds"]) == (4, ["ia3"])
    assert document["hub"]["requests"] == 1


def test_weights_fetches_the_file_and_reads_the_alphas(hub, style):
    document = lt.inspect(FILE, weights=True).to_dict()
    assert document["hub"] == {"reference": f"hf://owner/style@{style}/style.safetensors", "read": "file"}
    assert document["alpha"]["source"] == "tensor"
    assert document["weights"]["norm"] > 0


def test_a_peft_repository_is_read_as_its_folder_is(hub, peft_folder):
    names = ("adapter_config.json", "adapter_model.safetensors")
    commit = hub.put("owner/peft", {name: (peft_folder / name).read_bytes() for name in names})
    document, here = lt.inspect("hf://owner/peft").to_dict(), lt.inspect(peft_folder).to_dict()
    assert document["path"] == f"hf://owner/peft@{commit}"
    for key in ("format", "alpha", "adapters", "ranks"):
        assert document[key] == here[key], key
    assert document["hub"]["requests"] == 2


def test_a_server_without_ranges_is_left_when_the_header_is_there(hub, whole_sdxl):
    header, data = whole_sdxl
    hub.ranges = False
    hub.put("owner/big", {"big.safetensors": data})
    document = lt.inspect("hf://owner/big/big.safetensors").to_dict()
    assert document["adapters"] == 986
    assert document["hub"]["bytes"] < 2 * (len(header) + SLACK) < len(data)


def test_a_branch_that_moves_between_the_requests_is_still_read_at_one_commit(hub, whole_sdxl, sdxl):
    data = whole_sdxl[1]
    first = hub.put("owner/big", {"big.safetensors": data})
    hub.after["store"] = lambda: hub.put("owner/big", {"big.safetensors": sdxl.read_bytes()})
    document = lt.inspect("hf://owner/big/big.safetensors").to_dict()
    assert (document["hub"]["commit"], document["adapters"]) == (first, 986)


def test_bytes_that_change_between_the_requests_are_refused(hub, whole_sdxl):
    data = whole_sdxl[1]
    hub.put("owner/big", {"big.safetensors": data})

    def change():
        for oid in [oid for oid, blob in hub.blobs.items() if blob == data]:
            hub.blobs[oid] = data + bytes(8)

    hub.after["store"] = change
    with pytest.raises(Unavailable, match="changed on the Hub") as refused:
        lt.inspect("hf://owner/big/big.safetensors")
    assert refused.value.evidence["reason"] == "changed"


REASONS = {
    "private": ("repository-not-found", "no access"),
    "gated": ("gated", "gated"),
    "no-repository": ("repository-not-found", "no repository of that name"),
    "no-revision": ("revision-not-found", "no such revision"),
    "bad-token": ("unauthorised", "does not accept the token"),
    "forbidden": ("forbidden", "refuses access"),
    "limited": ("rate-limited", "rate limit"),
    "retry-after": ("rate-limited", "rate limit"),
    "broken": ("server-error", "trouble"),
    "disabled": ("disabled", "disabled"),
    "short": ("short-answer", "cut short"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_message_its_hint_and_exit_code_6(hub, style, inside, fault):
    hub.faults["store" if fault == "short" else "resolve"] = FAULTS[fault]
    for options in ([], ["--weights"]):
        done = inside("inspect", FILE, "--json", *options)
        assert done.returncode == 6, done.stdout
        error = json.loads(done.stdout)
        reason, words = REASONS[fault]
        assert (error["code"], error["reason"]) == ("unavailable", reason)
        assert words in error["message"]
        assert error["hint"]
        assert TOKEN not in done.stdout + done.stderr
    if reason == "rate-limited":
        assert error["retry_after"] == {"limited": 55, "retry-after": 7}[fault]


def test_what_is_not_there_is_named_for_what_it_is(hub, style):
    for reference, reason in (
        ("hf://owner/style/other.safetensors", "file-not-found"),
        ("hf://owner/style@v9/style.safetensors", "revision-not-found"),
        ("hf://owner/nothing/style.safetensors", "repository-not-found"),
        ("hf://owner/nothing", "repository-not-found"),
    ):
        with pytest.raises(Unavailable) as refused:
            lt.inspect(reference)
        assert refused.value.evidence["reason"] == reason, reference


def test_offline_asks_nothing_and_the_cache_answers(hub, style, offline, monkeypatch):
    with pytest.raises(Unavailable, match="not in the Hub's cache") as refused:
        lt.inspect(FILE)
    assert refused.value.evidence["reason"] == "offline"
    assert "HF_HUB_OFFLINE" in refused.value.hint
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    lt.pull(FILE)
    asked = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    document = lt.inspect(FILE).to_dict()
    assert document["hub"]["reference"] == f"hf://owner/style@{style}/style.safetensors"
    assert lt.inspect("hf://owner/style").to_dict()["adapters"] == document["adapters"] == 6
    assert len(hub.requests) == asked


def test_a_named_commit_in_the_cache_is_not_asked_for_again(hub, style):
    lt.pull(FILE)
    asked = len(hub.requests)
    assert lt.inspect(f"hf://owner/style@{style}/style.safetensors").to_dict()["adapters"] == 6
    assert len(hub.requests) == asked


def test_a_hub_that_is_silent_is_left_after_the_clients_own_time(hub, style, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.faults["resolve"] = Fault(wait=30)
    with pytest.raises(Unavailable, match="cannot be reached") as refused:
        lt.inspect(FILE)
    hub.patience.set()
    assert refused.value.evidence["reason"] == "unreachable"


def test_a_file_whose_length_is_not_stated_is_read_if_it_is_small(hub, style, whole_sdxl):
    hub.ranges = hub.lengths = False
    hub.put("owner/big", {"big.safetensors": whole_sdxl[1]})
    with pytest.raises(Unavailable, match="how long"):
        lt.inspect("hf://owner/big/big.safetensors")
    config = {"adapter_config.json": b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8}'}
    hub.put("owner/peft", {**config, "adapter_model.safetensors": b""})
    with pytest.raises(MalformedFile, match="empty"):  # the configuration was read
        lt.inspect("hf://owner/peft")


def test_a_hub_out_of_reach_is_told_with_the_reason(hub, style, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}{revision}"
    )
    with pytest.raises(Unavailable, match="cannot be reached") as refused:
        lt.inspect(FILE)
    assert refused.value.evidence["reason"] == "unreachable"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "empty"), (b"<!DOCTYPE html><p>", "web page"), (b"\x10\0\0\0\0\0\0\0{not json at all", "header")],
)
def test_a_remote_header_meets_the_same_strict_parser(hub, data, words):
    hub.put("owner/bad", {"bad.safetensors": data})
    with pytest.raises(MalformedFile, match=words):
        lt.inspect("hf://owner/bad/bad.safetensors")


def test_a_repository_of_several_files_is_not_guessed_at(hub, sd1):
    hub.put("owner/many", {"a.safetensors": sd1.read_bytes(), "b.safetensors": b""})
    with pytest.raises(Unavailable, match="2 safetensors files") as refused:
        lt.inspect("hf://owner/many")
    assert refused.value.hint == "name one: hf://owner/many/a.safetensors"


def test_other_sites_and_data_sets_are_refused_before_anything_is_asked(hub):
    for text in ("https://example.org/owner/style", "hf://datasets/owner/style", "https://huggingface.co/owner"):
        with pytest.raises(UsageError):
            lt.inspect(text)
    assert hub.requests == []


def test_a_pasted_address_and_a_pull_requests_revision_are_references(hub, style):
    page = f"{hub.address}/owner/style/blob/main/style.safetensors"
    assert lt.inspect(page).to_dict()["hub"]["commit"] == style
    web = "https://huggingface.co/owner/style/resolve/main/style.safetensors?download=true"
    assert lt.inspect(web).to_dict()["hub"]["asked"] == "hf://owner/style@main/style.safetensors"


def test_a_page_shows_the_commit_and_what_was_not_read(hub, whole_sdxl, inside):
    commit = hub.put("owner/big", {"big.safetensors": whole_sdxl[1]})
    done = inside("inspect", "hf://owner/big")
    assert done.returncode == 0, done.stderr
    assert commit in done.stdout
    assert "alpha tensors were not read" in done.stdout
    assert "tensor (not read)" in done.stdout


def test_a_process_of_its_own_finds_the_hub_by_hf_endpoint_and_is_quiet_in_a_pipe(hub, style, run, sd1, tmp_path):
    env = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = run("pull", FILE, "-o", tmp_path, "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reference"] == f"hf://owner/style@{style}/style.safetensors"
    assert (tmp_path / "style.safetensors").read_bytes() == sd1.read_bytes()
    assert done.stderr == ""
    assert {item.route for item in hub.requests} == {"resolve", "store"}


def test_a_pinned_folder_is_looked_at_without_a_list_of_its_files(hub, peft_folder, sd1):
    files = {path.name: path.read_bytes() for path in peft_folder.iterdir()}
    commit = hub.put("owner/peft", files)
    found = lt.inspect(f"hf://owner/peft@{commit}").to_dict()
    assert found["format"] == "peft"
    assert found["hub"]["commit"] == commit
    assert {item.route for item in hub.requests} == {"resolve", "store"}
    # What has other names than PEFT's is found in the list.
    single = hub.put("owner/style", {"style.safetensors": sd1.read_bytes()})
    assert lt.inspect(f"hf://owner/style@{single}").to_dict()["format"] == "kohya"
    nested = hub.put("owner/set", {f"unet/{name}": data for name, data in files.items()})
    assert lt.inspect(f"hf://owner/set@{nested}").to_dict()["components"].keys() == {"unet"}
