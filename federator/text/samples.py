# SPDX-License-Identifier: GPL-3.0-or-later
"""
Sample lines -> series and values: from the cache where the series was seen before, else from the parser.

Owns the limits on labels. Must not know texts or the page: each line is read for itself. A series that was refused is
remembered as well: a bad line that comes at every scrape is not parsed again.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from federator.errors import LabelLimitError
from federator.model import Limits
from federator.text.allowance import USED_UP, Allowance
from federator.text.memory import Memory, Series
from federator.text.parser import ParsedSeries, match_sample, parse_series, sample_work
from federator.text.relabel import Relabeling, page_labels
from federator.text.timestamp import Timestamps


class Sample(NamedTuple):
    """
    A good sample line.

    `key` is empty where the line is not just the key of a cached series with the value behind it: such a line has to be
    parsed again next time.
    """

    key: bytes
    series: Series
    value: bytes


class SampleReader:
    """Reads sample lines of one target."""

    def __init__(self, limits: Limits, memory: Memory, allowance: Allowance, relabeling: Relabeling) -> None:
        self._limits = limits
        self._cache = memory.series
        self._odd = memory.odd
        self._odd_key = relabeling.line_start(
            b"", b""
        )  # before the key of a series: what is odd here may be good there
        self._allowance = allowance
        self._relabeling = relabeling
        self._our_names = relabeling.our_names

    def cached(self, untrusted_key: bytes) -> Series | None:
        """
        The series that was read from this key before, for this target or another one.

        None if it has a label that we set for this target: such a label is renamed, for each target in another way.
        """
        series = self._cache.get(untrusted_key)
        return series if series is not None and self._our_names.isdisjoint(series.label_names) else None

    def read(
        self, untrusted_lines: Sequence[bytes], timestamps: Timestamps
    ) -> Iterator[Sample | str | LabelLimitError]:
        """The sample in each line; or why the line is dropped; or the limit that it exceeds."""
        matches = [match_sample(untrusted_line) for untrusted_line in untrusted_lines]
        known = [match if isinstance(match, str) else self._known(match, timestamps) for match in matches]
        pairs = zip(matches, known, strict=True)
        parsed = iter(parse_series([match for match, found in pairs if not isinstance(match, str) and found is None]))
        for untrusted_line, match, found in zip(untrusted_lines, matches, known, strict=True):
            if isinstance(match, str) or isinstance(found, str):
                yield str(found)
                continue
            key, value, series = match["series"], match["value"], found
            if series is None:
                new = next(parsed)
                if isinstance(new, str):
                    self._odd.add(self._odd_key + key, new)
                    yield new
                    continue
                if over := self._over_limit(new):
                    yield LabelLimitError(over)
                    continue
                series = self._added(key, new)
            yield Sample(series.key if key + value == untrusted_line else b"", series, value)

    def _known(self, match: re.Match[bytes], timestamps: Timestamps) -> Series | str | None:
        """The series, if it is cached; or why the line is dropped; or None if it has to be parsed."""
        untrusted_timestamp, untrusted_key = match["timestamp"], match["series"]
        if untrusted_timestamp is not None and (too_old := timestamps.refusal(untrusted_timestamp)):
            return too_old
        known = self.cached(untrusted_key) or self._odd.get(self._odd_key + untrusted_key)
        if known is None and not self._allowance.spend(sample_work(match)):
            return USED_UP
        return known

    def _added(self, key: bytes, parsed: ParsedSeries) -> Series:
        """The series, added to the cache if it can be found there by its key; else its key is empty."""
        label_names = tuple(name for name, _ in parsed.labels)
        labels = page_labels(self._relabeling.renamed(parsed.labels))
        if key.endswith(b" ") and self._our_names.isdisjoint(label_names):
            series = Series(key, parsed.name, label_names, labels)
            if self._cache.add(key, series):
                return series
        series = Series(b"", parsed.name, label_names, labels)
        self._odd.add(self._odd_key + key, series)
        return series

    def _over_limit(self, series: ParsedSeries) -> str:
        """What is too many or too long, or an empty text."""
        limits = self._limits
        if len(series.labels) > limits.labels:
            return f"more than {limits.labels} labels (scrape.label_limit)"
        if len(series.name) > limits.label_value_length:
            return f"a name over {limits.label_value_length} bytes (label_value_length_limit)"
        for name, value in series.labels:
            if len(name) > limits.label_name_length:
                return f"a label name over {limits.label_name_length} bytes (label_name_length_limit)"
            if len(value) > limits.label_value_length or len(value.encode()) > limits.label_value_length:
                return f"label {name} over {limits.label_value_length} bytes (label_value_length_limit)"
        return ""
