# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon with a watch on its event loop. SIGUSR1 resets the watch, SIGUSR2 writes the longest hold to a file."""

import os
import selectors
import signal
import sys
import time
from pathlib import Path
from typing import Any

from federator.cli import main


class Watched(selectors.DefaultSelector):
    """Measures how long the event loop does not look at its sockets and pipes."""

    longest = 0.0
    since = float("inf")

    def select(self, timeout: float | None = None) -> Any:
        """The event loop has called everything that was ready, and waits for more."""
        Watched.longest = max(Watched.longest, time.perf_counter() - Watched.since)
        ready = super().select(timeout)
        Watched.since = time.perf_counter()
        return ready


def reset(*_: object) -> None:
    """Start a new measurement."""
    Watched.longest = 0.0


def tell(*_: object) -> None:
    """Write the seconds to a file, which appears when it is complete."""
    path = Path(os.environ["BENCH_HOLDS"])
    path.with_suffix(".new").write_text(repr(Watched.longest), encoding="utf-8")
    path.with_suffix(".new").rename(path)


selectors.DefaultSelector = Watched  # type: ignore[misc]
signal.signal(signal.SIGUSR1, reset)
signal.signal(signal.SIGUSR2, tell)
sys.exit(main())
