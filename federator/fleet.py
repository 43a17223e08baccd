# SPDX-License-Identifier: GPL-3.0-or-later
"""
Which qubes there are, and for each of them its channel and its readers.

Owns their lives: they come and go with the configuration and with what dom0 says of what runs. There is one fleet for
the life of the daemon, and a reload changes it in place. Must not know when or why a qube is asked.
"""

import asyncio
from collections.abc import Container, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from federator import shares
from federator.budget import Budget
from federator.call import ConnectionLimiter
from federator.channel import Channel
from federator.counters import Counters
from federator.discovery import Discoverer
from federator.errors import ScrapeError, StoppingError
from federator.model import Config, Qube, Scrape, Target
from federator.pace import Pace
from federator.targets import DOM0, PAUSED, RUNNING, qubes_with_discovered
from federator.text.exposition import Reader
from federator.text.memory import Memory

# dom0 answers in some 20 ms; a page waits no longer than this for it, if there is an older answer to go by.
PATIENCE_SECONDS = 1.0

# Each exporter is asked so many times at once, by clients that come one after the other; then once in
# scrape.min_interval.
ASKED_AT_ONCE = 10

T = TypeVar("T")

_NO_STATES: Mapping[str, str] = {}


@dataclass(slots=True)
class _Member:
    """One qube of the fleet."""

    channel: Channel
    readers: dict[Target, Reader] = field(default_factory=dict)


