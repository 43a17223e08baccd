# SPDX-License-Identifier: GPL-3.0-or-later
"""Channels to qubes of the stand-in machine, with the real service in them, and every way to fail."""

import asyncio
import errno
import os
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federator import host
from federator.budget import Budget
from federator.call import STAGGER_SECONDS, STDERR_LIMIT, ConnectionLimiter
from federator.channel import Channel
from federator.errors import ScrapeError
from federator.model import Answer, Callee, Endpoint, Exporter, Qrexec, Qube, Target, in_order
from federator.pace import Pace
from federator.reasons import call_ended
from federator.request import Deadline, Request
from federator.wire import SERVICE, Names, OneReply, TextWire, Version1, Version2
from tests import parts
from tests.helpers import Clock, soon
from tests.standin.qubes import Qubes

MakeExporter = Callable[[bytes], parts.Exporter]
MakeLine = Callable[..., "Line"]
Heard = dict[Endpoint, Answer | ScrapeError]
# Well above what any machine needs for an answer, and what a test that waits for a timeout has to wait.
PATIENT, IMPATIENT = 20.0, 1.0


class Counted:
    """Counts the processes."""

    def __init__(self) -> None:
        self.started = self.ended = 0

    def call_started(self) -> None:
        """One more."""
        self.started += 1

    def call_ended(self) -> None:
        """One less."""
        self.ended += 1


def qube(name: str, *ports: Endpoint) -> Qube:
    """A qube with exporters on these ports."""
    targets = tuple(Target(qube=name, exporter=Exporter(f"e{port}", port)) for port in ports)
    return Qube(name=name, transport="qrexec", targets=targets)


def until(seconds: float) -> Deadline:
    """A deadline so many seconds from now."""
    now = asyncio.get_running_loop().time()
    return Deadline(now + seconds, now + seconds)


class Line:
    """A channel of the test, its connection limiter and its counters."""

    def __init__(self, to: Qube, settings: Qrexec) -> None:
        self.counters = Counted()
        self.limiter = ConnectionLimiter(settings.connect_limit)
        self.channel = Channel(to, settings, self.limiter, self.counters, Budget(1 << 30), Pace(1.0, 10))
        self._ports = to.endpoints

    async def ask(self, *ports: Endpoint, seconds: float = PATIENT, max_body: int = 1 << 20) -> Heard:
        """What is told of these ports, or of all."""
        heard: Heard = {}
        told: list[Endpoint] = []

        def tell(port: Endpoint, result: Answer | ScrapeError) -> None:
            told.append(port)
            heard[port] = result

        await self.channel.ask(Request(ports or self._ports, until(seconds), max_body, tell))
        assert in_order(told) == in_order(ports or self._ports), "each port is told of exactly once"
        return heard

    async def fails(self, *ports: Endpoint, seconds: float = PATIENT) -> tuple[str, str]:
        """The reason, and the words, of a qube that fails as a whole."""
        heard = list((await self.ask(*ports, seconds=seconds)).values())
        (error,) = {str(one): one for one in heard if isinstance(one, ScrapeError)}.values()
        assert len([one for one in heard if isinstance(one, ScrapeError)]) == len(heard)
        return error.reason, str(error)


@pytest.fixture
async def line(qubes: Qubes) -> AsyncIterator[MakeLine]:
    """Makes channels; at the end all are closed, and every process is gone."""
    host.watch_children()
    lines: list[Line] = []

    def make(to: Qube, **settings: float | str | Path) -> Line:
        lines.append(Line(to, replace(Qrexec(client=str(qubes.client)), **settings)))  # type: ignore[arg-type]
        return lines[-1]

    yield make
    for one in lines:
        await one.channel.close()
        assert one.counters.started == one.counters.ended
    await soon("every process of the machine has ended", lambda: not qubes.left_behind())


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the test's event loop."""
    return Clock(monkeypatch)


def bodies(heard: Heard) -> dict[Endpoint, bytes]:
    """The bodies of answers."""
    return {port: answer.body for port, answer in heard.items() if isinstance(answer, Answer)}


def is_to_be_called(one: Line) -> bool:
    """Has its call ended, and the wait for the next one?"""
    (call,) = one.channel.calls()
    return call.open_seconds is None and not call.wait


