# SPDX-License-Identifier: GPL-3.0-or-later
"""One fleet, reconfigured in place: what stays, what goes, and what one limit for all calls means."""

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federator import config, host
from federator.counters import Counters
from federator.fleet import Fleet
from federator.model import Config, Limits
from federator.scrape import Scraper
from federator.statelog import StateLog
from tests.helpers import SERVICE, Clock, soon
from tests.parts import Exporter, eventually, toml
from tests.standin.qubes import Qubes

MakeExporter = Callable[[bytes], Exporter]
MakeFleet = Callable[[Config], tuple[Fleet, Scraper]]

# Called as qrexec-client-vm is. Notes how many like it are being set up, itself included, and becomes the service.
CLIENT = """#!/bin/sh
mine=$(mktemp "{folder}/setting-up/XXXXXX")
ls "{folder}/setting-up" | wc -l >>"{folder}/at-once"
sleep 0.1
rm "$mine"
case "$4" in
admin.vm.List) printf '0\\0dom0 class=AdminVM state=Running\\n' ;;
*) exec {service} "${{4#*+}}" ;;
esac
"""


@pytest.fixture
async def make() -> AsyncIterator[MakeFleet]:
    """Makes fleets, and closes them."""
    host.watch_children()
    made: list[Fleet] = []

    def start(settings: Config) -> tuple[Fleet, Scraper]:
        counters = Counters()
        fleet = Fleet(settings, counters)
        made.append(fleet)
        return fleet, Scraper(fleet, StateLog(), counters)

    yield start
    for fleet in made:
        await fleet.close()


def local(of: dict[str, dict[str, int]]) -> Config:
    """A configuration of local qubes."""
    return config.parse(toml(of, transport="local"), Path("x.toml"))


async def test_a_reload_keeps_what_is_as_before(make: MakeFleet, exporter: MakeExporter) -> None:
    """The open call of a qube that did not change serves on, its text is followed; other labels make no new call."""
    port = exporter(b"m 1\n").port
    settings = local({"work": {"node": port}})
    fleet, scraper = make(settings)
    await scraper.collect(fleet.targets, 20.0)
    fleet.reconfigure(local({"work": {"node": port}}))
    assert fleet.remembers(fleet.targets[0])
    (qube,) = settings.qubes
    labelled = replace(qube.targets[0], labels=(("owner", "alice"),))
    fleet.reconfigure(replace(settings, qubes=(replace(qube, targets=(labelled,), labels=labelled.labels),)))
    (outcome,) = (await scraper.collect(fleet.targets, 20.0)).outcomes
    assert outcome.reading is not None
    assert b'owner="alice"' in outcome.reading.blocks[0]
    assert [call.opened for call in fleet.channel("work").calls()] == [1]


async def test_what_a_reload_takes_away_is_let_go(make: MakeFleet, exporter: MakeExporter) -> None:
    """The call of a qube that left ends, and so does that of one with other ports; their texts are forgotten."""
    a, b = exporter(b"a 1\n"), exporter(b"b 1\n")
    fleet, scraper = make(local({"work": {"a": a.port}, "personal": {"a": a.port}}))
    await scraper.collect(fleet.targets, 20.0)
    work, personal = fleet.targets
    fleet.reconfigure(local({"work": {"a": a.port, "b": b.port}}))
    assert (fleet.remembers(work), fleet.remembers(personal)) == (True, False)
    assert len((await scraper.collect(fleet.targets, 20.0)).outcomes) == 2
    assert [call.opened for call in fleet.channel("work").calls()] == [1], "a new channel, for both ports"
    assert fleet.departures == 1


