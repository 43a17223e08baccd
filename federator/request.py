# SPDX-License-Identifier: GPL-3.0-or-later
"""
What is asked of one qube, and until when.

Owns the deadline, which may move, and that each endpoint is told of once. Must not know how a qube is asked, nor who
asks.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from federator.errors import ScrapeError
from federator.model import Answer, Endpoint, in_order

# A scraper that comes within this time after a qube was asked shares the answers; later, they would be older than a
# scraper expects.
SHARE_SECONDS = 1.0

# Told for each endpoint, once: an answer, or why there is none.
Tell = Callable[[Endpoint, Answer | ScrapeError], None]


class Deadline:
    """
    How long the scrapers wait who share one request, in the event loop's time. Both ends may move while they wait.

    `wanted_by`: after this nobody wants the answers any more; the service is told. `ends_at`: a call that is silent
    until then is ended. It is never earlier, and later where scrapers are impatient: they must not end calls for all.
    `asked_at`: when the qube was asked; None while the request waits for its turn.
    """

    def __init__(self, wanted_by: float, ends_at: float, whole: "Deadline | None" = None) -> None:
        self.wanted_by = wanted_by
        self.ends_at = max(ends_at, wanted_by)
        self.asked_at: float | None = None
        self._whole = whole  # of which this is a part
        self._parts: list[tuple[Deadline, float]] = []
        self._timeouts: list[asyncio.Timeout] = []  # one for the call, and one for each text that is read

    def part(self, most: float) -> "Deadline":
        """The same, for something that nobody wants after `most`, however long they wait for the rest."""
        part = Deadline(min(self.wanted_by, most), self.ends_at, self)
        self._parts.append((part, most))
        return part

    def begin(self, now: float) -> None:
        """The qube is asked now, if it was not before."""
        self.asked_at = self.asked_at or now
        if self._whole is not None:
            self._whole.begin(now)

    def answers_are_new(self, now: float) -> bool:
        """For somebody who comes now: will the answers be no older than SHARE_SECONDS?"""
        return self.asked_at is None or now - self.asked_at < SHARE_SECONDS

    def extend(self, wanted_by: float) -> None:
        """Somebody waits until then, too."""
        self.wanted_by = max(self.wanted_by, wanted_by)
        self.ends_at = max(self.ends_at, wanted_by)
        for part, most in self._parts:
            part.extend(min(wanted_by, most))
        for timeout in self._timeouts:
            with suppress(RuntimeError):  # what it limits is over already
                timeout.reschedule(self.ends_at)

    def limit(self) -> asyncio.Timeout:
        """`async with` this: what is done there ends at `ends_at`, wherever that is by then. Raises TimeoutError."""
        timeout = asyncio.timeout_at(self.ends_at)
        self._timeouts.append(timeout)
        return timeout


class Request:
    """
    What is asked for, and who hears of it. Each endpoint is told of once.

    `gives_way`: other requests to the same qube go first.
    """

    def __init__(
        self, endpoints: Collection[Endpoint], deadline: Deadline, max_body: int, tell: Tell, *, gives_way: bool = False
    ) -> None:
        self.owed = set(endpoints)
        self.deadline = deadline
        self.max_body = max_body
        self.gives_way = gives_way
        self._tell = tell

    def tell(self, endpoint: Endpoint, result: Answer | ScrapeError) -> None:
        """What came of this endpoint."""
        if endpoint in self.owed:
            self.owed.discard(endpoint)
            self._tell(endpoint, result)

    def tell_all(self, endpoints: Collection[Endpoint], error: ScrapeError) -> None:
        """Nothing came of these endpoints."""
        for endpoint in in_order(endpoints):
            self.tell(endpoint, error)
