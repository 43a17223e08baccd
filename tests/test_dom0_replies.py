# SPDX-License-Identifier: GPL-3.0-or-later
"""What dom0 says over its Admin API, by its bytes."""

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from federator import dom0_replies, wire
from federator.dom0_replies import MAX_EVENT, MAX_POOLS, MAX_QUBES, Events, Numbers
from federator.errors import ProtocolError
from federator.targets import is_qube_name

CONNECTED = b"1\0\0connection-established\0\0"
STATS = b"1\0work\0vm-stats\0memory_kb\x00400\0cpu_time\x001500\0cpu_usage_internal\x000.5\0\0"


def heard(*pieces: bytes) -> list[tuple[str, Numbers]]:
    """What the wire tells of these pieces."""
    told: list[tuple[str, Numbers]] = []
    events = Events(lambda qube, numbers: told.append((qube, numbers)))
    for piece in pieces:
        assert not events.receive(piece)
    return told


@given(st.lists(st.integers(0, 3 * len(STATS)), max_size=6))
def test_events_are_the_same_however_the_pipe_cuts_them(cuts: list[int]) -> None:
    """Keys whose values are no whole numbers are hints, and left out."""
    text = CONNECTED + STATS + b"1\0dom0\0vm-stats\0cpu_time\x0020\0\0" + b"1\0work\0other\0a\0b\0\0"
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert heard(*pieces) == [("work", {"memory_kb": 400, "cpu_time": 1500}), ("dom0", {"cpu_time": 20})]


@pytest.mark.parametrize("subject", [b"", b"a/b", b"work\n", b"none", b"x" * 40, b"\xff"])
def test_a_name_that_no_qube_has_becomes_no_label(subject: bytes) -> None:
    """Nor does it cost the others theirs."""
    assert [qube for qube, _ in heard(b"1\0" + subject + b"\0vm-stats\0cpu_time\x001\0\0" + STATS)] == ["work"]


@pytest.mark.parametrize("text", [b"garbage", b"0\0", b"1x", b"\0\0", b"1\0" + b"x" * (MAX_EVENT + 100)])
def test_what_is_no_event_ends_the_call(text: bytes) -> None:
    """So does one without an end."""
    with pytest.raises(ProtocolError):
        heard(CONNECTED, text)


def test_an_error_is_named() -> None:
    """By its type; the rest is for dom0's journal."""
    with pytest.raises(ProtocolError, match="'QubesVMNotFoundError'; its journal"):
        heard(b"2\0QubesVMNotFoundError\0trace\0no such\0")
    with pytest.raises(ProtocolError, match="PermissionDenied"):
        wire.payload(b"2\0PermissionDenied\0\0\0", "admin.pool.List")
    with pytest.raises(ProtocolError, match="is no reply"):
        wire.payload(b"hello", "admin.pool.List")


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_foreign_bytes_raise_nothing_else(text: bytes, cuts: list[int]) -> None:
    """And are told as numbers of qubes, or not at all."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    try:
        told = heard(*[text[start:end] for start, end in pairwise(places)])
    except ProtocolError:
        return
    assert all(type(number) is int for _, numbers in told for number in numbers.values())
    dom0_replies.classes(text + b"\n")
    for parse in (dom0_replies.pools, dom0_replies.numbers, dom0_replies.properties, dom0_replies.single_property):
        parse(text)
    dom0_replies.date(text)


PARTS = (CONNECTED, STATS, b"1\0", b"\0", b"\0\0", b"k\0v\0", b"2\0", b"Error\0", b"x" * 5000, b"k\0v\0" * 1500)
BYTES = st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=8)), max_size=12).map(b"".join)


def outcome(pieces: Sequence[bytes]) -> tuple[list[tuple[str, Numbers]], str]:
    """What is told, and what the error says without the bytes that it shows."""
    told: list[tuple[str, Numbers]] = []
    events = Events(lambda qube, numbers: told.append((qube, numbers)))
    try:
        for piece in pieces:
            events.receive(piece)
    except ProtocolError as error:
        return told, str(error).split(": ")[0]
    return told, ""


@given(BYTES, st.lists(st.integers(0, 60_000), max_size=6))
@example(STATS + b"2\0QubesException\0", [len(STATS) + 1])  # in the head
@example(STATS + b"1\0work\0vm-stats\0" + b"k\0v\0" * 5000 + b"\0", [len(STATS) + 15_000, len(STATS) + 18_000])
def test_any_bytes_have_the_same_outcome_however_the_pipe_cuts_them(text: bytes, cuts: list[int]) -> None:
    """Facts, and the error that ends the call: an event that is too long is so in one piece, too."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(places)]
    assert outcome(pieces) == outcome([text])


