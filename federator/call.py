# SPDX-License-Identifier: GPL-3.0-or-later
"""
One call: one process (qrexec-client-vm, or the local service) and the wire that it carries.

Owns how a process is started, spoken to, listened to and ended, and how many calls are set up at one time. Must not
know when a call is made or kept, nor what an answer is for.

A call is used until it was late, broke the protocol or was cut, and then never again: a late answer could be taken for
the next one.
"""

import asyncio
import logging
import os
import random
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Generic, Protocol, TypeVar, cast

from federator import reasons
from federator.budget import Budget
from federator.errors import ScrapeError
from federator.mishap import Caught
from federator.model import Callee, Endpoint, Qrexec
from federator.wire import Wire

# A call counts as being set up for so long at most: a paused qube, whose call hangs, must not keep others waiting.
SETUP_SECONDS = 1.0
# Calls made in the same instant collide in xenstore (QubesOS/qubes-issues #11059), so each waits a random part of this.
STAGGER_SECONDS = 0.05
# An ending call has at most this many seconds after its stdin was closed, after SIGTERM and after SIGKILL.
END_SECONDS = (1.0, 1.0, 1.0)
# After the process is gone its last words may still be in the pipes; a child of its may hold them open for ever.
LAST_WORDS_SECONDS = 0.2
# Stderr is the qube's text: the last of it is kept to explain an end, and who sends more than the rest in one scrape,
# or while nobody asks, is cut off.
STDERR_KEPT = 4 << 10
STDERR_LIMIT = 256 << 10

A = TypeVar("A")

log = logging.getLogger(__name__)


def note(event: str, fields: Mapping[str, object], **more: object) -> None:
    """A line of the log at `debug`: what became of a call. What it has is put together only where it is written."""
    if log.isEnabledFor(logging.DEBUG):
        log.debug(event, extra={key: value for key, value in {**fields, **more}.items() if value is not None})


class CallCounter(Protocol):
    """Counts calls: see counters.Counters."""

    def call_started(self) -> None:
        """A process was started."""

    def call_ended(self) -> None:
        """A process is gone."""