@pytest.mark.slow
async def test_one_call_serves_all_exporters_for_ever(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """The argument is the ports, rising; parts of them may be asked for."""
    qubes.add("work")
    a, b = sorted([exporter(b"a 1\n"), exporter(b"b 1\n")], key=lambda one: one.port)
    work = line(qube("work", b.port, a.port))
    for _ in range(3):
        assert bodies(await work.ask()) == {a.port: a.body, b.port: b.body}
    assert bodies(await work.ask(b.port)) == {b.port: b.body}
    assert qubes.calls() == [("work", f"ruddo.PrometheusProxy+{a.port}+{b.port}", "allow")]


@pytest.mark.slow
async def test_requests_of_one_channel_go_one_after_the_other(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter
) -> None:
    """Two scrapers with different wishes share the call."""
    qubes.add("work")
    work = line(qube("work", exporter(b"a 1\n").port))
    first, second = await asyncio.gather(work.ask(), work.ask())
    assert bodies(first) == bodies(second)
    assert len(qubes.calls()) == 1


FAULTS: dict[str, tuple[str, str, str]] = {
    # fault, reason, words
    "crash 3": ("crash 3", "closed", "ended by itself (status 3)"),
    "crash 126, without the client's words": ("crash 126", "closed", "status 126"),
    "vchan-timeout": ("vchan-timeout", "closed", "did not connect"),
    "garbage": ("garbage", "protocol", "did not greet"),
    "silent": ("silent", "timeout", "is it paused, or busy?"),
    "slow-start": ("slow-start 30", "timeout", "is it paused, or busy?"),
    "drip": ("drip 600", "timeout", "is it paused, or busy?"),
    "half-body": ("half-body 40", "closed", "went away"),
    "flood-stderr": ("flood-stderr", "protocol", "on stderr"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FAULTS)
async def test_every_fault_has_its_reason_and_ends_the_call(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter, case: str
) -> None:
    """And the next call, made when there is nothing wrong any more, is as good as the first."""
    fault, reason, words = FAULTS[case]
    qubes.add("work")
    qubes.set_fault("work", fault)
    served = exporter(b"m 1\n" * 100)
    work = line(qube("work", served.port), backoff_initial=0.001, backoff_max=0.001)
    found, text = await work.fails(seconds=IMPATIENT if reason == "timeout" else PATIENT)
    assert (found, words in text) == (reason, True), text
    assert "\n" not in text
    assert text.isprintable()
    qubes.set_fault("work", None)
    await asyncio.sleep(0.01)
    assert bodies(await work.ask()) == {served.port: served.body}
    assert len(qubes.calls()) == 2


# A service that greets and then says what it wants, whatever it is asked; it stays until the end of its input.
LIAR = """#!/bin/sh
printf '=2\\n'
read -r greeting
read -r request
printf '%s'
exec cat >/dev/null
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "timeout"),
        ("9100 200 9 0.1 -\\nm 1\\n", "timeout"),
        ("9100 200 3 0.1 -\\nm 1\\n", None),
        ("9100 200 4 0.1 -\\nm 1\\nm 2\\n", None),
        ("9100 200 4 0.1 -\\nm 1\\n9100 200 4 0.1 -\\nm 2\\n", None),
        ("9101 200 4 0.1 -\\nm 1\\n", "protocol"),
        ("9100 200 9999999 0.1 -\\nm 1\\n", "protocol"),
        ("9100 200 -1 0.1 -\\n", "protocol"),
        ("9100 999 4 0.1 -\\nm 1\\n", "protocol"),
        ("9100 0 2000 0.1 -\\n", "protocol"),
        ("=2\\n", "protocol"),
    ],
)
async def test_a_service_that_lies_about_its_answer(
    qubes: Qubes, line: MakeLine, said: str, reason: str | None
) -> None:
    """Lengths that are wrong either way, ports nobody asked for, one answer too many; the call is of no more use."""
    qubes.set_service(LIAR % said)
    qubes.add("work")
    work = line(qube("work", 9100), backoff_initial=0.001, backoff_max=0.001)
    heard = await work.ask(seconds=IMPATIENT if reason == "timeout" else PATIENT)
    error = heard[9100]
    if reason is None:
        # The answer came whole, as far as anybody can tell; what came behind it ends the call.
        assert isinstance(error, Answer) or error.reason == "protocol"
        await soon("it may be called again", lambda: is_to_be_called(work))
        await work.ask()
        assert len(qubes.calls()) == 2
    else:
        assert isinstance(error, ScrapeError)
        assert error.reason == reason


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 1, 2, 3, 9, 42, 116, 117, 125, 126, 127, 128, 137, 143, 255])
async def test_sudden_death_with_each_status(qubes: Qubes, line: MakeLine, status: int) -> None:
    """Before a byte was said, whatever the status, the qube is down with a reason of the closed set."""
    qubes.add("work")
    qubes.set_fault("work", f"crash {status}")
    reason, text = await line(qube("work", 9100)).fails()
    assert reason == ("no_service" if status in (125, 127) else "closed")
    assert text.isprintable()


@pytest.mark.slow
async def test_bytes_that_nobody_asked_for_end_the_call(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """Invariant 6: they could be taken for the next answer."""
    qubes.add("work")
    qubes.set_fault("work", "unsolicited 1")
    served = exporter(b"m 1\n")
    work = line(qube("work", served.port), backoff_initial=0.001, backoff_max=0.001)
    assert bodies(await work.ask()) == {served.port: b"m 1\n"}
    await soon("it may be called again", lambda: is_to_be_called(work))
    qubes.set_fault("work", None)
    assert bodies(await work.ask()) == {served.port: b"m 1\n"}
    assert len(qubes.calls()) == 2


@pytest.mark.slow
async def test_a_late_answer_is_never_taken_for_the_next(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """Invariant 6: a qube that was paused in the middle answers late; that answer is lost with its call."""
    qubes.add("work")
    served = exporter(b"old 1\n")
    work = line(qube("work", served.port), backoff_initial=0.001, backoff_max=0.001)
    assert bodies(await work.ask()) == {served.port: b"old 1\n"}
    qubes.set_state("work", "Paused")
    assert (await work.fails(seconds=IMPATIENT))[0] == "timeout"
    served.body = b"new 1\n"
    qubes.set_state("work", "Running")
    await asyncio.sleep(0.01)
    assert bodies(await work.ask()) == {served.port: b"new 1\n"}
    assert len(qubes.calls()) == 2


@pytest.mark.slow
async def test_a_slow_exporter_costs_neither_the_others_nor_the_call(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter
) -> None:
    """The service says that it is late, a little before the time is over."""
    qubes.add("work")
    slow, fast = exporter(b"slow 1\n"), exporter(b"fast 1\n")
    slow.hold.clear()
    work = line(qube("work", slow.port, fast.port))
    heard = await work.ask(seconds=2.0)
    assert bodies(heard)[fast.port] == b"fast 1\n"
    late = heard[slow.port]
    assert isinstance(late, Answer)
    assert (late.status, late.body) == (0, b"timed out")
    slow.hold.set()
    assert bodies(await work.ask())[slow.port] == b"slow 1\n"
    assert len(qubes.calls()) == 1


@pytest.mark.slow
async def test_a_refused_qube_is_called_again_only_now_and_then(qubes: Qubes, line: MakeLine) -> None:
    """Each call costs dom0 as much as an allowed one; the reason is told all the same."""
    qubes.add("work", policy="deny")
    work = line(qube("work", 9100), backoff_initial=300.0)
    reason, text = await work.fails()
    assert reason == "refused"
    assert "dom0's policy does not allow it, or the qube does not run or does not exist" in text
    for _ in range(3):
        reason, text = await work.fails()
        assert reason == "refused"
        assert "next call in" in text
    assert len(qubes.calls()) == 1
    work.channel.forget()  # a reload
    await work.fails()
    assert len(qubes.calls()) == 2


@pytest.mark.slow
async def test_backoff_doubles_up_to_its_limit(qubes: Qubes, line: MakeLine, clock: Clock) -> None:
    """Told by what the error says: the next call in so many seconds."""
    qubes.add("work", policy="deny")
    work = line(qube("work", 9100), backoff_initial=100.0, backoff_max=300.0)
    waits = []
    for _ in range(4):
        await work.fails()
        (call,) = work.channel.calls()
        waits.append(call.wait)
        clock.advance(call.wait)
    for wait, nominal in zip(waits, (100, 200, 300, 300), strict=True):
        assert nominal * 0.75 < wait < nominal * 1.25


@pytest.mark.slow
async def test_a_service_that_knows_version_1_only_is_spoken_to_in_it(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter
) -> None:
    """One call a port; remembered, so that the greeting it does not know is said once."""
    add_with_upstreams_service(qubes)
    a, b = exporter(b"a 1\n"), exporter(b"b 1\n")
    work = line(qube("work", a.port, b.port), backoff_initial=0.001, backoff_max=0.001)
    for _ in range(3):
        assert bodies(await work.ask()) == {a.port: b"a 1\n", b.port: b"b 1\n"}
    ports = sorted([a.port, b.port])
    first, *others = [call[1].partition("+")[2] for call in qubes.calls()]
    assert first == f"{ports[0]}+{ports[1]}"
    assert sorted(others) == sorted(map(str, ports))
    b.stop()
    heard = await work.ask()
    assert bodies(heard) == {a.port: b"a 1\n"}
    failed = heard[b.port]
    assert isinstance(failed, ScrapeError)
    assert failed.reason == "connection"
    b.start()
    await asyncio.sleep(0.01)
    assert len(bodies(await work.ask())) == 2


@pytest.mark.slow
async def test_upstreams_service_has_no_endpoints(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """Ports go on, one a call; a name is never spoken of in version 1, and the service is older. Until it is not."""
    new = qubes.service
    add_with_upstreams_service(qubes)
    served = exporter(b"a 1\n")
    work = line(qube("work", served.port, "app", "other"), backoff_initial=0.001, backoff_max=0.001)
    for _ in range(3):
        heard = await work.ask()
        assert bodies(heard) == {served.port: b"a 1\n"}
        for name in ("app", "other"):
            error = heard[name]
            assert isinstance(error, ScrapeError)
            assert (error.reason, "older than this daemon" in str(error)) == ("no_service", True)
        await asyncio.sleep(0.01)
    qubes.service_of("work").unlink()
    qubes.service_of("work").symlink_to(new)
    heard = await work.ask("app")
    assert isinstance(heard["app"], Answer)
    assert heard["app"].body.startswith(b"no endpoints.d/app in")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["allow", "allow +app", "allow +9100+app", "allow +9100"])
async def test_a_name_alone_and_upstreams_service(qubes: Qubes, line: MakeLine, clock: Clock, policy: str) -> None:
    """Whatever the policy allows, there is a reason each time, and calls stay few; the new service is found by them."""
    new = qubes.service
    add_with_upstreams_service(qubes)
    qubes.set_policy("work", policy)
    work = line(qube("work", 9100, "app"), backoff_initial=100.0, backoff_max=300.0)
    for _ in range(6):
        heard = await work.ask()
        assert all(isinstance(one, ScrapeError) for one in heard.values())
        await work.ask()
        clock.advance(1000.0)
    assert len(qubes.calls()) <= 6 * 3
    if policy in ("allow", "allow +9100+app"):
        qubes.service_of("work").unlink()
        qubes.service_of("work").symlink_to(new)
        found = []
        for _ in range(3):
            found.append((await work.ask())["app"])
            clock.advance(1000.0)
        assert isinstance(found[-1], Answer), found


@pytest.mark.slow
async def test_a_service_from_before_endpoints_is_older(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter, tmp_path: Path
) -> None:
    """It refuses the argument, for ports, too, and the words name the remedy; a qube with ports alone goes on."""
    text = qubes.service.read_text(encoding="utf-8")
    new = r're.compile(rf"(?:{PORT}|{NAME})(?:\+(?:{PORT}|{NAME}))*", re.ASCII)'
    assert text.count(new) == 1
    older = tmp_path / "older"
    older.write_text(text.replace(new, r're.compile(rf"{PORT}(?:\+{PORT})*", re.ASCII)'), encoding="utf-8")
    older.chmod(0o755)
    new_service, qubes.service = qubes.service, older
    qubes.add("work")
    served = exporter(b"a 1\n")
    work = line(qube("work", served.port, "app"), backoff_initial=0.001, backoff_max=0.001)
    for _ in range(3):
        reason, words = await work.fails()
        assert reason == "no_service"
        assert "the service in work is older than this daemon" in words
        assert "update prometheus-qubes-proxy-service" in words
        await asyncio.sleep(0.01)
    assert bodies(await line(qube("work", served.port)).ask()) == {served.port: b"a 1\n"}
    assert {call[1] for call in qubes.calls()} == {
        f"ruddo.PrometheusProxy+{served.port}+app",
        f"ruddo.PrometheusProxy+{served.port}",
    }
    qubes.service_of("work").unlink()
    qubes.service_of("work").symlink_to(new_service)
    assert served.port in bodies(await work.ask())


@pytest.mark.slow
@pytest.mark.parametrize("status", range(1, 100))
async def test_upstreams_service_ends_with_any_status_of_curl(qubes: Qubes, line: MakeLine, status: int) -> None:
    """Its exporter is the cause then, whatever curl says; the call itself was as good as any."""
    qubes.add("work")
    qubes.set_fault("work", f"upstream {status}")
    reason, text = await line(qube("work", 9100)).fails()
    assert reason == "connection"
    assert f"(status {status})" in text
    answered = status in (8, 18, 22, 28, 52, 56, 61)
    assert ("does it run?" in text or "is the exporter up?" in text) != answered


@pytest.mark.slow
async def test_upstreams_service_that_needs_other_lines(qubes: Qubes, line: MakeLine, clock: Clock) -> None:
    """dom0 allows the call for all ports only: the reason says so, and no try costs both kinds of calls."""
    qubes.add("work", policy="allow +9100+9256")
    qubes.set_fault("work", "upstream")
    work = line(qube("work", 9100, 9256), backoff_initial=100.0, backoff_max=300.0)
    calls: list[list[str]] = []
    for _ in range(4):
        before = len(qubes.calls())
        for _ in range(3):  # in its pause, too
            reason, text = await work.fails()
            assert reason == "refused"
            assert "knows one port a call: dom0's policy needs a line for each of +9100 and +9256" in text
        calls.append(sorted(call[2] for call in qubes.calls()[before:]))
        clock.advance(max(call.wait for call in work.channel.calls()))
    assert calls == [["allow", "deny", "deny"], ["allow"], ["deny", "deny"], ["allow"]]
    qubes.set_policy("work", "allow +9100 +9256")
    assert bodies(await work.ask()) == {9100: b"m 1\n", 9256: b"m 1\n"}


@pytest.mark.slow
async def test_upstreams_service_in_a_qube_that_was_halted_meanwhile(
    qubes: Qubes, line: MakeLine, clock: Clock
) -> None:
    """Then it is that, and no line of dom0's policy, that is told."""
    qubes.add("work", policy="allow autostart=no +9100+9256")
    qubes.set_fault("work", "upstream")
    work = line(qube("work", 9100, 9256), backoff_initial=100.0, backoff_max=300.0)
    await work.fails()
    qubes.set_state("work", "Halted")
    for _ in range(2):
        clock.advance(max(call.wait for call in work.channel.calls()))
        assert "or the qube does not run" in (await work.fails())[1]


@pytest.mark.slow
async def test_a_reload_leaves_calls_of_version_1_alone(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """It forgets what went wrong, not what works."""
    add_with_upstreams_service(qubes)
    a = exporter(b"a 1\n")
    work = line(qube("work", a.port))
    await work.ask()
    calls = len(qubes.calls())
    work.channel.forget()
    assert bodies(await work.ask()) == {a.port: b"a 1\n"}
    assert len(qubes.calls()) == calls


@pytest.mark.slow
async def test_ports_that_are_allowed_each_by_itself_are_called_so(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter
) -> None:
    """By a policy that was written for upstream's proxy; and once it was seen to be so, in no other way."""
    a, b = exporter(b"a 1\n"), exporter(b"b 1\n")
    qubes.add("work", policy=f"allow +{a.port} +{b.port}")
    work = line(qube("work", a.port, b.port), backoff_initial=0.001, backoff_max=0.001)
    assert [getattr(result, "reason", None) for result in (await work.ask()).values()] == ["refused"] * 2
    await asyncio.sleep(0.01)
    for _ in range(2):
        assert bodies(await work.ask()) == {a.port: b"a 1\n", b.port: b"b 1\n"}
    joined = f"{SERVICE}+{'+'.join(map(str, sorted([a.port, b.port])))}"
    assert [call[1] == joined for call in qubes.calls()] == [True, False, False]
    # After a time when all was refused it may be otherwise, so both ways are tried again, until one works.
    qubes.set_state("work", "Halted")
    qubes.set_policy("work", f"allow autostart=no +{a.port} +{b.port}")
    for _ in range(4):
        assert not bodies(await work.ask())
        await asyncio.sleep(0.01)
    qubes.set_state("work", "Running")
    for _ in range(3):
        heard = bodies(await work.ask())
        await asyncio.sleep(0.01)
    assert heard == {a.port: b"a 1\n", b.port: b"b 1\n"}


@pytest.mark.slow
async def test_ports_that_were_allowed_together_are_not_called_singly(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter
) -> None:
    """That the qube is halted now says nothing of the policy, and each call costs dom0 a decision."""
    a, b = exporter(b"a 1\n"), exporter(b"b 1\n")
    qubes.add("work", policy="allow autostart=no")
    work = line(qube("work", a.port, b.port), backoff_initial=0.001, backoff_max=0.001)
    assert len(bodies(await work.ask())) == 2
    qubes.set_state("work", "Halted")
    for _ in range(5):
        await work.ask()
        await asyncio.sleep(0.01)
    assert len({call[1] for call in qubes.calls()}) == 1


@pytest.mark.slow
async def test_one_port_that_is_asked_for_is_enough_to_find_the_way(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter
) -> None:
    """A scraper of single exporters may never ask for the others, and pauses of several calls never end together."""
    ports = sorted(exporter(b"m 1\n").port for _ in range(4))
    qubes.add("work", state="Halted", policy=f"allow autostart=no +{'+'.join(map(str, ports))}")
    work = line(qube("work", *ports), backoff_initial=0.001, backoff_max=0.02)

    async def ask() -> list[Answer | ScrapeError]:
        heard: list[Answer | ScrapeError] = []
        await work.channel.ask(Request(ports[:1], until(PATIENT), 100, lambda _, told: heard.append(told)))
        await asyncio.sleep(0.025)
        return heard

    for _ in range(6):
        await ask()
    qubes.set_state("work", "Running")
    answers = [await ask() for _ in range(4)]
    assert isinstance(answers[-1][0], Answer)
    assert len(bodies(await work.ask())) == 4


@pytest.mark.slow
async def test_ports_that_are_refused_are_called_together_and_singly_in_turns(
    qubes: Qubes, line: MakeLine, clock: Clock
) -> None:
    """Nobody knows which it will be; each turn comes after the pause that any call has to make."""
    qubes.add("work", policy="deny")
    work = line(qube("work", 9100, 9256), backoff_initial=100.0, backoff_max=300.0)
    waits = []
    for _ in range(4):
        await work.ask()
        waits.append(min(call.wait for call in work.channel.calls()))
        clock.advance(max(call.wait for call in work.channel.calls()))
    arguments = [call[1].removeprefix(SERVICE) for call in qubes.calls()]
    turns = [arguments[:1], sorted(arguments[1:3]), arguments[3:4], sorted(arguments[4:])]
    assert turns == [["+9100+9256"], ["+9100", "+9256"]] * 2
    for wait, nominal in zip(waits, (100, 200, 300, 300), strict=True):
        assert nominal * 0.75 < wait < nominal * 1.25


def add_with_upstreams_service(qubes: Qubes) -> None:
    """The qube `work`, which has upstream's service, or what behaves like it."""
    parts.debian_program("curl")
    qubes.set_service(UPSTREAM)
    qubes.add("work")


# The behaviour of upstream's service, as far as callers see it.
UPSTREAM = """#!/bin/bash
read -r greeting || exit 0
[ "$greeting" = "+" ] || exit 117
printf '=\\n'
file=$(mktemp)
trap 'rm -f "$file"' EXIT
while read -r request; do
    [ "$request" = "?" ] || exit 116
    curl -s "http://127.0.0.1:$1/metrics" >"$file" || exit 116
    wc -c <"$file"
    cat "$file"
done
"""


@pytest.mark.slow
async def test_few_calls_are_set_up_at_a_time(qubes: Qubes, exporter: MakeExporter) -> None:
    """`connect_limit` of them; but one that hangs gives its place away, or it would hold up the others."""
    served = exporter(b"m 1\n")
    host.watch_children()
    counters, limiter = Counted(), ConnectionLimiter(1)
    settings = Qrexec(client=str(qubes.client))
    channels = {}
    for name in ("paused", "work"):
        qubes.add(name)
        channels[name] = Channel(qube(name, served.port), settings, limiter, counters, Budget(1 << 30), Pace(1.0, 10))
    qubes.set_state("paused", "Paused")
    deadline = until(4)
    heard: dict[str, Answer | ScrapeError] = {}

    async def ask(name: str) -> None:
        def tell(_: Endpoint, result: Answer | ScrapeError) -> None:
            heard[name] = result

        await channels[name].ask(Request([served.port], deadline, 100, tell))

    await asyncio.gather(*map(ask, channels))
    assert isinstance(heard["paused"], ScrapeError)
    assert isinstance(heard["work"], Answer)
    for channel in channels.values():
        await channel.close()


@pytest.mark.slow
async def test_a_call_that_waits_for_its_turn_is_not_the_qubes_fault(qubes: Qubes, line: MakeLine) -> None:
    """It says so, and does not back off."""
    qubes.add("work")
    work = line(qube("work", 9100), connect_limit=1)
    async with work.limiter.place():
        reason, text = await work.fails(seconds=0.2)
    assert reason == "timeout"
    assert "turn did not come" in text
    assert not qubes.calls()
    (call,) = work.channel.calls()
    assert (call.failures, call.wait) == (0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["ignore-eof", "ignore-term"])
async def test_ending_a_call_is_bounded(qubes: Qubes, line: MakeLine, exporter: MakeExporter, fault: str) -> None:
    """A process that does not end when its stdin is closed gets SIGTERM, then SIGKILL."""
    qubes.add("work")
    qubes.set_fault("work", fault)
    work = line(qube("work", exporter(b"m 1\n").port))
    assert len(bodies(await work.ask())) == 1
    async with asyncio.timeout(PATIENT):
        await work.channel.close()
    await soon("the process is gone", lambda: work.counters.ended == 1)


@pytest.mark.slow
async def test_closing_while_it_is_being_asked(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """As when the daemon is stopped in the middle of a scrape."""
    qubes.add("work")
    served = exporter(b"m 1\n")
    served.hold.clear()
    work = line(qube("work", served.port))
    asking = asyncio.create_task(work.ask())
    await asyncio.to_thread(parts.eventually, "the exporter is asked", lambda: served.requests)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await work.channel.close()
    await soon("nothing is left behind", lambda: not qubes.left_behind())


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "words"), [(None, "No such file or directory"), (0o644, "Permission denied")])
async def test_a_client_that_cannot_be_started(line: MakeLine, tmp_path: Path, mode: int | None, words: str) -> None:
    """It vanished after the daemon was started."""
    client = tmp_path / "client"
    if mode is not None:
        client.touch(mode)
    reason, text = await line(qube("work", 9100), client=str(client)).fails()
    assert reason == "closed"
    assert words in text


@pytest.mark.slow
async def test_a_child_that_holds_the_pipes_is_ended_too(line: MakeLine, tmp_path: Path) -> None:
    """The client is gone, a process it left behind is not: it keeps nobody waiting, and does not stay."""
    client, pid = tmp_path / "client", tmp_path / "pid"
    client.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! >{pid}\necho last words >&2\nexit 3\n", encoding="utf-8")
    client.chmod(0o755)
    orphaned = line(qube("work", 9100), client=str(client))
    reason, text = await orphaned.fails()
    assert reason == "closed"
    assert "status 3" in text
    assert "last words" in text
    await orphaned.channel.close()
    child = Path(f"/proc/{pid.read_text(encoding='utf-8').strip()}")

    def is_gone() -> bool:
        try:
            return "State:\tZ" in (child / "status").read_text(encoding="utf-8")
        except OSError:
            return True

    await asyncio.to_thread(parts.eventually, "the child is gone", is_gone)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Leave this process not one file descriptor that it may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with ExitStack() as stack:
            with suppress(OSError):
                while True:
                    stack.enter_context(Path("/dev/null").open("rb"))
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
async def test_out_of_file_descriptors(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """That qube is down, and says why; it is back when there are some again."""
    qubes.add("work")
    work = line(qube("work", exporter(b"m 1\n").port), backoff_initial=0.001, backoff_max=0.001)
    with no_more_files():
        reason, text = await work.fails()
    assert reason == "closed"
    assert "Too many open files" in text
    await asyncio.sleep(0.01)
    assert len(bodies(await work.ask())) == 1


@pytest.mark.slow
async def test_out_of_processes(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel says then is put in its mouth: its limit does not hold for root, whom CI runs as."""
    qubes.add("work")
    work = line(qube("work", exporter(b"m 1\n").port), backoff_initial=0.001, backoff_max=0.001)

    async def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "subprocess_exec", refuse)
        reason, text = await work.fails()
    assert reason == "closed"
    assert "Resource temporarily unavailable" in text
    await asyncio.sleep(0.01)
    assert len(bodies(await work.ask())) == 1


WORK = Callee("work", "qrexec", SERVICE)


def waiting(version: type[TextWire]) -> TextWire:
    """A wire on which an answer is owed."""
    wire = version()
    wire.receive(wire.greeting.replace(b"+", b"="))
    wire.ask(milliseconds=1, max_body=1, endpoints=[9100])
    return wire


@pytest.mark.parametrize(
    ("status", "words", "wire", "spoke", "reason", "text"),
    [
        (126, b"Request refused", Version2(), False, "refused", "policy"),
        (126, b"Request refused", waiting(Version2), True, "closed", "status 126"),
        (126, b"", Version2(), False, "closed", "status 126"),
        (127, b"", Version2(), False, "no_service", "not installed in work"),
        (127, b"", waiting(Version2), True, "closed", "status 127"),
        (125, b"", Version2(), False, "no_service", "is it executable?"),
        (1, b"x: connect: No such file or directory", Version2(), False, "closed", "no qrexec agent here"),
        (1, b"x: connect: Connection refused", Version2(), False, "closed", "no qrexec agent here"),
        (1, b"x: connect: Permission denied", Version2(), False, "closed", "in the group qubes"),
        (1, b"Data vchan connection failed", Version2(), False, "closed", "restart the qube"),
        (255, b"vchan connection closed early", waiting(Version2), True, "closed", "went away"),
        (143, b"", waiting(Version2), True, "closed", "status 143"),
        (-9, b"", waiting(Version2), True, "closed", "killed by signal 9"),
        (116, b"", waiting(Version1), True, "connection", "is the exporter up?"),
        (7, b"", waiting(Version1), True, "connection", "nothing listens on its port"),
        (137, b"", waiting(Version1), True, "closed", "status 137"),
        (7, b"", waiting(Version2), True, "closed", "status 7"),
        (5, b"\x1b[2Jevil\xff", waiting(Version2), True, "closed", r"'\x1b[2Jevil\\xff'"),
    ],
)
def test_why_a_call_ended(status: int, words: bytes, wire: TextWire, spoke: bool, reason: str, text: str) -> None:  # noqa: FBT001
    """The service's own statuses are not taken for qrexec's once it has spoken; its words are escaped."""
    error = call_ended(status, words, WORK, wire, spoke=spoke)
    assert error.reason == reason
    assert text in str(error)


@pytest.mark.parametrize("status", [0, 1, 7, 9, 116, 117, 143, 255, -9])
@pytest.mark.parametrize("kind", [Names, OneReply])
def test_a_service_of_dom0_that_ends_is_told_of_as_such(status: int, kind: type[Names | OneReply]) -> None:
    """There is no exporter in dom0, and nobody restarts it."""
    wire = kind(1000)
    service = "ruddo.PrometheusDiscover" if isinstance(wire, Names) else "admin.vm.List"
    wire.receive(b"=\n" if isinstance(wire, Names) else b"")
    wire.ask()
    error = call_ended(status, b"qvm-ls: no", Callee("dom0", "qrexec", service), wire, spoke=True)
    assert error.reason == "closed"
    assert str(error).startswith(f"{service} in dom0 ended without an answer (")
    assert "dom0's journal may say why: 'qvm-ls: no'" in str(error)
    assert "exporter" not in str(error)


def test_upstreams_statuses_at_the_greeting_mean_version_1() -> None:
    """0, 116 and 117, by release."""
    for status in (0, 116, 117):
        assert "version 1" in str(call_ended(status, b"", WORK, Version2(), spoke=False))


# Greets before it is greeted, and answers each request.
HASTY = """#!/bin/sh
printf '=2\\n'
read -r greeting
while read -r request; do printf '9100 200 4 0.1 -\\nm 1\\n'; done
"""


@pytest.mark.slow
async def test_a_service_that_greets_before_it_is_greeted(
    qubes: Qubes, line: MakeLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its greeting may be here before anybody waits for it; it is not waited for until the deadline then."""
    qubes.set_service(HASTY)
    qubes.add("work")
    loop = asyncio.get_running_loop()
    start = loop.subprocess_exec

    async def start_and_do_something_else(*words: Any, **more: Any) -> Any:
        started = await start(*words, **more)
        await asyncio.sleep(0.5)
        return started

    monkeypatch.setattr(loop, "subprocess_exec", start_and_do_something_else)
    work = line(qube("work", 9100))
    async with asyncio.timeout(PATIENT):
        assert bodies(await work.ask(seconds=1000.0)) == {9100: b"m 1\n"}


@pytest.mark.slow
async def test_a_good_answer_resets_the_backoff(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """The next failure waits as the first one did."""
    qubes.add("work")
    qubes.set_fault("work", "crash 3")
    served = exporter(b"m 1\n")
    work = line(qube("work", served.port), backoff_initial=0.001, backoff_max=1000.0)
    for failures in range(1, 4):
        await work.fails()
        await asyncio.sleep(0.02)
        assert work.channel.calls()[0].failures == failures
    qubes.set_fault("work", None)
    assert bodies(await work.ask()) == {served.port: b"m 1\n"}
    assert work.channel.calls()[0].failures == 0
    assert work.channel.calls()[0].wait == 0.0


# Writes half of what a scrape may write to stderr, before each answer.
TALKATIVE = """#!/bin/sh
read -r greeting
printf '=2\\n'
while read -r request; do
    head -c {half} /dev/zero | tr '\\0' x >&2
    printf '9100 200 4 0.1 -\\nm 1\\n'
done
"""


@pytest.mark.slow
async def test_what_a_service_may_write_to_stderr_is_counted_for_each_scrape(qubes: Qubes, line: MakeLine) -> None:
    """One that complains a little at each scrape is not cut off after some of them."""
    qubes.set_service(TALKATIVE.format(half=STDERR_LIMIT // 2))
    qubes.add("work")
    work = line(qube("work", 9100))
    for _ in range(5):
        assert bodies(await work.ask()) == {9100: b"m 1\n"}
    assert len(qubes.calls()) == 1


@pytest.mark.slow
async def test_the_local_service_gets_only_the_environment_that_it_should(
    line: MakeLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What qrexec would give it, and nothing of the daemon's: neither secrets, nor settings of Python or a shell."""
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("QREXEC_REMOTE_DOMAIN", "evil")
    service = tmp_path / "service"
    service.write_text(
        f'#!/bin/sh\nenv >"{tmp_path}/environment"\necho "$@" >"{tmp_path}/words"\nexit 3\n', encoding="utf-8"
    )
    service.chmod(0o755)
    here = replace(qube("sys-net", 9256, 9100), transport="local")
    local = line(here, local_service=service)
    await local.fails()
    environment = dict(one.split("=", 1) for one in (tmp_path / "environment").read_text(encoding="utf-8").splitlines())
    for of_the_shell in ("PWD", "SHLVL", "_", "OLDPWD"):
        environment.pop(of_the_shell, None)
    assert environment == {
        "PATH": os.environ["PATH"],
        "QREXEC_REMOTE_DOMAIN": "sys-net",
        "QREXEC_SERVICE_FULL_NAME": "ruddo.PrometheusProxy+9100+9256",
        "QREXEC_SERVICE_ARGUMENT": "9100+9256",
    }
    assert (tmp_path / "words").read_text(encoding="utf-8") == "9100+9256\n"


async def test_no_two_calls_are_made_in_the_same_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits a random part of STAGGER_SECONDS: calls made at one time collide in xenstore."""
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("federator.call.asyncio.sleep", note)
    limiter = ConnectionLimiter(4)
    for _ in range(20):
        async with limiter.place():
            pass
    assert len(waits) == len(set(waits)) == 20
    assert 0 <= min(waits) < max(waits) <= STAGGER_SECONDS


async def test_a_place_of_the_limiter_is_not_lost() -> None:
    """One that waits and is cancelled, at the moment when it is its turn, leaves the turn to the next."""
    limiter = ConnectionLimiter(1)
    order: list[str] = []

    async def hold(name: str) -> None:
        async with limiter.place():
            order.append(name)

    async with limiter.place():
        gone, next_one = asyncio.create_task(hold("gone")), asyncio.create_task(hold("next"))
        await asyncio.sleep(0)
    gone.cancel()
    async with asyncio.timeout(PATIENT):
        await next_one
    assert order == ["next"]
    limiter.limit = 2
    async with asyncio.timeout(PATIENT), limiter.place(), limiter.place():
        assert "2 of 2 used, 0 waiting" in repr(limiter)


@pytest.mark.slow
async def test_a_call_is_ended_where_what_it_told_raises(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """A bug of ours in taking an answer leaves nobody waiting for the call."""
    qubes.add("work")
    served = exporter(b"m 1\n")
    work = line(qube("work", served.port))
    heard: list[Answer | ScrapeError] = []

    def tell(_: Endpoint, result: Answer | ScrapeError) -> None:
        heard.append(result)
        if isinstance(result, Answer):
            raise ZeroDivisionError

    await work.channel.ask(Request([served.port], until(1000.0), 100, tell))
    assert isinstance(heard[0], Answer)
    assert work.channel.calls()[0].failures == 1


# Answers one request, and ends.
ONCE = """#!/bin/sh
read -r greeting
printf '=2\\n'
read -r request
printf '9100 200 4 0.1 -\\nm 1\\n'
exit 3
"""


@pytest.mark.slow
async def test_a_qube_that_answers_and_ends_is_called_only_now_and_then(
    qubes: Qubes, line: MakeLine, clock: Clock
) -> None:
    """Each call costs dom0 a decision, whether it succeeds or not; in between, the qube is down and says why."""
    qubes.set_service(ONCE)
    qubes.add("work")
    work = line(qube("work", 9100), backoff_initial=50.0, backoff_max=50.0)
    for calls in range(1, 4):
        assert bodies(await work.ask()) == {9100: b"m 1\n"}
        await asyncio.to_thread(parts.eventually, "the service has ended", lambda: not qubes.left_behind())
        await asyncio.sleep(0.1)
        for _ in range(5):
            reason, text = await work.fails()
            assert reason == "closed"
            assert "ended by itself (status 3)" in text
            assert text.count("next call in") == 1
        assert len(qubes.calls()) == calls
        clock.advance(51.0)


@pytest.mark.slow
async def test_a_loop_of_requests_does_not_make_an_exporter_work_all_the_time(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten at once, and then one a second; the others wait, in no more time than they have."""
    qubes.add("work")
    served = exporter(b"m 1\n")
    work = line(qube("work", served.port))
    await work.ask()
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds > 0.1:
            waits.append(seconds)
            clock.advance(seconds)
        await real(0)

    with monkeypatch.context() as patch:
        patch.setattr("federator.channel.asyncio.sleep", sleep)
        for _ in range(30):
            assert bodies(await work.ask())
        assert len(waits) == 21
        assert sum(waits) == pytest.approx(21, abs=5)
        assert max(waits) <= 1.0
        await work.ask(seconds=0.2)
    assert len(served.requests) in (31, 32)


@pytest.mark.slow
async def test_a_request_that_gives_way_is_asked_last(qubes: Qubes, line: MakeLine, exporter: MakeExporter) -> None:
    """A scrape of everything does not wait for the many that want single exporters."""
    qubes.add("work")
    busy = exporter(b"b 1\n")
    busy.hold.clear()
    work = line(qube("work", busy.port))
    order: list[str] = []

    def ask(name: str) -> asyncio.Task[None]:
        gives_way = name != "page"
        request = Request([busy.port], until(PATIENT), 100, lambda *_: order.append(name), gives_way=gives_way)
        return asyncio.create_task(work.channel.ask(request))

    asking = [ask("busy")]
    await asyncio.to_thread(parts.eventually, "the first one is asked", lambda: busy.requests)
    for name in ("single", "single", "single", "page"):
        asking.append(ask(name))
        await asyncio.sleep(0)
    busy.hold.set()
    await asyncio.gather(*asking)
    assert order == ["busy", "page", "single", "single", "single"]


@pytest.mark.slow
async def test_a_slow_exporter_does_not_hold_up_its_neighbour(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter
) -> None:
    """Neither a request for the fast one alone, nor the fast one of a request for both."""
    qubes.add("work")
    slow, fast = exporter(b"slow 1\n"), exporter(b"fast 1\n")
    work = line(qube("work", slow.port, fast.port))
    await work.ask()
    slow.hold.clear()
    first = asyncio.create_task(work.ask(slow.port))
    await asyncio.to_thread(parts.eventually, "the slow one is asked", lambda: len(slow.requests) == 2)
    for _ in range(2):
        assert bodies(await work.ask(fast.port)) == {fast.port: b"fast 1\n"}
    told: list[Endpoint] = []
    request = Request([slow.port, fast.port], until(PATIENT), 100, lambda port, _: told.append(port))
    both = asyncio.create_task(work.channel.ask(request))
    await soon("the fast one of both is told of", lambda: told == [fast.port])
    assert bodies(await work.ask(fast.port)) == {fast.port: b"fast 1\n"}, "its turn is passed on with its answer"
    assert not first.done()
    slow.hold.set()
    assert bodies(await first) == {slow.port: b"slow 1\n"}
    await both
    assert told == [fast.port, slow.port]
    assert len(qubes.calls()) == 1


@pytest.mark.slow
async def test_a_service_that_takes_one_request_at_a_time_gets_one(
    qubes: Qubes, line: MakeLine, exporter: MakeExporter
) -> None:
    """One of before: it does not say that requests overlap, and ends where they do."""
    text = qubes.service.read_text(encoding="utf-8")
    for new, old in (
        ("{OVERLAPS}", ""),
        ("not words.isdisjoint(fetch.word for fetch in self._fetches)", "self._fetches"),
    ):
        assert text.count(new) == 1
        text = text.replace(new, old)
    qubes.set_service(text)
    qubes.add("work")
    slow, fast = exporter(b"slow 1\n"), exporter(b"fast 1\n")
    work = line(qube("work", slow.port, fast.port))
    await work.ask()
    slow.hold.clear()
    first = asyncio.create_task(work.ask(slow.port))
    await asyncio.to_thread(parts.eventually, "the slow one is asked", lambda: len(slow.requests) == 2)
    second = asyncio.create_task(work.ask(fast.port))
    await asyncio.sleep(0.1)
    slow.hold.set()
    assert bodies(await first) == {slow.port: b"slow 1\n"}
    assert bodies(await second) == {fast.port: b"fast 1\n"}
    assert len(qubes.calls()) == 1


# Says that requests overlap, takes two more, and does then what the test says.
OVERLAPPING = """#!/bin/sh
read -r greeting
printf '=2\\n'
read -r request
printf '9100 200 4 0.1  -;overlaps\\nm 1\\n'
read -r request
read -r request
%s
read -r request
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("printf '9256 200 0 0.1  -;\\n9256 200 0 0.1  -;\\n'", "protocol"),
        ("printf '9300 200 0 0.1  -;\\n'", "protocol"),
        ("exit 3", "closed"),
        ("", "timeout"),
    ],
)
async def test_a_call_that_fails_fails_for_all_that_share_it(
    qubes: Qubes, line: MakeLine, then: str, reason: str
) -> None:
    """It counts once, and whatever comes late is for nobody: the next request is a new call's."""
    qubes.set_service(OVERLAPPING % then)
    qubes.add("work")
    work = line(qube("work", 9100, 9256, 9300))
    await work.ask(9100)
    patient = asyncio.create_task(work.ask(9256))
    await asyncio.sleep(0)
    heard = await work.ask(9100, seconds=IMPATIENT) | await patient
    assert 9100 not in bodies(heard)
    assert {one.reason for one in heard.values() if isinstance(one, ScrapeError)} == {reason}
    (call,) = work.channel.calls()
    assert (call.failures, call.open_seconds) == (1, None)
    assert (await work.fails())[0] == reason, "it backs off"
    assert len(qubes.calls()) == 1


# Says that requests overlap; answers the second request late, when it is told to, and then all others.
LATE = """#!/bin/sh
read -r greeting
printf '=2\\n'
read -r request
printf '9100 200 4 0.1  -;overlaps\\nm 1\\n'
read -r request
while [ ! -e %s ]; do sleep 0.01; done
printf '9100 200 4 0.1  -;\\nm 2\\n'
while read -r request; do printf '9100 200 4 0.1  -;\\nm 3\\n'; done
"""


@pytest.mark.slow
async def test_a_late_answer_is_dropped_where_the_call_is_kept(qubes: Qubes, line: MakeLine, tmp_path: Path) -> None:
    """Until it has come, its port is late without being asked; and then it is asked again, over the same call."""
    qubes.set_service(LATE % (tmp_path / "now"))
    qubes.add("work")
    work = line(qube("work", 9100), patience=30.0)
    assert bodies(await work.ask(9100)) == {9100: b"m 1\n"}
    for _ in range(2):
        assert (await work.fails(seconds=IMPATIENT))[0] == "timeout"
    (tmp_path / "now").touch()
    async with asyncio.timeout(PATIENT):
        while not (heard := bodies(await work.ask(9100))):
            pass
    assert heard == {9100: b"m 3\n"}
    assert [(call.opened, call.failures) for call in work.channel.calls()] == [(1, 0)]


@pytest.mark.slow
async def test_a_call_that_is_late_for_too_long_is_ended(
    qubes: Qubes, line: MakeLine, tmp_path: Path, clock: Clock
) -> None:
    """dom0 has not said that the qube is paused: so its service hangs. It counts as one failure."""
    qubes.set_service(LATE % (tmp_path / "end"))
    qubes.add("work")
    work = line(qube("work", 9100), patience=30.0)
    await work.ask(9100)
    for _ in range(2):
        assert (await work.fails(seconds=IMPATIENT))[0] == "timeout"
    assert [(call.open_seconds is None, call.failures) for call in work.channel.calls()] == [(False, 0)]
    clock.advance(31.0)
    assert (await work.fails())[0] == "timeout"
    assert [(call.open_seconds is None, call.failures) for call in work.channel.calls()] == [(True, 1)]
    (tmp_path / "end").touch()


@pytest.mark.slow
async def test_other_endpoints_do_not_make_it_forget_that_one_is_late(
    qubes: Qubes, line: MakeLine, clock: Clock
) -> None:
    """One that never answers would be late for ever while another one is asked for in between."""
    qubes.set_service(HALF)
    qubes.add("work")
    work = line(qube("work", 9100, 9256), patience=30.0)
    assert bodies(await work.ask(9256))
    for _ in range(2):
        assert (await work.ask(9100, seconds=IMPATIENT))[9100]
    clock.advance(20.0)
    assert bodies(await work.ask(9256)) == {9256: b"m 1\n"}
    clock.advance(20.0)
    assert [call.failures for call in work.channel.calls()] == [0]
    await work.ask(9100)
    assert [call.failures for call in work.channel.calls()] == [1]


# Says that requests overlap, answers for 9256, and never for 9100.
HALF = """#!/bin/sh
read -r greeting
printf '=2\\n'
while read -r request; do
    case "$request" in *" 9256") printf '9256 200 4 0.1  -;overlaps\\nm 1\\n' ;; esac
done
"""


async def test_places_of_the_limiter_are_given_in_the_order_of_waiting() -> None:
    """One that comes when a place becomes free does not overtake those that wait."""
    limiter = ConnectionLimiter(1)
    order: list[str] = []

    async def hold(name: str) -> None:
        async with limiter.place():
            order.append(name)

    async with limiter.place():
        waiting = [asyncio.create_task(hold(name)) for name in ("first", "second", "third")]
        await asyncio.sleep(0)
    await hold("newcomer")
    await asyncio.gather(*waiting)
    assert order == ["first", "second", "third", "newcomer"]


async def test_a_place_that_is_given_back_twice_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time that a set-up may take, and then by the end of the set-up: there are no more places than before."""
    monkeypatch.setattr("federator.call.SETUP_SECONDS", 0.0)
    limiter = ConnectionLimiter(1)
    async with limiter.place():
        await soon("its time is over", lambda: "0 of 1 used" in repr(limiter))
    assert "0 of 1 used" in repr(limiter)
