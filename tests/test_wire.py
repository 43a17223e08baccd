# SPDX-License-Identifier: GPL-3.0-or-later
"""The protocol: bytes in, answers out, however the pipe cuts them."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federator.errors import BodySizeLimitError, ProtocolError
from federator.model import Answer, Endpoint
from federator.wire import MAX_HEADER, MAX_REASON, Names, OneReply, TextWire, Version1, Version2, Wire, argument

A = TypeVar("A")

NODE = Answer(endpoint=9100, status=200, body=b"a 1\n", seconds=0.012, content_type="text/plain; version=0.0.4")
PROCESS = Answer(endpoint=9256, status=0, body=b"Connection refused", seconds=0.001, content_type="-")
EMPTY = Answer(endpoint=9256, status=500, body=b"", seconds=1.0, content_type="-")


def spoken(answer: Answer) -> bytes:
    """What the service writes for an answer (version 2)."""
    head = f"{answer.endpoint} {answer.status} {len(answer.body)} {answer.seconds} {answer.content_type}\n"
    return head.encode() + answer.body


def asked(*ports: Endpoint, max_body: int = 1000) -> Version2:
    """A wire of version 2 that has been greeted and has asked for these ports."""
    wire = Version2()
    assert wire.receive(b"=2\n") == []
    wire.ask(milliseconds=9500, max_body=max_body, endpoints=ports)
    return wire


def fed(wire: Wire[A], pieces: Iterable[bytes]) -> list[A]:
    """All the answers that come of these pieces."""
    return [answer for piece in pieces for answer in wire.receive(piece)]


def one_by_one(data: bytes) -> list[bytes]:
    """Every byte alone."""
    return [data[index : index + 1] for index in range(len(data))]


GOOD = {
    "one": [NODE],
    "two": [NODE, PROCESS],
    "in the order in which they finish": [PROCESS, NODE],
    "an empty body last": [NODE, EMPTY],
    "an empty body first": [EMPTY, NODE],
}


@pytest.mark.parametrize("answers", GOOD.values(), ids=GOOD.keys())
def test_answers_are_the_same_whole_and_byte_by_byte(answers: list[Answer]) -> None:
    """How the pipe cuts the bytes makes no difference."""
    ports = [answer.endpoint for answer in answers]
    data = b"".join(map(spoken, answers))
    assert fed(asked(*ports), [data]) == answers
    assert fed(asked(*ports), one_by_one(data)) == answers


@pytest.mark.parametrize("answers", GOOD.values(), ids=GOOD.keys())
def test_a_tail_after_the_last_answer_is_a_breach(answers: list[Answer]) -> None:
    """Bytes that nobody asked for could be taken for the next answer."""
    wire = asked(*(answer.endpoint for answer in answers))
    with pytest.raises(ProtocolError, match="nobody asked"):
        wire.receive(b"".join(map(spoken, answers)) + b"9")


@pytest.mark.parametrize(
    ("field", "content_type", "whole"),
    [
        ("text/plain; x=y", "text/plain; x=y", False),  # a service that does not know of words
        ("text/plain;whole", "text/plain;whole", False),
        (" text/plain; x=y;", "text/plain; x=y", False),
        (" text/plain; x=y;whole", "text/plain; x=y", True),
        (" text/plain;whole;", "text/plain;whole", False),
        (" text/plain;later+whole+overlap", "text/plain", True),
        (" text/plain;later", "text/plain", False),
        (" -;whole", "-", True),
        (" ", "", False),
    ],
)
def test_the_words_of_a_service_and_of_one_that_has_none(field: str, content_type: str, whole: bool) -> None:  # noqa: FBT001
    """An exporter can say none through any service; and a word that nobody knows yet breaks nothing."""
    (answer,) = asked(9100).receive(f"9100 200 3 0.1 {field}\nm 1".encode())
    assert answer == Answer(9100, 200, b"m 1", 0.1, content_type, whole)
    assert answer.text == (b"m 1\n" if whole else b"m 1")


def test_a_whole_text_ends_its_last_line() -> None:
    """Once; and an empty text has no lines."""
    assert Answer(9100, 200, b"m 1\n", 0.1, "-", whole=True).text == b"m 1\n"
    assert Answer(9100, 200, b"", 0.1, "-", whole=True).text == b""


def test_an_answer_is_given_as_soon_as_it_is_complete() -> None:
    """One slow exporter does not hold up the other's text."""
    wire = asked(9100, 9256)
    assert wire.receive(spoken(NODE)) == [NODE]
    assert wire.pending == {9256}
    assert not wire.idle
    assert wire.receive(spoken(PROCESS)) == [PROCESS]
    assert wire.idle


