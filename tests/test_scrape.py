# SPDX-License-Identifier: GPL-3.0-or-later
"""Scrapes over the local transport: deadlines, who shares what with whom, and what the log is told."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federator import config, host, reasons
from federator.call import Call
from federator.channel import Channel
from federator.cost import SLOW_SECONDS
from federator.counters import Counters
from federator.errors import (
    ExporterUnreachableError,
    ExpositionError,
    ScrapeError,
    StoppingError,
    TimedOutError,
)
from federator.fleet import Fleet
from federator.model import Answer, CallState, Outcome, Reading, Scrape
from federator.pace import Pace
from federator.request import Request
from federator.scrape import LEAST_SECONDS, Scraper, budget, deadline_of
from federator.slot import Slot
from federator.statelog import StateLog
from federator.text.exposition import Reader
from federator.unexpected import Unexpected
from federator.wire import Version2
from tests.helpers import SERVICE, Clock, soon
from tests.parts import PATIENCE_SECONDS, Exporter, eventually, free_port, toml

MakeExporter = Callable[[bytes], Exporter]
MakeScraper = Callable[..., "CountedScraper"]
MakeFleet = Callable[..., Fleet]


class CountedScraper(Scraper):
    """A scraper whose counters a test can read."""

    def __init__(self, fleet: Fleet, counters: Counters) -> None:
        super().__init__(fleet, StateLog(), counters)
        self.counters = counters


@pytest.fixture
async def scraper(tmp_path: Path) -> AsyncIterator[MakeScraper]:
    """Makes scrapers of local qubes, and closes them."""
    host.watch_children()
    made: list[CountedScraper] = []

    def make(
        of: dict[str, dict[str, int]], scrape: str = "", service: Path = SERVICE, own: dict[str, str] | None = None
    ) -> CountedScraper:
        text = toml(of, transport="local", scrape=scrape).replace(str(SERVICE), str(service))
        for name, keys in (own or {}).items():
            text = re.sub(rf'^"{name}" = (\d+)$', rf'"{name}" = {{ port = \1, {keys} }}', text, flags=re.MULTILINE)
        counters = Counters()
        fleet = Fleet(config.parse(text, tmp_path / "x.toml"), counters)
        made.append(CountedScraper(fleet, counters))
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


@pytest.mark.slow
async def test_a_partial_page_in_time(scraper: MakeScraper, exporter: MakeExporter) -> None:
    """What has not come is late; what has is there, and told as it comes."""
    slow, fast = exporter(b"slow 1\n"), exporter(b"fast 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port}, "personal": {"fast": fast.port}})
    told: list[Outcome] = []
    qubes = (await of.collect(frozenset(of.fleet.targets), 2.0, told.append)).qubes
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


async def test_a_scraper_that_waits_when_the_daemon_stops_is_told(scraper: MakeScraper, exporter: MakeExporter) -> None:
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


async def test_an_exporter_with_a_time_of_its_own_does_not_make_the_page_wait(
    scraper: MakeScraper, exporter: MakeExporter
) -> None:
    """The others have the whole time, and the call stays: its service said in time that it was late."""
    quick, slow = exporter(b"q 1\n"), exporter(b"s 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port, "quick": quick.port}}, own={"slow": 'timeout = "300ms"'})
    for _ in range(2):
        async with asyncio.timeout(PATIENCE_SECONDS):
            outcomes = await collect(of, 1000.0)
        assert outcomes["quick"].reading is not None
        assert isinstance(outcomes["slow"].error, TimedOutError)
    slow.hold.set()
    slow.body = b"s 2\n"
    assert (await collect(of, 1000.0))["slow"].reading is not None
    assert [(call.opened, call.failures) for call in of.fleet.channel("work").calls()] == [(1, 0)]


async def test_a_bug_in_reading_costs_one_target(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback; the other target has its page."""
    read = Reader.read

    def buggy(self: Reader, body: bytes, now: float, _: str) -> Generator[None, None, Reading]:
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


