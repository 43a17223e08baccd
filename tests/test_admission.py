# SPDX-License-Identifier: GPL-3.0-or-later
"""Which requests are served at one time."""

from contextlib import ExitStack, suppress

import pytest

from federator.admission import MAX_REQUESTS, Admission
from federator.errors import BusyError


def test_requests_for_one_page_share_a_place() -> None:
    """However many they are; it is free again when the last of them is gone."""
    admission = Admission(1000)
    with ExitStack() as first, ExitStack() as others:
        first.enter_context(admission.place("a", "page"))
        for number in range(100):
            others.enter_context(admission.place(f"b{number}", "page"))
        assert len(admission) == 1
        first.close()
        assert len(admission) == 1
        others.close()
        assert len(admission) == 0


def test_a_few_clients_leave_places_for_others() -> None:
    """One gets half of them, the next one half of the rest; and there is an end to all."""
    admission = Admission(1000)
    with ExitStack() as stack:
        taken = []
        for client in ("greedy", "its friend", "another"):
            taken.append(0)
            with suppress(BusyError):
                while True:
                    stack.enter_context(admission.place(client, (client, taken[-1])))
                    taken[-1] += 1
        assert taken == [20, 10, 5]
        with pytest.raises(BusyError, match="this address has 5 of the 40 places"), admission.place("another", "more"):
            pass
        for number in range(5):
            stack.enter_context(admission.place(f"honest {number}", number))
        assert len(admission) == MAX_REQUESTS
        with pytest.raises(BusyError, match=f"{MAX_REQUESTS} requests"), admission.place("other", "more"):
            pass
    assert len(admission) == 0


def test_a_place_is_given_back_whatever_happens() -> None:
    """An exception in the middle included."""
    admission = Admission(1000)
    with pytest.raises(ZeroDivisionError), admission.place("a", "page"):
        raise ZeroDivisionError
    assert len(admission) == 0


def test_one_address_leaves_bytes_for_others() -> None:
    """Half of them, or a quarter if it has one page; and so does the next one. What was expected counts at first."""
    admission = Admission(1000)
    with admission.place("greedy", "a", 300) as first:
        with pytest.raises(BusyError, match="memory_limit"), admission.place("greedy", "b", 201):
            pass
        with admission.place("greedy", "c", 200):
            with pytest.raises(BusyError), admission.place("its friend", "d", 376):
                pass
            with admission.place("its friend", "d", 375):
                with pytest.raises(BusyError), admission.place("its friend", "e", 1):
                    pass
                with pytest.raises(BusyError):
                    admission.resize(first, 301, "greedy")
                with admission.place("honest", "f", 93):
                    pass
                admission.resize(first, 100, "greedy")
                with admission.place("honest", "f", 243):
                    pass
    assert len(admission) == 0


def test_who_asks_for_the_page_of_a_greedy_client_is_not_refused_with_it() -> None:
    """The page counts for who may have it; the greedy client is refused."""
    admission = Admission(1000)
    with ExitStack() as stack:
        stack.enter_context(admission.place("greedy", "a", 200))
        shared = stack.enter_context(admission.place("greedy", "b"))
        assert stack.enter_context(admission.place("honest", "b")) is shared
        with pytest.raises(BusyError):
            admission.resize(shared, 400, "greedy")
        admission.resize(shared, 400, "honest")
        with admission.place("greedy", "c", 1):
            pass
        with pytest.raises(BusyError), admission.place("honest", "d", 1):
            pass


def test_a_page_counts_for_those_who_still_read_it() -> None:
    """A scraper that has its page gets the next one, while a slow reader keeps the last one."""
    admission = Admission(1000)
    with ExitStack() as slow:
        shared = slow.enter_context(admission.place("slow reader", "a"))
        with admission.place("honest", "a"):
            admission.resize(shared, 400, "honest")
        with admission.place("honest", "b", 400):
            pass
        with pytest.raises(BusyError), admission.place("slow reader", "b", 101):
            pass


def test_a_page_by_itself_is_never_too_large() -> None:
    """It has a limit of its own, and a page of no bytes takes none."""
    admission = Admission(1000)
    with admission.place("a", "small"), admission.place("a", "large", 2000), admission.place("a", "tiny"):
        assert len(admission) == 3
