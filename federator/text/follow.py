# SPDX-License-Identifier: GPL-3.0-or-later
"""
A target's new text beside the shape of its last one -> the new shape, most often without a look at single lines.

Section by section:

    the same text                         its block is taken as it was
    the same head, series and order       the new values are put behind the lines' known starts
    the same head, other series           known ones are found again; new ones are returned to the caller, who reads
                                          them and calls `resume`
    anything else                         not followed: the caller reads the whole text, line by line

Owns that comparison. Must not know what a good line is, except for its value: what differs from the last text in a way
that is not in this list is not followed.

The rule that everything here serves: the result of following a text is, byte for byte, the result of reading it.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from operator import ne
from typing import NamedTuple

from federator.text.shape import (
    BYTES_PER_BYTE,
    BYTES_PER_SAMPLE,
    MARK,
    STEP_LINES,
    Section,
    Shape,
    make_section,
    slotted,
)
from federator.text.value import are_values

# Following a text of this size and more yields between its steps, which take some 30 ns per sample each.
LARGE = 512 << 10

# A series that was not in the last text: its metric name on the page, and the start of its line there.
PageSeries = tuple[bytes, bytes]


class _Moved(NamedTuple):
    """A section with other series than before."""

    position: int  # among the sections that changed
    number: int  # among all sections
    untrusted_keys: list[bytes]
    lines: list[bytes]  # of the page, each value a slot; empty where the series is new
    new: list[int]  # where in the two lists there are new series


@dataclass(slots=True)
class _Changes:
    """What differs from the last text."""

    last: Shape
    length: int
    untrusted_texts: list[bytes]  # of all sections
    changed: list[bool]  # of all sections
    untrusted_changed: list[bytes]  # the texts that changed
    sections: list[Section]  # what they were before


@dataclass(slots=True)
class Unfinished:
    """A text that can be followed further once the series in `untrusted_lines` are known."""

    untrusted_lines: list[bytes]
    _changes: _Changes
    _moved: list[_Moved]

    def resume(self, series: Mapping[bytes, PageSeries]) -> Generator[None, None, Shape | None]:
        """
        The shape of the text, or None where it has to be read line by line.

        `series` are those of `untrusted_lines`, by their keys: each line up to its last blank.
        """
        sections = self._changes.sections.copy()
        since_turn = 0  # lines since the last yield
        for moved in self._moved:
            head, _, _, blocks, _ = sections[moved.position]
            for at in moved.new:
                name, line_start = series[moved.untrusted_keys[at]]
                # If its name stands in another section, that one may have this very series.
                if self._changes.last.only_section.get(name) != moved.number:
                    return None
                moved.lines[at] = slotted(line_start)
            if len(set(moved.lines)) != len(moved.lines):
                return None
            sections[moved.position] = make_section(head, moved.untrusted_keys, [moved.lines], blocks)
            since_turn += len(moved.lines)
            if since_turn >= STEP_LINES:
                since_turn = 0
                yield
        return (yield from _filled(self._changes, sections))


def follow(last: Shape, untrusted_body: bytes, most_new: int) -> Generator[None, None, Shape | Unfinished | None]:
    """
    The shape of the text; or what the caller has to find out first; or None where it has to be read line by line.

    A text with more than `most_new` new series is not followed. Yields between steps where the text is large.
    """
    untrusted_texts = untrusted_body[:-1].split(last.separator)
    if len(untrusted_texts) != len(last.texts) or MARK in untrusted_body:
        return None
    changed = list(map(ne, untrusted_texts, last.texts))
    if True not in changed:
        return last
    untrusted_changed = list(compress(untrusted_texts, changed))
    sections = [section for section in compress(last.sections, changed) if section is not None]
    if len(sections) != len(untrusted_changed):
        return None
    changes = _Changes(last, len(untrusted_body), untrusted_texts, changed, untrusted_changed, sections)
    if changes.length > LARGE:
        yield
    shape = yield from _filled(changes, sections)
    if shape is not None:
        return shape
    return (yield from _realigned(changes, most_new))


def _realigned(changes: _Changes, most_new: int) -> Generator[None, None, Unfinished | None]:
    """
    The sections that have other series than before, as far as they are known.

    For each of them, old keys -> lines on the page. The new keys, in their order, are looked up there; what is missing
    is a new series. Only a section with one block can change so: of more, it is unknown in which one a line stands.
    """
    moved: list[_Moved] = []
    untrusted_new: list[bytes] = []
    numbers = compress(range(len(changes.changed)), changes.changed)
    since_turn = 0  # lines since the last yield
    triples = zip(numbers, changes.untrusted_changed, changes.sections, strict=True)
    for position, (number, untrusted_text, section) in enumerate(triples):
        if not untrusted_text.startswith(section.head):
            return None
        untrusted_lines = untrusted_text[len(section.head) :].split(b"\n")
        untrusted_keys = [line[: line.rfind(b" ") + 1] for line in untrusted_lines]
        keys = [section.keys[0].removeprefix(MARK), *section.keys[1:]]
        if untrusted_keys == keys:
            continue
        if len(section.blocks) != 1 or section.blocks[0] < 0:
            return None
        known = dict(zip(keys, section.lines[len(MARK) : -1].split(b"\n"), strict=True))
        lines = [known.get(untrusted_key, b"") for untrusted_key in untrusted_keys]
        new = [at for at, line in enumerate(lines) if not line]
        untrusted_new += [untrusted_lines[at] for at in new]
        if len(untrusted_new) > most_new:
            return None
        moved.append(_Moved(position, number, untrusted_keys, lines, new))
        since_turn += len(lines)
        if since_turn >= STEP_LINES:
            since_turn = 0
            yield
    return Unfinished(untrusted_new, changes, moved) if moved else None


def _filled(changes: _Changes, sections: Sequence[Section]) -> Generator[None, None, Shape | None]:
    """The shape with these sections and the text's values, or None where anything but values is different."""
    last = changes.last
    new_blocks = yield from _new_blocks(changes.untrusted_changed, sections, large=changes.length > LARGE)
    if new_blocks is None:
        return None
    blocks = last.blocks.copy()
    for number, block in zip(chain.from_iterable(section.blocks for section in sections), new_blocks, strict=True):
        if number >= 0:
            blocks[number] = block
    growth = page_growth = changes.length - last.length
    all_sections, more = last.sections, 0
    if sections is not changes.sections:
        more = sum(len(section.keys) for section in sections) - sum(len(old.keys) for old in changes.sections)
        page_growth = sum(len(section.lines) for section in sections) - sum(len(old.lines) for old in changes.sections)
        new = iter(sections)
        pairs = zip(changes.changed, last.sections, strict=True)
        all_sections = [next(new) if is_changed else section for is_changed, section in pairs]
    return Shape(
        last.separator,
        changes.untrusted_texts,  # every byte of them was compared or checked by now
        all_sections,
        last.families,
        last.declared,
        blocks,
        last.page_names,
        last.only_section,
        length=changes.length,
        lines=last.lines + more,
        samples=last.samples + more,
        size=last.size + BYTES_PER_BYTE * (growth + page_growth) + BYTES_PER_SAMPLE * more,
    )


