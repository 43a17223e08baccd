# SPDX-License-Identifier: GPL-3.0-or-later
"""The short form of the soak; `make soak` is the long one."""

from pathlib import Path

import pytest

from tests.soak import soak

# It makes hundreds of scrapes, and measures the daemon's memory.
pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]

# Python's allocator keeps some of what the largest pages needed; what grows with every scrape is more in the long form.
TOLERATED_KILOBYTES = 20_000


def test_what_the_daemon_holds_ends_where_it_began(tmp_path: Path) -> None:
    """File descriptors, processes, threads and memory, after qubes came, went and failed."""
    before, after, seen = soak(tmp_path, seconds=0)
    assert (after.files, after.processes, after.threads) == (before.files, before.processes, before.threads)
    assert after.kilobytes < before.kilobytes + TOLERATED_KILOBYTES
    assert seen["bugs"] == 0
    assert {"refused", "closed", "timeout", "protocol", "exposition", "sample_limit"} <= set(seen)
