"""Whatever an operation does, its inputs stay as they were."""

import hashlib

import pytest


def fingerprint(folder):
    """Relative name → SHA-256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(autouse=True)
def inputs_stay_as_they_are(adapters):
    """Every test of this area also asserts that it changed no input and left nothing beside one."""
    before = fingerprint(adapters)
    yield
    assert fingerprint(adapters) == before