@pytest.mark.parametrize(("owner", "name"), [(Version2, "receive"), (Reader, "read")])
async def test_a_lack_of_memory_costs_one_target(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    """It is told by who sees to it that memory is let go; and it is no bug, with a traceback for each text."""
    of = scraper({"work": {"a": exporter(b"a 1\n").port}, "personal": {"b": exporter(b"b 1\n").port}})
    loop = asyncio.get_running_loop()
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    work = getattr(owner, name)

    def without_memory(self: Any, data: bytes, *more: Any) -> Any:
        if b"a 1" in data:
            raise MemoryError
        return work(self, data, *more)

    monkeypatch.setattr(owner, name, without_memory)
    outcomes = await collect(of)
    loop.set_exception_handler(None)
    assert "scrape.memory_limit" in str(outcomes["a"].error)
    assert outcomes["b"].reading is not None
    assert [type(context["exception"]) for context in told] == [MemoryError]


@pytest.mark.parametrize(("owner", "name"), [(Channel, "ask"), (Pace, "reserve"), (Slot, "ask"), (Version2, "ask")])
async def test_a_lack_of_memory_in_asking_costs_one_qube(
    scraper: MakeScraper,
    exporter: MakeExporter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    name: str,
) -> None:
    """It was a bug of ours, with a traceback; it is one line, and the same reason as where a text is read."""
    of = scraper({"work": {"a": exporter(b"a 1\n").port}, "personal": {"b": exporter(b"b 1\n").port}})
    port, loop, work = of.fleet.targets[0].exporter.endpoint, asyncio.get_running_loop(), getattr(owner, name)

    def without_memory(self: Any, *words: Any, **more: Any) -> Any:
        said = [*words, *more.values()]
        if any(port in (getattr(one, "owed", None) or (one if isinstance(one, Collection) else ())) for one in said):
            raise MemoryError
        return work(self, *words, **more)

    loop.set_exception_handler(Unexpected([]).handle)
    with monkeypatch.context() as short:
        short.setattr(owner, name, without_memory)
        outcomes = await collect(of)
    loop.set_exception_handler(None)
    assert "scrape.memory_limit" in str(outcomes["a"].error)
    assert outcomes["b"].reading is not None
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert told.getMessage().startswith("memory is short")
    assert told.exc_info is None
    of.fleet.channel("work").forget()
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


@pytest.mark.slow
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


def service(folder: Path, text: str) -> Path:
    """A service with this text."""
    path = folder / "service"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def call_of(of: Scraper) -> CallState:
    """The one call to the qube `work`."""
    (call,) = of.fleet.channel("work").calls()
    return call


# Greets, and does not answer; it stays until the end of its input. A file tells that it was asked.
SILENT = '#!/bin/sh\nread -r greeting\necho =2\nread -r request\n: >"$0.asked"\nexec cat >/dev/null\n'


async def test_a_silent_qube_is_given_up_at_the_longest_deadline(
    scraper: MakeScraper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An impatient scraper has its page in its time; the call ends when the last one that waits has no time left."""
    clock = Clock(monkeypatch)
    of = scraper({"work": {"x": 9100}}, service=service(tmp_path, SILENT))
    first, second = asyncio.create_task(collect(of, 1000.0)), asyncio.create_task(collect(of, 2000.0))
    await soon("it is asked", (tmp_path / "service.asked").exists)
    clock.advance(1000.0)
    assert isinstance((await first)["x"].error, TimedOutError)
    assert (call_of(of).open_seconds is not None, call_of(of).failures) == (True, 0), "the second one still waits"
    clock.advance(1000.0)
    assert isinstance((await second)["x"].error, TimedOutError)
    await soon("the call is ended", lambda: call_of(of).open_seconds is None)
    assert call_of(of).failures == 1


async def test_an_impatient_scraper_of_a_silent_qube_does_not_end_its_call(
    scraper: MakeScraper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call ends when the configured timeout is over, and not when that scraper goes: others may get an answer."""
    clock = Clock(monkeypatch)
    of = scraper({"work": {"x": 9100}}, service=service(tmp_path, SILENT), scrape='timeout = "500s"')
    impatient = asyncio.create_task(collect(of, 50.0))
    await soon("it is asked", (tmp_path / "service.asked").exists)
    clock.advance(50.0)
    assert isinstance((await impatient)["x"].error, TimedOutError)
    clock.advance(400.0)
    await asyncio.sleep(0.1)
    assert (call_of(of).open_seconds is not None, call_of(of).failures) == (True, 0)
    clock.advance(100.0)
    await soon("the call is ended", lambda: call_of(of).open_seconds is None)
    assert call_of(of).failures == 1


@pytest.mark.parametrize(
    ("seconds", "timeout", "wanted_by", "ends_at"),
    [
        (0.2, 10.0, 100.0 + LEAST_SECONDS, 109.5),
        (0.2, 2.0, 101.5, 101.5),
        (8.0, 10.0, 108.0, 109.5),
        (15.0, 10.0, 115.0, 115.0),
    ],
    ids=["impatient", "impatient, where little time is configured", "as most are", "patient"],
)
def test_the_deadline_of_a_request(seconds: float, timeout: float, wanted_by: float, ends_at: float) -> None:
    """Exporters have LEAST_SECONDS however short the time of a scraper is; a call has the configured timeout."""
    deadline = deadline_of(100.0 + seconds, 100.0, Scrape(timeout=timeout, timeout_offset=0.5))
    assert deadline.wanted_by == pytest.approx(wanted_by)
    assert deadline.ends_at == pytest.approx(ends_at)


async def test_the_log_says_what_pages_say(
    scraper: MakeScraper, exporter: MakeExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that comes when the page is gone is no news: there is one line for the page, none for the answer."""
    caplog.set_level("INFO")
    slow = exporter(b"m 1\n")
    of = scraper({"work": {"slow": slow.port}}, scrape='timeout = "400ms"\ntimeout_offset = "300ms"')
    for _ in range(3):
        slow.hold.clear()
        scraping = asyncio.create_task(of.collect(of.fleet.targets, 0.25))
        await asyncio.to_thread(eventually, "the exporter is asked", started(slow))
        (outcome,) = (await scraping).outcomes
        assert outcome.error is not None
        slow.hold.set()
        await soon("the scrape is over", lambda: "asking" not in repr(of))
    assert caplog.text.count("is down") == 1
    assert "is back" not in caplog.text
    (outcome,) = (await of.collect(of.fleet.targets, 20.0)).outcomes
    assert outcome.error is None
    assert caplog.text.count("is back") == 1


async def test_one_impatient_scraper_does_not_make_an_exporter_down(
    scraper: MakeScraper, exporter: MakeExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no text of a slow exporter; but the exporter answers, and neither log nor counters say anything else."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    of = scraper({"work": {"slow": slow.port}})
    assert (await collect(of, 0.1))["slow"].error is not None
    slow.hold.set()
    await soon("its answer is read", lambda: of.fleet.remembers(of.fleet.targets[0]))
    await soon("the scrape is over", lambda: "asking" not in repr(of))
    assert "is down" not in caplog.text
    assert b"exporter_failures_total{" not in of.counters.page()


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


@pytest.mark.slow
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


@pytest.mark.parametrize("patience", [100.0, 1000.0], ids=["others wait longer", "it is given up"])
async def test_reading_has_a_time_limit(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """A text that takes for ever to be read is late, and holds up nobody."""

    def endless(_: Reader, body: bytes, *__: object) -> Generator[None, None, Reading]:
        begun.append(body)
        while body:
            yield
        raise AssertionError

    clock = Clock(monkeypatch)
    begun: list[bytes] = []
    of = scraper({"work": {"x": exporter(b"m 1\n").port}}, scrape='timeout = "500s"')
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", endless)
        collecting = asyncio.create_task(collect(of, patience))
        await soon("it is read", lambda: begun)
        clock.advance(patience)
        error = (await collecting)["x"].error
        assert isinstance(error, reasons.LateTextError), "it came: nobody asks whether the qube is paused"
        clock.advance(1000.0)
        await soon("the reading has ended", lambda: "asking" not in repr(of))
    assert (await collect(of))["x"].reading is not None


async def test_no_error_that_is_kept_holds_what_its_frames_held(
    scraper: MakeScraper, exporter: MakeExporter, kept_tracebacks: Callable[[], list[str]]
) -> None:
    """A traceback keeps every frame that it went through alive, and so whole texts."""
    web_page = exporter(b"<html>\n" * 1000)
    of = scraper({"work": {"page": web_page.port, "none": free_port()}})
    await collect(of)
    assert kept_tracebacks() == []


CRASHES = "#!/bin/sh\nexit 3\n"
# Does not greet, and does not end when its input does.
GARBAGE = "#!/bin/sh\necho garbage\nexec sleep 1000\n"
# Answers, and then goes on to say what nobody asked for.
UNSOLICITED = """#!/bin/sh
read -r greeting
echo =2
read -r request
printf '9100 200 4 0.1 -\\nm 1\\n'
sleep 0.2
echo garbage
exec cat >/dev/null
"""


@pytest.mark.parametrize(
    "text", [CRASHES, GARBAGE, UNSOLICITED], ids=["a crash", "garbage", "garbage while nobody asks"]
)
async def test_no_error_that_a_call_keeps_holds_what_its_frames_held(
    scraper: MakeScraper, tmp_path: Path, text: str, kept_tracebacks: Callable[[], list[str]]
) -> None:
    """The last error of a qube is told until the next call is made; that may be a long time."""
    of = scraper({"work": {"x": 9100}}, service=service(tmp_path, text))
    outcome = (await collect(of))["x"]
    assert (outcome.error is None) == (text is UNSOLICITED)
    await soon("the call has failed", lambda: call_of(of).open_seconds is None)
    assert kept_tracebacks() == []


async def test_an_exporter_whose_qube_fails_is_forgotten(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its text was like holds no memory until the qube is back."""
    of = scraper({"work": {"x": exporter(b"m 1\n").port}})
    await collect(of)
    assert of.fleet.remembers(of.fleet.targets[0])

    async def fail(_: Channel, request: Request) -> None:
        request.tell_all(request.owed.copy(), TimedOutError("late"))

    monkeypatch.setattr(Channel, "ask", fail)
    await collect(of)
    assert not of.fleet.remembers(of.fleet.targets[0])


class ToldQubes:
    """Stands in for the channels: they tell at once what each qube says, and go on until the test ends them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.said: dict[str, list[Answer | ScrapeError]] = {}  # one for each port, in their order
        self.goes_on = {"work": asyncio.Event(), "personal": asyncio.Event()}
        monkeypatch.setattr(Channel, "ask", lambda channel, request: self._ask(channel.qube.name, request))

    async def _ask(self, qube: str, request: Request) -> None:
        self.asked.append(qube)
        request.deadline.begin(asyncio.get_running_loop().time())
        for port, said in zip(sorted(request.owed), self.said.get(qube, []), strict=False):
            request.tell(port, said)
        await self.goes_on[qube].wait()


async def test_what_was_late_is_asked_anew_while_another_text_is_still_read(
    scraper: MakeScraper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a scraper that waits longer; one that does not shares what there is."""
    told = ToldQubes(monkeypatch)
    told.said["work"] = [TimedOutError("late"), Answer(9200, 200, b"m 1\n", 0.1, "text/plain")]
    told.goes_on["work"].set()
    read, reads_on = Reader.read, asyncio.Event()

    def slowly(self: Reader, body: bytes, now: float, _: str) -> Generator[None, None, Reading]:
        while not reads_on.is_set():
            yield
        return (yield from read(self, body, now))

    monkeypatch.setattr(Reader, "read", slowly)
    of = scraper({"work": {"late": 9100, "large": 9200}})
    collecting = [asyncio.create_task(collect(of, seconds)) for seconds in (20.0, 20.0, 5.0)]
    await soon("it is told", lambda: "1 of 2 done, 3 waiting" in repr(of))
    collecting.append(asyncio.create_task(collect(of, 5.0)))
    await soon("it shares", lambda: "4 waiting" in repr(of))
    assert told.asked == ["work"]
    collecting.append(asyncio.create_task(collect(of, 40.0)))
    await soon("the patient one asks anew", lambda: told.asked == ["work"] * 2)
    reads_on.set()
    await asyncio.gather(*collecting)


async def test_what_was_late_is_asked_anew_while_its_scraper_waits_for_another_qube(
    scraper: MakeScraper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The qube is done, and its outcome is still there to be shared; a scraper that waits longer does not want it."""
    told = ToldQubes(monkeypatch)
    told.said["work"] = [TimedOutError("late")]
    told.goes_on["work"].set()
    of = scraper({"work": {"late": 9100}, "personal": {"other": 9200}})
    collecting = [asyncio.create_task(collect(of, 20.0))]
    await soon("the qube is done", lambda: "work: finished" in repr(of))
    await collect(of, 5.0, "late")
    assert told.asked == ["work", "personal"], "it shares"
    await collect(of, 40.0, "late")
    assert told.asked == ["work", "personal", "work"]
    told.goes_on["personal"].set()
    await asyncio.gather(*collecting)


@pytest.mark.parametrize("halted", [False, True], ids=["there are no qubes", "no qube runs"])
async def test_a_snapshot_for_which_no_qube_was_asked_is_not_shared(
    scraper: MakeScraper, monkeypatch: pytest.MonkeyPatch, *, halted: bool
) -> None:
    """Its outcomes are the same for a long time, but each scrape has its own time, and its own page."""
    of = scraper({"work": {"x": 9100}})
    monkeypatch.setattr(Fleet, "state", lambda *_: "halted")
    if not halted:
        of.fleet.reconfigure(replace(of.fleet.config, qubes=()))
    first = await of.collect(of.fleet.targets, 20.0)
    second = await of.collect(of.fleet.targets, 20.0)
    assert len(first.qubes) == halted
    assert first is not second
    assert of.last is not None
    assert of.last.at == second.at


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


@pytest.mark.slow
async def test_the_time_to_make_and_send_the_page_is_kept_back(
    scraper: MakeScraper, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pages were slow, a scrape waits less for what is missing: the page is complete in the scraper's time."""
    slow, large = exporter(b"s 1\n"), exporter(b"".join(b'm{a="%d"} 1\n' % number for number in range(10_000)))
    slow.hold.clear()
    of = scraper({"work": {"large": large.port}, "personal": {"slow": slow.port}})
    # For 140 kB, by that page, 200 s would have been kept back. So nobody has to wait here.
    monkeypatch.setattr("federator.cost.MOST_SECONDS", 1.0)
    of.cost.note(1_000_000, 1000.0, asyncio.get_running_loop().time() - SLOW_SECONDS)
    large_one, slow_one = (await of.collect(of.fleet.targets, 20.0)).outcomes
    assert large_one.reading is not None
    # Its service would have said so itself before the 20 s are over, in other words.
    assert str(slow_one.error) == str(reasons.late("personal"))
