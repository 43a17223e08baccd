# SPDX-License-Identifier: GPL-3.0-or-later
"""
Snapshot -> the bytes of /metrics: merged once and compressed once, however many scrapers share the snapshot.

Owns what is on the page, and when it is made. Must not know HTTP, nor how a snapshot came about.
"""

import asyncio
import zlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from federator.dom0 import Dom0Figures
from federator.fleet import Fleet
from federator.gauges import gauges
from federator.model import Reload, Snapshot
from federator.scheduler import Scheduler
from federator.text.merge import Merger

# zlib's default level costs more than reading and merging together; the first one gives most of what there is to gain.
GZIP_LEVEL = 1
GZIP_WINDOW = 16 + zlib.MAX_WBITS  # 16: with gzip's header


# Names of qubes, or None for everything.
Wanted = frozenset[str] | None


class Page:
    """
    One text to be sent, in pieces, which are never joined: that would take twice the memory, and time.

    It goes on being made where the scraper that asked first goes away: others may share it.
    """

    def __init__(self, making: Coroutine[Any, Any, Sequence[bytes]]) -> None:
        self._plain = asyncio.get_running_loop().create_task(making)
        self._gzipped: asyncio.Task[Sequence[bytes]] | None = None

    def when_it_fails(self, forget: Callable[[], object]) -> None:
        """Forget a page that cannot be made: its traceback holds the snapshot, which holds the page."""
        self._plain.add_done_callback(lambda task: forget() if task.cancelled() or task.exception() else None)

    async def plain(self) -> Sequence[bytes]:
        """As it is."""
        return await asyncio.shield(self._plain)

    async def gzipped(self) -> Sequence[bytes]:
        """Compressed. In a thread: zlib lets go of the interpreter."""
        if self._gzipped is None:
            self._gzipped = asyncio.get_running_loop().create_task(self._compress())
        return await asyncio.shield(self._gzipped)

    async def _compress(self) -> Sequence[bytes]:
        return await asyncio.to_thread(gzipped, await self.plain())


class Pages:
    """Makes pages. A page is remembered for as long as somebody has its snapshot."""

    def __init__(self, fleet: Fleet, scheduler: Scheduler, dom0: Dom0Figures) -> None:
        self._fleet = fleet
        self._dom0 = dom0
        self._scheduler = scheduler
        self._merger = Merger()
        self._departures = fleet.departures
        self._pages: WeakKeyDictionary[Snapshot, dict[Wanted, Page]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return sum(map(len, self._pages.values()))

    def of(self, snapshot: Snapshot, reload: Reload, wanted: Wanted = None) -> Page:
        """
        The snapshot's page. `reload` is told on it, as it was when the page was first wanted.

        `wanted`: the qubes whose figures of dom0 are on it; None for all figures that there are.
        """
        pages = self._pages.setdefault(snapshot, {})
        page = pages.get(wanted)
        if page is None:
            page = pages[wanted] = Page(self._merged(snapshot, reload, wanted))
            page.when_it_fails(lambda: pages.pop(wanted, None))
        return page

    async def _merged(self, snapshot: Snapshot, reload: Reload, wanted: Wanted) -> Sequence[bytes]:
        if self._departures != self._fleet.departures:
            self._departures = self._fleet.departures
            self._merger = Merger()  # the old one's plans hold what the departed had
        ours = gauges(snapshot.qubes, snapshot.allowed, reload)
        theirs = [outcome.reading for outcome in snapshot.outcomes if outcome.reading]
        of_dom0 = self._dom0.figures.reading(asyncio.get_running_loop().time(), wanted)
        return await self._scheduler.run(self._merger.merge([ours, of_dom0, *theirs]), first=True)


async def at_once(text: bytes) -> Sequence[bytes]:
    """The making of a page that is there already."""
    return [text]


def gzipped(pieces: Sequence[bytes]) -> Sequence[bytes]:
    """A text, compressed."""
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    return [*map(compressor.compress, pieces), compressor.flush()]
