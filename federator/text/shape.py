# SPDX-License-Identifier: GPL-3.0-or-later
"""
The shape of a target's last text: what the next one is compared with, so that most of it need not be read again.

Exporters write the same series in the same order, scrape after scrape, and only values differ. So the shape holds the
text in sections, one for each comment line with the samples below it, and what each section became on the page:

    # HELP a text        \
    # TYPE a gauge        |  a section: its head,
    a{x="1"} 5            |  then lines of a key and a value:  key `a{x="1"} `  value `5`
    a{x="2"} 6           /   on the page, one block for each run of lines of one family
    # HELP b text
    …

Owns what is stored and how large it is. Must not know how a text is read (exposition) or compared (follow). A shape is
made only of a text of which no line was dropped. It never changes, so several readings of one target may run at once.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from typing import NamedTuple

from federator.model import Family, Reading
from federator.text.relabel import PageNames

# A section starts at every line that starts so: the first of these that is in the first bytes of the text. To search
# all of a large text would take 10 ms.
_SEPARATORS = (b"\n# HELP ", b"\n# TYPE ")
_SEARCHED_BYTES = 1 << 20
# Marks where a block or a section starts. No good line holds it: the parser's grammar has no room for it.
MARK = b"\0"
# Where a value goes. bytes' own formatting puts many values into a text at half of what joining the parts costs.
_SLOT = b"%b"
# Lines between two turns when a shape is made: some 2 ms.
STEP_LINES = 2000
# What a shape takes in memory, as measured with tracemalloc over the recordings and over odd texts: the text and the
# page's lines, twice each, and what Python adds to a sample, a section and a name.
BYTES_PER_BYTE = 2
BYTES_PER_SAMPLE = 30
_BYTES_PER_SECTION = 500
_BYTES_PER_NAME = 250


class PageLine(NamedTuple):
    """
    One sample line that was read, and what it is on the page: `start`, then the value.

    `key` is the text before the value, or empty where the line cannot be recognised by it. `family` is None where the
    configuration drops the line.
    """

    key: bytes
    family: Family | None
    start: bytes
    value: bytes


class Heads(NamedTuple):
    """The families of a text: those of its blocks, one for each; and those without samples."""

    families: tuple[Family, ...]
    declared: tuple[Family, ...]


class Section(NamedTuple):
    """A section of which only the values need to be read. It has at least one sample line."""

    head: bytes  # its comment lines, with their newlines
    keys: list[bytes]  # of its sample lines; the first one with MARK before it
    lines: bytes  # its lines on the page, each value a _SLOT, each block with MARK before it
    blocks: tuple[int, ...]  # of each block, its number in Shape.blocks; -1 where the configuration drops it
    fixed: int  # bytes that are not values


@dataclass(slots=True)
class Shape:
    """A text that was read: see the head of this file."""

    separator: bytes
    texts: list[bytes]  # of the sections
    sections: list[Section | None]  # None: with samples, but not of heads, keys and values alone; or without samples
    families: tuple[Family, ...]  # of the blocks
    declared: tuple[Family, ...]  # without samples
    blocks: list[bytes]
    page_names: PageNames
    only_section: dict[bytes, int]  # name on the page -> the one section with its series; -1 if there are several
    length: int  # of the text
    lines: int  # sample lines in the text
    samples: int  # of them, those on the page
    size: int  # estimated bytes in memory

    @property
    def reading(self) -> Reading:
        """What goes on the page."""
        return Reading(self.families, self.blocks, self.samples, declared=self.declared)


def separator_of(untrusted_body: bytes) -> bytes:
    """The newline and the start of a line at which a text is best split into sections."""
    for separator in _SEPARATORS:
        if untrusted_body.startswith(separator[1:]) or untrusted_body.find(separator, 0, _SEARCHED_BYTES) >= 0:
            return separator
    return _SEPARATORS[0]


def shape_of(
    body: bytes, lines: Sequence[PageLine], starts: Sequence[int], page_names: PageNames, heads: Heads
) -> Generator[None, None, Shape]:
    """
    The shape of a text that was read to its end without a dropped line.

    `starts` has, for each section after the first, the number of lines before it. `heads.families` are those of an
    earlier shape: where they are the same, it is the same object, by which merge.Merger knows its page again.
    """
    separator = separator_of(body)
    texts = body[:-1].split(separator)
    sections: list[Section | None] = []
    page = _Blocks()
    since_turn = 0  # lines and sections since the last yield
    for number, (start, end) in enumerate(pairwise([0, *starts, len(lines)])):
        numbers: list[int] = []
        keys: list[bytes] = []
        slots: list[list[bytes]] = []
        for _, lines_of_family in groupby(lines[start:end], attrgetter("family")):
            run = list(lines_of_family)
            keys += [line.key for line in run]
            slots.append([])
            numbers.append((yield from page.add(run, number, slots[-1])))
            since_turn += len(run)
            if since_turn >= STEP_LINES:
                since_turn = 0
                yield
        if len(keys) > STEP_LINES:
            yield  # before the longest step there is: some 0.3 µs for each line
        sections.append(_section_of(texts[number], keys, slots, tuple(numbers)))
        if len(keys) > STEP_LINES:
            yield
        since_turn += 1
    return Shape(
        separator,
        texts,
        sections,
        heads.families if heads.families == tuple(page.families) else tuple(page.families),
        heads.declared,
        page.blocks,
        page_names,
        page.only_section,
        length=len(body),
        lines=len(lines),
        samples=sum(line.family is not None for line in lines),
        size=BYTES_PER_BYTE * (len(body) + sum(map(len, page.blocks)))
        + BYTES_PER_SAMPLE * len(lines)
        + _BYTES_PER_SECTION * len(texts)
        + _BYTES_PER_NAME * len(page_names),
    )


class _Blocks:
    """The blocks of a shape, while it is made. The attributes are those of `Shape`."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.blocks: list[bytes] = []
        self.only_section: dict[bytes, int] = {}

    def add(self, run: list[PageLine], section: int, slots: list[bytes]) -> Generator[None, None, int]:
        """The number of the block of these lines of one family; -1 if they are dropped. Adds the lines to `slots`."""
        family = run[0].family
        pieces: list[bytes] = []
        for first in range(0, len(run), STEP_LINES):
            if first:
                yield
            piece = run[first : first + STEP_LINES] if len(run) > STEP_LINES else run
            slots += [slotted(line.start) for line in piece]
            if family is not None:
                pieces.append(b"".join([line.start + line.value + b"\n" for line in piece]))
                for name in {line.start[: line.start.index(b"{")] for line in piece}:
                    self.only_section[name] = section if self.only_section.get(name, section) == section else -1
        if family is None:
            return -1
        self.families.append(family)
        self.blocks.append(b"".join(pieces))
        return len(self.blocks) - 1