def overlapping(*limits: tuple[int, int]) -> Version2:
    """A wire on which a request for each port, with its largest body, was sent while the others are owed."""
    wire = asked(1)
    wire.receive(b"1 200 0 0.1  -;overlaps\n")
    for port, max_body in limits:
        wire.ask(milliseconds=9500, max_body=max_body, endpoints=[port])
    return wire


def test_requests_for_different_ports_overlap_where_the_service_says_so() -> None:
    """On a call whose answers had the word, and on no other; and never twice for one port."""
    wire = asked(9100)
    with pytest.raises(AssertionError, match="answers are owed"):
        wire.ask(milliseconds=1, max_body=1, endpoints=[9256])
    wire = overlapping((9100, 1000), (9256, 1000))
    with pytest.raises(AssertionError, match="whose answer is owed"):
        wire.ask(milliseconds=1, max_body=1, endpoints=[9256, 9300])
    assert wire.pending == {9100, 9256}
    assert fed(wire, one_by_one(spoken(PROCESS))) == [PROCESS]
    wire.ask(milliseconds=1, max_body=1000, endpoints=[9256])
    assert wire.receive(spoken(PROCESS) + spoken(NODE)) == [PROCESS, NODE]
    assert wire.idle


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"9256 200 5 0.1 -\n", "announced 5 bytes for port 9256, where at most 4"),
        (b"9256 200 0 0.1 -\n" * 2, "port 9256, which is not"),
        (b"1 200 0 0.1 -\n", "port 1, which is not"),
    ],
)
def test_a_service_that_lies_while_requests_overlap(data: bytes, words: str) -> None:
    """Each port has the limit of its own request, and is answered once."""
    wire = overlapping((9100, 1000), (9256, 4))
    with pytest.raises(ProtocolError, match=words):
        fed(wire, one_by_one(data))


def test_requests_are_written_as_the_protocol_says() -> None:
    """Milliseconds, largest body, ports; and the ports alone as qrexec argument."""
    wire = Version2()
    assert wire.greeting == b"+2\n"
    wire.receive(b"=2\n")
    assert wire.ask(milliseconds=9500, max_body=16777216, endpoints=[9256, 9100]) == b"?9500 16777216 9100 9256\n"
    assert argument([9256, 9100]) == "9100+9256"


BREACHES = {
    "another port": b"9999 200 0 0.1 -\n",
    "the same port twice": spoken(NODE) * 2,
    "longer than asked": b"9100 200 1001 0.1 -\n",
    "a reason longer than any": b"9100 0 %d 0.1 -\n" % (MAX_REASON + 1),
    "no number": b"9100 200 x 0.1 -\n",
    "a negative length": b"9100 200 -1 0.1 -\n",
    "a status there is not": b"9100 999 0 0.1 -\n",
    "a sign": b"+9100 200 0 0.1 -\n",
    "digits of another script": "\u0669100 200 0 0.1 -\n".encode(),
    "too few words": b"9100 200 0\n",
    "an empty line": b"\n",
    "a carriage return": b"9100 200 0 0.1 text\r\n",
    "an escape sequence": b"9100 200 0 0.1 \x1b[2J\n",
    "a header without an end": b"9" * (MAX_HEADER + 1),
    "a greeting again": b"=2\n",
}


