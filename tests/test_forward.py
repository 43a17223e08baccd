# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches of single exporters: which clients share one, until when, and what an unexpected exception costs."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from federator import config, host
from federator.channel import Channel
from federator.counters import Counters
from federator.errors import ScrapeError, StoppingError, TimedOutError
from federator.fleet import Fleet
from federator.forward import Forwarder
from federator.model import Target
from federator.request import SHARE_SECONDS, Request
from federator.scrape import Scraper
from federator.statelog import StateLog
from tests.helpers import Clock, soon
from tests.parts import Exporter, free_port, toml

MakeExporter = Callable[[bytes], Exporter]


class Parts(NamedTuple):
    """What forwards, and what scrapes the same fleet."""

    fleet: Fleet
    forwarder: Forwarder
    scraper: Scraper

    def target(self, exporter: str) -> Target:
        """The target of the exporter of this name."""
        (found,) = (one for one in self.fleet.targets if one.exporter.name == exporter)
        return found

    def fetch(self, exporter: str, seconds: float = 20.0) -> "asyncio.Task[tuple[str, bytes]]":
        """Begin to fetch the exporter of this name."""
        return asyncio.create_task(self.forwarder.fetch(self.target(exporter), seconds))


MakeParts = Callable[..., Parts]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[MakeParts]:
    """Makes fleets of one local qube with these exporters, and closes them."""
    host.watch_children()
    made: list[Fleet] = []

    def start(scrape: str = "", **ports: int) -> Parts:
        settings = config.parse(toml({"work": ports}, transport="local", scrape=scrape), tmp_path / "x.toml")
        counters, state_log = Counters(), StateLog()
        fleet = Fleet(settings, counters)
        made.append(fleet)
        return Parts(fleet, Forwarder(fleet, state_log, counters), Scraper(fleet, state_log, counters))

    yield start
    for fleet in made:
        await fleet.close()


async def test_an_unexpected_exception_costs_one_fetch(
    make: MakeParts, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of ours is logged with its traceback, that fetch fails at once, and the next one asks again."""
    parts = make(x=exporter(b"m 1\n").port)

    async def buggy(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "ask", buggy)
        async with asyncio.timeout(20):
            with pytest.raises(ScrapeError, match="a bug in the proxy") as failed:
                await parts.fetch("x", 1000.0)
    assert failed.value.reason == "closed"
    assert "ZeroDivisionError" in caplog.text
    assert "Traceback" in caplog.text
    assert (await parts.fetch("x"))[1] == b"m 1\n"


async def test_clients_at_one_time_share_one_fetch(make: MakeParts, exporter: MakeExporter) -> None:
    """The exporter is asked once, however many want its text; who comes later has a text of their own."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    parts = make(x=slow.port)
    fetching = [parts.fetch("x") for _ in range(10)]
    await soon("it is asked", lambda: slow.requests)
    fetching.append(parts.fetch("x"))
    await asyncio.sleep(0)
    slow.hold.set()
    texts = await asyncio.gather(*fetching)
    assert {text for _, text in texts} == {b"m 1\n"}
    assert len(slow.requests) == 1
    slow.body = b"m 2\n"
    assert (await parts.fetch("x"))[1] == b"m 2\n"


async def test_a_patient_client_has_its_own_deadline(make: MakeParts, exporter: MakeExporter) -> None:
    """It shares with an impatient one, and is not told `timeout` when that one is."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    parts = make(x=slow.port, scrape='timeout = "600ms"')
    impatient = parts.fetch("x", 0.5)
    await soon("it is asked", lambda: slow.requests)
    patient = parts.fetch("x", 30.0)
    with pytest.raises(TimedOutError):
        await impatient
    await soon("it is asked again", lambda: len(slow.requests) == 2)
    assert not patient.done()
    slow.hold.set()
    assert (await patient)[1] == b"m 1\n"
    assert [(call.opened, call.failures) for call in parts.fleet.channel("work").calls()] == [(1, 0)]


@pytest.mark.parametrize("answered", [False, True], ids=["not answered yet", "answered"])
async def test_no_text_is_older_than_the_time_of_sharing(
    make: MakeParts, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch, *, answered: bool
) -> None:
    """A client that comes later than SHARE_SECONDS after the exporter was asked has a text of its own."""
    served = exporter(b"m 1\n")
    parts = make(x=served.port)
    clock = Clock(monkeypatch)
    goes_on = asyncio.Event()
    ask = Channel.ask

    async def slowly(self: Channel, request: Request) -> None:
        await ask(self, request)
        await goes_on.wait()  # a moment that lasts: all is told, and the request is not over yet

    monkeypatch.setattr(Channel, "ask", slowly)
    if not answered:
        served.hold.clear()
    first = parts.fetch("x", 100.0)
    await soon("it is asked", lambda: served.requests)
    if answered:
        await first
    clock.advance(SHARE_SECONDS)
    second = parts.fetch("x", 50.0)  # it does not wait longer: what was late for the first one is another matter
    await asyncio.sleep(0)
    goes_on.set()
    served.hold.set()
    assert (await first)[1] == (await second)[1] == b"m 1\n"
    assert len(served.requests) == 2


async def test_what_was_late_for_one_client_is_asked_anew_for_a_patient_one(
    make: MakeParts, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the moment between the answer and the end of the request."""
    parts = make(x=exporter(b"m 1\n").port)
    goes_on = asyncio.Event()
    ask = Channel.ask

    async def late(_: Channel, request: Request) -> None:
        request.tell_all(request.owed.copy(), TimedOutError("late"))
        await goes_on.wait()

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "ask", late)
        with pytest.raises(TimedOutError):
            await parts.fetch("x", 5.0)
        patch.setattr(Channel, "ask", ask)
        with pytest.raises(TimedOutError):
            await parts.fetch("x", 1.0)
        assert (await parts.fetch("x", 20.0))[1] == b"m 1\n"
    goes_on.set()


