# SPDX-License-Identifier: GPL-3.0-or-later
"""
Asking dom0 for its figures: one open call for statistics, and a few short ones now and then.

Owns when dom0 is asked, and what is made of its silence. Must not know what the figures are shown as, nor who scrapes.

A scrape never waits for dom0. It only says that somebody scrapes: without that, nothing is asked, and the open call is
ended after a while. No process is started in dom0: qubesd answers all of these calls itself.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping

from federator import dom0_replies, reasons
from federator.backoff import Backoff
from federator.call import Call, CallCounter, ConnectionLimiter, command
from federator.dom0_figures import STATS_SECONDS, Figures, Labels
from federator.dom0_replies import (
    END_OF_LIFE,
    FEATURE,
    LIST,
    POOL,
    POOL_USAGE,
    POOLS,
    PRIVATE,
    PROPERTIES,
    ROOT,
    STATS,
    UPDATES,
    VOLUME,
    Events,
    Numbers,
)
from federator.errors import ProtocolError, RefusedError, ScrapeError
from federator.model import Callee, Config, Dom0, Qrexec
from federator.targets import DOM0
from federator.wire import OneReply, payload

# The open call is ended where nobody scraped for so long: three times the interval that Prometheus has by default.
IDLE_SECONDS = 180.0
# An open call that is silent for so long is of no use; dom0 tells something every three seconds.
SILENCE_SECONDS = 10 * STATS_SECONDS
# Between two short calls, so that they never come as a burst. A thousand calls take less than the usual interval.
PAUSE_SECONDS = 0.2
TIMEOUT_SECONDS = 10.0
# GetAll of a qube has some 5 kB.
MAX_REPLY = 256 << 10
# What changes seldom is asked for again in so many rounds, or when the qube's state changed.
SELDOM_ROUNDS = 12
# Where so many qubes in a row refuse a kind of call, its line is missing: no others are asked in this round.
MAX_REFUSALS = 3

# Qubes with an operating system of their own.
_WITH_SYSTEM = frozenset({"TemplateVM", "StandaloneVM"})
_NOT_SET = b"2\0QubesFeatureNotFoundError\0"

log = logging.getLogger(__name__)


class _Calls:
    """The calls to dom0."""

    def __init__(self, qrexec: Qrexec, limiter: ConnectionLimiter, counter: CallCounter) -> None:
        self.qrexec = qrexec
        self._limiter = limiter
        self._counter = counter
        self._ends: set[asyncio.Task[None]] = set()

    async def listen(self, service: str, wire: Events) -> None:
        """Until dom0 ends the call, or this is cancelled. Raises ScrapeError."""
        callee = Callee(DOM0, "qrexec", service)
        call = Call(callee, wire, self._counter)
        try:
            async with self._limiter.place():
                await call.open(*command(self.qrexec, callee))
            await call.ask(b"", lambda _: None)
        finally:
            self._end(call)

    async def ask(self, service: str, target: str, argument: str) -> bytes:
        """What dom0 answers. Raises ScrapeError."""
        callee = Callee(target, "qrexec", service)
        wire = OneReply(MAX_REPLY)
        call = Call(callee, wire, self._counter)
        replies: list[bytes] = []
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._limiter.place():
                await call.open(*command(self.qrexec, callee, argument))
                await call.ask(wire.ask(), replies.append)
        except TimeoutError:
            raise reasons.late(DOM0) from None
        finally:
            self._end(call)
        if not replies:
            raise ProtocolError(f"dom0 did not answer {service}")
        if service == FEATURE and replies[0].startswith(_NOT_SET):
            return b""
        return payload(replies[0], service)

    async def all_ended(self) -> None:
        """Returns when all processes are gone."""
        while self._ends:
            await asyncio.wait(self._ends)

    def _end(self, call: Call[None] | Call[bytes]) -> None:
        end = call.end()
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)


class Dom0Figures:
    """What dom0 says of the machine, for as long as somebody scrapes. Nothing at all without [dom0]."""

    def __init__(self, config: Config, limiter: ConnectionLimiter, counter: CallCounter) -> None:
        self.figures = Figures(_labels(config))
        self._settings: Dom0 | None = config.dom0
        self._calls = _Calls(config.qrexec, limiter, counter)
        self._stream: asyncio.Task[None] | None = None
        self._round: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._heard_at = 0.0  # an event
        self._next_round = 0.0
        self._rounds = 0
        self._backoff = self._new_backoff()
        self._listed: Mapping[str, tuple[str, str]] = {}
        self._errors: dict[str, ScrapeError] = {}  # by service, of those that did not answer last time
        self._told_states: Mapping[str, str] = {}
        self._refresh = config.discovery.refresh_interval if config.discovery else 0.0

    def reconfigure(self, config: Config) -> None:
        """Be what this configuration says. A refused call may be allowed now."""
        if (config.dom0, config.qrexec) == (self._settings, self._calls.qrexec):
            self.figures.relabel(_labels(config))
        else:
            self._stop()
            self.figures = Figures(_labels(config))
            self._listed = {}
        self._settings, self._calls.qrexec = config.dom0, config.qrexec
        self._refresh = config.discovery.refresh_interval if config.discovery else 0.0
        self._backoff, self._next_round = self._new_backoff(), 0.0

    def somebody_scrapes(self, states: Mapping[str, str]) -> None:
        """
        See to it that there are figures at the next scrape. Takes no time.

        `states`: of qubes, as discovery knows them anyway; the same object is the same answer.
        """
        if self._settings is None:
            return
        self._note_states(states)
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._idle is not None:
            self._idle.cancel()
        self._idle = loop.call_later(IDLE_SECONDS, self._stop)
        if self._settings.stats:
            if self._stream is not None and now > self._heard_at + SILENCE_SECONDS:
                self._stream.cancel()
            if self._stream is None and not self._backoff.wait(now):
                self._heard_at = now
                self._backoff.tried(now)
                self._stream = loop.create_task(self._listen())
                self._stream.add_done_callback(self._ended)
        asks_now_and_then = self._settings.storage or self._settings.asks_each_qube
        if self._round is None and now >= self._next_round and asks_now_and_then:
            self._next_round = now + 0.9 * self._settings.interval
            self._round = loop.create_task(self._ask_round(self._settings))
            self._round.add_done_callback(self._ended)

    def _note_states(self, states: Mapping[str, str]) -> None:
        if states is self._told_states:
            return
        now = asyncio.get_running_loop().time()
        self.figures.forget(self._told_states.keys() - states.keys())
        self._told_states = states
        for qube, state in states.items():
            self.figures.note_state(qube, state, now, self._refresh)

    async def close(self) -> None:
        """End what runs; returns when the processes are gone, or have had every chance to."""
        tasks = [task for task in (self._stream, self._round) if task is not None]
        self._stop()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._calls.all_ended()

    def _stop(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        for task in (self._stream, self._round):
            if task is not None:
                task.cancel()

    def _new_backoff(self) -> Backoff:
        return Backoff(self._calls.qrexec.backoff_initial, self._calls.qrexec.backoff_max)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._stream:
            self._stream = None
        else:
            self._round = None
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("bug in asking dom0", exc_info=bug)

    # -- statistics ---------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            await self._calls.listen(STATS, Events(self._hear))
        except ScrapeError as error:
            now = asyncio.get_running_loop().time()
            self._backoff.failed(now)
            self._note(STATS, error.bare(), self._backoff.wait(now))

    def _hear(self, qube: str, told: Numbers) -> None:
        now = self._heard_at = asyncio.get_running_loop().time()
        self.figures.note_stats(qube, told, now)
        if qube == DOM0:
            self._backoff.succeeded()
            self._note(STATS, None, STATS_SECONDS)

    # -- the rest -----------------------------------------------------------------------------------------------

    async def _ask_round(self, settings: Dom0) -> None:
        """Each kind of call, one call after the other."""
        self._rounds += 1
        if settings.storage:
            await self._ask_pools(settings.interval)
        if settings.asks_each_qube:
            await self._ask_qubes(settings)

    async def _ask_pools(self, interval: float) -> None:
        listed = await self._ask(POOLS, DOM0, "", interval)
        for pool in dom0_replies.pools(listed or b""):
            info = await self._ask(POOL, DOM0, pool, interval)
            details = await self._ask(POOL_USAGE, DOM0, pool, interval)
            now = asyncio.get_running_loop().time()
            numbers = dom0_replies.numbers(info or b""), dom0_replies.numbers(details or b"")
            self.figures.note_pool(pool, *numbers, now, interval)

    async def _ask_qubes(self, settings: Dom0) -> None:
        reply = await self._ask(LIST, DOM0, "", settings.interval)
        if reply is None:
            return
        before, self._listed = self._listed, dom0_replies.classes(reply)
        self.figures.forget(before.keys() - self._listed.keys())
        if not self._told_states:
            now = asyncio.get_running_loop().time()
            for qube, (_, state) in self._listed.items():
                self.figures.note_state(qube, state, now, settings.interval)
        refusals: dict[str, int] = {}
        for qube, (of_class, state) in self._listed.items():
            changed = before.get(qube) != (of_class, state) or self._rounds % SELDOM_ROUNDS == 1
            for service, argument in _questions(settings, of_class, changed=changed):
                if refusals.get(service, 0) < MAX_REFUSALS:
                    answer = await self._ask(service, qube, argument, settings.interval)
                    is_refused = isinstance(self._errors.get(service), RefusedError)
                    refusals[service] = refusals.get(service, 0) + 1 if is_refused else 0
                    if answer is not None:
                        self._note_answer(service, qube, of_class, argument, answer)

    def _note_answer(self, service: str, qube: str, of_class: str, argument: str, answer: bytes) -> None:
        assert self._settings is not None, "it was asked for it"
        now, interval = asyncio.get_running_loop().time(), self._settings.interval
        if service == PROPERTIES:
            told = dom0_replies.properties(answer)
            self.figures.note_properties(qube, of_class, told, now, SELDOM_ROUNDS * interval)
        elif service == VOLUME:
            self.figures.note_volume(qube, argument, dom0_replies.numbers(answer), now, interval)
        elif argument == END_OF_LIFE:
            self.figures.note_eol(qube, dom0_replies.date(answer) or "", now, interval)
        else:
            self.figures.note_updates(qube, answer, now, interval)

    async def _ask(self, service: str, target: str, argument: str, interval: float) -> bytes | None:
        """What dom0 answers; None where it does not, which is noted."""
        await asyncio.sleep(PAUSE_SECONDS)
        answer, error = None, None
        try:
            answer = await self._calls.ask(service, target, argument)
        except ScrapeError as failed:
            error = failed.bare()
        self._note(service, error, interval)
        return answer

    def _note(self, service: str, error: ScrapeError | None, interval: float) -> None:
        """One line of the log where it changes."""
        before = self._errors.pop(service, None)
        if error is not None:
            self._errors[service] = error
        fields = {"call": service}
        if error is not None and before is None:
            log.warning("dom0 does not tell its figures", extra={**fields, "reason": error.reason, "error": str(error)})
        elif error is None and before is not None:
            log.info("dom0 tells its figures again", extra=fields)
        reason = error.reason if error else None
        self.figures.note_call(service, reason, asyncio.get_running_loop().time(), interval)


def _questions(settings: Dom0, of_class: str, *, changed: bool) -> Iterator[tuple[str, str]]:
    """What is asked of one qube: services and their arguments."""
    if settings.properties and changed and of_class != "AdminVM":
        yield PROPERTIES, ""
    if settings.volumes and of_class != "AdminVM":
        yield VOLUME, PRIVATE
        if of_class in _WITH_SYSTEM:
            yield VOLUME, ROOT
    if settings.updates and (of_class in _WITH_SYSTEM or of_class == "AdminVM"):
        yield FEATURE, UPDATES
    if settings.updates and of_class in _WITH_SYSTEM:
        yield FEATURE, END_OF_LIFE


def _labels(config: Config) -> dict[str, Labels]:
    return {qube.name: qube.labels for qube in config.qubes if qube.labels}
