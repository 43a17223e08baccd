# SPDX-License-Identifier: GPL-3.0-or-later
"""Following and memory: a page made from memory is, byte for byte, the page made without it; memory has bounds."""

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.samples import Sample

from federator.errors import ScrapeError
from federator.model import Exporter, Family, Limits, Target
from federator.pattern import Pattern
from federator.text import parser
from federator.text.allowance import Allowance
from federator.text.exposition import Reader
from federator.text.follow import LARGE, PageSeries, Unfinished, follow
from federator.text.lines import SLICE_BYTES, SLICE_LINES, STEP_LINES, TextLines
from federator.text.memory import LineCache, Memory
from federator.text.metadata import FamilyMetadata
from federator.text.relabel import Relabeling
from federator.text.samples import SampleReader
from federator.text.shape import Heads, PageLine, shape_of
from federator.text.timestamp import Timestamps
from federator.text.value import are_values, is_value
from tests.helpers import RECORDINGS, finish, page, read, reader, recording, target

EXPORTERS = sorted({path.name.rpartition("-")[0] for path in RECORDINGS.glob("*.prom")})
# Bodies that are unusual: without HELP and TYPE; TYPE alone; comments, blanks and timestamps between samples; labels
# with our names; reserved names; families in several places; a section with samples of another family.
ODD = {
    "no metadata": b'a{x="1"} 1\na{x="2"} 2\nb 3\nb_total{x="1"} 4\n',
    "TYPE alone": b'# TYPE a gauge\na 1\n# TYPE h histogram\nh_bucket{le="1"} 1\nh_bucket{le="+Inf"} 2\nh_sum 3\n',
    "all sorts": b'# HELP a text\n\n# a comment\na 1\n# HELP b text\nb{x="y"}  2 123\nb{x="z"}\t3\n\tb 4\nc{}5\n',
    "our labels": b'# HELP a text\na{qube="x",exporter="y"} 1\na{qube="z"} 2\na 3\n',
    "reserved": b"# HELP up text\n# TYPE up gauge\nup 1\n# HELP ALERTS text\nALERTS 2\nexported_scrape_x 3\n",
    "in places": b'# HELP a text\na{x="1"} 1\n# HELP b text\nb 1\na{x="2"} 2\n# HELP c text\nc 1\nb{x="1"} 1\n',
    "dropped by config": b"# HELP go_x text\ngo_x 1\n# HELP a text\na 1\ngo_y 2\n# HELP go_z text\ngo_z 1\n",
    "carriage returns": b"# HELP a text\r\na 1\r\n# HELP b text\r\nb 2\r\n",
    "format": b'# HELP a 100 %b\na{x="%b"} 1\na{x="%%s\r"} 2\na{x="%(x)s"} 3\n# HELP b 7 %\nb{x="%"} 1\n',
    "without samples": b"# HELP a t\n# TYPE a gauge\nb 1\n# HELP c t\n# TYPE c summary\n# TYPE go_d gauge\n",
    "exemplars": b'# HELP a text\na 1 # {trace="\0"} 1\n# HELP b text\nb 2\n',
}
TARGET = replace(target(), exporter=Exporter("node", 9100, drop=(Pattern("go_.*"),)))
VALUES = [
    b"0",
    b"1",
    b"-1.5",
    b"NaN",
    b"+Inf",
    b"1e5",
    b"1e999",
    b"",
    b"1_0",
    b" 1",
    b"0x1",
    b"1 1",
    b"9" * 401,
    b"1e",
    b"+5",
    b".5",
]

Edit = Callable[[random.Random, list[bytes]], None]


def _at(chance: random.Random, lines: list[bytes]) -> int:
    return chance.randrange(len(lines))


def new_value(chance: random.Random, lines: list[bytes]) -> None:
    """A line gets another number, as at every scrape."""
    where = _at(chance, lines)
    if not lines[where].startswith(b"#"):
        lines[where] = lines[where].rpartition(b" ")[0] + b" %d" % chance.randrange(10**6)


