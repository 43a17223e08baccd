# SPDX-License-Identifier: GPL-3.0-or-later
"""
One target's text, from a qube that is not trusted -> checked and labelled lines that every Prometheus takes.

Owns the way of a text through the other files, and the limits on the whole of it. Must not know where the text came
from, nor what else is on the page.

    body -> follow                      most texts end here: only their values are read
         -> lines -> metadata, samples  from the parser or a cache
                  -> page lines         relabel: our labels, reserved names; each series once
         -> shape                       remembered if no line was dropped, and followed next time

A line is passed on whole or not at all. Timestamps are left out, so that a series that ends goes stale at once; a
sample that is stamped too far back is dropped.

Work is done in slices, with a `yield` after each: the caller decides who is next, so that one large or hostile text
does not delay the others. Everything before the first slice is linear and bounded by `Limits`.
"""

from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from itertools import groupby
from operator import attrgetter

from federator.errors import BodySizeLimitError, ExpositionError, LabelLimitError, SampleLimitError, shown
from federator.model import Family, Limits, Reading, Target
from federator.text.allowance import Allowance
from federator.text.content_type import is_html, looks_like_web_page
from federator.text.follow import PageSeries, Unfinished, follow
from federator.text.lines import SLICE_LINES, STEP_LINES, TextLines, slices
from federator.text.memory import Memory, Series
from federator.text.metadata import FamilyMetadata
from federator.text.parser import DroppedLines
from federator.text.relabel import PageNames, Relabeling
from federator.text.samples import Sample, SampleReader
from federator.text.shape import Heads, PageLine, Shape, shape_of
from federator.text.timestamp import Timestamps

# Room for HELP, TYPE, blank lines and comments around every sample; a list of 16 million empty lines is no exposition.
MAX_LINES_PER_SAMPLE = 4
# Bytes in which these lines are counted between two yields: some 2 ms at most, where each line is empty.
COUNTED_BYTES = 1 << 20
# Bytes that are joined to blocks between two yields: some 2 ms, and the largest line on top.
STEP_BYTES = 512 << 10
# Metric names in one text, and bytes of all of them: each name costs something whenever the page is planned anew. The
# recordings have up to 700 names; exporters with some thousands are known, with about 60 bytes each. Where the
# configuration allows more samples, a tenth as many names are allowed.
MAX_NAMES = 5000
SAMPLES_PER_NAME = 10
BYTES_PER_NAME = 256
# A text with dropped lines has no shape, but its families are most often those of the last one, by which merge.Merger
# knows its page again. They are kept if there are no more than this, which is more than any real exporter has.
MAX_KEPT_FAMILIES = 2000
# A text is followed if its new series are no more than this part (1/4) of the sample limit. The cache holds that many,
# so they are not parsed again if the text turns out, after all, to need reading line by line.
NEW_OF_LIMIT = 4


