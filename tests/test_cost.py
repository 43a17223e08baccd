# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a page will take."""

import pytest

from federator.cost import (
    BLOCK_WEIGHT,
    LEAST_SECONDS,
    LEAST_WEIGHT,
    MARGIN,
    MOST_FOR_WAITING,
    REMEMBERED,
    SLOW_SECONDS,
    PageCost,
    weight,
)

LATER = 2 * SLOW_SECONDS


def expect(cost: PageCost, page_weight: int) -> float:
    """What its weight alone makes a page cost: that pages were slow is long ago."""
    return cost.expect(page_weight, LATER, 10.0)


def test_the_slowest_of_the_last_pages_counts() -> None:
    """By its weight, with something to spare; an old one is forgotten."""
    cost = PageCost()
    assert expect(cost, 1000) == pytest.approx(MARGIN * 1000 * LEAST_SECONDS)
    cost.note(1_000_000, 2.0, 0.0)
    cost.note(1_000_000, 0.5, 0.0)
    assert expect(cost, 3_000_000) == pytest.approx(MARGIN * 6.0)
    for _ in range(REMEMBERED):
        cost.note(1_000_000, 0.1, 0.0)
    assert expect(cost, 1_000_000) == pytest.approx(MARGIN * 0.1)


def test_cheap_pages_do_not_make_a_dear_one_late() -> None:
    """A qube may send a text that costs nothing, time after time, and then another one."""
    cost = PageCost()
    for _ in range(REMEMBERED):
        cost.note(100_000_000, 0.001, 0.0)
    assert expect(cost, 1_000_000) == pytest.approx(MARGIN * 1_000_000 * LEAST_SECONDS)


def test_a_light_page_says_nothing_of_a_heavy_one() -> None:
    """What it takes is the time of a request, and not that of its bytes."""
    cost = PageCost()
    cost.note(10, 1.0, 0.0)
    assert expect(cost, 1_000_000) == pytest.approx(MARGIN * 1_000_000 * LEAST_SECONDS)


def test_no_page_is_expected_to_be_faster_than_the_slowest_of_late() -> None:
    """On a busy machine a light one waits, too. But the exporters keep most of the time."""
    cost = PageCost()
    for now, seconds in ((0.0, 0.2), (1.0, 0.7), (2.0, 0.4), (3.0, 0.1)):
        cost.note(10, seconds, now)
    assert cost.expect(10, 4.0, 10.0) == pytest.approx(MARGIN * 0.7)
    assert cost.expect(10, 1.5 + SLOW_SECONDS, 10.0) == pytest.approx(MARGIN * 0.4)
    assert cost.expect(10, 2.5 + SLOW_SECONDS, 10.0) == pytest.approx(MARGIN * 0.1)
    cost.note(10, 60.0, 5.0 + SLOW_SECONDS)
    assert cost.expect(10, 5.0 + SLOW_SECONDS, 10.0) == pytest.approx(MOST_FOR_WAITING * 10.0)


def test_a_page_in_which_the_machine_stood_still_is_forgotten() -> None:
    """Slow exporters were down after it: for good, where the page without them is too light to be noted."""
    cost = PageCost()
    cost.note(1_000_000, 3600.0, 0.0)
    assert expect(cost, LEAST_WEIGHT) < 0.5
    for _ in range(REMEMBERED):
        cost.note(LEAST_WEIGHT, 0.0, 0.0)
    assert expect(cost, 1_000_000) == pytest.approx(MARGIN * 1_000_000 * LEAST_SECONDS)


def test_blocks_weigh_something() -> None:
    """A page of many small ones takes longer than its bytes say."""
    assert weight(100, 10) == 100 + 10 * BLOCK_WEIGHT
