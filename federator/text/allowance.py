# SPDX-License-Identifier: GPL-3.0-or-later
"""
What the daemon may spend on lines of one target that it has not seen before.

Owns that account. Must not know what a line costs (parser), nor what becomes of a line that is not read.

A text that is read for the first time is new from its first line to its last, and has to be read whole. At the next
scrape most exporters have no new lines, and some have a few. Only a text that is made to be dear is new each time: it
has the same account as any other, and then has to live on what each scrape adds.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

# For each sample of scrape.sample_limit: room for a line of 250 bytes with 8 labels, or for a shorter one with a HELP
# and a TYPE line, as the recordings have them. With the default limit, that much takes some 6 seconds of CPU time.
WORK_PER_SAMPLE = 1000
# So much is there where the sample limit is low: what 0.1 s of CPU time are enough for.
LEAST_WORK = 1_000_000
# Each scrape adds this part (1/20): as much as an exporter of this size needs if 10 % of its series are new each time.
PART_PER_SCRAPE = 20

USED_UP = "not read: its new lines cost more than one exporter's may (it grows with scrape.sample_limit)"

L = TypeVar("L")
R = TypeVar("R")


class Allowance:
    """The account of one target, in units of work: one unit is what the parser needs for one plain byte."""

    def __init__(self, sample_limit: int) -> None:
        self._most = max(LEAST_WORK, sample_limit * WORK_PER_SAMPLE)
        self._left = self._most

    def renew(self) -> None:
        """A scrape begins."""
        self._left = min(self._most, self._left + self._most // PART_PER_SCRAPE)

    def spend_on(
        self,
        untrusted_lines: Sequence[L],
        work: Callable[[Sequence[L]], int],
        read: Callable[[Sequence[L]], Sequence[R]],
    ) -> Sequence[R | str]:
        """What `read` makes of these lines: of all at once, if there is enough left; else of each, as long as it is."""
        if not untrusted_lines:
            return ()
        if self.spend(work(untrusted_lines)):
            return read(untrusted_lines)
        return [
            read([untrusted_line])[0] if self.spend(work([untrusted_line])) else USED_UP
            for untrusted_line in untrusted_lines
        ]

    def spend(self, work: int) -> bool:
        """Take so much. False if there is not enough left: then nothing is taken, and the line must not be read."""
        if work > self._left:
            return False
        self._left -= work
        return True