def odd_value(chance: random.Random, lines: list[bytes]) -> None:
    """A line gets a value that may be a number or not."""
    where = _at(chance, lines)
    lines[where] = lines[where].rpartition(b" ")[0] + b" " + chance.choice(VALUES)


def new_series(chance: random.Random, lines: list[bytes]) -> None:
    """A series with a new label value comes before a line, or in its place."""
    where = _at(chance, lines)
    if not lines[where].startswith(b"#"):
        name = lines[where].partition(b"{")[0].partition(b" ")[0]
        lines[where : where + chance.randrange(2)] = [name + b'{new="%d"} 1' % chance.randrange(10**6)]


def gone(chance: random.Random, lines: list[bytes]) -> None:
    """Some lines go."""
    where = _at(chance, lines)
    del lines[where : where + chance.choice([1, 1, 1, 2, 5, 20])]
    lines[:] = lines or [b"a 1"]


def twice(chance: random.Random, lines: list[bytes]) -> None:
    """A line comes a second time, somewhere."""
    lines.insert(_at(chance, lines), lines[_at(chance, lines)])


def moved(chance: random.Random, lines: list[bytes]) -> None:
    """A line moves."""
    lines.insert(_at(chance, lines), lines.pop(_at(chance, lines)) if len(lines) > 1 else b"b 1")


def mixed(chance: random.Random, lines: list[bytes]) -> None:
    """Some lines change their order."""
    where = _at(chance, lines)
    some = lines[where : where + 10]
    chance.shuffle(some)
    lines[where : where + 10] = some


def broken(chance: random.Random, lines: list[bytes]) -> None:
    """A line gets a byte that does not belong there."""
    where = _at(chance, lines)
    line = bytearray(lines[where] + b" ")
    line[_at(chance, [bytes([byte]) for byte in line])] = chance.choice(b'\0\r\t #{}"\\,=1a\xff')
    lines[where] = bytes(line)


def metadata(chance: random.Random, lines: list[bytes]) -> None:
    """A family gets another type, its first type, or a comment between its lines."""
    name = lines[_at(chance, lines)].removeprefix(b"# HELP ").partition(b"{")[0].partition(b" ")[0]
    line = chance.choice([b"# TYPE %b gauge", b"# TYPE %b counter", b"# HELP %b text", b"# %b", b"#%b", b"\0%b", b""])
    lines.insert(_at(chance, lines), line % name if line else b"")


EDITS: list[Edit] = [
    new_value,
    new_value,
    new_value,
    odd_value,
    new_series,
    gone,
    twice,
    moved,
    mixed,
    broken,
    metadata,
]


def told(reader: Reader, untrusted_body: bytes) -> tuple[object, ...]:
    """All that can be seen of a reading, or the error."""
    try:
        reading = finish(reader.read(untrusted_body))
    except ScrapeError as error:
        return type(error), str(error)
    return page(reading), reading.samples, reading.lines_dropped, reading.complaint


@pytest.mark.slow
@pytest.mark.unmeasured
@given(seed=st.integers(0, 2**32), body=st.sampled_from([*EXPORTERS, *ODD]))
@example(seed=1, body="node")
@example(seed=10484, body="format")
@settings(max_examples=150)
def test_a_text_reads_the_same_with_and_without_memory(seed: int, body: str) -> None:
    """Invariant 7: pages, counts, complaints and errors are the same, whatever happens to a text."""
    chance = random.Random(seed)
    untrusted = ODD.get(body) or recording(body)
    limits = Limits(samples=chance.choice([50_000, 50_000, 700]), label_value_length=chance.choice([16_384, 60]))
    warm = Reader(TARGET, limits, Memory(limits))
    for _ in range(6):
        assert told(warm, untrusted) == told(Reader(TARGET, limits, Memory(limits)), untrusted)
        edits = EDITS[:3] if chance.random() < 0.3 else EDITS
        lines = (
            (untrusted if chance.random() < 0.6 else ODD.get(body) or recording(body)).removesuffix(b"\n").split(b"\n")
        )
        for _ in range(chance.choice([1, 2, 2, 5, 40])):
            chance.choice(edits)(chance, lines)
        untrusted = b"\n".join([*lines, b""])


