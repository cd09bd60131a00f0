"""`loratools hash`."""

from __future__ import annotations

from typing import Any

import click

from loratools.cli import options
from loratools.cli.options import Manner, speaks
from loratools.cli.render import Document, Page
from loratools.cli.several import answer, expanded, references
from loratools.cli.text import human_bytes

NAMES = (
    "sha256", "autov1", "autov2", "autov3", "crc32", "blake3", "sshs_model_hash", "sshs_legacy_hash",
    "modelspec.hash_sha256",
)  # fmt: skip
WITHOUT = {"autov1": "none below 2 MiB", "blake3": "needs the package blake3"}


@click.command("hash")
@references("FILE...")
@options.architecture
@options.unsafe_pickle
@speaks
def command(refs: tuple[str, ...], manner: Manner, **how: Any) -> None:
    """The names that a file is known by, and a fingerprint of what it holds.

    FILE is a file or a folder. AutoV1 to AutoV3 are Civitai's and the web UIs' short names; the sshs hashes and
    ModelSpec's are what trainers write into the metadata, here as computed, with a word where the file states another.
    The fingerprint is the same in every format that holds the same factors at the same scales.
    """
    from loratools.operations.hash import hash_files

    answer(expanded(refs), "loratools.hash/1", lambda ref: hash_files(ref, **how).to_dict(), view, manner)


def view(page: Page, document: Document, manner: Manner) -> None:  # noqa: ARG001 (every view takes it)
    """Every file with its hashes, then the fingerprint of them all."""
    for file in document["files"]:
        page.line(f"{file['path']}  {human_bytes(file['size'])}", strong=True)
        stated = {claim["key"]: claim for claim in file["stated"]}
        page.facts([(name, _value(name, file[name], stated.get(name))) for name in NAMES])
    if document["fingerprint"]:
        page.facts([("fingerprint", f"{document['fingerprint']} (of {document['fingerprint_of']})")])
    page.notes("warnings", document["warnings"])


def _value(name: str, value: str | None, claim: dict[str, str] | None) -> str | None:
    if value is None:
        return WITHOUT.get(name)
    if claim is None or claim["status"] == "ok":
        return value
    return f"{value} (the file says {claim['stated']}: {claim['status']})"