class Reader:
    """
    Reads one target's text, scrape after scrape.

    `target`, `limits` and `memory` are for life: another configuration needs another reader.
    """

    def __init__(self, target: Target, limits: Limits, memory: Memory) -> None:
        self._target = target
        self._limits = limits
        self._memory = memory
        self._relabeling = Relabeling(target)
        self._allowance = Allowance(limits.samples)
        self._samples = SampleReader(limits, memory, self._allowance, self._relabeling)
        self._most_names = max(MAX_NAMES, limits.samples // SAMPLES_PER_NAME)
        self._families: tuple[Family, ...] = ()  # of the last text with dropped lines
        self._declared: tuple[Family, ...] = ()  # of the last text that was read: the same object while it is the same

    def read(
        self, untrusted_body: bytes, now: float | None = None, untrusted_content_type: str = ""
    ) -> Generator[None, None, Reading]:
        """
        The text as finished blocks. Yields whenever a slice of the work is done; returns the reading.

        `now`: milliseconds since 1970, as timestamps in texts are; without it, no timestamp is too old.

        Raises ExpositionError where lines were there and none could be passed on, where the text is cut, and where it
        is a web page; BodySizeLimitError, SampleLimitError or LabelLimitError where the target exceeds what it may
        send. Nothing else, whatever the bytes are.
        """
        if looks_like_web_page(untrusted_body):
            raise _web_page(untrusted_body)
        yield from self._check_size(untrusted_body)
        self._allowance.renew()
        timestamps = Timestamps(untrusted_body, now, self._limits.timestamp_age)
        last = self._memory.recall(self._target)
        if last is not None:
            shape = yield from self._follow(last, untrusted_body, timestamps)
            if shape is not None and shape.lines <= self._limits.samples:
                self._memory.keep(self._target, shape)
                return shape.reading
        text = yield from self._read_lines(untrusted_body, timestamps)
        # Some small exporters call their metrics text/html, so it counts only where there are no metrics.
        if not text.samples and is_html(untrusted_content_type):
            raise _web_page(untrusted_body)
        return (yield from self._reading_of(text, untrusted_body, last, keep=not timestamps.seen))

    def _check_size(self, untrusted_body: bytes) -> Generator[None, None, None]:
        limits = self._limits
        if len(untrusted_body) > limits.body_size:
            raise BodySizeLimitError(f"larger than {limits.body_size} bytes (scrape.body_size_limit)")
        if untrusted_body and not untrusted_body.endswith(b"\n"):
            raise ExpositionError("its text is cut: there is no newline at the end")
        most = limits.samples * MAX_LINES_PER_SAMPLE + SLICE_LINES
        if len(untrusted_body) <= most:
            return
        count = 0
        for start in range(0, len(untrusted_body), COUNTED_BYTES):
            if start:
                yield
            count += untrusted_body.count(b"\n", start, start + COUNTED_BYTES)
        if count > most:
            raise SampleLimitError(f"{count} lines, far more than {limits.samples} samples need (scrape.sample_limit)")

    def _follow(
        self, last: Shape, untrusted_body: bytes, timestamps: Timestamps
    ) -> Generator[None, None, Shape | None]:
        """The shape of the text, made from the last one, or None where the text has to be read line by line."""
        result = yield from follow(last, untrusted_body, self._limits.samples // NEW_OF_LIMIT)
        if not isinstance(result, Unfinished):
            return result
        new_series = yield from self._new_series(result.untrusted_lines, timestamps, last.page_names)
        return None if new_series is None else (yield from result.resume(new_series))

    def _new_series(
        self, untrusted_lines: Sequence[bytes], timestamps: Timestamps, page_names: PageNames
    ) -> Generator[None, None, dict[bytes, PageSeries] | None]:
        """
        The series of lines that the last text did not have, by key.

        None if one of them is not good, or is not sure to be on the page: `_read_lines` finds out what is wrong.
        """
        found: dict[bytes, PageSeries] = {}
        for _, untrusted_slice in slices(untrusted_lines):
            new_series: list[Series] = []
            untrusted_unknown: list[bytes] = []
            for untrusted_line in untrusted_slice:
                cached = self._samples.cached(untrusted_line[: untrusted_line.rfind(b" ") + 1])
                if cached is None:
                    untrusted_unknown.append(untrusted_line)
                else:
                    new_series.append(cached)
            for sample in self._samples.read(untrusted_unknown, timestamps):
                if not isinstance(sample, Sample) or not sample.key:
                    return None
                new_series.append(sample.series)
            for series in new_series:
                page_name = page_names.get(series.name)
                if page_name is None:
                    return None
                name = page_name.name
                found[series.key] = name, self._relabeling.line_start(name, series.labels)
            yield
        return found

    def _read_lines(self, untrusted_body: bytes, timestamps: Timestamps) -> Generator[None, None, TextLines]:
        """Read every line. A text without samples is good, unless lines were there and none could be passed on."""
        metadata = FamilyMetadata(self._memory.metadata, self._allowance)
        text = TextLines(self._samples, self._relabeling, metadata, timestamps)
        yield from self._checked(text, untrusted_body)
        if not text.samples and text.dropped.over_limit:
            raise LabelLimitError(f"nothing is left of its text: {text.dropped.over_limit}")
        if not text.samples and text.dropped.count:
            raise ExpositionError(text.dropped.complaint)
        return text

    def _reading_of(
        self, text: TextLines, body: bytes, last: Shape | None, *, keep: bool
    ) -> Generator[None, None, Reading]:
        """
        The lines as they stand on the page. Remember the shape of the text if no line is dropped.

        `keep` is false for a text with timestamps, which has no shape: the same text may be too old next time.
        """
        lines = yield from text.page_lines()
        declared = yield from text.declared()
        if declared != self._declared:
            self._declared = declared
        text.samples = []  # they take memory
        size = len(body) + sum([len(line.start) for line in lines])
        is_small = self._memory.may_keep(size, len(lines)) and self._has_few_parts(lines, text.starts)
        if lines and is_small and not text.dropped.count and keep:
            heads = Heads(last.families if last else (), self._declared)
            shape = yield from shape_of(body, lines, text.starts, text.page_names, heads)
            self._memory.keep(self._target, shape)
            return shape.reading
        self._memory.forget(self._target)
        reading = yield from _reading(lines, text.dropped, Heads(self._families, self._declared))
        self._families = reading.families if len(reading.families) <= MAX_KEPT_FAMILIES else ()
        return reading

    def _has_few_parts(self, lines: Sequence[PageLine], starts: Sequence[int]) -> bool:
        """
        Whether the text gets a shape: it has no more sections and blocks than it may have names.

        Each of them costs something at every scrape, here and in merge.Merger. Without a shape, a text has one block
        for each family.
        """
        most = self._most_names
        has_few_lines = len(lines) <= most
        return len(starts) <= most and (has_few_lines or sum(1 for _ in groupby(lines, attrgetter("family"))) <= most)

    def _checked(self, text: TextLines, untrusted_body: bytes) -> Generator[None, None, None]:
        """Let the text be read, as far as it keeps to the limits on samples and names."""
        most, steps = self._most_names, text.read(untrusted_body)
        # Most texts are too small to have too many names, and theirs need not be counted.
        is_large = len(untrusted_body) > most * BYTES_PER_NAME
        names: set[str] = set()
        counted = size = 0
        is_read: bool | None = None
        while not is_read:
            is_read = next(steps, True)
            count = len(text.samples)
            if count > self._limits.samples:
                raise SampleLimitError(f"more than {self._limits.samples} samples (scrape.sample_limit)")
            if is_large or count > most:
                new = {sample.series.name for sample in text.samples[counted:]} - names
                counted = count
                names |= new
                size += sum(map(len, new))
                if len(names) > most or size > most * BYTES_PER_NAME:
                    raise SampleLimitError(
                        f"more than {most} metric names, or {most * BYTES_PER_NAME} bytes of them; {MAX_NAMES} may"
                        " be there, or a tenth of scrape.sample_limit if that is more"
                    )
            yield


def _web_page(untrusted_body: bytes) -> ExpositionError:
    return ExpositionError(
        f"it is a web page, not metrics: {shown(untrusted_body[:80])}; is this the exporter's port, and does it serve"
        " its metrics at /metrics?"
    )


def _reading(lines: Sequence[PageLine], dropped: DroppedLines, heads: Heads) -> Generator[None, None, Reading]:
    """
    The lines of a text that has no shape, such as one of which something was dropped.

    `heads.families` are those of an earlier text: if they are still the same, the reading has the same object. A family
    of many bytes has several blocks.
    """
    finished: list[tuple[Family, bytes]] = []
    blocks: defaultdict[Family, list[bytes]] = defaultdict(list)
    for step in _steps(lines):
        of_step: defaultdict[Family, list[bytes]] = defaultdict(list)
        for line in step:
            if line.family is not None:
                of_step[line.family].append(line.start + line.value + b"\n")
        for family, pieces in of_step.items():
            blocks[family].append(b"".join(pieces))
            if sum(map(len, blocks[family])) > STEP_BYTES:
                finished.append((family, b"".join(blocks.pop(family))))
                yield
        yield
    size = 0
    for family, pieces in blocks.items():
        finished.append((family, b"".join(pieces)))
        size += len(finished[-1][1])
        if size > STEP_BYTES:
            size = 0
            yield
    found = tuple([family for family, _ in finished])
    return Reading(
        families=heads.families if heads.families == found else found,
        blocks=[block for _, block in finished],
        samples=sum(line.family is not None for line in lines),
        lines_dropped=dropped.count,
        complaint=dropped.complaint,
        declared=heads.declared,
    )


def _steps(lines: Sequence[PageLine]) -> Iterable[Sequence[PageLine]]:
    """The lines in steps of so many lines or bytes."""
    start = size = 0
    for index, line in enumerate(lines):
        size += len(line.start)
        if size > STEP_BYTES or index - start >= STEP_LINES:
            yield lines[start : index + 1]
            start, size = index + 1, 0
    yield lines[start:]