def gentle(chance: random.Random, families: list[tuple[list[bytes], list[bytes]]]) -> None:
    """Change the lines of a family as exporters do, or nearly. HELP and TYPE stay, so that the text can be followed."""
    _, lines = chance.choice(families)
    kind = chance.randrange(8)
    where = chance.randrange(len(lines)) if lines else 0
    if kind == 0:
        lines.insert(where, b'%b{new="%d"} 1' % (chance.choice([b"a", b"b", b"h_sum"]), chance.randrange(6)))
    elif kind == 1 and len(lines) > 1:
        del lines[where]
    elif kind == 2:
        chance.shuffle(lines)
    elif kind == 3 and lines:
        chance.choice(families)[1].append(lines[where])
    elif kind == 4 and lines:
        lines[where] = lines[where].rpartition(b" ")[2]
    elif kind == 5 and lines:
        lines[where] = lines[where].replace(b"} ", chance.choice([b',qube="x"} ', b',l="' + b"x" * 70 + b'"} ']))
    else:
        lines[:] = [line.rpartition(b" ")[0] + b" %d" % chance.randrange(100) for line in lines]


@pytest.mark.slow
@pytest.mark.unmeasured
@given(seed=st.integers(0, 2**32))
@settings(max_examples=150)
def test_targets_that_share_a_cache_read_as_if_each_were_alone(seed: int) -> None:
    """Texts that are nearly followed, of targets with different labels and drops, with hardly any room in the cache."""
    chance = random.Random(seed)
    limits = Limits(samples=chance.choice([12, 50]), label_value_length=60)
    memory = Memory(limits)
    memory.series = LineCache(chance.choice([1000, 10**6]))
    targets = [TARGET, target("b", "x", new="ours"), target("c", "y", drop="a"), target("d", "z")]
    warm = {one: Reader(one, limits, memory) for one in targets}
    families: list[tuple[list[bytes], list[bytes]]] = [
        ([b"# HELP a text"], [b'a{x="%d"} 1' % number for number in range(3)]),
        ([b"# HELP b text"], [b"b 1", b'a{x="9"} 1']),
        ([b"# HELP h text", b"# TYPE h summary"], [b"h_sum 1", b"h_count 2"]),
        ([b"# HELP up text"], [b"up 1"]),
    ]
    for _ in range(8):
        untrusted = b"".join(line + b"\n" for metadata, lines in families for line in (*metadata, *lines))
        for one in targets:
            assert told(warm[one], untrusted) == told(Reader(one, limits, Memory(limits)), untrusted)
        for _ in range(chance.choice([1, 1, 2, 4])):
            gentle(chance, families)


FOLLOWED = b'# HELP a text\na{x="1"} 1\na{x="2"} 2\n# HELP b text\nb 1\na{x="3"} 3\n# HELP c text\nc 1\n'


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'a{x="2"} 2', b"5"),
        (b'a{x="2"} 2', b'a{x="2"} 5'),
        (b"c 1", b'c 1\na{x="1"} 7'),
        (b'a{x="2"} 2', b'a{x="3"} 2'),
        (b"c 1", b'a{x="1"} 7'),
        (b'a{x="2"} 2', b'a{x="1"} 2'),
        (b'a{x="2"} 2', b'a{x="2"} 2\na{x="2",y=""} 3'),
        (b'b 1\na{x="3"} 3', b'a{x="3"} 3\nb 1'),
        (b'b 1\na{x="3"} 3', b'b{n="1"} 1\na{x="3"} 3'),
        (b'a{x="2"} 2', b'a{x="2"} 2\na{x="4"} 2\na{x="5"} 2'),
        (b'a{x="2"} 2', b'a{x="' + b"y" * 70 + b'"} 2'),
        (b"# HELP c text\nc 1", b"# HELP c text\nc{} 1"),
        (b"# HELP c text\nc 1", b"# HELP c other\nc 1"),
        (b"c 1", b'c 1\nc{x="9"} 9 123'),
        (b"c 1", b'c 1\nc{x="9"}9'),
        (b"c 1", b'c 1\nc{qube="x"} 9'),
    ],
    ids=[
        "a value without a key",
        "a value",
        "a series of another section, added",
        "a series that its family has in another section",
        "a series of another section",
        "a series twice in a section",
        "a series twice, by an empty label",
        "two families in another order",
        "two families, a new series",
        "more samples than allowed",
        "a label that is too long",
        "another key of a series",
        "another HELP",
        "a new series with a timestamp",
        "a new series without a blank before its value",
        "a new series with a label of ours",
    ],
)
def test_what_can_happen_to_a_text_that_was_followed(old: bytes, new: bytes) -> None:
    """The cases that the tests above find by chance, one by one."""
    limits = Limits(samples=6, label_value_length=60)
    warm = Reader(target(), limits, Memory(limits))
    for untrusted in (FOLLOWED, FOLLOWED.replace(b" 1\n", b" 9\n"), FOLLOWED.replace(old, new), FOLLOWED):
        assert told(warm, untrusted) == told(Reader(target(), limits, Memory(limits)), untrusted)


