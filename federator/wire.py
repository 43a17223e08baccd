# SPDX-License-Identifier: GPL-3.0-or-later
r"""
What is said over one call, to a qube's service or to dom0's: bytes in, answers out. The daemon's side of it.

Owns the grammar of each service, which bytes may come when, and the words by which a service says why there is no text.
Must not know of processes, clocks or event loops.

    service                     we say                      it says
    ruddo.PrometheusProxy       "+2\n"                      "=2\n"                                            once
      version 2                 "?MS MAXBYTES PLACE…\n"     "PLACE STATUS LENGTH SECONDS  CONTENT-TYPE;WORDS\n"
                                                            + body, for each endpoint, in any order
      version 1                 "+\n", then "?\n" …         "=\n", then "LENGTH\n" + body …     one port, upstream's
    ruddo.PrometheusDiscover    as version 1                as version 1; the body is names, one a line
    admin.vm.List               the end of input            its reply, then the end of output

PLACE is an endpoint: a port, or a name. A service that knows no names ends at the argument, with a status of its own.

WORDS is what the service itself says of its answer, joined by "+"; a word that is not known here means nothing. A
service that does not know of words has one blank before the Content-Type, and nothing behind it: an exporter's own
Content-Type never starts with a blank, so no exporter can say words. A daemon that does not know of them reads a
Content-Type with a parameter more. So either end may be older. What a service learns to do later it says in a word, in
each answer, and the daemon asks for it only where this call's answers had that word.

Whatever `receive` is fed, it returns answers or raises `ProtocolError` (or `BodySizeLimitError`, where version 1
announces more than was wanted). After that the wire is of no more use, since nobody knows where the next answer would
begin. Bytes that nobody asked for are a breach too: they could be taken for the next answer.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar, Generic, TypeVar

from federator.errors import BodySizeLimitError, ProtocolError, shown
from federator.model import ENDPOINT_NAME, Answer, Endpoint, in_order, where

SERVICE = "ruddo.PrometheusProxy"

# A name of 32 characters, " 599 9999999999 99999.999999  ", a Content-Type, which the service cuts to 128 characters,
# and its words.
MAX_HEADER = 256
# Version 1 has at most seven digits for a length (upstream's proxy reads no more).
V1_MAX_BODY = 9_999_999
# A service without an HTTP answer says why in one line; nobody reads on after this many bytes.
MAX_REASON = 1024

# How the line starts by which our service says why there is no HTTP answer (status 0). Any other line is what the
# system says of a connection that failed, such as "Connection refused". vmside/ruddo.PrometheusProxy has the same
# words; a test compares them.
TIMED_OUT = "timed out"
BODY_LARGER = "body larger than"
COMPRESSED = "answered with a compressed body"
CUT_SHORT = "answer cut short"
NOT_HTTP = "not an HTTP answer"
NO_ANSWER_AT_ALL = "closed the connection without an answer"
HEAD_LARGER = "HTTP headers larger than"
NOT_DEFINED = "no endpoints.d/"
WRONG_FILE = "wrong file"
CANNOT_READ = "cannot read"
NO_FILES = "no file"
TLS_FAILED = "TLS"

# The words: HTTP proves the text whole; requests for different endpoints may overlap. The service has the same.
WHOLE = "whole"
OVERLAPS = "overlaps"

_HEADER_V2 = re.compile(
    rb"(?P<endpoint>[1-9][0-9]{0,4}|%b) (?P<status>0|[1-5][0-9]{2}) (?P<length>[0-9]{1,10}) "
    rb"(?P<seconds>[0-9]{1,6}(?:\.[0-9]{1,9})?) (?P<content_type>[ -~]+)" % ENDPOINT_NAME.encode()
)
_HEADER_V1 = re.compile(rb"[0-9]{1,7}")

A = TypeVar("A")
H = TypeVar("H")


def argument(endpoints: Collection[Endpoint]) -> str:
    """The qrexec argument that permits these endpoints."""
    return "+".join(map(str, in_order(endpoints)))


def is_late(answer: Answer) -> bool:
    """Does the service say that the time it was given is over?"""
    return answer.status == 0 and answer.body.startswith(TIMED_OUT.encode())


class Wire(ABC, Generic[A]):
    """
    One call's conversation, whose answers are of type A.

    Write `greeting` and what a request returns; feed `receive` what comes back. One request at a time, while `idle`,
    unless the service `overlaps`.
    """

    greeting: ClassVar[bytes]
    # Does a request close our side? Then the call serves that one request.
    asks_once: ClassVar[bool] = False

    @property
    @abstractmethod
    def greeted(self) -> bool:
        """Has the service said that it is there?"""

    @property
    @abstractmethod
    def owed(self) -> bool:
        """Are there answers that have not come?"""

    @property
    def overlaps(self) -> bool:
        """Has the service said that it takes a request for other endpoints while answers are owed?"""
        return False

    @property
    def idle(self) -> bool:
        """Greeted, and nothing owed: the next request may be sent."""
        return self.greeted and not self.owed

    def endpoint(self, answer: A) -> Endpoint:
        """For which endpoint an answer is; 0 on a wire that knows none."""
        del answer
        return 0

    @abstractmethod
    def receive(self, untrusted: bytes) -> list[A]:
        """
        Take what came, however the pipe cut it; return the answers it completed.

        Raises ProtocolError for anything the service may not say now.
        """

    @property
    def held(self) -> int:
        """Bytes that were received and are not passed on yet."""
        return 0

    def let_go(self) -> None:
        """The wire is of no more use: let go of these bytes."""

    def end_of_output(self) -> list[A]:
        """The service ended well, with exit status 0: the answers that are complete only now."""
        return []


class _Framed(Wire[A], Generic[A, H]):
    """A wire on which each answer is a header line and a body of the length that it tells. H: a header, parsed."""

    _welcome: ClassVar[bytes]

    def __init__(self) -> None:
        self._greeted = False
        self._line = bytearray()  # a header that has not ended yet
        self._header: H | None = None  # of the body that is coming
        self._body: list[bytes] = []
        self._missing = 0  # bytes of that body still to come

    @property
    def greeted(self) -> bool:
        """Has the service said that it is there?"""
        return self._greeted

    def receive(self, untrusted: bytes) -> list[A]:
        """See `Wire`."""
        answers: list[A] = []
        start, end = 0, len(untrusted)
        while start < end or (self._header is not None and not self._missing):
            if self._header is None:
                newline = untrusted.find(b"\n", start, start + MAX_HEADER)
                stop = newline if newline >= 0 else end
                self._check_line(untrusted, start, stop)
                self._line += untrusted[start:stop]
                if newline < 0:
                    break
                start = newline + 1
                untrusted_line, self._line = bytes(self._line), bytearray()
                self._take_line(untrusted_line)
            elif self._missing:
                piece = untrusted if start == 0 and end <= self._missing else untrusted[start : start + self._missing]
                if self._is_wanted(self._header):
                    self._body.append(piece)
                self._missing -= len(piece)
                start += len(piece)
            else:
                body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                header, self._header, self._body = self._header, None, []
                is_wanted = self._is_wanted(header)
                answer = self._answer(header, body)
                if is_wanted:
                    answers.append(answer)
        return answers

    def let_go(self) -> None:
        """The body that is coming is for nobody."""
        self._body.clear()

    def _check_line(self, untrusted: bytes, start: int, stop: int) -> None:
        if len(self._line) + stop - start > MAX_HEADER:
            raise ProtocolError(f"a header without an end: {shown(bytes(self._line) or untrusted[start:])}")
        if self._greeted and not self.owed:
            raise ProtocolError(f"sent what nobody asked for: {shown(untrusted[start:])}")

    def _take_line(self, untrusted_line: bytes) -> None:
        if self._greeted:
            self._header, self._missing = self._parse(untrusted_line)
        elif untrusted_line == self._welcome:
            self._greeted = True
        else:
            raise ProtocolError(f"did not greet with {self._welcome.decode()}: {shown(untrusted_line)}")

    def _is_wanted(self, header: H) -> bool:
        """Does anybody still wait for this answer?"""
        del header
        return True

    @abstractmethod
    def _parse(self, untrusted_line: bytes) -> tuple[H, int]:
        """A header, and the length of its body; or ProtocolError."""

    @abstractmethod
    def _answer(self, header: H, body: bytes) -> A:
        """The answer is complete."""


class TextWire(_Framed[Answer, Answer], ABC):
    """The conversation with a qube's service: its answers are for endpoints."""

    def __init__(self) -> None:
        super().__init__()
        # The endpoints that are not answered yet, and the largest body for each.
        self._pending: dict[Endpoint, int] = {}
        self._unwanted: set[Endpoint] = set()  # those of them for which nobody waits any more
        self._overlaps = False

    @property
    def owed(self) -> bool:
        """Are there answers that have not come?"""
        return bool(self._pending)

    @property
    def overlaps(self) -> bool:
        """Has the service said that it takes a request for other endpoints while answers are owed?"""
        return self._overlaps

    def endpoint(self, answer: Answer) -> Endpoint:
        """For which endpoint an answer is."""
        return answer.endpoint

    @property
    def held(self) -> int:
        """Bytes of the body that is coming."""
        return sum(map(len, self._body))

    @property
    def pending(self) -> frozenset[Endpoint]:
        """Ports that were asked for and not answered yet."""
        return frozenset(self._pending)

    def give_up(self, endpoints: Collection[Endpoint]) -> None:
        """Nobody waits any more for the answers that these endpoints owe: they are dropped as they come."""
        self._unwanted.update(self._pending.keys() & endpoints)
        if self._header is not None and not self._is_wanted(self._header):
            self._body.clear()

    def ask(self, *, milliseconds: int, max_body: int, endpoints: Collection[Endpoint]) -> bytes:
        """The request for these endpoints. The service is told the limits, and held to them by `receive`."""
        assert self.idle or self._overlaps, "a request while answers are owed"
        assert self._pending.keys().isdisjoint(endpoints), "a request for an endpoint whose answer is owed"
        self._pending.update(dict.fromkeys(endpoints, max_body))
        return self._request(milliseconds, max_body, endpoints)

    def _is_wanted(self, header: Answer) -> bool:
        return header.endpoint not in self._unwanted

    def _answer(self, header: Answer, body: bytes) -> Answer:
        del self._pending[header.endpoint]
        self._unwanted.discard(header.endpoint)
        return Answer(header.endpoint, header.status, body, header.seconds, header.content_type, header.whole)

    @abstractmethod
    def _request(self, milliseconds: int, max_body: int, endpoints: Collection[Endpoint]) -> bytes: ...


