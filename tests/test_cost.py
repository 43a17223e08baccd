# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a page will take."""

import pytest

from federator.cost import BLOCK_WEIGHT, LEAST_SECONDS, MARGIN, REMEMBERED, PageCost, weight


def test_the_slowest_of_the_last_pages_counts() -> None:
    """By its weight, with something to spare; an old one is forgotten."""
    cost = PageCost()
    assert cost.expect(1000) == pytest.approx(MARGIN * 1000 * LEAST_SECONDS)
    cost.note(1_000_000, 2.0)
    cost.note(1_000_000, 0.5)
    assert cost.expect(3_000_000) == pytest.approx(MARGIN * 6.0)
    for _ in range(REMEMBERED):
        cost.note(1_000_000, 0.1)
    assert cost.expect(1_000_000) == pytest.approx(MARGIN * 0.1)


def test_cheap_pages_do_not_make_a_dear_one_late() -> None:
    """A qube may send a text that costs nothing, time after time, and then another one."""
    cost = PageCost()
    for _ in range(REMEMBERED):
        cost.note(100_000_000, 0.001)
    assert cost.expect(1_000_000) == pytest.approx(MARGIN * 1_000_000 * LEAST_SECONDS)


def test_a_light_page_says_nothing_of_a_heavy_one() -> None:
    """What it takes is the time of a request, and not that of its bytes."""
    cost = PageCost()
    cost.note(10, 1.0)
    assert cost.expect(1_000_000) == pytest.approx(MARGIN * 1_000_000 * LEAST_SECONDS)


def test_blocks_weigh_something() -> None:
    """A page of many small ones takes longer than its bytes say."""
    assert weight(100, 10) == 100 + 10 * BLOCK_WEIGHT