@given(
    st.sampled_from([b"1\0", b"1\0work\0vm-stats\0", b"2\0"]), st.binary(min_size=1, max_size=9), st.integers(1, 4096)
)
def test_what_never_ends_is_not_kept(head: bytes, pattern: bytes, size: int) -> None:
    """Whatever it is made of: the call ends, or the bytes are events that were told."""
    endless = head + pattern * (3 * MAX_EVENT // len(pattern))
    told, error = outcome([endless[start : start + size] for start in range(0, len(endless), size)])
    assert error
    assert all(len(numbers) <= MAX_EVENT // 2 for _, numbers in told)


def test_replies() -> None:
    """As qubesd writes them."""
    listed = b"dom0 class=AdminVM state=Running\nwork class=AppVM state=Halted uuid=1\nx/y class=AppVM state=Running\n"
    assert dom0_replies.classes(listed) == {"dom0": ("AdminVM", "Running"), "work": ("AppVM", "Halted")}
    with pytest.raises(ProtocolError, match="cut"):
        dom0_replies.classes(listed[:-1])
    assert dom0_replies.pools(b"vm-pool\n../x\n\nlinux-kernel\n") == ["vm-pool", "linux-kernel"]
    assert dom0_replies.numbers(b"driver=lvm_thin\nsize=20\nusage=\nrw=True\n") == {"size": 20}
    told = b"label default=False type=label red\nnetvm default=True type=vm \n"
    told += b"kernelopts default=True type=str a\\\\b\\nc\n"
    assert dom0_replies.properties(told) == {"label": "red", "netvm": "", "kernelopts": "a\\b\nc"}
    assert dom0_replies.single_property(b"default=True type=vm sys-net") == "sys-net"
    assert dom0_replies.single_property(b"default=True type=vm ") == ""
    assert dom0_replies.single_property(b"sys-net") == ""
    assert (dom0_replies.date(b"2026-06-30"), dom0_replies.date(b"soon")) == ("2026-06-30", None)


NAMES = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}", fullmatch=True)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,64}", fullmatch=True), st.text()))
def test_properties_are_read_as_qubesd_writes_them(told: dict[str, str]) -> None:
    """Any text, with its own line ends and backslashes."""
    written = {name: value.replace("\\", "\\\\").replace("\n", "\\n") for name, value in told.items()}
    reply = "".join(f"{name} default=False type=str {value}\n" for name, value in written.items())
    assert dom0_replies.properties(reply.encode()) == told


@given(st.binary(max_size=150), st.dictionaries(NAMES, st.integers(0, 10**18 - 1), max_size=5))
def test_garbage_between_lines_costs_no_other_line(garbage: bytes, told: dict[str, int]) -> None:
    """Of pools, of qubes, of numbers: what is read is what could be one, and no more than there may be."""
    lines = b"".join(b"%b=%d\n" % (key.encode(), value) for key, value in told.items())
    found = dom0_replies.numbers(garbage + b"\n" + lines)
    assert told.items() <= found.items()
    assert all(type(number) is int and 0 <= number < 10**18 for number in found.values())
    names = b"".join(b"%b\n" % name.encode() for name in told)
    pools = dom0_replies.pools(garbage + b"\n" + names)
    assert set(told) <= set(pools)
    assert all(re.fullmatch(r"[a-zA-Z0-9_.-]+", pool) for pool in pools)
    listed = b"".join(b"%b class=AppVM state=Halted\n" % name.encode() for name in told)
    qubes = dom0_replies.classes(garbage + b"\n" + listed)
    assert {name for name in told if is_qube_name(name)} <= qubes.keys() <= {"dom0", *filter(is_qube_name, qubes)}
    assert all(word.isalpha() for words in qubes.values() for word in words)


def test_there_are_no_more_names_than_a_machine_has() -> None:
    """A reply of 256 kB could have more."""
    assert len(dom0_replies.classes(b"".join(b"q%d class=AppVM state=Halted\n" % n for n in range(5000)))) == MAX_QUBES
    assert len(dom0_replies.pools(b"".join(b"pool%d\n" % n for n in range(5000)))) == MAX_POOLS
