# SPDX-License-Identifier: GPL-3.0-or-later
"""
What `doctor` makes of what it found: each hop between Prometheus and an exporter as a Check, with its remedy.

Owns the hops of this qube and of the targets, and their order. Must not know how anything was found, nor how it is
printed. What the daemon says is judged in `daemonview`.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from federator import units
from federator.errors import ScrapeError, TimedOutError
from federator.model import Address, Config, Outcome, Qube, QubeOutcome, Snapshot, where
from federator.policy import only, single_port_rules
from federator.reasons import LateTextError, OnePortError, SlowExporterError
from federator.remedies import lines_for_policy, remedy
from federator.targets import DOM0

Result = Literal["ok", "warning", "failed", "skipped"]
# Checks that are not of a target are of this.
HERE = "this qube"
# Why the daemon does not start in a NetVM that has everything else.
NO_FLAG = "the daemon does not start in this qube: it has no service flag"
# The hops of a target, in the order in which a scrape passes them; and on which of them each reason is.
HOPS = ("policy", "qube", "service", "exporter", "text", "time")
BROKEN: Mapping[str, str] = {
    "refused": "policy",
    "not_running": "qube",
    "no_service": "service",
    "closed": "service",
    "protocol": "service",
    "endpoint": "exporter",
    "connection": "exporter",
    "http": "exporter",
    "exposition": "text",
    "body_size_limit": "text",
    "sample_limit": "text",
    "label_limit": "text",
    "timeout": "time",
}
# A part of the deadline. Who takes longer misses it when the machine is busy.
NEAR_DEADLINE = 0.8
# Qubes sets the clocks of all qubes every six hours; they differ by less than a second then.
CLOCK_SECONDS = 60.0
# The address in our firewall script, where it was not edited.
EXAMPLE_ADDRESS = "192.0.2.1"
ONE_LINE_A_PORT = (
    "Install prometheus-qubes-proxy-service in the qube's template, or add these lines to dom0's policy, in"
    " /etc/qubes/policy.d/30-user.policy:"
)
FIREWALL_SCRIPT = "/rw/config/qubes-firewall.d/prometheus-qubes-proxy"


@dataclass(frozen=True, slots=True)
class Check:
    """One hop of one subject. `remedy`: what to do. `copy`: commands or lines for that, ready to copy."""

    hop: str
    subject: str
    result: Result
    says: str
    remedy: str = ""
    copy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """
    What was found in this qube. `in_qube`: Qubes made this machine. `flagged`: it has the daemon's service flag.

    `run_qubes`: /run/qubes is a folder, and /var/run leads to /run. `agent`: its socket. `firewall`: the rules of the
    chain custom-input; None where they cannot be read, which only root can.
    """

    own_name: str
    in_qube: bool
    flagged: bool = False
    run_qubes: bool = True
    agent: Literal["there", "missing", "closed to us"] = "there"
    firewall: str | None = None


def place_checks(place: Place, *, calls: bool) -> list[Check]:
    """The service flag, /run/qubes, the agent. `calls`: is any qube called over qrexec?"""
    if not place.in_qube:
        return [Check("service flag", HERE, "skipped", "Qubes did not make this machine: it has no service flags")]
    checks = [_flag(place)]
    if calls:
        checks += [_run_qubes(place), _agent(place)]
    return checks


def _flag(place: Place) -> Check:
    if place.flagged:
        return Check("service flag", HERE, "ok", "is set")
    return Check(
        "service flag",
        HERE,
        "failed",
        NO_FLAG,
        "In dom0, run this, then restart the qube:",
        (set_flag(place.own_name),),
    )


def set_flag(own_name: str) -> str:
    """The command that gives this qube the daemon's service flag."""
    return f"qvm-service --enable {own_name} prometheus-qubes-proxy"


def _run_qubes(place: Place) -> Check:
    if place.run_qubes:
        return Check("/run/qubes", HERE, "ok", "is a folder")
    says = "/run/qubes is no folder, or /var/run does not lead to /run"
    return Check("/run/qubes", HERE, "failed", says, "Restart the qube. If it stays so, repair its template.")


