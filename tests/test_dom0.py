# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking dom0 for its figures: real processes, and a stand-in that answers as qubesd does."""

import asyncio
import itertools
import json
import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from federator import config, dom0, dom0_round, host, wire
from federator.counters import Counters
from federator.dom0 import Dom0Figures
from federator.dom0_calls import Dom0Calls
from federator.dom0_replies import (
    FEATURE,
    LIST,
    POOL,
    POOL_USAGE,
    POOLS,
    PROPERTIES,
    PROPERTY,
    STATS,
    VOLUME,
)
from federator.errors import RefusedError
from federator.fleet import Fleet
from federator.policy import rules
from tests.helpers import soon
from tests.parts import Daemon, Exporter, Prometheus, eventually, toml
from tests.standin.qubes import Qubes

# Each of these tests asks a stand-in of processes, and some start a daemon.
pytestmark = pytest.mark.slow

MakeDaemon = Callable[..., Daemon]
SYSTEMS = ("@type:TemplateVM", "@type:StandaloneVM")
SWITCHES = ("stats", "storage", "volumes", "properties", "updates")
EVERYTHING = "[dom0]\ninterval = '30s'\n" + "".join(f"{switch} = true\n" for switch in SWITCHES)


def names(page: str) -> set[str]:
    """The families of dom0 on a page."""
    return set(re.findall(r"^(qubes?_(?!proxy)\w+){", page, re.MULTILINE))


def failures(page: str) -> dict[str, str]:
    """The calls that dom0 does not answer, with the reason."""
    return dict(re.findall(r'^qubes_proxy_dom0_failure{call="(.*?)",reason="(\w+)"} 1$', page, re.MULTILINE))


def asking_dom0(machine: Qubes, table: str, qrexec: str = "backoff_initial = '0s'\n") -> tuple[Dom0Figures, Fleet]:
    """In this process, with this table."""
    host.watch_children()
    settings = config.parse(toml({}, client=machine.client, qrexec=qrexec, rest=table), Path("/x"))
    counters = Counters()
    fleet = Fleet(settings, counters)
    return Dom0Figures(settings, fleet.limiter, counters), fleet


def deny(machine: Qubes, call: str) -> None:
    """dom0's policy has no line for it; nor for properties one by one, where it is for all of them."""
    for folder in (machine.root / "qubes").iterdir():
        (folder / "denied").write_text(call.replace(PROPERTIES, f"{PROPERTIES} {PROPERTY}"), encoding="utf-8")


