# SPDX-License-Identifier: GPL-3.0-or-later
"""Scrapes over the local transport: deadlines, who shares what with whom, and what the log is told."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from federator import config, host
from federator.call import Call
from federator.channel import Channel
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
from federator.wire import Version2
from tests.helpers import SERVICE
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
        ("1e9", 19.5),
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

    def buggy(self: Reader, body: bytes, now: float) -> Generator[None, None, Reading]:
        if body.startswith(b"bad"):
            raise ZeroDivisionError
        return read(self, body, now)

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


async def test_an_unexpected_exception_costs_one_scrape_of_one_qube(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of ours is logged with its traceback, the others have their page, and the next scrape asks again."""
    of = scraper({"work": {"a": exporter(b"a 1\n").port}, "personal": {"b": exporter(b"b 1\n").port}})
    ask = Channel.ask

    async def buggy(self: Channel, *ports: Any, **more: Any) -> None:
        if self.qube.name == "work":
            raise ZeroDivisionError
        await ask(self, *ports, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "ask", buggy)
        outcomes = await collect(of)
    assert outcomes["a"].error is not None
    assert outcomes["a"].error.reason == "closed"
    assert "a bug in the proxy" in str(outcomes["a"].error)
    assert outcomes["b"].reading is not None
    assert "ZeroDivisionError" in caplog.text
    assert (await collect(of))["a"].reading is not None


