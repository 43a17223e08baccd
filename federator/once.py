# SPDX-License-Identifier: GPL-3.0-or-later
"""
The command `scrape`: one scrape, now, without the daemon; what is up, what is down and why.

Owns its lines, its JSON and its exit status. Must not know how a scrape is done.
"""

import json
import sys
from collections.abc import Sequence

from federator import host
from federator.counters import Counters
from federator.errors import ConfigError
from federator.fleet import Fleet
from federator.model import Config, Outcome, Snapshot, Target
from federator.scrape import Scraper, budget
from federator.statelog import StateLog
from federator.terminal import complain, say


async def scrape(settings: Config, names: Sequence[str], *, as_json: bool) -> int:
    """
    Scrape the targets of these names, or all, and print what came of it.

    A person at a terminal sees each line as soon as it is known. A program gets the lines in the order of the file.
    """
    host.watch_children()
    counters = Counters()
    fleet = Fleet(settings, counters, own_name=host.own_name())
    for_person = sys.stdout.isatty() and not as_json

    def show(outcome: Outcome) -> None:
        if for_person:
            say(_line(outcome, width))

    try:
        await fleet.refresh(settings.scrape.timeout, patience=settings.scrape.timeout)
        if fleet.discovery_error is not None:
            complain(f"dom0 does not say which qubes run: {fleet.discovery_error}")
        selected = _selected(settings, fleet.targets, names)
        width = max((len(target.name) for target in selected), default=0)
        snapshot = await Scraper(fleet, StateLog(), counters).collect(selected, budget(None, settings.scrape), show)
    finally:
        await fleet.close()
    up = [outcome.reading is not None for outcome in snapshot.outcomes]
    if as_json:
        say(json.dumps(_as_json(snapshot)))
    else:
        for outcome in () if for_person else snapshot.outcomes:
            say(_line(outcome, width))
        if up:
            say(f"{sum(up)} of {len(up)} exporters are up")
    if not snapshot.qubes:
        complain("nothing was scraped: no qube is configured or was found")
    return 0 if up and all(up) and fleet.discovery_error is None else 1


def _selected(settings: Config, targets: Sequence[Target], names: Sequence[str]) -> frozenset[Target]:
    """The targets called QUBE or QUBE:EXPORTER, or all of them. Raises ConfigError for a name nobody configured."""
    selected: set[Target] = set()
    for name in names:
        matching = {target for target in targets if name in (target.qube, target.name)}
        if not matching:
            raise ConfigError(f"{settings.path}: there is no {name!a} to scrape; `check` lists what is configured")
        selected |= matching
    return frozenset(selected or targets)


def _line(outcome: Outcome, width: int) -> str:
    name = f"{outcome.target.name:{width}}"
    if outcome.reading is None:
        return f"{name}  DOWN  {outcome.error.reason}: {outcome.error}" if outcome.error else f"{name}  DOWN"
    reading = outcome.reading
    dropped = f", {reading.lines_dropped} lines dropped ({reading.complaint})" if reading.lines_dropped else ""
    return f"{name}  up    {reading.samples} samples, {outcome.body_size} bytes, {outcome.seconds:.3f} s{dropped}"


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
