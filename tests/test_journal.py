# SPDX-License-Identifier: GPL-3.0-or-later
"""The two formats of the log."""

import fcntl
import json
import logging
import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator

import pytest

from federator import journal
from tests.helpers import ROOT
from tests.parts import PATIENCE_SECONDS, running


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    """`set_up` changes the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_logfmt(capsys: pytest.CaptureFixture[str]) -> None:
    """Values are quoted where they need it, and nothing gets through that a terminal would act on."""
    journal.set_up("info", "logfmt")
    logging.getLogger("x").warning("qube is %s", "down", extra={"qube": "work", "error": 'say "no"\n\x1b[2J', "n": 3})
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r'ts=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=warn msg="qube is down" qube=work'
        r' error="say \\"no\\"\\n\\u001b\[2J" n=3',
        line,
    )


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, a traceback in it."""
    journal.set_up("debug", "json")
    try:
        raise ValueError
    except ValueError:
        logging.getLogger("x").exception("oops", extra={"qube": "work"})
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["msg"], record["qube"]) == ("error", "oops", "work")
    assert "ValueError" in record["traceback"]


@pytest.mark.parametrize(("level", "count"), [("debug", 3), ("info", 2), ("warn", 1), ("error", 0)])
def test_levels(capsys: pytest.CaptureFixture[str], level: str, count: int) -> None:
    """From the one given upwards."""
    journal.set_up(level, "logfmt")
    log = logging.getLogger("x")
    log.debug("d")
    log.info("i")
    log.warning("w")
    assert len(capsys.readouterr().err.splitlines()) == count


def test_a_log_that_nobody_reads_is_not_waited_for() -> None:
    """As where journald is stuck: what does not fit is dropped, and the first line that fits again says how much."""
    program = (
        "import logging, sys; from federator import journal; journal.set_up('info', 'logfmt')\n"
        "for number in range(3000): logging.info('line %s', number, extra={'text': 'x' * 100})\n"
        "print('not stuck', flush=True); sys.stdin.readline()\n"
        "logging.info('the last one')\n"
    )
    with running(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as writer:
        assert writer.stdin
        assert writer.stdout
        assert writer.stderr
        assert select.select([writer.stdout], [], [], PATIENCE_SECONDS)[0], "it is stuck"
        assert writer.stdout.readline() == b"not stuck\n"
        lines = [os.read(writer.stderr.fileno(), 1 << 20)]
        writer.stdin.close()
        lines.append(writer.stderr.read())
    text = b"".join(lines).decode()
    dropped = re.search(r'msg="lines of the log were dropped: nobody took them" lines=(\d+)', text)
    assert dropped is not None
    assert len(re.findall('msg="line ', text)) + int(dropped[1]) == 3000
    assert text.endswith('msg="the last one"\n')


LOGS = """
import logging
from federator import journal
journal.set_up("debug", "logfmt")
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(logging.getLogger("x"), level)("hello")
"""


@pytest.mark.parametrize("journald", [True, False], ids=["journald", "a pipe"])
def test_lines_for_journald_have_their_priority(*, journald: bool) -> None:
    """`journalctl -p warning` showed nothing. Elsewhere, there is nothing before a line."""
    read, write = os.pipe()
    found = os.fstat(write)
    environment = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino if journald else 0}"}
    subprocess.run([sys.executable, "-c", LOGS], cwd=ROOT, env=environment, stderr=write, check=True)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        begins = [line.partition("ts=")[0] for line in pipe]
    assert begins == (["<7>", "<6>", "<4>", "<3>", "<3>"] if journald else [""] * 5)


def test_after_a_line_that_was_cut_there_is_a_new_one() -> None:
    """A pipe takes the first part of a long line, and not the rest; the next line is one of its own."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    program = (
        "import logging, sys; from federator import journal; journal.set_up('info', 'logfmt')\n"
        "logging.info('x' * 6000); print('cut', flush=True); sys.stdin.readline()\n"
        "logging.info('the next one')\n"
    )
    with running(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=write
    ) as writer:
        os.close(write)
        assert writer.stdin
        assert writer.stdout
        assert writer.stdout.readline() == b"cut\n"
        first = os.read(read, select.PIPE_BUF)
        writer.stdin.close()
        with os.fdopen(read, "rb") as pipe:
            lines = (first + pipe.read()).splitlines()
    assert lines[0].endswith(b"xxx")
    assert b"lines of the log were dropped" in lines[1]
    assert lines[2].endswith(b'msg="the next one"')
