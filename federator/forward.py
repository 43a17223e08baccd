# SPDX-License-Identifier: GPL-3.0-or-later
"""
One exporter's own text, neither merged nor labelled, as upstream's proxy gives it.

Owns what may be passed on of it. Must not know HTTP, nor how a qube is reached.
"""

import asyncio
import logging
from typing import Any

from federator import reasons
from federator.counters import Counters
from federator.errors import ExpositionError, HttpError, ScrapeError, shown
from federator.fleet import Fleet
from federator.model import Answer, Outcome, Qube, Target
from federator.request import Deadline
from federator.scrape import budget
from federator.statelog import StateLog
from federator.targets import RUNNING
from federator.text.content_type import exposition_type, is_cut

log = logging.getLogger(__name__)


class Forwarder:
    """Fetches single exporters of a fleet, over the calls that scrapes use."""

    def __init__(self, fleet: Fleet, state_log: StateLog, counters: Counters) -> None:
        self._fleet = fleet
        self._state_log = state_log
        self._counters = counters

    async def fetch(self, target: Target, seconds: float) -> tuple[str, bytes]:
        """
        The Content-Type of one exporter's own text, and the text as it is.

        Raises ScrapeError where there is none within `seconds`, and StoppingError.
        """
        self._fleet.check_running()
        loop = asyncio.get_running_loop()
        (qube,) = (one for one in self._fleet.qubes if target in one.targets)
        started = loop.time()
        answer, error, content_type = None, None, None
        try:
            if (state := self._fleet.state(qube)) != RUNNING:
                raise reasons.not_running(qube.name, state)
            answer = await self._answer(qube, target, seconds)
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

    async def _answer(self, qube: Qube, target: Target, seconds: float) -> Answer:
        """What the qube's service says of one exporter. Raises ScrapeError and StoppingError."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadline = Deadline(now + seconds, now + budget(None, self._fleet.config.scrape))
        answered: asyncio.Future[Answer | ScrapeError] = loop.create_future()

        def tell(_: int, result: Answer | ScrapeError) -> None:
            if not answered.done():
                answered.set_result(result)

        max_body = self._fleet.config.scrape.limits.body_size
        channel = self._fleet.channel(qube.name)
        asking = self._fleet.start(
            channel.ask((target.exporter.port,), deadline=deadline, max_body=max_body, tell=tell)
        )
        either: set[asyncio.Future[Any]] = {answered, asking}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._fleet.check_running()
        if asking.done() and not asking.cancelled() and (bug := asking.exception()) is not None:
            log.error("bug in asking a qube", extra={"qube": qube.name}, exc_info=bug)
            raise reasons.bug()
        if not answered.done():
            raise reasons.late(qube.name)
        result = answered.result()
        if isinstance(result, ScrapeError):
            raise result.bare()
        return result


def _forwardable(answer: Answer, body_size_limit: int) -> str:
    """The Content-Type under which this answer may be passed on as it is. Raises ScrapeError where it may not."""
    error = reasons.no_text(answer, body_size_limit)
    if error is not None:
        raise error
    content_type = exposition_type(answer.content_type)
    if content_type is None:
        raise HttpError(f"its Content-Type is no exposition: {shown(answer.content_type)}; is this its /metrics?")
    if is_cut(answer.body, content_type):
        raise ExpositionError("its text is cut: the end is missing")
    return content_type
