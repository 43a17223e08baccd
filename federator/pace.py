# SPDX-License-Identifier: GPL-3.0-or-later
"""
How often something may be done: so many times at once, then at an even pace.

Owns that reckoning. Must not know what is done, nor what time it is: the caller says.
"""

from collections.abc import Container, Hashable


class Pace:
    """For each key, `burst` times at once, and `interval` seconds for each time after that."""

    def __init__(self, interval: float, burst: int) -> None:
        self.interval = interval  # may change at any time
        self._burst = burst
        self._even: dict[Hashable, float] = {}  # when the next time would be, if all were done at the even pace

    def __len__(self) -> int:
        return len(self._even)

    def wait(self, key: Hashable, now: float) -> float:
        """So many seconds have to pass before it may be done once more."""
        return max(0.0, self._even.get(key, now) - now - (self._burst - 1) * self.interval)

    def reserve(self, key: Hashable, now: float) -> float:
        """It is to be done once more: so many seconds have to pass before."""
        wait = self.wait(key, now)
        self._even[key] = max(self._even.get(key, now), now) + self.interval
        return wait

    def forget(self, now: float) -> None:
        """Keys that may be done `burst` times again need not be remembered."""
        self._even = {key: even for key, even in self._even.items() if even > now}

    def retain(self, keys: Container[Hashable]) -> None:
        """Other keys are not used any more."""
        self._even = {key: even for key, even in self._even.items() if key in keys}