class Version2(TextWire):
    """Ours: all endpoints over one call, each with its limits."""

    greeting = b"+2\n"
    _welcome = b"=2"

    def _request(self, milliseconds: int, max_body: int, endpoints: Collection[Endpoint]) -> bytes:
        words = [milliseconds, max_body, *in_order(endpoints)]
        return b"?" + " ".join(map(str, words)).encode() + b"\n"

    def _parse(self, untrusted_line: bytes) -> tuple[Answer, int]:
        match = _HEADER_V2.fullmatch(untrusted_line)
        if not match:
            raise ProtocolError(f"not a header of version 2: {shown(untrusted_line)}")
        untrusted_place, status, length = match["endpoint"].decode(), int(match["status"]), int(match["length"])
        endpoint: Endpoint = int(untrusted_place) if untrusted_place.isdigit() else untrusted_place
        if endpoint not in self._pending:
            raise ProtocolError(f"answered for {where(endpoint)}, which is not (or no longer) asked for")
        limit = self._pending[endpoint] if status else MAX_REASON
        if length > limit:
            raise ProtocolError(f"announced {length} bytes for {where(endpoint)}, where at most {limit} were asked for")
        content_type, words = _with_words(match["content_type"].decode())
        self._overlaps = self._overlaps or OVERLAPS in words
        return Answer(endpoint, status, b"", float(match["seconds"]), content_type, WHOLE in words), length


