# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns on the event loop."""

import asyncio
import itertools
from collections.abc import Generator

import pytest

from federator import scheduler as module
from federator.scheduler import Scheduler


async def test_large_texts_take_turns_with_small_ones() -> None:
    """A slice of one, a slice of the next; and sockets between them."""
    order = []

    def work(name: str, slices: int) -> Generator[None, None, str]:
        for _ in range(slices):
            order.append(name)
            yield
        return name

    async def sockets() -> None:
        while order.count("large") < 4:
            order.append("sockets")
            await asyncio.sleep(0)

    scheduler = Scheduler()
    large, small, _ = await asyncio.gather(scheduler.run(work("large", 4)), scheduler.run(work("small", 2)), sockets())
    assert (large, small) == ("large", "small")
    assert [name for name in order if name != "sockets"][:4] == ["large", "small", "large", "small"]
    pairs = itertools.pairwise(order[: order.index("small", order.index("small") + 1)])
    assert all("sockets" in pair for pair in pairs), "two slices, and no turn for the sockets between them"


async def test_what_goes_first_does_several_slices_in_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, what others do between two turns takes longer than a slice."""
    monkeypatch.setattr(module, "FIRST_SECONDS", 3600.0)
    turns = 0

    def work() -> Generator[None, None, int]:
        for _ in range(100):
            yield
        return turns

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    scheduler, busy = Scheduler(), asyncio.create_task(others())
    await asyncio.sleep(0)
    assert await scheduler.run(work(), first=True) == 1
    assert await scheduler.run(work()) >= 100
    busy.cancel()
