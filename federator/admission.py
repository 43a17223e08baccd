# SPDX-License-Identifier: GPL-3.0-or-later
"""
Which requests are served at one time, of those that ask qubes.

Owns the places, and how they are shared out. Must not know HTTP, nor what is asked for.

Each page that is being made or sent costs memory, so there are few places. Requests for the same page share one. No
address may have more than half of them: one client cannot keep all others out.
"""

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from federator.errors import BusyError

# Prometheus' own --web.max-requests is 40 as well.
MAX_REQUESTS = 40
MAX_REQUESTS_PER_ADDRESS = MAX_REQUESTS // 2


@dataclass(slots=True)
class _Place:
    address: str  # that came first
    requests: int = 0


class Admission:
    """The places, of which requests take one each, or share one."""

    def __init__(self) -> None:
        self._places: dict[Hashable, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def place(self, address: str, page: Hashable) -> Iterator[None]:
        """Be served. Requests with the same `page` will get the very same one. Raises BusyError."""
        place = self._places.get(page)
        if place is None:
            if len(self._places) >= MAX_REQUESTS:
                raise BusyError(f"{MAX_REQUESTS} scrapes are being served already")
            of_address = Counter(one.address for one in self._places.values())[address]
            if of_address >= MAX_REQUESTS_PER_ADDRESS:
                raise BusyError(f"{MAX_REQUESTS_PER_ADDRESS} scrapes of this address are being served already")
            place = self._places[page] = _Place(address)
        place.requests += 1
        try:
            yield
        finally:
            place.requests -= 1
            if not place.requests:
                del self._places[page]
