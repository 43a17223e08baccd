# SPDX-License-Identifier: GPL-3.0-or-later
"""
What reading and merging a text may cost: limits that are looked at as soon as they are passed, turns, new lines.

Work is counted here, never time: bytes that prometheus_client gets, and yields.
"""

from collections.abc import Generator, Sequence
from typing import Any

import pytest

from federator.errors import SampleLimitError
from federator.model import Family, Limits, Reading
from federator.text import exposition, lines, merge, parser, shape
from federator.text.allowance import LEAST_WORK, PART_PER_SCRAPE, WORK_PER_SAMPLE, Allowance
from federator.text.exposition import MAX_NAMES, Reader
from federator.text.memory import Memory
from federator.text.merge import Merger
from tests.helpers import finish, merged, page, read, reader, recording, target

# 16 KiB, all of it dear to the parser.
_DEAR = ",".join(f'l{number}="' + "\\\\" * 1990 + '"' for number in range(4))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The lines that prometheus_client is asked about, each as often as it is asked."""
    asked: list[bytes] = []
    ask = parser.ask_client

    def counted(untrusted_lines: Sequence[bytes]) -> Any:
        asked.extend(untrusted_lines)
        return ask(untrusted_lines)

    monkeypatch.setattr(parser, "ask_client", counted)
    return asked


def yields(work: Generator[None, None, Any]) -> int:
    """How often it yields."""
    return sum(1 for _ in work)


def dear(count: int, value: int = 1) -> bytes:
    """Lines that are too long to be remembered."""
    return b"".join(f'e{{i="{number}",{_DEAR}}} {value}\n'.encode() for number in range(count))


def test_too_many_names_are_noticed_at_once(judged: list[bytes]) -> None:
    """The rest of the text is not judged. The error says how to allow more."""
    with pytest.raises(SampleLimitError, match=r"5000 metric names.*a tenth of scrape.sample_limit"):
        read(b"".join(b"n%d 1\n" % number for number in range(50_000)))
    assert len(judged) <= MAX_NAMES + lines.SLICE_LINES
    more = Limits(samples=60_000)
    assert read(b"".join(b"n%d 1\n" % number for number in range(6_000)), limits=more).samples == 6_000


def test_lines_are_counted_in_turns() -> None:
    """Before the first of them is read."""
    body = b"\n" * (4 * exposition.COUNTED_BYTES)
    work = reader().read(body)
    for _ in range(3):
        next(work)
    with pytest.raises(SampleLimitError, match="4194304 lines"):
        next(work)


@pytest.mark.slow
def test_a_large_family_is_joined_in_turns() -> None:
    """Its blocks have few bytes each, and are the same lines as those of a text that has a shape."""
    good = b"".join(b'm{n="%d",filler="%s"} %d\n' % (n, b"x" * 4000, n) for n in range(1000))
    reading = read(good + b"!\n")
    assert (reading.lines_dropped, reading.samples) == (1, 1000)
    assert max(map(len, reading.blocks)) <= 2 * exposition.STEP_BYTES
    assert b"".join(reading.blocks) == b"".join(read(good).blocks)


def test_sections_are_known_by_the_first_bytes() -> None:
    """So a large text is not searched to its end. The first line counts, too."""
    long = b"m 1\n" * (1 << 18)
    assert shape.separator_of(b"# HELP m x\n# TYPE m gauge\n" + long) == b"\n# HELP "
    assert shape.separator_of(b"# TYPE m gauge\n" + long + b"# HELP n x\n") == b"\n# TYPE "
    assert shape.separator_of(long + b"# TYPE n gauge\n") == b"\n# HELP "


def test_long_names_are_too_many_sooner() -> None:
    """What a name costs grows with its length."""
    with pytest.raises(SampleLimitError, match="1280000 bytes"):
        read(b"".join(b"n%d" % number + b"n" * 4000 + b" 1\n" for number in range(400)))


def test_too_many_samples_are_noticed_at_once(judged: list[bytes]) -> None:
    """And not after all lines were judged."""
    with pytest.raises(SampleLimitError, match="more than 5000 samples"):
        read(b"".join(b'm{a="%d"} 1\n' % number for number in range(15_000)), limits=Limits(samples=5000))
    assert len(judged) <= 5000 + lines.SLICE_LINES


def test_a_bad_line_is_judged_once(judged: list[bytes]) -> None:
    """Whatever its value is at the next scrape."""
    again = reader()
    for value in range(3):
        reading = finish(again.read(b'm{a="1",a="2"} %d\nok 1\n' % value))
        assert (reading.samples, reading.lines_dropped) == (1, 1)
        assert reading.complaint
    # Among others, and then alone where the parser refuses it, as newer ones do; but only at the first scrape.
    asked = [line for line in judged if line.startswith(b"m")]
    assert asked in ([b'm{a="1",a="2"}  0'], [b'm{a="1",a="2"}  0'] * 2)


@pytest.mark.slow
def test_a_text_that_is_dear_at_every_scrape_is_cut(judged: list[bytes]) -> None:
    """It may use up what a new text may; afterwards a part of that at each scrape. The rest is dropped and counted."""
    again = reader()
    costs = []
    for value in range(4):
        judged.clear()
        reading = finish(again.read(dear(1000, value) + b"ok 1\n"))
        assert reading.samples + reading.lines_dropped == 1001
        assert "scrape.sample_limit" in reading.complaint
        costs.append(sum(map(len, judged)))
    assert costs[0] < 3_000_000 < len(dear(1000))
    assert all(cost < costs[0] / (PART_PER_SCRAPE - 5) for cost in costs[1:])


@pytest.mark.slow
def test_dear_help_lines_are_cut_too(judged: list[bytes]) -> None:
    """Their samples stay."""
    again = reader()
    for value in range(2):
        judged.clear()
        helps = b"".join(b"# HELP n%d %d" % (number, value) + b"\\\\" * 8000 + b"\n" for number in range(900))
        assert finish(again.read(helps + b"ok 1\n")).samples == 1
    assert sum(map(len, judged)) < len(helps) / 10


def test_lines_that_are_known_are_read_when_the_allowance_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen before costs nothing, so it is never cut."""
    again = reader()
    assert finish(again.read(b"a 1\nb 2\n")).samples == 2
    monkeypatch.setattr(Allowance, "spend", lambda _self, _work: False)
    reading = finish(again.read(b"a 3\nnew 1\nb 4\n"))
    assert (reading.samples, reading.lines_dropped) == (2, 1)