@pytest.mark.parametrize("data", BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_is_said_whole_and_byte_by_byte(data: bytes) -> None:
    """What the service may not say ends the conversation, as an error of our own."""
    with pytest.raises(ProtocolError):
        fed(asked(9100, 9256), [data])
    with pytest.raises(ProtocolError):
        fed(asked(9100, 9256), one_by_one(data))


@pytest.mark.parametrize(
    "greeting", [b"=\n", b"=3\n", b"hello\n", b"\n", b"=2\n=2\n", b"=2\n9100 200 0 0.1 -\n", b"=" * 300]
)
def test_a_wrong_greeting_is_a_breach(greeting: bytes) -> None:
    """Nobody may speak before being asked, and only the agreed greeting counts."""
    with pytest.raises(ProtocolError):
        Version2().receive(greeting)


def version_1(max_body: int = 1000) -> Version1:
    """A greeted wire of version 1 that has asked for its port."""
    wire = Version1()
    assert wire.greeting == b"+\n"
    assert wire.receive(b"=\n") == []
    assert wire.ask(milliseconds=1, max_body=max_body, endpoints=[9100]) == b"?\n"
    return wire


def test_version_1_answers_with_a_length_and_a_body() -> None:
    """Upstream's service says neither status nor duration."""
    for pieces in ([b"4\na 1\n"], one_by_one(b"4\na 1\n")):
        wire = version_1()
        (answer,) = fed(wire, pieces)
        assert (answer.endpoint, answer.status, answer.body, answer.seconds) == (9100, 200, b"a 1\n", None)
        assert wire.idle


@pytest.mark.parametrize("data", [b"x\n", b"-1\n", b"12345678\n", b"\n", b" 4\n", b"4 \n", b"4\na 1\n4"])
def test_version_1_breaches(data: bytes) -> None:
    """At most seven digits and a newline, and nothing after the body."""
    with pytest.raises(ProtocolError):
        fed(version_1(), [data])


def test_version_1_names_the_limit_it_exceeds() -> None:
    """Version 1 cannot be told the limit, so its length is where it shows."""
    with pytest.raises(BodySizeLimitError, match="1000"):
        version_1().receive(b"1001\n")


STATES: dict[str, Callable[[], TextWire]] = {
    "greet": Version2,
    "asked": lambda: asked(9100, 9256),
    "overlapping": lambda: overlapping((9100, 1000), (9256, 4)),
    "v1": version_1,
}


@given(st.binary(max_size=600), st.lists(st.integers(1, 50), max_size=20), st.sampled_from(sorted(STATES)))
def test_no_bytes_raise_anything_but_our_own_error(data: bytes, cuts: list[int], state: str) -> None:
    """Invariant 1: no bytes from a qube make the wire raise anything but its own error, however the pipe cuts them."""
    wire = STATES[state]()
    try:
        for cut in [*cuts, len(data)]:
            wire.receive(data[:cut])
            data = data[cut:]
    except (ProtocolError, BodySizeLimitError):
        pass


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.lists(st.integers(1, 200), max_size=30))
def test_any_bodies_come_through_any_cuts(bodies: list[bytes], cuts: list[int]) -> None:
    """What is said is what is understood."""
    answers = [
        Answer(endpoint=port, status=200, body=body, seconds=0.5, content_type="text/plain")
        for port, body in enumerate(bodies, 9100)
    ]
    wire = asked(*(answer.endpoint for answer in answers))
    data = b"".join(map(spoken, answers))
    pieces = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    assert fed(wire, [*pieces, data]) == answers


def test_names_are_a_length_and_a_text_each_time() -> None:
    """dom0's ruddo.PrometheusDiscover speaks as version 1 does, and knows no ports."""
    for pieces in ([b"5\nwork\n"], one_by_one(b"5\nwork\n")):
        wire = Names(100)
        assert (wire.greeting, wire.receive(b"=\n"), wire.idle) == (b"+\n", [], True)
        for _ in range(2):
            assert wire.ask() == b"?\n"
            assert not wire.idle
            assert fed(wire, pieces) == [b"work\n"]
            assert wire.idle


@pytest.mark.parametrize("data", [b"x\n", b"101\n", b"5\nwork\n5"])
def test_names_breaches(data: bytes) -> None:
    """No length, one that is too large, and bytes behind the answer."""
    wire = Names(100)
    wire.receive(b"=\n")
    wire.ask()
    with pytest.raises((ProtocolError, BodySizeLimitError)):
        fed(wire, [data])


def test_one_reply_is_complete_at_the_end_of_output() -> None:
    """An Admin API call: nothing is said, and the whole output is the answer."""
    wire = OneReply(100)
    assert (wire.greeting, wire.asks_once, wire.idle) == (b"", True, True)
    assert wire.end_of_output() == [], "nothing was asked"
    assert wire.ask() == b""
    assert fed(wire, [b"0\0do", b"m0\n"]) == []
    assert not wire.idle
    assert wire.end_of_output() == [b"0\0dom0\n"]
    assert wire.idle
    with pytest.raises(ProtocolError, match="more than 100 bytes"):
        wire.receive(b"x" * 101)


def test_a_wire_that_is_of_no_more_use_holds_no_body() -> None:
    """A service that does not end keeps the call for seconds; its part of a body was kept as long."""
    wire = Version2()
    wire.receive(b"=2\n")
    wire.ask(milliseconds=1000, max_body=1000, endpoints=[9100])
    wire.receive(b"9100 200 900 0.1 text/plain\n" + b"x" * 500)
    assert wire.held == 500
    wire.let_go()
    assert wire.held == 0
