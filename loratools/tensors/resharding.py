"""A checkpoint cut into files of a largest size, with the index that says which file holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping

from loratools.tensors.lazy import LazyTensor

Tensors = Mapping[str, LazyTensor]


def reshard(stem: str, tensors: Tensors, most: int) -> dict[str, Tensors]:
    """Files by name, in the order of the tensors, none with more than `most` bytes of data unless one tensor has.

    One file keeps the plain name `stem.safetensors`.
    """
    files: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if files[-1] and size + tensor.nbytes > most:
            files.append({})
            size = 0
        files[-1][key] = tensor
        size += tensor.nbytes
    if len(files) == 1:
        return {f"{stem}.safetensors": files[0]}
    total = len(files)
    return {f"{stem}-{number:05}-of-{total:05}.safetensors": held for number, held in enumerate(files, 1)}


def index_of(files: Mapping[str, Tensors]) -> bytes:
    """The index of these files, as transformers and diffusers read it."""
    total = sum(tensor.nbytes for held in files.values() for tensor in held.values())
    places = {key: name for name, held in files.items() for key in held}
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    return (json.dumps(document, indent=2) + "\n").encode()
