# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands in a pipe, on a full disk and at a terminal: no traceback, and no exit status 120."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from federator.terminal import Progress
from tests.helpers import ROOT
from tests.parts import PATIENCE_SECONDS, Exporter, eventually, federator, running, toml
from tests.standin.qubes import CLIENT, Qubes

# Each of these tests starts the command line.
pytestmark = pytest.mark.slow

MakeExporter = Callable[[bytes], Exporter]


@pytest.fixture
def two(qubes: Qubes, exporter: MakeExporter, tmp_path: Path) -> tuple[Path, Exporter]:
    """A configuration of two qubes; the exporter of the first one can be held back."""
    qubes.add("work")
    qubes.add("vault")
    slow, fast = exporter(b"m 1\n"), exporter(b"m 1\nbad line\n")
    path = tmp_path / "proxy.toml"
    path.write_text(toml({"work": {"node": slow.port}, "vault": {"app": fast.port}}, client=CLIENT), encoding="utf-8")
    return path, slow


COMMANDS = ["scrape", "doctor", "check", "policy", "--help", "--version"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_that_nobody_reads_ends_a_command_silently(two: tuple[Path, Exporter], command: str) -> None:
    """By SIGPIPE, as others: `scrape | head -1` printed a traceback, with exit status 120."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        words = federator(command, f"--config.file={two[0]}")
        ended = subprocess.run(
            words, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, check=False, timeout=PATIENCE_SECONDS
        )
    assert (ended.returncode, ended.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line(two: tuple[Path, Exporter], command: str) -> None:
    """And exit status 1."""
    with Path("/dev/full").open("wb") as full:
        words = federator(command, f"--config.file={two[0]}")
        ended = subprocess.run(
            words, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False, timeout=PATIENCE_SECONDS
        )
    assert ended.returncode == 1
    assert ended.stderr == b"prometheus-qubes-proxy: cannot write to stdout: No space left on device\n"


def test_a_program_gets_the_lines_in_the_order_of_the_file(two: tuple[Path, Exporter]) -> None:
    """Whoever is ready first; a summary is the last line."""
    path, slow = two
    slow.hold.clear()
    words = federator("scrape", f"--config.file={path}")
    with running(words, cwd=ROOT, stdout=subprocess.PIPE) as command:
        eventually("it is asked", lambda: slow.requests)
        slow.hold.set()
        lines = command.communicate(timeout=PATIENCE_SECONDS)[0].decode().splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["work:node", "up"], ["vault:app", "up"]]
    assert lines[2:] == ["2 of 2 exporters up"]


def test_a_person_sees_each_line_as_soon_as_it_is_known(two: tuple[Path, Exporter]) -> None:
    """At a terminal: the slow one comes last."""
    path, slow = two
    slow.hold.clear()
    ours, its = pty.openpty()
    with running(federator("scrape", f"--config.file={path}"), cwd=ROOT, stdout=its) as command:
        os.close(its)
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            said = terminal.read(1000)
            assert said.startswith(b"vault:app  up")
            slow.hold.set()
            while b"2 of 2 exporters up\r\n" not in said:
                said += terminal.read(1000)
        assert command.wait(PATIENCE_SECONDS) == 0
    assert said.index(b"vault:app") < said.index(b"work:node")


def test_a_person_sees_what_is_waited_for(two: tuple[Path, Exporter]) -> None:
    """On a line that is written over, and is gone at the end; also where stdout goes into a pipe."""
    path, slow = two
    slow.hold.clear()
    ours, its = pty.openpty()
    words = federator("scrape", f"--config.file={path}")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with running(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=its, env=environment) as command:
        os.close(its)
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            seen = b""
            while b"1 of 2 exporters done; waiting for work:node" not in seen:
                seen += terminal.read(1000)
            slow.hold.set()
            said = command.communicate(timeout=PATIENCE_SECONDS)[0]
            with suppress(OSError):  # the other end of the terminal is closed
                while more := terminal.read(1000):
                    seen += more
    assert seen.endswith(b"\r\x1b[K")
    assert b"\n" not in seen
    assert b"\x1b" not in said
    assert len(said.splitlines()) == 3


def test_progress_stays_on_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What does not fit is left out; a terminal that cannot erase a line, and a pipe, get nothing."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    Progress().show("in a pipe")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    Progress().show("waiting for many exporters")
    assert capsys.readouterr().err == "\r\x1b[Kwaiting for many ex"
    monkeypatch.setenv("TERM", "dumb")
    Progress().show("waiting")
    assert capsys.readouterr().err == ""


def test_json_is_a_list_with_an_object_for_each_exporter(two: tuple[Path, Exporter], qubes: Qubes) -> None:
    """What is up and what is down has the same keys."""
    qubes.set_policy("vault", "deny")
    words = federator("scrape", f"--config.file={two[0]}", "--json")
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, check=False, timeout=PATIENCE_SECONDS)
    work, vault = json.loads(ended.stdout)
    assert ended.returncode == 1
    assert work.keys() == vault.keys()
    assert (work["qube"], work["exporter"], work["up"], work["samples"], work["error"]) == (
        "work",
        "node",
        True,
        1,
        None,
    )
    assert (vault["up"], vault["reason"], vault["samples"]) == (False, "refused", 0)
    assert vault["error"].startswith("qrexec refused")


def test_only_scrape_and_doctor_have_json() -> None:
    """It would be passed over elsewhere."""
    ended = subprocess.run(federator("check", "--json"), cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 2
    assert b"check takes no --json" in ended.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("check", "--web.listen-address=127.0.0.1:1"),
        ("scrape", "--web.systemd-socket"),
        ("scrape", "--web.config.file=/nonexistent"),
        ("policy", "--web.config.file=/nonexistent"),
        ("hash-password", "--web.config.file=/nonexistent"),
    ],
)
def test_an_option_of_another_command_is_not_passed_over(command: str, option: str) -> None:
    """What was meant by it would not happen."""
    ended = subprocess.run(federator(command, option), cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 2
    assert f"{command} takes no {option.partition('=')[0]}; only serve".encode() in ended.stderr