def test_a_series_is_not_passed_on_twice_because_its_family_is_in_two_places() -> None:
    """A section knows its own series only. Whether another section has one too, only reading the whole text shows."""
    text = b'# HELP a text\na{x="1"} 1\na{x="2"} 2\n# HELP b text\na{x="3"} 3\na{x="4"} 4\n'
    warm = Reader(target(), Limits(), Memory(Limits()))
    for untrusted in (text, text.replace(b'a{x="4"}', b'a{x="1"}'), text, text.replace(b'a{x="2"}', b'a{x="4"}')):
        assert told(warm, untrusted) == told(Reader(target(), Limits(), Memory(Limits())), untrusted)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"# HELP a t\na 1 123\n", b"# HELP a t\n5\n"),
        (b'# HELP a t\na 1\n# comment\na{x="2"} 2\n', b'# HELP a t\na 1\na 7\na{x="2"} 2\n'),
        (b'# HELP a t\na 1\n\na{x="2"} 2\n', b'# HELP a t\na 1\na 7\na{x="2"} 2\n'),
    ],
    ids=["a value alone in place of a line with a timestamp", "a series in place of a comment", "in place of a blank"],
)
def test_a_section_with_more_than_metadata_and_plain_lines_is_not_followed(first: bytes, second: bytes) -> None:
    """Only where each line of a section is a key and a value does its place in the section say which series it has."""
    warm = Reader(target(), Limits(), Memory(Limits()))
    for untrusted in (first, second, first):
        assert told(warm, untrusted) == told(reader(target()), untrusted)


def test_a_text_that_grows_is_held_to_the_limit() -> None:
    """The text grows by a series at each scrape, and is followed each time."""
    limits = Limits(samples=22)
    warm = Reader(target(), limits, Memory(limits))
    for count in (20, 21, 22, 23, 24):
        untrusted = b"# HELP a text\n" + b"".join(b'a{x="%d"} 1\n' % number for number in range(count))
        assert told(warm, untrusted) == told(Reader(target(), limits, Memory(limits)), untrusted)


