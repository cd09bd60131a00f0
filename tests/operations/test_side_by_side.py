"""Work on threads: its order, its failures, and an interrupt that waits for none of it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from loratools.operations.working.side_by_side import side_by_side
from loratools.tensors.ahead import Ahead
from loratools.tensors.lazy import LazyTensor


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_results_come_in_the_order_of_the_items(threads):
    assert side_by_side(lambda item: (time.sleep(0.001 * (10 - item)), item)[1], range(10), threads) == [*range(10)]


def test_after_a_failure_nothing_begins_and_what_runs_has_ended():
    begun, ended = [], []

    def work(item):
        begun.append(item)
        if item == 1:
            raise ValueError(item)
        time.sleep(0.05)
        ended.append(item)

    with pytest.raises(ValueError, match="1"):
        side_by_side(work, range(100), 2)
    assert len(begun) < 10
    assert sorted(ended) == sorted(set(begun) - {1})


@pytest.fixture
def endless():
    """Work that goes on until the test is over, and what interrupts whoever waits for it."""
    over = threading.Event()

    def work(*_):
        os.kill(os.getpid(), signal.SIGINT)  # as from outside: the thread that waits is the one that hears
        over.wait(30)
        return b"done"

    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield work
    over.set()
    signal.signal(signal.SIGINT, former)


def test_an_interrupt_waits_for_nothing_that_runs(endless):
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(endless, range(5), 1)
    assert time.monotonic() - started < 5


def test_an_interrupt_waits_for_no_bytes_that_are_made_ahead(endless):
    def written():
        with Ahead(1) as ahead:
            return ahead.follow({"a": LazyTensor.produced("U8", (4,), endless)})["a"].tobytes()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        written()
    assert time.monotonic() - started < 5
