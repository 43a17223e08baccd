# SPDX-License-Identifier: GPL-3.0-or-later
"""
TCP connections of scrapers: how many there may be, and how long one may stay without a request.

Owns the listening sockets and the log of what is no HTTP. Must not know what is asked for on a connection: the HTTP
library does, and tells when a request begins and ends.

Anybody on the network may open connections, and each takes a file descriptor that a call to a qube could need. So there
is a limit, for all and for one address. Where it is reached, a new connection takes the place of the one that has been
without a request for the longest time.

One request of a connection is in hand at one time. What comes behind it waits until its answer is made, and is little:
the connection of a client that sends more is ended. So a client that sends requests and reads no answers costs no more
than one that waits. Reading goes on meanwhile, so a request whose client is gone ends at once.
"""

import asyncio
import logging
import re
import socket
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import cast

from aiohttp import web
from aiohttp.http import HttpProcessingError

from federator.door import AT_ONCE, PACE_SECONDS, Door
from federator.errors import HandshakeError, shown
from federator.network import network_of
from federator.pace import Pace
from federator.seldom import Seldom
from federator.tls import ServerTls

log = logging.getLogger(__name__)

# Prometheus' own --web.max-connections.
MAX_CONNECTIONS = 512
# However few file descriptors there are, one scraper and one person get through.
LEAST_CONNECTIONS = 4
# A pair of Prometheus, a browser and a few scripts, each with some connections, come from one address.
MAX_PER_ADDRESS = 64
# Bytes of further requests that wait for the answer of one. Prometheus sends none; some clients send a few.
MAX_HELD = 64 << 10
# A scraper sends its request at once. The head of one that has begun must be complete in this time, too.
HEAD_SECONDS = 10.0
# After an answer the connection is kept for the next request. Prometheus scrapes once a minute, or more often.
IDLE_SECONDS = 75.0
# Bad requests are one line in the log, and one more in so many seconds.
BAD_REQUEST_SECONDS = 60.0
# How TLS begins: a record with a handshake in it. Clients, Prometheus among them, tell by the answer that this is HTTP.
_TLS_HELLO = re.compile(rb"\x16\x03")
PLAIN_PORT = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"Client sent an HTTPS request to an HTTP server.\n"
)
# A reverse proxy connects if it runs as the daemon's user or in its group.
UNIX_SOCKET_MODE = 0o660


# Where the head of a request ends. All that we serve has no body.
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_HEAD_END_LENGTH = 4


