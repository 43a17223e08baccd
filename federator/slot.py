# SPDX-License-Identifier: GPL-3.0-or-later
"""
One set of endpoints of one qube, and the call that serves them.

Owns when that call is made, kept and ended, and what a failure means for the next one. Must not know which other slots
the qube has, nor what an answer is for.

A call costs dom0 a policy decision, allowed or not, and may start the qube; a request over an open one costs nothing.
"""

import asyncio
from collections.abc import Collection

from federator import reasons
from federator.backoff import Backoff
from federator.budget import Budget
from federator.call import Call, CallCounter, ConnectionLimiter, command, note
from federator.errors import RefusedError, ScrapeError
from federator.model import Answer, Callee, CallState, Endpoint, Qrexec
from federator.reasons import OnePortError, OnlyVersion1Error
from federator.request import Request
from federator.turns import Turn
from federator.wire import TextWire, Version1, argument, is_late

# The service is told a little less than the time there is, so that its "timed out" still reaches us and one slow
# exporter does not cost the call.
ANSWER_MARGIN_SECONDS = 0.25


class Caller:
    """Makes and ends the calls to one qube's service. `settings` may be replaced at any time."""

    def __init__(
        self, callee: Callee, settings: Qrexec, limiter: ConnectionLimiter, counter: CallCounter, texts: Budget
    ) -> None:
        self.callee = callee
        self._texts = texts
        self.settings = settings
        self.limiter = limiter
        self._counter = counter
        self._ends: set[asyncio.Task[None]] = set()

    @property
    def patience(self) -> float:
        """Seconds for which a call is kept whose answers are late: dom0 says by then whether the qube is paused."""
        return self.settings.patience if self.callee.transport == "qrexec" else 0.0

    def new(self, wire: TextWire) -> Call[Answer]:
        """A call that is not open yet."""
        return Call(self.callee, wire, self._counter, self._texts)

    async def open(self, call: Call[Answer], endpoints: Collection[Endpoint]) -> None:
        """Open it for these endpoints. Raises ScrapeError."""
        await call.open(*command(self.settings, self.callee, argument(endpoints)))

    def end(self, call: Call[Answer], error: ScrapeError | None = None) -> None:
        """Begin to end it. All that still wait for it hear of the error."""
        end = call.end(error)
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)

    async def all_ended(self) -> None:
        """Returns when all that were to end have ended."""
        while self._ends:
            await asyncio.wait(self._ends)


def _back_off(backoff: Backoff, error: ScrapeError, fields: dict[str, str]) -> None:
    now = asyncio.get_running_loop().time()
    backoff.failed(now)
    wait = round(backoff.wait(now), 3)
    note("calls wait", fields, wait=wait, failures=backoff.failures, reason=error.reason, error=error)


