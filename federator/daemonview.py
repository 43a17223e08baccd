# SPDX-License-Identifier: GPL-3.0-or-later
"""
What `doctor` makes of the daemon: whether it is there, what it sees, and whether anybody scrapes it.

Owns the reading of the daemon's own pages. Must not know how they were fetched. Another program may be on the
daemon's port, so its pages are foreign text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from federator import units
from federator.dom0_findings import Tried
from federator.errors import shown
from federator.findings import BROKEN, HERE, Check
from federator.model import Outcome, Snapshot
from federator.targets import DOM0

UNIT = "prometheus-qubes-proxy"
# What the unit lets the daemon listen on.
UNIT_PORT = 8199
# A daemon that just started was perhaps not scraped yet.
YOUNG_SECONDS = 120.0
# Prometheus forgets a value after five minutes, so nobody scrapes less often. Each run of doctor is a request, too.
RARELY_SECONDS = 300.0

_UP = re.compile(r'^qubes_proxy_exporter_up\{qube="([^"\\]*)",exporter="([^"\\]*)"[^\n]*\} ([01])$', re.MULTILINE)
_FAILURE = re.compile(
    r'^qubes_proxy_exporter_failure\{qube="([^"\\]*)",exporter="([^"\\]*)"[^\n]*,reason="([a-z_]{1,20})"\} 1$',
    re.MULTILINE,
)
_DOM0_FAILURE = re.compile(
    r'^qubes_proxy_dom0_failure\{call="([A-Za-z.]{1,40})",reason="([a-z_]{1,20})"\} 1$', re.MULTILINE
)
_RELOADED = re.compile(r"^qubes_proxy_config_last_reload_successful ([01])$", re.MULTILINE)
_CONFIG = re.compile(r'^qubes_proxy_config_info\{path="((?:[^"\\\n]|\\.)*)"\} 1(?:\.0)?$', re.MULTILINE)
_STARTED = re.compile(r"^process_start_time_seconds ([0-9.e+]{1,30})$", re.MULTILINE)
_REQUESTS = re.compile(
    r'^qubes_proxy_http_requests_total\{code="([0-9]{3})",path="(?:/metrics|/forward)"\} ([0-9.e+]{1,30})$',
    re.MULTILINE,
)

# Why the daemon does not tell which file it reads, by the status of /metrics/proxy.
_WHY_HIDDEN = {
    0: "it wants a client's certificate, or does not answer doctor",
    401: "it asks for a password",
}
_RESTART = f"sudo systemctl restart {UNIT}"
_READ_FILE = f"sudo systemctl reload {UNIT}"
_EDIT_UNIT = f"sudo systemctl edit {UNIT}"
_NEEDS_NEW_CALL = "do what the failed hop says before the qube restarts: the daemon needs a new call then."
_AGAIN = "Run doctor again: the exporter was perhaps being restarted. If it stays so,"
_OTHER_ANSWER = (
    "which got a good answer; doctor got another one",
    f"{_AGAIN} the daemon has another configuration, and asks another port: {_READ_FILE}",
)
# What it means where the daemon sees an exporter up, and what to do, by the hop at which doctor's own scrape failed.
_UP_FOR_DAEMON: Mapping[str, tuple[str, str]] = {
    "policy": ("whose call is still open; a new one is refused", f"In any case, {_NEEDS_NEW_CALL}"),
    "qube": (
        "and dom0 told doctor that the qube does not run",
        "Run doctor again: the qube was perhaps stopped or started in between.",
    ),
    "service": (
        "and doctor's own call failed; the daemon's is perhaps still open",
        f"Run doctor again. If it stays so, {_NEEDS_NEW_CALL}",
    ),
    "exporter": _OTHER_ANSWER,
    "text": _OTHER_ANSWER,
    "time": (
        "and too late for doctor, which has to open its calls first",
        "Run doctor again. If it stays so, the exporter is near the deadline: make it faster, or raise scrape.timeout.",
    ),
}
_OTHER_ANSWER_FOR_DAEMON = (
    f"{_AGAIN} reload the daemon: it has another configuration. A local qube may be hit by the unit's hardening.",
    _READ_FILE,
    _EDIT_UNIT,
)
_CALL_FAILED_FOR_DAEMON = (
    (
        "The daemon may be waiting before it calls again, which a reload ends. If it stays so, it is the unit's"
        " hardening: take out its settings one by one."
    ),
    _READ_FILE,
    _EDIT_UNIT,
)
# The other way round: what to do, with lines to copy, by the hop at which the daemon's scrape failed.
_DOWN_FOR_DAEMON: Mapping[str, tuple[str, ...]] = {
    "policy": _CALL_FAILED_FOR_DAEMON,
    "qube": ("Run doctor again: the daemon asks dom0 only now and then which qubes run (discovery.refresh_interval).",),
    "service": _CALL_FAILED_FOR_DAEMON,
    "exporter": _OTHER_ANSWER_FOR_DAEMON,
    "text": _OTHER_ANSWER_FOR_DAEMON,
    "time": (
        "Run doctor again: the exporter is perhaps near the deadline. The daemon's log says since when it is late:",
        f"journalctl -u {UNIT} -n 20",
    ),
}


@dataclass(frozen=True, slots=True)
class Listener:
    """
    An address of the configuration, and what is there: our daemon, nothing, or another program.

    What is `mute` takes connections, and gives no HTTP answer; what is `closed` is not for this user. `fault`: why the
    daemon could not listen where nothing answers, and the remedy; empty where it could. `tls`: does the daemon speak
    TLS? `status`: HTTP's, of the daemon's page /metrics/proxy; 0 if there was no answer.
    """

    address: str
    port: int | None
    there: Literal["daemon", "nothing", "other", "mute", "closed"]
    fault: str = ""
    tls: bool = False
    status: int = 0
    untrusted_proxy: str = ""

    @property
    def untrusted_file(self) -> str | None:
        """The configuration file that the daemon reads, as config.identity tells it from others; None: not known."""
        found = _CONFIG.search(self.untrusted_proxy) if self.status == 200 else None
        return re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], found[1]) if found else None


@dataclass(frozen=True, slots=True)
class Pages:
    """
    The daemon's pages: /metrics and /metrics/proxy, which was fetched first.

    `status`: HTTP's, of /metrics; 0 if there was no answer.
    """

    status: int
    untrusted_metrics: str = ""
    untrusted_proxy: str = ""


def listener_checks(listeners: Sequence[Listener], file: str, *, tls: bool) -> list[Check]:
    """Whether the daemon is where the configuration `file` says, and with TLS or without as that says."""
    return [_daemon_check(one, file, tls=tls) if one.there == "daemon" else _listener_check(one) for one in listeners]


def _daemon_check(one: Listener, file: str, *, tls: bool) -> Check:
    if one.untrusted_file not in {None, file}:
        says = f"the daemon that answers on {one.address} reads {shown(one.untrusted_file or '')}, and not {file}"
        what = "End it and start the one that reads this file; or give doctor its file with --config.file=PATH."
        return Check("daemon", HERE, "failed", says, what, (_who_listens(one), _RESTART))
    if one.tls != tls:
        says = f"answers on {one.address} {'with' if one.tls else 'without'} TLS, and the file says otherwise"
        return Check("daemon", HERE, "failed", says, "Let it read the file:", (_READ_FILE,))
    if one.untrusted_file is None and one.status == 200:
        says = f"the daemon that answers on {one.address} is older than this program, so its file is not known"
        return Check("daemon", HERE, "warning", says, "Start the one that is installed now:", (_RESTART,))
    why = _WHY_HIDDEN.get(one.status, f"it answers status {one.status}")
    hidden = "" if one.untrusted_file else f"; {why}, so its file is not known"
    return Check("daemon", HERE, "ok", f"answers on {one.address}{hidden}")


def _listener_check(one: Listener) -> Check:
    if one.there == "closed":
        says = f"not known: this user may not use {one.address}"
        return Check("daemon", HERE, "skipped", says, "Run doctor as root:", (f"sudo {UNIT} doctor",))
    if one.there == "other":
        return Check(
            "daemon",
            HERE,
            "failed",
            f"another program answers on {one.address}, so the daemon cannot listen there",
            "See which one, then end it or change web.listen_addresses:",
            (_who_listens(one),),
        )
    if one.there == "mute":
        return Check(
            "daemon",
            HERE,
            "failed",
            f"what listens on {one.address} gives no HTTP answer: it is another program, or the daemon hangs",
            "See which one. If it is the daemon, start it anew:",
            (_who_listens(one), _RESTART),
        )
    if one.fault:
        what = "Correct web.listen_addresses, or what it says, then start the daemon:"
        return Check("daemon", HERE, "failed", f"the daemon {one.fault}", what, (_RESTART,))
    unit = one.port in {None, UNIT_PORT}
    more = "" if unit else f" The unit allows port {UNIT_PORT} only; for this one, add SocketBindAllow=tcp:{one.port}"
    return Check(
        "daemon",
        HERE,
        "failed",
        f"the daemon does not listen on {one.address}",
        f"Start it. If it ends again, its log says why.{more}",
        (
            *(() if unit else (f"sudo systemctl edit {UNIT}",)),
            _RESTART,
            f"journalctl -u {UNIT} -n 20",
        ),
    )


def _who_listens(one: Listener) -> str:
    return f"sudo ss -ltnp 'sport = :{one.port}'" if one.port else "sudo ss -lxp"


def daemon_checks(pages: Pages, snapshot: Snapshot, tried: Sequence[Tried], now: float) -> list[Check]:
    """
    What the daemon sees, beside what doctor saw itself; and whether anybody scrapes it.

    `tried`: what dom0 answered to doctor. `now`: in seconds since 1970.
    """
    if pages.status == 401:
        says = "not known, nor who scrapes: the daemon asks for a password, which doctor does not have"
        what = "Open its status page with a user of web.basic_auth_users: it says what the daemon sees, and who asked."
        return [Check("daemon's view", HERE, "skipped", says, what)]
    if pages.status != 200:
        how = f"with status {pages.status}" if pages.status else "in time, or wants a client's certificate"
        says = f"the daemon does not answer {how}" if not pages.status else f"the daemon answers /metrics {how}"
        return [
            Check(
                "daemon's view",
                HERE,
                "failed" if pages.status else "skipped",
                says,
                "",
                (f"journalctl -u {UNIT} -n 20",),
            )
        ]
    return [
        *_reload(pages),
        *_view(pages, snapshot),
        *_view_of_dom0(pages, tried),
        scraped_check(pages.untrusted_proxy, now),
    ]


def _reload(pages: Pages) -> list[Check]:
    reloaded = _RELOADED.search(pages.untrusted_metrics)
    if reloaded is None or reloaded[1] == "1":
        return [Check("daemon's configuration", HERE, "ok", "the last reload succeeded")]
    says = "the last reload failed: the daemon still has the old configuration"
    copy = (f"prometheus-qubes-proxy check && sudo systemctl reload {UNIT}",)
    return [Check("daemon's configuration", HERE, "failed", says, "Correct the file, then:", copy)]


def _view(pages: Pages, snapshot: Snapshot) -> list[Check]:
    """Where the daemon's page says something else of a target than doctor's own scrape."""
    ups = {(qube, exporter): up == "1" for qube, exporter, up in _UP.findall(pages.untrusted_metrics)}
    reasons = {(qube, exporter): reason for qube, exporter, reason in _FAILURE.findall(pages.untrusted_metrics)}
    outcomes = [outcome for outcome in snapshot.outcomes if outcome.target.exporter.page]
    checks = [
        check
        for outcome in outcomes
        for key in [(outcome.target.qube, outcome.target.exporter.name)]
        if (check := _difference(outcome, ups.get(key), reasons.get(key, "for an unknown reason")))
    ]
    same = len(outcomes) - len(checks)
    agrees = Check("daemon's view", HERE, "ok", f"agrees with doctor about {units.plural(same, 'exporter')}")
    return [*([agrees] if same else []), *checks]


def _difference(outcome: Outcome, up: bool | None, reason: str) -> Check | None:  # noqa: FBT001 - a value of the page
    hop, name = "daemon's view", outcome.target.name
    if up is None:
        says = "the daemon does not know it: it has another configuration"
        return Check(hop, name, "failed", says, "Let it read the file:", (_READ_FILE,))
    if up == (outcome.error is None):
        return None
    if outcome.error is not None:
        says, what = _UP_FOR_DAEMON[BROKEN[outcome.error.reason]]
        return Check(hop, name, "warning", f"up for the daemon, {says}", what)
    says = f"down for the daemon ({reason}), and up for doctor"
    what, *copy = _DOWN_FOR_DAEMON[BROKEN.get(reason, "service")]
    return Check(hop, name, "failed", says, what, tuple(copy))


def _view_of_dom0(pages: Pages, tried: Sequence[Tried]) -> list[Check]:
    """Where dom0 does not answer the daemon, and answers doctor."""
    works = {one.need.service for one in tried} - {one.need.service for one in tried if one.error or one.skipped}
    reasons = dict(_DOM0_FAILURE.findall(pages.untrusted_metrics))
    what, copy = "The daemon asks again after a while, and after a reload at once:", (_READ_FILE,)
    return [
        Check("daemon's view", DOM0, "failed", f"{call}: dom0 answers doctor, and not the daemon ({why})", what, copy)
        for call, why in sorted(reasons.items())
        if call in works
    ]


def scraped_check(untrusted_proxy: str, now: float) -> Check:
    """Whether anybody scrapes, by the counter of requests."""
    counts: dict[str, float] = {}
    for code, count in _REQUESTS.findall(untrusted_proxy):
        counts[code] = counts.get(code, 0.0) + _number(count)
    good, started = counts.get("200", 0.0), _STARTED.search(untrusted_proxy)
    age = now - _number(started[1]) if started else 0.0
    # A 404 and the like are written in Prometheus' own targets page, too.
    refused = sorted(code for code in counts if code != "200" and counts[code] > good)
    if refused:
        says = f"most requests were answered with status {' or '.join(refused)}, not 200"
        what = "See Prometheus' targets page: its password, its host name (web.hosts) or its path may be wrong."
        return Check("scraped", HERE, "failed", says, what)
    if good >= max(1.0, age / RARELY_SECONDS):
        return Check("scraped", HERE, "ok", f"requests answered since the daemon started: {good:.0f}")
    if age < YOUNG_SECONDS:
        return Check("scraped", HERE, "skipped", f"the daemon started {age:.0f} s ago")
    says = f"nobody scrapes; requests answered in {age / 60:.0f} minutes: {good:.0f}, and each run of doctor is one"
    what = "Name this qube in Prometheus' configuration. Where Prometheus runs, this has to answer:"
    return Check("scraped", HERE, "failed", says, what, ("curl http://ADDRESS:8199/metrics",))


def _number(untrusted_text: str) -> float:
    try:
        return float(untrusted_text)
    except ValueError:
        return 0.0
