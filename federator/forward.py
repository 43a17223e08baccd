# SPDX-License-Identifier: GPL-3.0-or-later
"""
One exporter's own text, neither merged nor labelled, as upstream's proxy gives it.

Owns what may be passed on of it. Must not know HTTP, nor how a qube is reached.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

from federator import reasons
from federator.counters import Counters
from federator.errors import ExpositionError, HttpError, ScrapeError, shown
from federator.fleet import Fleet
from federator.mishap import Caught
from federator.model import Answer, Endpoint, Outcome, Qube, Target
from federator.request import Deadline, Request
from federator.scrape import deadline_of
from federator.statelog import StateLog
from federator.targets import RUNNING
from federator.text.content_type import exposition_type, is_cut


class Forwarder:
    """Fetches single exporters of a fleet, over the calls that scrapes use."""

    def __init__(self, fleet: Fleet, state_log: StateLog, counters: Counters) -> None:
        self._fleet = fleet
        self._state_log = state_log
        self._counters = counters
        self._askings: dict[Target, _Asking] = {}

    async def fetch(self, target: Target, seconds: float) -> tuple[str, bytes]:
        """
        The Content-Type of one exporter's own text, and the text as it is. Clients that come at one time share it.

        Raises ScrapeError where there is none within `seconds`, and StoppingError.
        """
        self._fleet.check_running()
        self._state_log.follow(self._fleet.departures, self._fleet.qubes)
        loop = asyncio.get_running_loop()
        started = loop.time()
        answer, error, content_type = None, None, None
        try:
            answer = await self._answer(target, started + seconds)
            content_type = _forwardable(answer, self._fleet.config.scrape.limits.body_size)
        except ScrapeError as failed:
            error = failed.bare()
        body = answer.body if answer else b""
        outcome = Outcome(target, loop.time() - started, len(body), error=error)
        self._state_log.write_forwarded(outcome)
        self._counters.count_scrape([outcome])
        if content_type is None:
            assert error is not None, "no text without an error"
            raise error
        return content_type, body

    async def _answer(self, target: Target, wanted_by: float) -> Answer:
        """What the qube's service says of one exporter. Raises ScrapeError and StoppingError."""
        loop = asyncio.get_running_loop()
        (qube,) = (one for one in self._fleet.qubes if target in one.targets)
        if (state := self._fleet.state(qube)) != RUNNING:
            raise reasons.not_running(qube.name, state)
        asking = self._askings.get(target)
        if asking is None or not asking.shareable(loop.time(), wanted_by):
            deadline = deadline_of(wanted_by, loop.time(), self._fleet.config.scrape)
            asking = self._askings[target] = _Asking(deadline, loop.create_future())
            asking.task = self._fleet.start(self._ask(asking, qube, target))
        asking.deadline.extend(wanted_by)
        await asyncio.wait({asking.answered}, timeout=wanted_by - loop.time())
        self._fleet.check_running()
        if not asking.answered.done():
            raise reasons.late(qube.name)
        result = asking.answered.result()
        if isinstance(result, ScrapeError):
            raise result.bare()
        return result

    async def _ask(self, asking: "_Asking", qube: Qube, target: Target) -> None:
        """Ask the qube to its end. Whatever happens, there is an answer then, or why there is none."""

        def tell(_: Endpoint, result: Answer | ScrapeError) -> None:
            if not asking.answered.done():
                asking.answered.set_result(result)

        max_body = self._fleet.config.scrape.limits.body_size
        request = Request([target.exporter.endpoint], asking.deadline, max_body, tell, gives_way=True)
        try:
            with Caught("bug in asking a qube", partial(tell, target.exporter.endpoint), qube=qube.name):
                await self._fleet.channel(qube.name).ask(request)
        finally:
            if self._askings.get(target) is asking:
                del self._askings[target]  # the answer is for those who wait, and for nobody else


@dataclass(slots=True)
class _Asking:
    """One exporter being asked, for all clients that wait for it."""

    deadline: Deadline
    answered: "asyncio.Future[Answer | ScrapeError]"
    task: "asyncio.Task[None] | None" = None

    def shareable(self, now: float, wanted_by: float) -> bool:
        """May a client that comes now, and waits until then, have the same answer?"""
        return self.deadline.answers_are_new(now) and (not self.answered.done() or wanted_by <= self.deadline.wanted_by)


def _forwardable(answer: Answer, body_size_limit: int) -> str:
    """The Content-Type under which this answer may be passed on as it is. Raises ScrapeError where it may not."""
    error = reasons.no_text(answer, body_size_limit)
    if error is not None:
        raise error
    content_type = exposition_type(answer.content_type)
    if content_type is None:
        raise HttpError(f"its Content-Type is no exposition: {shown(answer.content_type)}; is this its /metrics?")
    if is_cut(answer.text, content_type):
        raise ExpositionError("its text is cut: the end is missing")
    return content_type
