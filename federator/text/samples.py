# SPDX-License-Identifier: GPL-3.0-or-later
"""
Sample lines -> series and values: from the cache where the series was seen before, else from the parser.

Owns the limits on labels. Must not know texts or the page: each line is read for itself. A series that was refused is
remembered as well: a bad line that comes at every scrape is not parsed again.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from federator.model import Limits
from federator.text.allowance import USED_UP, Allowance
from federator.text.memory import Memory, Series
from federator.text.parser import OverLimit, ParsedSeries, match_sample, parse_series, samples_work
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

    def read(self, untrusted_lines: Sequence[bytes], timestamps: Timestamps) -> Iterator[Sample | str]:
        """The sample in each line; or why the line is dropped, as an OverLimit where it exceeds a limit."""
        matches = [match_sample(untrusted_line) for untrusted_line in untrusted_lines]
        known = [match if isinstance(match, str) else self._known(match, timestamps) for match in matches]
        pairs = zip(matches, known, strict=True)
        to_parse = [match for match, found in pairs if not isinstance(match, str) and found is None]
        parsed = iter(self._allowance.spend_on(to_parse, samples_work, parse_series))
        for untrusted_line, match, found in zip(untrusted_lines, matches, known, strict=True):
            if isinstance(match, str) or isinstance(found, str):
                yield match if isinstance(match, str) else found if isinstance(found, str) else ""
                continue
            key, value, series = match["series"], match["value"], found
            if series is None:
                new = self._within_limits(next(parsed))
                if isinstance(new, str):
                    if new != USED_UP:
                        self._odd.add(self._odd_key + key, new)
                    yield new
                    continue
                series = self._added(key, new)
            yield Sample(series.key if key + value == untrusted_line else b"", series, value)

    def _known(self, match: re.Match[bytes], timestamps: Timestamps) -> Series | str | None:
        """The series, if it is cached; or why the line is dropped; or None if it has to be parsed."""
        untrusted_timestamp, untrusted_key = match["timestamp"], match["series"]
        if untrusted_timestamp is not None and (too_old := timestamps.refusal(untrusted_timestamp)):
            return too_old
        return self.cached(untrusted_key) or self._odd.get(self._odd_key + untrusted_key)

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

    def _within_limits(self, series: ParsedSeries | str) -> ParsedSeries | str:
        """The series, or what of it is too many or too long."""
        limits = self._limits
        if isinstance(series, str):
            return series
        if len(series.labels) > limits.labels:
            return OverLimit(f"more than {limits.labels} labels (scrape.label_limit)")
        most = limits.label_value_length
        if len(series.name) > most:
            return OverLimit(f"a name over {most} bytes (scrape.label_value_length_limit)")
        for name, value in series.labels:
            if len(name) > limits.label_name_length:
                return OverLimit(f"a label name over {limits.label_name_length} bytes (scrape.label_name_length_limit)")
            if len(value) > most or len(value.encode()) > most:
                return OverLimit(f"label {name} over {most} bytes (scrape.label_value_length_limit)")
        return series
