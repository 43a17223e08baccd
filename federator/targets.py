# SPDX-License-Identifier: GPL-3.0-or-later
"""
Which qubes and targets there are: what the configuration says, and what dom0 says of what runs.

Owns the names of qubes, the replies of dom0's two services, and the JSON of service discovery. Must not know how dom0
is asked, nor when.
"""

import re
from collections.abc import Container, Mapping, Sequence

from federator.errors import ProtocolError, shown
from federator.model import Config, Qube, Target

DOM0 = "dom0"
RUNNING = "Running"

# QubesOS/qubes-core-admin, qubes/vm/__init__.py: letters first, 31 characters, and a few names that are not for qubes.
_QUBE_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}")
_NOT_QUBES = frozenset({"none", "default", "Domain-0"})
_PORT = re.compile(r"[1-9][0-9]{0,4}")


def is_qube_name(untrusted_name: str) -> bool:
    """Is this a name that Qubes gives to qubes? dom0's is not: it is scraped only where the configuration says so."""
    return bool(
        _QUBE_NAME.fullmatch(untrusted_name)
        and untrusted_name not in _NOT_QUBES
        and not untrusted_name.endswith("-dm")
        and untrusted_name != DOM0
    )


def states_of_list(untrusted_reply: bytes) -> dict[str, str]:
    """
    The reply of admin.vm.List: the state of every qube that dom0's policy lets us see, by name, dom0 left out.

    QubesOS/qubes-core-admin, qubes/api/__init__.py and admin.py, and ext/admin.py for what is left out of it. Raises
    Protocol for anything but a whole list, which names dom0 at least: half of one would make running qubes look halted.
    """
    if untrusted_reply.startswith(b"2\0"):
        untrusted_kind = untrusted_reply[2:].partition(b"\0")[0]
        raise ProtocolError(
            f"dom0 answered admin.vm.List with an error: {shown(untrusted_kind)}; its journal has the details"
        )
    if not untrusted_reply.startswith(b"0\0"):
        raise ProtocolError(f"dom0's answer is no reply of admin.vm.List: {shown(untrusted_reply[:80])}")
    if not untrusted_reply.endswith(b"\n"):
        raise ProtocolError("dom0's reply of admin.vm.List is cut")
    states: dict[str, str] = {}
    for untrusted_line in untrusted_reply[2:].decode("ascii", "replace").split("\n"):
        untrusted_name, *untrusted_words = untrusted_line.split(" ")
        fields = dict(word.partition("=")[::2] for word in untrusted_words)
        if is_qube_name(untrusted_name) and fields.get("state", "").isalpha():
            states[untrusted_name] = fields["state"]
    return states


def states_of_names(untrusted_text: bytes) -> dict[str, str]:
    """
    What ruddo.PrometheusDiscover says, ours or upstream's: the qubes that run, one name a line.

    Raises ProtocolError where there is none, as upstream's answers where it failed itself: at least we do run.
    """
    names = untrusted_text.decode("ascii", "replace").split("\n")
    states = {untrusted_name: RUNNING for untrusted_name in names if is_qube_name(untrusted_name)}
    if not states:
        raise ProtocolError("dom0's ruddo.PrometheusDiscover named no qube that runs, not even this one")
    return states


def qubes_with_discovered(config: Config, states: Mapping[str, str], own_name: str) -> tuple[Qube, ...]:
    """The configured qubes in the order of the file, then those that run and are wanted, by name; never ourselves."""
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
    untrusted_target: str, untrusted_port: str, targets: Sequence[Target], names: Container[str] = ()
) -> Target | None:
    """
    The target that /forward?target=…&port=… asks for, or None where there is none. Raises ValueError for bad input.

    Upstream drops what comes after the first dot; so do we, but only if no qube of the whole name is known, be it a
    target or one of the other `names` of this machine: dots are legal, and one qube must not be taken for another.
    """
    if not _PORT.fullmatch(untrusted_port) or int(untrusted_port) > 65535:
        raise ValueError("port is missing, or not a number from 1 to 65535")
    port = int(untrusted_port)
    known = {target.qube for target in targets}
    untrusted_name = untrusted_target
    if untrusted_target not in known and untrusted_target not in names:
        untrusted_name = untrusted_target.partition(".")[0]
    if not is_qube_name(untrusted_name) and untrusted_name != DOM0:
        raise ValueError("target is missing, or not the name of a qube")
    return next((target for target in targets if (target.qube, target.exporter.port) == (untrusted_name, port)), None)


def service_discovery(targets: Sequence[Target], address: str) -> list[dict[str, object]]:
    """
    Prometheus' HTTP SD: every target by itself, through /forward at `address`, with all the labels it needs.

    Each has an instance of its own, or Prometheus would take them for one.
    """
    return [
        {
            "targets": [address],
            "labels": {
                **dict(target.labels),
                "__metrics_path__": "/forward",
                "__param_target": target.qube,
                "__param_port": str(target.exporter.port),
                "instance": target.name,
                "qube": target.qube,
                "exporter": target.exporter.name,
            },
        }
        for target in targets
    ]
