# SPDX-License-Identifier: GPL-3.0-or-later
"""
What one line of a text says: the series and value of a sample line, the content of a HELP or TYPE line.

Owns which lines are good. Must not know targets, limits or the page. The only importer of prometheus_client's parser.

Each line passes two checks:

    our own grammar              strict, because prometheus_client takes many lines that Prometheus refuses, and
                                 Prometheus refuses the page of all qubes for one bad line
    prometheus_client's parser   decides what the line means; both must read the same out of it

prometheus_client sees neither the TYPE of a sample (it would rename counters) nor its timestamp and exemplar (they are
not passed on). The value is passed on as it was written, after its text was checked.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample as ClientSample

from federator.errors import shown
from federator.model import MetricType
from federator.text.complaint import what_is_wrong
from federator.text.escaping import help_text
from federator.text.value import is_value

# The parser's time grows with the square of a line's length: 16 KiB of the worst kind take it some 15 ms, 1 MB 10 s.
MAX_LINE = 16 << 10
# What reading a line takes the parser, as measured with prometheus_client 0.26. The unit is a plain byte, some 120 ns.
_LINE_WORK = 125
_LABEL_WORK = 50
_ESCAPE_WORK = 17
_COMMENT_WORK = 6  # of each blank and each backslash in a comment

# The types of the text format and of OpenMetrics -> those of the text format.
METRIC_TYPES: dict[bytes, MetricType] = {
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

# Quantifiers are possessive (`*+`), so that no line makes them try twice. Those of groups are not: Python before
# 3.11.5, and so Debian 12's, gets them wrong (python/cpython #106052). What follows a group can match in one way only.
_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_LABEL = rb'[ \t]*+[a-zA-Z_][a-zA-Z0-9_]*+[ \t]*+=[ \t]*+"[^"\\\0]*+(?:\\[^\0][^"\\\0]*+)*"[ \t]*+'
_METADATA = re.compile(
    rb"[ \t]*+#[ \t]++(?P<kind>HELP|TYPE)[ \t]++(?P<name>" + _NAME + rb")(?:[ \t]++(?P<text>[^\0]*+))?\r?"
)
_LOOKS_LIKE_METADATA = re.compile(rb"[ \t]*+#[ \t]++(?:HELP|TYPE)[ \t]")
_SAMPLE = re.compile(
    rb"[ \t]*+(?P<series>(?P<name>" + _NAME + rb")[ \t]*+"
    rb"(?:\{(?P<labels>(?:" + _LABEL + rb"(?:," + _LABEL + rb")*,?)?[ \t]*+)\}[ \t]*+|(?<=[ \t])))"
    rb"(?P<value>[^ \t\r#]++)"
    rb"(?:[ \t]++(?P<timestamp>[-+0-9.eE]++))?[ \t]*+(?:(?<=[ \t])#[ \t]*+\{.*+)?\r?"
)
_LABEL_NAME = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*+)[ \t]*+=[ \t]*+"[^"\\]*+(?:\\.[^"\\]*+)*"')

# A line that breaks off in a label value, and one that ends such a value and is good from there on.
_BREAKS_OFF = re.compile(
    rb"[ \t]*+" + _NAME + rb"[ \t]*+\{(?:" + _LABEL + rb",)*[ \t]*+[a-zA-Z_][a-zA-Z0-9_]*+[ \t]*+=[ \t]*+"
    rb'"[^"\\\0]*+(?:\\[^\0][^"\\\0]*+)*\\?'
)
_GOES_ON = re.compile(
    rb'[^"\\\0]*+(?:\\[^\0][^"\\\0]*+)*"[ \t]*+(?:,' + _LABEL + rb")*,?[ \t]*+\}[ \t]*+(?P<value>[^ \t\r#]++)"
    rb"(?:[ \t]++[-+0-9.eE]++)?[ \t\r]*+"
)

_REFUSED = "prometheus-client's parser refuses it"
_TOO_LONG = f"longer than {MAX_LINE} bytes"
# What exactly is wrong is found out only for the first line that is dropped.
NOT_A_SAMPLE = "not a sample line"


class ParsedSeries(NamedTuple):
    """The series of one sample line. The labels are sorted by name; labels with an empty value are left out."""

    name: str
    labels: tuple[tuple[str, str], ...]


class Metadata(NamedTuple):
    """A HELP or TYPE line. `text` is the help as it stands on the page, or the type as the target wrote it."""

    kind: bytes
    name: str
    text: bytes


class OverLimit(str):
    """Why a line is dropped: it exceeds a limit of the configuration."""

    __slots__ = ()


class DroppedLines:
    """
    The lines that cannot be passed on: how many there are, and the first one with the reason.

    `over_limit` is the first one that exceeds a limit on labels; empty where none does.
    """

    def __init__(self) -> None:
        self.count = 0
        self.complaint = ""
        self.over_limit = ""

    def add(self, number: int, untrusted_line: bytes, why: str) -> None:
        """Count a line. `number` is its place in the text, or 0 if that is not known."""
        self.count += 1
        is_over_limit = isinstance(why, OverLimit)
        if self.complaint and (self.over_limit or not is_over_limit):
            return
        if why == NOT_A_SAMPLE:
            why = what_is_wrong(untrusted_line)
        complaint = f"line {number}: " if number else ""
        complaint += f"{why}: {shown(untrusted_line)}"
        self.complaint = self.complaint or complaint
        if is_over_limit:
            self.over_limit = complaint


def samples_work(matches: Sequence[re.Match[bytes]]) -> int:
    """What `parse_series` needs for these lines."""
    text = b"".join([match["series"] for match in matches])
    return _LINE_WORK * len(matches) + len(text) + _LABEL_WORK * text.count(b"=") + _ESCAPE_WORK * text.count(b"\\")


def comments_work(untrusted_comments: Sequence[bytes]) -> int:
    """What `parse_metadata` needs for these lines. Those that are neither HELP nor TYPE cost nothing."""
    lines = [line for line in untrusted_comments if len(line) <= MAX_LINE and _LOOKS_LIKE_METADATA.match(line)]
    text = b"".join(lines)
    return _LINE_WORK * len(lines) + len(text) + _COMMENT_WORK * sum(map(text.count, (b" ", b"\t", b"\\")))


def match_sample(untrusted_line: bytes) -> re.Match[bytes] | str:
    """
    The groups `series`, `name`, `labels`, `value` and `timestamp` of a sample line, by our own grammar; or why it is
    dropped.

    `series` is the text before the value, with the blanks after it.
    """
    if len(untrusted_line) > MAX_LINE:
        return _TOO_LONG
    match = _SAMPLE.fullmatch(untrusted_line)
    if not match or not is_value(match["value"]):
        return NOT_A_SAMPLE
    try:
        untrusted_line.decode()
    except UnicodeDecodeError:
        return "not UTF-8"
    return match


def breaks_off(untrusted_line: bytes) -> bool:
    """Whether this line, which is no sample line, has a label value that goes on in the next line."""
    return len(untrusted_line) <= MAX_LINE and _BREAKS_OFF.fullmatch(untrusted_line) is not None


def goes_on(untrusted_line: bytes) -> bool:
    """Whether a label value that an earlier line began ends in this line, and a sample with it."""
    match = _GOES_ON.fullmatch(untrusted_line) if len(untrusted_line) <= MAX_LINE else None
    return match is not None and is_value(match["value"])


def parse_series(matches: Sequence[re.Match[bytes]]) -> list[ParsedSeries | str]:
    """The series of each line that `match_sample` took; or why the line is dropped."""
    samples = _client_samples([match["series"] + b" " + match["value"] for match in matches])
    return [_compared(match, sample) for match, sample in zip(matches, samples, strict=True)]


def parse_metadata(untrusted_comments: Sequence[bytes]) -> list[Metadata | str | None]:
    """What each comment line says; or why it is dropped; or None if it is neither HELP nor TYPE."""
    matches = [_match_metadata(untrusted_line) for untrusted_line in untrusted_comments]
    accepted = iter(_client_accepts([match[0] for match in matches if isinstance(match, re.Match)]))
    results: list[Metadata | str | None] = []
    for match in matches:
        if not isinstance(match, re.Match):
            results.append(match)
        elif next(accepted):
            text = _metadata_text(match)
            on_page = help_text(text.decode()) if match["kind"] == b"HELP" else text
            results.append(Metadata(match["kind"], match["name"].decode(), on_page))
        else:
            results.append(_REFUSED)
    return results


def _match_metadata(untrusted_line: bytes) -> re.Match[bytes] | str | None:
    if not _LOOKS_LIKE_METADATA.match(untrusted_line):
        return None
    if len(untrusted_line) > MAX_LINE:
        return _TOO_LONG
    match = _METADATA.fullmatch(untrusted_line)
    if not match:
        return "not a HELP or TYPE line"
    # What prometheus_client makes of an unknown type depends on the lines after it.
    if match["kind"] == b"TYPE" and _metadata_text(match) not in METRIC_TYPES:
        return "no such type"
    return match


def _metadata_text(match: re.Match[bytes]) -> bytes:
    return (match["text"] or b"").strip(b" \t\r")


def _compared(match: re.Match[bytes], sample: ClientSample | None) -> ParsedSeries | str:
    """The series, if prometheus_client and our grammar read the same name and labels."""
    names = [name.decode() for name in _LABEL_NAME.findall(match["labels"] or b"")]
    if len(set(names)) != len(names):
        return "a label name twice"
    if any(name.startswith("__") for name in names):
        return "label names that start with __ are Prometheus' own"
    if sample is None:
        return _REFUSED
    if sample.name != match["name"].decode() or set(sample.labels) != set(names):
        return "prometheus-client's parser reads it differently"
    return ParsedSeries(sample.name, tuple(sorted((name, value) for name, value in sample.labels.items() if value)))


def _client_samples(untrusted_lines: Sequence[bytes]) -> list[ClientSample | None]:
    """
    What prometheus_client makes of each sample line; None where it refuses the line.

    It gets all lines at once, which is cheaper. It stops at the first bad line: then it gets each line alone.
    """
    samples = ask_client(untrusted_lines)
    if samples is not None and len(samples) == len(untrusted_lines):
        return list(samples)
    alone = [ask_client([untrusted_line]) for untrusted_line in untrusted_lines]
    return [answer[0] if answer and len(answer) == 1 else None for answer in alone]


def _client_accepts(untrusted_lines: Sequence[bytes]) -> list[bool]:
    """Which of these HELP and TYPE lines prometheus_client takes."""
    if ask_client(untrusted_lines) is not None:
        return [True] * len(untrusted_lines)
    return [ask_client([untrusted_line]) is not None for untrusted_line in untrusted_lines]


def ask_client(untrusted_lines: Sequence[bytes]) -> list[ClientSample] | None:
    """The samples that prometheus_client reads in these lines, or None where it refuses one of them."""
    text = b"\n".join([*untrusted_lines, b""])
    try:
        return [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    except Exception:  # noqa: BLE001 - it raises ValueError, IndexError, UnboundLocalError, …: all of them mean "no"
        return None