@pytest.mark.slow
async def test_a_reload_that_drops_a_port_or_a_qube_ends_its_call(
    qubes: Qubes, make: MakeFleet, exporter: MakeExporter
) -> None:
    """dom0 does not end a call whose permission it takes away, so we end what we do not need any more."""
    a, b = exporter(b"a 1\n"), exporter(b"b 1\n")
    for name in ("work", "personal"):
        qubes.add(name)

    def wanting(of: dict[str, dict[str, int]]) -> Config:
        return config.parse(toml(of, client=qubes.client), Path("x.toml"))

    fleet, scraper = make(wanting({"work": {"a": a.port, "b": b.port}, "personal": {"a": a.port}}))
    await scraper.collect(fleet.targets, 20.0)
    assert qubes.left_behind()
    fleet.reconfigure(wanting({"work": {"a": a.port}}))
    await soon("both calls have ended", lambda: not qubes.left_behind())
    await scraper.collect(fleet.targets, 20.0)
    assert qubes.calls("work")[-1][1] == f"ruddo.PrometheusProxy+{a.port}"
    assert len(qubes.calls("personal")) == 1


async def test_other_limits_are_another_judgement(make: MakeFleet, exporter: MakeExporter) -> None:
    """What was judged by the old limits is not remembered under the new ones, but calls stay."""
    fleet, scraper = make(local({"work": {"node": exporter(b'm{a="12345"} 1\n').port}}))
    await scraper.collect(fleet.targets, 20.0)
    scrape = replace(fleet.config.scrape, limits=Limits(label_value_length=4))
    fleet.reconfigure(replace(fleet.config, scrape=scrape))
    assert not fleet.remembers(fleet.targets[0])
    (outcome,) = (await scraper.collect(fleet.targets, 20.0)).outcomes
    assert outcome.reading is None
    assert [call.opened for call in fleet.channel("work").calls()] == [1]


async def test_a_qube_that_leaves_while_it_is_read_holds_no_memory(make: MakeFleet, exporter: MakeExporter) -> None:
    """Its scrape goes on to its end; what was read is of no more use."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    fleet, scraper = make(local({"work": {"slow": slow.port}}))
    (target,) = fleet.targets
    collecting = asyncio.create_task(scraper.collect({target}, 20.0))
    await asyncio.to_thread(eventually, "it is asked", lambda: slow.requests)
    fleet.reconfigure(replace(fleet.config, qubes=()))
    slow.hold.set()
    (outcome,) = (await collecting).outcomes
    assert outcome.reading is not None
    assert not fleet.remembers(target)


@pytest.mark.slow
async def test_one_limit_for_all_calls_over_reloads(make: MakeFleet, exporter: MakeExporter, tmp_path: Path) -> None:
    """With connect_limit 1 no two calls are set up at one time: not of kept, new or discovered qubes, nor dom0's."""
    client = tmp_path / "client"
    client.write_text(CLIENT.format(folder=tmp_path, service=SERVICE), encoding="utf-8")
    client.chmod(0o755)
    (tmp_path / "setting-up").mkdir()
    port = exporter(b"m 1\n").port

    def settings(qubes: int) -> Config:
        text = toml(
            {f"q{number}": {"x": port} for number in range(qubes)},
            client=client,
            qrexec="connect_limit = 1\n",
            rest="[discovery]\nrefresh_interval = '1s'\n",
        )
        return config.parse(text, tmp_path / "x.toml")

    fleet, scraper = make(settings(1))
    for qubes in range(2, 5):
        fleet.reconfigure(settings(qubes))
    await asyncio.gather(fleet.refresh(20.0), scraper.collect(fleet.targets, 20.0))
    at_once = (tmp_path / "at-once").read_text(encoding="utf-8").split()
    assert at_once == ["1"] * 5, "four qubes and dom0"


@pytest.mark.parametrize("source", ["admin.vm.List", "ruddo.PrometheusDiscover"])
async def test_dom0_cannot_be_asked_without_a_client(make: MakeFleet, tmp_path: Path, source: str) -> None:
    """Both ways to ask say the same."""
    rest = f"[discovery]\nsource = '{source}'\n"
    text = toml({"work": {"x": 9100}}, client=tmp_path / "missing", rest=rest)
    fleet, _ = make(config.parse(text, tmp_path / "x.toml"))
    await fleet.refresh(20.0)
    assert fleet.discovery_error is not None
    assert fleet.discovery_error.reason == "closed"
    assert "cannot be started" in str(fleet.discovery_error)