def test_the_page_has_what_dom0_knows(
    machine: Qubes, exporter: Callable[[bytes], Exporter], daemon: MakeDaemon
) -> None:
    """Of qubes with and without exporters, over one open call and a few short ones; nothing is started."""
    forged = b'qube_running{qube="vault"} 1\nqubes_pool_size_bytes 1\n'
    proxy = daemon({"work": {"x": exporter(forged).port}}, rest=EVERYTHING)
    wanted = [
        'qube_cpu_seconds_total{qube="work"}',
        'qube_cpu_seconds_total{qube="dom0"}',
        'qube_state{qube="vault",state="Halted"} 1',
        'qube_state{qube="vault",state="Running"} 0',
        'qube_last_seen_running_timestamp_seconds{qube="work"} ',
        'qube_stubdomain_cpu_seconds_total{qube="work"} 0.7',
        'qube_info{qube="vault",class="AppVM",label="red",template="debian-12",netvm="sys-firewall"',
        'qube_volume_usage_bytes{qube="debian-12",volume="root"} 700',
        'qube_updates_available{qube="debian-12"} 1',
        'qube_updates_available{qube="dom0"} 0',
        'qube_os_eol_timestamp_seconds{qube="debian-12"} ',
        'qubes_pool_metadata_usage_bytes{pool="vm-pool"} 300',
        'qubes_proxy_dom0_up{call="admin.vm.Stats"} 1',
    ]
    eventually("all is there", lambda: all(line in proxy.get().text for line in wanted))
    page = proxy.get().text
    assert not failures(page)
    assert 'qube_last_seen_running_timestamp_seconds{qube="vault"}' not in page
    assert 'exported_qube_running{qube="work",exporter="x",exported_qube="vault"} 1' in page
    narrowed = proxy.get("/metrics?qube=work").text
    assert 'qube_vcpus{qube="work"} 2' in narrowed
    assert "vault" not in re.sub(r"^exported_.*$", "", narrowed, flags=re.MULTILINE)
    assert not names(proxy.get("/metrics?exporter=x").text)
    without_exporters = proxy.get("/metrics?qube=vault").text
    assert 'qube_running{qube="vault"} 0' in without_exporters
    assert '="work"' not in without_exporters
    assert proxy.get("/metrics?qube=nobody").status == 400
    assert proxy.get("/metrics?qube=vault&exporter=x").status == 400
    calls = [(target, service) for target, service, _ in machine.calls()]
    assert len([one for one in calls if one[1] == f"{STATS}+"]) == 1
    # The table of docs/dom0.md: one round, with three qubes and one pool.
    assert sorted(
        (qube, call.removesuffix("+")) for qube, call in calls if not call.startswith((STATS, "ruddo."))
    ) == sorted(
        [
            ("dom0", LIST),
            ("dom0", POOLS),
            ("dom0", f"{POOL}+vm-pool"),
            ("dom0", f"{POOL_USAGE}+vm-pool"),
            *((qube, PROPERTIES) for qube in ("work", "vault", "debian-12")),
            *((qube, f"{VOLUME}+private") for qube in ("work", "vault", "debian-12")),
            ("debian-12", f"{VOLUME}+root"),
            ("dom0", f"{FEATURE}+updates-available"),
            ("debian-12", f"{FEATURE}+updates-available"),
            ("debian-12", f"{FEATURE}+os-eol"),
        ]
    )
    assert machine.state("vault") == "Halted"


@pytest.mark.parametrize("denied", [PROPERTIES, VOLUME, FEATURE])
def test_a_call_that_is_refused_costs_its_own_figures(machine: Qubes, daemon: MakeDaemon, denied: str) -> None:
    """The page and the log name it; three refusals say that its line is missing, and no further qube is asked."""
    for number in range(4):
        machine.add(f"q{number}")
        (machine.root / "qubes" / f"q{number}" / "class").write_text("StandaloneVM")
    deny(machine, denied)
    (machine.root / "qubes" / "dom0" / "class").write_text("AdminVM")
    proxy = daemon({}, rest=EVERYTHING)
    eventually("it is refused", lambda: denied in failures(proxy.get().text))
    others = {PROPERTIES: "qube_volume_size_bytes", VOLUME: "qube_info", FEATURE: "qube_info"}
    eventually("the others come", lambda: {others[denied], "qubes_pool_size_bytes"} <= names(proxy.get().text))
    eventually("statistics come", lambda: "qube_vcpus" in names(proxy.get().text))
    assert failures(proxy.get().text) == {denied: "refused"}
    assert f"call={denied} reason=refused" in proxy.log
    assert "`prometheus-qubes-proxy policy` prints the line" in proxy.log
    assert len([one for one in machine.calls() if one[1].startswith(f"{denied}+")]) <= 2 * dom0_round.MAX_UNANSWERED


def test_properties_are_asked_one_by_one_where_that_alone_is_allowed(machine: Qubes, daemon: MakeDaemon) -> None:
    """So a person can keep the rest of a qube's properties from the daemon's qube. It is no failure."""
    for name in ("work", "vault", "debian-12"):
        (machine.root / "qubes" / name / "denied").write_text(f"{PROPERTIES}\n{PROPERTY}+netvm\n")
    proxy = daemon({}, rest=EVERYTHING)
    info = 'qube_info{qube="work",class="AppVM",label="red",template="debian-12",netvm="",provides_network="false"} 1'
    eventually("it is there", lambda: info in proxy.get().text)
    eventually("the round ends", lambda: "qube_os_eol_timestamp_seconds" in names(proxy.get().text))
    assert not failures(proxy.get().text)
    assert f'qubes_proxy_dom0_up{{call="{PROPERTY}"}} 1' in proxy.get().text
    assert "does not tell" not in proxy.log


