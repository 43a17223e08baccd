# SPDX-License-Identifier: GPL-3.0-or-later
"""
One scrape: every qube at once, within the deadline, and a Snapshot of what came of it.

Owns the deadline, and which scrapers share what is asked; keeps only what is under way, and the last snapshot. Must not
know HTTP, nor how a qube is reached. A qube's fault is a value here, never an exception.

There is no polling and no cache of values: a scrape asks now. What is not there in time is down, and the page goes out
without it.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import replace
from functools import partial
from weakref import WeakValueDictionary

from federator import mishap, reasons
from federator.asking import Asking, TextBeingRead, Told, fit_on_page
from federator.channel import Channel
from federator.cost import PageCost
from federator.counters import Counters
from federator.errors import ExporterUnreachableError, ScrapeError
from federator.fleet import Fleet
from federator.history import History
from federator.mishap import Caught
from federator.model import Answer, Endpoint, Outcome, Qube, QubeOutcome, Reading, Scrape, Snapshot, Target
from federator.request import Deadline, Request, Tell
from federator.scheduler import Scheduler
from federator.statelog import StateLog
from federator.targets import RUNNING
from federator.text.exposition import Reader

# A scraper may say that it waits longer than the configured timeout, but not more than this many times as long: anybody
# may say so, and holds a place and a call meanwhile.
MAX_PATIENCE = 2.0

# However short the time of a scraper is, an exporter has this much before it is down, if the configured timeout allows.
# Long enough for most exporters, and over before a scraper comes again that comes every five seconds.
LEAST_SECONDS = 3.0
# While a scrape waits, it looks at least so often whether the page that is to be made became larger.
WATCH_SECONDS = 0.05


def budget(untrusted_header: str | None, settings: Scrape) -> float:
    """
    Seconds for a scrape: what the scraper waits (X-Prometheus-Scrape-Timeout-Seconds), less what sending takes.

    Without the header, or where it makes no sense, the configured timeout; MAX_PATIENCE times that at most. The offset
    is never more than half of it.
    """
    timeout = settings.timeout
    if untrusted_header is not None:
        try:
            seconds = float(untrusted_header)
        except ValueError:
            seconds = math.nan
        if math.isfinite(seconds) and seconds > 0:
            timeout = min(seconds, MAX_PATIENCE * settings.timeout)
    return timeout - min(settings.timeout_offset, timeout / 2)


def deadline_of(wanted_by: float, now: float, settings: Scrape) -> Deadline:
    """
    The deadline of a request for a scraper that waits until `wanted_by`.

    The page goes out in the scraper's time, but one impatient scraper must not change what there is for all: exporters
    have at least LEAST_SECONDS to answer, and a silent call is ended no earlier than the configured timeout says.
    """
    configured = budget(None, settings)
    return Deadline(max(wanted_by, now + min(LEAST_SECONDS, configured)), now + configured)


class Scraper:
    """Scrapes the qubes of a fleet, for all scrapers of the daemon."""

    def __init__(self, fleet: Fleet, state_log: StateLog, counters: Counters) -> None:
        self.fleet = fleet
        self.scheduler = Scheduler()
        self.cost = PageCost()
        self.last: Snapshot | None = None  # of all targets, without their texts
        self.history = History()
        self._counters = counters
        self._state_log = state_log
        self._departures = fleet.departures
        self._askings: dict[tuple[Target, ...], Asking] = {}
        self._not_running: dict[str, tuple[str, QubeOutcome]] = {}  # by qube: its state, and what that comes to
        self._snapshots: WeakValueDictionary[tuple[int, ...], Snapshot] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Scraper of {self.fleet!r}: {list(self._askings.values())}>"

    async def collect(self, wanted: Container[Target], seconds: float, told: Told | None = None) -> Snapshot:
        """
        Ask the wanted targets now; what came of it within `seconds`, in the order of the configuration.

        `told` hears of each target as soon as it is done. Scrapers who come at the same time share the asking.
        Raises StoppingError where the daemon ends meanwhile: half a page would look like qubes that went down.
        """
        self.fleet.check_running()
        self._forget_departed()
        loop = asyncio.get_running_loop()
        started = loop.time()
        parts = [
            self._join(qube, targets, started, started + seconds, told)
            for qube in self.fleet.qubes
            if (targets := tuple(target for target in qube.targets if target in wanted))
        ]
        askings = [part for part in parts if isinstance(part, Asking)]
        try:
            await self._until_done(askings, started, seconds)
            self.fleet.check_running()
            now = loop.time()
            qubes = tuple(part.outcome(now) if isinstance(part, Asking) else part for part in parts)
            for part, qube in zip(parts, qubes, strict=True):
                if not isinstance(part, Asking) or _is_for_log(part, seconds, self.fleet.config.scrape):
                    self._state_log.write(qube)
                    self.history.note(qube, time.time())
            return self._snapshot(qubes, now - started, seconds, shared=bool(askings))
        finally:
            for asking in askings:
                asking.waiting -= 1
                self._let_go(asking)

    async def _until_done(self, askings: list[Asking], started: float, seconds: float) -> None:
        """Wait for all of them, and stop so early that the page of what is there by then can still be made and sent."""
        loop = asyncio.get_running_loop()
        tasks = {asking.task for asking in askings if asking.task is not None}
        while tasks:
            fit_on_page(askings, self.fleet.config.scrape)
            now = loop.time()
            making = self.cost.expect(sum(asking.weight for asking in askings), now, seconds)
            left = started + seconds - making - now
            if left <= 0:
                return
            # More may come meanwhile, and make the page larger.
            _, tasks = await asyncio.wait(tasks, timeout=min(left, max(left / 4, WATCH_SECONDS)))
        fit_on_page(askings, self.fleet.config.scrape)

    def _forget_departed(self) -> None:
        self._state_log.follow(self.fleet.departures, self.fleet.qubes)
        if self._departures != self.fleet.departures:
            self._departures = self.fleet.departures
            self._not_running.clear()
            self.history.retain(self.fleet.qubes)

    def _join(
        self, qube: Qube, targets: tuple[Target, ...], now: float, wanted_by: float, told: Told | None
    ) -> "Asking | QubeOutcome":
        """Ask a qube that runs, or share in its being asked; what dom0 says does not run is not called."""
        state = self.fleet.state(qube)
        if state != RUNNING:
            return self._not_called(qube, targets, state, told)
        asking = self._askings.get(targets)
        if asking is None or not asking.shareable(now, wanted_by):
            deadline = deadline_of(wanted_by, now, self.fleet.config.scrape)
            readers = {target: self.fleet.reader(target) for target in targets}
            asking = self._askings[targets] = Asking(qube, readers, now, deadline, self.fleet.texts_read)
            asking.task = self.fleet.start(self._ask(asking, self.fleet.channel(qube.name)))
        asking.deadline.extend(wanted_by)
        if told is not None:
            for outcome in asking.outcomes.values():
                told(outcome)
            asking.listeners.append(told)
        asking.waiting += 1
        return asking

    def _not_called(self, qube: Qube, targets: tuple[Target, ...], state: str, told: Told | None) -> QubeOutcome:
        known = self._not_running.get(qube.name)
        if known is None or known[0] != state or tuple(one.target for one in known[1].outcomes) != targets:
            error = reasons.not_running(qube.name, state)
            outcomes = tuple(Outcome(target, 0.0, error=error) for target in targets)
            known = self._not_running[qube.name] = (state, QubeOutcome(qube, up=False, seconds=0.0, outcomes=outcomes))
        outcome = known[1]
        for one in outcome.outcomes:
            self.fleet.forget_text(one.target)
            if told is not None:
                told(one)
        self._counters.count_scrape(outcome.outcomes)
        return outcome

    def _snapshot(self, qubes: tuple[QubeOutcome, ...], seconds: float, allowed: float, *, shared: bool) -> Snapshot:
        """
        The snapshot of these outcomes: the one that there is, where somebody else just had the very same.

        `shared`: were qubes asked? Outcomes of qubes that do not run are the same for a long time.
        """
        key = tuple(map(id, qubes))  # a snapshot holds what the ids are of, so they stay true
        snapshot = self._snapshots.get(key) if shared else None
        if snapshot is None:
            snapshot = self._snapshots[key] = Snapshot(time.time(), seconds, allowed, qubes)
            if _on_page(outcome.target for outcome in snapshot.outcomes) == _on_page(self.fleet.targets):
                self.last = without_texts(snapshot)
        return snapshot

    def _let_go(self, asking: Asking) -> None:
        """Count what came of it, and keep no answers that nobody can share any more: nothing else is as large."""
        if asking.finished and asking.waiting == 0:
            asking.let_go()
            self._counters.count_scrape(asking.outcome(0.0).outcomes)
            if self._askings.get(asking.targets) is asking:
                del self._askings[asking.targets]

    async def _ask(self, asking: Asking, channel: Channel) -> None:
        """Ask a qube to its end. Whatever happens, every target has an outcome then."""
        loop = asyncio.get_running_loop()
        targets = {target.exporter.endpoint: target for target in asking.targets}
        async with asyncio.TaskGroup() as reading:

            def tell(endpoint: Endpoint, result: Answer | ScrapeError) -> None:
                target, seconds = targets[endpoint], asking.seconds(loop.time())
                # Upstream's service ends where ours answers "Connection refused": it was there all the same.
                asking.up = asking.up or isinstance(result, Answer | ExporterUnreachableError)
                if isinstance(result, Answer):
                    asking.reading.add(target)
                    reading.create_task(self._read(asking, target, result, seconds))
                else:
                    self.fleet.forget_text(target)
                    asking.add(Outcome(target=target, seconds=seconds, error=result))

            with Caught("bug in asking a qube", partial(self._add_missing, asking), qube=asking.qube.name):
                max_body = self.fleet.config.scrape.limits.body_size
                await _ask_all(channel, asking, max_body, tell)
            # The qube's time ends with its last answer; that we take turns in reading it is not its fault.
            answered = loop.time()
        self.fleet.forget_if_gone(asking.targets)
        asking.finish(answered)
        self._let_go(asking)

    def _add_missing(self, asking: Asking, error: ScrapeError) -> None:
        seconds = asking.seconds(asyncio.get_running_loop().time())
        for target in asking.targets:
            if target not in asking.outcomes and target not in asking.reading:
                asking.add(Outcome(target=target, seconds=seconds, error=error))

    async def _read(self, asking: Asking, target: Target, answer: Answer, seconds: float) -> None:
        if answer.seconds is not None:
            seconds = min(answer.seconds, seconds)  # the service's own clock leaves out how long the call took to open
        reading, error = None, None
        try:
            error = reasons.no_text(answer, self.fleet.config.scrape.limits.body_size)
            if error is None:
                async with asking.deadline.limit():
                    reading = await self._read_text(target, asking.readers[target], answer)
        except ScrapeError as failed:
            error = failed.bare()
        except TimeoutError:
            error = reasons.read_too_late()
        except Exception as failed:  # noqa: BLE001 - a text that can trigger it must not cost the others their page
            error = reasons.of_ours(failed, reasons.TextBugError)
            mishap.tell("bug in reading an exposition", failed, qube=target.qube, exporter=target.exporter.name)
        if error is not None:
            self.fleet.forget_text(target)
        asking.add(_outcome(target, seconds, answer, reading, error))

    async def _read_text(self, target: Target, reader: Reader, answer: Answer) -> Reading:
        """Read it in turns with others, unless there is too much to be read, and its qube has most of it."""
        untrusted_body, holder = answer.text, TextBeingRead(target.qube)
        try:
            self.fleet.texts.hold(holder, len(untrusted_body))
            reading = reader.read(untrusted_body, time.time() * 1000, answer.content_type)
            return await self.scheduler.run(reading, len(untrusted_body))
        except asyncio.CancelledError:
            if holder.was_cancelled_for_that():
                raise reasons.too_much_at_once() from None
            raise
        finally:
            self.fleet.texts.release(holder)


async def _ask_all(channel: Channel, asking: Asking, max_body: int, tell: Tell) -> None:
    """Ask together for the exporters that may take as long as each other."""
    now = asyncio.get_running_loop().time()
    endpoints: defaultdict[float | None, list[Endpoint]] = defaultdict(list)
    for target in asking.targets:
        endpoints[target.exporter.timeout].append(target.exporter.endpoint)
    async with asyncio.TaskGroup() as requests:
        for seconds, of_time in endpoints.items():
            deadline = asking.deadline if seconds is None else asking.deadline.part(now + seconds)
            requests.create_task(channel.ask(Request(of_time, deadline, max_body, tell)))


def _on_page(targets: Iterable[Target]) -> int:
    """How many of them are on /metrics without being asked for by name."""
    return sum(target.exporter.page for target in targets)


def _outcome(
    target: Target, seconds: float, answer: Answer, reading: Reading | None, error: ScrapeError | None
) -> Outcome:
    body_size = len(answer.body) if answer.status else 0
    # HELP texts are on the page, too. They are no larger than the rest of what the exporter sent.
    page_size = max(body_size, sum(map(len, reading.blocks))) if reading else 0
    return Outcome(target, seconds, body_size, reading, error, page_size)


def _is_for_log(asking: Asking, seconds: float, settings: Scrape) -> bool:
    """
    The log says what pages say, and not what came too late for them.

    Of one asking, it says what the page of the most patient scraper says; and it does not say what is late for one
    that waits so little that it is late for no other: less than half of what exporters have in any case.
    """
    return asking.waiting == 1 and (asking.finished or seconds >= min(LEAST_SECONDS, budget(None, settings)) / 2)


def without_texts(snapshot: Snapshot) -> Snapshot:
    """The same, but for the lines of the page: what is kept for people to look at must not hold these."""
    qubes = tuple(
        QubeOutcome(qube.qube, qube.up, qube.seconds, tuple(map(_without_text, qube.outcomes)))
        for qube in snapshot.qubes
    )
    return Snapshot(snapshot.at, snapshot.seconds, snapshot.allowed, qubes)


def _without_text(outcome: Outcome) -> Outcome:
    reading = outcome.reading
    if reading is None:
        return outcome
    said = Reading((), (), reading.samples, reading.lines_dropped, reading.complaint)
    return replace(outcome, reading=said)
