# SPDX-License-Identifier: GPL-3.0-or-later
"""
Many targets' readings -> one exposition: one block for each family name, sorted by name, targets in the order given.

Owns what to do where targets disagree about a name. Must not know qubes, time or failure: it gets readings, and the
daemon's own gauges are one of them. Blocks are not split into lines, except where the type of a target's family lost.

Where types disagree no sample is lost and no value changes; only the TYPE line that a sample stands under is decided:

- A name has the type that most targets give it; of two types with as many targets, the first one in order. So one
  broken or hostile qube cannot take a type away from several others.
- A histogram or summary `h` owns the names `h_bucket`, `h_sum`, `h_count`. Where more targets use such a name on its
  own than have the histogram, the histogram is the one that loses.
- The samples of a target whose type lost stay, under their own names: under the winner's TYPE (a gauge among counters),
  or in an untyped family of their own (the buckets of a histogram that others call a gauge).
"""

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from federator.model import Family, MetricType, Reading

# So many families are looked at between two yields: some 5 ms.
SLICE_FAMILIES = 2000
# The last plan is kept, and older ones (of scrapers that ask for a part of the page) as long as all plans together have
# no more steps than this, some 150 bytes each.
MAX_STEPS = 200_000

_SUFFIXES: dict[MetricType, tuple[str, ...]] = {
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """
    In which order metadata and blocks make a page.

    A page is joined from a list of pieces: the blocks of all readings, then the plan's own pieces.
    """

    families: tuple[tuple[Family, ...], ...]  # of each reading
    pieces: list[bytes]  # HELP and TYPE lines, and lines of blocks that were split
    order: list[int]  # which piece comes next
    reusable: bool  # no block was split, so the plan holds no values


class Merger:
    """
    Makes pages, one after the other.

    How a page is put together depends on the families alone. The readings of a text that kept its shape have the same
    tuple of families, the very object. So a page is planned once, and its plan is found again by these objects.
    """

    def __init__(self) -> None:
        # By the ids of the readings' families. A plan holds these families, so no other object can get their ids.
        self._plans: dict[tuple[int, ...], _Plan] = {}

    @property
    def planned_steps(self) -> list[int]:
        """How many steps each plan has that is kept."""
        return [len(plan.order) for plan in self._plans.values()]

    def merge(self, readings: Sequence[Reading]) -> Generator[None, None, bytes]:
        """
        The page. Yields between slices of the work, and returns it.

        No series may stand in two readings: exposition.Reader guarantees that by its labels.
        """
        key = tuple([id(reading.families) for reading in readings])
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = yield from _plan(readings)
        if plan.reusable:
            self._plans[key] = plan
            while len(self._plans) > 1 and sum(self.planned_steps) > MAX_STEPS:
                del self._plans[next(iter(self._plans))]
        pieces = [*chain.from_iterable([reading.blocks for reading in readings]), *plan.pieces]
        return b"".join([pieces[index] for index in plan.order])


def _plan(readings: Sequence[Reading]) -> Generator[None, None, _Plan]:
    """
    The plan for a page of these readings.

    First the type of each name is decided. Then each block is put under its family's name; a block whose type lost is
    split, and its lines go under the names that they belong to. Last, the names are sorted.
    """
    types, owners = yield from _decide(readings)
    families = tuple(reading.families for reading in readings)
    under: defaultdict[str, list[int]] = defaultdict(list)  # family name -> its pieces
    helps: dict[str, bytes] = {}
    pieces: list[bytes] = []
    number, first_own = 0, sum(map(len, families))
    for reading in readings:
        for start in range(0, len(reading.families), SLICE_FAMILIES):
            some = slice(start, start + SLICE_FAMILIES)
            for family, block in zip(reading.families[some], reading.blocks[some], strict=True):
                name = family.name
                if family.type == types[name] and name not in owners:
                    under[name].append(number)
                    if family.help:
                        helps.setdefault(name, family.help)
                else:
                    for sample_name, lines in _by_sample_name(block):
                        under[owners.get(sample_name, sample_name)].append(first_own + len(pieces))
                        pieces.append(lines)
                number += 1
            yield
    reusable = not pieces
    order: list[int] = []
    for step, name in enumerate(sorted(under), 1):
        order.append(first_own + len(pieces))
        pieces.append(_metadata(name, types.get(name, "untyped"), helps.get(name, b"")))
        order += under[name]
        if step % SLICE_FAMILIES == 0:
            yield
    return _Plan(families, pieces, order, reusable)


def _decide(
    readings: Iterable[Reading],
) -> Generator[None, None, tuple[dict[str, MetricType], dict[str, str]]]:
    """
    The type of each family name; and the owners: `h_count`, … -> `h`, for each histogram or summary `h`.

    Each target has one vote for a name. A histogram or summary must then also win the names of its parts: if it does
    not, or if its own name is a part of another one, it becomes untyped and owns nothing.
    """
    votes: defaultdict[str, Counter[MetricType]] = defaultdict(Counter)
    for reading in readings:
        for number, family in enumerate(dict.fromkeys(reading.families), 1):
            votes[family.name][family.type] += 1
            if number % SLICE_FAMILIES == 0:
                yield
    # max() keeps the first of equals, and a Counter the order in which its keys came.
    types = {name: max(counts, key=counts.__getitem__) for name, counts in votes.items()}
    owners: dict[str, str] = {}
    for number, name in enumerate(sorted(types), 1):  # sorted: `h` is decided before `h_count`
        if number % SLICE_FAMILIES == 0:
            yield
        if name in owners:
            types[name] = "untyped"
        parts = [name + suffix for suffix in _SUFFIXES.get(types[name], ())]
        if all(votes[part].total() <= votes[name][types[name]] for part in parts if part in votes):
            owners.update(dict.fromkeys(parts, name))
        else:
            types[name] = "untyped"
    return types, owners


def _by_sample_name(block: bytes) -> Iterable[tuple[str, bytes]]:
    """A block's lines by the metric name they start with. Every line has labels: ours, at least."""
    lines: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for line in block.removesuffix(b"\n").split(b"\n"):  # splitlines() would also split at a \r in a label's value
        lines[line[: line.index(b"{")]].append(line + b"\n")
    return ((name.decode(), b"".join(group)) for name, group in lines.items())


def _metadata(name: str, of_type: MetricType, help_text: bytes) -> bytes:
    encoded = name.encode()
    help_line = b"# HELP " + encoded + b" " + help_text + b"\n" if help_text else b""
    return help_line + b"# TYPE " + encoded + b" " + of_type.encode() + b"\n"