async def test_the_state_is_shown_to_a_debugger(make: MakeFleet, exporter: MakeExporter) -> None:
    """By repr: of the fleet, of its channels and their calls, and of what is under way."""
    fleet, scraper = make(local({"work": {"node": exporter(b"m 1\n").port}}))
    assert "1 qubes, 1 targets" in repr(fleet)
    await scraper.collect(fleet.targets, 20.0)
    assert "Channel to work: free" in repr(fleet)
    assert "opened=1" in repr(fleet.channel("work"))
    assert "Scraper of <Fleet" in repr(scraper)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["admin.vm.List", "ruddo.PrometheusDiscover"])
async def test_dom0_that_refuses_is_asked_later_and_later(
    make: MakeFleet, qubes: Qubes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    """Each question costs it as much as one that it answers: after 10 s, 20 s, 40 s, and so on up to backoff_max."""
    clock = Clock(monkeypatch)
    qubes.add("dom0", policy="deny", install=False)
    rest = f"[discovery]\nrefresh_interval = '10s'\nsource = '{source}'\n"
    text = toml({"work": {"x": 9100}}, client=qubes.client, rest=rest, qrexec="backoff_max = '1m'\n")
    fleet, _ = make(config.parse(text, tmp_path / "x.toml"))
    asked_at = []
    for second in range(300):
        calls = len(qubes.calls("dom0"))
        await fleet.refresh(20.0)
        asked_at += [second] if len(qubes.calls("dom0")) > calls else []
        clock.advance(1.0)
    waits = [later - earlier for earlier, later in itertools.pairwise(asked_at)]
    for wait, nominal in zip(waits, (10, 20, 40, 60, 60), strict=False):
        assert nominal * 0.75 < wait < nominal * 1.25 + 2
    assert len(waits) >= 4
    assert fleet.discovery_error is not None
    assert fleet.discovery_error.reason == "refused"


@pytest.mark.slow
async def test_large_texts_at_one_time_cost_the_largest_and_nobody_else(
    make: MakeFleet, exporter: MakeExporter
) -> None:
    """What is received and read at one time is bounded for all together; small texts of others are read."""
    honest = exporter(b"m 1\n")
    hostile = [exporter(b"".join(b'x{a="%d"} 1\n' % number for number in range(60_000))) for _ in range(8)]
    names = {f"large{number}": one.port for number, one in enumerate(hostile)}
    settings = local({"work": {"honest": honest.port}, "evil": names})
    scrape = replace(settings.scrape, memory_limit=6 << 20, limits=Limits(samples=1_000_000))
    fleet, scraper = make(replace(settings, scrape=scrape))
    outcomes = {one.target.exporter.name: one for one in (await scraper.collect(fleet.targets, 60.0)).outcomes}
    assert outcomes["honest"].reading is not None
    given_up = [one.error for name, one in outcomes.items() if name != "honest" and one.error]
    assert {error.reason for error in given_up} == {"body_size_limit"}
    assert all("scrape.memory_limit" in str(error) for error in given_up)
    assert 4 <= len(given_up) <= 8
    assert fleet.texts.total == 0


def many(samples: int) -> bytes:
    """A text of so many series, of some 40 bytes each on the page."""
    return b"".join(b'x{a="%d"} 1\n' % number for number in range(samples))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "samples", "reason", "remedy"),
    [
        (6 << 20, 1_000_000, "body_size_limit", "raise scrape.memory_limit"),
        (160 << 20, 12_000, "sample_limit", "raise scrape.sample_limit"),
    ],
)
async def test_a_page_that_would_be_too_large_loses_the_texts_of_the_qubes_that_send_most(
    make: MakeFleet, exporter: MakeExporter, memory: int, samples: int, reason: str, remedy: str
) -> None:
    """Not those of a qube that sends its share, though each of the others' texts is smaller than its one text."""
    honest = exporter(many(6000))
    names = {f"part{number}": exporter(many(5000)).port for number in range(4)}
    more = {f"more{number}": exporter(many(5000)).port for number in range(8)}
    settings = local({"work": {"honest": honest.port}, "evil": names, "worse": more})
    scrape = replace(settings.scrape, memory_limit=memory, limits=Limits(samples=samples))
    fleet, scraper = make(replace(settings, scrape=scrape))
    snapshot = await scraper.collect(fleet.targets, 60.0)
    qubes = {one.qube.name: one for one in snapshot.qubes}
    assert qubes["work"].outcomes[0].reading is not None
    page = sum(outcome.page_size for outcome in snapshot.outcomes)
    assert page <= memory // 6
    assert sum(outcome.samples for outcome in snapshot.outcomes) <= 4 * samples
    taken = [outcome for outcome in snapshot.outcomes if outcome.error]
    assert {outcome.error.reason for outcome in taken if outcome.error} == {reason}
    assert all(remedy in str(outcome.error) for outcome in taken)
    assert all(outcome.body_size > 0 for outcome in taken), "how large it was is told"
    assert 1 <= len(taken) < len(names) + len(more), "no more than needed"
    assert (fleet.texts.total, fleet.texts_read.total) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "stays"),
    [
        ({"client": "/other/client"}, False),
        ({"local_service": Path("/other/service")}, False),
        ({"buffer_size": 1 << 16}, False),
        ({"connect_limit": 1, "backoff_initial": 1.0, "backoff_max": 2.0}, True),
    ],
    ids=["client", "local_service", "buffer_size", "what changes no call"],
)
async def test_a_reload_makes_new_calls_where_they_are_made_otherwise(
    make: MakeFleet, changes: dict[str, Any], *, stays: bool
) -> None:
    """The qube has a new channel then; any other setting leaves its calls alone."""
    fleet, _ = make(local({"work": {"x": 9100}}))
    before = fleet.channel("work")
    fleet.reconfigure(replace(fleet.config, qrexec=replace(fleet.config.qrexec, **changes)))
    assert (fleet.channel("work") is before) == stays


