# SPDX-License-Identifier: GPL-3.0-or-later
"""
Whether the daemon is there for Prometheus: its service flag, its port, and a configuration that its user can read.

Owns these questions of `check`, `scrape` and `doctor`, which work without the daemon and could say that all is well
while nothing answers. Must not know what is scraped.
"""

import os
import pwd
import socket
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from federator import host
from federator.findings import NO_FLAG, Place, set_flag
from federator.model import Address, Config

# Made at the start of a qube, with an empty file for each service flag that dom0 gave it.
SERVICE_FLAGS = Path("/run/qubes-service")
FLAG = "prometheus-qubes-proxy"
# The user of the systemd unit.
UNIT_USER = "user"
# Qubes keeps this chain for rules like ours. Only root can read it.
FIREWALL_RULES = ("nft", "list", "chain", "ip", "qubes", "custom-input")
RUN_QUBES = Path("/run/qubes")
# Where qrexec-client-vm looks for its agent.
AGENT_SOCKET = Path("/var/run/qubes/qrexec-agent")
# A daemon of this qube answers in microseconds.
CONNECT_SECONDS = 2.0


def missing(addresses: Iterable[Address]) -> str | None:
    """What keeps Prometheus from a daemon in this qube, and the remedy; None if nothing does, or this is no qube."""
    if not SERVICE_FLAGS.is_dir():
        return None
    if not (SERVICE_FLAGS / FLAG).exists():
        return f"{NO_FLAG}; in dom0: {set_flag(host.own_name())}, then restart the qube"
    silent = [host.written(address) for address in addresses if not closed_to_us(address) and not answers(address)]
    if silent:
        return f"the daemon does not listen on {' and '.join(silent)}; start it: sudo systemctl restart {FLAG}"
    return None


def closed_to_us(address: Address) -> bool:
    """Is there perhaps a Unix socket that only others may use? The daemon's is for its user and group."""
    if not isinstance(address, Path):
        return False
    try:
        return stat.S_ISSOCK(address.stat().st_mode) and not os.access(address, os.W_OK)
    except PermissionError:
        return True
    except OSError:
        return False


def answers(address: Address) -> bool:
    """Does anything take connections there?"""
    try:
        connect(address, CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def connect(address: Address, seconds: float) -> socket.socket:
    """A connection to what listens there. Raises OSError. To an address for all, the kernel connects as to loopback."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect(str(address) if isinstance(address, Path) else address)
    except BaseException:
        sock.close()
        raise
    return sock


def place() -> Place:
    """What `doctor` wants to know of this qube."""
    in_qube = SERVICE_FLAGS.is_dir()
    if not in_qube:
        return Place(host.own_name(), in_qube=False)
    agent: Literal["there", "missing", "closed to us"] = "there"
    if not AGENT_SOCKET.is_socket():
        agent = "missing"
    elif not os.access(AGENT_SOCKET, os.W_OK):
        agent = "closed to us"
    return Place(
        host.own_name(),
        in_qube=True,
        flagged=(SERVICE_FLAGS / FLAG).exists(),
        run_qubes=RUN_QUBES.is_dir() and AGENT_SOCKET.parent.resolve() == RUN_QUBES.resolve(),
        agent=agent,
        firewall=_firewall(),
    )


def _firewall() -> str | None:
    try:
        done = subprocess.run(FIREWALL_RULES, capture_output=True, timeout=CONNECT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("ascii", "replace")


def unreadable(settings: Config, web_file: Path | None) -> list[str]:
    """A line for each file that we can read as root, and the daemon as the unit's user cannot."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam(UNIT_USER)
    except KeyError:
        return []
    tls = settings.web.tls
    named = [settings.path, web_file, *((tls.cert, tls.key, tls.client_ca) if tls else ())]
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    return [
        f"{path}: the daemon runs as {UNIT_USER}, who cannot read this file; give it to the group: chgrp {UNIT_USER}"
        " and chmod g+r, and let the group into its folders"
        for path in named
        if isinstance(path, Path) and not _readable(path, user, groups)
    ]


def _readable(path: Path, user: pwd.struct_passwd, groups: list[int]) -> bool:
    words = ["test", "-r", str(path)]
    done = subprocess.run(words, user=user.pw_uid, group=user.pw_gid, extra_groups=groups, check=False)
    return done.returncode == 0
