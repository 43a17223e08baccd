# SPDX-License-Identifier: GPL-3.0-or-later
"""
What one target's last text was like, and how the next one becomes lines of the page without looking at each of its own.

Exporters write the same series in the same order, scrape after scrape, and only values differ. So a text is cut into
pieces, one for each comment line with the samples below it:

    a piece as it was                     its block is taken as it was
    the same head, series and order       the new values are put behind the lines' known beginnings
    the same head, other series           known ones are found again, new ones are judged by the caller
    anything else                         not followed: the caller reads the whole text, line by line

Owns that comparison. Must not judge: what is unlike the last text in any way it does not name is not followed. A shape
is made only of a text of which every line was passed on, and it never changes; so readings may be interleaved.

The rule that everything here serves: what comes of following a text is, byte for byte, what comes of reading it.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import chain, compress, groupby
from operator import attrgetter, ne
from typing import NamedTuple

from federator.model import Family, Reading
from federator.text.value import are_values

# A piece starts at every line that starts so: the first of these that is in the text.
_CUTS = (b"\n# HELP ", b"\n# TYPE ")
# Marks where a block or a piece starts. No good line holds it: exposition's grammar has no room for it.
_MARK = b"\0"
# Where a value goes. bytes' own formatting puts many values into a text at half of what joining the parts costs.
_SLOT = b"%b"
# From this size on, whoever follows a text lets others have a turn between the steps, each some 30 ns per sample.
_LARGE = 512 << 10
# Rows between two turns when a shape is made: some 2 ms.
STEP_ROWS = 2000
# What a shape takes in memory, as measured with tracemalloc over the recordings and over odd texts: the text and the
# page's lines, twice each, and what Python adds to a sample, a piece and a name.
_BYTES_PER_BYTE = 2
_BYTES_PER_SAMPLE = 30
_BYTES_PER_PIECE = 500
_BYTES_PER_NAME = 250


# Sample name -> its family and its name on the page, or None where the operator does not want it.
Places = dict[str, tuple[Family, bytes] | None]


class Row(NamedTuple):
    """
    One sample line that is passed on, or that the operator does not want (`family` None).

    `piece` counts the places where the text is cut. `key` is all of the line before its value, where nothing comes
    after the value; empty where something does, or where the key is not approved. `prefix` is what the page has for it.
    """

    piece: int
    key: bytes
    family: Family | None
    prefix: bytes
    value: bytes


class _Piece(NamedTuple):
    """A piece of which nothing but values needs to be read. It has one line at least."""

    head: bytes  # its comment lines, with their newlines
    keys: list[bytes]  # the first one with _MARK before it
    lines: bytes  # what the page has for it, each value a _SLOT, each run with _MARK before it
    blocks: tuple[int, ...]  # of each run, its number in Shape.blocks; -1 where the operator does not want it
    fixed: int  # bytes that are not values


# Series that were not in the piece, by their keys, to family, name on the page, and prefix; None where it is not known.
LookUp = Callable[[bytes], tuple[Family, bytes, bytes] | None]
# Judges lines, so that LookUp knows their keys if they are good.
Learn = Callable[[Sequence[bytes]], Generator[None, None, None]]


class Shape:
    """A text that was read: see the head of this file."""

    __slots__ = (
        "_cut",
        "_homes",
        "_length",
        "_pieces",
        "_texts",
        "blocks",
        "families",
        "lines",
        "places",
        "samples",
        "size",
    )

    def __init__(  # noqa: PLR0913 - all of it is what was read; only this file makes shapes
        self,
        cut: bytes,
        texts: list[bytes],
        pieces: list[_Piece | None],
        families: tuple[Family, ...],
        blocks: list[bytes],
        *,
        size: int,
        length: int,
        lines: int,
        samples: int,
        places: Places,
        homes: Mapping[bytes, int],
    ) -> None:
        self._cut = cut
        self._texts = texts
        self._pieces = pieces
        self._homes = homes
        self._length = length
        self.families = families
        self.blocks = blocks
        self.lines = lines  # sample lines in the text
        self.samples = samples  # of them, those on the page
        self.places = places
        self.size = size  # bytes in memory, or thereabouts

    @property
    def reading(self) -> Reading:
        """What goes on the page."""
        return Reading(families=self.families, blocks=self.blocks, samples=self.samples)

    def follow(
        self, untrusted_body: bytes, look_up: LookUp, learn: Learn, most_new: int
    ) -> Generator[None, None, "Shape | None"]:
        """
        The shape of the next text, or None where it has to be read line by line. Yields where that takes long.

        `most_new`: so many lines may be learned, and are sure to be known when they are looked up.
        """
        large = len(untrusted_body) > _LARGE
        untrusted_texts = untrusted_body[:-1].split(self._cut)
        if len(untrusted_texts) != len(self._texts) or _MARK in untrusted_body:
            return None
        changed = list(map(ne, untrusted_texts, self._texts))
        if True not in changed:
            return self
        untrusted_changed = list(compress(untrusted_texts, changed))
        known = [piece for piece in compress(self._pieces, changed) if piece is not None]
        if len(known) != len(untrusted_changed):
            return None
        if large:
            yield
        pieces: Sequence[_Piece] = known
        new_blocks = yield from _filled(untrusted_changed, pieces, large=large)
        if new_blocks is None:
            pieces = yield from self._realigned(changed, untrusted_changed, known, look_up, learn, most_new)
            new_blocks = yield from _filled(untrusted_changed, pieces, large=large)
        if new_blocks is None:
            return None
        blocks = self.blocks.copy()
        for number, block in zip(chain.from_iterable(piece.blocks for piece in pieces), new_blocks, strict=True):
            if number >= 0:
                blocks[number] = block
        all_pieces, more = self._pieces, 0
        if pieces is not known:
            more = sum(len(piece.keys) for piece in pieces) - sum(len(piece.keys) for piece in known)
            now = iter(pieces)
            all_pieces = [next(now) if new else piece for new, piece in zip(changed, all_pieces, strict=True)]
        return Shape(
            self._cut,
            untrusted_texts,  # every byte of them was compared or checked by now
            all_pieces,
            self.families,
            blocks,
            size=self.size + 2 * _BYTES_PER_BYTE * (len(untrusted_body) - self._length) + _BYTES_PER_SAMPLE * more,
            length=len(untrusted_body),
            lines=self.lines + more,
            samples=self.samples + more,
            places=self.places,
            homes=self._homes,
        )

    def _realigned(  # noqa: PLR0911, PLR0913, PLR0917 - there is so much that it may not be
        self,
        changed: Sequence[bool],
        untrusted_texts: Sequence[bytes],
        pieces: Sequence[_Piece],
        look_up: LookUp,
        learn: Learn,
        left: int,
    ) -> Generator[None, None, Sequence[_Piece]]:
        """The same pieces with the series that they have now; none where they cannot have these."""
        found: list[_Piece] = []
        numbers = compress(range(len(changed)), changed)
        for number, untrusted_text, piece in zip(numbers, untrusted_texts, pieces, strict=True):
            if not untrusted_text.startswith(piece.head):
                return ()
            untrusted_lines = untrusted_text[len(piece.head) :].split(b"\n")
            untrusted_keys = [line[: line.rfind(b" ") + 1] for line in untrusted_lines]
            keys = [piece.keys[0].removeprefix(_MARK), *piece.keys[1:]]
            if untrusted_keys == keys:
                found.append(piece)
                continue
            if len(piece.blocks) != 1 or piece.blocks[0] < 0:
                return ()
            lines = dict(zip(keys, piece.lines[len(_MARK) : -1].split(b"\n"), strict=True))
            strange = [index for index, key in enumerate(untrusted_keys) if key not in lines]
            left -= len(strange)
            if left < 0:
                return ()
            yield from learn([untrusted_lines[index] for index in strange])
            for index in strange:
                known = look_up(untrusted_keys[index])
                if known is None:
                    return ()
                family, name, prefix = known
                # Another piece may have this very series if its name is at home there too.
                if family != self.families[piece.blocks[0]] or self._homes.get(name) != number:
                    return ()
                lines[untrusted_keys[index]] = _slotted(prefix)
            in_order = [lines[key] for key in untrusted_keys]
            if len(set(in_order)) != len(in_order):
                return ()
            found.append(_piece(piece.head, untrusted_keys, [in_order], piece.blocks))
            yield
        return found


def cut_of(untrusted_body: bytes) -> bytes:
    """A newline and what comes after it, where a text is best cut into pieces."""
    return next((cut for cut in _CUTS if cut in untrusted_body), _CUTS[0])


def shape_of(
    body: bytes, rows: Sequence[Row], places: Places, families: tuple[Family, ...]
) -> Generator[None, None, Shape]:
    """
    The shape of a text that was read to its end, each line of it passed on or not wanted.

    `families` is what an earlier shape had, for the sake of being the same object where it is the same.
    """
    cut = cut_of(body)
    texts = body[:-1].split(cut)
    pieces: list[_Piece | None] = [None] * len(texts)
    new_families: list[Family] = []
    blocks: list[bytes] = []
    homes: dict[bytes, int] = {}
    rested = 0
    for number, of_piece in groupby(rows, attrgetter("piece")):
        runs = [list(of_family) for _, of_family in groupby(of_piece, attrgetter("family"))]
        numbers: list[int] = []
        for run in runs:
            family = run[0].family
            numbers.append(-1 if family is None else len(blocks))
            if family is not None:
                new_families.append(family)
                blocks.append(b"".join([row.prefix + row.value + b"\n" for row in run]))
                for name in {row.prefix[: row.prefix.index(b"{")] for row in run}:
                    homes[name] = number if homes.get(name, number) == number else -1
        pieces[number] = _piece_of(texts[number], runs, tuple(numbers))
        rested += sum(map(len, runs))
        if rested >= STEP_ROWS:
            rested = 0
            yield
    return Shape(
        cut,
        texts,
        pieces,
        families if families == tuple(new_families) else tuple(new_families),
        blocks,
        size=_BYTES_PER_BYTE * (len(body) + sum(map(len, blocks)))
        + _BYTES_PER_SAMPLE * len(rows)
        + _BYTES_PER_PIECE * len(texts)
        + _BYTES_PER_NAME * len(places),
        length=len(body),
        lines=len(rows),
        samples=sum(row.family is not None for row in rows),
        places=places,
        homes=homes,
    )


def _piece_of(text: bytes, runs: Sequence[Sequence[Row]], blocks: tuple[int, ...]) -> _Piece | None:
    """None where there is more in it than comments at its head, and below them lines that are keys and values."""
    keys = [row.key for run in runs for row in run]
    lines = text.split(b"\n")
    first = len(lines) - len(keys)
    # Of a text without bad lines, those that are no samples are blank or comments, and start with no key.
    if not all(keys) or not all(map(bytes.startswith, lines[first:], keys)):
        return None
    head = b"".join([line + b"\n" for line in lines[:first]])
    return _piece(head, keys, [[_slotted(row.prefix) for row in run] for run in runs], blocks)


def _piece(head: bytes, keys: Sequence[bytes], runs: Sequence[Sequence[bytes]], blocks: tuple[int, ...]) -> _Piece:
    fixed = len(head) + sum(map(len, keys)) + len(keys) - 1
    lines = b"".join([_MARK + b"\n".join(run) + b"\n" for run in runs])
    return _Piece(head, [_MARK + keys[0], *keys[1:]], lines, blocks, fixed)


def _slotted(prefix: bytes) -> bytes:
    return prefix.replace(b"%", b"%%") + _SLOT


def _filled(
    untrusted_texts: Sequence[bytes], pieces: Sequence[_Piece], *, large: bool
) -> Generator[None, None, list[bytes] | None]:
    """
    The blocks of these pieces with the texts' values, or None where anything but values is different.

    There must be no _MARK in the texts: it shows that the first line of each piece is still the first one.
    """
    if not pieces:
        return None
    heads, keys, slotted, _, fixed = zip(*pieces, strict=True)
    untrusted_bodies = map(bytes.removeprefix, untrusted_texts, heads)
    untrusted_lines = (_MARK + (b"\n" + _MARK).join(untrusted_bodies)).split(b"\n")
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
    return (b"".join(slotted) % tuple(values)).split(_MARK)[1:]
