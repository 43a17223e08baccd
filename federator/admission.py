# SPDX-License-Identifier: GPL-3.0-or-later
"""
Which requests are served at one time, of those that ask qubes.

Owns the places, and how they are shared out. Must not know HTTP, nor what is asked for.

Each page that is being made or sent costs memory, so there are few places, and the pages may have so many bytes
together. Requests for the same page share a place. One client cannot keep all others out, nor can a few: a client gets
a place only while it has fewer than are free, which is half of them at first, and half of the rest for the next one.
Bytes are shared out in a similar way: a client may have half of those that the others leave, and three quarters if it
has one page. A page that several clients wait for counts for one of them: for the first, or for the last one that may
have so much. So a client that asks for the same page as a greedy one is not refused with it.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from federator.errors import BusyError

# Prometheus' own --web.max-requests is 40 as well.
MAX_REQUESTS = 40


@dataclass(slots=True)
class Place:
    """One page. `network`: of the client that it counts for. `size`: its bytes, or what may be expected."""

    network: str
    size: int
    requests: list[str] = field(default_factory=list)  # the networks of those who wait for it, or read it


class Admission:
    """The places, of which requests take one each, or share one. `remedy`: for who is refused by the bytes."""

    def __init__(self, most_bytes: int, remedy: str = "see scrape.memory_limit") -> None:
        self.most_bytes = most_bytes  # may change at any time
        self._remedy = remedy
        self._places: dict[Hashable, Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    @contextmanager
    def place(self, network: str, page: Hashable, size: int = 0) -> Iterator[Place]:
        """
        Be served. Requests with the same `page` will get the very same one.

        `size`: the bytes that it will have, as far as known. Raises BusyError.
        """
        place = self._places.get(page)
        if place is None:
            if len(self._places) >= MAX_REQUESTS:
                raise BusyError(f"{MAX_REQUESTS} requests are being served already")
            of_network = sum(one.network == network for one in self._places.values())
            if of_network >= MAX_REQUESTS - len(self._places):
                raise BusyError(f"this address has {of_network} of the {MAX_REQUESTS} places already")
            place = Place(network, 0)
            self.resize(place, size, network)
            self._places[page] = place
        place.requests.append(network)
        try:
            yield place
        finally:
            place.requests.remove(network)
            if not place.requests:
                del self._places[page]
            elif place.network not in place.requests:
                place.network = place.requests[0]  # who is gone has nothing any more

    def resize(self, place: Place, size: int, network: str) -> None:
        """So many bytes it has, for a client of this network. Raises BusyError where that is too much for it."""
        others = [one for one in self._places.values() if one is not place and one.size]
        of_network = sum(one.size for one in others if one.network == network)
        left = self.most_bytes - (sum(one.size for one in others) - of_network)
        # One page by itself is never too much: it has a limit of its own. The first one of a client may be large.
        if size and others and size + of_network > (left // 2 if of_network else left * 3 // 4):
            raise BusyError(f"the pages that are being sent take too much memory; {self._remedy}")
        place.network, place.size = network, size
