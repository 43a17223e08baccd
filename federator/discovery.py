# SPDX-License-Identifier: GPL-3.0-or-later
"""
Asking dom0 which qubes run.

Owns when dom0 is asked, and what is believed where it does not answer. Must not know what the answer is for.

There is no timer: dom0 is asked when somebody wants to know and the last answer is old, so an idle daemon costs it
nothing. Where dom0 refuses or is silent, what it said last holds for a while, since a call may start a halted qube.
After that all qubes count as running: what is configured is called, as if there were no discovery.
"""

import asyncio
import logging

from federator.backoff import Backoff
from federator.call import Call, CallCounter, ConnectionLimiter, command
from federator.errors import ScrapeError, TimedOutError
from federator.model import Callee, Discovery, Qrexec, Source
from federator.targets import DOM0, REMOTE, RUNNING, states_of_list, states_of_names
from federator.wire import Names, OneReply

# What dom0 said holds for so many intervals where it says nothing new.
VALID_INTERVALS = 3
# A scraper that comes as often as the interval says finds the last answer old enough, although no two scrapes come on
# time.
PUNCTUALITY = 0.9
# After this time an answer does not come any more.
TIMEOUT_SECONDS = 10.0
# A thousand qubes' names take 32 kB.
MAX_REPLY = 1 << 20

log = logging.getLogger(__name__)


