# SPDX-License-Identifier: GPL-3.0-or-later
"""
Which qubes and targets there are: those of the configuration, and those that dom0 says are running.

Owns the names of qubes, the replies of dom0's two services, and the JSON of service discovery. Must not know how or
when dom0 is asked.
"""

import re
from collections.abc import Container, Iterator, Mapping, Sequence

from federator.errors import ProtocolError
from federator.model import ENDPOINT_NAME, Config, Endpoint, Exporter, Qube, Target
from federator.wire import payload

DOM0 = "dom0"
RUNNING = "Running"
PAUSED = "Paused"
# In the place of a state: dom0 says of each RemoteVM that it runs, whether it does or not.
REMOTE = "remote"
REMOTE_CLASS = "RemoteVM"

# QubesOS/qubes-core-admin, qubes/vm/__init__.py: a letter first, 31 characters at most, and some names are reserved.
_QUBE_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}")
_RESERVED = frozenset({"none", "default", "Domain-0"})
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def is_qube_name(untrusted_name: str) -> bool:
    """Can a qube have this name? dom0 is not a qube here: it is scraped only if the configuration says so."""
    return bool(
        _QUBE_NAME.fullmatch(untrusted_name)
        and untrusted_name not in _RESERVED
        and not untrusted_name.endswith("-dm")
        and untrusted_name != DOM0
    )


def states_of_list(untrusted_reply: bytes) -> dict[str, str]:
    """
    The reply of admin.vm.List: the state of each qube that dom0's policy lets us see, by name, without dom0.

    The format is in QubesOS/qubes-core-admin, qubes/api/__init__.py and admin.py; ext/admin.py leaves qubes out of it.
    Raises ProtocolError for a reply that is not complete: with half of a list, running qubes would look halted.
    """
    untrusted_list = payload(untrusted_reply, "admin.vm.List")
    states: dict[str, str] = {}
    for untrusted_name, fields in words_of_list(untrusted_list):
        if is_qube_name(untrusted_name) and fields.get("state", "").isalpha():
            states[untrusted_name] = REMOTE if fields.get("class") == REMOTE_CLASS else fields["state"]
    return states


def words_of_list(untrusted_list: bytes) -> Iterator[tuple[str, dict[str, str]]]:
    """
    The lines of admin.vm.List: what stands where a name should, and the words KEY=VALUE behind it.

    Raises ProtocolError for a list that is cut.
    """
    if not untrusted_list.endswith(b"\n"):
        raise ProtocolError("dom0's reply of admin.vm.List is cut")
    for untrusted_line in untrusted_list.decode("ascii", "replace").split("\n"):
        untrusted_name, *untrusted_words = untrusted_line.split(" ")
        yield untrusted_name, dict(word.partition("=")[::2] for word in untrusted_words)


def states_of_names(untrusted_text: bytes) -> dict[str, str]:
    """
    The reply of ruddo.PrometheusDiscover, ours or upstream's: the names of the running qubes, one on each line.

    Ours says in a further line for each RemoteVM that it is one. Upstream's does not: there it looks like any qube.
    Raises ProtocolError for a reply without a name. Upstream's service answers so when it fails; our own qube runs.
    """
    names = untrusted_text.decode("ascii", "replace").split("\n")
    states = {untrusted_name: RUNNING for untrusted_name in names if is_qube_name(untrusted_name)}
    states |= {name: REMOTE for name in states if f"{name} class={REMOTE_CLASS}" in names}
    if not states:
        raise ProtocolError("dom0's ruddo.PrometheusDiscover named no qube that runs, not even this one")
    return states


def qubes_with_discovered(config: Config, states: Mapping[str, str], own_name: str) -> tuple[Qube, ...]:
    """The configured qubes in the order of the file, then the running qubes that are wanted, sorted; never our own."""
    discovery = config.discovery
    if discovery is None or not discovery.exporters:
        return config.qubes
    configured = {qube.name for qube in config.qubes}
    found = sorted(
        name
        for name, state in states.items()
        if state == RUNNING
        and name not in configured
        and name != own_name
        and any(pattern.fullmatch(name) for pattern in discovery.include)
        and not any(pattern.fullmatch(name) for pattern in discovery.exclude)
    )
    return (
        *config.qubes,
        *(
            Qube(name, "qrexec", tuple(Target(qube=name, exporter=exporter) for exporter in discovery.exporters))
            for name in found
        ),
    )


def forwarded(
    untrusted_target: str, untrusted_place: Mapping[str, str], targets: Sequence[Target], names: Container[str] = ()
) -> Target | None:
    """
    The target that /forward?target=…&port=… or …&endpoint=… asks for, or None if there is no such target. Raises
    ValueError for bad input.

    Upstream cuts the name at its first dot. We do so only if no target and none of `names`, which are the other qubes
    of this machine, has the whole name: names may have dots, and one qube must not be taken for another.
    """
    endpoint = _endpoint(untrusted_place)
    known = {target.qube for target in targets}
    untrusted_name = untrusted_target
    if untrusted_target not in known and untrusted_target not in names:
        untrusted_name = untrusted_target.partition(".")[0]
    if not is_qube_name(untrusted_name) and untrusted_name != DOM0:
        raise ValueError("target is missing, or not the name of a qube")
    return next(
        (target for target in targets if (target.qube, target.exporter.endpoint) == (untrusted_name, endpoint)), None
    )


def _endpoint(untrusted_place: Mapping[str, str]) -> Endpoint:
    """What /forward's parameter `port` or `endpoint` says. Raises ValueError."""
    untrusted_port, untrusted_name = untrusted_place.get("port", ""), untrusted_place.get("endpoint", "")
    if untrusted_port and untrusted_name:
        raise ValueError("port and endpoint are there both; ask for one of them")
    if untrusted_name:
        if not re.fullmatch(ENDPOINT_NAME, untrusted_name):
            raise ValueError("endpoint is not a name of a small letter, then at most 31 of a-z, 0-9, _ and -")
        return untrusted_name
    if not _PORT.fullmatch(untrusted_port) or int(untrusted_port) > 65535:
        raise ValueError("port is missing, or not a number from 1 to 65535")
    return int(untrusted_port)


def service_discovery(targets: Sequence[Target], address: str) -> list[dict[str, object]]:
    """
    Prometheus' HTTP SD: one group for each target, scraped through /forward at `address`, with all its labels.

    Each target has its own `instance` label. Without it, Prometheus would take all of them for one target.
    """
    return [
        {
            "targets": [address],
            "labels": {
                **dict(target.labels),
                "__metrics_path__": "/forward",
                "__param_target": target.qube,
                f"__param_{'port' if isinstance(target.exporter.endpoint, int) else 'endpoint'}": (
                    str(target.exporter.endpoint)
                ),
                "instance": target.name,
                "qube": target.qube,
                "exporter": target.exporter.name,
                **_own_times(target.exporter),
            },
        }
        for target in targets
    ]


def _own_times(exporter: Exporter) -> dict[str, str]:
    """What Prometheus takes instead of the job's scrape_interval and scrape_timeout."""
    times = {"__scrape_interval__": exporter.interval, "__scrape_timeout__": exporter.timeout}
    return {name: f"{seconds * 1000:.0f}ms" for name, seconds in times.items() if seconds is not None}