def _section_of(
    text: bytes, keys: Sequence[bytes], runs: Sequence[Sequence[bytes]], blocks: tuple[int, ...]
) -> Section | None:
    """The section, or None if it is more than comments first and then lines of a key and a value."""
    if not keys:
        return None
    lines = text.split(b"\n")
    first = len(lines) - len(keys)
    # No line of the text was dropped: those that are no samples are blank or comments, and start with no key.
    if not all(keys) or not all(map(bytes.startswith, lines[first:], keys)):
        return None
    head = b"".join([line + b"\n" for line in lines[:first]])
    return make_section(head, keys, runs, blocks)


def make_section(
    head: bytes, keys: Sequence[bytes], runs: Sequence[Sequence[bytes]], blocks: tuple[int, ...]
) -> Section:
    """A section of these parts. `runs` are the lines of each block as `slotted` made them."""
    fixed = len(head) + sum(map(len, keys)) + len(keys) - 1
    lines = b"".join([MARK + b"\n".join(run) + b"\n" for run in runs])
    return Section(head, [MARK + keys[0], *keys[1:]], lines, blocks, fixed)


def slotted(start: bytes) -> bytes:
    """A line of the page with a slot for its value, for bytes' own formatting."""
    return start.replace(b"%", b"%%") + _SLOT