class Connection(asyncio.Protocol):
    """One connection: the HTTP library's protocol, and a timer that runs while there is no request in hand."""

    def __init__(self, inner: asyncio.Protocol, connections: "Connections") -> None:
        self._inner = inner
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._head_expected = False
        self._transport: asyncio.Transport | None = None
        self._handler: asyncio.Task[object] | None = None
        self._untrusted_tail = b""  # the last bytes of a head that has not ended
        self._untrusted_held = b""  # what came behind the request in hand
        self._in_hand = False  # was the head of a request passed on that is not answered yet?
        self._begun = False  # was anything passed on of a request that the handlers do not know yet?
        self._made = False  # does the HTTP library know of it?
        self._plain = True  # is it without TLS?
        self._handshake: asyncio.Task[None] | None = None
        self.address = ""
        self.network = ""

    @property
    def busy(self) -> bool:
        """Is a request being answered?"""
        return self._handler is not None

    def request_begins(self) -> None:
        """Its head is complete, and the current task answers it."""
        self._handler = asyncio.current_task()
        self._begun = False
        self._stop_timer()

    def request_ends(self) -> None:
        """The answer is made."""
        self._handler = None
        self._head_expected = False
        if self._transport is None:  # the client is gone
            return
        self._connections.becomes_idle(self)
        self._start_timer(IDLE_SECONDS)
        self._loop.call_soon(self._next_request)

    def close(self) -> None:
        """End it when what was written is sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self.network = network_of(self.address)
        self._head_expected = True
        self._start_timer(HEAD_SECONDS)
        self._connections.opened(self)
        tls = self._connections.tls()
        self._plain = tls is None
        if tls is None:
            self._make(self._transport)
        else:
            self._transport.pause_reading()
            self._handshake = self._loop.create_task(self._secure(tls, self._transport))

    async def _secure(self, tls: ServerTls, plain: asyncio.Transport) -> None:
        try:
            secured = await tls.handshake(plain, self, HEAD_SECONDS)
        except (HandshakeError, OSError) as error:
            if isinstance(error, HandshakeError):
                self._connections.handshake_failed(error)
            plain.abort()
            self.connection_lost(error)
        else:
            self._make(secured)

    def _make(self, transport: asyncio.Transport) -> None:
        """The HTTP library takes over."""
        self._transport = transport
        self._made = True
        self._inner.connection_made(transport)
        untrusted, self._untrusted_held = self._untrusted_held, b""
        if untrusted:
            self.data_received(untrusted)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if not self._made:  # they came with the end of the handshake, and are few
            self._untrusted_held += data
        elif self._in_hand:
            self._untrusted_held += data
            if len(self._untrusted_held) > MAX_HELD:
                self.abort()
        else:
            self._pass_on(data)

    def _pass_on(self, untrusted: bytes) -> None:
        """Up to the end of a request's head; the rest waits."""
        self._begun = True
        if self._plain and self._transport is not None and _TLS_HELLO.match(untrusted):
            self._connections.tls_on_plain_port(self.address)
            self._transport.write(PLAIN_PORT)
            self.close()
            return
        if not self._head_expected:
            self._head_expected = True
            self._start_timer(HEAD_SECONDS)
        tail = self._untrusted_tail
        end = _HEAD_END.search(tail + untrusted)
        if end is None:
            self._untrusted_tail = (tail + untrusted)[1 - _HEAD_END_LENGTH :]
            self._feed(untrusted)
            return
        length = end.end() - len(tail)
        self._untrusted_tail, self._untrusted_held = b"", untrusted[length:]
        self._in_hand = True
        self._feed(untrusted[:length])

    def _feed(self, untrusted: bytes) -> None:
        try:
            self._inner.data_received(untrusted)
        except Exception as error:  # noqa: BLE001 - some versions of the HTTP library raise what they mean to answer
            self._connections.log_bad_request(error)
            self.abort()

    def _next_request(self) -> None:
        """The answer is made: what came behind its request is next."""
        untrusted, self._untrusted_held = self._untrusted_held, b""
        self._in_hand = False
        if self._transport is None or self._transport.is_closing():
            return
        if untrusted:
            self._pass_on(untrusted)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._inner.eof_received() if self._made else None

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._stop_timer()
        self._transport = None
        self._connections.closed(self)
        if self._begun:
            self._begun = False
            self._connections.count_bad_request()
        if self._handler is not None:
            self._handler.cancel()
        if self._made:
            self._made = False
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._inner.resume_writing()

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Connections:
    """
    All of them. `make_protocol` is the HTTP library's; `most`: so many at one time.

    `tls`: what a new connection has to use, if anything. `count_bad_request`: called for each request that does not get
    as far as a handler, since it is no HTTP or its client is gone.
    """

    def __init__(
        self,
        make_protocol: Callable[[], asyncio.Protocol],
        most: int = MAX_CONNECTIONS,
        logger: logging.Logger | None = None,
        tls: Callable[[], ServerTls | None] = lambda: None,
        count_bad_request: Callable[[], None] = lambda: None,
    ) -> None:
        self._make_protocol = make_protocol
        self.count_bad_request = count_bad_request
        self._log = logger or logging.getLogger(__name__)
        self.tls = tls
        self._failed_handshakes = Seldom(BAD_REQUEST_SECONDS)
        self._tls_on_plain_port = Seldom(BAD_REQUEST_SECONDS)
        self._most = most
        self._doors: list[Door] = []
        self._pace = Pace(PACE_SECONDS, AT_ONCE)
        # Those without a request stand in the order in which they are without one.
        self._open: dict[Connection, None] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def busy(self) -> int:
        """How many are being answered."""
        return sum(one.busy for one in self._open)

    def limit(self, most: int) -> None:
        """So many file descriptors are left for connections."""
        self._most = max(LEAST_CONNECTIONS, min(most, MAX_CONNECTIONS))
        if most < LEAST_CONNECTIONS:
            self._log.warning("few file descriptors are left; raise LimitNOFILE= of the unit", extra={"left": most})
        idle = [one for one in self._open if not one.busy]
        for one in idle[: max(0, len(self._open) - self._most)]:
            del self._open[one]
            one.abort()

    def log_bad_request(self, error: Exception) -> None:
        """The HTTP library did not take what a client sent."""
        self._log.error("bad request", exc_info=HttpProcessingError(message=str(error)))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens in the network."""
        return [name[:2] for name in self._names() if isinstance(name, tuple)]

    @property
    def unix_paths(self) -> list[str]:
        """The Unix sockets on which it listens."""
        return [name for name in self._names() if isinstance(name, str)]

    def _names(self) -> list[tuple[str, int] | str]:
        return [name for door in self._doors for name in door.names]

    async def listen(self, name: str, port: int) -> None:
        """Take connections at this address; an empty name is every address. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._serve(await loop.create_server(self._connection, name or None, port, start_serving=False))

    async def listen_unix(self, path: Path) -> None:
        """Take connections on a new Unix socket, from processes of this user and group. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._serve(await loop.create_unix_server(self._connection, path, start_serving=False))
        _open_to_group(path)

    async def take(self, sock: socket.socket) -> None:
        """Take connections on a socket that systemd made."""
        loop = asyncio.get_running_loop()
        self._serve(await loop.create_server(self._connection, sock=sock, start_serving=False))

    def _serve(self, server: asyncio.Server) -> None:
        self._doors.append(Door(server, self._connection, self._pace))

    def _connection(self) -> Connection:
        return Connection(self._make_protocol(), self)

    async def close(self, seconds: float) -> None:
        """Listen no more, and end all connections; those with a request have `seconds` to take their answer."""
        for door in self._doors:
            door.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while any(connection.busy for connection in self._open):
                    await self._change()
                await asyncio.sleep(0)  # the HTTP library writes an answer after it told that the answer is made
                for connection in list(self._open):
                    connection.close()
                while self._open:
                    await self._change()
        for connection in list(self._open):
            connection.abort()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # -- a connection's side ------------------------------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        """There is one more. Where there are too many, one of them goes."""
        self._open[connection] = None
        of_network = [one for one in self._open if one.network == connection.network]
        if connection.network and len(of_network) > MAX_PER_ADDRESS:  # all of a Unix socket are one reverse proxy's
            self._make_room(of_network)
        elif len(self._open) > self._most:
            self._make_room(self._open)

    def _make_room(self, among: Iterable[Connection]) -> None:
        """The one that waits longest goes. Where all but the new one are busy, it is the last of the largest crowd."""
        *others, new = among
        gone = next((one for one in others if not one.busy), None)
        if gone is None:
            ((crowd, _),) = Counter(one.network for one in [*others, new]).most_common(1)
            gone = next(one for one in [new, *reversed(others)] if one.network == crowd)
        del self._open[gone]
        gone.abort()

    def handshake_failed(self, error: HandshakeError) -> None:
        """A client did not come as far as a request."""
        self.count_bad_request()
        times = self._failed_handshakes.again()
        if times is not None:
            log.warning(
                "a client failed at TLS; further ones are not logged for 60 s",
                extra={"error": str(error), "suppressed": times},
            )

    def tls_on_plain_port(self, client: str) -> None:
        """A client took this for HTTPS."""
        times = self._tls_on_plain_port.again()
        if times is not None:
            log.warning(
                "TLS on a plain port; further ones are not logged for 60 s: in Prometheus, write scheme: http, or set"
                " web.tls_server_config here",
                extra={"client": client, "suppressed": times},
            )

    def becomes_idle(self, connection: Connection) -> None:
        """It is the last in the line of those that may have to go."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None
        self._changed.set()

    def closed(self, connection: Connection) -> None:
        """It is gone."""
        self._open.pop(connection, None)
        self._changed.set()


