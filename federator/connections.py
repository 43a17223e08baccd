# SPDX-License-Identifier: GPL-3.0-or-later
"""
TCP connections of scrapers: how many there may be, and how long one may stay without a request.

Owns the listening sockets and the log of what is no HTTP. Must not know what is asked for on a connection: the HTTP
library does, and tells when a request begins and ends.

Anybody on the network may open connections, and each takes a file descriptor that a call to a qube could need. So there
is a limit, and where it is reached a new connection takes the place of the one that has been without a request for the
longest time.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from aiohttp.http import HttpProcessingError

from federator.errors import shown

# Prometheus' own --web.max-connections.
MAX_CONNECTIONS = 512
# A scraper sends its request at once. The head of one that has begun must be complete in this time, too.
HEAD_SECONDS = 10.0
# After an answer the connection is kept for the next request. Prometheus scrapes once a minute, or more often.
IDLE_SECONDS = 75.0
# Bad requests are one line in the log, and one more in so many seconds.
BAD_REQUEST_SECONDS = 60.0


class Connection(asyncio.Protocol):
    """One connection: the HTTP library's protocol, and a timer that runs while there is no request in hand."""

    def __init__(self, inner: asyncio.Protocol, connections: "Connections") -> None:
        self._inner = inner
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._head_expected = False
        self._transport: asyncio.Transport | None = None
        self.busy = False

    def request_begins(self) -> None:
        """Its head is complete, and it is being answered."""
        self.busy = True
        self._stop_timer()

    def request_ends(self) -> None:
        """The answer is made."""
        self.busy = False
        self._head_expected = False
        self._connections.becomes_idle(self)
        self._start_timer(IDLE_SECONDS)

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
        self._head_expected = True
        self._start_timer(HEAD_SECONDS)
        self._connections.opened(self)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if not self.busy and not self._head_expected:
            self._head_expected = True
            self._start_timer(HEAD_SECONDS)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._stop_timer()
        self._connections.closed(self)
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
    """All of them. `make_protocol` is the HTTP library's; `most`: so many at one time."""

    def __init__(self, make_protocol: Callable[[], asyncio.Protocol], most: int = MAX_CONNECTIONS) -> None:
        self._make_protocol = make_protocol
        self._most = max(1, min(most, MAX_CONNECTIONS))
        self._servers: list[asyncio.Server] = []
        # Those without a request stand in the order in which they are without one.
        self._open: dict[Connection, None] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens."""
        return [sock.getsockname()[:2] for server in self._servers for sock in server.sockets]

    async def listen(self, name: str, port: int) -> None:
        """Take connections at this address; an empty name is every address. Raises OSError."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(self._make_protocol(), self), name or None, port)
        self._servers.append(server)

    async def close(self, seconds: float) -> None:
        """Listen no more, and end all connections; those with a request have `seconds` to take their answer."""
        for server in self._servers:
            server.close()
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
        if len(self._open) > self._most:
            idle = next(one for one in self._open if not one.busy)  # the new one, where all others are busy
            del self._open[idle]
            idle.abort()

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


class BadRequestFilter(logging.Filter):
    """
    What is no HTTP is the client's mistake: a line without a traceback, now and then, and not one for each request.

    All that the HTTP library logs beside that is a bug of ours, and passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._not_before = 0.0
        self._suppressed = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Is this record to be written?"""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError | ConnectionError):
            return True
        now = time.monotonic()
        if now < self._not_before:
            self._suppressed += 1
            return False
        self._not_before = now + BAD_REQUEST_SECONDS
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = "a request that is no HTTP; more of them are not told for a while", ()
        record.exc_info = record.exc_text = None
        vars(record).update(error=shown(str(error)), suppressed=self._suppressed)
        self._suppressed = 0
        return True
