# SPDX-License-Identifier: GPL-3.0-or-later
"""
One target's text, from a qube nobody trusts -> judged and labelled lines that any Prometheus takes.

Owns what may pass. Must not know where the text came from, nor what else is on the page. The only importer of
prometheus_client's parser, which decides what a line means; the strict checks around it are there because it takes
much that Prometheus does not, and Prometheus gives up the whole page, every qube's, for one bad line.

    body -> lines -> heads (HELP, TYPE)    own grammar, then the parser
                     samples               own grammar, then the parser: it is told neither TYPE (it would rename
                                           counters) nor the line's timestamp and exemplar (they are not passed on)
         -> series: name and labels        limits, our labels on top, reserved names out of the way, each series once
         -> families                       every sample into the block that its TYPE says

A line is passed on whole or not at all. What is passed on is written anew from what the parser understood; only the
value is spliced in as it came, after its text was checked. Timestamps are dropped, so that a series that goes is gone.

Work is done in slices, with a `yield` after each: the caller decides who is next, so that one large or hostile text
holds up nobody. Everything before the first slice is linear and bounded by `Limits`.
"""

import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from federator.errors import BodySizeLimitError, ExpositionError, LabelLimitError, SampleLimitError, shown
from federator.model import Family, Limits, MetricType, Reading, Target
from federator.text.escaping import help_text, labels_text
from federator.text.memory import Approvals, Head, Memory, Series
from federator.text.shape import Places, Row, cut_of, shape_of
from federator.text.value import are_values, is_value

# The parser's time grows with the square of a line's length: 16 KiB of the worst kind take it some 2 ms, 1 MB 10 s.
MAX_LINE = 16 << 10
# Room for HELP, TYPE, blank lines and comments around every sample; a list of 16 million empty lines is no exposition.
MAX_LINES_PER_SAMPLE = 4
# A slice is over after so many lines or bytes: some 2 milliseconds, 10 with the worst text, which is one line.
SLICE_LINES = 200
SLICE_BYTES = MAX_LINE
# A text of which lines are dropped has no shape, but its families are most often those of the last one, by which
# merge.Merger knows its page again; they are not kept for one that has more than any real exporter.
MAX_KEPT_FAMILIES = 2000
# A text may have this part of the sample limit in new series and be followed all the same. With more of them, the first
# approvals could be forgotten by the time the last are made, and all would be judged again.
NEW_OF_LIMIT = 4
# So many lines between two turns where nothing has to be judged: some 2 milliseconds as well.
STEP_LINES = 2000

# These would be taken for Prometheus' own series of the scrape, for its alerts, or for ours.
_RESERVED_NAMES = frozenset({"up", "ALERTS", "ALERTS_FOR_STATE"})
_RESERVED_PREFIXES = ("scrape_", "qubes_proxy_")
_EXPORTED = "exported_"

# OpenMetrics' types in the words of the text format. What has no word there is untyped.
_TYPES: dict[bytes, MetricType] = {
    b"counter": "counter",
    b"gauge": "gauge",
    b"histogram": "histogram",
    b"summary": "summary",
    b"untyped": "untyped",
    b"unknown": "untyped",
    b"info": "gauge",
    b"stateset": "gauge",
    b"gaugehistogram": "untyped",
}

