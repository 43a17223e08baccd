# SPDX-License-Identifier: GPL-3.0-or-later
"""
What is said to people: lines on stdout, warnings and errors on stderr; and that nobody takes them.

Owns the manners of a program in a pipe: it ends silently, by SIGPIPE, where the reader has seen enough (`… | head`),
and with one line where the disk is full. Must not know what is said.
"""

import os
import signal
import sys
from collections.abc import Callable

from federator.errors import FederatorError

PROGRAM = "prometheus-qubes-proxy"


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
