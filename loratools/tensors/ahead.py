"""Computed bytes made by worker threads a little before they are asked for, so that computing and writing overlap."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from loratools.tensors import reserve
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.segments import Computed, Segment

AHEAD = 48 << 20
"""How many bytes may be made that nobody has asked for yet."""


class Ahead:
    """Works through the computed segments of tensors in the order in which they will be written.

    Leaving the block drops what is not made yet, and waits for what is being made, unless it is left by an interrupt.
    What is asked for twice, or out of turn, is made on the spot.
    """

    def __init__(self, threads: int = 1, most: int = AHEAD) -> None:
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="loratools-ahead")
        self._most = most
        self._queue: list[Computed] = []
        self._next = 0
        self._waiting = 0
        self._made: dict[int, Future[bytes]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        self._pool.shutdown(wait=not interrupted, cancel_futures=True)

    def follow(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """The same tensors, whose computed segments are now made ahead; to be called in the order of writing."""
        return {
            key: LazyTensor(tensor.dtype, tensor.shape, tuple(map(self._enqueue, tensor.segments)))
            for key, tensor in tensors.items()
        }

    def _enqueue(self, segment: Segment) -> Segment:
        if not isinstance(segment, Computed):
            return segment
        at = len(self._queue)
        self._queue.append(segment)
        return Computed(segment.length, lambda: self._take(at))

    def _take(self, at: int) -> bytes:
        with self._lock:
            self._next = max(self._next, at) if at not in self._made else self._next
            self._fill()
            future = self._made.pop(at, None)
        if future is None:
            return self._queue[at].produce()
        data = future.result()
        with self._lock:
            self._waiting -= self._queue[at].length
            self._fill()
        return data

    def _fill(self) -> None:
        """Hand out work until enough is under way: always one segment, more as long as they are small."""
        while self._next < len(self._queue):
            segment = self._queue[self._next]
            if self._waiting and self._waiting + segment.length > self._most:
                return
            self._made[self._next] = self._pool.submit(_produced, segment)
            self._waiting += segment.length
            self._next += 1


def _produced(segment: Computed) -> bytes:
    """The bytes of a segment; of a want of memory its thread can tell only if some is left."""
    try:
        return segment.produce()
    except (MemoryError, RuntimeError):  # torch's, too
        reserve.let_go()
        raise
