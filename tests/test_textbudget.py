# SPDX-License-Identifier: GPL-3.0-or-later
"""How many bytes of texts may be in memory at one time."""

from federator.textbudget import TextBudget


class Holder:
    """Notes whether it had to give up."""

    def __init__(self, budget: TextBudget) -> None:
        self.gave_up = False
        self._budget = budget

    def give_up(self) -> None:
        """What a call or a reading does."""
        self.gave_up = True
        self._budget.release(self)


def test_the_largest_gives_up() -> None:
    """Small ones are kept, whoever comes last."""
    budget = TextBudget(100)
    large, small, new = (Holder(budget) for _ in range(3))
    budget.hold(small, 10)
    budget.hold(large, 80)
    budget.hold(new, 20)
    assert [one.gave_up for one in (large, small, new)] == [True, False, False]
    assert budget.total == 30


def test_one_that_grows_beyond_all_gives_up_itself() -> None:
    """Its bytes are counted once, however often it tells of them."""
    budget = TextBudget(100)
    growing, small = Holder(budget), Holder(budget)
    budget.hold(small, 10)
    for size in range(0, 90, 10):
        budget.hold(growing, size)
    assert not growing.gave_up
    budget.hold(growing, 91)
    assert (growing.gave_up, small.gave_up, budget.total) == (True, False, 10)


def test_what_is_released_is_free() -> None:
    """And so is what shrinks to nothing."""
    budget = TextBudget(100)
    one, other = Holder(budget), Holder(budget)
    budget.hold(one, 100)
    budget.release(one)
    budget.release(one)
    budget.hold(other, 100)
    budget.hold(other, 0)
    assert budget.total == 0
    assert "0 of 100 bytes held by 0" in repr(budget)
