# SPDX-License-Identifier: GPL-3.0-or-later
"""How many bytes of texts may be in memory at one time."""

from federator.budget import Budget, surplus
from federator.call import Call
from federator.counters import Counters
from federator.errors import BodySizeLimitError
from federator.model import Callee
from federator.wire import SERVICE, Version2


class Holder:
    """Notes whether it had to give up."""

    def __init__(self, budget: Budget, qube: str = "") -> None:
        self.qube = qube or str(id(self))
        self.gave_up = False
        self._budget = budget

    def give_up(self) -> None:
        """What a call or a reading does."""
        self.gave_up = True
        self._budget.release(self)


def test_the_largest_gives_up() -> None:
    """Small ones are kept, whoever comes last."""
    budget = Budget(100)
    large, small, new = (Holder(budget) for _ in range(3))
    budget.hold(small, 10)
    budget.hold(large, 80)
    budget.hold(new, 20)
    assert [one.gave_up for one in (large, small, new)] == [True, False, False]
    assert budget.total == 30


def test_one_that_grows_beyond_all_gives_up_itself() -> None:
    """Its bytes are counted once, however often it tells of them."""
    budget = Budget(100)
    growing, small = Holder(budget), Holder(budget)
    budget.hold(small, 10)
    for size in range(0, 90, 10):
        budget.hold(growing, size)
    assert not growing.gave_up
    budget.hold(growing, 91)
    assert (growing.gave_up, small.gave_up, budget.total) == (True, False, 10)


def test_what_is_released_is_free() -> None:
    """And so is what shrinks to nothing."""
    budget = Budget(100)
    one, other = Holder(budget), Holder(budget)
    budget.hold(one, 100)
    budget.release(one)
    budget.release(one)
    budget.hold(other, 100)
    budget.hold(other, 0)
    assert budget.total == 0
    assert "0 of 100 bytes held by 0" in repr(budget)


def test_the_qube_that_has_most_gives_up_first() -> None:
    """However it divides what it has: its many small texts cost nobody else anything."""
    budget = Budget(100)
    honest = Holder(budget, "honest")
    budget.hold(honest, 40)
    greedy = [Holder(budget, "greedy") for _ in range(10)]
    for one in greedy:
        budget.hold(one, 10)
    assert not honest.gave_up
    assert sum(one.gave_up for one in greedy) == 4
    assert budget.total == 100


def test_who_has_an_equal_share_keeps_it() -> None:
    """Whatever the sizes of the others."""
    held = {Holder(Budget(0), name): size for name, size in [("a", 25), ("b", 80), ("c", 26), ("c", 10), ("d", 500)]}
    gone = [(one.qube, held[one]) for one in surplus(held, 100)]
    assert gone == [("d", 500), ("b", 80)]
    assert list(surplus(held, 1000)) == []


def test_where_memory_is_short_those_who_have_most_lose_half_of_all() -> None:
    """What small ones have would not help."""
    budget = Budget(1000)
    small, large, larger = (Holder(budget) for _ in range(3))
    for holder, size in ((small, 10), (large, 300), (larger, 500)):
        budget.hold(holder, size)
    budget.shed()
    assert [one.gave_up for one in (small, large, larger)] == [False, False, True]
    budget.shed()
    assert [one.gave_up for one in (small, large)] == [False, True]


def test_the_peak_is_since_it_was_asked_last() -> None:
    """It begins with what is held at that moment."""
    budget = Budget(100)
    large, small = Holder(budget, "a"), Holder(budget, "b")
    budget.hold(large, 50)
    budget.hold(small, 10)
    budget.release(large)
    assert [budget.peak(), budget.peak()] == [60, 10]


async def test_a_call_that_ended_holds_no_text() -> None:
    """Its process may take seconds to be gone, and its object as long."""
    wire = Version2()
    wire.receive(b"=2\n")
    wire.ask(milliseconds=1000, max_body=1000, endpoints=[9100])
    wire.receive(b"9100 200 900 0.1 text/plain\n" + b"x" * 500)
    call = Call(Callee("work", "qrexec", SERVICE), wire, Counters())
    await call.end()
    assert wire.held == 0


async def test_what_calls_receive_counts() -> None:
    """From its first piece on; and the call that has too much beside the others fails, with a limit as its reason."""
    budget = Budget(1000)
    calls = {}
    for name in ("large", "small"):
        wire = Version2()
        wire.receive(b"=2\n")
        wire.ask(milliseconds=1000, max_body=2000, endpoints=[9100])
        calls[name] = Call(Callee(name, "qrexec", SERVICE), wire, Counters(), budget)
        calls[name].pipe_data_received(1, b"9100 200 1900 0.1 text/plain\n" + b"x" * 300)
    assert budget.total == 600
    calls["large"].pipe_data_received(1, b"x" * 500)
    assert budget.total == 300
    assert isinstance(calls["large"].error, BodySizeLimitError)
    assert calls["small"].error is None
    for call in calls.values():
        await call.end()
