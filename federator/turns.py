# SPDX-License-Identifier: GPL-3.0-or-later
"""
Who may use something next that only one may use at a time.

Owns the order: those that go first before the others, and otherwise first come, first served. Must not know what it
is that is used.
"""

import asyncio
from collections import deque
from typing import Self


class Turns:
    """A lock with two lines of those that wait."""

    def __init__(self) -> None:
        self._taken = False
        self._first: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    @property
    def taken(self) -> bool:
        """Has somebody the turn?"""
        return self._taken

    def turn(self, *, first: bool) -> "Turn":
        """`async with` this: wait for a turn, and have it."""
        return Turn(self, first=first)

    def take_if_free(self) -> bool:
        """Have the turn, if that takes no waiting. The one that has it passes it on."""
        taken, self._taken = self._taken, True
        return not taken

    async def take(self, *, first: bool) -> None:
        """Wait for a turn. The one that has it passes it on."""
        if not self._taken:
            self._taken = True
            return
        line = self._first if first else self._others
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.pass_on()  # it was given to this one, which does not want it any more
            raise

    def pass_on(self) -> None:
        """The turn goes to the next one directly: it is never free while somebody waits."""
        for line in (self._first, self._others):
            while line:
                turn = line.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._taken = False


class Turn:
    """One turn, taken and passed on: at the end, or earlier."""

    def __init__(self, turns: Turns, *, first: bool) -> None:
        self._turns = turns
        self._goes_first = first
        self._has_it = False

    def pass_on(self) -> None:
        """Others may have it now."""
        if self._has_it:
            self._has_it = False
            self._turns.pass_on()

    async def __aenter__(self) -> Self:
        await self._turns.take(first=self._goes_first)
        self._has_it = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pass_on()
