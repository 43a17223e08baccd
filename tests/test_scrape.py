# SPDX-License-Identifier: GPL-3.0-or-later
"""Scrapes over the local transport: deadlines, who shares what with whom, and what the log is told."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path

import pytest

from federator import config, host
from federator.counters import Counters
from federator.errors import (
    ExporterUnreachableError,
    ExpositionError,
    StoppingError,
    TimedOutError,
)
from federator.fleet import Fleet
from federator.model import Outcome, Reading, Scrape
from federator.scrape import Scraper, budget
from federator.statelog import StateLog
from federator.text.exposition import Reader
from tests.parts import Exporter, eventually, free_port, toml

MakeExporter = Callable[[bytes], Exporter]
MakeScraper = Callable[..., Scraper]
MakeFleet = Callable[..., Fleet]


@pytest.fixture
async def scraper(tmp_path: Path) -> AsyncIterator[MakeScraper]:
    """Makes scrapers of local qubes, and closes them."""
    host.watch_children()
    made: list[Scraper] = []

    def make(of: dict[str, dict[str, int]], scrape: str = "") -> Scraper:
        settings = config.parse(toml(of, transport="local", scrape=scrape), tmp_path / "x.toml")
        counters = Counters()
        made.append(Scraper(Fleet(settings, counters), StateLog(), counters))
        return made[-1]

    yield make
    for one in made:
        await one.fleet.close()


async def collect(of: Scraper, seconds: float = 20.0, *exporters: str) -> dict[str, Outcome]:
    """The outcomes by the exporter's name."""
    wanted = {one for one in of.fleet.targets if not exporters or one.exporter.name in exporters}
    snapshot = await of.collect(wanted, seconds)
    return {outcome.target.exporter.name: outcome for outcome in snapshot.outcomes}


def started(exporter: Exporter, requests: int = 1) -> Callable[[], bool]:
    """Has the exporter been asked so often?"""
    return lambda: len(exporter.requests) >= requests


async def test_what_a_target_was_like_is_forgotten_when_it_goes(scraper: MakeScraper) -> None:
    """A qube that is gone holds no memory, and one that failed is read anew."""
    with Exporter(b"m 1\n") as exporter:
        of = scraper({"sys-net": {"x": exporter.port}})
        (one,) = of.fleet.targets
        await collect(of)
        assert of.fleet.remembers(one)
        exporter.body = b"<html>\n"
        await collect(of)
        assert not of.fleet.remembers(one)
        exporter.body = b"m 2\n"
        await collect(of)
        assert of.fleet.remembers(one)
    await collect(of)
    assert not of.fleet.remembers(one)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 9.5),
        ("4", 3.5),
        ("1.5", 1.0),
        ("0.4", 0.2),
        ("1e9", 599.5),
        ("0", 9.5),
        ("-1", 9.5),
        ("nan", 9.5),
        ("inf", 9.5),
        ("ten", 9.5),
        ("", 9.5),
    ],
)
def test_the_time_there_is(header: str | None, seconds: float) -> None:
    """The scraper's timeout less the offset, the configured one where it says nothing sensible."""
    assert budget(header, Scrape(timeout=10.0, timeout_offset=0.5)) == pytest.approx(seconds)


