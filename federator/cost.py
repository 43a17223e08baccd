# SPDX-License-Identifier: GPL-3.0-or-later
"""
How long a page will take to be made, judged by the last ones.

Owns that estimate. Must not know what a page is, nor what time it is: the caller says.
"""

from collections import deque

# So many pages are remembered; the slowest of them counts, with this much to spare, in which it is sent.
REMEMBERED = 5
MARGIN = 1.5
# Before any page was made: merging and compressing a byte of an exporter's text. A slow machine takes so long.
FIRST_SECONDS_PER_BYTE = 50e-9


class PageCost:
    """The time for each byte of the exporters' texts, from the moment when all of them are read."""

    def __init__(self) -> None:
        self._seconds_per_byte: deque[float] = deque([FIRST_SECONDS_PER_BYTE], maxlen=REMEMBERED)

    def note(self, size: int, seconds: float) -> None:
        """A page of so many bytes of texts took so long to be made. A tiny page says nothing of a large one."""
        if size >= 1 << 16:
            self._seconds_per_byte.append(seconds / size)

    def expect(self, size: int) -> float:
        """Seconds for a page of so many bytes of texts."""
        return MARGIN * size * max(self._seconds_per_byte)
