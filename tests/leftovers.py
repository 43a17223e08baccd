# SPDX-License-Identifier: GPL-3.0-or-later
"""
A pytest plugin: a test that leaves a thread or a process running fails, and so does a test that does not end.

Owns the search for what is left, its end, and the longest time of a test. Must not know what the tests start.
"""

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# How long threads and processes that are already ending may still take.
PATIENCE_SECONDS = 5.0
# Several times what the longest test takes on a busy machine.
MAX_SECONDS = 300.0
# What ends a test may wait as well. It is interrupted again after this time.
AGAIN_SECONDS = 30.0
# From <linux/prctl.h>. A process whose parent ends gets the nearest "subreaper" as its new parent. So a process that a
# test's process leaves behind becomes our child, and we find it.
PR_SET_CHILD_SUBREAPER = 36

# Threads that are not a test's, or were reported once.
known = set(threading.enumerate())


def pytest_configure() -> None:
    """Become the parent of orphans."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Around the test itself, without its fixtures."""

    def fail(*_: object) -> None:
        pytest.fail(f"the test did not end in {MAX_SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS, AGAIN_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(trylast=True)
def pytest_fixture_post_finalizer(fixturedef: "pytest.FixtureDef[object]") -> None:
    """
    After a test with an event loop, Debian 12's pytest-asyncio makes a new one, and nobody closes it.

    asyncio.run in a later test forgets it, and the warning that it was not closed fails yet another test.
    """
    if fixturedef.argname == "event_loop":
        asyncio.get_event_loop_policy().get_event_loop().close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
    """After the teardown of a test, which runs even if the test or its setup was skipped or failed."""
    outcome: Any = yield
    if call.when == "teardown" and (left := end_what_is_left()):
        report = outcome.get_result()
        report.sections.append(("left running", "\n".join(left)))
        if report.passed:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} left running: {'; '.join(left)}"


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Python would wait for threads that are left, and a thread cannot be killed. The test has failed already."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        os._exit(1)


def end_what_is_left() -> list[str]:
    """The new threads and the child processes that do not end by themselves. The processes are killed."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (threads() or processes()) and time.monotonic() < end:
        time.sleep(0.02)
    left = [f"thread {thread.name}" for thread in threads()]
    known.update(threads())
    for pid, words in processes().items():
        left.append(f"process {pid}: {words}")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return left


def threads() -> list[threading.Thread]:
    """The threads that tests started and that run."""
    return [thread for thread in threading.enumerate() if thread not in known]


def processes() -> dict[int, str]:
    """Our child processes that run: process id and command line. Those that have ended are removed from the system."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            children = (task / "children").read_text(encoding="ascii")
        except OSError:  # the thread has just ended; its children are another one's now
            continue
        for pid in map(int, children.split()):
            with suppress(OSError):  # it has just ended
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                    found[pid] = words.replace(b"\0", b" ").decode(errors="replace").strip()
    return found
