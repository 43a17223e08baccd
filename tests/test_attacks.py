# SPDX-License-Identifier: GPL-3.0-or-later
"""The short form of the attacks; `make attacks` is the long one."""

import sys
from pathlib import Path

import pytest

from tests.attacks import ATTACKS, Attack, run, seen_by_prometheus
from tests.siege import siege

# Each starts the daemon, and a hostile crowd.
pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]


@pytest.mark.parametrize("attack", [one for one in ATTACKS if not one.hostile], ids=lambda attack: attack.name)
def test_a_client_costs_an_honest_scraper_nothing(attack: Attack) -> None:
    """Its pages come in time, and are complete and new."""
    seen, _ = run(attack, sys.executable, 3.0)
    assert seen.wrong == []
    assert seen.good == seen.scrapes > 0


def test_qubes_of_the_worst_kinds_cost_prometheus_no_scrape(tmp_path: Path) -> None:
    """A real one, with its default timeout, and a daemon with 400 MB of memory."""
    seen = seen_by_prometheus(tmp_path, 2)
    assert seen["up"] == seen["complete"] == seen["scrapes"]


def test_all_attacks_at_once_leave_nothing_behind(tmp_path: Path) -> None:
    """Files and processes; and the daemon lives."""
    before, after, seen = siege(tmp_path, seconds=0, calm=0)
    assert (after.files, after.processes) == (before.files, before.processes)
    assert "the daemon is gone" not in seen.wrong
