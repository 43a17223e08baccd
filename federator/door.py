# SPDX-License-Identifier: GPL-3.0-or-later
"""
A listening socket: how many connections are accepted in one turn of the event loop, and how often from one address.

Owns accepting. Must not know what becomes of a connection, nor how many may be open.

The event loop's own way would take a transport, a protocol and two tasks for each connection before anybody could say
no, so one client that does nothing but connect would keep the loop busy, and the queue of the system full.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable

from federator.network import network_of
from federator.pace import Pace
from federator.seldom import Seldom

# Connections that wait to be accepted. Where there are more, the system drops one, and its client tries again after a
# second.
MAX_WAITING = 4096
# So many are looked at in one turn: all that can wait. Most of a flood are closed at once, in some microseconds each.
MAX_A_TURN = MAX_WAITING
# On a machine that is too busy they take longer; then the rest wait for the next turn.
MAX_TURN_SECONDS = 0.1
# An address opens so many at once, and then one in so many seconds. Prometheus keeps its one, a browser opens six.
AT_ONCE = 128
PACE_SECONDS = 0.005
# More addresses than these are not remembered if they may open all of AT_ONCE again.
MAX_REMEMBERED = 4096
# Where the system has no file descriptor or no memory for another one, it is not asked for so long.
PAUSE_SECONDS = 1.0
TOLD_SECONDS = 60.0

log = logging.getLogger(__name__)


class Door:
    """The sockets of a server that does not serve by itself; `pace` is shared by all doors."""

    def __init__(self, server: asyncio.Server, make_protocol: Callable[[], asyncio.Protocol], pace: Pace) -> None:
        self._server = server
        self._make_protocol = make_protocol
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._sockets = [shared.dup() for shared in server.sockets]
        self._taking: set[asyncio.Task[object]] = set()
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}  # the last one of each socket
        self._too_many = Seldom(TOLD_SECONDS)
        self._failed = Seldom(TOLD_SECONDS)
        for sock in self._sockets:
            sock.settimeout(0)
            sock.listen(MAX_WAITING)
            self._open(sock)

    @property
    def names(self) -> list[tuple[str, int] | str]:
        """Where it listens: an address of the network, or a path."""
        return [sock.getsockname() for sock in self._sockets if sock.fileno() >= 0]

    def close(self) -> None:
        """Listen no more."""
        for pause in self._pauses.values():
            pause.cancel()
        for sock in self._sockets:
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()
        self._server.close()

    def _open(self, sock: socket.socket) -> None:
        self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        end = time.monotonic() + MAX_TURN_SECONDS
        for _ in range(MAX_A_TURN):
            if time.monotonic() > end:
                return
            try:
                connection, address = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(sock, error)
                return
            client = str(address[0]) if isinstance(address, tuple) else ""
            if client and not self._may_open(client):
                connection.close()
                continue
            connection.settimeout(0)
            taking = self._loop.create_task(self._loop.connect_accepted_socket(self._make_protocol, connection))
            self._taking.add(taking)
            taking.add_done_callback(self._taking.discard)

    def _may_open(self, client: str) -> bool:
        network, now = network_of(client), time.monotonic()
        if not self._pace.wait(network, now):
            if len(self._pace) > MAX_REMEMBERED:
                self._pace.forget(now)
            self._pace.reserve(network, now)
            return True
        times = self._too_many.again()
        if times is not None:
            log.warning(
                "an address opens too many connections; those that are too many are closed",
                extra={"client": client, "suppressed": times},
            )
        return False

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        self._loop.remove_reader(sock.fileno())
        self._pauses[sock] = self._loop.call_later(PAUSE_SECONDS, self._open, sock)
        times = self._failed.again()
        if times is not None:
            log.error(
                "no connection can be accepted for a moment", extra={"error": error.strerror, "suppressed": times}
            )
