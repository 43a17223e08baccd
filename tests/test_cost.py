# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a page will take."""

import pytest

from federator.cost import FIRST_SECONDS_PER_BYTE, MARGIN, REMEMBERED, PageCost


def test_the_slowest_of_the_last_pages_counts() -> None:
    """By the byte, with something to spare; an old one is forgotten."""
    cost = PageCost()
    assert cost.expect(1000) == pytest.approx(MARGIN * 1000 * FIRST_SECONDS_PER_BYTE)
    cost.note(1_000_000, 2.0)
    cost.note(1_000_000, 0.5)
    assert cost.expect(3_000_000) == pytest.approx(MARGIN * 6.0)
    for _ in range(REMEMBERED):
        cost.note(1_000_000, 0.1)
    assert cost.expect(1_000_000) == pytest.approx(MARGIN * 0.1)


def test_a_tiny_page_says_nothing_of_a_large_one() -> None:
    """What it takes is the time of a request, and not that of its bytes."""
    cost = PageCost()
    cost.note(10, 1.0)
    assert cost.expect(1_000_000) == pytest.approx(MARGIN * 1_000_000 * FIRST_SECONDS_PER_BYTE)
