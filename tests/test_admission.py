# SPDX-License-Identifier: GPL-3.0-or-later
"""Which requests are served at one time."""

from contextlib import ExitStack

import pytest

from federator.admission import MAX_REQUESTS, MAX_REQUESTS_PER_ADDRESS, Admission
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


def test_one_address_leaves_places_for_others() -> None:
    """Half of them; and there is an end to all."""
    admission = Admission(1000)
    with ExitStack() as stack:
        for number in range(MAX_REQUESTS_PER_ADDRESS):
            stack.enter_context(admission.place("greedy", number))
        with pytest.raises(BusyError, match="of this address"), admission.place("greedy", "more"):
            pass
        for number in range(MAX_REQUESTS_PER_ADDRESS, MAX_REQUESTS):
            stack.enter_context(admission.place("honest", number))
        with pytest.raises(BusyError, match=f"{MAX_REQUESTS} scrapes"), admission.place("other", "more"):
            pass
    assert len(admission) == 0


def test_a_place_is_given_back_whatever_happens() -> None:
    """An exception in the middle included."""
    admission = Admission(1000)
    with pytest.raises(ZeroDivisionError), admission.place("a", "page"):
        raise ZeroDivisionError
    assert len(admission) == 0


def test_one_address_leaves_bytes_for_others() -> None:
    """Half of them. What was expected counts until it is known."""
    admission = Admission(1000)
    with admission.place("greedy", "a", 300) as first:
        with pytest.raises(BusyError, match="memory_limit"), admission.place("greedy", "b", 201):
            pass
        with admission.place("greedy", "c", 200), admission.place("honest", "d", 500):
            with pytest.raises(BusyError), admission.place("third", "e", 1):
                pass
            with pytest.raises(BusyError):
                admission.resize(first, 301)
            admission.resize(first, 100)
            with admission.place("third", "e", 200):
                pass
    assert len(admission) == 0


def test_a_page_by_itself_is_never_too_large() -> None:
    """It has a limit of its own, and a page of no bytes takes none."""
    admission = Admission(1000)
    with admission.place("a", "small"), admission.place("a", "large", 2000), admission.place("a", "tiny"):
        assert len(admission) == 3