def _agent(place: Place) -> Check:
    if place.agent == "there":
        return Check("qrexec agent", HERE, "ok", "its socket is there")
    if place.agent == "missing":
        says = "the qrexec agent has no socket, so no qube can be called"
        return Check("qrexec agent", HERE, "failed", says, "Start it:", ("sudo systemctl restart qubes-qrexec-agent",))
    says = "this user may not use the socket of the qrexec agent: it is not in the group qubes"
    return Check("qrexec agent", HERE, "failed", says, "Run doctor as the daemon's user:", ("sudo -u user -i",))


def firewall_check(place: Place, addresses: Sequence[Address]) -> Check:
    """Whether the NetVM's firewall lets a Prometheus in."""
    ports = sorted({address[1] for address in addresses if not isinstance(address, Path) and not _loopback(address[0])})
    if not ports:
        return Check("firewall", HERE, "skipped", "the daemon listens on this qube's own addresses only")
    if not place.in_qube:
        return Check("firewall", HERE, "skipped", "Qubes did not make this machine")
    if place.firewall is None:
        return Check(
            "firewall",
            HERE,
            "skipped",
            "only root can read the firewall's rules",
            "",
            ("sudo nft list chain ip qubes custom-input",),
        )
    edit = (f"sudoedit {FIREWALL_SCRIPT}", f"sudo {FIREWALL_SCRIPT}")
    for port in ports:
        rules = [line for line in place.firewall.splitlines() if re.search(rf"\bdport\b.*\b{port}\b.*\baccept\b", line)]
        if not rules:
            says = f"no rule of the chain custom-input lets Prometheus reach port {port}"
            return Check("firewall", HERE, "failed", says, "Write your Prometheus' address into the script:", edit)
        if all(EXAMPLE_ADDRESS in rule for rule in rules):
            says = f"the rule for port {port} still has the example's address, {EXAMPLE_ADDRESS}"
            return Check("firewall", HERE, "failed", says, "Write your Prometheus' address into the script:", edit)
    return Check("firewall", HERE, "ok", f"a rule lets somebody reach port {' and '.join(map(str, ports))}")


def _loopback(host: str) -> bool:
    return host in {"::1", "localhost"} or host.startswith("127.")


def target_checks(settings: Config, snapshot: Snapshot, versions: Mapping[str, int], own_name: str) -> list[Check]:
    """Each hop of each target. `versions`: of the protocol, by qube."""
    return [
        check
        for qube in snapshot.qubes
        for outcome in qube.outcomes
        for check in (
            _broken(settings, qube, outcome, outcome.error, own_name)
            if outcome.error
            else _passed(qube, outcome, snapshot.allowed, versions.get(qube.qube.name, 2))
        )
    ]


def _hops(qube: Qube) -> tuple[str, ...]:
    """A qube with transport = "local" is not called."""
    return HOPS if qube.transport == "qrexec" else HOPS[2:]


def _broken(
    settings: Config, qube: QubeOutcome, outcome: Outcome, error: ScrapeError, own_name: str
) -> Iterable[Check]:
    hops, name = _hops(qube.qube), outcome.target.name
    broken = BROKEN[error.reason] if BROKEN[error.reason] in hops else hops[0]
    seen = _seen(qube, error)
    for hop in hops:
        if hop == broken:
            what, copy = _remedy(settings, qube.qube, error, own_name)
            yield Check(hop, name, "failed", f"{error.reason}: {error}", what, copy)
        elif hop in seen:
            yield Check(hop, name, "ok", "passed")
        else:
            yield Check(hop, name, "skipped", f"not known: the scrape failed at the hop {broken}")