def _open_to_group(path: Path) -> None:
    path.chmod(UNIX_SOCKET_MODE)


class BadRequestFilter(logging.Filter):
    """
    What is no HTTP is the client's mistake: a line without a traceback, now and then, and not one for each request.

    All that the HTTP library logs beside that is a bug of ours, and passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seldom = Seldom(BAD_REQUEST_SECONDS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Is this record to be written?"""
        error = record.exc_info[1] if record.exc_info else None
        client_errors = HttpProcessingError | web.RequestPayloadError | ConnectionError
        if not isinstance(error, client_errors) and not says_client_is_gone(error):
            return True
        times = self._seldom.again()
        if times is None:
            return False
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = "a request that is no HTTP; further ones are not logged for 60 s", ()
        record.exc_info = record.exc_text = None
        vars(record).update(error=shown(str(error)), suppressed=times)
        return True


def says_client_is_gone(error: BaseException | None) -> bool:
    """
    Does the HTTP library stumble over a connection that was reset before its task ran?

    RequestHandler.start begins with assertions: aiohttp 3.8 that it has a handler, all versions that it has a manager.
    A lost connection has neither. With Python 3.12, aiohttp 3.14 begins the task at once, and does not stumble.
    """
    if not isinstance(error, AssertionError) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    connection = frame.f_locals.get("self")
    return frame.f_code.co_name == "start" and isinstance(connection, web.RequestHandler) and not connection.transport
