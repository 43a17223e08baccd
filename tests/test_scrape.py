# SPDX-License-Identifier: GPL-3.0-or-later
"""Scrapes over the local transport: deadlines, who shares what with whom, and what the log is told."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import replace
from pathlib import Path

import pytest

from federator import config, daemon
from federator.counters import Counters
from federator.errors import (
    ExporterUnreachableError,
    ExpositionError,
    HttpError,
    ScrapeError,
    StoppingError,
    TimedOutError,
)
from federator.model import Answer, Config, Outcome, Qube, QubeOutcome, Reading, Scrape
from federator.scrape import Scraper, Turns, _Chronicle, budget, check
from federator.text.exposition import Reader
from tests.helpers import target
from tests.parts import Exporter, eventually, free_port, toml

MakeExporter = Callable[[bytes], Exporter]
MakeScraper = Callable[..., Scraper]


@pytest.fixture
async def scraper(tmp_path: Path) -> AsyncIterator[MakeScraper]:
    """Makes scrapers of local qubes, and closes them."""
    daemon.watch_children()
    made: list[Scraper] = []

    def make(of: dict[str, dict[str, int]], scrape: str = "") -> Scraper:
        settings = config.parse(toml(of, transport="local", scrape=scrape), tmp_path / "x.toml")
        made.append(Scraper(settings, Counters()))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def collect(of: Scraper, seconds: float = 20.0, *exporters: str) -> dict[str, Outcome]:
    """The outcomes by the exporter's name."""
    settings: Config = of.config
    wanted = {one for one in settings.targets if not exporters or one.exporter.name in exporters}
    qubes = await of.collect(wanted, seconds)
    return {outcome.target.exporter.name: outcome for qube in qubes for outcome in qube.outcomes}


def started(exporter: Exporter, requests: int = 1) -> Callable[[], bool]:
    """Has the exporter been asked so often?"""
    return lambda: len(exporter.requests) >= requests


async def test_what_a_target_was_like_is_forgotten_when_it_goes(scraper: MakeScraper) -> None:
    """A qube that is gone holds no memory, and one that failed is read anew."""
    with Exporter(b"m 1\n") as exporter:
        of = scraper({"sys-net": {"x": exporter.port}})
        (one,) = of.config.targets
        await collect(of)
        assert of._memory.recall(one) is not None
        exporter.body = b"<html>\n"
        await collect(of)
        assert of._memory.recall(one) is None
        exporter.body = b"m 2\n"
        await collect(of)
        assert of._memory.recall(one) is not None
    await collect(of)
    assert of._memory.recall(one) is None


async def test_a_qube_that_leaves_while_it_is_read_holds_no_memory(scraper: MakeScraper) -> None:
    """Nor does the plan of a page that it was on."""
    with Exporter(b"m 1\n") as exporter:
        of = scraper({"sys-net": {"x": exporter.port}})
        (one,) = of.config.targets
        merger = of.merger
        exporter.hold.clear()
        collecting = asyncio.create_task(of.collect({one}, 20.0))
        await asyncio.to_thread(eventually, "it is asked", started(exporter))
        of.config = replace(of.config, qubes=())
        of._follow({"other": "Running"})
        exporter.hold.set()
        ((outcome,),) = [qube.outcomes for qube in await collecting]
        assert outcome.reading is not None
        await asyncio.wait(of._tasks) if of._tasks else None
        assert of._memory.recall(one) is None
        assert of.merger is not merger


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
    qubes = await of.collect(frozenset(of.config.targets), 2.0, told.append)
    assert [(qube.qube.name, qube.up) for qube in qubes] == [("work", False), ("personal", True)]
    (late,) = qubes[0].outcomes
    assert late.reading is None
    assert isinstance(late.error, TimedOutError)
    assert [outcome.target.exporter.name for outcome in told] == ["fast"]


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
    assert b"qubes_proxy_qrexec_calls_total 1.0\n" in of._counters.page()


