# SPDX-License-Identifier: GPL-3.0-or-later
"""
Speaking to one qube: processes (qrexec-client-vm, or the local service), each driving one wire.

Owns when a call is made, kept and ended, and what a failure means in Qubes' words. Must not know what an answer is for.

    Channel    one qube, for as long as it is configured: keeps its calls open, remembers how they are to be made
      Slot     one set of ports, all of the qube's or a single one, and the version spoken for it; backs off
        Call   one process. It is used until it was late, broke the protocol or was cut, and then never again:
               a late answer could be taken for the next one
    Doorman    how many calls are being set up at a time, over all channels

A call costs dom0 a policy decision, allowed or not, and may start the qube; a request over an open one costs nothing.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol as TypingProtocol
from typing import cast

from federator.errors import (
    ClosedError,
    ExporterUnreachableError,
    NoServiceError,
    ProtocolError,
    RefusedError,
    ScrapeError,
    TimedOutError,
    shown,
)
from federator.model import Answer, Qrexec, Qube
from federator.wire import SERVICE, Version1, Version2, Wire, argument

# A call counts as being set up for so long at most: a paused qube, whose call hangs, must not keep others waiting.
SETUP_SECONDS = 1.0
# Calls made in the same instant collide in xenstore (QubesOS/qubes-issues #11059), so each waits a random part of this.
STAGGER_SECONDS = 0.05
# The service is told a little less than the time there is, so that its "timed out" still reaches us and one slow
# exporter does not cost the channel.
ANSWER_MARGIN_SECONDS = 0.25
# An ending call has so long after its stdin was closed, after SIGTERM and after SIGKILL.
END_SECONDS = (1.0, 1.0, 1.0)
# After the process is gone its last words may still be in the pipes; a child of its may hold them open for ever.
LAST_WORDS_SECONDS = 0.2
# Stderr is the qube's text: the last of it is kept to explain an end, and who sends more than the rest in one scrape,
# or while nobody asks, is cut off.
STDERR_KEPT = 4 << 10
STDERR_LIMIT = 256 << 10
# Backoff is spread by this much either way, so that qubes that failed together do not come back together.
JITTER = 0.2
# How a service that knows only version 1 ends at our greeting: upstream's bash says 0, 116 or 117, by release.
VERSION_1_STATUSES = frozenset({0, 116, 117})

# Told for each port, once: an answer, or why there is none.
Tell = Callable[[int, Answer | ScrapeError], None]


class Counters(TypingProtocol):
    """What calls report to whoever counts."""

    def call_started(self) -> None:
        """A process was started."""

    def call_ended(self) -> None:
        """A process is gone."""


class Doorman:
    """Lets few calls be set up at a time, and no two in the same instant."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold one of the places while a call is set up, but no longer than SETUP_SECONDS."""
        await self._free.acquire()
        place = [self._free]  # given back once, by whoever comes first: the timer, or the end of the call's set-up

        def give_back() -> None:
            while place:
                place.pop().release()

        timer = asyncio.get_running_loop().call_later(SETUP_SECONDS, give_back)
        try:
            await asyncio.sleep(random.uniform(0, STAGGER_SECONDS))  # noqa: S311 - spreads calls, guards nothing
            yield
        finally:
            timer.cancel()
            give_back()


