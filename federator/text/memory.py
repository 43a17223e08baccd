# SPDX-License-Identifier: GPL-3.0-or-later
"""
What is remembered from one scrape to the next, for all targets of one configuration, and how much of it.

Owns the bounds, and what goes when there is too much: of the shapes the largest, so that a qube that sends more than
others pays for it itself; of the approvals those not used for the longest time. Forgetting costs time, nothing else.
Must not know what is in it.
"""

from typing import Generic, NamedTuple, TypeVar

from federator.model import Limits, Target
from federator.text.shape import Shape

# Shapes of all targets together, and of one. 20 qubes with node and process exporter take some 20 MB; 50,000 samples,
# the default limit of one target, some 40 MB. Who allows more of them allows more memory.
_SHAPES_SIZE = 256 << 20
_SHAPE_SIZE = 64 << 20
_SHAPES_SIZE_PER_SAMPLE = 1200
# Approvals are shared: 20 qubes with the same exporters need those of one. Two generations of so many bytes each.
_APPROVALS_SIZE_PER_SAMPLE = 300
_APPROVAL_SIZE = 350  # of an approval, beside its key: measured with tracemalloc
# A longer key is judged each time. With the longest value behind it, it has to stay below exposition.MAX_LINE.
MAX_KEY = 4096

V = TypeVar("V")


class Head(NamedTuple):
    """What was once judged: a HELP or TYPE line. `text` is the help as the page has it, or the type as it came."""

    kind: bytes
    name: str
    text: bytes


class Series(NamedTuple):
    """
    What was once judged: the beginning of a line, up to its value, names this series.

    `names` are those of its labels; `labels` are its labels as the page has them, b',name="value"' each, where none of
    the names is one that we vouch for.
    """

    key: bytes
    name: str
    names: tuple[str, ...]
    labels: bytes


class Approvals(Generic[V]):
    """What was judged, and with what result, by its bytes. All who share these have the same limits."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._young: dict[bytes, V] = {}
        self._old: dict[bytes, V] = {}

    def get(self, untrusted_key: bytes) -> V | None:
        """The result, or None where it has to be judged."""
        result = self._young.get(untrusted_key)
        if result is None and (result := self._old.get(untrusted_key)) is not None:
            self.add(untrusted_key, result)
        return result

    def add(self, key: bytes, result: V) -> bool:
        """Remember what was judged, if its key is not too long; is it remembered?"""
        if len(key) > MAX_KEY:
            return False
        self._young[key] = result
        self._left -= 2 * len(key) + _APPROVAL_SIZE
        if self._left < 0:
            self._old, self._young, self._left = self._young, {}, self._size
        return True


class Memory:
    """The approvals, and the last shape of each target."""

    def __init__(self, limits: Limits) -> None:
        self.series: Approvals[Series] = Approvals(limits.samples * _APPROVALS_SIZE_PER_SAMPLE)
        self.heads: Approvals[Head] = Approvals(limits.samples * _APPROVALS_SIZE_PER_SAMPLE)
        self._left = max(_SHAPES_SIZE, limits.samples * _SHAPES_SIZE_PER_SAMPLE)
        self._most = max(_SHAPE_SIZE, limits.samples * _SHAPES_SIZE_PER_SAMPLE)
        self._shapes: dict[Target, Shape] = {}

    def recall(self, target: Target) -> Shape | None:
        """The target's last shape, if it is remembered."""
        return self._shapes.get(target)

    def keep(self, target: Target, shape: Shape) -> None:
        """In place of the target's last one, if it is not too large."""
        self.forget(target)
        if shape.size > self._most:
            return
        self._shapes[target] = shape
        self._left -= shape.size
        while self._left < 0:
            self.forget(max(self._shapes, key=lambda kept: self._shapes[kept].size))

    def forget(self, target: Target) -> None:
        """The target went away, or is not what it was."""
        shape = self._shapes.pop(target, None)
        if shape is not None:
            self._left += shape.size
