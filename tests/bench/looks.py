# SPDX-License-Identifier: GPL-3.0-or-later
"""What the status page costs, for as many qubes as a machine may have, and the most that its pictures can take."""

import random
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from federator import api, config, views
from federator.errors import RefusedError
from federator.history import SCRAPES, Asked, History
from federator.model import Family, Outcome, QubeOutcome, Reading, Reload
from federator.rows import Filter
from federator.sight import Sight

QUBES = 200
EXPORTERS = ("node", "process", "app")
ROUNDS = 20


def sight() -> Sight:
    """A machine after 60 scrapes. Durations are random, so no line of a picture is short; one qube in 20 is refused."""
    named = "\n".join(f"{name} = {9100 + number}" for number, name in enumerate(EXPORTERS))
    listed = "".join(f"[qubes.qube-{number}]\nexporters = {list(EXPORTERS)}\n" for number in range(QUBES))
    settings = config.parse(f"[exporters]\n{named}\n{listed}", Path("/etc/prometheus-qubes-proxy.toml"))
    chance, history = random.Random(1), History()
    for scrape in range(SCRAPES):
        for number, qube in enumerate(settings.qubes):
            history.note(_outcome(qube, number, chance), 1e9 + 30 * scrape)
    history.note_asked(Asked(1e9 + 30 * SCRAPES, "10.137.0.9", "/metrics", 1.2, 9.5))
    reload = Reload(successful=True, at=1e9)
    return Sight(1e9 + 2000, 1e9, settings, settings.qubes, history, reload, "sys-net", "10.137.0.5:8199")


def _outcome(qube: Any, number: int, chance: random.Random) -> QubeOutcome:
    error = RefusedError("qrexec refused the call: dom0's policy does not allow it") if number % 20 == 0 else None
    reading = None if error else Reading((Family("n", "gauge", b"Help."),) * 40, (), 1234)
    outcomes = tuple(Outcome(target, chance.random(), 57_644, reading, error) for target in qube.targets)
    return QubeOutcome(qube, error is None, chance.random(), outcomes)


def milliseconds(work: Callable[[], Any]) -> float:
    """The median of some rounds."""
    times: list[float] = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def slices(work: Generator[None, None, Any]) -> tuple[Any, float]:
    """What came of it, and the longest slice in milliseconds."""
    longest = 0.0
    while True:
        started = time.perf_counter()
        try:
            next(work)
        except StopIteration as stop:
            return stop.value, max(longest, time.perf_counter() - started) * 1e3
        longest = max(longest, time.perf_counter() - started)


def pages() -> Iterator[str]:
    """The status page and the JSON."""
    seen = sight()
    made, longest = slices(views.make(seen))
    page = views.front(seen, made, Filter(), ())
    text, longest_json = slices(api.targets(seen))
    yield f"| status page, {QUBES} qubes with {len(EXPORTERS)} exporters each | |"
    yield "|---|---|"
    yield f"| size of the page / of the JSON, kB | {len(page) / 1e3:.0f} / {len(text) / 1e3:.0f} |"
    table = milliseconds(lambda: slices(views.make(seen)))
    rest = milliseconds(lambda: views.front(seen, made, Filter(), ()).encode())
    yield f"| making the table, once for each scrape / the page, for each look, ms | {table:.1f} / {rest:.1f} |"
    yield f"| making the JSON, once for each scrape, ms | {milliseconds(lambda: slices(api.targets(seen))):.1f} |"
    yield f"| longest slice of the table / of the JSON, ms | {longest:.1f} / {longest_json:.1f} |"
