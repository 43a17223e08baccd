# SPDX-License-Identifier: GPL-3.0-or-later
"""How often something may be done."""

from federator.pace import Pace


def test_so_many_at_once_and_then_at_an_even_pace() -> None:
    """Each key by itself; a pause allows a burst again."""
    pace = Pace(interval=1.0, burst=3)
    assert [pace.reserve("a", 10.0) for _ in range(6)] == [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]
    assert pace.reserve("b", 10.0) == 0.0
    assert pace.reserve("a", 13.0) == 1.0, "three are still to be done before this one"
    assert [pace.reserve("a", 1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 1.0]


def test_a_pace_that_is_kept_never_waits() -> None:
    """A scraper that comes once a second, for ever."""
    pace = Pace(interval=1.0, burst=1)
    assert [pace.reserve("a", float(second)) for second in range(100)] == [0.0] * 100


def test_looking_how_long_to_wait_changes_nothing() -> None:
    """What is refused does not make the wait longer."""
    pace = Pace(interval=1.0, burst=2)
    assert [pace.reserve("a", 0.0), pace.reserve("a", 0.0)] == [0.0, 0.0]
    assert [pace.wait("a", now) for now in (0.0, 0.0, 0.5, 1.0, 9.0)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert pace.wait("b", 0.0) == 0.0


def test_keys_whose_pause_is_over_can_be_forgotten() -> None:
    """Nothing changes for anybody by it."""
    pace = Pace(interval=1.0, burst=1)
    for key, now in (("a", 0.0), ("b", 1.0)):
        pace.reserve(key, now)
    pace.forget(1.5)
    assert (len(pace), pace.wait("b", 1.5)) == (1, 0.5)


def test_keys_that_are_not_used_any_more_are_forgotten() -> None:
    """They hold no memory, and are new when they come again."""
    pace = Pace(interval=1.0, burst=1)
    for key in ("a", "b"):
        pace.reserve(key, 0.0)
    pace.retain({"b"})
    assert (pace.reserve("a", 0.0), pace.reserve("b", 0.0)) == (0.0, 1.0)