async def test_answers_are_let_go(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """Nothing of a scrape is kept when nobody waits for it any more."""
    of = scraper({"work": {"node": exporter(b"m 1\n").port}})
    await collect(of)
    assert not of._asked


async def test_whoever_waits_when_the_daemon_stops_is_told(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """Half a page would look like qubes that went down."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port}})
    waiting = asyncio.create_task(collect(of))
    await asyncio.to_thread(eventually, "the exporter is asked", started(slow))
    await of.close()
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


async def test_large_texts_take_turns_with_small_ones() -> None:
    """A slice of one, a slice of the next; and sockets between them."""
    order = []

    def work(name: str, slices: int) -> Generator[None, None, str]:
        for _ in range(slices):
            order.append(name)
            yield
        return name

    async def sockets() -> None:
        while order.count("large") < 4:
            order.append("sockets")
            await asyncio.sleep(0)

    turns = Turns()
    large, small, _ = await asyncio.gather(turns.take(work("large", 4)), turns.take(work("small", 2)), sockets())
    assert (large, small) == ("large", "small")
    assert [name for name in order if name != "sockets"][:4] == ["large", "small", "large", "small"]
    pairs = itertools.pairwise(order[: order.index("small", order.index("small") + 1)])
    assert all("sockets" in pair for pair in pairs), "two slices, and no turn for the sockets between them"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (503, b"gone \x1b[2J", HttpError),
        (404, b"", HttpError),
        (204, b"", HttpError),
        (0, b"timed out", TimedOutError),
        (0, b"Connection refused", ExporterUnreachableError),
        (0, b"", ExporterUnreachableError),
        (0, b"\xff", ExporterUnreachableError),
    ],
)
def test_what_is_no_answer_of_an_exporter_that_is_up(status: int, body: bytes, error: type[ScrapeError]) -> None:
    """Each with its reason, and nothing of the qube's bytes as they are."""
    with pytest.raises(error) as failed:
        check(Answer(port=9100, status=status, body=body, seconds=0.1, content_type="-"), 100)
    assert str(failed.value).isprintable()


def outcome(*errors: ScrapeError | None, up: bool = True, dropped: int = 0) -> QubeOutcome:
    """A qube with an exporter for each error, or for each None."""
    targets = [target(exporter=f"e{number}") for number in range(len(errors))]
    reading = Reading(families=(), blocks=(), samples=1, lines_dropped=dropped, complaint="line 1: bad")
    return QubeOutcome(
        qube=Qube(name="work", transport="qrexec", targets=tuple(targets)),
        up=up,
        seconds=0.1,
        outcomes=tuple(
            Outcome(target=one, seconds=0.1, error=error, reading=None if error else reading)
            for one, error in zip(targets, errors, strict=True)
        ),
    )


def test_the_log_is_told_of_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    """A qube going down once, with its reason, and not its exporters; once when it is back."""
    caplog.set_level(logging.INFO)
    chronicle = _Chronicle()
    late, refused = TimedOutError("late"), ExporterUnreachableError("refused")
    for one in (outcome(None), outcome(late, up=False), outcome(late, up=False), outcome(None), outcome(None)):
        chronicle.write(one)
    for one in (outcome(None, refused), outcome(None, refused), outcome(None, None)):
        chronicle.write(one)
    for dropped in (2, 3, 0, 1):
        chronicle.write(outcome(None, dropped=dropped))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "qube is down"),
        ("INFO", "qube is back"),
        ("WARNING", "exporter is down"),
        ("INFO", "exporter is back"),
        ("WARNING", "lines dropped that Prometheus would not take"),
        ("WARNING", "lines dropped that Prometheus would not take"),
    ]
    assert vars(caplog.records[0])["reason"] == "timeout"
    assert vars(caplog.records[0])["qube"] == "work"
    assert vars(caplog.records[2])["exporter"] == "e1"


async def test_a_successor_takes_over_what_is_the_same(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """A reload: the open call of a qube that did not change serves on; one that did is closed."""
    port = exporter(b"m 1\n").port
    old = scraper({"work": {"node": port}})
    await collect(old)
    new = Scraper(old.config, old._counters, previous=old)
    await old.retire()
    assert (await collect(new))["node"].reading is not None
    assert b"qubes_proxy_qrexec_calls_total 1.0\n" in new._counters.page()
    await new.close()


async def test_a_qube_without_exporters_that_answer_is_up(scraper: MakeScraper) -> None:
    """Its service answered, if only that nobody listens."""
    of = scraper({"work": {"none": free_port()}})
    (qube,) = await of.collect(frozenset(of.config.targets), 20.0)
    assert qube.up
    assert isinstance(qube.outcomes[0].error, ExporterUnreachableError)