def _new_blocks(
    untrusted_texts: Sequence[bytes], sections: Sequence[Section], *, large: bool
) -> Generator[None, None, list[bytes] | None]:
    """
    The blocks of these sections with the texts' values, or None where anything but values is different.

    All sections at once: each text loses its head, each line its key, and what is left must be the values. So nothing
    is done line by line in Python. The texts hold no MARK: it shows where the first line of each section is.
    """
    heads, keys, lines, _, fixed = zip(*sections, strict=True)
    untrusted_bodies = map(bytes.removeprefix, untrusted_texts, heads)
    untrusted_lines = (MARK + (b"\n" + MARK).join(untrusted_bodies)).split(b"\n")
    if len(untrusted_lines) != sum(map(len, keys)):
        return None
    if large:
        yield
    untrusted_values = list(map(bytes.removeprefix, untrusted_lines, chain.from_iterable(keys)))
    del untrusted_lines
    if large:
        yield
    # Every text has lost its head and every line its key: or there would be more left than this.
    if sum(map(len, untrusted_values)) != sum(map(len, untrusted_texts)) - sum(fixed):
        return None
    if large:
        yield
    if not are_values(untrusted_values):
        return None
    values = untrusted_values
    if large:
        yield
    return (b"".join(lines) % tuple(values)).split(MARK)[1:]
