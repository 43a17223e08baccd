# SPDX-License-Identifier: GPL-3.0-or-later
"""
What is asked of one qube, and until when.

Owns the deadline, which may move, and that each port is told of once. Must not know how a qube is asked, nor who asks.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from federator.errors import ScrapeError
from federator.model import Answer

# Told for each port, once: an answer, or why there is none.
Tell = Callable[[int, Answer | ScrapeError], None]


class Deadline:
    """
    How long the scrapers wait who share one request, in the event loop's time. Both ends may move while they wait.

    `wanted_by`: after this nobody wants the answers any more; the service is told. `ends_at`: a call that is silent
    until then is ended. It is never earlier, and later where scrapers are impatient: they must not end calls for all.
    """

    def __init__(self, wanted_by: float, ends_at: float) -> None:
        self.wanted_by = wanted_by
        self.ends_at = max(ends_at, wanted_by)
        self._timeouts: list[asyncio.Timeout] = []  # one for the call, and one for each text that is read

    def extend(self, wanted_by: float) -> None:
        """Somebody waits until then, too."""
        self.wanted_by = max(self.wanted_by, wanted_by)
        self.ends_at = max(self.ends_at, wanted_by)
        for timeout in self._timeouts:
            with suppress(RuntimeError):  # what it limits is over already
                timeout.reschedule(self.ends_at)

    def limit(self) -> asyncio.Timeout:
        """`async with` this: what is done there ends at `ends_at`, wherever that is by then. Raises TimeoutError."""
        timeout = asyncio.timeout_at(self.ends_at)
        self._timeouts.append(timeout)
        return timeout


class Request:
    """What is asked for, and who hears of it. Each port is told of once."""

    def __init__(self, ports: Collection[int], deadline: Deadline, max_body: int, tell: Tell) -> None:
        self.owed = set(ports)
        self.deadline = deadline
        self.max_body = max_body
        self._tell = tell

    def tell(self, port: int, result: Answer | ScrapeError) -> None:
        """What came of this port."""
        if port in self.owed:
            self.owed.discard(port)
            self._tell(port, result)

    def tell_all(self, ports: Collection[int], error: ScrapeError) -> None:
        """Nothing came of these ports."""
        for port in sorted(ports):
            self.tell(port, error)
