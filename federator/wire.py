# SPDX-License-Identifier: GPL-3.0-or-later
r"""
The protocol between the daemon and a qube's service: bytes in, answers out. The daemon's side of it.

Owns the grammar of versions 1 and 2, and which bytes may come when. Must not know of processes, clocks or event loops.

    we say                      the service says
    "+2\n"                       "=2\n"                                               once
    "?MS MAXBYTES PORT…\n"       "PORT STATUS LENGTH SECONDS CONTENT-TYPE\n" + body   once for each port, in any order

    "+\n"                        "=\n"                                                version 1: one port a channel
    "?\n"                        "LENGTH\n" + body

Whatever `receive` is fed, it returns answers or raises `ProtocolError` (or `BodySizeLimitError`, where version 1
announces more than was wanted). After that the wire is of no more use, since nobody knows where the next answer would
begin. Bytes that nobody asked for are a breach too: they could be taken for the next answer.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable

from federator.errors import BodySizeLimitError, ProtocolError, shown
from federator.model import Answer

SERVICE = "ruddo.PrometheusProxy"

# "65535 599 9999999999 99999.999999 " and a Content-Type; what the service sends is cut to 128 characters there.
MAX_HEADER = 256
# Version 1 has at most seven digits for a length (upstream's proxy reads no more).
V1_MAX_BODY = 9_999_999
# A service without an HTTP answer says why in one line; nobody reads on after this many bytes.
MAX_REASON = 1024

_HEADER_V2 = re.compile(
    rb"(?P<port>[1-9][0-9]{0,4}) (?P<status>0|[1-5][0-9]{2}) (?P<length>[0-9]{1,10}) "
    rb"(?P<seconds>[0-9]{1,6}(?:\.[0-9]{1,9})?) (?P<content_type>[ -~]+)"
)
_HEADER_V1 = re.compile(rb"[0-9]{1,7}")


def argument(ports: Iterable[int]) -> str:
    """The qrexec argument that permits these ports: rising, so that a policy line can pin it."""
    return "+".join(str(port) for port in sorted(ports))


class Wire(ABC):
    """
    One channel's conversation.

    Write what `greeting` and `ask` return; feed `receive` what comes back. `ask` only while `idle`.
    """

    version: int
    greeting: bytes
    _welcome: bytes

    def __init__(self) -> None:
        self.greeted = False
        self._pending: set[int] = set()
        self._line = bytearray()  # a header that has not ended yet
        self._answer: tuple[int, int, float | None, str] | None = None  # the header of the body that is coming
        self._body: list[bytes] = []
        self._missing = 0  # bytes of that body still to come
        self._max_body = 0

    @property
    def idle(self) -> bool:
        """Greeted, and nothing owed: the next request may be sent."""
        return self.greeted and not self._pending

    @property
    def pending(self) -> frozenset[int]:
        """Ports that were asked for and not answered yet."""
        return frozenset(self._pending)

    def ask(self, *, milliseconds: int, max_body: int, ports: Collection[int]) -> bytes:
        """The request for these ports. The service is told the limits, and held to them by `receive`."""
        assert self.idle, "a request while answers are owed"
        self._pending = set(ports)
        self._max_body = max_body
        return self._request(milliseconds, max_body, ports)

    def receive(self, untrusted: bytes) -> list[Answer]:
        """
        Take what came, however the pipe cut it; return the answers it completed.

        Raises ProtocolError for anything the service may not say now.
        """
        answers: list[Answer] = []
        start, end = 0, len(untrusted)
        while start < end or (self._answer and not self._missing):
            if self._answer is None:
                newline = untrusted.find(b"\n", start, start + MAX_HEADER)
                stop = newline if newline >= 0 else end
                if len(self._line) + stop - start > MAX_HEADER:
                    raise ProtocolError(f"a header without an end: {shown(bytes(self._line) or untrusted[start:])}")
                if not self._may_speak:
                    raise ProtocolError(f"sent what nobody asked for: {shown(untrusted[start:])}")
                self._line += untrusted[start:stop]
                if newline < 0:
                    break
                start = newline + 1
                untrusted_line, self._line = bytes(self._line), bytearray()
                self._header(untrusted_line)
            elif self._missing:
                piece = untrusted if start == 0 and end <= self._missing else untrusted[start : start + self._missing]
                self._body.append(piece)
                self._missing -= len(piece)
                start += len(piece)
            else:
                answers.append(self._finish(self._answer))
        return answers

    @property
    def _may_speak(self) -> bool:
        return not self.greeted or bool(self._pending)

    def _header(self, untrusted_line: bytes) -> None:
        if not self.greeted:
            if untrusted_line != self._welcome:
                raise ProtocolError(f"did not greet with {self._welcome.decode()}: {shown(untrusted_line)}")
            self.greeted = True
            return
        port, status, length, seconds, content_type = self._parse(untrusted_line)
        limit = self._max_body if status else MAX_REASON
        if length > limit:
            raise ProtocolError(f"announced {length} bytes for port {port}, where at most {limit} were asked for")
        self._answer = (port, status, seconds, content_type)
        self._missing = length

    def _finish(self, answer: tuple[int, int, float | None, str]) -> Answer:
        port, status, seconds, content_type = answer
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._answer, self._body = None, []
        self._pending.discard(port)
        return Answer(port=port, status=status, body=body, seconds=seconds, content_type=content_type)

    @abstractmethod
    def _request(self, milliseconds: int, max_body: int, ports: Collection[int]) -> bytes: ...

    @abstractmethod
    def _parse(self, untrusted_line: bytes) -> tuple[int, int, int, float | None, str]:
        """Port, status, length, seconds and content type of a header, or Protocol."""


class Version2(Wire):
    """Ours: all ports over one channel, each with its limits."""

    version = 2
    greeting = b"+2\n"
    _welcome = b"=2"

    def _request(self, milliseconds: int, max_body: int, ports: Collection[int]) -> bytes:
        numbers = [milliseconds, max_body, *sorted(ports)]
        return b"?" + " ".join(map(str, numbers)).encode() + b"\n"

    def _parse(self, untrusted_line: bytes) -> tuple[int, int, int, float | None, str]:
        match = _HEADER_V2.fullmatch(untrusted_line)
        if not match:
            raise ProtocolError(f"not a header of version 2: {shown(untrusted_line)}")
        port = int(match["port"])
        if port not in self._pending:
            raise ProtocolError(f"answered for port {port}, which is not (or no longer) asked for")
        return port, int(match["status"]), int(match["length"]), float(match["seconds"]), match["content_type"].decode()


class Version1(Wire):
    """Upstream's: one port, fixed by the channel's argument; a failure ends the service."""

    version = 1
    greeting = b"+\n"
    _welcome = b"="

    def _request(self, milliseconds: int, max_body: int, ports: Collection[int]) -> bytes:
        del milliseconds, max_body  # it has no way to be told; `receive` holds it to the length
        assert len(ports) == 1, "version 1 knows one port"
        return b"?\n"

    def _parse(self, untrusted_line: bytes) -> tuple[int, int, int, float | None, str]:
        if not _HEADER_V1.fullmatch(untrusted_line):
            raise ProtocolError(f"not a length of version 1: {shown(untrusted_line)}")
        if int(untrusted_line) > self._max_body:
            raise BodySizeLimitError(
                f"larger than {self._max_body} bytes (scrape.body_size_limit): {int(untrusted_line)}"
            )
        (port,) = self._pending
        return port, 200, int(untrusted_line), None, "-"
