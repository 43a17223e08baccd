# SPDX-License-Identifier: GPL-3.0-or-later
"""When Python's garbage collector looks at what."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from federator import collector, daemon
from federator.collector import LEAST_GROWTH, Collector
from tests.helpers import soon


@pytest.fixture
def of_process() -> Iterator[Collector]:
    """The collector. Other tests need what Python does by itself."""
    before = gc.get_threshold()
    yield Collector()
    gc.unfreeze()
    gc.set_threshold(*before)


class Ring:
    """Refers to itself, so only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_came_to_stay_is_not_looked_at_again(of_process: Collector) -> None:
    """Until much more has come."""
    assert gc.get_threshold()[0] == collector.NEW_OBJECTS
    of_process.settle()
    # Other tests may have left many objects; it has to be much beside those, too.
    stays = [[number] for number in range(max(2 * LEAST_GROWTH, gc.get_freeze_count()))]
    of_process.settle()
    assert gc.get_freeze_count() > len(stays)
    assert len(gc.get_objects()) < LEAST_GROWTH
    few = [[number] for number in range(LEAST_GROWTH // 2)]
    frozen = gc.get_freeze_count()
    of_process.settle()
    assert gc.get_freeze_count() <= frozen
    assert len(stays) > len(few)


def test_garbage_is_freed_at_once_while_it_is_new(of_process: Collector) -> None:
    """A cycle that was not frozen needs no growth."""
    of_process.settle()
    ring = weakref.ref(Ring())
    of_process.settle()
    assert ring() is None


def test_a_cycle_that_was_frozen_goes_the_next_time(of_process: Collector) -> None:
    """It stays until then, and no longer."""
    ring = Ring()
    gone, stays = weakref.ref(ring), [[[number] for number in range(2 * LEAST_GROWTH)]]
    of_process.settle()
    del ring
    gc.collect()
    assert gone() is not None
    stays.append([[number] for number in range(gc.get_freeze_count())])
    of_process.settle()
    assert gone() is None
    assert len(stays) == 2


async def test_it_waits_until_nobody_scrapes_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold the event loop for a while. Where memory is short, it is done again the next time."""
    times: list[str] = []
    scrapers = ["one"]

    def settle() -> None:
        times.append("settled")
        raise MemoryError

    def looked(_: Any) -> int:
        times.append("looked")
        return len(scrapers)

    monkeypatch.setattr(daemon, "MEMORY_SECONDS", 0.001)
    monkeypatch.setattr(daemon, "Collector", lambda: SimpleNamespace(settle=settle))
    admission = type("Admission", (), {"__len__": looked})()
    served: Any = SimpleNamespace(admission=admission)
    budget: Any = SimpleNamespace(peak=lambda: 0)
    task = asyncio.create_task(daemon.look_after_memory(served, [budget]))
    await soon("it is done all the same", lambda: "settled" in times)
    assert times.index("settled") == daemon.BUSY_TIMES
    scrapers.clear()
    times.clear()
    await soon("it is done each time", lambda: len(times) >= 4)
    task.cancel()
    assert times[:4] in (["looked", "settled"] * 2, ["settled", "looked"] * 2)
