# SPDX-License-Identifier: GPL-3.0-or-later
"""
An exporter's own timestamps: is a sample too old to be passed on without one?

Owns that question. Must not know lines, nor what time it is: the caller says.

The page has no timestamps, so that a series that ends goes stale at once. A value that the exporter stamped long ago
would look new there. Prometheus itself refuses such samples.
"""

import math

_SECONDS = 0.001  # in the unit of the text format, which is milliseconds
_OPENMETRICS_END = b"# EOF\n"


class Timestamps:
    """
    The timestamps of one text.

    `now`: milliseconds since 1970; None: nothing is too old. `age_limit`: seconds. `seen`: there was a timestamp whose
    age had to be looked at, so the same text may be too old later.
    """

    def __init__(self, untrusted_body: bytes, now: float | None, age_limit: float) -> None:
        self.seen = False
        # OpenMetrics has seconds, with a fraction.
        self._unit = _SECONDS if untrusted_body.endswith(_OPENMETRICS_END) else 1.0
        self._age_limit = age_limit
        self._oldest = None if now is None else now - age_limit / _SECONDS

    def refusal(self, untrusted_timestamp: bytes) -> str:
        """Why a sample with this timestamp is dropped, or an empty text."""
        if self._oldest is None:
            return ""
        self.seen = True
        try:
            timestamp = float(untrusted_timestamp) / self._unit
        except ValueError:
            timestamp = math.nan
        if timestamp >= self._oldest:
            return ""
        if math.isnan(timestamp):
            return "its timestamp is no number"
        return f"its timestamp is more than {self._age_limit:g}s ago (scrape.timestamp_age_limit)"
