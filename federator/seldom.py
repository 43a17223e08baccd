# SPDX-License-Identifier: GPL-3.0-or-later
"""
What happens often and is told now and then.

Owns when it is told again. Must not know what it is, nor who is told.
"""

import time


class Seldom:
    """What is told once in so many seconds, however often it happens."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._not_before = 0.0
        self._suppressed = 0

    def again(self) -> int | None:
        """It happened again: how often it was not told since the last time; None where it is not to be told."""
        now = time.monotonic()
        if now < self._not_before:
            self._suppressed += 1
            return None
        self._not_before = now + self._seconds
        times, self._suppressed = self._suppressed, 0
        return times
