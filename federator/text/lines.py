# SPDX-License-Identifier: GPL-3.0-or-later
"""
A whole text, line by line -> its samples, and what they are on the page.

Owns the order of lines and the slices of work. Must not know limits on the whole text, nor what is remembered of it.
"""

from collections.abc import Generator, Iterable, Sequence

from federator.model import Family
from federator.text.metadata import FamilyMetadata
from federator.text.parser import MAX_LINE, DroppedLines, breaks_off, goes_on
from federator.text.relabel import PageNames, Relabeling
from federator.text.samples import Sample, SampleReader
from federator.text.shape import PageLine, separator_of
from federator.text.timestamp import Timestamps
from federator.text.value import are_values

# A slice is over after so many lines or bytes: some 2 milliseconds, 10 with the worst text, which is one line.
SLICE_LINES = 200
SLICE_BYTES = MAX_LINE
# So many bytes are split into lines at one time: some 0.5 milliseconds.
_PIECE_BYTES = 256 << 10
# So many lines between two yields where nothing has to be parsed: some 2 milliseconds as well.
STEP_LINES = 2000
# So many bytes of metric names between two yields when it is decided what they are on the page: with the dearest
# pattern to drop, 100 ns each.
STEP_NAME_BYTES = 8 << 10
# Families without samples that stay on the page, with so many bytes of names and HELP texts in all: ten times what an
# exporter of some hundred metrics has before its first events. More would only make pages larger.
MAX_DECLARED = 500
MAX_DECLARED_BYTES = 64 << 10
_NAME_WORK = 40  # bytes of a name that cost as much as the rest of that decision


