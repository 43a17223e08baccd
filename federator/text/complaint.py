# SPDX-License-Identifier: GPL-3.0-or-later
r"""
What is wrong with a line that is no sample line, in words for the person who writes the exporter.

Owns these words. Must not know which lines are good: only lines that the parser refused come here, and of each text
only the first one, so that this costs nothing where there are many. No pattern tries twice (see text/parser.py).
"""

import re

from federator.errors import shown

_BLANKS = rb"[ \t]*+"
_LABEL_NAME = rb"([a-zA-Z_][a-zA-Z0-9_]*+)" + _BLANKS
_LABEL_START = _LABEL_NAME + rb"=" + _BLANKS
_LABEL = _LABEL_START + rb'"[^"\\]*+(?:\\.[^"\\]*+)*"' + _BLANKS
_NUMBER = rb"[-+]?[0-9]++(?:\.[0-9]*+)?(?:[eE][-+]?[0-9]++)?"
_END = rb"(?:[ \t]|\Z)"
_CHARACTER = rb"([\xc0-\xff][\x80-\xbf]*+|.)"  # whole, where it is of another script

Complaints = tuple[tuple[re.Pattern[bytes], str], ...]


def _table(*complaints: tuple[bytes, str]) -> Complaints:
    return tuple((re.compile(pattern, re.DOTALL), words) for pattern, words in complaints)


_QUOTED_NAME = "a quoted name needs Prometheus 3; not passed on"
_NO_END = (
    r"the value of label {} does not end in this line;"
    r" a line break in a label value is written \n, a quote \", a backslash \\"
)
# The first pattern that matches at the start of the line, of what stands behind the last good label, or of what stands
# behind the series says what is wrong; {} is what its group matched.
_NAMES = _table(
    (rb"[^\0]*+\0", "a NUL byte is in it"),
    (rb'[{\[][ \t]*+(?:"[^"]*+"[ \t]*+:|[{\[]|\Z)', "this is JSON, not a sample line"),
    (rb'\{[ \t]*+"', _QUOTED_NAME),
    (rb"\{", "the metric name is missing before its labels"),
    (rb"[\"']", "a metric name stands in no quotes"),
    (rb"([0-9])", "a metric name cannot start with {}"),
    (rb"[a-zA-Z0-9_:]*+(?![ \t{])" + _CHARACTER, "a metric name cannot have {} in it"),
)
_LABELS = _table(
    (rb"\Z", "the closing brace is missing"),
    (rb'"', _QUOTED_NAME),
    (rb",", "a comma has no label before it"),
    (rb"=", "a label name is missing"),
    (rb"([0-9])", "a label name cannot start with {}"),
    (rb"[a-zA-Z0-9_]*+(?![ \t=\"'{},])" + _CHARACTER, "a label name cannot have {} in it"),
    (_LABEL_NAME + rb"(?!=)", "'=' is missing behind the label name {}"),
    (_LABEL_START + rb"'", "label values stand in double quotes, not in single ones"),
    (_LABEL_START + rb'(?!")', "the value of label {} stands in no double quotes"),
    (_LABEL + rb"(?:" + _NUMBER + rb")?\Z", "the closing brace is missing"),
    (_LABEL, "a comma is missing behind label {}"),
    (_LABEL_START, _NO_END),
    (rb"", 'a label is written as name="value"'),
)
_VALUES = _table(
    (rb"\Z", "its value is missing"),
    (rb"\{", "all labels stand in one pair of braces"),
    (rb"[\"']", "its value stands in quotes"),
    (rb"[-+]?0[xX][0-9a-fA-F_.pP+-]*+" + _END, "its value is a hexadecimal number; decimal ones are taken"),
    (rb"[-+]?[0-9]++(?:_[0-9]++)+" + _END, "its value has '_' between the digits"),
    (
        rb"[-+]?[0-9.]*+(?:,[0-9]++)+(?:\.[0-9]*+)?" + _END,
        "its value has a comma; a decimal point is written as a point, and thousands are not set off",
    ),
    (
        _NUMBER + rb"([^0-9.eE,_+ \t-][^ \t]*+)",
        "{} stands behind its value; is that a unit? It belongs into the metric's name",
    ),
    (_NUMBER + rb"(?:[ \t]++" + _NUMBER + rb")?\Z", "its value is out of the range of a 64-bit float"),
    (
        _NUMBER + rb"[ \t]++(?:" + _NUMBER + rb"[ \t]++)?(.++)",
        "{} stands behind its value; nothing but a timestamp may",
    ),
    (rb"([^ \t]*+)", "its value is no number that Prometheus takes: {}"),
)
_NAME = re.compile(rb"[a-zA-Z_:][a-zA-Z0-9_:]*+" + _BLANKS)
_GOOD_LABEL = re.compile(_BLANKS + _LABEL + rb"(?:,|(?=\}))" + _BLANKS, re.DOTALL)
_LABELS_END = re.compile(_BLANKS + rb"\}" + _BLANKS)


def what_is_wrong(untrusted_line: bytes) -> str:
    """The first thing that is wrong with this line."""
    line = untrusted_line.strip(b" \t\r")
    complaint = _first(_NAMES, line)
    name = _NAME.match(line)
    if complaint or not name:
        return complaint or "not a sample line"
    untrusted_rest = line[name.end() :]
    if untrusted_rest.startswith(b"{"):
        at = 1
        while label := _GOOD_LABEL.match(untrusted_rest, at):
            at = label.end()
        end = _LABELS_END.match(untrusted_rest, at)
        if not end:
            return _first(_LABELS, untrusted_rest[at:].lstrip(b" \t"))
        untrusted_rest = untrusted_rest[end.end() :]
    return _first(_VALUES, untrusted_rest)


def _first(complaints: Complaints, untrusted_text: bytes) -> str:
    """What the first of these that fits says, or an empty text."""
    found = ((pattern.match(untrusted_text), words) for pattern, words in complaints)
    return next((words.format(*map(shown, match.groups())) for match, words in found if match), "")
