# SPDX-License-Identifier: GPL-3.0-or-later
"""
How many bytes or samples there may be at one time, for all qubes together, and which have to go where it is too much.

Owns that choice, which is a fair one: the qube that has most loses its largest, and so on. So a qube that has no more
than its equal share never loses anything, whatever the others send, and however they divide it among exporters. Must
not know what the bytes are for.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Protocol, TypeVar


class OfQube(Protocol):
    """Something that counts for a qube."""

    @property
    def qube(self) -> str:
        """The name of the qube."""


class Holder(OfQube, Protocol):
    """One that holds bytes."""

    def give_up(self) -> None:
        """Let go of them. They are released already."""


H = TypeVar("H", bound=OfQube)


def surplus(held: Mapping[H, int], limit: int) -> Iterable[H]:
    """Those that have to go, so that the sum of the others is no more than the limit: see the head of this file."""
    total = sum(held.values())
    if total <= limit:
        return
    of_qube: defaultdict[str, list[tuple[H, int]]] = defaultdict(list)
    for holder, size in sorted(held.items(), key=itemgetter(1)):
        of_qube[holder.qube].append((holder, size))
    # The number decides between qubes that have as much.
    most = [(-sum(size for _, size in mine), number, mine) for number, mine in enumerate(of_qube.values())]
    heapq.heapify(most)
    while total > limit:
        minus_sum, number, mine = most[0]
        holder, size = mine.pop()
        total -= size
        heapq.heapreplace(most, (minus_sum + size, number, mine))
        yield holder


class Budget:
    """The bytes that each holder has."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # may change at any time
        self._held: dict[Holder, int] = {}
        self._total = 0
        self._peak = 0

    def __repr__(self) -> str:
        return f"<Budget: {self._total} of {self.limit} bytes held by {len(self._held)}>"

    @property
    def total(self) -> int:
        """Bytes held now."""
        return self._total

    def peak(self) -> int:
        """The most bytes that were held at one time since this was asked last."""
        peak, self._peak = self._peak, self._total
        return peak

    def hold(self, holder: Holder, size: int) -> None:
        """The holder has so many bytes now. If it is too much in all, some give up; it may be this one."""
        self._total += size - self._held.get(holder, 0)
        if size:
            self._held[holder] = size
        else:
            self._held.pop(holder, None)
        self._peak = max(self._peak, self._total)
        self._take_back(self.limit)

    def shed(self) -> None:
        """There is no memory: half of the bytes go, those of the qubes that have most."""
        self._take_back(self._total // 2)

    def _take_back(self, limit: int) -> None:
        if self._total <= limit:  # as for nearly every piece that a pipe brings
            return
        for chosen in list(surplus(self._held, limit)):
            self.release(chosen)
            chosen.give_up()

    def release(self, holder: Holder) -> None:
        """It has none any more."""
        self._total -= self._held.pop(holder, 0)
