# SPDX-License-Identifier: GPL-3.0-or-later
"""
What is said to people: lines on stdout, warnings and errors on stderr; and that nobody takes them.

Owns the manners of a program in a pipe: it ends silently, by SIGPIPE, where the reader has seen enough (`… | head`),
and with one line where the disk is full. Must not know what is said.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from federator.errors import FederatorError

PROGRAM = "prometheus-qubes-proxy"
# To the end of the line; every terminal of the last forty years knows it.
_ERASE = "\x1b[K"


class OutputError(FederatorError):
    """What a command prints could not be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to stdout: {error.strerror}")
        self.nobody_reads = isinstance(error, BrokenPipeError)


def say(text: str) -> None:
    """Print a line, at once. Raises OutputError."""
    try:
        print(text, flush=True)
    except OSError as error:
        raise OutputError(error) from None


def warn(line: str) -> None:
    """Say on stderr what somebody should know, and what is no error."""
    print(f"{PROGRAM}: warning: {line}", file=sys.stderr)


def complain(error: object) -> None:
    """Say on stderr what is wrong; a configuration may have several faults, a line each."""
    for line in str(error).splitlines():
        print(f"{PROGRAM}: {line}", file=sys.stderr)


class Progress:
    """
    One line on stderr that is written over, where a person watches; nothing in a pipe.

    What is said on stdout meanwhile needs `clear` before it.
    """

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}

    def show(self, line: str) -> None:
        """The state of the work. As much of it as fits on one line, since only that can be taken back."""
        if self._watched:
            columns = shutil.get_terminal_size().columns
            self._write(f"\r{_ERASE}{line[: columns - 1]}")

    def clear(self) -> None:
        """The line is gone."""
        if self._watched:
            self._write(f"\r{_ERASE}")

    @staticmethod
    def _write(text: str) -> None:
        with suppress(OSError):  # the terminal was closed
            print(text, end="", file=sys.stderr, flush=True)


def politely(run: Callable[[], int]) -> int:
    """The exit status of `run`, after all that it printed was written; 1 where it cannot be written."""
    try:
        try:
            status = run()
        finally:  # argparse prints help, and exits
            _flush()
    except OutputError as error:
        # What could not be written would be written again, and fail again, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.nobody_reads:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGPIPE)
        complain(error)
        return 1
    return status


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OutputError(error) from None
