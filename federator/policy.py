# SPDX-License-Identifier: GPL-3.0-or-later
"""
The lines that `prometheus-qubes-proxy policy` prints: what dom0's policy has to allow for a configuration.

Owns their words, their columns and their order. Must not know where they are printed, nor how a qube is called.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from federator.dom0_replies import (
    FEATURE,
    FEATURES,
    INFO,
    LIST,
    POOL,
    POOL_USAGE,
    POOLS,
    PRIVATE,
    PROPERTIES,
    PROPERTY,
    ROOT,
    STATS,
    UPDATES,
    VOLUME,
    WITH_SYSTEM,
)
from federator.model import Config, Endpoint, Qube, in_order
from federator.targets import DOM0, is_qube_name
from federator.wire import SERVICE, argument

# Where the name of this qube is not known, because the command does not run in a qube.
USUAL_NETVM = "sys-net"
# What dom0 is called in its policy, and the qubes that have the tag of our documentation.
ADMIN_QUBE = "@adminvm"
TAGGED = "@tag:monitored"
ANY_QUBE = "@anyvm"


def of_class(name: str) -> str:
    """What all qubes of a class are called there."""
    return f"@type:{name}"


SYSTEMS = tuple(map(of_class, WITH_SYSTEM))
# What dom0 calls a disposable that nobody gave a name.
_NUMBERED = re.compile(r"disp[0-9]+")


class Need(NamedTuple):
    """A line of policy for dom0's own calls. `argument`: `*` for any, `+` alone for none."""

    service: str
    argument: str
    target: str


def policy_lines(config: Config, own_name: str) -> list[str]:
    """Lines for a file in /etc/qubes/policy.d. Their order counts: dom0 takes the first one that fits a call."""
    us, discovery, called = _us(own_name), config.discovery, _called(config)
    found = any(name == TAGGED for name, _ in called)
    needs = dom0_needs(config)
    if not config.calls:
        return ["# nothing is called over qrexec, so dom0 needs no line"]
    allowed = [(SERVICE, f"+{argument(ports)}", us, name, _allow(name)) for name, ports in called]
    if discovery:
        # dom0 lists only the qubes that a line allows, and itself.
        listed = [name for name, _ in called if name != ADMIN_QUBE] if discovery.source == "admin.vm.List" else []
        allowed += [(discovery.source, "*", us, name, "allow target=dom0") for name in [ADMIN_QUBE, *listed]]
    allowed += [rule for need in needs if (rule := _rule(need, us)) not in allowed]
    single = single_port_rules(config, own_name)
    return [
        "# for dom0: /etc/qubes/policy.d/30-user.policy; printed by `prometheus-qubes-proxy policy`",
        "# dom0 takes the first line that fits; in a file sorted after 90-prometheus-proxy.policy, they do nothing",
        *([f"# {us} may read these ports and endpoints of these qubes; halted ones are not started"] if called else []),
        *(f"# {line}" for line in numbered_disposables(config)),
        *(
            ["# @anyvm is for what [dom0] asks of all qubes: a tag in its place makes them fewer"]
            if any(need.target == ANY_QUBE for need in needs)
            else []
        ),
        *_aligned(allowed),
        *(f"# {line}" for line in _single_properties(config, us)),
        *(["# tag the qubes that may be found: qvm-tags QUBE add monitored"] if found else []),
        # Commented out, because with them each port is allowed in a call of its own, too.
        *(["# only while upstream's service is in these qubes, which takes one port per call:"] if single else []),
        *(f"# {rule}" for rule in single),
    ]


def rules(config: Config, own_name: str) -> list[str]:
    """The same without comments."""
    return [line for line in policy_lines(config, own_name) if not line.startswith("#")]


def only(config: Config, qube: Qube) -> Config:
    """The configuration as if it had nothing but this qube: what discovery and [dom0] need is no help to a qube."""
    return replace(config, qubes=(qube,), discovery=None, dom0=None)


