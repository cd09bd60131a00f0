"""The hash of a large input is computed once, and once more as soon as the file could be another."""

import hashlib
import os
import time

import pytest

from loratools.operations.outputs import kept_hashes
from loratools.operations.outputs.provenance import InputHashes
from loratools.tensors.source import LocalFile


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file that counts as large, and as old."""
    monkeypatch.setattr(kept_hashes, "LEAST", 0)
    monkeypatch.setattr(kept_hashes, "SETTLED", 0)
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"first")
    return path


def recorded(path):
    with LocalFile(path) as opened:
        hashes = InputHashes([opened])
        try:
            return hashes.inputs()[0]["sha256"]
        finally:
            hashes.close()


def test_what_stays_the_same_is_read_once(file, monkeypatch):
    assert recorded(file) == hashlib.sha256(b"first").hexdigest()
    monkeypatch.setattr(LocalFile, "read_into", None)  # which would be called
    assert recorded(file) == hashlib.sha256(b"first").hexdigest()


def test_another_content_of_the_same_size_and_time_is_hashed_again(file):
    before = file.stat()
    recorded(file)
    time.sleep(0.02)  # a tick of the clock that files are stamped by
    file.write_bytes(b"other")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert recorded(file) == hashlib.sha256(b"other").hexdigest()


def test_a_file_changed_a_moment_ago_is_not_kept(file, monkeypatch):
    monkeypatch.setattr(kept_hashes, "SETTLED", 2_000_000_000)
    recorded(file)
    with LocalFile(file) as opened:
        assert kept_hashes.seen(opened) is None


def test_no_more_than_a_few_are_kept(file, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_hashes, "_kept", {})
    monkeypatch.setattr(kept_hashes, "_MOST", 2)
    for number in range(4):
        path = tmp_path / str(number)
        path.write_text(str(number))
        recorded(path)
    assert len(kept_hashes._kept) == 2
