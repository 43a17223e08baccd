# SPDX-License-Identifier: GPL-3.0-or-later
"""
Turns on the event loop for work that is done in slices.

Owns who is next. Must not know what the work is.
"""

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

from federator.turns import Turns

# From this size on a work is large. Of smaller ones many may be half done at one time.
LARGE = 1 << 20

# Work that goes first does so many seconds of slices in one turn. On a busy machine, what others do between two turns
# takes longer than a slice.
FIRST_SECONDS = 0.005

T = TypeVar("T")


class Scheduler:
    """
    Lets many readings take turns on the event loop: one slice of one of them, then everybody else, sockets included.

    In threads they would fight for the interpreter all the same, and a large text would hold up the small ones.
    """

    def __init__(self) -> None:
        self._turns = Turns()
        self._large = asyncio.Lock()

    async def run(self, work: Generator[None, None, T], size: int = 0, *, first: bool = False) -> T:
        """
        Run the work to its end, a slice at a time; its result, or what it raised.

        `size`: bytes that it works on, which it may need several times. Large works go one after the other.
        `first`: its slices come before those of others, and several of them in one turn.
        """
        if size >= LARGE:
            async with self._large:
                return await self.run(work, first=first)
        while True:
            async with self._turns.turn(first=first):
                try:
                    _advance(work, FIRST_SECONDS if first else 0.0)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                # Within the turn: outside of it, each of many readings would have a slice before the sockets have one.
                await asyncio.sleep(0)


def _advance(work: Generator[None, None, T], seconds: float) -> None:
    """Do slices for so long, and one at least. Raises StopIteration at the end of the work."""
    end = time.monotonic() + seconds
    next(work)
    while time.monotonic() < end:
        next(work)
