# SPDX-License-Identifier: GPL-3.0-or-later
"""Timestamps in a text: a sample that its exporter stamped too long ago is not passed on as a new one."""

import pytest

from federator.model import Limits
from tests.helpers import finish, lines, page, reader, target

NOW = 1_700_000_000_000.0
HOUR = 3_600_000


@pytest.mark.parametrize("timestamp", [NOW, NOW - HOUR, NOW + HOUR])
def test_a_sample_with_a_timestamp_that_is_not_old_stays(timestamp: float) -> None:
    """Without its timestamp."""
    reading = finish(reader().read(b"m 1 %d\n" % timestamp, NOW))
    assert lines(reading) == ['m{qube="work",exporter="node"} 1']


@pytest.mark.parametrize("timestamp", [b"%d" % (NOW - HOUR - 1), b"1700000000", b"0", b"-1", b"-.e", b"1e400-"])
def test_an_old_or_senseless_timestamp_costs_its_sample(timestamp: bytes) -> None:
    """It is dropped and counted; the reason names the key."""
    reading = finish(reader().read(b"m 1 " + timestamp + b"\nok 1\n", NOW))
    assert (reading.samples, reading.lines_dropped) == (1, 1)
    assert "timestamp" in reading.complaint
    assert ("scrape.timestamp_age_limit" in reading.complaint) is (b"-." not in timestamp and b"e4" not in timestamp)


def test_without_the_time_no_timestamp_is_too_old() -> None:
    """The core has no clock of its own."""
    assert finish(reader().read(b"m 1 1\n")).samples == 1


def test_openmetrics_has_seconds() -> None:
    """With a fraction; its text ends in # EOF."""
    text = b"m 1 1699999999.5\nold 1 1699990000\n# EOF\n"
    assert [line.split("{")[0] for line in lines(finish(reader().read(text, NOW)))] == ["m"]


def test_how_old_is_too_old_is_configured() -> None:
    """In seconds."""
    text = b"m 1 %d\nok 1\n" % (NOW - 10_001)
    assert finish(reader(limits=Limits(timestamp_age=10)).read(text, NOW)).samples == 1
    assert finish(reader(limits=Limits(timestamp_age=11)).read(text, NOW)).samples == 2


@pytest.mark.parametrize("more", [b"", b"# HELP b b\nb 1\n"])
def test_the_same_text_grows_old(more: bytes) -> None:
    """An exporter that repeats its text, or changes another part of it, is not taken at its first word."""
    again = reader()
    text = b"# HELP a a\na 1 %d\n# HELP c c\nc 1\n" % NOW
    assert finish(again.read(text, NOW)).samples == 2
    assert next(line.split("{")[0] for line in lines(finish(again.read(text + more, NOW + HOUR + 1)))) == "c"
    assert finish(again.read(text, NOW + HOUR)).samples == 2


def test_a_new_line_with_an_old_timestamp_is_dropped() -> None:
    """Also where the rest of the text is compared with the last one only."""
    again = reader()
    assert finish(again.read(b'# HELP a a\na{x="1"} 1\n', NOW)).samples == 1
    reading = finish(again.read(b'# HELP a a\na{x="1"} 2\na{x="2"} 1 1000\n', NOW))
    assert (reading.samples, reading.lines_dropped) == (1, 1)


def test_a_text_with_timestamps_has_the_same_page_each_time() -> None:
    """Whether it is read for the first time or again."""
    again = reader(target("a"))
    for value in range(3):
        text = b'# TYPE a gauge\na{x="1"} %d %d\nb %d\n' % (value, NOW, value)
        first = finish(reader(target("a")).read(text, NOW))
        assert page(finish(again.read(text, NOW))) == page(first)
