# SPDX-License-Identifier: GPL-3.0-or-later
"""
One try of each line of policy that [dom0] needs, for `doctor`.

Owns which calls that takes: one a line, and none after dom0 was silent. Must not know what is made of the answers.
"""

import asyncio

from federator import dom0_replies, reasons
from federator.call import ConnectionLimiter
from federator.counters import Counters
from federator.dom0_calls import Dom0Calls
from federator.dom0_figures import STATS_SECONDS, Figures
from federator.dom0_findings import Tried
from federator.dom0_replies import (
    INFO,
    LIST,
    POOL,
    POOL_USAGE,
    POOLS,
    PROPERTIES,
    PROPERTY,
    STATS,
    VOLUME,
    WITHOUT_VOLUMES,
)
from federator.errors import ProtocolError, RefusedError, ScrapeError, TimedOutError
from federator.model import Config
from federator.policy import ADMIN_QUBE, ANY_QUBE, Need, dom0_needs, of_class
from federator.targets import DOM0

# dom0 tells its statistics every three seconds; one time may be late.
STATS_WITHIN = 3 * STATS_SECONDS


async def probe(config: Config) -> list[Tried]:
    """What came of a call for each line, in their order. Raises nothing."""
    calls = Dom0Calls(config.qrexec, ConnectionLimiter(config.qrexec.connect_limit), Counters(), Figures({}))
    probing = _Probe(calls)
    try:
        return [await probing.attempt(need) for need in dom0_needs(config)]
    finally:
        await calls.all_ended()


class _Probe:
    """What one run knows so far."""

    def __init__(self, calls: Dom0Calls) -> None:
        self._calls = calls
        self._silent = False
        self._pool = ""
        self._listed: dict[str, tuple[str, str]] = {}

    async def attempt(self, need: Need) -> Tried:
        """One line."""
        if self._silent:
            return Tried(need, skipped="not tried, since dom0 was silent before")
        target = DOM0 if need.target == ADMIN_QUBE else self._qube_for(need)
        of_pool = need.service in {POOL, POOL_USAGE}
        argument = self._pool if of_pool else need.argument.strip("*+")
        if target is None or (of_pool and not argument):
            return Tried(need, skipped="dom0 named nothing that it could be tried with")
        try:
            await self._call(need, target, argument)
        except ScrapeError as error:
            self._silent = isinstance(error, TimedOutError)
            return Tried(need, error)
        return Tried(need)

    async def _call(self, need: Need, target: str, argument: str) -> None:
        """Raises ScrapeError."""
        if need.service == STATS:
            await self._hear()
        elif need.service == LIST and need.target != ADMIN_QUBE:
            if not self._qubes():
                raise RefusedError("dom0 lists itself and no qube")
        elif need.service == PROPERTIES:
            await self._properties(target)
        else:
            self._learn(need.service, await self._calls.ask(need.service, target, argument))

    def _learn(self, service: str, answer: bytes) -> None:
        if service == POOLS:
            self._pool = next(iter(dom0_replies.pools(answer)), "")
        elif service == LIST:
            self._listed = dom0_replies.classes(answer)

    async def _properties(self, qube: str) -> None:
        """One by one is as good."""
        try:
            await self._calls.ask(PROPERTIES, qube, "")
        except RefusedError as error:
            try:
                await self._calls.ask(PROPERTY, qube, INFO[0])
            except ScrapeError:
                raise error from None

    async def _hear(self) -> None:
        """Until the first event."""
        heard = False

        def hear(qube: str, told: dom0_replies.Numbers) -> None:
            nonlocal heard
            del qube, told
            heard = True
            limit.reschedule(asyncio.get_running_loop().time())

        try:
            async with asyncio.timeout(STATS_WITHIN) as limit:
                await self._calls.listen(STATS, dom0_replies.Events(hear))
        except TimeoutError:
            if not heard:
                raise reasons.late(DOM0) from None
        else:
            raise ProtocolError("dom0 ended admin.vm.Stats without an event")

    def _qubes(self) -> list[str]:
        return [name for name, (its_class, _) in self._listed.items() if its_class != "AdminVM"]

    def _qube_for(self, need: Need) -> str | None:
        """Some qube that such a question is asked of. A list without any says that its lines are missing."""
        if need.service == LIST and self._listed and not self._qubes():
            return DOM0
        for name in self._qubes():
            its_class = self._listed[name][0]
            if need.target in {ANY_QUBE, of_class(its_class)} and not (
                need.service == VOLUME and its_class in WITHOUT_VOLUMES
            ):
                return name
        return None
