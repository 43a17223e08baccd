# SPDX-License-Identifier: GPL-3.0-or-later
"""
The short form of the attacks; `make attacks` is the long one.

Not here: `python -m tests.attacks --prometheus`, which says how fast this machine is with twenty hostile qubes on it.
"""

import sys
from pathlib import Path

import pytest

from tests.attacks import ATTACKS, Attack, run
from tests.siege import siege

# Each starts the daemon, and a hostile crowd.
pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]


@pytest.mark.parametrize("attack", [one for one in ATTACKS if not one.hostile], ids=lambda attack: attack.name)
def test_a_client_costs_an_honest_scraper_nothing(attack: Attack) -> None:
    """Its pages come in time, and are complete and new."""
    seen, _ = run(attack, sys.executable, 3.0)
    assert seen.wrong == []
    assert seen.good == seen.scrapes > 0


def test_all_attacks_at_once_leave_nothing_behind(tmp_path: Path) -> None:
    """Files and processes; and the daemon lives."""
    before, after, seen = siege(tmp_path, seconds=0, calm=0)
    assert (after.files, after.processes) == (before.files, before.processes)
    assert "the daemon is gone" not in seen.wrong