# Quantifiers are possessive (`*+`), so that no line makes them try twice; but never those of groups, which Python
# before 3.11.5, and so Debian 12's, gets wrong (python/cpython #106052): what follows those can match in one way only.
_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_LABEL = rb'[ \t]*+[a-zA-Z_][a-zA-Z0-9_]*+[ \t]*+=[ \t]*+"[^"\\\0]*+(?:\\[^\0][^"\\\0]*+)*"[ \t]*+'
_HEAD = re.compile(
    rb"[ \t]*+#[ \t]++(?P<kind>HELP|TYPE)[ \t]++(?P<name>" + _NAME + rb")(?:[ \t]++(?P<text>[^\0]*+))?\r?"
)
_LOOKS_LIKE_HEAD = re.compile(rb"[ \t]*+#[ \t]++(?:HELP|TYPE)[ \t]")
_SAMPLE = re.compile(
    rb"[ \t]*+(?P<series>(?P<name>" + _NAME + rb")[ \t]*+"
    rb"(?:\{(?P<labels>(?:" + _LABEL + rb"(?:," + _LABEL + rb")*,?)?[ \t]*+)\}[ \t]*+|(?<=[ \t])))"
    rb"(?P<value>[^ \t\r#]++)"
    rb"(?:[ \t]++[-+0-9.eE]++)?[ \t]*+(?:(?<=[ \t])#[ \t]*+\{.*+)?\r?"
)
_LABEL_NAME = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"[^"\\]*+(?:\\.[^"\\]*+)*"')


@dataclass(frozen=True, slots=True)
class _Understood:
    """What one sample line is about: labels sorted by name, no empty values, as the parser read them."""

    name: str
    labels: tuple[tuple[str, str], ...]


class _Line(NamedTuple):
    """A sample line that is good. For `piece` and `key` see shape.Row."""

    piece: int
    key: bytes
    name: str
    labels: bytes  # as the page has them
    value: bytes


@dataclass(slots=True)
class _SortedOut:
    """The lines of one slice. What `good` has at an index is of the slice's line there."""

    first: int  # the number of its first line
    good: list[_Line | None]
    strange: list[tuple[int, int, bytes]]  # index, piece, line
    untrusted_heads: list[tuple[int, bytes]]  # number, line
    last_piece: int


class Reader:
    """
    Reads one target's text, scrape after scrape.

    `target`, `limits` and `memory` are for life: another configuration needs another reader.
    """

    def __init__(self, target: Target, limits: Limits, memory: Memory) -> None:
        self._target = target
        self._limits = limits
        self._memory = memory
        self._drop = target.exporter.drop
        ours = {"qube": target.qube, "exporter": target.exporter.name, **dict(target.labels)}
        self._our_names = frozenset(ours)
        self._our_labels = labels_text(ours.items()).encode()
        self._families: tuple[Family, ...] = ()  # of the last text of which something was dropped

    def read(self, untrusted_body: bytes) -> Generator[None, None, Reading]:
        """
        The text as finished blocks. Yields whenever a slice of the work is done; returns the reading.

        Raises ExpositionError where nothing is left to pass on or the text is cut; BodySizeLimitError,
        SampleLimitError or LabelLimitError where the target exceeds what it may send. Nothing else, whatever the bytes
        are.
        """
        self._check_size(untrusted_body)
        last = self._memory.recall(self._target)
        if last is not None:
            look_up = partial(self._look_up, last.places)
            most_new = self._limits.samples // NEW_OF_LIMIT
            shape = yield from last.follow(untrusted_body, look_up, self._learn, most_new)
            if shape is not None and shape.lines <= self._limits.samples:
                self._memory.keep(self._target, shape)
                return shape.reading
        return (yield from self._read_lines(untrusted_body, last.families if last else ()))

    def _check_size(self, untrusted_body: bytes) -> None:
        limits = self._limits
        if len(untrusted_body) > limits.body_size:
            raise BodySizeLimitError(f"larger than {limits.body_size} bytes (scrape.body_size_limit)")
        if not untrusted_body:
            raise ExpositionError("its text is empty")
        if not untrusted_body.endswith(b"\n"):
            raise ExpositionError("its text is cut: there is no newline at the end")
        most = limits.samples * MAX_LINES_PER_SAMPLE + SLICE_LINES
        if len(untrusted_body) > most and (count := untrusted_body.count(b"\n")) > most:
            raise SampleLimitError(f"{count} lines, far more than {limits.samples} samples need (scrape.sample_limit)")

    def _read_lines(self, untrusted_body: bytes, families: tuple[Family, ...]) -> Generator[None, None, Reading]:
        """Read every line, and remember what the text was like if all of it was good."""
        notes = _Notes()
        heads = _Heads(self._memory.heads)
        lines: list[_Line] = []
        rested = last_piece = 0  # rested: so many lines were read when somebody else had a turn
        cut = cut_of(untrusted_body)[1:]
        for first, untrusted_slice in _slices(untrusted_body.split(b"\n")):
            sorted_out = self._sort_out(first, untrusted_slice, cut, last_piece)
            last_piece = sorted_out.last_piece
            judged = heads.take(sorted_out.untrusted_heads, notes)
            self._judge_strange(sorted_out, notes)
            lines += filter(None, sorted_out.good)
            if judged or sorted_out.strange or first - rested >= STEP_LINES:
                rested = first
                yield
        if not lines:
            raise ExpositionError(notes.complaint or "there is not one sample in its text")
        if len(lines) > self._limits.samples:
            raise SampleLimitError(f"{len(lines)} samples, more than {self._limits.samples} (scrape.sample_limit)")
        places: Places = {}
        rows = yield from self._rows(lines, heads, notes, places)
        del lines
        if notes.dropped:
            self._memory.forget(self._target)
            reading = _reading(rows, notes, self._families)
            self._families = reading.families if len(reading.families) <= MAX_KEPT_FAMILIES else ()
            return reading
        shape = yield from shape_of(untrusted_body, rows, places, families)
        self._memory.keep(self._target, shape)
        return shape.reading

    def _sort_out(self, first: int, untrusted_slice: Sequence[bytes], cut: bytes, piece: int) -> "_SortedOut":
        """What is known is read; the rest waits to be judged."""
        result = _SortedOut(first, [None] * len(untrusted_slice), [], [], piece)
        untrusted_values: list[bytes] = []
        for index, untrusted_line in enumerate(untrusted_slice):
            untrusted_key = untrusted_line[: untrusted_line.rfind(b" ") + 1]
            series = self._known(untrusted_key)
            if series is not None:
                untrusted_value = untrusted_line[len(untrusted_key) :]
                untrusted_values.append(untrusted_value)
                result.good[index] = _Line(piece, series.key, series.name, series.labels, untrusted_value)
            elif untrusted_line.lstrip(b" \t").startswith(b"#"):
                piece += untrusted_line.startswith(cut) and first + index > 1
                result.untrusted_heads.append((first + index, untrusted_line))
            elif untrusted_line and not untrusted_line.isspace():
                result.strange.append((index, piece, untrusted_line))
        result.last_piece = piece
        if not are_values(untrusted_values):
            known = [(index, line.piece, untrusted_slice[index]) for index, line in enumerate(result.good) if line]
            result.good = [None] * len(untrusted_slice)
            result.strange = sorted([*result.strange, *known])
        return result

    def _judge_strange(self, sorted_out: "_SortedOut", notes: "_Notes") -> None:
        """Move what is good of the strange lines to the good ones, and note what is wrong with the others."""
        strange = sorted_out.strange
        verdicts = self._judge([untrusted_line for _, _, untrusted_line in strange])
        for (index, piece, untrusted_line), verdict in zip(strange, verdicts, strict=True):
            number = sorted_out.first + index
            if isinstance(verdict, str):
                notes.drop(number, untrusted_line, verdict)
                continue
            match, found = verdict
            key, value = match["series"], match["value"]
            if isinstance(found, _Understood):
                if over := self._over_limits(found):
                    raise LabelLimitError(f"line {number}: {over}")
                self._approve(key, found)
                name, labels = found.name, self._their_labels(found)
            else:
                name, labels = found.name, found.labels
            if key + value != untrusted_line or self._known(key) is None:
                key = b""
            sorted_out.good[index] = _Line(piece, key, name, labels, value)

    def _judge(
        self, untrusted_lines: Sequence[bytes]
    ) -> Iterable["str | tuple[re.Match[bytes], _Understood | Series]"]:
        """What each line is about, in order, or why it cannot be passed on."""
        matches = [_matched(untrusted_line) for untrusted_line in untrusted_lines]
        known = [None if isinstance(match, str) else self._known(match["series"]) for match in matches]
        asked = [
            match["series"] + b" " + match["value"]
            for match, series in zip(matches, known, strict=True)
            if not isinstance(match, str) and series is None
        ]
        samples = iter(_parsed(asked))
        for match, series in zip(matches, known, strict=True):
            if isinstance(match, str):
                yield match
            elif series is not None:
                yield match, series
            else:
                understood = _understood(match, next(samples))
                yield understood if isinstance(understood, str) else (match, understood)

    def _known(self, untrusted_key: bytes) -> Series | None:
        """What was judged before, and has none of our labels: whoever has is judged each time, for each target anew."""
        series = self._memory.series.get(untrusted_key)
        return series if series is not None and self._our_names.isdisjoint(series.names) else None

    def _approve(self, key: bytes, understood: _Understood) -> bool:
        """Remember it, if it can be recognised by its key: where the value is next, and nothing is renamed."""
        names = tuple(name for name, _ in understood.labels)
        if not key.endswith(b" ") or not self._our_names.isdisjoint(names):
            return False
        return self._memory.series.add(key, Series(key, understood.name, names, _theirs(understood.labels)))

    def _learn(self, untrusted_lines: Sequence[bytes]) -> Generator[None, None, None]:
        """
        Judge lines, so that `_look_up` knows their series; up to the first one that it will not know.

        What is wrong with that one is for `_read_lines` to say.
        """
        strange = [line for line in untrusted_lines if self._known(line[: line.rfind(b" ") + 1]) is None]
        for start in range(0, len(strange), SLICE_LINES):
            for verdict in self._judge(strange[start : start + SLICE_LINES]):
                if isinstance(verdict, str):
                    return
                match, found = verdict
                if isinstance(found, _Understood) and (
                    self._over_limits(found) or not self._approve(match["series"], found)
                ):
                    return
            yield

    def _look_up(self, places: Places, untrusted_key: bytes) -> tuple[Family, bytes, bytes] | None:
        """Family, name on the page and prefix of a series, if it was judged, and if it is known where it goes."""
        series = self._known(untrusted_key)
        place = places.get(series.name) if series else None
        if series is None or place is None:
            return None
        family, name = place
        return family, name, self._prefix(name, series.labels)

    def _over_limits(self, series: _Understood) -> str:
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

    def _rows(
        self,
        lines: Sequence[_Line],
        heads: "_Heads",
        notes: "_Notes",
        places: Places,
    ) -> Generator[None, None, list[Row]]:
        """The lines with what the page has for them, each series once. Fills `places`."""
        rows: list[Row] = []
        seen: set[bytes] = set()
        for number, line in enumerate(lines, 1):
            if number % STEP_LINES == 0:
                yield
            if line.name not in places:
                places[line.name] = self._place(line.name, heads)
            place = places[line.name]
            if place is None:
                rows.append(Row(line.piece, line.key, None, b"", line.value))
                continue
            family, name = place
            prefix = self._prefix(name, line.labels)
            if prefix in seen:
                notes.drop(0, prefix, "the same series twice; the first one counts")
                continue
            seen.add(prefix)
            rows.append(Row(line.piece, line.key, family, prefix, line.value))
        return rows

    def _prefix(self, name: bytes, labels: bytes) -> bytes:
        return name + b"{" + self._our_labels + labels + b"} "

    def _place(self, name: str, heads: "_Heads") -> tuple[Family, bytes] | None:
        """Where samples of this name go; None where the operator does not want them."""
        if any(pattern.fullmatch(name) for pattern in self._drop):
            return None
        family = heads.family(name)
        # A histogram moves as a whole: `scrape` may be anybody's name, but its `scrape_count` is not.
        parts = family.name + "_" if family.type in ("histogram", "summary") else name
        if _is_reserved(family.name) or _is_reserved(parts):
            return family._replace(name=_EXPORTED + family.name), (_EXPORTED + name).encode()
        return family, name.encode()

    def _their_labels(self, series: _Understood) -> bytes:
        names = {name for name, _ in series.labels}
        if self._our_names.isdisjoint(names):
            return _theirs(series.labels)
        return _theirs(sorted(self._out_of_our_way(series.labels, names)))

    def _out_of_our_way(self, labels: Iterable[tuple[str, str]], names: set[str]) -> Iterable[tuple[str, str]]:
        """Whoever claims a label that we vouch for keeps it under another name, as Prometheus does it."""
        for untrusted_name, value in labels:
            name = untrusted_name
            if name in self._our_names:
                while name in self._our_names or name in names:
                    name = _EXPORTED + name
                names.add(name)
            yield name, value


class _Notes:
    """What could not be passed on: how much, and the first of it in words."""

    def __init__(self) -> None:
        self.dropped = 0
        self.complaint = ""

    def drop(self, number: int, untrusted_line: bytes, why: str) -> None:
        self.dropped += 1
        if not self.complaint:
            where = f"line {number}: " if number else ""
            self.complaint = f"{where}{why}: {shown(untrusted_line)}"


class _Heads:
    """What HELP and TYPE lines say of the families of one text. The first of two that disagree counts."""

    def __init__(self, approved: Approvals[Head]) -> None:
        self._approved = approved
        self._types: dict[str, bytes] = {}
        self._helps: dict[str, bytes] = {}

    def take(self, untrusted_heads: Sequence[tuple[int, bytes]], notes: _Notes) -> bool:
        """
        Comments of one slice, with their line numbers. Plain comments are nobody's loss, and not counted.

        Was there anything to be judged, which takes time?
        """
        heads: list[tuple[int, bytes, Head | re.Match[bytes]]] = []
        for number, untrusted_line in untrusted_heads:
            if head := self._approved.get(untrusted_line):
                heads.append((number, untrusted_line, head))
            elif not _LOOKS_LIKE_HEAD.match(untrusted_line):
                continue
            elif isinstance(match := _matched_head(untrusted_line), str):
                notes.drop(number, untrusted_line, match)
            else:
                heads.append((number, untrusted_line, match))
        accepted = iter(_accepted([untrusted_line for _, untrusted_line, head in heads if not isinstance(head, Head)]))
        for number, untrusted_line, found in heads:
            if isinstance(found, Head):
                why = self._learn(found)
            elif next(accepted):
                head = _head(found)
                self._approved.add(untrusted_line, head)
                why = self._learn(head)
            else:
                why = "prometheus-client's parser refuses it"
            if why:
                notes.drop(number, untrusted_line, why)
        return any(not isinstance(head, Head) for _, _, head in heads)

    def _learn(self, head: Head) -> str:
        """Take it in; why not, or an empty text."""
        if head.kind == b"HELP":
            if head.text:
                self._helps.setdefault(head.name, head.text)
            return ""
        if self._types.setdefault(head.name, head.text) != head.text:
            return f"{head.name} has another type already"
        return ""

    def family(self, name: str) -> Family:
        """
        The family that samples of this name belong to.

        Parts of a histogram or summary belong to it even where a TYPE line of their own says otherwise: Go's other
        parser (expfmt: promtool, pushgateway) refuses such a line, and one page has to do for all.
        """
        for suffix in ("_bucket", "_sum", "_count"):
            base = name.removesuffix(suffix)
            declared = self._types.get(base) if base != name else None
            if declared == b"histogram" or (declared == b"summary" and suffix != "_bucket"):
                return Family(base, _TYPES[declared], self._helps.get(base, b""))
        if name not in self._types:
            # OpenMetrics declares a counter or an info without its suffix; the text format with it.
            for suffix, declared in (("_total", b"counter"), ("_info", b"info")):
                base = name.removesuffix(suffix)
                if base != name and self._types.get(base) == declared:
                    return Family(name, _TYPES[declared], self._helps.get(base, b""))
        return Family(name, _TYPES[self._types.get(name, b"untyped")], self._helps.get(name, b""))


def _slices(untrusted_lines: Sequence[bytes]) -> Iterable[tuple[int, Sequence[bytes]]]:
    """The lines in slices, with the number of the first one of each."""
    start = size = 0
    for index, untrusted_line in enumerate(untrusted_lines):
        size += len(untrusted_line)
        if size > SLICE_BYTES or index - start >= SLICE_LINES:
            yield start + 1, untrusted_lines[start:index]
            start, size = index, len(untrusted_line)
    yield start + 1, untrusted_lines[start:]


def _matched_head(untrusted_line: bytes) -> re.Match[bytes] | str:
    """Our grammar of HELP and TYPE lines, before the parser sees anything of them."""
    if len(untrusted_line) > MAX_LINE:
        return f"longer than {MAX_LINE} bytes"
    match = _HEAD.fullmatch(untrusted_line)
    if not match:
        return "not a HELP or TYPE line"
    if match["kind"] == b"TYPE" and _head(match).text not in _TYPES:
        return "no such type"  # the parser's opinion of such a line depends on the lines after it
    return match


def _head(match: re.Match[bytes]) -> Head:
    text = (match["text"] or b"").strip(b" \t\r")
    return Head(match["kind"], match["name"].decode(), help_text(text.decode()) if match["kind"] == b"HELP" else text)


def _matched(untrusted_line: bytes) -> re.Match[bytes] | str:
    """Our grammar, before the parser sees anything of the line."""
    if len(untrusted_line) > MAX_LINE:
        return f"longer than {MAX_LINE} bytes"
    match = _SAMPLE.fullmatch(untrusted_line)
    if not match:
        return "not a sample line"
    if not is_value(match["value"]):
        return "its value is no number that Prometheus takes"
    try:
        untrusted_line.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return match


def _understood(match: re.Match[bytes], sample: Sample | None) -> _Understood | str:
    """Do the parser and we read the same out of this line?"""
    if sample is None:
        return "prometheus-client's parser refuses it"
    names = [name.decode() for name in _LABEL_NAME.findall(match["labels"] or b"")]
    if len(set(names)) != len(names):
        return "a label name twice"
    if any(name.startswith("__") for name in names):
        return "label names that start with __ are Prometheus' own"
    if sample.name != match["name"].decode() or set(sample.labels) != set(names):
        return "prometheus-client's parser reads it differently"
    labels = tuple(sorted((name, value) for name, value in sample.labels.items() if value))
    return _Understood(sample.name, labels)


def _parsed(untrusted_lines: Sequence[bytes]) -> list[Sample | None]:
    """
    What prometheus-client's parser makes of each sample line, given without its TYPE; None where it refuses.

    Asked for many lines at once, which is cheaper, and one by one where that fails: it gives up at the first bad line.
    """
    samples = _asked(untrusted_lines)
    if samples is not None and len(samples) == len(untrusted_lines):
        return list(samples)
    alone = [_asked([untrusted_line]) for untrusted_line in untrusted_lines]
    return [answer[0] if answer and len(answer) == 1 else None for answer in alone]


def _accepted(untrusted_heads: Sequence[bytes]) -> list[bool]:
    """Which of these HELP and TYPE lines the parser takes."""
    if _asked(untrusted_heads) is not None:
        return [True] * len(untrusted_heads)
    return [_asked([untrusted_head]) is not None for untrusted_head in untrusted_heads]


def _asked(untrusted_lines: Sequence[bytes]) -> list[Sample] | None:
    """The samples in these lines, or None where the parser refuses one of them."""
    text = b"\n".join([*untrusted_lines, b""])
    try:
        return [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    except Exception:  # noqa: BLE001 - it raises ValueError, IndexError, UnboundLocalError, …: all of them mean "no"
        return None


def _is_reserved(name: str) -> bool:
    return name in _RESERVED_NAMES or name.startswith(_RESERVED_PREFIXES)


def _theirs(labels: Iterable[tuple[str, str]]) -> bytes:
    return b"".join([b"," + labels_text([label]).encode() for label in labels])


def _reading(rows: Sequence[Row], notes: _Notes, families: tuple[Family, ...]) -> Reading:
    """
    The rows of a text of which something was dropped: there will be no shape to remember.

    `families` is what the last one had, for the sake of being the same object where it is the same.
    """
    blocks: dict[Family, list[bytes]] = {}
    for row in rows:
        if row.family is not None:
            blocks.setdefault(row.family, []).append(row.prefix + row.value + b"\n")
    return Reading(
        families=families if families == tuple(blocks) else tuple(blocks),
        blocks=[b"".join(lines) for lines in blocks.values()],
        samples=sum(map(len, blocks.values())),
        lines_dropped=notes.dropped,
        complaint=notes.complaint,
    )