class Discoverer:
    """
    What dom0 said last: `states` by qube, and the `dotted_names` among all that it ever named.

    `told`: has it ever answered? `settled`: has any asking come to an end, well or not? `error`: why the last one did
    not end well.
    """

    def __init__(self, settings: Discovery, qrexec: Qrexec, limiter: ConnectionLimiter, counter: CallCounter) -> None:
        self.states: dict[str, str] = {}
        self.dotted_names: set[str] = set()
        self.settled = False
        self.error: ScrapeError | None = None
        self._unnamed = RUNNING  # the state of a qube that dom0 did not name
        self._told_at: float | None = None
        self._settings = settings
        self._qrexec = qrexec
        self._limiter = limiter
        self._counter = counter
        self._wire: Names | OneReply = OneReply(MAX_REPLY)
        self._call: Call[bytes] | None = None
        self._called: tuple[Source, Qrexec] | None = None  # what it was made for
        self._task: asyncio.Task[None] | None = None  # that asks dom0
        self._tasks: set[asyncio.Task[None]] = set()  # it, and those that a reload cancelled
        self._ends: set[asyncio.Task[None]] = set()  # of calls
        self._next_at = 0.0  # while dom0 answers; else the backoff says
        self._backoff = self._new_backoff()

    def __repr__(self) -> str:
        known = f"{len(self.states)} qubes known" if self.known else "nothing known"
        return f"<Discoverer by {self._settings.source}: {known}, {self._backoff.failures} failures in a row>"

    @property
    def told(self) -> bool:
        """Has dom0 ever answered?"""
        return self._told_at is not None

    @property
    def known(self) -> bool:
        """Is `states` something to go by?"""
        valid = VALID_INTERVALS * self._settings.refresh_interval
        return self._told_at is not None and asyncio.get_running_loop().time() < self._told_at + valid

    @property
    def names_targets(self) -> bool:
        """Does dom0's answer add targets to those of the configuration?"""
        return bool(self._settings.exporters)

    def state(self, name: str) -> str:
        """What dom0 said of a qube; Running where that is not known, so that it is called and answers for itself."""
        state = self.states.get(name, self._unnamed) if self.known else RUNNING
        return RUNNING if state == REMOTE else state

    def reconfigure(self, settings: Discovery, qrexec: Qrexec) -> None:
        """Ask under these settings from now on. What dom0 said is as true as before."""
        if (settings, qrexec) == (self._settings, self._qrexec):
            return
        self._settings, self._qrexec = settings, qrexec
        self._backoff, self._next_at = self._new_backoff(), 0.0
        self.settled, self.error = False, None
        if self._task is not None:  # it asks as it was before
            self._task.cancel()
            self._task = None

    async def refresh(self, seconds: float) -> None:
        """Ask dom0, if the last answer is old, and wait `seconds` at most for what it says. Raises nothing."""
        now = asyncio.get_running_loop().time()
        if self._task is None and now >= self._next_at and not self._backoff.wait(now):
            self._task = asyncio.create_task(self._update())
            self._tasks.add(self._task)
            self._task.add_done_callback(self._updated)
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)

    async def close(self) -> None:
        """End what runs; returns when the processes are gone, or have had every chance to."""
        if self._task is not None:
            self._task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._call is not None:
            self._end(self._call)
        while self._ends:
            await asyncio.wait(self._ends)

    def _new_backoff(self) -> Backoff:
        interval = self._settings.refresh_interval
        return Backoff(interval, max(interval, self._qrexec.backoff_max))

    def _updated(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._task is task:
            self._task = None
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("bug in discovery", exc_info=bug)

    async def _update(self) -> None:
        started = asyncio.get_running_loop().time()
        settings = self._settings  # a reload may change them meanwhile
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                states = await self._ask(settings.source)
        except (ScrapeError, TimeoutError) as failed:
            late = TimedOutError("dom0 did not answer in time")
            self._failed(failed.bare() if isinstance(failed, ScrapeError) else late, settings.source)
        else:
            self._succeeded(states, settings.source, started)
        finally:
            self.settled = True

    def _failed(self, error: ScrapeError, source: Source) -> None:
        self._backoff.failed(asyncio.get_running_loop().time())
        if self.error is None:
            log.warning(
                "dom0 does not say which qubes run; configured qubes are called all the same, after a while",
                extra={"source": source, "reason": error.reason, "error": str(error)},
            )
        self.error = error

    def _succeeded(self, states: dict[str, str], source: Source, started: float) -> None:
        if self.error is not None or not self.told:
            fields = {"source": source, "qubes": len(states)}
            if states:
                log.info("dom0 says which qubes run", extra=fields)
            else:
                log.warning(
                    "dom0 names no qubes: its policy may hide them; `prometheus-qubes-proxy policy` prints the lines",
                    extra=fields,
                )
        self.states = states
        # admin.vm.List leaves out what dom0's policy does not let us list; the other source names all that run.
        self._unnamed = RUNNING if source == "admin.vm.List" else "not running"
        self.dotted_names.update(name for name in states if "." in name)
        self._told_at = asyncio.get_running_loop().time()
        self._next_at = started + PUNCTUALITY * self._settings.refresh_interval
        self._backoff.succeeded()
        self.error = None

    async def _ask(self, source: Source) -> dict[str, str]:
        """
        One answer of dom0. Raises ScrapeError.

        admin.vm.List answers once, and no process is started in dom0 for it. ruddo.PrometheusDiscover stays.
        """
        replies: list[bytes] = []
        call, wire = self._call, self._wire
        try:
            if call is not None and call.usable and self._called == (source, self._qrexec):
                await call.ask(wire.ask(), replies.append)
            else:
                # The first answer is the end of the set-up: admin.vm.List has no greeting.
                async with self._limiter.place():
                    call, wire = self._new_call(source)
                    await call.open(*command(self._qrexec, Callee(DOM0, "qrexec", source)))
                    await call.ask(wire.ask(), replies.append)
        except BaseException:  # late answers included: such a call is never used again
            if call is not None:
                self._end(call)
            raise
        (untrusted_reply,) = replies
        return states_of_list(untrusted_reply) if source == "admin.vm.List" else states_of_names(untrusted_reply)

    def _new_call(self, source: Source) -> tuple[Call[bytes], Names | OneReply]:
        """One that is not open yet, in the place of the one there was."""
        if self._call is not None:
            self._end(self._call)
        self._wire = OneReply(MAX_REPLY) if source == "admin.vm.List" else Names(MAX_REPLY)
        self._called = (source, self._qrexec)
        self._call = Call(Callee(DOM0, "qrexec", source), self._wire, self._counter)
        return self._call, self._wire

    def _end(self, call: Call[bytes]) -> None:
        if self._call is call:
            self._call = None
        end = call.end()
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)
