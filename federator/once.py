# SPDX-License-Identifier: GPL-3.0-or-later
"""
The command `scrape`: one scrape, now, without the daemon; what is up, what is down and why.

Owns its lines, its JSON and its exit status. Must not know how a scrape is done.
"""

import difflib
import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from federator import host, units
from federator.counters import Counters
from federator.errors import ConfigError, ScrapeError
from federator.fleet import Fleet
from federator.model import Config, Outcome, Snapshot, Target
from federator.scrape import Scraper, budget
from federator.statelog import StateLog
from federator.terminal import Progress, complain, say


@dataclass(frozen=True, slots=True)
class Found:
    """
    What one scrape found. `versions`: of the protocol that each qube speaks.

    `discovery_error`: why dom0 does not say which qubes run.
    """

    snapshot: Snapshot
    versions: Mapping[str, int]
    discovery_error: ScrapeError | None


class Watcher:
    """Who hears of a scrape while it is done. This one says nothing of it."""

    def undiscovered(self, error: ScrapeError) -> None:
        """dom0 does not say which qubes run."""

    def begins(self, targets: Collection[Target]) -> None:
        """These are being asked."""

    def hears(self, outcome: Outcome) -> None:
        """One of them is done."""


class _Lines(Watcher):
    """A person at a terminal sees each line as soon as it is known."""

    def __init__(self, *, for_person: bool) -> None:
        self.for_person = for_person
        self.width = 0

    def undiscovered(self, error: ScrapeError) -> None:
        complain(f"dom0 does not say which qubes run: {error}")

    def begins(self, targets: Collection[Target]) -> None:
        self.width = max((len(target.name) for target in targets), default=0)

    def hears(self, outcome: Outcome) -> None:
        if self.for_person:
            say(_line(outcome, self.width))


async def collect(settings: Config, names: Sequence[str], progress: Progress, watcher: Watcher) -> Found:
    """Scrape the targets of these names, or all. `progress` shows what is waited for."""
    host.watch_children()
    counters = Counters()
    fleet = Fleet(settings, counters, own_name=host.own_name())
    try:
        if settings.discovery:
            progress.show("asking dom0 which qubes run")
        await fleet.refresh(settings.scrape.timeout, patience=settings.scrape.timeout)
        if fleet.discovery_error is not None:
            progress.clear()
            watcher.undiscovered(fleet.discovery_error)
        selected = _selected(settings, fleet.targets, names)
        watcher.begins(selected)
        waiting = {target.name: None for target in fleet.targets if target in selected}

        def tell(outcome: Outcome) -> None:
            waiting.pop(outcome.target.name, None)
            progress.clear()
            watcher.hears(outcome)
            progress.show(_waiting(waiting, len(selected)))

        progress.show(_waiting(waiting, len(selected)))
        snapshot = await Scraper(fleet, StateLog(), counters).collect(selected, budget(None, settings.scrape), tell)
        versions = {
            qube.qube.name: call.version
            for qube in snapshot.qubes
            if qube.up
            for call in fleet.channel(qube.qube.name).calls()
        }
        return Found(snapshot, versions, fleet.discovery_error)
    finally:
        progress.clear()
        await fleet.close()


def _waiting(names: Iterable[str], total: int) -> str:
    left = list(names)
    done = f"{total - len(left)} of {units.plural(total, 'exporter')} done"
    return f"{done}; waiting for {', '.join(left)}" if left else ""


async def scrape(settings: Config, names: Sequence[str], *, as_json: bool) -> int:
    """
    Scrape the targets of these names, or all, and print what came of it.

    A person at a terminal sees each line as soon as it is known. A program gets the lines in the order of the file.
    """
    lines = _Lines(for_person=sys.stdout.isatty() and not as_json)
    found = await collect(settings, names, Progress(), lines)
    up = [outcome.reading is not None for outcome in found.snapshot.outcomes]
    if as_json:
        say(json.dumps(_as_json(found.snapshot)))
    else:
        for outcome in () if lines.for_person else found.snapshot.outcomes:
            say(_line(outcome, lines.width))
        if up:
            say(f"{sum(up)} of {units.plural(len(up), 'exporter')} up")
    if not found.snapshot.qubes:
        complain("nothing was scraped: no qube is configured or was found")
    return 0 if up and all(up) and found.discovery_error is None else 1


def _selected(settings: Config, targets: Sequence[Target], names: Sequence[str]) -> frozenset[Target]:
    """The targets called QUBE or QUBE:EXPORTER, or all of them. Raises ConfigError for a name nobody configured."""
    selected: set[Target] = set()
    for name in names:
        matching = {target for target in targets if name in (target.qube, target.name)}
        if not matching:
            raise ConfigError(f"{settings.path}: there is no {name!a} to scrape; {_meant(name, targets)}")
        selected |= matching
    return frozenset(selected or targets)


def _meant(name: str, targets: Sequence[Target]) -> str:
    """What it is nearly called; of an exporter without its qube, the first one."""
    meant = {target.exporter.name: target.name for target in reversed(targets)}
    meant |= {known: known for target in targets for known in (target.qube, target.name)}
    close = difflib.get_close_matches(name, meant, n=1)
    return f"did you mean {meant[close[0]]}?" if close else "name a QUBE or QUBE:EXPORTER, as `check` lists them"


def _line(outcome: Outcome, width: int) -> str:
    name = f"{outcome.target.name:{width}}"
    if outcome.reading is None:
        return f"{name}  DOWN  {outcome.error.reason}: {outcome.error}" if outcome.error else f"{name}  DOWN"
    reading = outcome.reading
    samples, size = units.plural(reading.samples, "sample"), units.plural(outcome.body_size, "byte")
    lines = units.plural(reading.lines_dropped, "line")
    dropped = f", {lines} dropped ({reading.complaint})" if reading.lines_dropped else ""
    return f"{name}  up    {samples}, {size}, {outcome.seconds:.3f} s{dropped}"


def _as_json(snapshot: Snapshot) -> list[dict[str, object]]:
    """An object for each exporter. All have the same keys; what there is not is null."""
    return [
        {
            "qube": outcome.target.qube,
            "exporter": outcome.target.exporter.name,
            "up": outcome.reading is not None,
            "reason": outcome.error.reason if outcome.error else None,
            "error": str(outcome.error) if outcome.error else None,
            "samples": outcome.samples,
            "bytes": outcome.body_size,
            "seconds": round(outcome.seconds, 6),
            "lines_dropped": outcome.reading.lines_dropped if outcome.reading else 0,
            "complaint": (outcome.reading.complaint or None) if outcome.reading else None,
        }
        for outcome in snapshot.outcomes
    ]
