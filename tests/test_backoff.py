# SPDX-License-Identifier: GPL-3.0-or-later
"""When something that failed may be tried again."""

import pytest

from federator.backoff import JITTER, Backoff


def test_the_wait_doubles_up_to_its_limit() -> None:
    """Each failure in a row doubles it, and it is spread, so that qubes do not come back together."""
    backoff = Backoff(initial=5.0, maximum=30.0)
    assert backoff.wait(now=0.0) == 0.0
    waits = []
    for number in range(6):
        backoff.failed(now=100.0 * number)
        waits.append(backoff.wait(now=100.0 * number))
    for wait, nominal in zip(waits, (5, 10, 20, 30, 30, 30), strict=True):
        assert nominal * (1 - JITTER) <= wait <= nominal * (1 + JITTER)
    assert len(set(waits)) == len(waits)


def test_the_wait_gets_shorter_as_time_passes() -> None:
    """And is over in the end."""
    backoff = Backoff(initial=10.0, maximum=10.0)
    backoff.failed(now=50.0)
    wait = backoff.wait(now=50.0)
    assert backoff.wait(now=51.0) == pytest.approx(wait - 1)
    assert backoff.wait(now=50.0 + wait) == 0.0


def test_a_success_begins_anew() -> None:
    """What failed before says nothing of what fails next."""
    backoff = Backoff(initial=10.0, maximum=1000.0, failures=5)
    backoff.failed(now=0.0)
    assert backoff.wait(now=0.0) > 100
    backoff.reset()
    assert (backoff.failures, backoff.wait(now=0.0)) == (0, 0.0)
    backoff.failed(now=0.0)
    assert backoff.wait(now=0.0) <= 10.0 * (1 + JITTER)


def test_each_try_has_a_wait_behind_it_whatever_comes_of_it() -> None:
    """A success does not take it away, and forgets the failures; a failure makes it longer."""
    backoff = Backoff(initial=10.0, maximum=1000.0, failures=3)
    backoff.tried(now=0.0)
    backoff.succeeded()
    assert (backoff.failures, backoff.wait(now=0.0), backoff.wait(now=10.0)) == (0, 10.0, 0.0)
    for _ in range(2):
        backoff.failed(now=0.0)
    wait = backoff.wait(now=0.0)
    backoff.tried(now=0.0)
    assert backoff.wait(now=0.0) == wait > 10.0


def test_ten_thousand_failures_are_no_overflow() -> None:
    """A qube may be halted for months."""
    backoff = Backoff(initial=5.0, maximum=300.0, failures=10_000)
    backoff.failed(now=0.0)
    assert backoff.wait(now=0.0) <= 300.0 * (1 + JITTER)
