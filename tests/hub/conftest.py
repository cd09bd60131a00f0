"""The Hub on loopback, behind the client's own constants: what HF_ENDPOINT and HF_TOKEN would be at its import."""

import pytest

from tests.hub.server import Hub, serving

TOKEN = "hf_sentinelNeverToBeSeenAnywhere"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub, and an empty cache; the token is a sentinel, and nobody waits before trying again."""
    import huggingface_hub.utils._http  # its clock is a module's
    from huggingface_hub import close_session, constants

    cache = tmp_path / "cache"
    with serving(made := Hub()) as address:
        made.address, made.cache = address, cache
        for name, value in {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_CACHE", str(cache))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        nobody = {"standardEnvVars": [], "harnesses": {}}  # else a list is fetched, once a day, to say who calls
        monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", nobody)
        monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
        yield made
        close_session()


@pytest.fixture
def offline(monkeypatch):
    """HF_HUB_OFFLINE, as the client read it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A tiny sd1 pipeline."""
    from loratools.pipelines.synthetic import make_pipeline

    return make_pipeline("sd1", tmp_path_factory.mktemp("pipelines") / "sd1")