def test_a_value_has_an_end() -> None:
    """A value may have 400 bytes and no more."""
    assert is_value(b"0." + b"1" * 398)
    assert not is_value(b"0." + b"1" * 399)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"a 1\n", b"a " + b"9" * (1 << 20) + b"\n"),
        (b"a 1\n", b"".join(b"# HELP a%d x\n" % number for number in range(20_000)) + b"a 1\n"),
        (b"a 1\n", b"# HELP a " + b"\\" * 16_000 + b"\n" + b"# HELP b x\n" * 20_000 + b"a 1\n"),
        (
            b"".join(b'a{x="%d"} 1\n' % number for number in range(5000)),
            b"".join(b'a{x="%d"} %b12345_\n' % (number, b"1" * 290) for number in range(5000)),
        ),
    ],
    ids=["a value of a megabyte", "metadata alone", "backslashes", "values that are nearly some"],
)
def test_no_text_delays_the_others(first: bytes, second: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is done in slices, and no value is checked more than twice."""
    calls = 0

    def counted(untrusted_value: bytes) -> bool:
        nonlocal calls
        calls += 1
        return is_value(untrusted_value)

    monkeypatch.setattr("federator.text.value.is_value", counted)
    reader = Reader(target(), Limits(), Memory(Limits()))
    finish(reader.read(first))
    lines = second.count(b"\n")
    slices = 0
    try:
        for _ in reader.read(second):
            slices += 1
    except ScrapeError:
        pass
    assert calls <= 2 * lines + 10
    assert slices >= lines // (10 * 2000)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_recorded_scrapes_read_the_same_with_and_without_memory(exporter: str) -> None:
    """Scrapes of real exporters, one after the other, with a restart between."""
    warm = Reader(TARGET, Limits(), Memory(Limits()))
    for number in (1, 2, 3, 1, 3):
        untrusted = recording(exporter, number)
        assert told(warm, untrusted) == told(Reader(TARGET, Limits(), Memory(Limits())), untrusted)


class LineByLineError(Exception):
    """The text was not followed."""


def read_line_by_line(*_: object) -> None:
    """What a Reader must not do here."""
    raise LineByLineError


def test_a_text_with_very_long_labels_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Command lines are long, and the exporters that have them are scraped like others."""
    line, warm = b'a{x="1",cmdline="' + b"x" * 14_000 + b'"} %d\n', reader()
    finish(warm.read(line % 1))
    monkeypatch.setattr(Reader, "_read_lines", read_line_by_line)
    assert finish(warm.read(line % 2)).blocks[0].endswith(b"} 2\n")


@pytest.mark.parametrize("exporter", ["node", "process"])
def test_a_text_with_other_values_is_followed(exporter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is compared with the last one, and only values are read: that is what memory is for."""
    memory = Memory(Limits())
    finish(Reader(TARGET, Limits(), memory).read(recording(exporter, 2)))

    monkeypatch.setattr(Reader, "_read_lines", read_line_by_line)
    for number in (3, 4, 5):
        assert finish(Reader(TARGET, Limits(), memory).read(recording(exporter, number))).samples


def test_a_text_with_new_series_in_a_family_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes come and go at every scrape: the text is followed all the same, and only new series are parsed."""
    before = b"# HELP a text\n" + b"".join(b'a{x="%d"} 1\n' % number for number in range(9))
    after = before.replace(b'x="3"', b'x="new"').replace(b'a{x="5"} 1\n', b"")
    warm = Reader(TARGET, Limits(), Memory(Limits()))
    finish(warm.read(before))
    cold = page(read(after, TARGET))
    monkeypatch.setattr(Reader, "_read_lines", None)
    assert page(finish(warm.read(after))) == cold


def test_two_targets_share_a_cache_but_not_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that was parsed for one qube is not parsed again for the next one; it gets that qube's labels."""
    memory = Memory(Limits())
    first, second = Target("work", Exporter("node", 9100)), Target("personal", Exporter("node", 9100))
    finish(Reader(first, Limits(), memory).read(recording("node")))
    alone = page(read(recording("node"), second))
    monkeypatch.setattr("federator.text.parser.ask_client", lambda lines: None if lines else [])
    assert page(finish(Reader(second, Limits(), memory).read(recording("node")))) == alone


def test_a_series_with_a_label_that_we_set_for_this_target_is_not_taken_from_the_cache() -> None:
    """For one target the label `x` is the exporter's own; for the other one the configuration sets it."""
    memory = Memory(Limits())
    body = b'a{x="theirs"} 1\n'
    finish(Reader(target("work"), Limits(), memory).read(body))
    other = Reader(target("personal", x="ours"), Limits(), memory)
    for _ in range(2):
        assert b'x="ours",exported_x="theirs"' in b"".join(finish(other.read(body)).blocks)


def test_a_label_that_is_renamed_for_one_target_is_not_renamed_for_another() -> None:
    """The cache must not keep what a series is called on the page of one target only."""
    memory = Memory(Limits())
    body = b'a{x="theirs"} 1\n'
    finish(Reader(target("work", x="ours"), Limits(), memory).read(body))
    assert b'exporter="node",x="theirs"' in b"".join(finish(Reader(target("b"), Limits(), memory).read(body)).blocks)


@pytest.mark.parametrize("label", ["x", "x" * 1000])
def test_a_text_that_grows_while_it_is_followed_counts_as_large_as_it_is(label: str) -> None:
    """The bound of memory holds for texts that started small, too."""
    memory = Memory(Limits())

    def size(of: Target, count: int) -> int:
        text = b"# HELP a text\n" + b"".join(b'a{x="%d"} 1\n' % number for number in range(count))
        finish(Reader(of, Limits(), memory).read(text))
        shape = memory.recall(of)
        assert shape is not None
        return shape.size

    grown, read_whole = target("grown", owner=label), target("other", owner=label)
    size(grown, 1)
    assert 0.9 < size(grown, 2000) / size(read_whole, 2000) < 1.1


def test_families_stay_the_same_object_when_a_text_is_read_line_by_line() -> None:
    """The page need not be planned again for a comment, or a series in another section, that is new."""
    one = reader()
    first, second = (finish(one.read(body)) for body in (b"a 1\nb 2\n", b"a 1\n# HELP c text\nb 2\n"))
    assert first.families is second.families


def test_memory_forgets_the_largest_first() -> None:
    """When there is too much, the qube that sends most is the one that is read in full again."""
    memory = Memory(Limits(), 1_600_000)
    small, large, other = target("small"), target("large"), target("other")
    finish(Reader(small, Limits(), memory).read(b"a 1\n"))
    finish(Reader(large, Limits(), memory).read(recording("node") + b"# " + b"x" * 100_000 + b"\n"))
    assert memory.recall(large) is not None
    for number in range(12):
        finish(Reader(replace(other, qube=f"q{number}"), Limits(), memory).read(b"# " + b"x" * 60_000 + b"\na 1\n"))
    assert memory.recall(small) is not None
    assert memory.recall(large) is None


def test_memory_forgets_the_shape_of_a_target_with_a_bad_line() -> None:
    """A text with a bad line is not followed, so its old shape would only take room."""
    memory = Memory(Limits())
    reader = Reader(TARGET, Limits(), memory)
    finish(reader.read(b"a 1\n"))
    finish(reader.read(b"a 1\n!\n"))
    assert memory.recall(TARGET) is None


def test_the_cache_is_bounded() -> None:
    """A qube with new series at every scrape fills one generation after the other, and no more."""
    cache = LineCache[int](100_000)
    for number in range(10_000):
        cache.add(b"%d" % number, number)
        cache.get(b"0")
    assert len(cache) < 600
    assert cache.get(b"0") == 0  # in use all the time
    assert cache.get(b"1") is None
    cache.add(b"x" * 16_000, 1)
    assert cache.get(b"x" * 16_000) is None


MANY = range(5000)
SIZES = {
    **{exporter: recording(exporter, 3) for exporter in EXPORTERS},
    "types": b"".join(b"# TYPE a%d gauge\na%d 1\n" % (number, number) for number in MANY),
    "no metadata": b"".join(b"a%d 1\n" % number for number in MANY),
    "one family": b"# TYPE a gauge\n" + b"".join(b'a{x="%d"} 1\n' % number for number in MANY),
}


@pytest.mark.slow
@pytest.mark.unmeasured
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("label", ["x", "x" * 1000])
def test_the_size_of_a_shape_is_about_what_it_takes(kind: str, label: str) -> None:
    """The bound of memory is on estimated sizes, so the estimates must be near the truth."""
    import tracemalloc  # noqa: PLC0415 - it slows down all that is measured

    memory, mine = Memory(Limits()), target(owner=label)
    finish(Reader(target("other"), Limits(), memory).read(SIZES[kind]))
    reader = Reader(mine, Limits(), memory)
    tracemalloc.start()
    finish(reader.read(bytes(bytearray(SIZES[kind]))))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    shape = memory.recall(mine)
    assert shape is not None
    assert 0.5 < taken / shape.size < 1.5, (taken, shape.size)


def test_a_shape_that_is_too_large_is_not_kept() -> None:
    """One qube may not have all the memory, even if no other qube needs it."""
    memory = Memory(Limits(), 600_000)
    for size, is_kept in ((100_000, True), (200_000, False)):
        finish(Reader(TARGET, Limits(), memory).read(b"# " + b"x" * size + b"\na 1\n"))
        assert (memory.recall(TARGET) is not None) == is_kept


@pytest.mark.slow
@pytest.mark.unmeasured
@pytest.mark.parametrize("label", ["x", "x" * 200, 'y",qube="'])
def test_new_series_are_not_parsed_twice(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    """A text in which every series is new costs no more than reading it line by line."""
    asked = 0
    original = parser.ask_client

    def counted(untrusted_lines: Sequence[bytes]) -> list[Sample] | None:
        nonlocal asked
        asked += len(untrusted_lines)
        return original(untrusted_lines)

    def text(scrape: int) -> bytes:
        return b"# HELP a t\n" + b"".join(b'a{x="%d-%d%b"} 1\n' % (scrape, n, label.encode()) for n in range(3000))

    limits = Limits(samples=3000)
    reader = Reader(target(), limits, Memory(limits))
    finish(reader.read(text(1)))
    monkeypatch.setattr("federator.text.parser.ask_client", counted)
    finish(reader.read(text(2)))
    assert asked < 1.3 * 3000


@pytest.mark.slow
@pytest.mark.unmeasured
@given(st.lists(st.one_of(st.sampled_from(VALUES), st.from_regex(rb"[-+.0-9eEinfaNI_ ]{0,6}", fullmatch=True))))
@settings(max_examples=2000)
def test_values_in_bulk_are_checked_as_one_by_one(values: list[bytes]) -> None:
    """A value does not become good, or bad, by the values beside it."""
    values = [value for value in values if b"\n" not in value]
    assert are_values(values) == all(map(is_value, values))


@pytest.mark.slow
@pytest.mark.unmeasured
def test_a_large_text_is_followed_in_turns() -> None:
    """Following 100,000 samples yields between its steps, so that others have a turn."""
    limits = Limits(samples=200_000)
    warm = Reader(TARGET, limits, Memory(limits))
    for value in (b"1", b"2"):
        body = b"# HELP a text\n" + b"".join(b'a{x="%d"} %b\n' % (number, value) for number in range(100_000))
        turns = sum(1 for _ in warm.read(body))
    assert turns >= 5
    assert len(body) > LARGE


def text_lines(limits: Limits, memory: Memory, relabeling: Relabeling) -> TextLines:
    """One text to be read, with what a reader has for it."""
    allowance = Allowance(limits.samples)
    samples = SampleReader(limits, memory, allowance, relabeling)
    return TextLines(samples, relabeling, FamilyMetadata(memory.metadata, allowance), Timestamps(b"", None, 1))


def turns(work: Generator[None, None, object]) -> int:
    """How often work gives others a turn."""
    return sum(1 for _ in work)


@pytest.mark.slow
def test_reading_gives_turns_even_where_nothing_is_parsed() -> None:
    """Reading lines from the cache, labelling them and making a shape of them all take long for a long text."""
    limits = Limits()
    memory = Memory(limits)
    body = b"".join(b'a{x="%d"} 1\n' % number for number in range(10 * STEP_LINES))
    finish(Reader(target("other"), limits, memory).read(body))
    relabeling = Relabeling(target())
    text = text_lines(limits, memory, relabeling)
    assert turns(text.read(body)) >= 9
    assert len(text.samples) == 10 * STEP_LINES
    assert turns(text.page_lines()) >= 9
    # A shape has a turn after sections with so many lines.
    lines = [PageLine(b"a ", Family("a", "gauge"), b"a{} ", b"1")] * (10 * STEP_LINES)
    starts = range(100, len(lines), 100)
    sections = b"\n# HELP ".join([b"a t\n" + b"a 1\n" * 99 + b"a 1"] * (len(starts) + 1))
    assert turns(shape_of(b"# HELP " + sections + b"\n", lines, starts, {}, Heads((), ()))) >= 9
    # And so has the search for families without samples.
    text = text_lines(limits, memory, relabeling)
    finish(text.read(b"".join(b"# TYPE a%d gauge\n" % number for number in range(STEP_LINES))))
    assert turns(text.declared()) >= 9


@pytest.mark.parametrize("line", [b'a{x="%d"} 1\n', b"# HELP a%d t\n"], ids=["samples", "metadata"])
def test_reading_gives_a_turn_after_each_slice_that_was_parsed(line: bytes) -> None:
    """Parsing is slow, so a slice of lines that are not in the cache is as much as may be done at once."""
    relabeling, memory = Relabeling(target()), Memory(Limits())
    text = text_lines(Limits(), memory, relabeling)
    assert turns(text.read(b"".join(line % number for number in range(10 * SLICE_LINES)))) >= 10


def test_following_new_series_gives_turns() -> None:
    """Many sections that each have a new series take long to bring in line with the last text."""

    def text(series: bytes) -> bytes:
        sections = range(20)
        return b"".join(
            b"# HELP a%d t\n" % section
            + b"".join(b'a%d{x="%d"} 1\n' % (section, number) for number in range(1000))
            + b'a%d{x="%b"} 1\n' % (section, series)
            for section in sections
        )

    memory = Memory(Limits())
    finish(Reader(target(), Limits(), memory).read(text(b"old")))
    last = memory.recall(target())
    assert last is not None
    assert len(text(b"new")) < LARGE  # else there would be other turns too
    assert turns(follow(last, text(b"new"), 1000)) >= 9
    unfinished = finish(follow(last, text(b"new"), 1000))
    assert isinstance(unfinished, Unfinished)
    series: dict[bytes, PageSeries] = {}
    for section in range(20):
        name = b"a%d" % section
        series[name + b'{x="new"} '] = name, name + b'{qube="work",exporter="node",x="new"} '
    assert turns(unfinished.resume(series)) >= 9


def test_a_text_with_too_many_new_series_is_not_followed() -> None:
    """Reading such a text line by line costs less than to follow it for long and then read it."""
    memory = Memory(Limits())
    finish(Reader(target(), Limits(), memory).read(b"# HELP a t\na 1\n"))
    last = memory.recall(target())
    assert last is not None
    text = b"# HELP a t\na 1\n" + b"".join(b'a{x="%d"} 1\n' % number for number in range(10))
    assert isinstance(finish(follow(last, text, 10)), Unfinished)
    assert finish(follow(last, text, 9)) is None


def test_prometheus_client_gets_a_slice_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time grows with the bytes it gets, and while it runs no other target has a turn, followed text or not."""
    sizes: list[int] = []
    original = parser.ask_client

    def measured(untrusted_lines: Sequence[bytes]) -> list[Sample] | None:
        sizes.append(sum(map(len, untrusted_lines)))
        return original(untrusted_lines)

    monkeypatch.setattr("federator.text.parser.ask_client", measured)
    memory = Memory(Limits())
    text = b"# HELP a t\n" + b"".join(b'a{x="%d"} 1\n' % number for number in range(1000))
    new = b"".join(b'a{x="%d%b"} 1\n' % (number, b"x" * 3000) for number in range(100))
    for body in (text, text + new):
        finish(Reader(target(), Limits(), memory).read(body))
    finish(Reader(target(), Limits(), Memory(Limits())).read(text + new))
    assert sum(sizes) > 2 * len(new)
    assert max(sizes) < 1.1 * SLICE_BYTES


def test_new_series_are_parsed_up_to_the_first_one_that_cannot_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is then read line by line from its start, so there is no use in parsing more."""
    limits = Limits(samples=20_000)
    memory = Memory(limits)
    text = b"# HELP a t\na 1\n"
    new = b"b 1\n" + b"".join(b'a{x="%d"} 1\n' % number for number in range(4000))
    finish(Reader(target(), limits, memory).read(text))
    monkeypatch.setattr(Reader, "_read_lines", read_line_by_line)
    before = len(memory.series)
    with pytest.raises(LineByLineError):
        finish(Reader(target(), limits, memory).read(text + new))
    assert len(memory.series) - before <= SLICE_LINES
