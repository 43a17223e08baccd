# SPDX-License-Identifier: GPL-3.0-or-later
"""
One qube being asked, and what has come of it so far.

Owns what is there of its targets, who shares it, and how a target loses its text where all texts together are too much.
Must not know how a qube is asked, nor how a text is read.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from federator import reasons, shares
from federator.budget import Budget, surplus
from federator.cost import weight
from federator.errors import ScrapeError
from federator.model import Outcome, Qube, QubeOutcome, Scrape, Target
from federator.request import Deadline
from federator.text.exposition import Reader

Told = Callable[[Outcome], None]


class Asking:
    """
    One qube being asked. Each scraper that shares it takes what is there in its time.

    `texts`: the budget for texts that were read and are not on their page yet.
    """

    def __init__(
        self, qube: Qube, readers: Mapping[Target, Reader], started: float, deadline: Deadline, texts: Budget
    ) -> None:
        self.qube = qube
        self.readers = readers
        self.targets = tuple(readers)
        self.deadline = deadline
        self.up = False
        self.outcomes: dict[Target, Outcome] = {}
        self.reading: set[Target] = set()  # their texts are here
        self.listeners: list[Told] = []
        self.task: asyncio.Task[None] | None = None
        self.waiting = 0  # how many scrapers want to know
        self._started = started
        self._seconds: float | None = None  # that it took, once it is finished
        self._outcome: QubeOutcome | None = None
        self._budget = texts
        self._holders: dict[Target, _ReadText] = {}

    def __repr__(self) -> str:
        state = "finished" if self.finished else "under way"
        done = f"{len(self.outcomes)} of {len(self.targets)}"
        return f"<asking {self.qube.name}: {state}, {done} done, {self.waiting} waiting>"

    def shareable(self, now: float, wanted_by: float) -> bool:
        """May a scraper that comes now, and waits until then, have the same answers?"""
        # What was late for the others may be in time for this one.
        is_late = any(outcome.error and outcome.error.reason == "timeout" for outcome in self.outcomes.values())
        if not self.deadline.answers_are_new(now) or (is_late and wanted_by > self.deadline.wanted_by):
            return False
        return not self.finished or self.waiting > 0

    def seconds(self, now: float) -> float:
        """For how long it has been going on."""
        return now - self._started

    def add(self, outcome: Outcome) -> None:
        """One target is done."""
        self.outcomes[outcome.target] = outcome
        if outcome.reading:
            holder = self._holders[outcome.target] = _ReadText(self, outcome.target)
            self._budget.hold(holder, outcome.page_size)
        for listener in self.listeners:
            listener(self.outcomes[outcome.target])

    @property
    def weight(self) -> int:
        """What its part of the page weighs by now."""
        return page_weight(self.outcomes.values())

    def take_text(self, target: Target, error: ScrapeError) -> None:
        """The target is down: its text is too much beside the others."""
        self._budget.release(self._holders.pop(target))
        self.outcomes[target] = replace(self.outcomes[target], reading=None, error=error, page_size=0)
        self._outcome = None

    def let_go(self) -> None:
        """Its texts are on the pages that they were for, or nobody wants them."""
        for holder in self._holders.values():
            self._budget.release(holder)
        self._holders.clear()

    def finish(self, now: float) -> QubeOutcome:
        """All is done that will be; at `now` the last answer came."""
        self._seconds = self.seconds(now)
        return self.outcome(now)

    @property
    def finished(self) -> bool:
        """Is nothing to come any more?"""
        return self._seconds is not None

    def outcome(self, now: float) -> QubeOutcome:
        """As it stands: what has not come by now is late. The same object for all, once it is finished."""
        if self._outcome is not None:
            return self._outcome
        seconds = self.seconds(now) if self._seconds is None else self._seconds
        outcome = QubeOutcome(
            qube=self.qube,
            up=self.up,
            seconds=seconds,
            outcomes=tuple(
                self.outcomes.get(target) or Outcome(target=target, seconds=seconds, error=self._late(target))
                for target in self.targets
            ),
        )
        if self.finished:
            self._outcome = outcome
        return outcome

    def _late(self, target: Target) -> ScrapeError:
        return reasons.read_too_late() if target in self.reading else reasons.late(self.qube.name)


class _ReadText:
    """Holds bytes of the budget: a text that was read."""

    def __init__(self, asking: Asking, target: Target) -> None:
        self.qube = target.qube
        self._asking = asking
        self._target = target

    def give_up(self) -> None:
        """There is too much, and its qube has most of it."""
        self._asking.take_text(self._target, reasons.too_much_at_once())


def page_weight(outcomes: Iterable[Outcome]) -> int:
    """What a page of these weighs: see cost.weight."""
    return sum(weight(one.page_size, one.reading.heads) for one in outcomes if one.reading)


def fit_on_page(askings: Collection[Asking], settings: Scrape) -> None:
    """Take texts out where they are too much for one page: see budget.surplus."""
    most = shares.page_size(settings)
    _take_surplus(askings, lambda outcome: outcome.page_size, most, reasons.page_too_large(most))
    most = shares.page_samples(settings)
    _take_surplus(askings, lambda outcome: outcome.samples, most, reasons.page_of_too_many_samples(most))


def _take_surplus(
    askings: Collection[Asking], size_of: Callable[[Outcome], int], most: int, error: ScrapeError
) -> None:
    if sum(size_of(outcome) for asking in askings for outcome in asking.outcomes.values()) <= most:
        return
    askings_of = {outcome.target: asking for asking in askings for outcome in asking.outcomes.values()}
    sizes = {target: size_of(asking.outcomes[target]) for target, asking in askings_of.items()}
    for target in surplus({target: size for target, size in sizes.items() if size}, most):
        askings_of[target].take_text(target, error)


class TextBeingRead:
    """Holds bytes of the budget: a text that is being read, by a task that does nothing else. Made in that task."""

    def __init__(self, qube: str) -> None:
        task = asyncio.current_task()
        assert task is not None, "it is read in a task of its own"
        self.qube = qube
        self.gave_up = False
        self._task = task

    def give_up(self) -> None:
        """There is too much, and its qube has most of it."""
        self.gave_up = True
        self._task.cancel()

    def was_cancelled_for_that(self) -> bool:
        """After a CancelledError: did it come from `give_up`, and from nobody else?"""
        return self.gave_up and not self._task.uncancel()
