# SPDX-License-Identifier: GPL-3.0-or-later
"""
What there is to see: all that the status page and its JSON are made of, at one moment.

Owns what is counted, and in which state a target is for people. Must not know how it is shown.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from federator.errors import ScrapeError
from federator.history import History, TargetRow
from federator.model import CallState, Config, Qube, Reload, Target

# In the order of the page. "dropped": it is up, and lines of its text could not be passed on. "off_page": it is no part
# of /metrics, and nobody asked for it by its name.
Seen = Literal["down", "dropped", "unknown", "up", "off_page", "not_running"]
ORDER: tuple[Seen, ...] = ("down", "dropped", "unknown", "up", "off_page", "not_running")
WORDS: dict[Seen, str] = {
    "down": "down",
    "dropped": "up, drops lines",
    "unknown": "not scraped yet",
    "up": "up",
    "off_page": "not on /metrics",
    "not_running": "not running",
}
# Three times the interval that Prometheus has by default.
SILENCE_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Dom0Says:
    """What dom0 says to one kind of call. `known`: did it answer, not too long ago? `error`: why it does not."""

    service: str
    known: bool
    error: ScrapeError | None

    @property
    def health(self) -> Literal["down", "up", "unknown"]:
        """What came of the last call."""
        return "down" if self.error else "up" if self.known else "unknown"


@dataclass(frozen=True, slots=True)
class Sight:
    """
    Times in seconds since 1970. `open_addresses`: where the daemon listens beyond loopback without TLS or passwords.

    `address`: HOST:PORT by which the reader reached the daemon. `discovery` and `dom0`: what dom0 says, where the
    configuration has these tables; `dom0` has all kinds of call that are made for it.
    """

    now: float
    started: float
    config: Config
    qubes: tuple[Qube, ...]
    history: History
    reload: Reload
    own_name: str
    address: str
    open_addresses: Sequence[str] = ()
    discovery: Dom0Says | None = None
    dom0: Sequence[Dom0Says] = ()

    @property
    def allowed(self) -> float:
        """How long the last scrape was allowed to take; by the configuration, if there was none."""
        asked = self.history.asked
        return asked.allowed if asked else self.config.scrape.timeout - self.config.scrape.timeout_offset

    @property
    def silent_for(self) -> float:
        """For so long nobody has scraped: since the last time, or the start."""
        asked = self.history.asked
        return max(0.0, self.now - (asked.at if asked else self.started))

    @property
    def is_silent(self) -> bool:
        """Is that too long? Before the first scrape, any time is."""
        return self.history.asked is None or self.silent_for >= SILENCE_SECONDS

    def counts(self) -> Counter[Seen]:
        """How many targets are in which state."""
        return Counter(seen(target, self.history.target(target)) for qube in self.qubes for target in qube.targets)


@dataclass(frozen=True, slots=True)
class QubeSight:
    """One qube, seen from near. `state`: what dom0 says of it; empty where it says nothing."""

    qube: Qube
    state: str
    calls: Sequence[CallState]


def seen(target: Target, row: TargetRow | None) -> Seen:
    """The state of a target for people."""
    if row is None:
        return "unknown" if target.exporter.page else "off_page"
    return "dropped" if row.lines_dropped and row.state == "up" else row.state
