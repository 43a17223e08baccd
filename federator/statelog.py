# SPDX-License-Identifier: GPL-3.0-or-later
"""
What the log is told of who is up: one line when something goes down, one when it is back, none between.

Owns these lines, and what was told last. Must not know why anything is down: an outcome says so.
"""

import logging
from collections.abc import Collection

from federator.errors import ScrapeError
from federator.model import Outcome, Qube, QubeOutcome, Reading

log = logging.getLogger(__name__)


class StateLog:
    """A qube that is down takes its exporters with it; the log hears of those again when the qube is back."""

    def __init__(self) -> None:
        self._down: set[str] = set()
        self._dropping: set[str] = set()
        self._departures = 0

    def write(self, qube: QubeOutcome) -> None:
        """One qube, after a scrape."""
        first_error = next((outcome.error for outcome in qube.outcomes if outcome.error), None)
        self._note("qube", qube.qube.name, None if qube.up else first_error, {"qube": qube.qube.name})
        if not qube.up:
            return
        for outcome in qube.outcomes:
            target = outcome.target
            fields = {"qube": target.qube, "exporter": target.exporter.name}
            self._note("exporter", target.name, outcome.error, fields)
            if outcome.reading:
                self._note_dropped(target.name, outcome.reading, fields)

    def write_forwarded(self, outcome: Outcome) -> None:
        """
        One exporter, after a /forward.

        It has lines of its own: its deadlines are others, its text is judged less, and it says little of its qube.
        """
        target = outcome.target
        fields = {"qube": target.qube, "exporter": target.exporter.name, "path": "/forward"}
        self._note("exporter", _forwarded(target.name), outcome.error, fields)

    def follow(self, departures: int, qubes: Collection[Qube]) -> None:
        """Forget what departed: so many times in all did something depart, and these are scraped now."""
        if departures != self._departures:
            self._departures = departures
            self.retain(qubes)

    def retain(self, qubes: Collection[Qube]) -> None:
        """These are scraped now. Others went away, and are new if they come again."""
        targets = [target.name for qube in qubes for target in qube.targets]
        names = {*(qube.name for qube in qubes), *targets, *map(_forwarded, targets)}
        self._down &= names
        self._dropping &= names

    def _note(self, what: str, name: str, error: ScrapeError | None, fields: dict[str, str]) -> None:
        if error is not None and name not in self._down:
            self._down.add(name)
            log.warning("%s is down", what, extra={**fields, "reason": error.reason, "error": str(error)})
        elif error is None and name in self._down:
            self._down.discard(name)
            log.info("%s is back", what, extra=fields)

    def _note_dropped(self, name: str, reading: Reading, fields: dict[str, str]) -> None:
        if not reading.lines_dropped:
            self._dropping.discard(name)
        elif name not in self._dropping:
            self._dropping.add(name)
            extra = {**fields, "lines": reading.lines_dropped, "first": reading.complaint}
            log.warning("lines dropped that Prometheus would not take", extra=extra)


def _forwarded(name: str) -> str:
    return f"/forward {name}"