def test_people_see_what_dom0_refuses_and_how_to_allow_it(machine: Qubes, daemon: MakeDaemon) -> None:
    """On the status page and in its JSON, until dom0 answers."""
    deny(machine, PROPERTIES)
    proxy = daemon({}, qrexec="backoff_initial = '0s'\n", rest=EVERYTHING)
    eventually("it is refused", lambda: PROPERTIES in failures(proxy.get().text))
    line = f"{PROPERTIES}  +  "
    eventually("the page has its line", lambda: line in proxy.get("/").text)
    told = {one["call"]: one for one in json.loads(proxy.get("/api/v1/targets").text)["data"]["dom0"]}
    assert set(told) == {STATS, POOLS, POOL, POOL_USAGE, LIST, PROPERTIES, VOLUME, FEATURE}
    assert told[PROPERTIES]["health"] == "down"
    assert told[POOLS]["health"] == "up"
    assert [one.split() for one in told[PROPERTIES]["policy"]] == [
        one.split() for one in rules(config.load(proxy.config), host.own_name()) if PROPERTIES in one
    ]
    # One by one is enough.
    for folder in (machine.root / "qubes").iterdir():
        (folder / "denied").write_text(PROPERTIES)
    proxy.process.send_signal(signal.SIGHUP)
    eventually("it is told", lambda: "qube_info{" in proxy.get().text)
    eventually("no line is missing", lambda: line not in proxy.get("/").text)
    page = proxy.get("/").text
    assert f"<code>{PROPERTY}</code>" in page
    assert f"<code>{PROPERTIES}</code>" not in page