class ConnectionLimiter:
    """Lets few calls be set up at a time, and no two in the same instant. There is one for all calls of the daemon."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"<ConnectionLimiter {self._used} of {self._limit} used, {len(self._waiting)} waiting>"

    @property
    def limit(self) -> int:
        """How many calls may be set up at a time."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._hand_out()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one of the places while a call is set up, but no longer than SETUP_SECONDS. First come, first served."""
        await self._take()
        held = [True]  # given back once, by the timer or by the end of the set-up, whichever comes first

        def give_back() -> None:
            if held:
                held.clear()
                self._used -= 1
                self._hand_out()

        timer = asyncio.get_running_loop().call_later(SETUP_SECONDS, give_back)
        try:
            await asyncio.sleep(random.uniform(0, STAGGER_SECONDS))  # noqa: S311 - spreads calls, guards nothing
            yield
        finally:
            timer.cancel()
            give_back()

    async def _take(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._hand_out()
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():  # it has a place, and does not want it any more
                self._used -= 1
                self._hand_out()
            raise

    def _hand_out(self) -> None:
        """Give the free places to those that wait."""
        while self._waiting and self._used < self._limit:
            waiting = self._waiting.popleft()
            if not waiting.done():
                self._used += 1
                waiting.set_result(None)


def command(settings: Qrexec, callee: Callee, argument: str = "") -> tuple[list[str], dict[str, str]]:
    """The words that call a service with this argument, and the environment that the process gets."""
    full_name = f"{callee.service}+{argument}" if argument else callee.service
    if callee.transport == "qrexec":
        # `--`: no name of a qube is ever taken for an option.
        words = [settings.client, f"--buffer-size={settings.buffer_size}", "--", callee.name, full_name]
        return words, dict(os.environ)
    # The local service gets what qrexec would give it, and nothing of ours.
    return [str(settings.local_service), argument], {
        "PATH": os.environ.get("PATH", os.defpath),
        "QREXEC_REMOTE_DOMAIN": callee.name,
        "QREXEC_SERVICE_FULL_NAME": full_name,
        "QREXEC_SERVICE_ARGUMENT": argument,
    }


class _Stderr:
    """What a service writes to stderr: the last of it, and how much more it may write until it is asked again."""

    def __init__(self) -> None:
        self._untrusted_kept = bytearray()
        self.allowance = STDERR_LIMIT

    def take(self, untrusted: bytes) -> None:
        """Raises ProtocolError where it is too much."""
        self._untrusted_kept += untrusted
        del self._untrusted_kept[:-STDERR_KEPT]
        self.allowance -= len(untrusted)
        if self.allowance < 0:
            raise reasons.too_much_stderr(STDERR_LIMIT, self.last_words)

    @property
    def last_words(self) -> bytes:
        """The last line."""
        return bytes(self._untrusted_kept).strip().rpartition(b"\n")[2]


class _Ask(Generic[A]):
    """One request: what hears of its answers, whose are missing, and whether it is `over`: answered, or lost."""

    def __init__(self, tell: Callable[[A], None], endpoints: Collection[Endpoint]) -> None:
        self.tell: Callable[[A], None] | None = tell
        self.missing = set(endpoints)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Asks(Generic[A]):
    """The requests whose answers are missing. True while there are any."""

    def __init__(self) -> None:
        self._by_endpoint: dict[Endpoint, _Ask[A]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_endpoint)

    def add(self, asked: _Ask[A]) -> None:
        """It was sent."""
        self._by_endpoint.update(dict.fromkeys(asked.missing, asked))

    def remove(self, asked: _Ask[A]) -> None:
        """Nobody waits for it any more."""
        for endpoint in asked.missing:
            del self._by_endpoint[endpoint]

    def take(self, endpoint: Endpoint, answer: A) -> None:
        """Tell who asked for this endpoint."""
        asked = self._by_endpoint[endpoint]
        assert asked.tell is not None, "the wire takes no answer after the end"
        asked.tell(answer)
        del self._by_endpoint[endpoint]
        asked.missing.discard(endpoint)
        if not asked.missing:
            _wake(asked.over)

    def wake(self) -> None:
        """No more answers come."""
        for asked in self._by_endpoint.values():
            _wake(asked.over)

    def let_go(self) -> None:
        """Tell nobody any more: who is told may hold what came of it."""
        for asked in self._by_endpoint.values():
            asked.tell = None


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _signal(transport: asyncio.SubprocessTransport, number: int) -> None:
    """To the process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(transport.get_pid(), number)


class Call(asyncio.SubprocessProtocol, Generic[A]):
    """
    One process and the wire it carries. After `end`, or any error, it is of no more use.

    The event loop hands the pipes' bytes in; the wire decides what they mean.
    """

    def __init__(self, callee: Callee, wire: Wire[A], counter: CallCounter, texts: Budget | None = None) -> None:
        self._callee = callee
        self._texts = texts
        self._wire = wire
        self._counter = counter
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._spoke = False  # has one byte of stdout come?
        self._stderr = _Stderr()
        self._pipes_open = {1, 2}
        self._exited = asyncio.Event()
        self._greeted: asyncio.Future[None] = self._loop.create_future()  # or the call failed
        self.asks = _Asks[A]()
        self._error: ScrapeError | None = None
        self._ending: asyncio.Task[None] | None = None
        self._fields: dict[str, object] = {"qube": callee.name, "call": callee.service}  # for the log

    def __repr__(self) -> str:
        state = "ending" if self._ending else "failed" if self._error else "usable" if self.usable else "busy"
        return f"<Call {self._callee.service} of {self._callee.name}: pid {self._fields.get('pid')}, {state}>"

    @property
    def qube(self) -> str:
        """The one that was called."""
        return self._callee.name

    @property
    def usable(self) -> bool:
        """May a request be sent?"""
        return self.lives and (self._wire.idle or self._wire.overlaps)

    @property
    def lives(self) -> bool:
        """Is the service there, and may it be spoken to, now or after its answers?"""
        return self._error is None and self._ending is None and self._wire.greeted

    @property
    def error(self) -> ScrapeError | None:
        """Why it is of no more use, if it failed."""
        return self._error

    async def open(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process and greet. Raises ScrapeError; if it is cancelled, `end` the call."""
        self._fields["call"] = command[-1]
        try:
            # A session of its own: Ctrl-C at a terminal is for the daemon to act on, and `_end` may signal them all.
            await self._loop.subprocess_exec(lambda: self, *command, env=dict(environment), start_new_session=True)
        except OSError as error:
            raise reasons.not_started(command[0], error.strerror) from None
        note("a call was opened", self._fields)
        if self._error is None and self._wire.greeting:  # it may have ended; and qubesd waits for the end of input
            self._pipe(0).write(self._wire.greeting)
            await self._greeted  # perhaps done: a service may greet before it is greeted
        if self._error is not None:
            raise self._error.bare()
        note("a call was greeted", self._fields, wire=type(self._wire).__name__)

    async def ask(self, request: bytes, tell: Callable[[A], None], endpoints: Collection[Endpoint] = (0,)) -> None:
        """
        Send what the wire made for a request for these endpoints; `tell` is called as answers come.

        Raises ScrapeError where not all of them came. If it is cancelled, `end` the call.
        """
        asked = _Ask(tell, endpoints)
        if self._error is None:
            self.asks.add(asked)
            self._stderr.allowance = STDERR_LIMIT
            note("a call was asked", self._fields, request=request.decode().strip())
            self._pipe(0).write(request)
            if self._wire.asks_once:
                self._pipe(0).close()
            try:
                await asked.over
            finally:
                self.asks.remove(asked)
        if self._error is not None and asked.missing:  # it may have said all, and ended then
            raise self._error.bare()

    def end(self, error: ScrapeError | None = None) -> asyncio.Task[None]:
        """
        End the process: quietly if it lets us, in bounded time if not. Await what this returns to see it gone.

        With an error, who still waits for answers hears of that at once.
        """
        if error is not None:
            if self._error is None:
                self._error = error
            _wake(self._greeted)
            self.asks.wake()
        if self._ending is None:
            note("a call was ended", self._fields, reason=error and error.reason, error=error)
            self.asks.let_go()
            self._wire.let_go()  # a process that does not end keeps this object for seconds
            if self._texts is not None:
                self._texts.release(self)
            self._ending = self._loop.create_task(self._end())
        return self._ending

    async def _end(self) -> None:
        if self._transport is None:
            return
        self._pipe(0).close()
        for seconds, number in zip(END_SECONDS, (signal.SIGTERM, signal.SIGKILL, None), strict=True):
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._exited.wait()
                    break
            if number is not None:
                _signal(self._transport, number)
        if self._pipes_open:  # a child of the process holds them, and would for ever
            _signal(self._transport, signal.SIGKILL)
        self._transport.close()

    def count_held(self) -> None:
        """So many bytes of texts it has now."""
        if self._texts is not None:
            self._texts.hold(self, self._wire.held)

    def give_up(self) -> None:
        """Too many bytes of texts are in memory, and this call's qube has most of them."""
        self.end(reasons.too_much_at_once())

    def _pipe(self, fd: int) -> asyncio.WriteTransport:
        assert self._transport is not None, "no process yet"
        return cast("asyncio.WriteTransport", self._transport.get_pipe_transport(fd))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._fields["pid"] = self._transport.get_pid()
        self._counter.call_started()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Bytes of the qube, or of the client on its behalf."""
        if self._error is not None or self._ending is not None:
            return
        with Caught("bug in a call", self.end, qube=self._callee.name):  # the wire may have a hole then
            try:
                if fd == 2:
                    self._stderr.take(data)
                else:
                    self._spoke = True
                    answers = self._wire.receive(data)
                    self.count_held()
                    self._pass_on(answers)
            except ScrapeError as error:
                self.end(error.bare())

    def _pass_on(self, answers: Sequence[A]) -> None:
        if self._wire.greeted:
            _wake(self._greeted)
        for answer in answers:
            self.asks.take(self._wire.endpoint(answer), answer)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """A pipe was closed at the other end; after the exit, the last words are in once both are."""
        del exc
        self._pipes_open.discard(fd)
        if self._exited.is_set() and not self._pipes_open:
            self._gone()

    def process_exited(self) -> None:
        """The process is gone, and reaped; what it wrote last may still come."""
        self._counter.call_ended()
        note("a call's process is gone", self._fields, status=self._transport and self._transport.get_returncode())
        self._exited.set()
        if self._pipes_open:
            self._loop.call_later(LAST_WORDS_SECONDS, self._gone)
        else:
            self._gone()

    def _gone(self) -> None:
        assert self._transport is not None, "a process that never was cannot go"
        if self._error is not None:
            return
        status = self._transport.get_returncode()
        if status == 0 and self._ending is None:
            with Caught("bug in a call", self.end, qube=self._callee.name):
                if answers := self._wire.end_of_output():
                    self._pass_on(answers)
                    self.end()
                    return
        self.end(reasons.call_ended(status, self._stderr.last_words, self._callee, self._wire, spoke=self._spoke))
