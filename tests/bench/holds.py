# SPDX-License-Identifier: GPL-3.0-or-later
"""
The daemon, with a watch on its event loop: SIGUSR1 starts it anew, SIGUSR2 writes the longest hold to a file.

A hold is how long the loop takes to come to a call that another thread asks for, once a millisecond.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

from federator import cli

longest = [0.0]


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """Until the loop is closed."""

    def note(asked: float) -> None:
        longest[0] = max(longest[0], time.perf_counter() - asked)

    try:
        while True:
            loop.call_soon_threadsafe(note, time.perf_counter())
            time.sleep(0.001)
    except RuntimeError:
        return


class Watched(asyncio.DefaultEventLoopPolicy):
    """Watches each event loop that it makes."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """The loop, and the thread that watches it."""
        loop = super().new_event_loop()
        threading.Thread(target=watch, args=(loop,), daemon=True).start()
        return loop


def anew(*_: object) -> None:
    """Forget what was."""
    longest[0] = 0.0


def tell(*_: object) -> None:
    """Seconds, to a file that was not there before."""
    path = Path(os.environ["BENCH_HOLDS"])
    path.with_suffix(".new").write_text(repr(longest[0]), encoding="utf-8")
    path.with_suffix(".new").rename(path)


asyncio.set_event_loop_policy(Watched())
signal.signal(signal.SIGUSR1, anew)
signal.signal(signal.SIGUSR2, tell)
sys.exit(cli.main())
