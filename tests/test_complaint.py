# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a line that is dropped: the words that a person finds in the log."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federator.text.complaint import what_is_wrong

COMPLAINTS = {
    "a{b='c'} 1": "label values stand in double quotes, not in single ones",
    "a{b=c} 1": "the value of label 'b' stands in no double quotes",
    'http-requests{a="b"} 1': "a metric name cannot have '-' in it",
    "a.b 1": "a metric name cannot have '.' in it",
    "größe 1": r"a metric name cannot have '\xf6' in it",
    "9a 1": "a metric name cannot start with '9'",
    "'a' 1": "a metric name stands in no quotes",
    'a{b.c="d"} 1': "a label name cannot have '.' in it",
    'a{9="d"} 1': "a label name cannot start with '9'",
    "a{'b'=\"c\"} 1": 'a label is written as name="value"',
    'a{="d"} 1': "a label name is missing",
    'a{b "d"} 1': "'=' is missing behind the label name 'b'",
    'a{b="c",,d="e"} 1': "a comma has no label before it",
    'a{b="c" d="e"} 1': "a comma is missing behind label 'b'",
    'a{b="c"d="e"} 1': "a comma is missing behind label 'b'",
    'a{b="c" 1': "the closing brace is missing",
    'a{b="c"': "the closing brace is missing",
    'a{b="c", ': "the closing brace is missing",
    'a{b="c"}{d="e"} 1': "all labels stand in one pair of braces",
    'a{b="c"} {d="e"} 1': "all labels stand in one pair of braces",
    'a{b="first': r"the value of label 'b' does not end in this line; a line break in a label value is written \n,"
    r" a quote \", a backslash \\",
    '{"a.b",c="d"} 1': "a quoted name needs Prometheus 3; not passed on",
    '{ "a" } 1': "a quoted name needs Prometheus 3; not passed on",
    'a{"b.c"="d"} 1': "a quoted name needs Prometheus 3; not passed on",
    '{a="b"} 1': "the metric name is missing before its labels",
    '{"status": "ok"}': "this is JSON, not a sample line",
    "{": "this is JSON, not a sample line",
    "[{": "this is JSON, not a sample line",
    "a": "its value is missing",
    'a{b="c"}  \t': "its value is missing",
    "a 21,5": "its value has a comma; a decimal point is written as a point, and thousands are not set off",
    "a 1,234.5": "its value has a comma; a decimal point is written as a point, and thousands are not set off",
    "a 81%": "'%' stands behind its value; is that a unit? It belongs into the metric's name",
    "a -1.5e3ms": "'ms' stands behind its value; is that a unit? It belongs into the metric's name",
    "a 81 %": "'%' stands behind its value; nothing but a timestamp may",
    "a 81 1700000000 x": "'x' stands behind its value; nothing but a timestamp may",
    "a 0x1F": "its value is a hexadecimal number; decimal ones are taken",
    "a 1_000": "its value has '_' between the digits",
    'a "1"': "its value stands in quotes",
    "a 1e999": "its value is out of the range of a 64-bit float",
    "a true": "its value is no number that Prometheus takes: 'true'",
    "a\0 1": "a NUL byte is in it",
}


@pytest.mark.parametrize(("line", "complaint"), COMPLAINTS.items())
def test_a_complaint_says_what_is_wrong_with_the_line(line: str, complaint: str) -> None:
    """Not only that it is no sample line."""
    assert what_is_wrong(line.encode()) == complaint
    assert what_is_wrong(f"  {line} \r".encode()) == complaint


@given(st.one_of(st.binary(), st.text(alphabet="{}\"'=, \\\tab1.-e\xe9\r").map(str.encode)))
def test_any_line_has_a_complaint_that_may_stand_in_a_log(untrusted_line: bytes) -> None:
    """Whatever the bytes are: it is printable, and not long."""
    complaint = what_is_wrong(untrusted_line)
    assert complaint.isascii()
    assert complaint.isprintable()
    assert 0 < len(complaint) < 1000
