# SPDX-License-Identifier: GPL-3.0-or-later
"""
Which requests are served at one time, of those that ask qubes.

Owns the places, and how they are shared out. Must not know HTTP, nor what is asked for.

Each page that is being made or sent costs memory, so there are few places, and the pages may have so many bytes
together. Requests for the same page share a place. No address may have more than half of the places, or of the bytes:
one client cannot keep all others out.
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
class Place:
    """One page. `address`: of the client that came first. `size`: its bytes, or what may be expected."""

    address: str
    size: int
    requests: int = 0


class Admission:
    """The places, of which requests take one each, or share one."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes  # may change at any time
        self._places: dict[Hashable, Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def place(self, address: str, page: Hashable, size: int = 0) -> Iterator[Place]:
        """
        Be served. Requests with the same `page` will get the very same one.

        `size`: the bytes that it will have, as far as known. Raises BusyError.
        """
        place = self._places.get(page)
        if place is None:
            if len(self._places) >= MAX_REQUESTS:
                raise BusyError(f"{MAX_REQUESTS} scrapes are being served already")
            of_address = Counter(one.address for one in self._places.values())[address]
            if of_address >= MAX_REQUESTS_PER_ADDRESS:
                raise BusyError(f"{MAX_REQUESTS_PER_ADDRESS} scrapes of this address are being served already")
            place = Place(address, 0)
            self.resize(place, size)
            self._places[page] = place
        place.requests += 1
        try:
            yield place
        finally:
            place.requests -= 1
            if not place.requests:
                del self._places[page]

    def resize(self, place: Place, size: int) -> None:
        """So many bytes it has. Raises BusyError where that is too much beside the others."""
        others = [one for one in self._places.values() if one is not place and one.size]
        of_address = [one for one in others if one.address == place.address]
        # One page by itself is never too much: it has a limit of its own.
        if size and (
            (others and size + sum(one.size for one in others) > self.most_bytes)
            or (of_address and size + sum(one.size for one in of_address) > self.most_bytes // 2)
        ):
            raise BusyError("the pages that are being sent take too much memory; see scrape.memory_limit")
        place.size = size
