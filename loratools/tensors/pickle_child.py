"""What a process does that unpickles: told two open descriptors, it can open nothing more, and writes plain tensors.

It reads a torch archive from one descriptor, writes a safetensors file into the other, and answers with a JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any

DEPTH_LIMIT = 8
_FORBIDDEN_EVENTS = ("ctypes.", "os.", "pty.", "shutil.", "socket.", "subprocess.", "urllib.", "webbrowser.")


class Refused(Exception):
    """What the file holds is not taken; the message says why."""


def answer(source: int, target: int, size: int) -> str:
    """One line of JSON: what became of the pickle of `size` bytes in the first descriptor."""
    try:
        done = unpickle(source, target, size)
    except Refused as error:
        done = {"refused": str(error)}
    except MemoryError:
        done = {"memory": "not enough memory within the limit"}
    return json.dumps(done)


def warm() -> None:
    """Imports everything that loading imports, because nothing can be opened once a process is confined."""
    import io

    import torch

    from loratools.tensors.header import canonical_header
    from loratools.tensors.lazy import tensor_bytes

    torch.set_num_threads(1)
    held = io.BytesIO()
    torch.save({"warm": torch.zeros(1)}, held)
    held.seek(0)
    loaded = torch.load(held, weights_only=True, map_location="cpu")["warm"]
    canonical_header({"warm": (dtype_name(loaded, "warm"), tuple(loaded.shape))}, {})
    tensor_bytes(loaded, "F32")


def unpickle(source: int, target: int, size: int) -> dict[str, Any]:
    """What was left out, once this process, which is warm, has confined itself: {"skipped": […]}."""
    import torch

    from loratools.tensors.header import canonical_header, canonical_order
    from loratools.tensors.lazy import tensor_bytes

    # The position is shared with the parent, which has read in the file.
    os.lseek(source, 0, os.SEEK_SET)
    with os.fdopen(source, "rb") as file:
        confine(size)
        try:
            document = torch.load(file, weights_only=True, map_location="cpu")
        except MemoryError:
            raise
        except Exception as error:
            raise Refused(f"torch refuses it: {reason_of(error)}") from error
        found, skipped = collect(document)
        total = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
        if total > 4 * size + (1 << 24):
            raise Refused(f"its tensors would take {total} bytes, the file has {size}")
        shapes = {key: (dtype_name(tensor, key), tuple(tensor.shape)) for key, tensor in found.items()}
        write_all(target, canonical_header(shapes, {}))
        for key in canonical_order(shapes):
            write_all(target, tensor_bytes(found[key], shapes[key][0]))
    return {"skipped": skipped}


def reason_of(error: Exception) -> str:
    """The one line of torch's page of advice that says what is wrong."""
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), type(error).__name__)


def confine(size: int) -> None:
    """Takes away from this process what loading tensors does not need: new descriptors, processes, memory, time."""
    with open("/proc/self/statm") as counters:  # noqa: PTH123 - a pseudo file
        used = int(counters.read().split()[0]) * resource.getpagesize()
    for limit, value in (
        (resource.RLIMIT_AS, used + 4 * size + (1 << 30)),
        (resource.RLIMIT_CPU, 60 + size // 10_000_000),
        (resource.RLIMIT_FSIZE, 5 * size + (1 << 26)),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (lowered, lowered))

    def forbid(event: str, _: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN_EVENTS):
            raise Refused(f"the file tried {event}")

    sys.addaudithook(forbid)


def collect(document: Any) -> tuple[dict[str, Any], list[str]]:
    """The tensors by dotted name, with one level of `state_dict` taken off, and the names and types of other leaves."""
    if isinstance(document, dict) and isinstance(document.get("state_dict"), dict):
        inner = document["state_dict"]
        others = {key: value for key, value in document.items() if key != "state_dict"}
    else:
        inner, others = document, {}
    found: dict[str, Any] = {}
    skipped: list[str] = []
    for place in (inner, others):
        for key, value in leaves(place, ()):
            if not is_tensor(value):
                skipped.append(f"{key}: {type(value).__name__}")
                continue
            if key in found:
                raise Refused(f"two tensors would be called {key!r}")
            check_tensor(value, key)
            found[key] = value
    return found, skipped


def leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Everything in nested dictionaries and sequences that is neither, by its dotted name."""
    if len(path) > DEPTH_LIMIT:
        raise Refused(f"it is nested deeper than {DEPTH_LIMIT}")
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, str(key)))
    elif isinstance(value, list | tuple) and any(is_tensor(item) or isinstance(item, dict | list) for item in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, str(index)))
    else:
        yield ".".join(path), value


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor."""
    import torch

    return isinstance(value, torch.Tensor)


def check_tensor(tensor: Any, key: str) -> None:
    """Raises Refused for a tensor that is not dense, or larger than the bytes it stands on."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu":
        raise Refused(f"{key!r} is no plain dense tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise Refused(f"{key!r} claims {tensor.numel()} elements over {tensor.untyped_storage().nbytes()} bytes")


def dtype_name(tensor: Any, key: str) -> str:
    """The safetensors name of its dtype."""
    from loratools.tensors.dtypes import BY_TORCH

    name = str(tensor.dtype).removeprefix("torch.")
    if name not in BY_TORCH:
        raise Refused(f"{key!r} has the dtype {name}, which safetensors cannot hold")
    return BY_TORCH[name]


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