class TextLines:
    """
    The lines of one text. First `read`, then `page_lines`.

    `starts` has, for each section (see shape.Shape) after the first, the number of samples before it, if no line was
    dropped. `page_names` has the metric names of the text once `page_lines` is done.
    """

    def __init__(
        self, sample_reader: SampleReader, relabeling: Relabeling, metadata: FamilyMetadata, timestamps: Timestamps
    ) -> None:
        self._sample_reader = sample_reader
        self._relabeling = relabeling
        self._metadata = metadata
        self._timestamps = timestamps
        self.samples: list[Sample] = []
        self.starts: list[int] = []
        self.dropped = DroppedLines()
        self._value_start: int | None = None  # among `samples`, where a label value may have begun that goes on
        self._in_values: list[tuple[int, int]] = []  # among `samples`: those that are lines of such values
        self.page_names: PageNames = {}

    def read(self, untrusted_body: bytes) -> Generator[None, None, None]:
        """Fill `samples` and `starts`."""
        last_turn = 0
        section_start = separator_of(untrusted_body)[1:]
        for first, untrusted_slice in _slices_of(untrusted_body):
            parsed = self._read_slice(first, untrusted_slice, section_start)
            if parsed or first - last_turn >= STEP_LINES:
                last_turn = first
                yield
        if self._in_values:
            starts, ends = zip(*self._in_values, strict=True)
            pairs = zip((0, *ends), (*starts, len(self.samples)), strict=True)
            self.samples = [sample for end, start in pairs for sample in self.samples[end:start]]

    def _read_slice(self, first: int, untrusted_slice: Sequence[bytes], section_start: bytes) -> bool:
        """
        Read the lines of a slice. `first` is the number of the first one.

        What is cached is taken from the cache, the values of all these lines are checked at once, and the other lines
        are parsed. True if there was one to parse, which takes time.
        """
        samples: list[Sample | None] = [None] * len(untrusted_slice)  # in each line
        untrusted_values: list[bytes] = []
        untrusted_unknown: list[tuple[int, bytes]] = []  # index in the slice, line
        untrusted_comments: list[tuple[int, bytes]] = []  # number, line
        for index, untrusted_line in enumerate(untrusted_slice):
            untrusted_key = untrusted_line[: untrusted_line.rfind(b" ") + 1]
            series = self._sample_reader.cached(untrusted_key)
            if series is not None:
                untrusted_value = untrusted_line[len(untrusted_key) :]
                untrusted_values.append(untrusted_value)
                samples[index] = Sample(series.key, series, untrusted_value)
            elif untrusted_line.lstrip(b" \t").startswith(b"#"):
                if untrusted_line.startswith(section_start) and first + index > 1:
                    self.starts.append(len(self.samples) + len(untrusted_values) + len(untrusted_unknown))
                untrusted_comments.append((first + index, untrusted_line))
            elif untrusted_line and not untrusted_line.isspace():
                untrusted_unknown.append((index, untrusted_line))
        if not are_values(untrusted_values):
            untrusted_unknown += [(index, untrusted_slice[index]) for index, sample in enumerate(samples) if sample]
            untrusted_unknown.sort()
            samples = [None] * len(untrusted_slice)
        parsed = self._metadata.read(untrusted_comments, self.dropped)
        untrusted_dropped = self._parse(first, untrusted_unknown, samples) if untrusted_unknown else ()
        if self._value_start is not None or any(map(breaks_off, untrusted_dropped)):
            self._find_values(untrusted_slice, samples)
        self.samples += filter(None, samples)
        return parsed or bool(untrusted_unknown)

    def _parse(
        self, first: int, untrusted_lines: Sequence[tuple[int, bytes]], samples: list[Sample | None]
    ) -> Sequence[bytes]:
        """Put the sample of each line, given with its index, at that index into `samples`. Returns the other lines."""
        untrusted_dropped = []
        results = self._sample_reader.read([untrusted_line for _, untrusted_line in untrusted_lines], self._timestamps)
        for (index, untrusted_line), result in zip(untrusted_lines, results, strict=True):
            if isinstance(result, str):
                self.dropped.add(first + index, untrusted_line, result)
                untrusted_dropped.append(untrusted_line)
            else:
                samples[index] = result
        return untrusted_dropped

    def _find_values(self, untrusted_slice: Sequence[bytes], samples: Sequence[Sample | None]) -> None:
        """
        Find samples that are none: they are lines of a label value with line breaks in it.

        As Prometheus reads it, such a value ends at the next quote. Where the line is not good from there on, there was
        no such value, but one bad line.
        """
        count = len(self.samples)
        for untrusted_line, sample in zip(untrusted_slice, samples, strict=True):
            if self._value_start is not None and b'"' in untrusted_line:
                if count > self._value_start and goes_on(untrusted_line):
                    self._in_values.append((self._value_start, count))
                    self.dropped.count += count - self._value_start
                self._value_start = None
            if sample:
                count += 1
            elif breaks_off(untrusted_line):
                self._value_start = count

    def page_lines(self) -> Generator[None, None, list[PageLine]]:
        """The samples with what they are on the page, each series once."""
        page_names = self.page_names
        lines: list[PageLine] = []
        seen: set[bytes] = set()
        name_bytes = 0  # since the last yield
        for number, (key, series, value) in enumerate(self.samples, 1):
            if number % STEP_LINES == 0:
                yield
            name = series.name
            if name not in page_names:
                page_names[name] = self._relabeling.page_name(self._metadata.family(name), name)
                name_bytes += len(name) + _NAME_WORK
                if name_bytes > STEP_NAME_BYTES:
                    name_bytes = 0
                    yield
            page_name = page_names[name]
            if page_name is None:
                lines.append(PageLine(key, None, b"", value))
                continue
            start = self._relabeling.line_start(page_name.name, series.labels)
            if start in seen:
                self.dropped.add(0, start, "the same series twice; the first one counts")
                continue
            seen.add(start)
            lines.append(PageLine(key, page_name.family, start, value))
        return lines

    def declared(self) -> Generator[None, None, tuple[Family, ...]]:
        """The families that the text declares and has no samples of, as they are on the page. After `page_lines`."""
        names = {page_name.family.name for page_name in self.page_names.values() if page_name}
        found: list[Family] = []
        left = MAX_DECLARED_BYTES
        work = 0  # since the last yield
        for family in self._metadata.declared():
            work += _NAME_WORK
            if family and len(found) < MAX_DECLARED and left >= (size := len(family.name) + len(family.help)):
                left -= size
                work += len(family.name)
                page_name = self._relabeling.page_name(family, family.name)
                if page_name and page_name.family.name not in names:
                    names.add(page_name.family.name)
                    found.append(page_name.family)
            if work > STEP_NAME_BYTES:
                work = 0
                yield
        return tuple(found)


def slices(untrusted_lines: Sequence[bytes]) -> Iterable[tuple[int, Sequence[bytes]]]:
    """The lines in slices, with the number of the first one of each."""
    start = size = 0
    for index, untrusted_line in enumerate(untrusted_lines):
        size += len(untrusted_line)
        if size > SLICE_BYTES or index - start >= SLICE_LINES:
            yield start + 1, untrusted_lines[start:index]
            start, size = index, len(untrusted_line)
    yield start + 1, untrusted_lines[start:]


def _slices_of(untrusted_body: bytes) -> Iterable[tuple[int, Sequence[bytes]]]:
    """The lines of a text that ends in a newline, in slices as `slices` makes them."""
    start, number = 0, 0
    while start < len(untrusted_body):
        end = untrusted_body.index(b"\n", min(start + _PIECE_BYTES, len(untrusted_body) - 1)) + 1
        untrusted_lines = untrusted_body[start : end - 1].split(b"\n")
        for first, untrusted_slice in slices(untrusted_lines):
            yield number + first, untrusted_slice
        start, number = end, number + len(untrusted_lines)
