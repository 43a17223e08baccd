# SPDX-License-Identifier: GPL-3.0-or-later
"""
Speaking to one qube, for as long as it is configured.

Owns which calls are made to it, when they are made, kept and ended, and which version is spoken. Must not know what an
answer is for.

    Channel    one qube: keeps its calls open, remembers how they are to be made
      Slot     one set of ports, all of the qube's or a single one, and the version spoken for it; backs off
        Call   one process: see `call`

A call costs dom0 a policy decision, allowed or not, and may start the qube; a request over an open one costs nothing.
"""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from federator import reasons
from federator.backoff import Backoff
from federator.call import Call, CallCounter, ConnectionLimiter, command
from federator.errors import RefusedError, ScrapeError
from federator.model import Answer, Callee, CallState, Qrexec, Qube
from federator.reasons import OnlyVersion1Error
from federator.wire import SERVICE, PortWire, Version1, Version2, argument, is_late

# The service is told a little less than the time there is, so that its "timed out" still reaches us and one slow
# exporter does not cost the call.
ANSWER_MARGIN_SECONDS = 0.25

# Told for each port, once: an answer, or why there is none.
Tell = Callable[[int, Answer | ScrapeError], None]


class Deadline:
    """
    How long the scrapers wait who share one request, in the event loop's time. Both ends may move while they wait.

    `wanted_by`: after this nobody wants the answers any more; the service is told. `ends_at`: a call that is silent
    until then is ended. It is never earlier, and later where scrapers are impatient: they must not end calls for all.
    """

    def __init__(self, wanted_by: float, ends_at: float) -> None:
        self.wanted_by = wanted_by
        self.ends_at = max(ends_at, wanted_by)
        self._timeouts: list[asyncio.Timeout] = []  # one for the call, and one for each text that is read

    def extend(self, wanted_by: float) -> None:
        """Somebody waits until then, too."""
        self.wanted_by = max(self.wanted_by, wanted_by)
        self.ends_at = max(self.ends_at, wanted_by)
        for timeout in self._timeouts:
            with suppress(RuntimeError):  # what it limits is over already
                timeout.reschedule(self.ends_at)

    def limit(self) -> asyncio.Timeout:
        """`async with` this: what is done there ends at `ends_at`, wherever that is by then. Raises TimeoutError."""
        timeout = asyncio.timeout_at(self.ends_at)
        self._timeouts.append(timeout)
        return timeout


class _Request:
    """What is asked for, and who hears of it. Each port is told of once."""

    def __init__(self, ports: Collection[int], deadline: Deadline, max_body: int, tell: Tell) -> None:
        self.owed = set(ports)
        self.deadline = deadline
        self.max_body = max_body
        self._tell = tell

    def tell(self, port: int, result: Answer | ScrapeError) -> None:
        if port in self.owed:
            self.owed.discard(port)
            self._tell(port, result)

    def tell_all(self, ports: Collection[int], error: ScrapeError) -> None:
        for port in sorted(ports):
            self.tell(port, error)


class _Slot:
    """One set of ports of one qube: the call that serves them, if there is one, and when to try again if not."""

    def __init__(self, ports: tuple[int, ...], version: type[PortWire], backoff: Backoff) -> None:
        self.ports = ports
        self.version = version
        self.backoff = backoff
        self.call: Call[Answer] | None = None
        self.wire: PortWire = version()
        self.last_error: ScrapeError | None = None
        self.opened = 0
        self.open_since = 0.0

    @property
    def usable(self) -> bool:
        """Is its call open, and free?"""
        return self.call is not None and self.call.usable

    def new_call(self, callee: Callee, counter: CallCounter, now: float) -> Call[Answer]:
        """Begin anew; the caller opens it."""
        self.wire = self.version()
        self.call = Call(callee, self.wire, counter)
        self.opened += 1
        self.open_since = now
        return self.call

    def succeeded(self) -> None:
        self.backoff.reset()
        self.last_error = None

    def failed(self, error: ScrapeError, now: float) -> None:
        self.backoff.failed(now)
        self.last_error = error.bare()

    def refused(self, now: float) -> bool:
        """Was its last call refused, and may another one be made?"""
        return isinstance(self.last_error, RefusedError) and not self.backoff.wait(now)

    def check_backoff(self, now: float) -> None:
        """Raises the last error again while it is too early for another call."""
        wait = self.backoff.wait(now)
        if self.last_error is not None and wait:
            raise type(self.last_error)(f"{self.last_error} (next call in {wait:.0f} s)")

    def state(self, now: float) -> CallState:
        return CallState(
            ports=self.ports,
            version=1 if self.version is Version1 else 2,
            open_seconds=None if self.call is None else now - self.open_since,
            opened=self.opened,
            failures=self.backoff.failures,
            wait=self.backoff.wait(now) if self.last_error is not None else 0.0,
        )


