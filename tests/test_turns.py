# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may use something next."""

import asyncio

from federator.turns import Turns


async def test_those_that_go_first_go_before_the_others() -> None:
    """And among themselves in the order in which they came."""
    turns, order = Turns(), list[str]()

    async def take(name: str) -> None:
        async with turns.turn(first=name.startswith("first")):
            order.append(name)
            await asyncio.sleep(0)

    names = ["other 1", "other 2", "first 1", "other 3", "first 2"]
    await asyncio.gather(*map(take, names))
    assert order == ["other 1", "first 1", "first 2", "other 2", "other 3"]
    assert not turns.taken


async def test_a_turn_is_not_lost_with_one_that_is_cancelled() -> None:
    """Neither while it waits, nor in the moment in which the turn is given to it, nor while it has the turn."""
    turns, order = Turns(), list[str]()

    async def take(name: str) -> None:
        async with turns.turn(first=False):
            order.append(name)
            if name == "holds":
                await asyncio.Event().wait()

    tasks = {name: asyncio.create_task(take(name)) for name in ("holds", "waits", "is given it", "next")}
    await asyncio.sleep(0)
    tasks["waits"].cancel()
    tasks["holds"].cancel()
    await asyncio.sleep(0)
    tasks["is given it"].cancel()
    async with asyncio.timeout(20):
        await asyncio.wait(tasks.values())
    assert order[0] == "holds"
    assert order[-1] == "next"
    assert not turns.taken