async def test_an_unexpected_exception_in_the_middle_of_a_call_ends_that_call(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody knows what the service would say next; the scrape does not wait for its deadline."""
    of = scraper({"work": {"a": exporter(b"a 1\n").port}})
    await collect(of)
    with monkeypatch.context() as patch:
        patch.setattr(Version2, "receive", lambda *_: 1 / 0)
        error = (await collect(of, 1000.0))["a"].error
    assert error is not None
    assert "a bug in the proxy" in str(error)
    assert "ZeroDivisionError" in caplog.text
    of.fleet.reconfigure(of.fleet.config)  # or it would back off
    assert (await collect(of))["a"].reading is not None
    assert [call.opened for call in of.fleet.channel("work").calls()] == [1], "a new slot, and one call in it"


async def test_a_patient_scraper_has_its_own_deadline(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """It shares with an impatient one, is not told `timeout` when that one is, and the call stays."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port}}, scrape='timeout = "600ms"')
    impatient = asyncio.create_task(collect(of, 0.5))
    await asyncio.to_thread(eventually, "it is asked", started(slow))
    patient = asyncio.create_task(collect(of, 30.0))
    assert (await impatient)["slow"].error is not None
    await asyncio.to_thread(eventually, "it is asked again", started(slow, 2))
    assert not patient.done()
    slow.hold.set()
    assert (await patient)["slow"].reading is not None
    (call,) = of.fleet.channel("work").calls()
    assert (call.opened, call.failures) == (1, 0)


# Greets, and then says nothing; it stays until the end of its input.
SILENT = "#!/bin/sh\nread -r greeting\necho =2\nexec cat >/dev/null\n"


async def test_a_silent_qube_is_given_up_at_the_longest_deadline(tmp_path: Path, exporter: MakeExporter) -> None:
    """An impatient scraper has its page in its time; the call ends when the last one that waits has no time left."""
    service = tmp_path / "silent"
    service.write_text(SILENT, encoding="utf-8")
    service.chmod(0o755)
    text = toml(
        {"work": {"x": exporter(b"m 1\n").port}}, transport="local", scrape='timeout = "100ms"\ntimeout_offset = "0s"'
    )
    settings = config.parse(text.replace(str(SERVICE), str(service)), tmp_path / "x.toml")
    host.watch_children()
    counters = Counters()
    fleet = Fleet(settings, counters)
    of = Scraper(fleet, StateLog(), counters)
    first, second = asyncio.create_task(collect(of, 0.3)), asyncio.create_task(collect(of, 2.0))
    late = (await first)["x"]
    assert isinstance(late.error, TimedOutError)
    (call,) = fleet.channel("work").calls()
    assert (call.open_seconds is not None, call.failures) == (True, 0), "the second one still waits"
    assert isinstance((await second)["x"].error, TimedOutError)
    await asyncio.sleep(0.1)
    (call,) = fleet.channel("work").calls()
    assert (call.open_seconds, call.failures) == (None, 1)
    await fleet.close()


async def test_what_was_late_for_one_is_asked_anew_for_a_patient_one(
    scraper: MakeScraper, exporter: MakeExporter
) -> None:
    """Also where it comes after the exporter was late, while others still wait for another qube."""
    slow, slower = exporter(b"m 1\n"), exporter(b"m 2\n")
    slow.hold.clear()
    slower.hold.clear()
    of = scraper({"work": {"slow": slow.port}, "personal": {"slower": slower.port}})
    (work, personal) = of.fleet.targets
    waits = asyncio.create_task(of.collect({personal}, 20.0))
    impatient = asyncio.create_task(of.collect({work, personal}, 0.2))
    assert all(outcome.error for outcome in (await impatient).outcomes)
    patient = asyncio.create_task(of.collect({work}, 20.0))
    slow.hold.set()
    assert (await patient).outcomes[0].reading is not None
    slower.hold.set()
    await waits


async def test_no_answer_is_older_than_the_time_of_sharing(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scraper that comes later than SHARE_SECONDS after the start of another one's asking has answers of its own."""
    monkeypatch.setattr("federator.request.SHARE_SECONDS", 0.05)
    fast, slow = exporter(b"m 1\n"), exporter(b"m 2\n")
    slow.hold.clear()
    of = scraper({"work": {"fast": fast.port}, "personal": {"slow": slow.port}})
    first = asyncio.create_task(collect(of))
    await asyncio.to_thread(eventually, "both are asked", lambda: fast.requests and slow.requests)
    await asyncio.sleep(0.1)
    second = asyncio.create_task(collect(of))
    await asyncio.to_thread(eventually, "it is asked anew", started(fast, 2))
    slow.hold.set()
    outcomes = await asyncio.gather(first, second)
    assert len(slow.requests) == 2
    assert outcomes[0]["fast"] is not outcomes[1]["fast"]


async def test_the_duration_is_the_exporters_own(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What opening the call takes is not its time; the service's clock says what is. The qube's time has both."""
    fast = exporter(b"m 1\n")
    real = Call.open

    async def slowly(self: Call[Any], *words: Any) -> None:
        await asyncio.sleep(0.7)
        await real(self, *words)

    monkeypatch.setattr(Call, "open", slowly)
    of = scraper({"work": {"fast": fast.port}})
    (qube,) = (await of.collect(of.fleet.targets, 20.0)).qubes
    assert qube.outcomes[0].seconds <= qube.seconds - 0.7


async def test_reading_has_a_time_limit(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that takes for ever to be read is late, and holds up nobody."""

    def endless(_: Reader, body: bytes, _now: float) -> Generator[None, None, Reading]:
        while body:
            yield
        raise AssertionError

    of = scraper({"work": {"x": exporter(b"m 1\n").port}}, scrape='timeout = "300ms"\ntimeout_offset = "0s"')
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", endless)
        error = (await collect(of, 0.3))["x"].error
    assert isinstance(error, TimedOutError)
    await asyncio.sleep(0.1)
    assert (await collect(of))["x"].reading is not None


async def test_no_error_that_is_kept_holds_what_its_frames_held(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """A traceback keeps every frame that it went through alive, and so whole texts."""
    web_page = exporter(b"<html>\n" * 1000)
    of = scraper({"work": {"page": web_page.port, "none": free_port()}})
    await collect(of)
    gc.collect()
    kept = [
        one.tb_frame.f_code.co_qualname
        for one in gc.get_objects()
        if isinstance(one, TracebackType) and "/federator/" in one.tb_frame.f_code.co_filename
    ]
    assert kept == []


async def test_scrapers_who_share_all_answers_share_the_snapshot(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """And with it the page. A narrowed one is another, and is not the last scrape of everything."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port}, "personal": {"none": free_port()}})
    everything = of.fleet.targets
    collecting = [asyncio.create_task(of.collect(wanted, 20.0)) for wanted in (everything, everything, everything[1:])]
    await asyncio.to_thread(eventually, "it is asked", started(slow))
    slow.hold.set()
    first, second, narrowed = await asyncio.gather(*collecting)
    assert first is second
    assert first is not narrowed
    assert of.last is not None
    assert of.last.at == first.at
    assert [len(one.outcomes) for one in (first, narrowed, of.last)] == [2, 1, 2]
