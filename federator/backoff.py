# SPDX-License-Identifier: GPL-3.0-or-later
"""
When something that failed may be tried again: later and later, up to a limit.

Owns that one rule, for calls to qubes and for questions to dom0. Must not know what failed, nor what time it is: the
caller says.
"""

import random

# The wait is spread by this much either way, so that qubes that failed together do not come back together.
JITTER = 0.2
# More doublings than this change nothing any more: the limit is reached long before.
_MAX_DOUBLINGS = 32


class Backoff:
    """
    Counts failures in a row: after the first one `initial` seconds have to pass, then twice as long, up to `maximum`.

    `now` is any clock in seconds, always the same one.
    """

    def __init__(self, initial: float, maximum: float, failures: int = 0) -> None:
        self.initial = initial
        self.maximum = maximum
        self.failures = failures
        self._not_before = 0.0

    def failed(self, now: float) -> None:
        """It was tried, and failed."""
        wait = min(self.initial * 2 ** min(self.failures, _MAX_DOUBLINGS), self.maximum)
        self.failures += 1
        self._not_before = now + wait * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads calls, guards nothing

    def reset(self) -> None:
        """It succeeded, or somebody says that it may succeed now."""
        self.failures = 0
        self._not_before = 0.0

    def wait(self, now: float) -> float:
        """So many seconds have to pass before the next try; 0 if none."""
        return max(0.0, self._not_before - now)
