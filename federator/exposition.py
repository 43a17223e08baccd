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

import math
import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from federator.errors import BodySizeLimit, Exposition, LabelLimit, SampleLimit, shown
from federator.model import Family, Limits, MetricType, Reading, Target

# The parser's time grows with the square of a line's length: 16 KiB of the worst kind take it some 2 ms, 1 MB 10 s.
MAX_LINE = 16 << 10
# Room for HELP, TYPE, blank lines and comments around every sample; a list of 16 million empty lines is no exposition.
MAX_LINES_PER_SAMPLE = 4
# A slice is over after so many lines or bytes: some 2 milliseconds, 10 with the worst text, which is one line.
SLICE_LINES = 200
SLICE_BYTES = MAX_LINE

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
# Go's strconv.ParseFloat, less hexadecimal, which the text format does not take. Python's float() takes more.
_NUMBER = re.compile(rb"[+-]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?")
_NOT_FINITE = re.compile(rb"(?i:nan|[+-]?inf(?:inity)?)")
# The parser writes huge integers out as int before it looks at them; nobody measures anything to 400 digits.
_MAX_VALUE = 400


@dataclass(frozen=True, slots=True)
class _Series:
    """What one sample line is about: labels sorted by name, no empty values, as the parser read them."""

    name: str
    labels: tuple[tuple[str, str], ...]


class Reader:
    """
    Reads one target's text, scrape after scrape.

    `target` and `limits` are for life: another configuration needs another reader.
    """

    def __init__(self, target: Target, limits: Limits) -> None:
        self._limits = limits
        self._drop = target.exporter.drop
        ours = {"qube": target.qube, "exporter": target.exporter.name, **dict(target.labels)}
        self._our_names = frozenset(ours)
        self._our_labels = _rendered(ours.items())

    def read(self, untrusted_body: bytes) -> Generator[None, None, Reading]:
        """
        The text as finished blocks. Yields whenever a slice of the work is done; returns the reading.

        Raises Exposition where nothing is left to pass on or the text is cut; BodySizeLimit, SampleLimit or LabelLimit
        where the target exceeds what it may send. Nothing else, whatever the bytes are.
        """
        untrusted_lines = self._lines(untrusted_body)
        notes = _Notes()
        heads = _Heads()
        samples: list[tuple[_Series, bytes]] = []
        for first, untrusted_slice in _slices(untrusted_lines):
            untrusted_samples: list[tuple[int, bytes]] = []
            untrusted_heads: list[tuple[int, bytes]] = []
            for number, untrusted_line in enumerate(untrusted_slice, first):
                if not untrusted_line or untrusted_line.isspace():
                    continue
                is_comment = untrusted_line.lstrip(b" \t").startswith(b"#")
                (untrusted_heads if is_comment else untrusted_samples).append((number, untrusted_line))
            heads.take(untrusted_heads, notes)
            for number, untrusted_line, verdict, value in _judge(untrusted_samples):
                if isinstance(verdict, str):
                    notes.drop(number, untrusted_line, verdict)
                else:
                    self._check_limits(verdict, number)
                    samples.append((verdict, value))
            yield
        if not samples:
            raise Exposition(notes.complaint or "there is not one sample in its text")
        return (yield from self._assemble(samples, heads, notes))

    def _lines(self, untrusted_body: bytes) -> list[bytes]:
        limits = self._limits
        if len(untrusted_body) > limits.body_size:
            raise BodySizeLimit(f"larger than {limits.body_size} bytes (scrape.body_size_limit)")
        if not untrusted_body:
            raise Exposition("its text is empty")
        if not untrusted_body.endswith(b"\n"):
            raise Exposition("its text is cut: there is no newline at the end")
        count = untrusted_body.count(b"\n")
        if count > limits.samples * MAX_LINES_PER_SAMPLE + SLICE_LINES:
            raise SampleLimit(f"{count} lines, far more than {limits.samples} samples need (scrape.sample_limit)")
        return untrusted_body.split(b"\n")

    def _check_limits(self, series: _Series, number: int) -> None:
        limits = self._limits
        if len(series.labels) > limits.labels:
            raise LabelLimit(f"line {number}: more than {limits.labels} labels (scrape.label_limit)")
        if len(series.name) > limits.label_value_length:
            raise LabelLimit(f"line {number}: a name over {limits.label_value_length} bytes (label_value_length_limit)")
        for name, value in series.labels:
            if len(name) > limits.label_name_length:
                raise LabelLimit(
                    f"line {number}: a label name over {limits.label_name_length} bytes (label_name_length_limit)"
                )
            if len(value) > limits.label_value_length or len(value.encode()) > limits.label_value_length:
                raise LabelLimit(
                    f"line {number}: label {name} over {limits.label_value_length} bytes (label_value_length_limit)"
                )

    def _assemble(
        self, samples: Sequence[tuple[_Series, bytes]], heads: "_Heads", notes: "_Notes"
    ) -> Generator[None, None, Reading]:
        if len(samples) > self._limits.samples:
            raise SampleLimit(f"{len(samples)} samples, more than {self._limits.samples} (scrape.sample_limit)")
        places: dict[str, tuple[Family, bytes] | None] = {}  # sample name -> its family, and its name on the page
        lines: dict[Family, list[bytes]] = {}
        seen: set[bytes] = set()
        for start in range(0, len(samples), SLICE_LINES):
            for series, value in samples[start : start + SLICE_LINES]:
                if series.name not in places:
                    places[series.name] = self._place(series.name, heads)
                place = places[series.name]
                if place is None:
                    continue
                family, name = place
                prefix = name + b"{" + self._our_labels + self._their_labels(series) + b"} "
                if prefix in seen:
                    notes.drop(0, prefix, "the same series twice; the first one counts")
                    continue
                seen.add(prefix)
                lines.setdefault(family, []).append(prefix + value + b"\n")
            yield
        return Reading(
            families=tuple(lines),
            blocks=[b"".join(block) for block in lines.values()],
            samples=len(seen),
            lines_dropped=notes.dropped,
            complaint=notes.complaint,
        )

    def _place(self, name: str, heads: "_Heads") -> tuple[Family, bytes] | None:
        """Where samples of this name go; None where the operator does not want them."""
        if self._drop is not None and self._drop.fullmatch(name):
            return None
        family = heads.family(name)
        # A histogram moves as a whole: `scrape` may be anybody's name, but its `scrape_count` is not.
        parts = family.name + "_" if family.type in ("histogram", "summary") else name
        if _is_reserved(family.name) or _is_reserved(parts):
            return replace(family, name=_EXPORTED + family.name), (_EXPORTED + name).encode()
        return family, name.encode()

    def _their_labels(self, series: _Series) -> bytes:
        labels = series.labels
        if not labels:
            return b""
        names = {name for name, _ in labels}
        if not self._our_names.isdisjoint(names):
            labels = tuple(sorted(self._out_of_our_way(labels, names)))
        return b"," + _rendered(labels)

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

    def __init__(self) -> None:
        self._types: dict[str, bytes] = {}
        self._helps: dict[str, bytes] = {}

    def take(self, untrusted_heads: Sequence[tuple[int, bytes]], notes: _Notes) -> None:
        """Comments of one slice, with their line numbers. Plain comments are nobody's loss, and not counted."""
        matches: list[tuple[int, bytes, re.Match[bytes]]] = []
        for number, untrusted_line in untrusted_heads:
            if not _LOOKS_LIKE_HEAD.match(untrusted_line):
                continue
            if len(untrusted_line) > MAX_LINE:
                notes.drop(number, untrusted_line, f"longer than {MAX_LINE} bytes")
            elif match := _HEAD.fullmatch(untrusted_line):
                matches.append((number, untrusted_line, match))
            else:
                notes.drop(number, untrusted_line, "not a HELP or TYPE line")
        verdicts = _accepted([untrusted_line for _, untrusted_line, _ in matches])
        for (number, untrusted_line, match), accepted in zip(matches, verdicts, strict=True):
            why = self._learn(match) if accepted else "prometheus-client's parser refuses it"
            if why:
                notes.drop(number, untrusted_line, why)

    def _learn(self, match: re.Match[bytes]) -> str:
        name, text = match["name"].decode(), (match["text"] or b"").strip(b" \t\r")
        if match["kind"] == b"HELP":
            if text:
                self._helps.setdefault(name, _rendered_help(text.decode()))
            return ""
        if text not in _TYPES:
            return "no such type"
        if self._types.setdefault(name, text) != text:
            return f"{name} has another type already"
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