@pytest.mark.parametrize("exporter", ["node", "postgres", "redis", "prometheus", "process", "pyapp", "blackbox"])
def test_real_texts_keep_to_the_allowance(exporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an exporter that has as many samples as it may have is read whole at the first scrape."""
    spent: list[int] = []

    def spend(_self: Allowance, work: int) -> bool:
        spent.append(work)
        return True

    monkeypatch.setattr(Allowance, "spend", spend)
    samples = read(recording(exporter)).samples
    assert sum(spent) < samples * WORK_PER_SAMPLE


def test_the_allowance_is_never_more_than_at_the_start() -> None:
    """However many scrapes there were."""
    allowance = Allowance(1)
    for _ in range(50):
        allowance.renew()
    assert allowance.spend(LEAST_WORK)
    assert not allowance.spend(1)
    allowance.renew()
    assert not allowance.spend(LEAST_WORK // PART_PER_SCRAPE + 1)
    assert allowance.spend(LEAST_WORK // PART_PER_SCRAPE)


SHAPES = {
    "many names": b"".join(b"n%d 1\n" % number for number in range(5000)),
    "one name": b"".join(b'm{a="%d"} 1\n' % number for number in range(20_000)),
    "two names in turn": b"".join(b'a{i="%d"} 1\nb{i="%d"} 1\n' % (number, number) for number in range(10_000)),
    "comments": b"# HELP a a\n" * 4000 + b"a 1\n" + b"# a\n" * 10_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES.keys())
def test_no_step_of_reading_looks_at_many_lines(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text takes a turn for every so many lines in each of the steps: lines, page lines, shape."""
    count = body.count(b"\n")
    fine = yields(reader().read(body))
    assert fine >= count / lines.STEP_LINES
    for module in (lines, shape, exposition):
        monkeypatch.setattr(module, "STEP_LINES", 10**9)
    monkeypatch.setattr(lines, "STEP_NAME_BYTES", 10**9)
    samples = read(body).samples
    # Without these steps there are only those that the parser needs.
    assert fine - yields(reader().read(body)) >= samples / shape.STEP_LINES


def test_a_text_that_jumps_between_names_has_one_block_for_each() -> None:
    """Else the page would have a step for each of its lines, whenever it is planned."""
    again = reader()
    for value in (1, 2):
        body = b"".join(b'a{i="%d"} %d\nb{i="%d"} 1\n' % (number, value, number) for number in range(5000))
        reading = finish(again.read(body))
        assert (reading.samples, reading.lines_dropped) == (10_000, 0)
        assert [family.name for family in reading.families] == ["a", "b"]
        assert reading.blocks[0].count(b"} %d\n" % value) == 5000


def test_planning_a_page_takes_turns() -> None:
    """By the families and names that are looked at, whichever target has them."""
    few = [_reading(f"q{number}", 10) for number in range(20)]
    many = [_reading("work", 20_000)]
    assert yields(Merger().merge(few)) < 40
    assert yields(Merger().merge(many)) >= 4 * 20_000 / merge.SLICE  # claims, types, blocks, names


def test_joining_a_page_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the plan is known. The page is the same."""
    merger, readings = Merger(), [_reading("work", 500)]
    finish(merger.merge(readings))
    assert yields(merger.merge(readings)) == 0
    monkeypatch.setattr(merge, "PIECE_PARTS", 100)
    assert yields(merger.merge(readings)) == 9
    text = merged(merger, readings)
    monkeypatch.undo()
    assert text == page(*readings)


@pytest.mark.slow
def test_taking_a_family_apart_takes_turns() -> None:
    """A block may have as many lines as a text."""
    count = 10 * merge.SLICE
    body = b"# TYPE h histogram\n" + b"".join(b'h_bucket{le="%d"} 1\n' % number for number in range(count))
    histogram = read(body, target("a"))
    summaries = [read(b"# TYPE h summary\nh_sum 1\n", target(qube)) for qube in "bc"]
    assert yields(Merger().merge([histogram, *summaries])) >= count / merge.SLICE


def _reading(qube: str, names: int) -> Reading:
    """So many families with a line each."""
    families = tuple(Family(f"n{number}", "gauge") for number in range(names))
    return Reading(families, [b'%s{qube="%s"} 1\n' % (one.name.encode(), qube.encode()) for one in families], names)


def test_a_series_whose_label_is_renamed_is_judged_once_for_each_target(judged: list[bytes]) -> None:
    """An exporter may have our labels on each of its lines; it must not be cut for that."""
    memory = Memory(Limits())
    readers = [Reader(target(qube), Limits(), memory) for qube in ("work", "vault")]
    for value in range(3):
        for one in readers:
            reading = finish(one.read(b'm{qube="x"} %d\n' % value))
            assert b',exported_qube="x"} %d\n' % value in reading.blocks[0]
    assert len(judged) == 2
