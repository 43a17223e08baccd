# SPDX-License-Identifier: GPL-3.0-or-later
"""
Asking dom0 for its figures: one open call for statistics, and a few short ones now and then.

Owns when dom0 is asked, and what is made of its silence. Must not know what the figures are shown as, nor who scrapes.

A scrape never waits for dom0. It only says that somebody scrapes: without that, nothing is asked, and the open call is
ended after a while. No process is started in dom0: qubesd answers all of these calls itself.
"""

import asyncio
import logging
import time
from collections.abc import Mapping

from federator import reasons
from federator.backoff import Backoff
from federator.call import CallCounter, ConnectionLimiter
from federator.dom0_calls import Dom0Calls
from federator.dom0_figures import STATS_SECONDS, Figures, Labels
from federator.dom0_replies import LIST, STATS, Events, Numbers
from federator.dom0_round import Rounds
from federator.errors import ScrapeError
from federator.model import Config, Dom0
from federator.targets import DOM0

# The open call is ended where nobody scraped for so long: three times the interval that Prometheus has by default.
IDLE_SECONDS = 180.0
# An open call that is silent for so long is of no use; dom0 tells something every three seconds.
SILENCE_SECONDS = 10 * STATS_SECONDS

log = logging.getLogger(__name__)


class Dom0Figures:
    """What dom0 says of the machine, for as long as somebody scrapes. Nothing at all without [dom0]."""

    def __init__(self, config: Config, limiter: ConnectionLimiter, counter: CallCounter) -> None:
        self.figures = Figures(_labels(config))
        self._settings: Dom0 | None = config.dom0
        self._calls = Dom0Calls(config.qrexec, limiter, counter, self.figures)
        self._rounds = Rounds(self._calls, self.figures)
        self._stream: asyncio.Task[None] | None = None
        self._round: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._heard_at = 0.0  # an event
        self._next_round = 0.0
        self._backoff = self._new_backoff()
        self._told_states: Mapping[str, str] = {}
        self._discovery = config.discovery

    @property
    def answers(self) -> Mapping[str, ScrapeError | None]:
        """By service, why dom0 did not answer the last call; None where it did."""
        return self._calls.answers

    def reconfigure(self, config: Config) -> None:
        """Be what this configuration says. What failed may succeed now."""
        if (config.dom0, config.qrexec) != (self._settings, self._calls.qrexec):
            self._stop()
            self.figures.clear()
            self._calls.answers.clear()
            self._rounds.forget()
            self._told_states = {}
        self.figures.relabel(_labels(config))
        self._settings, self._calls.qrexec = config.dom0, config.qrexec
        self._discovery = config.discovery
        self._backoff = self._new_backoff()
        if not self._calls.answers or any(self._calls.answers.values()):
            self._next_round = 0.0

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
                self._no_stream(reasons.late(DOM0))
            if self._stream is None and not self._backoff.wait(now):
                self._heard_at = now
                self._backoff.tried(now)
                self._stream = loop.create_task(self._listen())
                self._stream.add_done_callback(self._ended)
        asks_now_and_then = self._settings.storage or self._settings.asks_each_qube
        if self._round is None and now >= self._next_round and asks_now_and_then:
            self._next_round = now + self._settings.interval
            known = bool(states) and self._names_halted
            self._round = loop.create_task(self._rounds.ask(self._settings, states_known=known))
            self._round.add_done_callback(self._ended)

    @property
    def _names_halted(self) -> bool:
        """Does discovery name all qubes? One of its sources names those that run."""
        return self._discovery is not None and self._discovery.source == LIST

    def _note_states(self, states: Mapping[str, str]) -> None:
        if self._discovery is None or not states or states is self._told_states:
            return  # nothing is known of any qube where dom0's answer is too old
        gone, self._told_states = self._told_states.keys() - states.keys(), states
        if self._names_halted:
            self.figures.forget(gone)
        else:
            self.figures.forget_states(gone)
        now = asyncio.get_running_loop().time()
        for qube, state in states.items():
            self.figures.note_state(qube, state, now, self._discovery.refresh_interval, time.time())

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

    async def _listen(self) -> None:
        try:
            await self._calls.listen(STATS, Events(self._hear))
        except ScrapeError as error:
            self._no_stream(error)

    def _no_stream(self, error: ScrapeError) -> None:
        now = asyncio.get_running_loop().time()
        self._backoff.failed(now)
        # The next one may be silent for a while, too, until it is given up.
        self._calls.note(STATS, error, self._backoff.wait(now) + SILENCE_SECONDS)

    def _hear(self, qube: str, told: Numbers) -> None:
        now = self._heard_at = asyncio.get_running_loop().time()
        self.figures.note_stats(qube, told, now, time.time())
        if qube == DOM0:
            self._backoff.succeeded()
            self._calls.note(STATS, None, STATS_SECONDS)


def _labels(config: Config) -> dict[str, Labels]:
    return {qube.name: qube.labels for qube in config.qubes if qube.labels}