class Channel:
    """
    The way to one qube. Requests go one after the other; each is over when every port is answered or the time is.

    One call is made for all ports, in version 2. Where the service there knows only version 1, or where dom0's policy
    refuses that call, since it was written for upstream's proxy and allows each port by itself, there is one for each.

    `close` must be awaited before the event loop ends, or processes are left to find out by themselves.
    """

    def __init__(self, qube: Qube, settings: Qrexec, limiter: ConnectionLimiter, counter: CallCounter) -> None:
        self.qube = qube
        self.settings = settings
        self._limiter = limiter
        self._counter = counter
        self._callee = Callee(qube.name, qube.transport, SERVICE)
        self._lock = asyncio.Lock()
        self._ends: set[asyncio.Task[None]] = set()
        self._slots = [self._slot(qube.ports, Version2)]
        self._accepted = False  # was any call, since they are made as they are now?
        self._forgetful = False

    def __repr__(self) -> str:
        busy = "busy" if self._lock.locked() else "free"
        return f"<Channel to {self.qube.name}: {busy}, {', '.join(map(repr, self.calls()))}>"

    def calls(self) -> list[CallState]:
        """How its calls are, for people to look at."""
        now = asyncio.get_running_loop().time()
        return [slot.state(now) for slot in self._slots]

    def serves(self, qube: Qube, settings: Qrexec) -> bool:
        """Would a channel for this qube, under these settings, make the same calls?"""
        ours, theirs = self.settings, settings
        return (self.qube.name, self.qube.transport, self.qube.ports) == (qube.name, qube.transport, qube.ports) and (
            ours.client,
            ours.local_service,
            ours.buffer_size,
        ) == (theirs.client, theirs.local_service, theirs.buffer_size)

    def reconfigure(self, qube: Qube, settings: Qrexec) -> None:
        """Go on with the calls that are open, where `serves` says so; forget what went wrong."""
        self.qube = qube
        self.settings = settings
        for slot in self._slots:
            slot.backoff.initial, slot.backoff.maximum = settings.backoff_initial, settings.backoff_max
        self.forget()

    async def ask(self, ports: Collection[int], *, deadline: Deadline, max_body: int, tell: Tell) -> None:
        """
        Ask the qube for its exporters on `ports`; `tell` hears of each port exactly once, until the deadline.

        Raises nothing of its own: whatever goes wrong is told.
        """
        request = _Request(ports, deadline, max_body, tell)
        try:
            async with deadline.limit(), self._lock:
                await self._ask(request)
        except TimeoutError:
            pass
        request.tell_all(request.owed.copy(), reasons.not_its_turn(self.qube.name))

    async def close(self) -> None:
        """End all calls; returns when their processes are gone, or have had every chance to."""
        for slot in self._slots:
            self._drop(slot)
        while self._ends:
            await asyncio.wait(self._ends)

    async def retire(self) -> None:
        """Close when the last request is over: a request might open a call after `close`."""
        async with self._lock:
            pass
        await self.close()

    def forget(self) -> None:
        """Before the next request, forget what went wrong: somebody may have mended it. Calls that are open stay."""
        self._forgetful = True

    async def _ask(self, request: _Request) -> None:
        self._choose_slots(asyncio.get_running_loop().time())
        if len(self._slots[0].ports) > 1:
            try:
                await self._ask_slot(self._slots[0], request)
            except OnlyVersion1Error:
                self._call_singly(Version1)
            else:
                return
        async with asyncio.TaskGroup() as asking:
            for slot in self._slots:
                if request.owed.intersection(slot.ports):
                    asking.create_task(self._ask_single(slot, request))

    async def _ask_single(self, slot: _Slot, request: _Request) -> None:
        try:
            await self._ask_slot(slot, request)
        except OnlyVersion1Error:
            self._drop(slot)
            slot.version = Version1
            await self._ask_slot(slot, request)

    # Which slots there are:
    #   at first, and after everything was forgotten     one for all ports
    #   the service there knows only version 1           one for each port
    #   all together was refused, and never accepted     one for each port, the next time that a call may be made
    #   each by itself was refused                       one for all ports again, the next time; and so on in turns

    def _choose_slots(self, now: float) -> None:
        """See to it that the slots are those that calls should be made for now."""
        is_open = any(slot.usable for slot in self._slots)
        if self._forgetful:
            self._forgetful = False
            if not is_open:
                self._call_together()
            for slot in self._slots:
                slot.succeeded()
        elif len(self.qube.ports) == 1 or is_open or not any(slot.refused(now) for slot in self._slots):
            return
        elif len(self._slots) > 1:
            self._call_together()
        elif not self._accepted:  # a policy that allowed them together does so still: the qube is halted
            self._call_singly(Version2)

    def _call_together(self) -> None:
        self._replace([self._slot(self.qube.ports, Version2, self._failures)])

    def _call_singly(self, version: type[PortWire]) -> None:
        self._replace([self._slot((port,), version, self._failures) for port in self.qube.ports])

    def _slot(self, ports: tuple[int, ...], version: type[PortWire], failures: int = 0) -> _Slot:
        return _Slot(ports, version, Backoff(self.settings.backoff_initial, self.settings.backoff_max, failures))

    @property
    def _failures(self) -> int:
        return max(slot.backoff.failures for slot in self._slots)

    def _replace(self, slots: list[_Slot]) -> None:
        for slot in self._slots:
            self._drop(slot)
        self._slots, self._accepted = slots, False

    async def _ask_slot(self, slot: _Slot, request: _Request) -> None:
        """Have the slot's ports told of. Raises OnlyVersion1Error, and nothing else of its own."""
        ports = frozenset(request.owed.intersection(slot.ports))
        error: ScrapeError
        try:
            call = await self._open(slot)
            await self._converse(slot, call, ports, request)
        except OnlyVersion1Error:
            raise
        except ScrapeError as failed:
            error = failed.bare()
        except asyncio.CancelledError:
            # The deadline, or the end of the daemon. A call that is late is never used again; one that was still
            # waiting for its turn to be made is not the qube's fault.
            if slot.call is not None:
                self._failed(slot, reasons.late(self.qube.name), ports, request)
            raise
        except BaseException:  # a bug of ours: nobody knows what the service would say next
            self._drop(slot)
            raise
        else:
            slot.succeeded()
            return
        self._failed(slot, error, ports, request)

    async def _converse(self, slot: _Slot, call: Call[Answer], ports: frozenset[int], request: _Request) -> None:
        """
        Ask an open call for these ports, until all are told of.

        The service is told how long the scrapers wait. Where one joins meanwhile who waits longer, exporters that were
        late for the others are asked again.
        """
        loop, deadline = asyncio.get_running_loop(), request.deadline
        while ports:
            wanted_by = deadline.wanted_by
            left = wanted_by - loop.time()
            if left <= 0:  # it took so long to open the call that nobody waits any more; the next one finds it open
                request.tell_all(ports, reasons.late(self.qube.name))
                return
            again: set[int] = set()

            def take(answer: Answer, wanted_by: float = wanted_by, again: set[int] = again) -> None:
                if is_late(answer) and deadline.wanted_by > wanted_by:
                    again.add(answer.port)
                else:
                    request.tell(answer.port, answer)

            milliseconds = max(1, int((left - min(ANSWER_MARGIN_SECONDS, left / 4)) * 1000))
            await call.ask(slot.wire.ask(milliseconds=milliseconds, max_body=request.max_body, ports=ports), take)
            ports = frozenset(again)

    async def _open(self, slot: _Slot) -> Call[Answer]:
        """The slot's open call, or a new one. Raises ScrapeError."""
        if slot.call is not None and slot.call.usable:
            return slot.call
        slot.check_backoff(asyncio.get_running_loop().time())
        self._drop(slot)
        async with self._limiter.place():
            call = slot.new_call(self._callee, self._counter, asyncio.get_running_loop().time())
            await call.open(*command(self.settings, self._callee, argument(slot.ports)))
        self._accepted = True
        return call

    def _failed(self, slot: _Slot, error: ScrapeError, ports: Collection[int], request: _Request) -> None:
        if slot.call is not None:  # else nothing was tried: it is backing off
            slot.failed(error, asyncio.get_running_loop().time())
            self._drop(slot)
        request.tell_all(ports, error)

    def _drop(self, slot: _Slot) -> None:
        if slot.call is not None:
            end = slot.call.end()
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)
            slot.call = None
