# SPDX-License-Identifier: GPL-3.0-or-later
"""Which requests are served at one time."""

from contextlib import ExitStack

import pytest

from federator.admission import MAX_REQUESTS, MAX_REQUESTS_PER_ADDRESS, Admission
from federator.errors import BusyError


def test_requests_for_one_page_share_a_place() -> None:
    """However many they are; it is free again when the last of them is gone."""
    admission = Admission()
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
    admission = Admission()
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
    admission = Admission()
    with pytest.raises(ZeroDivisionError), admission.place("a", "page"):
        raise ZeroDivisionError
    assert len(admission) == 0
