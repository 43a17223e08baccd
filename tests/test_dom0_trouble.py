# SPDX-License-Identifier: GPL-3.0-or-later
"""A dom0 that is silent, refuses, is restarted or says nonsense, and qubes that come and go meanwhile."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from federator import dom0_calls, dom0_round
from federator.dom0 import SILENCE_SECONDS, Dom0Figures
from federator.dom0_calls import TIMEOUT_SECONDS
from federator.dom0_figures import STATS_SECONDS
from federator.dom0_replies import FEATURE, LIST, POOL, POOL_USAGE, POOLS, PROPERTIES, STATS, VOLUME
from federator.model import Config
from tests.helpers import Clock, soon
from tests.parts import Daemon, Prometheus, eventually
from tests.standin.qubes import Qubes
from tests.test_dom0 import EVERYTHING, asking_dom0, deny, failures, names

# They wait for processes, one after the other.
pytestmark = pytest.mark.slow

MakeDaemon = Callable[..., Daemon]
INTERVAL = 30.0  # of EVERYTHING
SHORT_CALLS = (LIST, POOLS, POOL, POOL_USAGE, PROPERTIES, VOLUME, FEATURE)
# The families that are there by each call.
FAMILIES = {
    STATS: {
        "qube_cpu_seconds_total",
        "qube_stubdomain_cpu_seconds_total",
        "qube_vcpus",
        "qube_memory_assigned_bytes",
        "qube_memory_usable_bytes",
        "qube_memory_used_bytes",
        "qube_swap_used_bytes",
    },
    LIST: {"qube_running", "qube_state", "qube_last_seen_running_timestamp_seconds"},
    POOLS: {"qubes_pool_size_bytes", "qubes_pool_usage_bytes"},
    POOL_USAGE: {"qubes_pool_metadata_size_bytes", "qubes_pool_metadata_usage_bytes"},
    PROPERTIES: {"qube_info"},
    VOLUME: {"qube_volume_size_bytes", "qube_volume_usage_bytes"},
    FEATURE: {"qube_updates_available", "qube_os_eol_timestamp_seconds"},
}
ALL = set().union(*FAMILIES.values())
# What goes with a call that dom0 does not answer: what was to be asked next, too.
LOST = {
    **FAMILIES,
    POOLS: FAMILIES[POOLS] | FAMILIES[POOL_USAGE],
    POOL: set(),  # UsageDetails says the same
    LIST: FAMILIES[LIST] | FAMILIES[PROPERTIES] | FAMILIES[VOLUME] | FAMILIES[FEATURE],
}


class Asking:
    """What asks dom0, without a page: a scrape is a call of `scrape`."""

    def __init__(self, figures: Dom0Figures, config: Config, clock: Clock) -> None:
        self.dom0 = figures
        self.config = config
        self.clock = clock

    def scrape(self) -> str:
        """Somebody scrapes; what the page has of dom0."""
        self.dom0.somebody_scrapes({})
        return self.page()

    def page(self) -> str:
        """What there is of dom0."""
        return b"".join(self.dom0.figures.reading(asyncio.get_running_loop().time()).blocks).decode()


Ask = Callable[..., Asking]


@pytest.fixture
async def ask(machine: Qubes, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ask]:
    """Starts what asks the machine's dom0, in a hurry: for everything, where no table is given."""
    monkeypatch.setattr(dom0_round, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(dom0_calls, "TIMEOUT_SECONDS", 1e6)  # calls are under way while tests advance the clock
    clock = Clock(monkeypatch)
    ends: list[Callable[[], Awaitable[None]]] = []

    def start(table: str = EVERYTHING) -> Asking:
        figures, fleet = asking_dom0(machine, table, "backoff_initial = '1s'\nbackoff_max = '1s'\n")
        ends.extend([figures.close, fleet.close])
        return Asking(figures, fleet.config, clock)

    yield start
    for end in ends:
        await end()


def says(machine: Qubes, file: str, text: str | bytes) -> None:
    """Give dom0 a file of the stand-in, whole; an empty one is none."""
    path = machine.root / "qubes" / "dom0" / file
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(text if isinstance(text, bytes) else text.encode())
    new.replace(path)


def calls_of(machine: Qubes, service: str) -> int:
    """How often it was called."""
    return sum(called.startswith(f"{service}+") for _, called, _ in machine.calls())


# -- silence ---------------------------------------------------------------------------------------------------------


async def test_a_stream_that_is_silent_is_opened_again(ask: Ask, machine: Qubes) -> None:
    """After three intervals nothing old is shown; the page says why."""
    asking = ask("[dom0]\nstorage = false\n")
    await soon("statistics come", lambda: names(asking.scrape()) == FAMILIES[STATS])
    says(machine, "trouble", "silent")

    def statistics_are_gone() -> bool:
        asking.clock.advance(1)
        return not names(asking.scrape())

    await soon("they are gone", statistics_are_gone)
    assert calls_of(machine, STATS) == 1
    asking.clock.advance(SILENCE_SECONDS)
    await soon("it is called again", lambda: (asking.scrape(), calls_of(machine, STATS))[1] == 2)
    asking.clock.advance(SILENCE_SECONDS - 5)  # until it is given up, too
    assert failures(asking.scrape()) == {STATS: "timeout"}
    says(machine, "trouble", "")
    await soon("statistics come", lambda: names(asking.scrape()) == FAMILIES[STATS])
    await soon("no failure is left", lambda: not failures(asking.scrape()))


async def test_no_statistics_are_older_than_three_intervals(ask: Ask, machine: Qubes) -> None:
    """To the second."""
    asking = ask("[dom0]\nstorage = false\n")
    says(machine, "seconds", "1000")
    await soon("statistics come", lambda: 'qube_vcpus{qube="work"}' in asking.scrape())
    asking.clock.advance(3 * STATS_SECONDS - 5)
    assert names(asking.scrape()) == FAMILIES[STATS]
    asking.clock.advance(5)
    assert not names(asking.scrape())


@pytest.mark.parametrize("mute", SHORT_CALLS)
async def test_a_call_that_is_never_answered_costs_its_own_figures(
    ask: Ask, machine: Qubes, mute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a time it is given up, and the next call is made."""
    monkeypatch.setattr(dom0_calls, "TIMEOUT_SECONDS", TIMEOUT_SECONDS)
    says(machine, "mute", mute)
    asking, seen = ask(), set[int]()

    def is_given_up() -> bool:
        calls = [called for _, called, _ in machine.calls() if called != f"{STATS}+"]
        if calls and len(calls) not in seen and calls[-1].startswith(f"{mute}+"):
            seen.add(len(calls))
            asking.clock.advance(TIMEOUT_SECONDS + 1)
        return failures(asking.scrape()).get(mute) == "timeout" and names(asking.scrape()) == ALL - LOST[mute]

    await soon("the others come", is_given_up)
    assert set(failures(asking.scrape())) == {mute}


async def test_a_silent_qubesd_is_not_waited_for_at_each_qube(
    ask: Ask, machine: Qubes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three calls in a row without an answer say that it hangs: no fourth qube is asked in this round."""
    monkeypatch.setattr(dom0_calls, "TIMEOUT_SECONDS", TIMEOUT_SECONDS)
    for number in range(4):
        machine.add(f"q{number}", state="Halted")
    says(machine, "mute", VOLUME)
    asking = ask("[dom0]\nstats = false\nstorage = false\nvolumes = true\n")
    given_up, idle = 0, len(asyncio.all_tasks())

    def is_over() -> bool:
        nonlocal given_up
        if (calls := calls_of(machine, VOLUME)) > given_up:
            given_up = calls
            asking.clock.advance(TIMEOUT_SECONDS + 1)
        return given_up > 1 and len(asyncio.all_tasks()) == idle

    asking.scrape()
    await soon("the round is over", is_over)
    private = [target for target, called, _ in machine.calls() if called == f"{VOLUME}+private"]
    assert len(private) == dom0_round.MAX_UNANSWERED
    assert failures(asking.page())[VOLUME] == "timeout"


async def test_a_qubesd_that_hangs_up_is_not_asked_of_each_qube(ask: Ask, machine: Qubes) -> None:
    """Nor is it asked more often than docs/dom0.md says whether a qube was removed."""
    for number in range(4):
        machine.add(f"q{number}", state="Halted")
    says(machine, f"replies/{VOLUME}", b"")
    asking, idle = ask("[dom0]\nstats = false\nstorage = false\nvolumes = true\n"), len(asyncio.all_tasks())
    asking.scrape()
    await soon("the round is over", lambda: VOLUME in failures(asking.page()) and len(asyncio.all_tasks()) == idle)
    asked = [target for target, called, _ in machine.calls() if called == f"{VOLUME}+private"]
    assert len(asked) == dom0_round.MAX_UNANSWERED
    assert calls_of(machine, LIST) == 1 + len({target for target, _, _ in machine.calls()} - {"dom0"})


# -- refusals --------------------------------------------------------------------------------------------------------


# test_dom0.py has those that are about qubes.
@pytest.mark.parametrize("denied", [STATS, LIST, POOLS, POOL, POOL_USAGE])
async def test_a_refused_call_costs_its_own_figures(ask: Ask, machine: Qubes, denied: str) -> None:
    """The page names it."""
    deny(machine, denied)
    asking = ask()
    await soon("the others come", lambda: names(asking.scrape()) == ALL - LOST[denied])
    await soon("it is told", lambda: failures(asking.scrape()) == {denied: "refused"})
    deny(machine, "")
    asking.clock.advance(INTERVAL)
    await soon("all is there", lambda: names(asking.scrape()) == ALL and not failures(asking.scrape()))


@pytest.mark.parametrize("denied", [PROPERTIES, VOLUME, FEATURE])
async def test_what_was_refused_is_asked_for_again(ask: Ask, machine: Qubes, denied: str) -> None:
    """In the next round, whether anything changed or not: its line may be there now."""
    deny(machine, denied)
    asking = ask()
    await soon("the others come", lambda: names(asking.scrape()) == ALL - LOST[denied])
    await soon("it is asked for no more", lambda: calls_of(machine, denied) == dom0_round.MAX_UNANSWERED)
    deny(machine, "")
    asking.clock.advance(INTERVAL)
    await soon("all is there", lambda: names(asking.scrape()) == ALL and not failures(asking.scrape()))
    if denied == PROPERTIES:
        await soon("all qubes tell theirs", lambda: asking.scrape().count("qube_info{") == 3)


@pytest.mark.parametrize(
    ("denied", "lost", "others"),
    [
        (f"{VOLUME}+root", 'volume="root"', 'qube_volume_size_bytes{qube="work",volume="private"}'),
        (f"{VOLUME}+private", 'volume="private"', 'qube_volume_size_bytes{qube="debian-12",volume="root"}'),
        (f"{FEATURE}+os-eol", "qube_os_eol_timestamp_seconds{", 'qube_updates_available{qube="debian-12"}'),
        (f"{FEATURE}+updates-available", "qube_updates_available{", 'qube_os_eol_timestamp_seconds{qube="debian-12"}'),
    ],
)
async def test_a_refused_argument_costs_what_it_is_for(
    ask: Ask, machine: Qubes, denied: str, lost: str, others: str
) -> None:
    """The other argument's figures stay."""
    deny(machine, denied)
    asking = ask()
    await soon("the others come", lambda: others in asking.scrape())
    await soon("it is refused", lambda: any(one[1:] == (denied, "deny") for one in machine.calls()))
    await soon("it is told", lambda: failures(asking.scrape()) == {denied.partition("+")[0]: "refused"})
    assert lost not in asking.scrape()


@pytest.mark.parametrize("missing", [POOL_USAGE, VOLUME])
async def test_a_release_without_a_call_lacks_its_figures(ask: Ask, machine: Qubes, missing: str) -> None:
    """Whatever is called by it. It cannot be installed, so nobody is told to do so."""
    (machine.root / "qubes" / "dom0" / "services" / missing).unlink()
    asking = ask()
    await soon("the others come", lambda: names(asking.scrape()) == ALL - LOST[missing])
    await soon("it is told", lambda: failures(asking.scrape()) == {missing: "no_service"})
    assert str(asking.dom0.answers[missing]) == f"this release of Qubes does not have {missing}"


# -- qubes and qubesd come and go ------------------------------------------------------------------------------------


async def test_a_qube_that_is_removed_has_no_series_at_the_next_refresh(ask: Ask, machine: Qubes) -> None:
    """Nor has a qube that was renamed its old name."""
    asking = ask()
    await soon("all is there", lambda: names(asking.scrape()) == ALL)
    (machine.root / "qubes" / "work").rename(machine.root / "qubes" / "job")
    shutil.rmtree(machine.root / "qubes" / "debian-12")
    asking.clock.advance(INTERVAL)
    families = ("qube_info", "qube_state", "qube_vcpus", "qube_volume_size_bytes")
    await soon("job is there", lambda: all(f'{one}{{qube="job"' in asking.scrape() for one in families))
    page = asking.scrape()
    assert '"work"' not in page
    assert 'qube="debian-12"' not in page
    assert 'qube="vault"' in page


async def test_of_a_qube_elsewhere_nothing_is_asked_that_dom0_cannot_answer(ask: Ask, machine: Qubes) -> None:
    """dom0 has no volumes of a RemoteVM, and says that it runs, whether it does or not."""
    machine.add("far")
    (machine.root / "qubes" / "far" / "class").write_text("RemoteVM")
    asking = ask()
    await soon("all qubes tell theirs", lambda: asking.scrape().count("qube_info{") == 4)
    await soon("the round is over", lambda: names(asking.scrape()) == ALL)
    assert {called for target, called, _ in machine.calls() if target == "far"} == {f"{PROPERTIES}+"}
    assert 'qube_running{qube="work"} 1' in asking.page()
    assert not re.search('^qube_(running|state|last.*){qube="far"', asking.page(), re.MULTILINE)


async def test_discovery_tells_of_a_removed_qube_at_once(ask: Ask) -> None:
    """Its answer is newer than that of the last round. What says nothing of any qube removes none."""
    asking = ask(EVERYTHING + "[discovery]\n")
    all_three = {"work": "Running", "vault": "Halted", "debian-12": "Halted"}
    await soon("all qubes tell theirs", lambda: asking.scrape().count("qube_info{") == 3)
    asking.dom0.somebody_scrapes(all_three)
    asking.dom0.somebody_scrapes({name: state for name, state in all_three.items() if name != "vault"})
    assert 'qube="vault"' not in asking.page()
    asking.dom0.somebody_scrapes({})  # an answer that is too old
    assert 'qube_info{qube="work"' in asking.page()


async def test_a_source_that_names_running_qubes_alone_removes_none(ask: Ask, machine: Qubes) -> None:
    """A qube that it does not name any more is halted, and dom0 knows as much of it as before."""
    asking = ask(EVERYTHING + "[discovery]\nsource = 'ruddo.PrometheusDiscover'\n")
    both, one = {"work": "Running", "other": "Running"}, {"other": "Running"}
    machine.add("other")
    asking.dom0.somebody_scrapes(both)
    await soon("all qubes tell theirs", lambda: asking.scrape().count("qube_info{") == 4)
    await soon("the round is over", lambda: names(asking.scrape()) == ALL)
    assert 'qube_running{qube="vault"} 0' in asking.page()
    asking.dom0.somebody_scrapes(one)
    page = asking.page()
    assert re.search('^qube_(info|volume.*){qube="work"', page, re.MULTILINE)
    assert 'qube_last_seen_running_timestamp_seconds{qube="work"}' in page
    assert not re.search('^qube_(running|state){qube="work"', page, re.MULTILINE)
    assert 'qube_running{qube="other"} 1' in page


async def test_a_qube_that_was_removed_while_dom0_was_silent_is_forgotten(ask: Ask) -> None:
    """As soon as discovery knows again what there is."""
    asking = ask(EVERYTHING + "[discovery]\n")
    asking.dom0.somebody_scrapes({"work": "Running", "gone": "Running"})
    asking.dom0.somebody_scrapes({})
    asking.dom0.somebody_scrapes({"work": "Running"})
    assert 'qube="gone"' not in asking.page()
    assert 'qube_running{qube="work"} 1' in asking.page()


async def test_a_table_that_comes_again_is_as_at_first(ask: Ask, machine: Qubes) -> None:
    """Without it nothing is shown, nor asked; with it everything is, what discovery said before included."""
    asking = ask(EVERYTHING + "[discovery]\n")
    states, nobody = {"work": "Running", "vault": "Halted", "debian-12": "Halted"}, len(asyncio.all_tasks())
    asking.dom0.somebody_scrapes(states)
    await soon("it is in the middle of a round", lambda: calls_of(machine, VOLUME))
    with_it = asking.config
    asking.dom0.reconfigure(replace(with_it, dom0=None))
    asking.dom0.somebody_scrapes(states)
    await soon("nothing is asked", lambda: len(asyncio.all_tasks()) <= nobody)
    asking.clock.advance(INTERVAL)
    asking.dom0.somebody_scrapes(states)
    assert (asking.page(), len(asyncio.all_tasks())) == ("", nobody)
    asking.dom0.reconfigure(with_it)
    asking.dom0.somebody_scrapes(states)
    assert 'qube_running{qube="work"} 1' in asking.page()
    await soon("all is there", lambda: names(asking.scrape()) == ALL and not failures(asking.scrape()))
    assert 'qube_running{qube="dom0"} 1' in asking.page()


@pytest.mark.parametrize("middle", [LIST, POOL, VOLUME, PROPERTIES])
async def test_a_restart_of_qubesd_loses_nothing(ask: Ask, machine: Qubes, middle: str) -> None:
    """Neither in the middle of a round nor of an event: what is known stays, and the next round has the rest."""
    asking = ask()
    says(machine, "mute", middle)
    await soon("statistics come", lambda: names(asking.scrape()) >= FAMILIES[STATS])
    await soon("it is in the middle of a round", lambda: calls_of(machine, middle))
    says(machine, "trouble", "cut")
    await soon("the stream ends", lambda: failures(asking.scrape()).get(STATS) == "closed")
    says(machine, "mute", "")
    await soon("the call ends", lambda: middle in failures(asking.scrape()) or "qube_volume_" in asking.scrape())
    says(machine, "trouble", "")
    asking.clock.advance(INTERVAL)
    await soon("all is there", lambda: names(asking.scrape()) == ALL and not failures(asking.scrape()))
    assert "1000000.0" not in asking.scrape(), "half an event is none"
    await soon("all qubes tell theirs", lambda: asking.scrape().count("qube_info{") == 3)


async def test_what_is_asked_seldom_stays_on_the_page(ask: Ask, machine: Qubes) -> None:
    """Properties, and that dom0 told them, for more than three intervals without a question."""
    asking = ask("[dom0]\nstats = false\nstorage = false\nproperties = true\ninterval = '30s'\n")
    wanted = FAMILIES[PROPERTIES] | FAMILIES[LIST]
    await soon("all qubes tell theirs", lambda: asking.scrape().count("qube_info{") == 3)
    for times in range(2, dom0_round.SELDOM_ROUNDS):
        asking.clock.advance(INTERVAL)
        await soon("the list is asked for", lambda: (asking.scrape(), calls_of(machine, LIST))[1] == times)  # noqa: B023
    assert names(asking.scrape()) == wanted
    assert f'qubes_proxy_dom0_up{{call="{PROPERTIES}"}} 1' in asking.scrape()
    assert calls_of(machine, PROPERTIES) == 3


def test_rates_are_true_through_all_troubles(machine: Qubes, daemon: MakeDaemon, tmp_path: Path) -> None:
    """Of a qube that uses one CPU, for a real Prometheus: no trouble is work, and none takes work away."""
    proxy = daemon({}, qrexec="backoff_initial = '500ms'\nbackoff_max = '500ms'\n", rest="[dom0]\nstorage = false\n")
    query = "qube_cpu_seconds_total"
    started, name = time.monotonic(), "work"

    def used() -> float:
        new = machine.root / "qubes" / name / "cpu.new"
        new.write_text(str(int((time.monotonic() - started) * 1000)), encoding="utf-8")
        new.replace(new.with_name("cpu"))
        return time.monotonic() - started

    def until(what: str, condition: Callable[[], object]) -> None:
        eventually(what, lambda: (used(), condition())[1])

    with Prometheus(tmp_path, proxy.url.removeprefix("http://")).running() as prometheus:

        def goes_on() -> None:
            mark = used() + 3
            until(f"it goes on to {mark}", lambda: prometheus.query(query).get(name, 0) >= mark)

        goes_on()
        for trouble, reason in (("cut", "closed"), ("garbage", "protocol"), ("flood", "protocol")):
            says(machine, "trouble", trouble)
            until("it is told", lambda: failures(proxy.get().text) == {STATS: reason})  # noqa: B023
            says(machine, "trouble", "")
            goes_on()
        says(machine, "trouble", "silent")
        until("it stands still", lambda: prometheus.query(f"changes({query}[3s])").get(name) == 0)
        says(machine, "trouble", "")
        goes_on()
        machine.set_state(name, "Halted")
        until("it is gone", lambda: name not in prometheus.query(query))
        machine.set_state(name, "Running")
        started = time.monotonic()
        goes_on()
        (machine.root / "qubes" / name).rename(machine.root / "qubes" / "job")
        name = "job"
        goes_on()
        until("the old name is gone", lambda: "work" not in prometheus.query(query))
        rates = "rate(qube_cpu_seconds_total{qube!='dom0'}[5s])[5m:1s]"
        most, least = (prometheus.query(f"{of}_over_time({rates})") for of in ("max", "min"))
        assert most.keys() == least.keys() == {"work", "job"}
        assert 0.5 < most["work"] < 4, "one CPU, and the clock of a busy machine"
        assert 0.5 < most["job"] < 4
        assert min(least.values()) >= 0
        for of in ("max", "min"):
            memory = prometheus.query(f"{of}_over_time(qube_memory_used_bytes{{qube='work'}}[5m])")
            assert memory == {"work": 300_000 * 1024}


async def test_rounds_are_no_closer_than_the_interval(ask: Ask) -> None:
    """However often somebody scrapes: docs/dom0.md says how often dom0 is called at most."""
    asking, loop = ask("[dom0]\nstats = false\nstorage = true\ninterval = '30s'\n"), asyncio.get_running_loop()
    tasks, began = len(asyncio.all_tasks()), loop.time()
    asking.scrape()
    await soon("pools come", lambda: names(asking.page()) == FAMILIES[POOLS] | FAMILIES[POOL_USAGE])
    await soon("the round is over", lambda: len(asyncio.all_tasks()) == tasks)
    asking.clock.advance(began + INTERVAL - 2 - loop.time())
    asking.scrape()
    assert len(asyncio.all_tasks()) == tasks
    asking.clock.advance(2)
    asking.scrape()
    assert len(asyncio.all_tasks()) == tasks + 1


async def test_a_reload_asks_again_only_where_something_failed(ask: Ask, machine: Qubes) -> None:
    """However often somebody reloads: else there would be no limit to the calls."""
    asking, idle = ask("[dom0]\nstats = false\n"), len(asyncio.all_tasks())

    def is_over(rounds: int) -> Callable[[], bool]:
        return lambda: (asking.scrape(), calls_of(machine, POOLS) == rounds and len(asyncio.all_tasks()) == idle)[1]

    deny(machine, POOL)
    await soon("a round is over", is_over(1))
    deny(machine, "")
    for _ in range(3):
        asking.dom0.reconfigure(asking.config)
        await soon("a second round is over", is_over(2))
    assert not failures(asking.page())


# -- nonsense --------------------------------------------------------------------------------------------------------

NONSENSE = {
    "large": b"0\0" + b"x=1\n" * (1 << 18),
    "garbage": b"\x00\xff\xc3\x28 garbage \x00\n",
    "empty": b"",
    "exception": b"2\0QubesException\0\0what\0",
}


@pytest.mark.parametrize(
    ("call", "nonsense"),
    [*((call, "large") for call in SHORT_CALLS), *((VOLUME, one) for one in NONSENSE if one != "large")],
)
async def test_nonsense_for_a_reply_costs_its_own_figures(ask: Ask, machine: Qubes, call: str, nonsense: str) -> None:
    """The page names the call; the next one is made."""
    says(machine, f"replies/{call}", NONSENSE[nonsense])
    asking = ask()
    await soon("the others come", lambda: names(asking.scrape()) == ALL - LOST[call])
    await soon("it is told", lambda: failures(asking.scrape()) == {call: "protocol"})


HOSTILE = b'../x\n..\n-x\nx"y\nx\\ny\nx\0y\nx\x1b[2J\n\xff\xfe\nx y\n' + b"x" * 300 + b"\n+x\nx+y\n\xc3\xa4\n"


def test_hostile_replies_become_no_label_and_no_argument(machine: Qubes, daemon: MakeDaemon, tmp_path: Path) -> None:
    """Of a name, a pool, a property; a real Prometheus takes the page."""
    listed = b"".join(b"%b class=AppVM state=Running\n" % line for line in HOSTILE.split(b"\n"))
    listed += b'work class=App"VM state=Running\nvault class=AppVM state=Ha\0lted\n'
    listed += b"debian-12 class=TemplateVM state=Halted\ndom0 class=AdminVM state=Running\n"
    says(machine, f"replies/{LIST}", b"0\0" + listed)
    says(machine, f"replies/{POOLS}", b"0\0" + HOSTILE + b"vm-pool\n")
    told = [b'label default=False type=label re"d\\ngreen', b"template default=False type=vm ../../x\0\xff"]
    told += [b"netvm default=True type=vm sys\x1b[2J\r", b"provides_network default=True type=bool Maybe\0"]
    says(machine, f"replies/{PROPERTIES}", b"0\0" + b"\n".join(told) + b"\n")
    says(machine, f"replies/{FEATURE}", b"0\x002028-02-30\0")
    says(machine, f"replies/{VOLUME}", b'0\0size=1e9\nusage=-7\nsize="\nusage=' + b"9" * 400 + b"\nsize=12\n")
    proxy = daemon({}, rest=EVERYTHING)
    wanted = ("qube_info", 'qube_volume_size_bytes{qube="debian-12",volume="root"} 12', "qube_updates_available")
    eventually("the round is over", lambda: all(one in proxy.get().text for one in wanted))
    page = proxy.get().text
    of_dom0 = [line for line in page.splitlines() if re.match(r"qubes?_(?!proxy)", line)]
    for line in of_dom0:
        assert re.fullmatch(r'\w+\{(\w+="[a-zA-Z0-9_.-]*",?)+\} [0-9.e+]+', line), line
    assert set(re.findall(r'qube="(.*?)"', "".join(of_dom0))) <= {"x", "work", "debian-12", "dom0"}
    assert set(re.findall(r'pool="(.*?)"', page)) == {"vm-pool"}
    assert "qube_os_eol" not in page
    assert {target for target, _, _ in machine.calls()} <= {"dom0", "x", "work", "debian-12"}
    with Prometheus(tmp_path, proxy.url.removeprefix("http://")).running() as prometheus:
        prometheus.waits_for("up", {"": 1})


async def test_half_of_a_reply_is_none(ask: Ask, machine: Qubes) -> None:
    """A restart of qubesd cuts it. No qube is taken for removed, and no number is shown that lost its end."""
    asking = ask()
    await soon("all is there", lambda: names(asking.scrape()) == ALL)
    before = asking.scrape()
    says(machine, f"replies/{LIST}", b"0\0debian-12 class=TemplateVM state=Halted\ndom0 class=AdminVM sta")
    says(machine, f"replies/{POOL_USAGE}", b"0\0data_size=1000000\ndata_usage=6")
    asking.clock.advance(INTERVAL)
    await soon("a number is cut", lambda: failures(asking.scrape()).keys() == {LIST, POOL_USAGE})
    says(machine, f"replies/{POOLS}", b"0\0vm-pool\nvm")
    asking.clock.advance(INTERVAL)
    cut = (LIST, POOL_USAGE, POOLS)
    await soon("it is told", lambda: failures(asking.scrape()) == dict.fromkeys(cut, "protocol"))
    assert {line for line in before.splitlines() if re.match("qube_volume|qube_info|qubes_pool", line)} <= set(
        asking.scrape().splitlines()
    )
    assert 'qubes_pool_usage_bytes{pool="vm-pool"} 600000' in asking.scrape()
    assert not any(called.endswith("+vm") for _, called, _ in machine.calls())