async def test_two_scrapers_at_once_share_one_asking(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """The exporter is asked once, and both have its answer."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    shared = scraper({"work": {"slow": slow.port}})
    both = [asyncio.create_task(collect(shared)) for _ in range(2)]
    await asyncio.to_thread(eventually, "the exporter is asked", started(slow))
    slow.hold.set()
    first, second = await asyncio.gather(*both)
    assert len(slow.requests) == 1
    assert first["slow"] is second["slow"]
    await collect(shared)
    assert len(slow.requests) == 2, "nobody gets old values"


async def test_scrapers_of_different_targets_do_not_share(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """Each is asked for what somebody wants to know."""
    a, b = exporter(b"a 1\n"), exporter(b"b 1\n")
    of = scraper({"work": {"a": a.port, "b": b.port}})
    one, everything = await asyncio.gather(collect(of, 20.0, "a"), collect(of))
    assert (set(one), set(everything)) == ({"a"}, {"a", "b"})
    assert len(b.requests) == 1


async def test_a_partial_page_in_time(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """What has not come is late; what has is there, and told as it comes."""
    slow, fast = exporter(b"slow 1\n"), exporter(b"fast 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port}, "personal": {"fast": fast.port}})
    told: list[Outcome] = []
    qubes = (await of.collect(frozenset(of.fleet.targets), 2.0, told.append)).qubes
    assert [(qube.qube.name, qube.up) for qube in qubes] == [("work", True), ("personal", True)]
    (late,) = qubes[0].outcomes
    assert late.reading is None
    assert isinstance(late.error, TimedOutError)
    assert [outcome.target.exporter.name for outcome in told] == ["fast", "slow"]


async def test_an_impatient_scraper_does_not_end_the_channels_of_all(
    scraper: MakeScraper, exporter: MakeExporter
) -> None:
    """Its page goes out in its time; the next scraper finds the same call open."""
    slow = exporter(b"slow 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port}})
    assert (await collect(of, 0.5))["slow"].error is not None
    patient = asyncio.create_task(collect(of))
    slow.hold.set()
    assert (await patient)["slow"].reading is not None
    assert (await collect(of))["slow"].reading is not None
    assert [call.opened for call in of.fleet.channel("work").calls()] == [1]


async def test_answers_are_let_go(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """No text of a scrape is kept when nobody waits for it any more, beyond what the memory of texts has."""
    of = scraper({"work": {"good": exporter(b"m 1\n").port, "bad": exporter(b"m 1\nm 1\n").port}})
    snapshot = await of.collect(of.fleet.targets, 20.0)
    assert all(outcome.reading and outcome.reading.blocks for outcome in snapshot.outcomes)
    assert of.last is not None
    assert [len(outcome.reading.blocks) for outcome in of.last.outcomes if outcome.reading] == [0, 0]
    assert [outcome.reading.samples for outcome in of.last.outcomes if outcome.reading] == [1, 1]
    assert "asking" not in repr(of)


async def test_whoever_waits_when_the_daemon_stops_is_told(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """Half a page would look like qubes that went down."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port}})
    waiting = asyncio.create_task(collect(of))
    await asyncio.to_thread(eventually, "the exporter is asked", started(slow))
    await of.fleet.close()
    with pytest.raises(StoppingError):
        await waiting
    with pytest.raises(StoppingError):
        await collect(of)
    assert len(slow.requests) == 1, "nothing is asked any more"


async def test_a_bug_in_reading_costs_one_target(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback; the other target has its page."""
    read = Reader.read

    def buggy(self: Reader, body: bytes) -> Generator[None, None, Reading]:
        if body.startswith(b"bad"):
            raise ZeroDivisionError
        return read(self, body)

    monkeypatch.setattr(Reader, "read", buggy)
    outcomes = await collect(scraper({"work": {"bad": exporter(b"bad 1\n").port, "good": exporter(b"good 1\n").port}}))
    assert isinstance(outcomes["bad"].error, ExpositionError)
    assert outcomes["good"].reading is not None
    assert "ZeroDivisionError" in caplog.text


async def test_the_body_size_limit_of_the_configuration(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """The service is told, and says so."""
    outcomes = await collect(
        scraper({"work": {"large": exporter(b"m 1\n" * 1000).port}}, scrape='body_size_limit = "1KiB"')
    )
    error = outcomes["large"].error
    assert error is not None
    assert error.reason == "body_size_limit"
    assert "1024 bytes" in str(error)


async def test_a_qube_without_exporters_that_answer_is_up(scraper: MakeScraper) -> None:
    """Its service answered, if only that nobody listens."""
    of = scraper({"work": {"none": free_port()}})
    (qube,) = (await of.collect(frozenset(of.fleet.targets), 20.0)).qubes
    assert qube.up
    assert isinstance(qube.outcomes[0].error, ExporterUnreachableError)