class Gate:
    """Lets one request of an exporter through at a time."""

    def __init__(self) -> None:
        self._open = threading.Semaphore(0)

    def wait(self) -> None:
        """What the exporter does before it answers."""
        self._open.acquire()

    def set(self) -> None:
        """One more may pass."""
        self._open.release()


async def test_fetches_give_way_to_scrapes(
    make: MakeParts, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is wanted while many fetch its exporter does not wait for all of them."""
    monkeypatch.setattr("federator.request.SHARE_SECONDS", 0.0)  # so none of them share
    one = exporter(b"m 1\n")
    monkeypatch.setattr(one, "hold", Gate())
    parts = make(x=one.port)
    fetches = [parts.fetch("x")]
    await soon("the first one is asked", lambda: len(one.requests) == 1)
    fetches.append(parts.fetch("x"))
    await asyncio.sleep(0)
    page = asyncio.create_task(parts.scraper.collect({parts.target("x")}, 20.0))
    for _ in range(5):  # both wait for their turn
        await asyncio.sleep(0)
    one.hold.set()
    await soon("the next one is asked", lambda: len(one.requests) == 2)
    one.hold.set()
    await soon("it is over", lambda: page.done() or fetches[1].done())
    assert (page.done(), fetches[1].done()) == (True, False)
    one.hold.set()
    await asyncio.gather(*fetches, page)


async def test_a_client_that_waits_when_the_daemon_stops_is_told(make: MakeParts, exporter: MakeExporter) -> None:
    """It is not the exporter's fault."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    parts = make(x=slow.port)
    waiting = parts.fetch("x")
    await soon("it is asked", lambda: slow.requests)
    await parts.fleet.close()
    for one in (waiting, parts.fetch("x")):
        with pytest.raises(StoppingError):
            await one


async def test_no_error_of_a_fetch_is_kept_with_what_its_frames_held(
    make: MakeParts, monkeypatch: pytest.MonkeyPatch, exporter: MakeExporter, kept_tracebacks: Callable[[], list[str]]
) -> None:
    """Neither when the fetch is over, nor while its request still goes on."""
    parts = make(none=free_port(), page=exporter(b"<html>" * 1000).port)
    for name in ("none", "page"):
        with suppress(ScrapeError):
            await parts.fetch(name)
    await asyncio.sleep(0)  # the event loop holds what it has just thrown
    assert kept_tracebacks() == []
    goes_on = asyncio.Event()

    async def late(_: Channel, request: Request) -> None:
        request.tell_all(request.owed.copy(), TimedOutError("late"))
        await goes_on.wait()

    monkeypatch.setattr(Channel, "ask", late)
    with suppress(ScrapeError):
        await parts.fetch("none", 5.0)
    await asyncio.sleep(0)
    assert kept_tracebacks() == []
    goes_on.set()
