# SPDX-License-Identifier: GPL-3.0-or-later
"""
Many targets' readings -> one exposition: one block for each family name, sorted by name, targets in the order given.

Owns what to do where targets disagree about a name. Must not know qubes, time or failure: it gets readings, and the
daemon's own gauges are one of them. Lines are not looked at, except to take the parts of a histogram or summary out of
a family that has another type.

Where targets disagree, no sample is lost, and no name, label or value changes. Only the TYPE lines are decided:

- A target has one vote for each name and type that its text says. A text that says no type for a name has no vote; its
  samples stand under the type that the others give.
- A histogram or summary wins against counter, gauge and untyped, however few targets say so. A histogram needs its TYPE
  line to be read as one, and a plain sample under that line stays what it is. Otherwise the type with the most votes
  wins; of two with as many, the one that comes first in the order of targets.
- Plain samples of a target whose type lost stand under the type that won. The parts of its histogram or summary
  (`h_bucket`, `h_sum`, `h_count`) do not: Prometheus would put them into a histogram that they are no part of. Each of
  them belongs to an untyped family of that name.
- A family `h_count` beside a histogram `h` keeps its samples and its type. It stands at the start of the page, before
  `h`: Go's other parser (expfmt) refuses its TYPE line after the histogram's. So such a name takes no part away from a
  histogram, and a histogram takes no name away from others.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar

from federator.model import Family, MetricType, Reading

# So many families, names or lines are looked at between two yields: some 3 ms.
SLICE = 2000
# So many parts of a page are joined to one piece of it. Most have some 300 bytes. On the largest page there may be, a
# piece takes some 10 ms.
PIECE_PARTS = 5000
# Plans kept: the last one, which is for the whole page, and others for scrapers that ask for parts of it, as long as
# all of them take no more bytes than this. A step takes so many, beside the HELP texts, which can be long.
MAX_SIZE = 30 << 20
STEP_SIZE = 150

_PARTS: dict[MetricType | None, tuple[str, ...]] = {
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Plan:
    """In which order heads and blocks make a page."""

    families: tuple[tuple[Family, ...], ...]  # of each reading
    parts: list[bytes]  # that come after the readings' blocks: heads, and what was taken out of blocks
    order: list[int]  # indices into blocks and parts
    opened: bool  # were blocks opened? Then the plan is for these blocks alone
    size: int  # about so many bytes


class Merger:
    """
    Makes pages, one after the other.

    How a page is put together depends on the families alone, and readings of texts that kept their shape have the very
    same tuple of them. So it is planned once, and recognised by these objects.
    """

    def __init__(self) -> None:
        self._plans: dict[tuple[int, ...], _Plan] = {}  # the plans hold what the ids are of, so that they stay true

    def plans(self) -> list[int]:
        """How many bytes each plan takes that is kept."""
        return [plan.size for plan in self._plans.values()]

    def merge(self, readings: Sequence[Reading]) -> Generator[None, None, list[bytes]]:
        """
        The page, in pieces. Yields between slices of the work.

        Every series must stand in one reading only, once; exposition.Reader sees to that by its labels.
        """
        key = tuple([id(reading.families) for reading in readings])
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = yield from _plan(readings)
        if not plan.opened:
            self._plans[key] = plan
            while len(self._plans) > 1 and sum(self.plans()) > MAX_SIZE:
                del self._plans[next(iter(self._plans))]
        parts = [*chain.from_iterable([reading.blocks for reading in readings]), *plan.parts]
        pieces: list[bytes] = []
        for first in range(0, len(plan.order), PIECE_PARTS):
            if first:
                yield
            pieces.append(b"".join([parts[index] for index in plan.order[first : first + PIECE_PARTS]]))
        return pieces


def _plan(readings: Sequence[Reading]) -> Generator[None, None, _Plan]:
    types = yield from _types(readings)
    families = tuple(reading.families for reading in readings)
    places: defaultdict[str, list[int]] = defaultdict(list)
    helps: dict[str, bytes] = {}
    parts: list[bytes] = []
    texts_size = 0
    first_part = sum(map(len, families))
    blocks = chain.from_iterable(reading.blocks for reading in readings)
    numbered = enumerate(zip(chain.from_iterable(families), blocks, strict=True))
    for piece in _slices(numbered, SLICE):
        for number, (family, block) in piece:
            name, winner = family.name, types.get(family.name)
            texts_size += len(family.help)
            if family.type == winner or family.type not in _PARTS:
                places[name].append(number)
                if family.help and family.type in (winner, None):
                    helps.setdefault(name, family.help)
            else:
                for sample_name, lines in (yield from _by_sample_name(block)):
                    places[sample_name].append(first_part + len(parts))
                    parts.append(lines)
        yield
    opened = bool(parts)
    order: list[int] = []
    for names in _slices((yield from _in_order(places, types)), SLICE):
        for name in names:
            order.append(first_part + len(parts))
            parts.append(_head(name, types.get(name, "untyped"), helps.get(name, b"")))
            texts_size += len(parts[-1])
            order += places[name]
        yield
    return _Plan(families, parts, order, opened, texts_size + STEP_SIZE * len(order))


def _types(readings: Iterable[Reading]) -> Generator[None, None, dict[str, MetricType]]:
    """The type of each family name, if a text says one."""
    votes: Counter[tuple[str, MetricType]] = Counter()
    for reading in readings:
        said: set[tuple[str, MetricType]] = set()
        for families in _slices(reading.families, SLICE):
            said_here = dict.fromkeys([(name, of_type) for name, of_type, _ in families if of_type is not None])
            votes.update([claim for claim in said_here if claim not in said])
            said.update(said_here)
            if len(families) == SLICE:
                yield
        yield
    types: dict[str, MetricType] = {}
    for claims in _slices(votes.items(), SLICE):  # in the order in which they came
        for (name, of_type), count in claims:
            best = types.get(name)
            if best is None or (of_type in _PARTS, count) > (best in _PARTS, votes[name, best]):
                types[name] = of_type
        yield
    return types


def _in_order(names: Iterable[str], types: dict[str, MetricType]) -> Generator[None, None, Iterable[str]]:
    """The names, sorted; but first those that are also parts of a histogram or summary, each before its owner."""
    parts: list[str] = []
    others: list[list[str]] = []
    for piece in _slices(names, SLICE):
        found = [name for name in piece if _is_part(name, types)]
        parts += found
        others.append(sorted(set(piece).difference(found)))
        yield
    parts.sort(reverse=True)  # `h_count_sum` before `h_count` before `h`
    return chain(parts, heapq.merge(*others))


def _is_part(name: str, types: dict[str, MetricType]) -> bool:
    base, _, suffix = name.rpartition("_")
    return "_" + suffix in _PARTS.get(types.get(base), ())


def _by_sample_name(block: bytes) -> Generator[None, None, Iterable[tuple[str, bytes]]]:
    """A block's lines by the metric name they start with. Every line has labels: ours, at least."""
    groups: defaultdict[bytes, list[bytes]] = defaultdict(list)
    # Never splitlines(): a label's value may hold any other line end.
    for lines in _slices(block.removesuffix(b"\n").split(b"\n"), SLICE):
        for line in lines:
            groups[line[: line.index(b"{")]].append(line + b"\n")
        if len(lines) == SLICE:
            yield
    return [(name.decode(), b"".join(group)) for name, group in groups.items()]


def _head(name: str, of_type: MetricType, help_text: bytes) -> bytes:
    encoded = name.encode()
    help_line = b"# HELP " + encoded + b" " + help_text + b"\n" if help_text else b""
    return help_line + b"# TYPE " + encoded + b" " + of_type.encode() + b"\n"


def _slices(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while piece := list(islice(iterator, size)):
        yield piece