async def test_a_qube_that_is_called_otherwise_has_a_new_channel(make: MakeFleet) -> None:
    """With other ports, or over another transport."""
    fleet, _ = make(local({"work": {"x": 9100}}))
    before = fleet.channel("work")
    (qube,) = fleet.config.qubes
    fleet.reconfigure(replace(fleet.config, qubes=(replace(qube, transport="qrexec"),)))
    other_transport = fleet.channel("work")
    assert other_transport is not before
    fleet.reconfigure(config.parse(toml({"work": {"x": 9200}}), Path("x.toml")))
    assert fleet.channel("work") is not other_transport


# Tells that it runs, and greets when it may.
SLOW_TO_GREET = """#!/bin/sh
: >"{folder}/runs-$QREXEC_REMOTE_DOMAIN"
while ! [ -e "{folder}/greets" ]; do sleep 0.02; done
exec {service} "$1"
"""


async def test_a_higher_limit_is_for_the_calls_that_wait_already(
    make: MakeFleet, exporter: MakeExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload that raises connect_limit lets them begin at once."""
    monkeypatch.setattr("federator.call.SETUP_SECONDS", 1000.0)
    service = tmp_path / "service"
    service.write_text(SLOW_TO_GREET.format(folder=tmp_path, service=SERVICE), encoding="utf-8")
    service.chmod(0o755)
    port = exporter(b"m 1\n").port
    of = {name: {"x": port} for name in ("a", "b", "c")}
    text = toml(of, transport="local", qrexec="connect_limit = 1\n").replace(str(SERVICE), str(service))
    fleet, scraper = make(config.parse(text, tmp_path / "x.toml"))
    collecting = asyncio.create_task(scraper.collect(fleet.targets, 30.0))

    def running() -> int:
        return len(list(tmp_path.glob("runs-*")))

    await soon("one is called", running)
    await asyncio.sleep(0.2)
    assert running() == 1
    fleet.reconfigure(replace(fleet.config, qrexec=replace(fleet.config.qrexec, connect_limit=2)))
    await soon("a second one is called", lambda: running() == 2)
    (tmp_path / "greets").touch()
    assert all(outcome.reading for outcome in (await collecting).outcomes)


@pytest.mark.slow
async def test_a_reload_while_dom0_is_asked_asks_anew(make: MakeFleet, tmp_path: Path) -> None:
    """Under the new settings and at once; how the old question ends is of no more interest."""
    client = tmp_path / "client"
    client.write_text(f"#!/bin/sh\n: >{tmp_path}/asked\nexec sleep 1000\n", encoding="utf-8")
    client.chmod(0o755)
    text = toml({"work": {"x": 9100}}, client=client, rest="[discovery]\nrefresh_interval = '10m'\n")
    fleet, _ = make(config.parse(text, tmp_path / "x.toml"))
    before = asyncio.create_task(fleet.refresh(100.0))
    await soon("dom0 is asked", (tmp_path / "asked").exists)
    other = tmp_path / "other"
    other.write_text(CLIENT.format(folder=tmp_path, service=SERVICE), encoding="utf-8")
    other.chmod(0o755)
    (tmp_path / "setting-up").mkdir()
    fleet.reconfigure(config.parse(text.replace(str(client), str(other)), tmp_path / "x.toml"))
    async with asyncio.timeout(8):  # the old question would take ten seconds to be given up
        await fleet.refresh(100.0)
        await before
    assert fleet.knows_states
    await asyncio.sleep(1.5)  # the old client ends by SIGTERM
    assert fleet.knows_states
    assert fleet.discovery_error is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "then",
    ["exec sleep 1000", "trap '' TERM; while :; do sleep 0.05; done"],
    ids=["it does not end", "it ignores SIGTERM"],
)
async def test_a_question_to_dom0_is_ended_with_the_fleet(make: MakeFleet, tmp_path: Path, then: str) -> None:
    """Its process is killed where it does not end by itself."""
    client = tmp_path / "client"
    client.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/new\nmv {tmp_path}/new {tmp_path}/pid\n{then}\n", "utf-8")
    client.chmod(0o755)
    text = toml({"work": {"x": 9100}}, client=client, rest="[discovery]\n")
    fleet, _ = make(config.parse(text, tmp_path / "x.toml"))
    asking = asyncio.create_task(fleet.refresh(100.0))
    await soon("dom0 is asked", (tmp_path / "pid").exists)
    async with asyncio.timeout(20):
        await fleet.close()
        await asking
    process = Path("/proc") / (tmp_path / "pid").read_text(encoding="utf-8").strip()
    assert not process.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("admin.vm.List", "0\0dom0 class=AdminVM state=Running\n"),
        ("ruddo.PrometheusDiscover", "5\nwork\n"),
    ],
)
async def test_dom0_that_answers_while_the_daemon_stops_is_no_bug(
    make: MakeFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, source: str, answer: str
) -> None:
    """Nobody waits for the answer any more; the log says nothing of it."""
    client = tmp_path / "client"
    client.write_text(
        f"#!{sys.executable} -IS\nimport signal, sys\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "if sys.argv[4] != 'admin.vm.List':\n"
        "    sys.stdin.readline()\n    print('=', flush=True)\n    sys.stdin.readline()\n"
        f"open('{tmp_path}/asked', 'w').close()\nsignal.sigwait([signal.SIGTERM])\n"
        f"print({answer!r}, end='', flush=True)\nopen('{tmp_path}/answered', 'w').close()\n",
        encoding="utf-8",
    )
    client.chmod(0o755)
    text = toml({"work": {"x": 9100}}, client=client, rest=f"[discovery]\nsource = '{source}'\n")
    fleet, _ = make(config.parse(text, tmp_path / "x.toml"))
    asking = asyncio.create_task(fleet.refresh(100.0))
    await soon("dom0 is asked", (tmp_path / "asked").exists)
    await fleet.close()
    await asking
    await soon("it answered", (tmp_path / "answered").exists)
    await asyncio.sleep(0.1)
    assert caplog.text == ""


async def test_no_error_of_discovery_that_is_kept_holds_what_its_frames_held(
    make: MakeFleet, tmp_path: Path, kept_tracebacks: Callable[[], list[str]]
) -> None:
    """The last one is kept until dom0 answers again."""
    text = toml({"work": {"x": 9100}}, client=tmp_path / "missing", rest="[discovery]\n")
    fleet, _ = make(config.parse(text, tmp_path / "x.toml"))
    await fleet.refresh(20.0)
    assert fleet.discovery_error is not None
    assert kept_tracebacks() == []
