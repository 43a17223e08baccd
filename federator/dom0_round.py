# SPDX-License-Identifier: GPL-3.0-or-later
"""
One round of short calls to dom0: pools, volumes, properties and updates, one call after the other.

Owns which calls a round has, and which of them are left out after refusals. Must not know when a round begins, nor how
a call is made.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping

from federator import dom0_replies
from federator.dom0_calls import Dom0Calls
from federator.dom0_figures import Figures
from federator.dom0_replies import (
    END_OF_LIFE,
    FEATURE,
    INFO,
    LIST,
    POOL,
    POOL_USAGE,
    POOLS,
    PRIVATE,
    PROPERTIES,
    PROPERTY,
    ROOT,
    UPDATES,
    VOLUME,
    WITH_SYSTEM,
    WITHOUT_VOLUMES,
)
from federator.errors import ProtocolError, RefusedError, ScrapeError
from federator.model import Dom0
from federator.targets import DOM0

# Between two short calls, so that they never come as a burst. A thousand calls take less than the usual interval.
PAUSE_SECONDS = 0.2
# What changes seldom is asked for again in so many rounds, or when the qube's state changed.
SELDOM_ROUNDS = 12
# Where dom0 does not answer the same question for so many qubes in a row, its line is missing, or qubesd hangs or is
# restarted: it is not asked of the others in this round.
MAX_UNANSWERED = 3

Question = tuple[str, str]  # a service and its argument


class Rounds:
    """What one round knows of those before it."""

    def __init__(self, calls: Dom0Calls, figures: Figures) -> None:
        self._calls = calls
        self._figures = figures
        self._number = 0
        self._listed: Mapping[str, tuple[str, str]] = {}
        # Of this round.
        self._unanswered: Counter[Question] = Counter()
        self._asked: dict[str, float] = {}  # by service: seconds until it is asked again
        self._failed: set[str] = set()
        self._still_there: dict[str, bool] = {}  # qubes that refused a question, by whether dom0 still lists them

    def forget(self) -> None:
        """Begin anew: nothing was asked before."""
        self._number, self._listed = 0, {}

    async def ask(self, settings: Dom0, *, states_known: bool) -> None:
        """Make all calls of one round. `states_known`: discovery tells the figures which qubes run."""
        self._number += 1
        self._unanswered.clear()
        self._asked.clear()
        self._failed.clear()
        self._still_there.clear()
        if settings.storage:
            await self._ask_pools(settings.interval)
        if settings.asks_each_qube:
            await self._ask_qubes(settings, states_known=states_known)
        for service in self._asked.keys() - self._failed:
            self._calls.note(service, None, self._asked[service])

    async def _ask_pools(self, interval: float) -> None:
        listed = await self._told(POOLS, DOM0, "", interval)
        for pool in dom0_replies.pools(listed or b""):
            info = await self._told(POOL, DOM0, pool, interval)
            details = await self._told(POOL_USAGE, DOM0, pool, interval)
            numbers = dom0_replies.numbers(info or b""), dom0_replies.numbers(details or b"")
            self._figures.note_pool(pool, *numbers, _now(), interval)

    async def _ask_qubes(self, settings: Dom0, *, states_known: bool) -> None:
        untrusted_list = await self._told(LIST, DOM0, "", settings.interval)
        if untrusted_list is None:
            return
        listed = dom0_replies.classes(untrusted_list)
        before, self._listed = self._listed, listed
        self._figures.forget(before.keys() - listed.keys())
        for qube, (_, state) in listed.items():
            if qube == DOM0 or not states_known:  # discovery does not tell of dom0
                self._figures.note_state(qube, state, _now(), settings.interval, time.time())
        for qube, (of_class, state) in listed.items():
            changed = before.get(qube) != (of_class, state) or self._number % SELDOM_ROUNDS == 1
            wanted = changed or not self._figures.knows("qube_info", ("qube", qube))
            if settings.properties and wanted and of_class != "AdminVM":
                await self._ask_properties(qube, of_class, SELDOM_ROUNDS * settings.interval)
            for service, argument in _questions(settings, of_class):
                answer = await self._told(service, qube, argument, settings.interval)
                if answer is not None:
                    self._note_answer(service, qube, argument, answer, settings.interval)

    async def _ask_properties(self, qube: str, of_class: str, interval: float) -> None:
        """All at once; or one by one, which tells the daemon's qube less, where dom0 refuses the other."""
        answer, error = await self._try(PROPERTIES, qube, "")
        if answer is not None:
            told = dom0_replies.properties(answer)
        elif error is None or isinstance(error, RefusedError):
            told = await self._properties_one_by_one(qube, interval)
        else:
            told = {}
        if told:
            self._figures.note_properties(qube, of_class, told, _now(), interval)
        if answer is not None or (error is not None and not told):
            self._note(PROPERTIES, error, interval)
        elif told:  # so the refusal is wanted
            self._calls.forget(PROPERTIES)

    async def _properties_one_by_one(self, qube: str, interval: float) -> dict[str, str]:
        told: dict[str, str] = {}
        for name in INFO:
            answer, _ = await self._try(PROPERTY, qube, name)
            if answer is not None:
                self._note(PROPERTY, None, interval)
                told[name] = dom0_replies.single_property(answer)
        return told

    def _note_answer(self, service: str, qube: str, argument: str, answer: bytes, interval: float) -> None:
        if service == VOLUME:
            self._figures.note_volume(qube, argument, dom0_replies.numbers(answer), _now(), interval)
        elif argument == END_OF_LIFE:
            self._figures.note_eol(qube, dom0_replies.date(answer) or "", _now(), interval)
        else:
            self._figures.note_updates(qube, answer, _now(), interval)

    async def _told(self, service: str, target: str, argument: str, interval: float) -> bytes | None:
        """What dom0 answers; None where it does not, which is noted, or was not asked."""
        answer, error = await self._try(service, target, argument)
        if answer is not None or error is not None:
            self._note(service, error, interval)
        return answer

    def _note(self, service: str, error: ScrapeError | None, interval: float) -> None:
        """One failure counts for the whole round: else a line that is missing for some qubes would fill the log."""
        self._asked[service] = interval
        if error is not None:
            self._failed.add(service)
        if error is not None or not self._calls.fails(service):
            self._calls.note(service, error, interval)

    async def _try(self, service: str, target: str, argument: str) -> tuple[bytes | None, ScrapeError | None]:
        """What dom0 answers, or why it does not; neither where it failed too often, or the qube is gone."""
        question = service, "" if target == DOM0 else argument
        if self._unanswered[question] >= MAX_UNANSWERED or not self._still_there.get(target, True):
            return None, None
        await asyncio.sleep(PAUSE_SECONDS)
        try:
            answer = await self._calls.ask(service, target, argument)
        except ScrapeError as failed:
            if isinstance(failed, RefusedError | ProtocolError) and not await self._is_there(target):
                return None, None
            self._unanswered[question] += 1
            return None, failed.bare()
        self._unanswered[question] = 0
        return answer, None

    async def _is_there(self, target: str) -> bool:
        """
        Is a qube still listed? If it was removed meanwhile, qrexec refuses the call, or qubesd has no reply to it: a
        line for @anyvm allows calls to a name that is no qube's. dom0 is asked once for each qube.
        """
        if target != DOM0 and target not in self._still_there:
            self._still_there[target] = True
            await asyncio.sleep(PAUSE_SECONDS)
            try:
                listed = dom0_replies.classes(await self._calls.ask(LIST, DOM0, ""))
            except ScrapeError:
                return True
            if target not in listed:
                self._still_there[target] = False
                self._figures.forget({target})
        return self._still_there.get(target, True)


def _questions(settings: Dom0, of_class: str) -> Iterator[Question]:
    """What is asked of one qube in each round."""
    if settings.volumes and of_class not in WITHOUT_VOLUMES:
        yield VOLUME, PRIVATE
        if of_class in WITH_SYSTEM:
            yield VOLUME, ROOT
    if settings.updates and (of_class in WITH_SYSTEM or of_class == "AdminVM"):
        yield FEATURE, UPDATES
    if settings.updates and of_class in WITH_SYSTEM:
        yield FEATURE, END_OF_LIFE


def _now() -> float:
    return asyncio.get_running_loop().time()