def _seen(qube: QubeOutcome, error: ScrapeError) -> Sequence[str]:
    """The hops that are known to be well, although the scrape failed."""
    if isinstance(error, LateTextError):
        return HOPS[: HOPS.index("text")]
    if isinstance(error, SlowExporterError):
        return HOPS[: HOPS.index("exporter")]
    if isinstance(error, TimedOutError):
        # Another exporter's answer came through these; dom0 may have decided on a call of its own for it.
        return ("qube", "service") if qube.up else ()
    # A qube that was not called, or whose call ended before it answered, shows nothing of the hops before.
    if error.reason in {"not_running", "closed"} and not qube.up:
        return ()
    return HOPS[: HOPS.index(BROKEN[error.reason])]


def _remedy(settings: Config, qube: Qube, error: ScrapeError, own_name: str) -> tuple[str, tuple[str, ...]]:
    what = remedy(error, qube.name)
    if isinstance(error, OnePortError):
        return ONE_LINE_A_PORT, tuple(single_port_rules(only(settings, qube), own_name))
    if error.reason == "refused":
        # The lines to copy are for dom0's policy alone.
        start = "" if qube.name == DOM0 else f" To start it, in dom0: qvm-start {qube.name}"
        return f"{what}{start}", tuple(lines_for_policy(settings, qube, own_name))
    return what, (f"qvm-start {qube.name}",) if error.reason == "not_running" else ()


def _passed(qube: QubeOutcome, outcome: Outcome, allowed: float, version: int) -> Iterable[Check]:
    target, reading = outcome.target, outcome.reading
    says = {
        "policy": "allows the call",
        "qube": "runs",
        "service": f"speaks version {version}" + (", as upstream's does" if version == 1 else ""),
        "exporter": f"answers on {where(target.exporter.endpoint)}",
    }
    for hop in _hops(qube.qube)[:-2]:
        yield Check(hop, target.name, "ok", says[hop])
    dropped = reading.lines_dropped if reading else 0
    if reading and dropped:
        lines = units.plural(dropped, "line")
        lines = f"{lines} dropped that Prometheus would not take, the first one: {reading.complaint}"
        yield Check("text", target.name, "warning", lines, "Correct the exporter, or tell its authors.")
    else:
        samples, size = units.plural(outcome.samples, "sample"), units.plural(outcome.body_size, "byte")
        yield Check("text", target.name, "ok", f"{samples}, {size}")
    took = f"{outcome.seconds:.3f} s of {allowed:.1f} s"
    if outcome.seconds > allowed * NEAR_DEADLINE:
        what = "Raise scrape_timeout in Prometheus, or make the exporter faster."
        yield Check("time", target.name, "warning", f"near the deadline: {took}", what)
    else:
        yield Check("time", target.name, "ok", took)


def clock_checks(snapshot: Snapshot) -> list[Check]:
    """Whether the qubes' clocks agree with ours, by the exporters that say what time it is."""
    ahead = {
        outcome.target.qube: seconds - snapshot.at
        for outcome in snapshot.outcomes
        if (seconds := _time_of(outcome)) is not None
    }
    limit = CLOCK_SECONDS + snapshot.seconds
    wrong = {name: by for name, by in ahead.items() if abs(by) > limit}
    if not ahead:
        return [Check("clock", HERE, "skipped", "no exporter says what time it is (node_time_seconds)")]
    if len(wrong) == len(ahead) > 1 and max(wrong.values()) - min(wrong.values()) < limit:
        says = f"differs by {next(iter(wrong.values())):+.6g} s from the clocks of {len(wrong)} qubes"
        return [Check("clock", HERE, "warning", says, "Set this qube's clock:", ("sudo qvm-sync-clock",))]
    return [
        Check("clock", name, "warning", f"is {wrong[name]:+.6g} s off", "In that qube:", ("sudo qvm-sync-clock",))
        if name in wrong
        else Check("clock", name, "ok", "agrees with this qube's")
        for name in ahead
    ]


def _time_of(outcome: Outcome) -> float | None:
    """What node_exporter says, in seconds since 1970."""
    for family, block in zip(outcome.reading.families, outcome.reading.blocks, strict=True) if outcome.reading else ():
        if family.name == "node_time_seconds":
            seconds = float(block.split()[-1])
            return seconds if math.isfinite(seconds) else None
    return None
