# SPDX-License-Identifier: GPL-3.0-or-later
"""What is remembered of the last scrapes."""

import math
import tracemalloc

import pytest

from federator.errors import ExporterUnreachableError, NotRunningError, ScrapeError, TimedOutError
from federator.history import HEAD_FAMILIES, HEAD_HELP, HEAD_NAME, SCRAPES, Asked, History
from federator.model import Exporter, Family, Outcome, Qube, QubeOutcome, Reading, Target
from tests.helpers import target

NODE, APP = target("work", "node", 9100), target("work", "app", 9256)
WORK = Qube("work", "qrexec", (NODE, APP))


def up(of: Target, seconds: float = 0.5, reading: Reading | None = None) -> Outcome:
    """It is up."""
    return Outcome(of, seconds, 100, reading or Reading((), (), 7, 2, "line 3: no value: 'x'"))


def down(of: Target, error: ScrapeError | None = None) -> Outcome:
    """It is down."""
    return Outcome(of, 1.0, error=error or ExporterUnreachableError("refused"))


def scraped(*outcomes: Outcome, up: bool = True, of: Qube = WORK) -> QubeOutcome:
    """One scrape of a qube."""
    return QubeOutcome(of, up, 0.75, outcomes)


def test_the_last_outcome_of_each_target() -> None:
    """One that is up, one that is down; the qube is up, since it answered."""
    history = History()
    history.note(scraped(up(NODE), down(APP)), 10.0)
    node, app, work = history.target(NODE), history.target(APP), history.qube("work")
    assert node is not None
    assert app is not None
    assert work is not None
    assert (node.state, node.at, node.seconds, node.samples, node.body_size) == ("up", 10.0, 0.5, 7, 100)
    assert (node.lines_dropped, node.complaint) == (2, "line 3: no value: 'x'")
    assert (app.state, str(app.error), app.samples) == ("down", "refused", 0)
    assert (work.state, work.seconds, work.error) == ("up", 0.75, None)


def test_since_when() -> None:
    """It changes with the state, and not with the reason."""
    history = History()
    history.note(scraped(up(NODE)), 10.0)
    history.note(scraped(down(NODE)), 20.0)
    history.note(scraped(down(NODE, TimedOutError("late"))), 30.0)
    row = history.target(NODE)
    assert row is not None
    assert (row.first, row.since, row.at, row.state) == (10.0, 20.0, 30.0, "down")
    history.note(scraped(down(NODE, NotRunningError("halted")), up=False), 40.0)
    assert (row.since, row.state) == (40.0, "not_running")
    work = history.qube("work")
    assert work is not None
    assert (work.since, work.state) == (40.0, "not_running")


def test_the_last_sixty_scrapes() -> None:
    """A gap where it was down."""
    history = History()
    for number in range(SCRAPES + 5):
        history.note(scraped(down(NODE) if number == 6 else up(NODE, float(number))), float(number))
    row = history.target(NODE)
    assert row is not None
    assert len(row.durations) == SCRAPES == 60
    assert row.durations[0] == 5.0
    assert math.isnan(row.durations[1])
    assert row.durations[-1] == 64.0


def test_a_scrape_of_some_targets_leaves_the_others() -> None:
    """`?exporter=node` says nothing of the others."""
    history = History()
    history.note(scraped(down(NODE), down(APP)), 10.0)
    version = history.version
    history.note(scraped(up(NODE)), 20.0)
    node, app = history.target(NODE), history.target(APP)
    assert node is not None
    assert app is not None
    assert (node.state, app.state, app.at) == ("up", "down", 10.0)
    assert history.version != version


def test_what_is_gone_is_forgotten() -> None:
    """A target, and a whole qube."""
    history = History()
    history.note(scraped(up(NODE), up(APP)), 10.0)
    history.retain([Qube("work", "qrexec", (NODE,))])
    assert (history.target(NODE) is None, history.target(APP) is None) == (False, True)
    history.retain([])
    assert (history.qube("work"), len(history)) == (None, 0)


def test_the_head_of_a_text_is_cut() -> None:
    """A qube must not fill the memory with what nobody reads."""
    long = Family("n" * 1000, "gauge", b"h" * 4096)
    families = (Family("up", "gauge", b"help"), *[long] * 100)
    history = History()
    history.note(scraped(up(NODE, reading=Reading(families, (), 1))), 10.0)
    row = history.target(NODE)
    assert row is not None
    assert row.head[0] is families[0]
    assert row.head[1] == Family("n" * HEAD_NAME, "gauge", b"h" * HEAD_HELP)
    assert (len(row.head), row.families) == (HEAD_FAMILIES, 101)
    history.note(scraped(down(NODE)), 20.0)
    assert (row.head, row.families) == ((), 0)


@pytest.mark.slow
def test_it_stays_small() -> None:
    """200 qubes with 3 exporters each, 60 scrapes: about a kilobyte for each row."""
    qubes = [
        Qube(f"q{number}", "qrexec", tuple(Target(f"q{number}", Exporter(f"e{port}", port)) for port in (1, 2, 3)))
        for number in range(200)
    ]
    tracemalloc.start()
    try:
        history = History()
        for scrape in range(SCRAPES + 10):
            for qube in qubes:
                reading = Reading((Family("n", None),) * 10, (b"x" * 10_000,), scrape)
                history.note(scraped(*(up(one, 0.1 * scrape, reading) for one in qube.targets), of=qube), float(scrape))
        history.note_asked(Asked(70.0, "127.0.0.1", "/metrics", 0.5, 9.5))
        del reading
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(history) == 600
