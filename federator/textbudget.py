# SPDX-License-Identifier: GPL-3.0-or-later
"""
How many bytes of texts may be in memory at one time while they are received and read, for all qubes together.

Owns that sum, and who has to give up where it is too large: the largest, so that small texts of honest exporters are
read whatever others send. Must not know how a text is received or read.
"""

from typing import Protocol


class Holder(Protocol):
    """One that holds bytes of texts."""

    def give_up(self) -> None:
        """Let go of them, and release them here."""


class TextBudget:
    """The bytes that each holder has."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # may change at any time
        self._held: dict[Holder, int] = {}
        self._total = 0

    def __repr__(self) -> str:
        return f"<TextBudget: {self._total} of {self.limit} bytes held by {len(self._held)}>"

    @property
    def total(self) -> int:
        """Bytes held now."""
        return self._total

    def hold(self, holder: Holder, size: int) -> None:
        """The holder has so many bytes now. If it is too much, the largest gives up; it may be this one."""
        self._total += size - self._held.get(holder, 0)
        if size:
            self._held[holder] = size
        else:
            self._held.pop(holder, None)
        while self._total > self.limit and self._held:
            largest = max(self._held, key=self._held.__getitem__)
            self.release(largest)
            largest.give_up()

    def release(self, holder: Holder) -> None:
        """It has none any more."""
        self._total -= self._held.pop(holder, 0)