def _judge(untrusted_lines: Sequence[tuple[int, bytes]]) -> Iterable[tuple[int, bytes, _Series | str, bytes]]:
    """Number, line, what it is about (or why it cannot be passed on), and its value, for each line in order."""
    verdicts: list[tuple[int, bytes, re.Match[bytes] | str]] = [
        (number, untrusted_line, _matched(untrusted_line)) for number, untrusted_line in untrusted_lines
    ]
    candidates = [match["series"] + b" " + match["value"] for _, _, match in verdicts if not isinstance(match, str)]
    samples = iter(_parsed(candidates))
    for number, untrusted_line, match in verdicts:
        if isinstance(match, str):
            yield number, untrusted_line, match, b""
        else:
            yield number, untrusted_line, _understood(match, next(samples)), match["value"]


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


def _understood(match: re.Match[bytes], sample: Sample | None) -> _Series | str:
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
    return _Series(sample.name, labels)


def is_value(untrusted_value: bytes) -> bool:
    """Would Go's strconv.ParseFloat take it? Out of float64's range is an error there, where Python says inf."""
    if len(untrusted_value) > _MAX_VALUE:
        return False
    if _NUMBER.fullmatch(untrusted_value):
        return math.isfinite(float(untrusted_value))
    return _NOT_FINITE.fullmatch(untrusted_value) is not None


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


def _rendered(labels: Iterable[tuple[str, str]]) -> bytes:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _rendered_help(text: str) -> bytes:
    """HELP knows two escapes; a backslash before anything else stands for itself and is written as such."""
    plain = re.sub(r"\\([\\n])", lambda match: "\n" if match[1] == "n" else "\\", text)
    return plain.replace("\\", "\\\\").replace("\n", "\\n").encode()