class Slot:
    """
    One set of endpoints, and the version that is spoken for it.

    `accepted`: was one of its calls ever opened? `failures`: so many times in a row before it, others failed.
    `refusal`: what it means where dom0 refuses its calls, if that is known.
    """

    def __init__(self, of: tuple[Endpoint, ...], version: type[TextWire], caller: Caller, failures: int = 0) -> None:
        self.endpoints = of
        self.refusal: ScrapeError | None = None
        self.version = version
        self.accepted = False
        self.backoff = Backoff(caller.settings.backoff_initial, caller.settings.backoff_max, failures)
        self._caller = caller
        self._wire = version()
        self._fields = {"qube": caller.callee.name, "endpoints": argument(of)}  # for the log
        self._call: Call[Answer] | None = None
        self._last_error: ScrapeError | None = None
        self._opened = 0
        self._open_since = 0.0
        self._late_since: float | None = None  # since then its call owes answers for which nobody waits

    @property
    def is_open(self) -> bool:
        """Is its call open, free or not?"""
        return self._call is not None and self._call.lives

    def refused_and_may_try(self, now: float) -> bool:
        """Was its last call refused, or is it known to be of no use, and may another one be made?"""
        error = self._last_error
        return bool(error) and isinstance(error, RefusedError | type(self.refusal)) and not self.backoff.wait(now)

    @property
    def knows_one_port(self) -> bool:
        """Was its last call of no use because the service there knows one port a call?"""
        return isinstance(self._last_error, OnePortError)

    def state(self, now: float) -> CallState:
        """For people to look at."""
        return CallState(
            endpoints=self.endpoints,
            version=1 if self.version is Version1 else 2,
            open_seconds=None if self._call is None or self._call.error else now - self._open_since,
            opened=self._opened,
            failures=self.backoff.failures,
            wait=self.backoff.wait(now) if self._last_error is not None else 0.0,
        )

    def forgive(self) -> None:
        """What went wrong says nothing of the next call, which may be made now."""
        self.backoff.reset()
        self._last_error = None
        self._late_since = None

    def speak(self, version: type[TextWire]) -> None:
        """Greet in this version from now on. The call that showed that it has to be is not held against the qube."""
        self.drop()
        self.version = version
        self.backoff.reset()

    def drop(self, error: ScrapeError | None = None) -> None:
        """End its call, if there is one. All that still wait for it hear of the error."""
        if self._call is not None:
            self._caller.end(self._call, error)
            self._call = None

    async def ask(self, request: Request, turn: Turn) -> None:
        """
        Ask for those of its endpoints that the request wants. Raises OnlyVersion1Error, and nothing else of its own.

        The turn is to make the call, and to ask where the service takes one request at a time. It is passed on as soon
        as the service has said that it takes more, on this call.
        """
        endpoints = frozenset(request.owed.intersection(self.endpoints))
        call: Call[Answer] | None = None
        error: ScrapeError
        try:
            if self._call is None or not self._call.usable:
                self._clear()
                async with self._caller.limiter.place():
                    call = self._new()
                    await self._caller.open(call, self.endpoints)
                self.accepted = True
            else:
                call = self._call
                endpoints = self._without_late(endpoints, request)
            await self._converse(call, endpoints, request, turn)
        except OnlyVersion1Error:
            raise
        except RefusedError as failed:
            error = (self.refusal or failed).bare()
        except ScrapeError as failed:
            error = failed.bare()
        except asyncio.CancelledError:
            # The deadline, or the end of the daemon. A call that is late is never used again, unless it is kept; one
            # that was still waiting for its turn to be made is not the qube's fault.
            if call is not None and not self._keeps(call, endpoints, request):
                self._failed(call, reasons.late(self._caller.callee.name), endpoints, request)
            raise
        except BaseException as failed:  # no fault of the qube; but nobody knows what the service would say next
            self.drop(reasons.of_ours(failed))
            raise
        else:
            if call is self._call:
                self.backoff.succeeded()
                self._last_error = None
            return
        self._failed(call, error, endpoints, request)

    def fail(self, error: ScrapeError, request: Request) -> None:
        """Its call was of no use: it is as if it had failed."""
        self._failed(self._call, error, frozenset(request.owed.intersection(self.endpoints)), request)

    def _keeps(self, call: Call[Answer], endpoints: Collection[Endpoint], request: Request) -> bool:
        """Is a late call kept? What the service says late is dropped, and its endpoint is not asked before that."""
        if not (self._caller.patience and call is self._call and call.lives and self._wire.overlaps):
            return False
        self._wire.give_up(endpoints)
        call.count_held()
        request.tell_all(endpoints, reasons.late(self._caller.callee.name))
        return True

    def _without_late(self, endpoints: frozenset[Endpoint], request: Request) -> frozenset[Endpoint]:
        """The endpoints that may be asked: the others owe an answer. Raises TimedOutError where too long."""
        late = endpoints & self._wire.pending
        self._late_since = self._late_since if self._wire.pending else None
        if not late:
            return endpoints
        now = asyncio.get_running_loop().time()
        self._late_since = self._late_since or now
        error = reasons.late(self._caller.callee.name)
        if now - self._late_since >= self._caller.patience:
            raise error
        request.tell_all(late, error)
        return endpoints - late

    def _clear(self) -> None:
        """Make way for a new call. Raises ScrapeError where it is too early for one."""
        now = asyncio.get_running_loop().time()
        if self._call is not None and self._call.error is not None:
            self._last_error = self._call.error
            if self._call.asks:  # else it ended while nobody asked
                _back_off(self.backoff, self._call.error, self._fields)
        self.drop()
        wait = self.backoff.wait(now)
        if self._last_error is not None and wait:
            raise type(self._last_error)(f"{self._last_error} (next call in {wait:.0f} s)")

    def _new(self) -> Call[Answer]:
        self._wire = self.version()
        self._late_since = None
        self._call = self._caller.new(self._wire)
        self._opened += 1
        self._open_since = asyncio.get_running_loop().time()
        self.backoff.tried(self._open_since)
        return self._call

    async def _converse(self, call: Call[Answer], endpoints: frozenset[Endpoint], request: Request, turn: Turn) -> None:
        """
        Ask an open call for these endpoints, until all are told of.

        The service is told how long the scrapers wait. If one joins meanwhile that waits longer, exporters that were
        late for the others are asked again.
        """
        loop, deadline, wire, fields = asyncio.get_running_loop(), request.deadline, self._wire, self._fields
        while endpoints:
            if wire.overlaps:
                turn.pass_on()
            wanted_by = deadline.wanted_by
            left = wanted_by - loop.time()
            if left <= 0:  # it took so long to open the call that nobody waits any more; the next one finds it open
                request.tell_all(endpoints, reasons.late(self._caller.callee.name))
                return
            again: set[Endpoint] = set()

            def take(answer: Answer, wanted_by: float = wanted_by, again: set[Endpoint] = again) -> None:
                if wire.overlaps:
                    turn.pass_on()
                said = {"status": answer.status, "bytes": len(answer.body), "seconds": answer.seconds}
                note("a call was answered", fields, endpoint=answer.endpoint, **said)
                if is_late(answer) and deadline.wanted_by > wanted_by:
                    again.add(answer.endpoint)
                else:
                    request.tell(answer.endpoint, answer)

            milliseconds = max(1, int((left - min(ANSWER_MARGIN_SECONDS, left / 4)) * 1000))
            asking = wire.ask(milliseconds=milliseconds, max_body=request.max_body, endpoints=endpoints)
            await call.ask(asking, take, endpoints)
            endpoints = frozenset(again)

    def _failed(
        self, call: Call[Answer] | None, error: ScrapeError, of: Collection[Endpoint], request: Request
    ) -> None:
        # Without a call nothing was tried: it is backing off. And of all that wait for one call, the first counts.
        if call is not None and call is self._call:
            _back_off(self.backoff, error, self._fields)
            self._last_error = error
            self.drop(error)
        request.tell_all(of, error)
