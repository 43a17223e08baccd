# SPDX-License-Identifier: GPL-3.0-or-later
"""
How long a page will take to be made, judged by the last ones.

Owns that estimate. Must not know what a page is, nor what time it is: the caller says.
"""

from collections import deque

# The slowest of so many pages counts, with this much to spare, in which the page is sent.
REMEMBERED = 20
MARGIN = 1.5
# What a unit of weight takes at least, whatever was measured: the next page may be of another kind than the last ones.
# Merging and compressing a byte takes 5 to 10 ns on a laptop of 2020, and another client's page may be made meanwhile.
LEAST_SECONDS = 40e-9
# And at most: if it took longer, the machine stood still, as a paused qube does. A page of LEAST_WEIGHT is then
# expected to take 0.4 s, so pages that are heavy enough to be noted go on, and this one is forgotten.
MOST_SECONDS = 4e-6
# A block has to be put in its place. It takes as long as so many bytes take to be compressed, where the page is planned
# anew.
BLOCK_WEIGHT = 500
# A lighter page says nothing of a heavy one: it takes the time of a request.
LEAST_WEIGHT = 1 << 16
# On a machine that is too busy a page waits for its turns, however light it is. So none is expected to be made faster
# than the slowest one of so many seconds; but this part of the scraper's time is the most that this may take.
SLOW_SECONDS = 300.0
MOST_FOR_WAITING = 0.25


def weight(page_size: int, blocks: int) -> int:
    """What a text counts that has so many bytes and blocks on the page, in bytes."""
    return page_size + BLOCK_WEIGHT * blocks


class PageCost:
    """The time for each unit of weight, from the moment when all texts are read."""

    def __init__(self) -> None:
        self._seconds_each: deque[float] = deque([LEAST_SECONDS], maxlen=REMEMBERED)
        self._slowest: deque[tuple[float, float]] = deque()  # when and how slow; a slower one removes those before it

    def note(self, page_weight: int, seconds: float, now: float) -> None:
        """A page of this weight took so long to be made."""
        if page_weight >= LEAST_WEIGHT:
            self._seconds_each.append(min(max(seconds / page_weight, LEAST_SECONDS), MOST_SECONDS))
        while self._slowest and self._slowest[-1][1] <= seconds:
            self._slowest.pop()
        self._slowest.append((now, seconds))

    def expect(self, page_weight: int, now: float, allowed: float) -> float:
        """Seconds for a page of this weight, where the scraper allows so many for all."""
        while self._slowest and self._slowest[0][0] < now - SLOW_SECONDS:
            self._slowest.popleft()
        slowest = self._slowest[0][1] if self._slowest else 0.0
        by_weight = page_weight * max(self._seconds_each)
        return max(MARGIN * by_weight, min(MARGIN * slowest, MOST_FOR_WAITING * allowed))
