# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/leftovers.py, in test runs of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.parts import PATIENCE_SECONDS

TESTS = """
import subprocess, sys, threading
import pytest
from tests import leftovers

leftovers.PATIENCE_SECONDS = 0.2
leftovers.MAX_SECONDS, leftovers.AGAIN_SECONDS = 5.0, 1.0
SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]
ORPHAN = [sys.executable, "-c", f"import subprocess; subprocess.Popen({SLEEP})"]

@pytest.fixture
def broken():
    yield
    subprocess.Popen(SLEEP)
    raise ValueError("broken")

def test_thread_and_skip():
    threading.Thread(target=threading.Event().wait, name="the-thread").start()
    pytest.skip("no such program")

def test_process():
    globals()["process"] = subprocess.Popen(SLEEP)

def test_orphan():
    subprocess.run(ORPHAN, check=True)

def test_teardown(broken):
    pass

def test_endless():
    with subprocess.Popen(SLEEP):
        threading.Event().wait()

def test_good():
    thread = threading.Thread(target=subprocess.run, args=[[sys.executable, "-c", ""]])
    thread.start()
    thread.join()
"""


@pytest.mark.slow
def test_what_a_test_leaves_running_is_named_and_ended(tmp_path: Path) -> None:
    """A thread, a process, an orphan, after a skip, a failed teardown and a test without end: the run ends."""
    path = tmp_path / "test_it.py"
    path.write_text(TESTS, encoding="utf-8")
    ini = tmp_path / "pytest.ini"
    ini.write_text("[pytest]\n", encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-p", "tests.leftovers", "-c", str(ini), str(path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 4 passed, 1 skipped, 5 errors" in done.stdout
    for name, what in (
        ("thread_and_skip", "thread the-thread"),
        ("process", "process "),
        ("orphan", "process "),
        ("endless", "process "),
    ):
        assert f"test_it.py::test_{name} left running: {what}" in done.stdout, done.stdout
    assert "ValueError: broken" in done.stdout
    assert "the test did not end in 5.0 s" in done.stdout
    assert done.stdout.count("time.sleep(1000)") >= 4
