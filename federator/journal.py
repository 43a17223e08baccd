# SPDX-License-Identifier: GPL-3.0-or-later
"""
The log's two formats, as Prometheus' own: logfmt for people, JSON for machines. To stderr, where systemd takes it.

Owns how a record is written. Must not know what is logged.
"""

import json
import logging
import os
import re
import select
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

LEVELS = ("debug", "info", "warn", "error")
FORMATS = ("logfmt", "json")

# What a line for the journal begins with, by the least level: `journalctl -p warning` shows the first two.
_PRIORITIES = ((logging.ERROR, "<3>"), (logging.WARNING, "<4>"), (logging.INFO, "<6>"), (0, "<7>"))
# What every record has; everything beside it was given as `extra`, and is a field of the line.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\U0010ffff]+")


def set_up(level: str, style: str) -> None:
    """Send the log of everything to stderr, from `level` on."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Formatter(style))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel({"warn": "WARNING"}.get(level, level.upper()))
    logging.getLogger("asyncio").setLevel(max(root.level, logging.INFO))  # its own debugging is none of an operator's


class _Handler(logging.StreamHandler[TextIO]):
    """
    Writes a line if somebody takes it now, and drops it if not: a journal that is stuck must not stop the event loop.

    The next line that is taken comes after one that says how many were dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0
        self._cut = False  # is the last line that was begun without its end?
        self._prefixed = _is_journal(stream)
        try:
            self._fd = stream.fileno()
        except OSError:  # a test took its place
            self._fd = -1

    def emit(self, record: logging.LogRecord) -> None:
        if self._fd < 0:
            super().emit(record)
            return
        line = self._line(record)
        if self._dropped:
            fields = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "lines": self._dropped}
            told = logging.makeLogRecord({**fields, "msg": "lines of the log were dropped: nobody took them"})
            line = self._line(told) + line
        if self._cut:
            line = f"\n{line}"
        untrusted = line.encode("utf-8", "backslashreplace")
        taken = _written(self._fd, untrusted)
        if taken == len(untrusted):
            self._dropped, self._cut = 0, False
        else:
            self._dropped += 1
            self._cut = self._cut or taken > 0

    def _line(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level) if self._prefixed else ""
        return f"{priority}{self.format(record)}\n"


def _is_journal(stream: TextIO) -> bool:
    """Does systemd take what is written there, as sd-daemon(3) lets a program find out?"""
    try:
        found = os.fstat(stream.fileno())
    except OSError:  # a test took its place
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _written(fd: int, untrusted: bytes) -> int:
    """Write without waiting; how many bytes were taken?"""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    for start in range(0, len(untrusted), select.PIPE_BUF):
        if not any(event & select.POLLOUT for _, event in poll.poll(0)):
            return start
        try:
            os.write(fd, untrusted[start : start + select.PIPE_BUF])  # so much a pipe takes, if it takes any
        except OSError:  # nobody is there any more
            return start
    return len(untrusted)


class _Formatter(logging.Formatter):
    def __init__(self, style: str) -> None:
        super().__init__()
        self._json = style == "json"

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": {"WARNING": "warn", "CRITICAL": "error"}.get(record.levelname, record.levelname.lower()),
            "msg": record.getMessage(),
        }
        fields.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._json:
            return json.dumps(fields, default=str)
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in fields.items())


def _quoted(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