def dom0_needs(config: Config, service: str = "") -> list[Need]:
    """What [dom0] asks for, read-only: all of it, or one kind of call."""
    wanted = config.dom0
    if wanted is None:
        return []
    needs: list[Need] = []
    if wanted.stats:
        needs.append(Need(STATS, "+", ADMIN_QUBE))
    if wanted.storage:
        needs += [Need(POOLS, "+", ADMIN_QUBE), Need(POOL, "*", ADMIN_QUBE), Need(POOL_USAGE, "*", ADMIN_QUBE)]
    if wanted.asks_each_qube:
        listed = (ANY_QUBE,) if wanted.volumes or wanted.properties else SYSTEMS
        needs += [Need(LIST, "*", target) for target in (ADMIN_QUBE, *listed)]
    if wanted.properties:
        needs.append(Need(PROPERTIES, "+", ANY_QUBE))
    if wanted.volumes:
        needs += [Need(VOLUME, f"+{PRIVATE}", ANY_QUBE), *(Need(VOLUME, f"+{ROOT}", target) for target in SYSTEMS)]
    if wanted.updates:
        needs += [Need(FEATURE, f"+{feature}", target) for feature in FEATURES for target in SYSTEMS]
        needs.append(Need(FEATURE, f"+{UPDATES}", ADMIN_QUBE))
    return [need for need in needs if service in {"", need.service}]


def dom0_services(config: Config) -> list[str]:
    """The kinds of call that [dom0] makes, in the order of their lines."""
    return list(dict.fromkeys(need.service for need in dom0_needs(config)))


def dom0_rules(needs: Iterable[Need], own_name: str) -> list[str]:
    """The lines for these."""
    return _aligned([_rule(need, _us(own_name)) for need in needs])


def single_port_rules(config: Config, own_name: str) -> list[str]:
    """What upstream's service needs in a qube with several ports, as it takes one port per call."""
    return [
        f"{SERVICE}  +{port}  {_us(own_name)}  {name}  {_allow(name)}"
        for name, endpoints in _called(config)
        if len(endpoints) > 1
        for port in endpoints
        if isinstance(port, int)
    ]


def numbered_disposables(config: Config) -> list[str]:
    """A line for each qube whose name will be another qube's. A lasting line of policy would allow that one, too."""
    return [
        f"qubes.{qube.name}: dom0 gives this name to another disposable later; use [discovery] and tag the disposable"
        " template, whose disposables have its tags: qvm-tags TEMPLATE add monitored"
        for qube in config.qubes
        if _NUMBERED.fullmatch(qube.name)
    ]


def _rule(need: Need, us: str) -> tuple[str, str, str, str, str]:
    return need.service, need.argument, us, need.target, "allow target=dom0"


def _single_properties(config: Config, us: str) -> list[str]:
    """A narrower way, which dom0 gets more calls by."""
    if config.dom0 is None or not config.dom0.properties:
        return []
    rules = [f"{PROPERTY}  +{name}  {us}  {ANY_QUBE}  allow target=dom0" for name in INFO]
    return [
        f"or, in the place of the line with {PROPERTIES}, which tells all properties; the last one keeps dom0 from",
        "showing a window for each try:",
        *rules,
        f"{PROPERTIES}  +  {us}  {ANY_QUBE}  deny notify=no",
    ]


def _called(config: Config) -> list[tuple[str, tuple[Endpoint, ...]]]:
    """What is called over qrexec, by its name in dom0's policy, with its ports and endpoints."""
    called = [(_in_policy(qube.name), qube.endpoints) for qube in config.qubes if qube.transport == "qrexec"]
    found = config.discovery.exporters if config.discovery else ()
    return [*called, (TAGGED, in_order([one.endpoint for one in found]))] if found else called


def _aligned(rules: Sequence[tuple[str, str, str, str, str]]) -> list[str]:
    """The columns below each other, but for the last one."""
    widths = [max((len(rule[column]) for rule in rules), default=0) for column in range(4)]
    return ["  ".join([*map(str.ljust, rule[:4], widths), rule[4]]) for rule in rules]


def _us(own_name: str) -> str:
    return own_name if is_qube_name(own_name) else USUAL_NETVM


def _in_policy(name: str) -> str:
    return ADMIN_QUBE if name == DOM0 else name


def _allow(name: str) -> str:
    """dom0 always runs; no other qube is to be started for a scrape."""
    return "allow" if name == ADMIN_QUBE else "allow autostart=no"
