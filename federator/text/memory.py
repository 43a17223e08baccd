# SPDX-License-Identifier: GPL-3.0-or-later
"""
What is remembered from one scrape to the next, for all targets of one configuration, and how much of it.

Owns the bounds, and what is forgotten when there is too much: of the shapes the largest, so that a qube that sends more
than others pays for it itself; of the cached lines those that were not used for the longest time. What is forgotten is
read again: that costs time and changes nothing else. Must not know how a text is read.
"""

from typing import Generic, NamedTuple, TypeVar

from federator.model import Limits, Target
from federator.text.parser import Metadata
from federator.text.shape import BYTES_PER_BYTE, BYTES_PER_SAMPLE, Shape

# What may be remembered of shapes, where the caller does not say. 20 qubes with node and process exporter take some
# 20 MB; 50,000 samples, the default limit of one target, some 40 MB.
DEFAULT_SIZE = 128 << 20
# One target may have this part of it.
_PART_OF_ONE = 2
# All targets share a cache: 20 qubes with the same exporters need the entries of one. A cache has two generations of
# this many bytes each, and of no more than a part of what may be remembered of shapes.
_CACHE_SIZE_PER_SAMPLE = 300
_ODD_SIZE_PER_SAMPLE = 150  # half of that: most exporters have none
_CACHE_PART = 10
_ODD_PART = 20
_ENTRY_SIZE = 350  # of an entry, beside its key: measured with tracemalloc
# A line with a longer key is parsed each time. Key and longest value together must stay below parser.MAX_LINE.
MAX_KEY = 15 << 10

V = TypeVar("V")


class Series(NamedTuple):
    """
    A series, as cached by its key: the text of a sample line up to its value.

    `label_names` are the names of the target's labels. `labels` are these labels as they stand on the page, after ours.
    """

    key: bytes
    name: str
    label_names: tuple[str, ...]
    labels: bytes


class LineCache(Generic[V]):
    """
    What was read from lines, by the bytes of the line or of its key. All who share a cache have the same limits.

    New entries go into the young generation. When it is full, it becomes the old one, and what was the old one is
    forgotten. An entry of the old generation that is used becomes young again.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._young: dict[bytes, V] = {}
        self._old: dict[bytes, V] = {}

    def __len__(self) -> int:
        """How many entries there are, those that are in both generations twice."""
        return len(self._young) + len(self._old)

    def get(self, untrusted_key: bytes) -> V | None:
        """The entry, or None where the line has to be parsed."""
        entry = self._young.get(untrusted_key)
        if entry is None and (entry := self._old.get(untrusted_key)) is not None:
            self.add(untrusted_key, entry)
        return entry

    def add(self, key: bytes, entry: V) -> bool:
        """Keep an entry. False if its key is too long to be kept."""
        if len(key) > MAX_KEY:
            return False
        self._young[key] = entry
        self._left -= 2 * len(key) + _ENTRY_SIZE
        if self._left < 0:
            self._old, self._young, self._left = self._young, {}, self._size
        return True


class Memory:
    """The caches of lines, and the last shape of each target."""

    def __init__(self, limits: Limits, size: int = DEFAULT_SIZE) -> None:
        lines = min(limits.samples * _CACHE_SIZE_PER_SAMPLE, size // _CACHE_PART)
        self.series = LineCache[Series](lines)
        # What was read and cannot be found by its key alone, by target and key: series that are not good, with the
        # reason; and those with labels that are renamed for one target only.
        self.odd = LineCache[Series | str](min(limits.samples * _ODD_SIZE_PER_SAMPLE, size // _ODD_PART))
        self.metadata = LineCache[Metadata](lines)
        self._left = size
        self._most = size // _PART_OF_ONE
        self._shapes: dict[Target, Shape] = {}

    def recall(self, target: Target) -> Shape | None:
        """The target's last shape, if it is remembered."""
        return self._shapes.get(target)

    def may_keep(self, size: int, lines: int) -> bool:
        """Could a shape be kept of so many lines, which have so many bytes in the text and on the page?"""
        return BYTES_PER_BYTE * size + BYTES_PER_SAMPLE * lines <= self._most

    def keep(self, target: Target, shape: Shape) -> None:
        """Remember the shape instead of the target's last one, if it is not too large."""
        self.forget(target)
        if shape.size > self._most:
            return
        self._shapes[target] = shape
        self._left -= shape.size
        while self._left < 0:
            self.forget(max(self._shapes, key=lambda kept: self._shapes[kept].size))

    def forget(self, target: Target) -> None:
        """Forget the target's shape: the target is gone, or its text cannot be followed."""
        shape = self._shapes.pop(target, None)
        if shape is not None:
            self._left += shape.size