async def test_a_line_that_is_missing_for_some_questions_is_logged_once(
    machine: Qubes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one kind of call, one question is refused and the next one answered, for each qube in each round."""
    monkeypatch.setattr(dom0_round, "PAUSE_SECONDS", 0.0)
    caplog.set_level("INFO")
    (machine.root / "qubes" / "debian-12" / "denied").write_text(f"{FEATURE}+os-eol\n")
    asking, fleet = asking_dom0(machine, "[dom0]\nstats = false\nstorage = false\nupdates = true\n")

    idle = len(asyncio.all_tasks())

    def is_over(calls: int) -> bool:
        asking.somebody_scrapes({})
        return len(machine.calls()) == calls and len(asyncio.all_tasks()) == idle

    for calls in (5, 10, 15):  # the list, two questions, the one that is refused, and whether its qube is there
        asking.reconfigure(fleet.config)  # so that the next round begins at once
        await soon("a round", partial(is_over, calls))
    assert caplog.text.count("dom0 does not tell its figures") == 1
    assert "again" not in caplog.text
    assert b"qube_updates_available" in b"".join(asking.figures.reading(0.0).blocks)
    (machine.root / "qubes" / "debian-12" / "denied").unlink()
    asking.reconfigure(fleet.config)
    await soon("it is told", lambda: is_over(19) and "dom0 tells its figures again" in caplog.text)
    await asking.close()
    await fleet.close()


@pytest.mark.parametrize("as_qubesd", [False, True])
async def test_a_qube_that_is_removed_in_the_middle_of_a_round_is_no_failure(
    machine: Qubes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, as_qubesd: bool
) -> None:
    """
    Qrexec says the same of it as of a call that no line allows, and dom0's list tells the two apart. Where the line is
    for @anyvm, qubesd gets the call, and hangs up.
    """
    monkeypatch.setattr(dom0_round, "PAUSE_SECONDS", 0.0)
    ask = Dom0Calls.ask

    async def ask_before(self: Dom0Calls, service: str, target: str, argument: str) -> bytes:
        try:
            answer = await ask(self, service, target, argument)
        except RefusedError:
            if as_qubesd:
                wire.payload(b"", service)
            raise
        lists = sum(call == f"{LIST}+" for _, call, _ in machine.calls("dom0"))
        return answer + b"gone class=TemplateVM state=Halted\n" if service == LIST and lists == 1 else answer

    monkeypatch.setattr(Dom0Calls, "ask", ask_before)
    asking, fleet = asking_dom0(machine, EVERYTHING.replace("stats = true", "stats = false"))
    asking.somebody_scrapes({})
    await soon("the round is over", lambda: set(asking.answers) >= {POOLS, LIST, PROPERTIES, VOLUME, FEATURE})
    await soon("it was refused", lambda: machine.calls("gone"))
    await soon("it is forgotten", lambda: b'"gone"' not in b"".join(asking.figures.reading(0.0).blocks))
    await asking.close()
    await fleet.close()
    assert len(machine.calls("gone")) == 1
    assert not any(asking.answers.values())
    assert "does not tell" not in caplog.text


@pytest.mark.parametrize("trouble", ["garbage", "flood", "old"])
def test_what_dom0_says_wrong_costs_its_own_figures(machine: Qubes, daemon: MakeDaemon, trouble: str) -> None:
    """Garbage ends the call, which is made again later; old releases' keys are understood."""
    (machine.root / "qubes" / "dom0" / "trouble").write_text(trouble)
    proxy = daemon({}, qrexec="backoff_initial = '1s'\nbackoff_max = '1s'\n", rest="[dom0]\nstorage = false\n")
    if trouble != "old":
        eventually("it is told", lambda: failures(proxy.get().text) == {STATS: "protocol"})
        assert not names(proxy.get().text)
        (machine.root / "qubes" / "dom0" / "trouble").unlink()
    eventually("it is there", lambda: 'qube_memory_usable_bytes{qube="work"} 409600000\n' in proxy.get().text)
    eventually("no failure is left", lambda: not failures(proxy.get().text))
    assert "Traceback" not in proxy.log


async def test_nothing_is_asked_where_nobody_scrapes(machine: Qubes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The open call is ended after a while, and made again at the next scrape."""
    monkeypatch.setattr(dom0, "IDLE_SECONDS", 1.0)
    asking, fleet = asking_dom0(machine, "[dom0]\nstorage = false\n")
    for times in (1, 2):
        asking.somebody_scrapes({})
        await soon("figures come", lambda: len(asking.figures) > 0)
        await soon("the call is ended", lambda: not machine.left_behind())
        assert len(machine.calls("dom0")) == times
        asking.figures.forget({"work", "dom0"})
        asking.figures.drop("qubes_proxy_dom0_up", ("call", STATS))
    await asking.close()
    await fleet.close()


def test_rates_are_true_while_qubes_and_qubesd_come_and_go(machine: Qubes, daemon: MakeDaemon, tmp_path: Path) -> None:
    """A restart of a qube is a reset of its counter; one of qubesd, and wrong values between others, are nothing."""
    cpu = machine.root / "qubes" / "work" / "cpu"
    cpu.write_text("5000000")  # it ran for long
    proxy = daemon({}, qrexec="backoff_initial = '500ms'\nbackoff_max = '500ms'\n", rest="[dom0]\nstorage = false\n")
    now = itertools.count(5_000_000, 100)

    def goes_on(times: int) -> None:
        for _ in range(times):
            cpu.write_text(str(next(now)))
            asyncio.run(asyncio.sleep(0.1))

    def qubesd_ends() -> None:
        for folder in Path("/proc").iterdir():
            words = (
                (folder / "cmdline").read_bytes() if folder.name.isdecimal() and (folder / "cmdline").exists() else b""
            )
            if f"{machine.root}/qubes/dom0/services/{STATS}".encode() in words:
                os.kill(int(folder.name), signal.SIGKILL)

    with Prometheus(tmp_path, proxy.url.removeprefix("http://")).running() as prometheus:
        eventually("it is scraped", lambda: "work" in prometheus.query("qube_cpu_seconds_total"))
        goes_on(30)
        qubesd_ends()
        goes_on(20)
        (machine.root / "qubes" / "dom0" / "trouble").write_text("wrong")
        goes_on(30)
        (machine.root / "qubes" / "dom0" / "trouble").unlink()
        goes_on(20)
        now = itertools.count(100, 100)  # the qube was started anew
        goes_on(30)
        rates = "max_over_time(rate(qube_cpu_seconds_total{qube='work'}[5s])[30s:1s])"
        eventually("there is a rate", lambda: "work" in prometheus.query(rates))
        assert 0 < prometheus.query(rates)["work"] < 4, "two CPUs, and the clock of a busy machine"
        least = prometheus.query(rates.replace("max_", "min_"))["work"]
        assert least >= 0


@pytest.mark.parametrize("switches", [list(one) for size in range(6) for one in itertools.combinations(SWITCHES, size)])
def test_the_policy_has_what_is_asked_and_nothing_else(switches: list[str]) -> None:
    """Each line is read-only, for one service, and needed by one of the switches."""
    table = "[dom0]\n" + "".join(f"{switch} = {str(switch in switches).lower()}\n" for switch in SWITCHES)
    settings = config.parse(f"[exporters]\nnode = 9100\n[qubes.work]\nexporters = ['node']\n{table}", Path("/x"))
    lines = [line.split() for line in rules(settings, "sys-net")]
    assert all(line[2] == "sys-net" and line[4] == "allow" for line in lines)
    assert all(line[5:] == ["target=dom0"] for line in lines if line[0].startswith("admin."))
    needed = {
        "stats": {(STATS, "+", "@adminvm")},
        "storage": {(POOLS, "+", "@adminvm"), (POOL, "*", "@adminvm"), (POOL_USAGE, "*", "@adminvm")},
        "volumes": {(VOLUME, "+private", "@anyvm"), *((VOLUME, "+root", target) for target in SYSTEMS)},
        "properties": {(PROPERTIES, "+", "@anyvm")},
        "updates": {
            *((FEATURE, f"+{feature}", target) for feature in ("updates-available", "os-eol") for target in SYSTEMS),
            (FEATURE, "+updates-available", "@adminvm"),
        },
    }
    wanted = set().union(*(needed[switch] for switch in switches))
    if {"volumes", "properties"}.intersection(switches):
        wanted |= {(LIST, "*", "@adminvm"), (LIST, "*", "@anyvm")}
    elif "updates" in switches:
        wanted |= {(LIST, "*", target) for target in ("@adminvm", *SYSTEMS)}
    assert {(line[0], line[1], line[3]) for line in lines if line[0].startswith("admin.")} == wanted


@pytest.mark.parametrize("switches", [*([one] for one in SWITCHES), list(SWITCHES)])
async def test_each_line_of_the_policy_allows_a_call_and_each_call_has_its_line(
    machine: Qubes, monkeypatch: pytest.MonkeyPatch, switches: list[str]
) -> None:
    """Of what is called in a round: no line is for nothing, and nothing is called that they do not allow."""
    monkeypatch.setattr(dom0_round, "PAUSE_SECONDS", 0.0)
    classes = {"dom0": "AdminVM", "work": "AppVM", "vault": "AppVM", "debian-12": "TemplateVM", "own": "StandaloneVM"}
    machine.add("own", state="Halted")
    (machine.root / "qubes" / "own" / "class").write_text("StandaloneVM")
    table = "[dom0]\n" + "".join(f"{switch} = {str(switch in switches).lower()}\n" for switch in SWITCHES)
    asking, fleet = asking_dom0(machine, table)
    lines = [tuple(line.split()) for line in rules(fleet.config, "sys-net")]
    # dom0 looks at these lines for what it names in its list; no call comes to them.
    of_list = [line for line in lines if line[0] == LIST and line[3] != "@adminvm"]

    def allowing(target: str, called: str) -> list[tuple[str, ...]]:
        service, _, argument = called.partition("+")
        targets = {target, f"@type:{classes[target]}", "@adminvm" if target == "dom0" else "@anyvm"}
        arguments = {"*", f"+{argument}"}
        return [one for one in lines if one[0] == service and one[1] in arguments and one[3] in targets]

    def used() -> set[tuple[str, ...]]:
        return {line for target, called, _ in machine.calls() for line in allowing(target, called)}

    asking.somebody_scrapes({})
    await soon("each line is used", lambda: used() == set(lines) - set(of_list))
    await asking.close()
    await fleet.close()
    assert all(len(allowing(target, called)) == 1 for target, called, _ in machine.calls())
