# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshot -> page: made once, compressed once, shared."""

import asyncio
import gc
import gzip
from collections.abc import Sequence
from dataclasses import replace

import pytest

from federator import config, page
from federator.counters import Counters
from federator.dom0 import Dom0Figures
from federator.fleet import Fleet
from federator.model import Outcome, QubeOutcome, Reload, Snapshot
from federator.page import Page, Pages, at_once
from federator.scheduler import Scheduler
from federator.text.merge import Merger
from tests.helpers import read
from tests.parts import toml

RELOAD = Reload(successful=True, at=1.0)


@pytest.fixture
async def fleet() -> Fleet:
    """A fleet that nobody asks."""
    return Fleet(config.parse(toml({"work": {"node": 9100}}), config.DEFAULT_PATHS[0]), Counters())


@pytest.fixture
async def pages(fleet: Fleet) -> Pages:
    """The pages of that fleet."""
    settings = fleet.config
    return Pages(fleet, Scheduler(), Dom0Figures(settings, fleet.limiter, Counters()))


def snapshot(body: bytes = b"m 1\n") -> Snapshot:
    """What one scrape found: one exporter, with this text."""
    settings = config.parse(toml({"work": {"node": 9100}}), config.DEFAULT_PATHS[0])
    (qube,) = settings.qubes
    outcome = Outcome(qube.targets[0], 0.1, len(body), reading=read(body, qube.targets[0]))
    return Snapshot(1.0, 0.1, 10.0, (QubeOutcome(qube, True, 0.1, (outcome,)),))  # noqa: FBT003 - it is up


def unzipped(pieces: Sequence[bytes]) -> bytes:
    """A compressed page as one text."""
    return gzip.decompress(b"".join(pieces))


async def test_a_snapshot_has_one_page(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many scrapers share it, it is merged once and compressed once."""
    compressed = []
    real = page.gzipped

    def counted(pieces: Sequence[bytes]) -> Sequence[bytes]:
        compressed.append(pieces)
        return real(pieces)

    monkeypatch.setattr(page, "gzipped", counted)
    shared = snapshot()
    texts = await asyncio.gather(*[pages.of(shared, RELOAD).gzipped() for _ in range(20)])
    assert len(compressed) == 1
    assert len(set(map(id, texts))) == 1
    text = unzipped(texts[0])
    assert b"".join(await pages.of(shared, RELOAD).plain()) == text
    assert b'm{qube="work",exporter="node"} 1\n' in text
    assert pages.of(snapshot(), RELOAD) is not pages.of(shared, RELOAD)


async def test_a_page_goes_with_its_snapshot(pages: Pages) -> None:
    """Nothing as large as a page is kept when nobody sends it any more."""
    one = snapshot()
    await pages.of(one, RELOAD).plain()
    assert len(pages) == 1
    del one
    gc.collect()
    assert len(pages) == 0


@pytest.mark.parametrize("as_it_is", [False, True], ids=["compressed", "as it is"])
async def test_a_scraper_that_goes_away_does_not_take_the_page_from_the_others(pages: Pages, *, as_it_is: bool) -> None:
    """It is made all the same."""
    shared = snapshot()
    of_shared = pages.of(shared, RELOAD)
    gone = asyncio.create_task(of_shared.plain() if as_it_is else of_shared.gzipped())
    await asyncio.sleep(0)
    gone.cancel()
    assert b"\nm{" in unzipped(await pages.of(shared, RELOAD).gzipped())
    assert b"\nm{" in b"".join(await pages.of(shared, RELOAD).plain())


async def test_a_text_that_is_there_already() -> None:
    """As /forward and /metrics/proxy have it."""
    text = Page(at_once(b"m 1\n"))
    assert (b"".join(await text.plain()), unzipped(await text.gzipped())) == (b"m 1\n", b"m 1\n")


async def test_a_page_that_cannot_be_made_is_forgotten(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours costs that page, and no memory: its traceback would hold the snapshot, and this one the page."""
    monkeypatch.setattr(page, "gauges", lambda *_: 1 / 0)
    snapshots = [snapshot() for _ in range(5)]
    for one in snapshots:
        with pytest.raises(ZeroDivisionError):
            await pages.of(one, RELOAD).plain()
    assert len(pages) == 0


async def test_what_departed_is_not_held_by_the_merger(
    pages: Pages, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It remembers the order of the families that it merged; there is a new one where a qube or an exporter went."""
    made: list[Merger] = []

    def merger() -> Merger:
        made.append(Merger())
        return made[-1]

    monkeypatch.setattr(page, "Merger", merger)
    for _ in range(2):
        await pages.of(snapshot(), RELOAD).plain()
    assert len(made) == 0, "the first one serves as long as nothing departs"
    fleet.reconfigure(replace(fleet.config, qubes=()))
    for _ in range(2):
        await pages.of(snapshot(), RELOAD).plain()
    assert len(made) == 1