class Call(asyncio.SubprocessProtocol):
    """
    One process and the wire it carries. Made by `open`; after `end`, or any error, of no more use.

    The event loop hands the pipes' bytes in; the wire decides what they mean.
    """

    def __init__(self, qube: Qube, wire: Wire, counters: Counters, service: str = SERVICE) -> None:
        self._qube = qube
        self._service = service
        self._wire = wire
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._spoke = False  # has one byte of stdout come?
        self._stderr = bytearray()
        self._stderr_allowance = STDERR_LIMIT
        self._pipes_open = {1, 2}
        self._exited = asyncio.Event()
        self._waiting: asyncio.Future[None] | None = None  # of whoever waits for the greeting or for answers
        self._tell: Tell | None = None
        self._error: ScrapeError | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def usable(self) -> bool:
        """May a request be sent?"""
        return self._error is None and self._ending is None and self._wire.idle

    async def open(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process and greet. Raises ScrapeError; whoever cancels this must `end` the call."""
        try:
            # A session of its own: Ctrl-C at a terminal is for the daemon to act on, and `_end` may signal the lot.
            await self._loop.subprocess_exec(lambda: self, *command, env=dict(environment), start_new_session=True)
        except OSError as error:
            raise ClosedError(f"{command[0]} cannot be started: {error.strerror}") from None
        self._write(self._wire.greeting)
        await self._wait()

    async def ask(self, ports: Collection[int], *, milliseconds: int, max_body: int, tell: Tell) -> None:
        """One request; `tell` is called as answers come. Raises ScrapeError where not all of them came."""
        self._tell = tell
        self._stderr_allowance = STDERR_LIMIT
        self._write(self._wire.ask(milliseconds=milliseconds, max_body=max_body, ports=ports))
        await self._wait()

    def end(self) -> asyncio.Task[None]:
        """End the process: quietly if it lets us, in bounded time if not. Await what this returns to see it gone."""
        if self._ending is None:
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
                self._signal(number)
        if self._pipes_open:  # a child of the process holds them, and would for ever
            self._signal(signal.SIGKILL)
        self._transport.close()

    def _signal(self, number: int) -> None:
        """To the process and its children."""
        assert self._transport is not None, "no process yet"
        with suppress(ProcessLookupError):
            os.killpg(self._transport.get_pid(), number)

    async def _wait(self) -> None:
        if self._error is None:
            self._waiting = self._loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _fail(self, error: ScrapeError) -> None:
        if self._error is None:
            self._error = error
        self._wake()
        self.end()

    def _pipe(self, fd: int) -> asyncio.WriteTransport:
        assert self._transport is not None, "no process yet"
        return cast("asyncio.WriteTransport", self._transport.get_pipe_transport(fd))

    def _write(self, request: bytes) -> None:
        self._pipe(0).write(request)

    # -- the event loop's side ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        self._transport = cast("asyncio.SubprocessTransport", transport)
        self._counters.call_started()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Bytes of the qube, or of the client on its behalf."""
        if self._error is not None or self._ending is not None:
            return
        if fd == 2:
            self._hear(data)
            return
        self._spoke = True
        try:
            answers = self._wire.receive(data)
        except ScrapeError as error:
            self._fail(error)
            return
        for answer in answers:
            assert self._tell is not None, "the wire takes no answer that nobody asked for"
            self._tell(answer.port, answer)
        if self._wire.idle:
            self._wake()

    def _hear(self, untrusted: bytes) -> None:
        self._stderr += untrusted
        del self._stderr[:-STDERR_KEPT]
        self._stderr_allowance -= len(untrusted)
        if self._stderr_allowance < 0:
            self._fail(ProtocolError(f"sent more than {STDERR_LIMIT} bytes on stderr: {shown(self._last_words())}"))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """A pipe was closed at the other end; after the exit, the last words are in once both are."""
        del exc
        self._pipes_open.discard(fd)
        if self._exited.is_set() and not self._pipes_open:
            self._gone()

    def process_exited(self) -> None:
        """The process is gone, and reaped; what it wrote last may still come."""
        self._counters.call_ended()
        self._exited.set()
        if self._pipes_open:
            self._loop.call_later(LAST_WORDS_SECONDS, self._gone)
        else:
            self._gone()

    def _gone(self) -> None:
        assert self._transport is not None, "a process that never was cannot go"
        status = self._transport.get_returncode()
        if self._error is None:
            words = self._last_words()
            self._fail(explain(status, words, self._qube, self._wire, spoke=self._spoke, service=self._service))

    def _last_words(self) -> bytes:
        return bytes(self._stderr).strip().rpartition(b"\n")[2]


class _OnlyVersion1Error(ClosedError):
    """The service ended at the greeting of version 2, as upstream's does."""


def explain(  # noqa: PLR0911, PLR0913 - there are so many ways to end, and so much that tells them apart
    status: int | None, untrusted_words: bytes, qube: Qube, wire: Wire, *, spoke: bool, service: str = SERVICE
) -> ScrapeError:
    """
    Why a call ended, from its exit status and the last line it wrote on stderr. `spoke`: it had written to stdout.

    What the statuses mean is qrexec's (QubesOS/qubes-core-qrexec, agent/qrexec-client-vm.c); the service may use the
    same numbers, so "refused" is believed only together with the client's words and before any output.
    """
    name = qube.name
    words = f": {shown(untrusted_words)}" if untrusted_words else ""
    if qube.transport == "qrexec" and not spoke:
        if status == 126 and untrusted_words.endswith(b"Request refused"):
            return RefusedError(
                f"dom0's policy does not allow {service}; `prometheus-qubes-proxy policy` prints the line for it"
                if service != SERVICE
                else f"qrexec refused the call to {name}: dom0's policy does not allow it, or the qube does not run or"
                " does not exist; dom0's journal says which"
            )
        if status == 127:
            where = name if name == "dom0" else f"the template of {name}"
            return NoServiceError(f"{service} is not installed in {name}; install it in {where}")
        if status == 125:
            return NoServiceError(f"{service} is in {name}, but cannot be run there; is it executable?{words}")
        if status == 1 and b"connect: No such file" in untrusted_words:
            return ClosedError("there is no qrexec agent here; the daemon has to run in a qube")
        if status == 1 and b"Data vchan connection failed" in untrusted_words:
            return ClosedError(f"{name} accepted the call but did not connect; restart the qube if it stays so")
    if not wire.greeted and not spoke and wire.version == 2 and status in VERSION_1_STATUSES:
        return _OnlyVersion1Error(f"the service in {name} speaks version 1 only")
    if wire.version == 1 and wire.pending and status in {0, 1, 116, 117}:
        return ExporterUnreachableError(
            f"upstream's service in {name} ended at the request; is the exporter up?{words}"
        )
    if qube.transport == "qrexec" and status == 255:
        return ClosedError(f"{name} went away in the middle of the call; was it shut down or killed?{words}")
    how = f"killed by signal {-status}" if status is not None and status < 0 else f"status {status}"
    return ClosedError(f"the call to {name} ended by itself ({how}){words}")


class _Slot:
    """
    One set of ports of one qube: the call that serves them, if there is one, and when to try again if not.

    `failures` is how often in a row it was in vain.
    """

    def __init__(self, ports: tuple[int, ...], version: type[Wire], failures: int = 0) -> None:
        self.ports = ports
        self.version = version
        self.call: Call | None = None
        self.failures = failures
        self._not_before = 0.0
        self._last_error: ScrapeError | None = None

    def succeeded(self) -> None:
        self.failures = 0
        self._last_error = None

    def refused(self, now: float) -> bool:
        """Was its last call refused, and may another one be made?"""
        return isinstance(self._last_error, RefusedError) and now >= self._not_before

    def failed(self, error: ScrapeError, *, now: float, settings: Qrexec) -> None:
        wait = min(settings.backoff_initial * 2 ** min(self.failures, 32), settings.backoff_max)
        self.failures += 1
        self._not_before = now + wait * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - spreads calls, guards nothing
        self._last_error = error

    def check_backoff(self, now: float) -> None:
        """Raises the last error again while it is too early for another call."""
        if self._last_error is not None and now < self._not_before:
            wait = self._not_before - now
            raise type(self._last_error)(f"{self._last_error} (next call in {wait:.0f} s)")


class Channel:
    """
    The way to one qube. Requests go one after the other; each is over when every port is answered or the time is.

    One call is made for all ports, in version 2. Where the service there knows only version 1, or where dom0's policy
    refuses that call, since it was written for upstream's proxy and allows each port by itself, there is one for each.

    `closed` must be awaited before the event loop ends, or processes are left to find out by themselves.
    """

    def __init__(self, qube: Qube, settings: Qrexec, doorman: Doorman, counters: Counters) -> None:
        self.qube = qube
        self._settings = settings
        self._doorman = doorman
        self._counters = counters
        self._lock = asyncio.Lock()
        self._ends: set[asyncio.Task[None]] = set()
        self._slots = [_Slot(qube.ports, Version2)]
        self._accepted = False  # was any call, since they are made as they are now?
        self._forgetful = False

    async def ask(self, ports: Collection[int], *, deadline: float, max_body: int, tell: Tell) -> None:
        """
        Ask the qube for its exporters on `ports`; `tell` hears of each port exactly once, until `deadline` (loop time).

        Raises nothing of its own: whatever goes wrong is told.
        """
        owed = set(ports)

        def tell_once(port: int, result: Answer | ScrapeError) -> None:
            if port in owed:
                owed.discard(port)
                tell(port, result)

        try:
            async with asyncio.timeout_at(deadline), self._lock:
                await self._ask(frozenset(ports), deadline=deadline, max_body=max_body, tell=tell_once)
        except TimeoutError:
            pass
        for port in sorted(owed):
            tell_once(port, TimedOutError(f"{self.qube.name}'s turn did not come in time: others were being called"))

    async def close(self) -> None:
        """End all calls; returns when their processes are gone, or have had every chance to."""
        for slot in self._slots:
            self._drop(slot)
        while self._ends:
            await asyncio.wait(self._ends)

    async def retire(self) -> None:
        """Close as soon as nobody is asking any more: whoever asks might open a call after `close`."""
        async with self._lock:
            pass
        await self.close()

    def forget(self) -> None:
        """Before the next request, forget what went wrong: somebody may have mended it. Calls that are open stay."""
        self._forgetful = True

    async def _ask(self, ports: frozenset[int], *, deadline: float, max_body: int, tell: Tell) -> None:
        self._arrange(asyncio.get_running_loop().time())
        if len(self._slots[0].ports) > 1:
            try:
                await self._ask_slot(self._slots[0], ports, deadline=deadline, max_body=max_body, tell=tell)
            except _OnlyVersion1Error:
                self._call_singly(Version1)
            else:
                return
        async with asyncio.TaskGroup() as asking:
            for slot in self._slots:
                if wanted := ports.intersection(slot.ports):
                    asking.create_task(self._ask_single(slot, wanted, deadline=deadline, max_body=max_body, tell=tell))

    async def _ask_single(
        self, slot: _Slot, ports: frozenset[int], *, deadline: float, max_body: int, tell: Tell
    ) -> None:
        try:
            await self._ask_slot(slot, ports, deadline=deadline, max_body=max_body, tell=tell)
        except _OnlyVersion1Error:
            self._drop(slot)
            slot.version = Version1
            await self._ask_slot(slot, ports, deadline=deadline, max_body=max_body, tell=tell)

    def _arrange(self, now: float) -> None:
        """See to it that the slots are those that calls should be made for now."""
        if self._forgetful:
            self._forgetful = False
            if not self._open_calls:
                self._call_together()
            for slot in self._slots:
                slot.succeeded()
        elif len(self.qube.ports) == 1 or self._open_calls or not any(slot.refused(now) for slot in self._slots):
            return
        elif len(self._slots) > 1:
            self._call_together()
        elif not self._accepted:  # a policy that allowed them together does so still: the qube is halted
            self._call_singly(Version2)

    @property
    def _open_calls(self) -> bool:
        return any(slot.call is not None and slot.call.usable for slot in self._slots)

    def _call_together(self) -> None:
        self._replace([_Slot(self.qube.ports, Version2, self._failures)])

    def _call_singly(self, version: type[Wire]) -> None:
        self._replace([_Slot((port,), version, self._failures) for port in self.qube.ports])

    @property
    def _failures(self) -> int:
        return max(slot.failures for slot in self._slots)

    def _replace(self, slots: list[_Slot]) -> None:
        for slot in self._slots:
            self._drop(slot)
        self._slots, self._accepted = slots, False

    async def _ask_slot(
        self, slot: _Slot, ports: frozenset[int], *, deadline: float, max_body: int, tell: Tell
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            call = await self._open(slot)
            left = deadline - loop.time()
            milliseconds = max(1, int((left - min(ANSWER_MARGIN_SECONDS, left / 4)) * 1000))
            await call.ask(ports, milliseconds=milliseconds, max_body=max_body, tell=tell)
            slot.succeeded()
        except _OnlyVersion1Error:
            raise
        except ScrapeError as error:
            self._failed(slot, error, ports, tell)
        except asyncio.CancelledError:
            # The deadline, or the end of the daemon. A call that is late is never used again; one that was still
            # waiting for its turn to be made is not the qube's fault.
            if slot.call is not None:
                self._failed(
                    slot, TimedOutError(f"no answer of {self.qube.name} in time; is it paused, or busy?"), ports, tell
                )
            raise

    async def _open(self, slot: _Slot) -> Call:
        """The slot's open call, or a new one. Raises ScrapeError."""
        if slot.call is not None and slot.call.usable:
            return slot.call
        slot.check_backoff(asyncio.get_running_loop().time())
        self._drop(slot)
        async with self._doorman.turn():
            slot.call = Call(self.qube, slot.version(), self._counters)
            await slot.call.open(*self._command(slot.ports))
        self._accepted = True
        return slot.call

    def _command(self, ports: Collection[int]) -> tuple[list[str], dict[str, str]]:
        permission = argument(ports)
        if self.qube.transport == "qrexec":
            settings = self._settings
            # `--`: whatever the name of a qube may be, it is no option.
            words = [settings.client, f"--buffer-size={settings.buffer_size}", "--", self.qube.name]
            return [*words, f"{SERVICE}+{permission}"], dict(os.environ)
        service = {
            "PATH": os.environ.get("PATH", os.defpath),
            "QREXEC_REMOTE_DOMAIN": self.qube.name,
            "QREXEC_SERVICE_FULL_NAME": f"{SERVICE}+{permission}",
            "QREXEC_SERVICE_ARGUMENT": permission,
        }
        return [str(self._settings.local_service), permission], service

    def _failed(self, slot: _Slot, error: ScrapeError, ports: Collection[int], tell: Tell) -> None:
        if slot.call is not None:  # else nothing was tried: it is backing off
            slot.failed(error, now=asyncio.get_running_loop().time(), settings=self._settings)
            self._drop(slot)
        for port in ports:
            tell(port, error)

    def _drop(self, slot: _Slot) -> None:
        if slot.call is not None:
            end = slot.call.end()
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)
            slot.call = None
