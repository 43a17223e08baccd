# SPDX-License-Identifier: GPL-3.0-or-later
"""
Many targets' readings -> one exposition: one block for each family name, sorted by name, targets in the order given.

Owns what to do where targets disagree about a name. Must not know qubes, time or failure: it gets readings, and the
daemon's own gauges are one of them. Lines are never opened here, except to move the parts of a family whose type lost.

Where types disagree no sample is lost and no value changes; all that is decided is under which TYPE line samples stand:

- A name has the type that most targets give it; the first of them in order where there are as many for another. So one
  broken or hostile qube cannot take a type away from several others.
- A histogram or summary `h` owns the names `h_bucket`, `h_sum`, `h_count`. Where more targets use such a name on its
  own than have the histogram, the histogram is the one that loses.
- Samples of a target whose type lost go, by their own name, where that name belongs: under the winner's TYPE (a gauge
  among counters), or into an untyped family of their own (the buckets of a histogram that others call a gauge).
"""

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from federator.model import Family, MetricType, Reading

# So many families are looked at between two yields: some 5 ms.
SLICE_FAMILIES = 2000
# Plans kept: the last one, which is for the whole page, and others for scrapers that ask for parts of it, as long as
# all of them have no more steps than this, some 150 bytes each.
MAX_STEPS = 200_000

_PARTS: dict[MetricType, tuple[str, ...]] = {
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}


@dataclass(frozen=True, slots=True)
class _Plan:
    """In which order heads and blocks make a page."""

    families: tuple[tuple[Family, ...], ...]  # of each reading
    parts: list[bytes]  # that come after the readings' blocks: heads, and what was taken out of blocks
    order: list[int]  # indices into blocks and parts
    opened: bool  # were blocks opened? Then the plan is for these blocks alone


class Merger:
    """
    Makes pages, one after the other.

    How a page is put together depends on the families alone, and readings of texts that kept their shape have the very
    same tuple of them. So it is planned once, and recognised by these objects.
    """

    def __init__(self) -> None:
        self._plans: dict[tuple[int, ...], _Plan] = {}  # the plans hold what the ids are of, so that they stay true

    def merge(self, readings: Sequence[Reading]) -> Generator[None, None, bytes]:
        """
        The page. Yields between slices of the work, and returns it.

        Every series must stand in one reading only, once; exposition.Reader sees to that by its labels.
        """
        key = tuple([id(reading.families) for reading in readings])
        plan = self._plans.pop(key, None)
        if plan is None:
            plan = yield from _plan(readings)
        if not plan.opened:
            self._plans[key] = plan
            while len(self._plans) > 1 and sum(len(kept.order) for kept in self._plans.values()) > MAX_STEPS:
                del self._plans[next(iter(self._plans))]
        parts = [*chain.from_iterable([reading.blocks for reading in readings]), *plan.parts]
        return b"".join([parts[index] for index in plan.order])


def _plan(readings: Sequence[Reading]) -> Generator[None, None, _Plan]:
    types, owners = yield from _decide(readings)
    families = tuple(reading.families for reading in readings)
    places: defaultdict[str, list[int]] = defaultdict(list)
    helps: dict[str, bytes] = {}
    parts: list[bytes] = []
    number, first_part = 0, sum(map(len, families))
    for reading in readings:
        for start in range(0, len(reading.families), SLICE_FAMILIES):
            piece = slice(start, start + SLICE_FAMILIES)
            for family, block in zip(reading.families[piece], reading.blocks[piece], strict=True):
                name = family.name
                if family.type == types[name] and name not in owners:
                    places[name].append(number)
                    if family.help:
                        helps.setdefault(name, family.help)
                else:
                    for sample_name, lines in _by_sample_name(block):
                        places[owners.get(sample_name, sample_name)].append(first_part + len(parts))
                        parts.append(lines)
                number += 1
            yield
    opened = bool(parts)
    order: list[int] = []
    for step, name in enumerate(sorted(places), 1):
        order.append(first_part + len(parts))
        parts.append(_head(name, types.get(name, "untyped"), helps.get(name, b"")))
        order += places[name]
        if step % SLICE_FAMILIES == 0:
            yield
    return _Plan(families, parts, order, opened)


def _decide(
    readings: Iterable[Reading],
) -> Generator[None, None, tuple[dict[str, MetricType], dict[str, str]]]:
    """The type of every family name, and for every part of a histogram or summary the family that owns it."""
    votes: defaultdict[str, Counter[MetricType]] = defaultdict(Counter)
    for reading in readings:
        for number, family in enumerate(dict.fromkeys(reading.families), 1):
            votes[family.name][family.type] += 1
            if number % SLICE_FAMILIES == 0:
                yield
    # max() keeps the first of equals, and a Counter the order in which its keys came.
    types = {name: max(counts, key=counts.__getitem__) for name, counts in votes.items()}
    owners: dict[str, str] = {}
    for number, name in enumerate(sorted(types), 1):  # `h` before `h_count`: what is part of another can own no parts
        if number % SLICE_FAMILIES == 0:
            yield
        if name in owners:
            types[name] = "untyped"
        parts = [name + suffix for suffix in _PARTS.get(types[name], ())]
        if all(votes[part].total() <= votes[name][types[name]] for part in parts if part in votes):
            owners.update(dict.fromkeys(parts, name))
        else:
            types[name] = "untyped"
    return types, owners


def _by_sample_name(block: bytes) -> Iterable[tuple[str, bytes]]:
    """A block's lines by the metric name they start with. Every line has labels: ours, at least."""
    lines: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for line in block.removesuffix(b"\n").split(
        b"\n"
    ):  # never splitlines(): a label's value may hold any other line end
        lines[line[: line.index(b"{")]].append(line + b"\n")
    return ((name.decode(), b"".join(group)) for name, group in lines.items())


def _head(name: str, of_type: MetricType, help_text: bytes) -> bytes:
    encoded = name.encode()
    help_line = b"# HELP " + encoded + b" " + help_text + b"\n" if help_text else b""
    return help_line + b"# TYPE " + encoded + b" " + of_type.encode() + b"\n"
