# SPDX-License-Identifier: GPL-3.0-or-later
"""
What we tell systemd, sd_notify(3), and what it gives us, sd_listen_fds(3): in the few lines that they take.

Owns the datagram to $NOTIFY_SOCKET, and the sockets of socket activation. Must not know what there is to tell, nor what
the sockets are for. Where nobody asks, nothing is done.
"""

import asyncio
import os
import socket
import time
from contextlib import suppress

# sd_listen_fds(3): the first one after stdin, stdout and stderr.
FIRST_FD = 3


def notify(*states: str) -> None:
    """Lines such as READY=1 or STATUS=…; a systemd that does not listen is not our trouble."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect(address)
        sock.send("\n".join(states).encode())


def listening_sockets() -> list[socket.socket]:
    """The sockets that systemd made for us and listens on. Takes them: a second call, and a child, gets none."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets


def notify_reloading() -> None:
    """A reload begins; READY=1 ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


async def feed_watchdog() -> None:
    """For ever, from the event loop: so that a loop that hangs is noticed. Returns at once where nobody watches."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(microseconds) / 1e6 / 2)
