# SPDX-License-Identifier: GPL-3.0-or-later
"""
What the last scrapes found, for people to look at: of each qube and target the last outcome, since when, and how long
the last 60 scrapes took.

Owns what is remembered for this, and how much. Must not know how a scrape is done, nor how anything is shown.

It hears the same as the log: of several scrapers that share one asking, what the most patient one was told. So the page
and the log say the same, and a client that waits too little for anything to be up changes nothing.
"""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from federator.errors import ScrapeError
from federator.model import Family, Outcome, Qube, QubeOutcome, Target

State = Literal["up", "down", "not_running"]

# At one scrape a minute an hour. Each takes 4 bytes for each target and qube.
SCRAPES = 60
# The first metrics of a text, by which a person sees what it is. A HELP text may have 4096 bytes.
HEAD_FAMILIES = 8
HEAD_NAME, HEAD_HELP = 64, 120


@dataclass(slots=True)
class Row:
    """
    One qube or one target. Times in seconds since 1970, `durations` in seconds, NaN where it was down.

    `since`: when it came into this state, or `first`, the first scrape of it that is known, if it always was.
    """

    first: float
    since: float
    at: float
    state: State
    error: ScrapeError | None = None
    seconds: float = 0.0
    durations: "array[float]" = field(default_factory=lambda: array("f"))

    def note(self, at: float, seconds: float, error: ScrapeError | None) -> None:
        """What came of one scrape."""
        state = state_of(error)
        if state != self.state:
            self.state, self.since = state, at
        self.at, self.seconds, self.error = at, seconds, error
        if len(self.durations) == SCRAPES:
            del self.durations[0]
        self.durations.append(math.nan if error else seconds)


@dataclass(slots=True)
class TargetRow(Row):
    """One target. `head`: the first metrics of its text, and `families` how many there were."""

    samples: int = 0
    body_size: int = 0
    lines_dropped: int = 0
    complaint: str = ""
    families: int = 0
    head: tuple[Family, ...] = ()

    def note_outcome(self, at: float, outcome: Outcome) -> None:
        """What came of one scrape, without the text."""
        self.note(at, outcome.seconds, outcome.error)
        self.samples, self.body_size = outcome.samples, outcome.body_size
        reading = outcome.reading
        self.lines_dropped = reading.lines_dropped if reading else 0
        self.complaint = reading.complaint if reading else ""
        self.families = len(reading.families) if reading else 0
        self.head = tuple(map(_cut, reading.families[:HEAD_FAMILIES])) if reading else ()


@dataclass(frozen=True, slots=True)
class Asked:
    """The last time that a client wanted a page: when, from where, for which path; how long it took, and might have."""

    at: float
    address: str
    path: str
    seconds: float
    allowed: float


class History:
    """`version` is another one after each change."""

    def __init__(self) -> None:
        self.version = 0
        self.asked: Asked | None = None
        self._qubes: dict[str, Row] = {}
        self._targets: dict[Target, TargetRow] = {}

    def __len__(self) -> int:
        return len(self._targets)

    def qube(self, name: str) -> Row | None:
        """What is known of a qube; None before it was scraped."""
        return self._qubes.get(name)

    def target(self, target: Target) -> TargetRow | None:
        """What is known of a target; None before it was scraped."""
        return self._targets.get(target)

    def note(self, qube: QubeOutcome, at: float) -> None:
        """One qube, after a scrape of all of its targets or of some."""
        self.version += 1
        error = None if qube.up else next((one.error for one in qube.outcomes if one.error), None)
        name = qube.qube.name
        row = self._qubes.get(name)
        if row is None:
            row = self._qubes[name] = Row(at, at, at, state_of(error))
        row.note(at, qube.seconds, error)
        for outcome in qube.outcomes:
            of_target = self._targets.get(outcome.target)
            if of_target is None:
                of_target = self._targets[outcome.target] = TargetRow(at, at, at, state_of(outcome.error))
            of_target.note_outcome(at, outcome)

    def note_asked(self, asked: Asked) -> None:
        """A client got its page."""
        self.version += 1
        self.asked = asked

    def retain(self, qubes: Iterable[Qube]) -> None:
        """These are scraped now. Others went away, and are new if they come again."""
        self.version += 1
        now = {qube.name: qube for qube in qubes}
        targets = {target for qube in now.values() for target in qube.targets}
        self._qubes = {name: row for name, row in self._qubes.items() if name in now}
        self._targets = {target: row for target, row in self._targets.items() if target in targets}


def state_of(error: ScrapeError | None) -> State:
    """A qube that dom0 says does not run is not a failure."""
    if error is None:
        return "up"
    return "not_running" if error.reason == "not_running" else "down"


def _cut(family: Family) -> Family:
    """The family itself if it is short: the daemon has it anyway."""
    if len(family.name) <= HEAD_NAME and len(family.help) <= HEAD_HELP:
        return family
    return Family(family.name[:HEAD_NAME], family.type, family.help[:HEAD_HELP])
