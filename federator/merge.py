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

from federator.model import MetricType, Reading

# So many families are looked at between two yields: some 5 ms.
SLICE_FAMILIES = 2000

_PARTS: dict[MetricType, tuple[str, ...]] = {
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}


def merge(readings: Sequence[Reading]) -> Generator[None, None, bytes]:
    """
    The page. Yields between slices of the work, and returns it.

    Every series must stand in one reading only, once; exposition.Reader sees to that by its labels.
    """
    types, owners = yield from _decide(readings)
    blocks: defaultdict[str, list[bytes]] = defaultdict(list)
    helps: dict[str, bytes] = {}
    for reading in readings:
        for start in range(0, len(reading.families), SLICE_FAMILIES):
            piece = slice(start, start + SLICE_FAMILIES)
            for family, block in zip(reading.families[piece], reading.blocks[piece], strict=True):
                name = family.name
                if family.type == types[name] and name not in owners:
                    blocks[name].append(block)
                    if family.help:
                        helps.setdefault(name, family.help)
                else:
                    for sample_name, lines in _by_sample_name(block):
                        blocks[owners.get(sample_name, sample_name)].append(lines)
            yield
    parts: list[bytes] = []
    for number, name in enumerate(sorted(blocks), 1):
        parts.append(_head(name, types.get(name, "untyped"), helps.get(name, b"")))
        parts += blocks[name]
        if number % SLICE_FAMILIES == 0:
            yield
    return b"".join(parts)


def _decide(
    readings: Iterable[Reading],
) -> Generator[None, None, tuple[dict[str, MetricType], dict[str, str]]]:
    """The type of every family name, and for every part of a histogram or summary the family that owns it."""
    votes: defaultdict[str, Counter[MetricType]] = defaultdict(Counter)
    for reading in readings:
        for number, family in enumerate(reading.families, 1):
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
