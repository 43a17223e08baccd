# SPDX-License-Identifier: GPL-3.0-or-later
"""The texts that the benchmarks read: recorded scrapes of real exporters, one after the other, and what they become."""

import random
import re
from collections.abc import Sequence

from tests.helpers import recording

# Successive scrapes, there and back again, so that each is a real neighbour of the one before.
ORDER = (2, 3, 4, 5, 4, 3)
# feeder.py puts something of its own here, so that what is new is new in each qube.
OF_QUBE = b"@qube@"
_SAMPLE = re.compile(rb"^(?P<key>[^#\n].* )(?P<value>[^ \n]+)$", re.MULTILINE)


def recorded(exporter: str) -> list[bytes]:
    """As it was."""
    return [recording(exporter, number) for number in ORDER]


def samples(body: bytes) -> int:
    """How many there are in a text."""
    return sum(1 for line in body.split(b"\n") if line and not line.startswith(b"#"))


def all_values_new(bodies: Sequence[bytes], chance: random.Random) -> list[bytes]:
    """Every value another one at every scrape, written as long as it was."""

    def another(match: re.Match[bytes]) -> bytes:
        number = re.sub(rb"(?<!e.)\d(?!\d?$)|\d$", lambda _: b"%d" % chance.randrange(1, 10), match["value"])
        return match["key"] + (number if match["value"][:1].isdigit() else match["value"])

    return [_SAMPLE.sub(another, body) for body in bodies]


def churned(exporter: str, share: float, count: int, chance: random.Random) -> list[bytes]:
    """Scrapes of which each has that share of series that were never there before."""
    bodies = recorded(exporter)
    return [series_new(bodies[number % len(bodies)], share, chance) for number in range(count)]


def series_new(body: bytes, share: float, chance: random.Random) -> bytes:
    """That share of the series has a label value that was never there."""
    lines = body.split(b"\n")
    for index, line in enumerate(lines):
        if line and not line.startswith(b"#") and chance.random() < share:
            key, _, value = line.rpartition(b" ")
            label = b'new="%b%d"' % (OF_QUBE, chance.randrange(10**12))
            key = key[:-1] + b"," + label + b"}" if key.endswith(b"}") else key + b"{" + label + b"}"
            lines[index] = key + b" " + value
    return b"\n".join(lines)


def restarted(body: bytes, chance: random.Random) -> bytes:
    """The same families in another order."""
    head, *families = body.removesuffix(b"\n").split(b"\n# HELP ")
    chance.shuffle(families)
    return b"\n# HELP ".join([head, *families]) + b"\n"


def large(count: int, chance: random.Random) -> bytes:
    """One exporter with very many series: 500 families, each of as many as it takes."""
    lines: list[bytes] = []
    for family in range(500):
        lines.append(b"# HELP large_%d_total Something that is counted." % family)
        lines.append(b"# TYPE large_%d_total counter" % family)
        lines += [
            b'large_%d_total{path="/some/where/%d",code="200",method="get"} %d' % (family, one, chance.randrange(10**9))
            for one in range(count // 500)
        ]
    return b"\n".join([*lines, b""])