class Version1(TextWire):
    """Upstream's: one port, fixed by the call's argument; a failure ends the service."""

    greeting = b"+\n"
    _welcome = b"="

    def _request(self, milliseconds: int, max_body: int, endpoints: Collection[Endpoint]) -> bytes:
        del milliseconds, max_body  # it has no way to be told; `receive` holds it to the length
        assert len(endpoints) == 1, "version 1 knows one port"
        return b"?\n"

    def _parse(self, untrusted_line: bytes) -> tuple[Answer, int]:
        ((endpoint, max_body),) = self._pending.items()
        length = _v1_length(untrusted_line, max_body, "scrape.body_size_limit")
        return Answer(endpoint, 200, b"", None, "-"), length


class Names(_Framed[bytes, int]):
    """dom0's ruddo.PrometheusDiscover, which speaks as version 1 does: each answer is names, one a line."""

    greeting = b"+\n"
    _welcome = b"="

    def __init__(self, max_reply: int) -> None:
        super().__init__()
        self._max_reply = max_reply
        self._owed = False

    @property
    def owed(self) -> bool:
        """Is there an answer that has not come?"""
        return self._owed

    def ask(self) -> bytes:
        """The request for the names."""
        assert self.idle, "a request while an answer is owed"
        self._owed = True
        return b"?\n"

    def _parse(self, untrusted_line: bytes) -> tuple[int, int]:
        length = _v1_length(untrusted_line, self._max_reply, "more than any dom0 has names for")
        return length, length

    def _answer(self, header: int, body: bytes) -> bytes:
        del header
        self._owed = False
        return body


