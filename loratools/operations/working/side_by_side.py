"""The same work on many items, on threads beside the one that waits: so that an interrupt is heard at once.

A signal reaches Python between two of its instructions, and one decomposition of a large layer is a single one that may
last for minutes: the thread that hears must be another than the one that computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def side_by_side(work: Callable[[Item], Made], items: Iterable[Item], threads: int = 1) -> list[Made]:
    """What `work` makes of every item, in order, `threads` of them at once.

    Where one fails, those not yet begun are dropped and those that are under way come to their end. An interrupt waits
    for none: what is under way ends by itself, and nobody takes its result.
    """
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="loratools-work")
    try:
        made = list(pool.map(work, items))
    except Exception:
        pool.shutdown(cancel_futures=True)
        raise
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    return made
