# SPDX-License-Identifier: GPL-3.0-or-later
"""
One scrape: every qube at once, within the deadline, one Outcome per target.

Owns the deadline, who shares a scrape with whom, and in which turns the answers are read. Must not know HTTP, nor how a
qube is reached. A qube's fault is a value here, never an exception.

There is no polling and no cache of values: a scrape asks now. What is not there in time is down, and the page goes out
without it.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Container, Generator, Mapping, Sequence
from typing import Any, TypeVar

from federator.channel import Channel, Doorman
from federator.counters import Counters
from federator.discovery import Discoverer
from federator.errors import (
    BodySizeLimitError,
    ExporterUnreachableError,
    ExpositionError,
    HttpError,
    NotRunningError,
    ScrapeError,
    StoppingError,
    TimedOutError,
    shown,
)
from federator.model import MAX_TIMEOUT_SECONDS, Answer, Config, Outcome, Qube, QubeOutcome, Reading, Scrape, Target
from federator.targets import DOM0, RUNNING, qubes_with_discovered
from federator.text.exposition import Reader
from federator.text.memory import Memory
from federator.text.merge import Merger

# Who comes within this time of another's start shares its scrape; later, values would be older than one expects.
SHARE_SECONDS = 1.0
# dom0 answers in some 20 ms; who waits for a page goes on after this time with what it said last.
PATIENCE_SECONDS = 1.0

log = logging.getLogger(__name__)
T = TypeVar("T")


def budget(untrusted_header: str | None, settings: Scrape) -> float:
    """
    Seconds for a scrape: what the scraper waits (X-Prometheus-Scrape-Timeout-Seconds), less what sending takes.

    Without the header, or where it makes no sense, the configured timeout. The offset is never more than half of it.
    """
    timeout = settings.timeout
    if untrusted_header is not None:
        try:
            seconds = float(untrusted_header)
        except ValueError:
            seconds = math.nan
        if math.isfinite(seconds) and seconds > 0:
            timeout = min(seconds, MAX_TIMEOUT_SECONDS)
    return timeout - min(settings.timeout_offset, timeout / 2)


class Turns:
    """
    Lets many readings take turns on the event loop: one slice of one of them, then everybody else, sockets included.

    In threads they would fight for the interpreter all the same, and a large text would hold up the small ones.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()  # first come, first served

    async def take(self, work: Generator[None, None, T]) -> T:
        """Run the work to its end, a slice at a time; its result, or what it raised."""
        while True:
            async with self._turn:
                try:
                    next(work)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                # Within the turn: outside of it, each of many readings would have a slice before the sockets have one.
                await asyncio.sleep(0)


class _QubeScrape:
    """One qube being asked, and what has come so far. Whoever shares it takes what is there when their time is over."""

    def __init__(self, qube: Qube, readers: Mapping[Target, Reader], started: float) -> None:
        self.qube = qube
        self.readers = readers
        self.targets = tuple(readers)
        self.started = started
        self.finished: float | None = None
        self.up = False
        self.outcomes: dict[Target, Outcome] = {}
        self.listeners: list[Callable[[Outcome], None]] = []
        self.task: asyncio.Task[None] | None = None
        self.waiting = 0  # how many scrapers want to know

    def shareable(self, now: float) -> bool:
        """May a scraper who comes now have the same answers?"""
        return self.finished is None or (self.waiting > 0 and now - self.started < SHARE_SECONDS)

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.target] = outcome
        for listener in self.listeners:
            listener(outcome)

    def outcome(self, now: float) -> QubeOutcome:
        """As it stands: what has not come by now is late."""
        seconds = (self.finished if self.finished is not None else now) - self.started
        late = TimedOutError(f"no answer of {self.qube.name} in time; is it paused, or busy?")
        return QubeOutcome(
            qube=self.qube,
            up=self.up,
            seconds=seconds,
            outcomes=tuple(
                self.outcomes.get(target) or Outcome(target=target, seconds=seconds, error=late)
                for target in self.targets
            ),
        )