class Fleet:
    """
    The qubes, in the order of the page.

    `own_name` is that of the qube we are in, which qrexec does not let us call. `departures` counts how often a qube or
    an exporter went away.
    """

    def __init__(self, config: Config, counters: Counters, *, own_name: str = "") -> None:
        self.config = config
        self.qubes: tuple[Qube, ...] = ()
        self.departures = 0
        self.closing = False
        self._counters = counters
        self._own_name = own_name
        self.limiter = ConnectionLimiter(config.qrexec.connect_limit)
        self._memory = _memory_of(config.scrape)
        self.texts = Budget(shares.in_flight(config.scrape))  # that are received and read
        self.texts_read = Budget(shares.read(config.scrape))  # that wait for others
        self._pace = Pace(config.scrape.min_interval, ASKED_AT_ONCE)
        self._members: dict[str, _Member] = {}
        self._tasks: set[asyncio.Task[Any]] = set()  # that ask qubes
        self._ends: set[asyncio.Task[None]] = set()  # of channels that nobody needs any more
        self._discoverer: Discoverer | None = None
        self._states: Mapping[str, str] = {}
        self._followed: Config | None = None
        self.reconfigure(config)

    def __repr__(self) -> str:
        channels = [member.channel for member in self._members.values()]
        return f"<Fleet of {len(self.qubes)} qubes, {len(self.targets)} targets: {channels}>"

    def reconfigure(self, config: Config) -> None:
        """
        Be what this configuration says, from now on.

        What it says as the last one did stays: calls that are open, what dom0 said, what is remembered of texts. What
        failed is forgotten, since somebody may have mended it.
        """
        ours, theirs = self.config.scrape, config.scrape
        if (ours.limits, ours.memory_limit) != (theirs.limits, theirs.memory_limit):
            self._memory = _memory_of(theirs)  # what was judged, was judged by the old limits
            for member in self._members.values():
                member.readers.clear()
        self.config = config
        self.limiter.limit = config.qrexec.connect_limit
        self.texts.limit = shares.in_flight(config.scrape)
        self.texts_read.limit = shares.read(config.scrape)
        self._pace.interval = config.scrape.min_interval
        self._reconfigure_discovery(config)
        self._follow()
        for qube in self.qubes:
            self._members[qube.name].channel.reconfigure(qube, config.qrexec)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target there is now, in the order of the page."""
        return tuple(target for qube in self.qubes for target in qube.targets)

    def channel(self, qube_name: str) -> Channel:
        """The way to one of the qubes."""
        return self._members[qube_name].channel

    def reader(self, target: Target) -> Reader:
        """The reader of one of the targets."""
        return self._members[target.qube].readers[target]

    def remembers(self, target: Target) -> bool:
        """Is there a text of this target to follow?"""
        return self._memory.recall(target) is not None

    def forget_text(self, target: Target) -> None:
        """The target failed or does not run: what its text was like is of no more use."""
        self._memory.forget(target)

    def forget_if_gone(self, targets: Iterable[Target]) -> None:
        """What was read of targets that went away meanwhile is of no more use."""
        for target in targets:
            member = self._members.get(target.qube)
            if member is None or target not in member.readers:
                self._memory.forget(target)

    async def refresh(self, seconds: float, patience: float = PATIENCE_SECONDS) -> None:
        """
        See which qubes run, where the configuration wants that.

        It takes `patience` at most where there is an older answer to go by, and `seconds` where there is none.
        """
        discoverer = self._discoverer
        if discoverer is not None and not self.closing:
            await discoverer.refresh(min(seconds, patience) if discoverer.known else seconds)
            if discoverer is self._discoverer and not self.closing:
                self._follow()

    def state(self, qube: Qube) -> str:
        """As dom0 said last; Running where it does not say, so that the qube is called and answers for itself."""
        if qube.transport == "local" or qube.name == DOM0 or self._discoverer is None:
            return RUNNING
        return self._discoverer.state(qube.name)

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
    def states(self) -> Mapping[str, str]:
        """What dom0 said last; nothing where it did not, or too long ago."""
        return self._states if self.knows_states else _NO_STATES

    @property
    def dotted_names(self) -> Container[str]:
        """Every name with a dot that dom0 ever told."""
        return self._discoverer.dotted_names if self._discoverer else ()

    @property
    def discovery_error(self) -> ScrapeError | None:
        """Why dom0 does not say which qubes run, if it does not."""
        return self._discoverer.error if self._discoverer else None

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin something that asks qubes, and goes on where nobody waits for it any more; `close` ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def check_running(self) -> None:
        """Raises StoppingError once the fleet is being closed."""
        if self.closing:
            raise StoppingError("the proxy is being stopped")

    async def close(self) -> None:
        """End what is being asked, and all calls."""
        self.closing = True
        for task in self._tasks:
            task.cancel()
        if self._discoverer is not None:
            await self._discoverer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # one of them might open a call otherwise
        await asyncio.gather(*(member.channel.close() for member in self._members.values()), *self._ends)

    def _reconfigure_discovery(self, config: Config) -> None:
        if config.discovery is None:
            if self._discoverer is not None:
                self._end(asyncio.get_running_loop().create_task(self._discoverer.close()))
            self._discoverer = None
        elif self._discoverer is None:
            self._discoverer = Discoverer(config.discovery, config.qrexec, self.limiter, self._counters)
        else:
            self._discoverer.reconfigure(config.discovery, config.qrexec)

    def _follow(self) -> None:
        """Have a channel and readers for every qube that there is now, and none for those that went."""
        states = self._discoverer.states if self._discoverer else _NO_STATES
        if states is self._states and self.config is self._followed:
            return
        self._followed = self.config
        qubes = qubes_with_discovered(self.config, states, self._own_name)
        started = {name for name, state in states.items() if state == RUNNING and self._states.get(name) != RUNNING}
        before, self._states, self.qubes = self.targets, states, qubes
        self._leave(before)
        for qube in qubes:
            member = self._members.get(qube.name)
            if member is None:
                channel = Channel(qube, self.config.qrexec, self.limiter, self._counters, self.texts, self._pace)
                member = self._members[qube.name] = _Member(channel)
            elif qube.name in started:
                member.channel.reconfigure(qube, self.config.qrexec)
            for target in qube.targets:
                if target not in member.readers:
                    member.readers[target] = Reader(target, self.config.scrape.limits, self._memory)

    def _leave(self, before: Iterable[Target]) -> None:
        """Let go of channels and readers that are not for the qubes of now."""
        now = {qube.name: qube for qube in _with_paused(self.config, self._states, self._own_name)}
        for name, member in list(self._members.items()):
            if name not in now or not member.channel.serves(now[name], self.config.qrexec):
                self._end(asyncio.get_running_loop().create_task(member.channel.retire()))
                del self._members[name]
        gone = set(before).difference(self.targets)
        for target in gone:
            self._memory.forget(target)
            if target.qube in self._members:
                self._members[target.qube].readers.pop(target, None)
        if gone:
            self.departures += 1
            self._pace.retain({(target.qube, target.exporter.endpoint) for target in self.targets})

    def _end(self, end: asyncio.Task[None]) -> None:
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)


def _with_paused(config: Config, states: Mapping[str, str], own_name: str) -> tuple[Qube, ...]:
    """With the paused qubes that discovery would find. They keep their calls: dom0 may refuse new ones later."""
    as_running = {name: RUNNING if state == PAUSED else state for name, state in states.items()}
    return qubes_with_discovered(config, as_running, own_name)


def _memory_of(settings: Scrape) -> Memory:
    return Memory(settings.limits, shares.remembered(settings))