class OneReply(Wire[bytes]):
    """An Admin API call: the end of input is the request, and all of the output is the reply."""

    greeting = b""
    asks_once = True

    def __init__(self, max_reply: int) -> None:
        self._max_reply = max_reply
        self._reply = bytearray()
        self._owed = False

    @property
    def greeted(self) -> bool:
        """There is no greeting to wait for."""
        return True

    @property
    def owed(self) -> bool:
        """Is there an answer that has not come?"""
        return self._owed

    def ask(self) -> bytes:
        """Nothing is to be said; see `asks_once`."""
        self._owed = True
        return b""

    def receive(self, untrusted: bytes) -> list[bytes]:
        """Take a part of the reply."""
        self._reply += untrusted
        if len(self._reply) > self._max_reply:
            raise ProtocolError(f"a reply of more than {self._max_reply} bytes: {shown(bytes(self._reply[:80]))}")
        return []

    def end_of_output(self) -> list[bytes]:
        """The reply is complete."""
        owed, self._owed = self._owed, False
        return [bytes(self._reply)] if owed else []


def error_of(untrusted_reply: bytes, service: str) -> ProtocolError:
    r"""What an answer `2\0TYPE\0…` says."""
    untrusted_kind = untrusted_reply[2:].partition(b"\0")[0]
    return ProtocolError(f"dom0 answered {service} with an error: {shown(untrusted_kind)}; its journal has the details")


def payload(untrusted_reply: bytes, service: str) -> bytes:
    r"""What stands behind `0\0`. Raises ProtocolError for an error, and for what is no reply."""
    if untrusted_reply.startswith(b"2\0"):
        raise error_of(untrusted_reply, service)
    if not untrusted_reply.startswith(b"0\0"):
        raise ProtocolError(f"dom0's answer is no reply of {service}: {shown(untrusted_reply[:80])}")
    return untrusted_reply[2:]


def _with_words(untrusted: str) -> tuple[str, frozenset[str]]:
    """The last field of a header: the Content-Type, and the service's own words."""
    if not untrusted.startswith(" "):
        return untrusted, frozenset()
    content_type, _, words = untrusted[1:].rpartition(";")
    return content_type, frozenset(words.split("+"))


def _v1_length(untrusted_line: bytes, limit: int, limit_name: str) -> int:
    if not _HEADER_V1.fullmatch(untrusted_line):
        raise ProtocolError(f"not a length of version 1: {shown(untrusted_line)}")
    length = int(untrusted_line)
    if length > limit:
        raise BodySizeLimitError(f"larger than {limit} bytes ({limit_name}): {length}")
    return length