class Scraper:
    """
    Scrapes the qubes of one configuration.

    Takes over what `previous` has open where the configuration says the same; `close` that one afterwards. `own_name`
    is that of the qube we are in, which qrexec does not let us call.
    """

    def __init__(
        self, config: Config, counters: Counters, previous: "Scraper | None" = None, *, own_name: str = ""
    ) -> None:
        self.config = config
        self._own_name = own_name
        self.turns = Turns()
        self.merger = Merger()
        self._counters = counters
        self._doorman = Doorman(config.qrexec.connect_limit)
        self._asked: dict[tuple[Target, ...], _QubeScrape] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._chronicle: _Chronicle = previous._chronicle if previous else _Chronicle()  # noqa: SLF001 - of its kind
        self._closing = False
        self._channels: dict[Qube, Channel] = {}
        self._memory = Memory(config.scrape.limits)
        self._readers: dict[Target, Reader] = {}
        self._ends: set[asyncio.Task[None]] = set()
        self._discoverer = self._new_discoverer(previous)
        self._states: Mapping[str, str] = {}
        self.qubes: tuple[Qube, ...] = ()
        self._follow(self._discoverer.states if self._discoverer else {}, previous)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target there is now, in the order of the page."""
        return tuple(target for qube in self.qubes for target in qube.targets)

    @property
    def knows_targets(self) -> bool:
        """Is `targets` all there is? Not while dom0, who is to name some, has yet to answer; nor if it alone could."""
        if self._discoverer is None or self._discoverer.told:
            return True
        return bool(self.qubes) and (self._discoverer.settled or not self._discoverer.names_targets)

    @property
    def knows_states(self) -> bool:
        """Is it known what runs? Without discovery, what is configured is taken to run."""
        return self._discoverer is None or self._discoverer.known

    @property
    def names(self) -> Container[str]:
        """Every name with a dot that dom0 ever told."""
        return self._discoverer.dotted_names if self._discoverer else ()

    @property
    def discovery_error(self) -> ScrapeError | None:
        """Why dom0 does not say which qubes run, if it does not."""
        return self._discoverer.error if self._discoverer else None

    async def refresh(self, seconds: float, patience: float = PATIENCE_SECONDS) -> None:
        """
        See which qubes run, where the configuration wants that; before `targets` is asked.

        It takes `patience` at most where there is an older answer to go by, and `seconds` where there is none.
        """
        discoverer = self._discoverer
        if discoverer is not None and not self._closing:
            await discoverer.refresh(min(seconds, patience) if discoverer.known else seconds)
            if discoverer.told and not self._closing:
                self._follow(discoverer.states)

    def state(self, qube: Qube) -> str:
        """As dom0 said last; Running where it does not say, so that the qube is called and answers for itself."""
        if qube.transport == "local" or qube.name == DOM0 or self._discoverer is None:
            return RUNNING
        return self._discoverer.state(qube.name)

    def _new_discoverer(self, previous: "Scraper | None") -> Discoverer | None:
        """The one there was goes on, so that dom0 is not asked again, where the configuration says the same."""
        old = previous._discoverer if previous else None  # noqa: SLF001 - of its kind
        if self.config.discovery is None:
            return None
        settings = (self.config.discovery, self.config.qrexec)
        if previous and old and settings == (previous.config.discovery, previous.config.qrexec):
            previous._discoverer = None  # noqa: SLF001 - of its kind
            return old
        return Discoverer(self.config.discovery, self.config.qrexec, self._counters, old)

    def _follow(self, states: Mapping[str, str], previous: "Scraper | None" = None) -> None:
        """Have a channel and readers for every qube that there is now, and none for those that went."""
        if states is self._states and self.qubes:
            return
        started = {name for name, state in states.items() if state == RUNNING and self._states.get(name) != RUNNING}
        self._states = states
        self.qubes = qubes_with_discovered(self.config, states, self._own_name)
        gone = self._channels.keys() - set(self.qubes)
        if gone:
            self.merger = Merger()  # its plans hold what they had
        for qube in gone:
            self._end(self._channels.pop(qube))
            self._chronicle.forget(qube)
            for target in qube.targets:
                self._memory.forget(target)
                self._readers.pop(target, None)
        for qube in self.qubes:
            if qube not in self._channels:
                kept = previous.give_away(qube, self.config) if previous else None
                self._channels[qube] = kept or Channel(qube, self.config.qrexec, self._doorman, self._counters)
                limits = self.config.scrape.limits
                self._readers.update({target: Reader(target, limits, self._memory) for target in qube.targets})
            elif qube.name in started:
                self._channels[qube].forget()

    def _end(self, channel: Channel) -> None:
        end = asyncio.get_running_loop().create_task(channel.retire())
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)

    def give_away(self, qube: Qube, config: Config) -> Channel | None:
        """Hand a qube's channel to a successor under `config`, if it is still the right one."""
        channel = self._channels.pop(qube, None) if config.qrexec == self.config.qrexec else None
        if channel is not None:
            channel.forget()
        return channel

    async def collect(
        self, wanted: Container[Target], seconds: float, told: Callable[[Outcome], None] | None = None
    ) -> tuple[QubeOutcome, ...]:
        """
        Ask the wanted targets now; what came of it within `seconds`, in the order of the configuration.

        `told` hears of each target as soon as it is done. Scrapers who come at the same time share the asking.
        Raises StoppingError where the daemon ends meanwhile: half a page would look like qubes that went down.
        """
        if self._closing:
            raise StoppingError("the proxy is being stopped")
        loop = asyncio.get_running_loop()
        now = loop.time()
        # The page goes out in the scraper's time; the qubes have at least the configured time, or one impatient
        # scraper could end the channels of all.
        until = now + max(seconds, budget(None, self.config.scrape))
        asked = [
            (qube, targets, self.state(qube))
            for qube in self.qubes
            if (targets := tuple(target for target in qube.targets if target in wanted))
        ]
        halted = {
            qube.name: self._not_running(qube, targets, state, told)
            for qube, targets, state in asked
            if state != RUNNING
        }
        scrapes = [self._ask(qube, targets, now, until, told) for qube, targets, state in asked if state == RUNNING]
        tasks = {scrape.task for scrape in scrapes if scrape.task is not None}
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=now + seconds - loop.time())
            if self._closing:
                raise StoppingError("the proxy is being stopped")
            outcomes = halted | {scrape.qube.name: scrape.outcome(loop.time()) for scrape in scrapes}
            return tuple(outcomes[qube.name] for qube, _, _ in asked)
        finally:
            for scrape in scrapes:
                scrape.waiting -= 1
                self._forget(scrape)

    async def fetch(self, target: Target, seconds: float) -> bytes:
        """
        One exporter's own text, as it is, over the channel that scrapes use.

        Raises ScrapeError where there is none within `seconds`, and Stopping.
        """
        if self._closing:
            raise StoppingError("the proxy is being stopped")
        loop = asyncio.get_running_loop()
        (qube,) = (one for one in self.qubes if target in one.targets)
        started = loop.time()
        answer, error = None, None
        try:
            if (state := self.state(qube)) != RUNNING:
                raise _not_running(qube, state)
            answer = await self._answer(qube, target, seconds)
            check(answer, self.config.scrape.limits.body_size)
            if answer.body and not answer.body.endswith(b"\n"):
                # Prometheus would take the beginning of a number for the whole.
                raise ExpositionError("its text is cut: there is no newline at the end")
        except ScrapeError as failed:
            error = failed
        body = answer.body if answer else b""
        outcome = Outcome(target, loop.time() - started, len(body), error=error)
        self._chronicle.write_forwarded(outcome)
        self._count((outcome,))
        if error is not None:
            raise error
        return body

    async def _answer(self, qube: Qube, target: Target, seconds: float) -> Answer:
        """What the qube's service says of one exporter. Raises ScrapeError and Stopping."""
        loop = asyncio.get_running_loop()
        until = loop.time() + max(seconds, budget(None, self.config.scrape))
        answered: asyncio.Future[Answer | ScrapeError] = loop.create_future()

        def tell(_: int, result: Answer | ScrapeError) -> None:
            if not answered.done():
                answered.set_result(result)

        max_body = self.config.scrape.limits.body_size
        asking = loop.create_task(
            self._channels[qube].ask((target.exporter.port,), deadline=until, max_body=max_body, tell=tell)
        )
        self._tasks.add(asking)
        asking.add_done_callback(self._tasks.discard)
        either: set[asyncio.Future[Any]] = {answered, asking}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._closing:
            raise StoppingError("the proxy is being stopped")
        if not answered.done():
            raise TimedOutError(f"no answer of {qube.name} in time; is it paused, or busy?")
        result = answered.result()
        if isinstance(result, ScrapeError):
            raise result
        return result

    async def close(self) -> None:
        """End all channels, and with them what is still being asked."""
        self._closing = True
        if self._discoverer is not None:
            await self._discoverer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels.values()), *self._ends)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def retire(self) -> None:
        """Let those who still wait have their answers, then close."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.close()

    def _ask(
        self,
        qube: Qube,
        targets: tuple[Target, ...],
        now: float,
        until: float,
        told: Callable[[Outcome], None] | None,
    ) -> _QubeScrape:
        scrape = self._asked.get(targets)
        if scrape is None or not scrape.shareable(now):
            readers = {target: self._readers[target] for target in targets}
            scrape = self._asked[targets] = _QubeScrape(qube, readers, now)
            scrape.task = asyncio.create_task(self._scrape(scrape, self._channels[qube], until))
            self._tasks.add(scrape.task)
            scrape.task.add_done_callback(self._tasks.discard)
        if told is not None:
            scrape.listeners.append(told)
        scrape.waiting += 1
        return scrape

    def _not_running(
        self, qube: Qube, targets: tuple[Target, ...], state: str, told: Callable[[Outcome], None] | None
    ) -> QubeOutcome:
        """What dom0 says does not run is not called."""
        error = _not_running(qube, state)
        outcome = QubeOutcome(qube, False, 0.0, tuple(Outcome(target, 0.0, error=error) for target in targets))  # noqa: FBT003 - it is down
        for one in outcome.outcomes:
            self._memory.forget(one.target)
            if told is not None:
                told(one)
        self._record(outcome)
        return outcome

    def _forget(self, scrape: _QubeScrape) -> None:
        """Let go of the answers as soon as nobody can share them any more: they are the largest thing there is."""
        key = tuple(scrape.targets)
        if scrape.finished is not None and scrape.waiting == 0 and self._asked.get(key) is scrape:
            del self._asked[key]

    async def _scrape(self, scrape: _QubeScrape, channel: Channel, until: float) -> None:
        loop = asyncio.get_running_loop()
        targets = {target.exporter.port: target for target in scrape.targets}
        async with asyncio.TaskGroup() as reading:

            def tell(port: int, result: Answer | ScrapeError) -> None:
                target, seconds = targets[port], loop.time() - scrape.started
                # Upstream's service ends where ours answers "Connection refused": it was there all the same.
                scrape.up = scrape.up or isinstance(result, Answer | ExporterUnreachableError)
                if isinstance(result, Answer):
                    reading.create_task(self._read(scrape, target, result, seconds=seconds, until=until))
                else:
                    self._memory.forget(target)
                    scrape.add(Outcome(target=target, seconds=seconds, error=result))

            max_body = self.config.scrape.limits.body_size
            await channel.ask(targets, deadline=until, max_body=max_body, tell=tell)
            # The qube's time ends with its last answer; that we take turns in reading it is not its fault.
            scrape_seconds = loop.time()
        scrape.finished = scrape_seconds
        self._forget(scrape)
        for target in scrape.targets:
            if target not in self._readers:  # its qube went away meanwhile
                self._memory.forget(target)
        self._record(scrape.outcome(scrape_seconds))

    async def _read(self, scrape: _QubeScrape, target: Target, answer: Answer, *, seconds: float, until: float) -> None:
        if answer.seconds is not None:
            seconds = min(answer.seconds, seconds)  # the service's own clock leaves out how long the call took to open
        reading, error = None, None
        try:
            async with asyncio.timeout_at(until):
                check(answer, self.config.scrape.limits.body_size)
                reading = await self.turns.take(scrape.readers[target].read(answer.body))
        except ScrapeError as failed:
            error = failed
        except TimeoutError:
            error = TimedOutError("its text came too late to be read in time")
        except Exception:
            # A bug of ours. It is shown as one; but a text that can trigger it must not cost the others their page.
            log.exception("bug in reading an exposition", extra={"qube": target.qube, "exporter": target.exporter.name})
            error = ExpositionError("a bug in the proxy; its log has the details, please report them")
        if error is not None:
            self._memory.forget(target)
        body_size = len(answer.body) if answer.status else 0
        scrape.add(Outcome(target=target, seconds=seconds, body_size=body_size, reading=reading, error=error))

    def _record(self, qube: QubeOutcome) -> None:
        """Tell the log and the counters."""
        self._chronicle.write(qube)
        self._count(qube.outcomes)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        self._counters.scrapes.inc()
        for outcome in outcomes:
            if outcome.error:
                self._counters.failures.labels(outcome.error.reason).inc()
            if outcome.reading:
                self._counters.lines_dropped.inc(outcome.reading.lines_dropped)


def _not_running(qube: Qube, state: str) -> NotRunningError:
    return NotRunningError(
        f"{qube.name} does not run (dom0: {state}), and was not called; start it, or leave it as it is"
    )


def check(answer: Answer, body_size_limit: int) -> None:
    """Is this the answer of an exporter that is up? Raises ScrapeError with the reason if not."""
    if answer.status == 200:
        return
    if answer.status:
        untrusted_start = f": {shown(answer.body[:80])}" if answer.body else ""
        raise HttpError(f"the exporter answered with HTTP status {answer.status}{untrusted_start}")
    untrusted_reason = answer.body
    if untrusted_reason.startswith(b"timed out"):
        raise TimedOutError("the exporter did not answer in time")
    if untrusted_reason.startswith(b"body larger"):
        raise BodySizeLimitError(f"larger than {body_size_limit} bytes (scrape.body_size_limit)")
    raise ExporterUnreachableError(
        f"no answer of the exporter on port {answer.port}: {shown(untrusted_reason)}; does it run there?"
    )


class _Chronicle:
    """
    What the log has been told of who is up. One line when something goes down, one when it is back, none between.

    A qube that is down takes its exporters with it; nothing is said of those until it is back.
    """

    def __init__(self) -> None:
        self._down: set[str] = set()
        self._dropping: set[str] = set()

    def write(self, qube: QubeOutcome) -> None:
        first_error = next((outcome.error for outcome in qube.outcomes if outcome.error), None)
        self._note("qube", qube.qube.name, None if qube.up else first_error, {"qube": qube.qube.name})
        if not qube.up:
            return
        for outcome in qube.outcomes:
            self._note_exporter(outcome)

    def write_forwarded(self, outcome: Outcome) -> None:
        """By itself: it has other deadlines, is judged less, and says little of its qube."""
        target = outcome.target
        fields = {"qube": target.qube, "exporter": target.exporter.name, "path": "/forward"}
        self._note("exporter", f"/forward {target.name}", outcome.error, fields)

    def forget(self, qube: Qube) -> None:
        """It went away, and is new when it comes again."""
        names = [name for target in qube.targets for name in (target.name, f"/forward {target.name}")]
        self._down.difference_update([qube.name, *names])
        self._dropping.difference_update(names)

    def _note_exporter(self, outcome: Outcome) -> None:
        target = outcome.target
        fields = {"qube": target.qube, "exporter": target.exporter.name}
        self._note("exporter", target.name, outcome.error, fields)
        if outcome.reading:
            self._note_dropped(target.name, outcome.reading, fields)

    def _note(self, what: str, name: str, error: ScrapeError | None, fields: dict[str, str]) -> None:
        if error is not None and name not in self._down:
            self._down.add(name)
            log.warning("%s is down", what, extra={**fields, "reason": error.reason, "error": str(error)})
        elif error is None and name in self._down:
            self._down.discard(name)
            log.info("%s is back", what, extra=fields)

    def _note_dropped(self, name: str, reading: Reading, fields: dict[str, str]) -> None:
        if not reading.lines_dropped:
            self._dropping.discard(name)
        elif name not in self._dropping:
            self._dropping.add(name)
            extra = {**fields, "lines": reading.lines_dropped, "first": reading.complaint}
            log.warning("lines dropped that Prometheus would not take", extra=extra)
