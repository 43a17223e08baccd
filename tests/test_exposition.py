# SPDX-License-Identifier: GPL-3.0-or-later
"""What may pass, what it becomes on the page, and what is said of the lines that are dropped."""

import re
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federator.errors import BodySizeLimitError, ExpositionError, LabelLimitError, SampleLimitError, ScrapeError
from federator.model import Exporter, Limits, Target
from federator.pattern import Pattern
from federator.text.lines import MAX_DECLARED
from federator.text.parser import MAX_LINE
from federator.text.value import canonical, is_value
from tests.helpers import RECORDINGS, finish, lines, read, reader, recording, target

# One line as every Prometheus from 2.42 on takes it, written independently of the code, and stricter.
STRICT_LINE = re.compile(
    rb'[a-zA-Z_:][a-zA-Z0-9_:]*\{[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n\0]|\\["\\n])*"'
    rb'(?:,[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n\0]|\\["\\n])*")*\} '
    rb"(?:[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|(?i:nan|[-+]?inf(?:inity)?))"
)

# What an exporter writes -> what stands on the page, with `MINE` in place of our labels.
KEPT = {
    "bare": ("foo 1", "foo{MINE} 1"),
    "empty braces": ("foo{} 1", "foo{MINE} 1"),
    "labels": ('foo{b="2",a="1"} 1', 'foo{MINE,a="1",b="2"} 1'),
    "trailing comma": ('foo{a="1",} 1', 'foo{MINE,a="1"} 1'),
    "blanks everywhere": ('  foo { a = "1" , b="2" }\t 1  ', 'foo{MINE,a="1",b="2"} 1'),
    "VictoriaMetrics' blanks": ('foo{a="1", b="2"} 1', 'foo{MINE,a="1",b="2"} 1'),
    "colons": ("job:foo:sum 1", "job:foo:sum{MINE} 1"),
    "escapes": (r'foo{a="x\"y\\z\nw"} 1', r'foo{MINE,a="x\"y\\z\nw"} 1'),
    "an unknown escape": (r'foo{a="\d+"} 1', r'foo{MINE,a="\\d+"} 1'),
    "braces and commas in a value": ('foo{a="},{b=\\"c"} 1', 'foo{MINE,a="},{b=\\"c"} 1'),
    "a hash in a value": ('foo{a="x # {y"} 1', 'foo{MINE,a="x # {y"} 1'),
    "unicode": ('foo{a="grüße\u2028\u0085"} 1', 'foo{MINE,a="grüße\u2028\u0085"} 1'),
    "control characters in a value": ('foo{a="\r\t\x1b[2J"} 1', 'foo{MINE,a="\r\t\x1b[2J"} 1'),
    "an empty value": ('foo{a="",b="2"} 1', 'foo{MINE,b="2"} 1'),
    "a value as written": ("foo 1.50e+03", "foo{MINE} 1.50e+03"),
    "seventeen digits": ("foo 0.10000000000000001", "foo{MINE} 0.10000000000000001"),
    "minus zero": ("foo -0", "foo{MINE} -0"),
    "not a number": ("foo NaN", "foo{MINE} NaN"),
    "infinite": ("foo +Inf", "foo{MINE} +Inf"),
    "a timestamp": ("foo 7 1395066363000", "foo{MINE} 7"),
    "a timestamp before 1970": ("foo 7 -1", "foo{MINE} 7"),
    "a timestamp in seconds": ("foo 7 1395066363.5", "foo{MINE} 7"),
    "an exemplar": ('foo_bucket{le="1"} 7 # {trace_id="x"} 0.5 1395066363.5', 'foo_bucket{MINE,le="1.0"} 7'),
    "an exemplar without labels before it": ('foo_total 7 # {a="b"} 1', "foo_total{MINE} 7"),
    "a carriage return at the end": ("foo 1\r", "foo{MINE} 1"),
    "our label": ('foo{qube="dom0"} 1', 'foo{MINE,exported_qube="dom0"} 1'),
    "our labels, taken": (
        'foo{qube="a",exported_qube="b",exporter="c"} 1',
        'foo{MINE,exported_exported_qube="a",exported_exporter="c",exported_qube="b"} 1',
    ),
    "job and instance": ('foo{job="x"} 1', 'foo{MINE,job="x"} 1'),
    "up": ("up 0", "exported_up{MINE} 0"),
    "a synthetic series": ("scrape_duration_seconds 99", "exported_scrape_duration_seconds{MINE} 99"),
    "one of ours": (
        'qubes_proxy_qube_up{qube="vault"} 1',
        'exported_qubes_proxy_qube_up{MINE,exported_qube="vault"} 1',
    ),
    "a series of the scrape that Prometheus writes on demand": (
        "scrape_body_size_bytes 99",
        "exported_scrape_body_size_bytes{MINE} 99",
    ),
    "a name of an exporter that starts as those do": ("scrape_error 0", "scrape_error{MINE} 0"),
    "an alert": ('ALERTS{alertname="x"} 1', 'exported_ALERTS{MINE,alertname="x"} 1'),
    "not up": ("upper 1", "upper{MINE} 1"),
}

# Lines that cannot be passed on, with a word of the complaint.
DROPPED = {
    "a quoted name": ('{"foo"} 1', "needs Prometheus 3"),
    "a newline in a quoted name": ('{"foo\\n"} 1', "needs Prometheus 3"),
    "no name": ("{a} 1", "name is missing"),
    "a quoted label name": ('foo{"a"="b"} 1', "needs Prometheus 3"),
    "an empty label name": ('foo{""="c"} 1', "needs Prometheus 3"),
    "a digit first": ("1foo 1", "start with '1'"),
    "a dash": ("foo-bar 1", "have '-'"),
    "a non-ASCII name": ("größe 1", r"have '\\xf6'"),
    "a label with a dash": ('foo{a-b="c"} 1', "have '-'"),
    "a label twice": ('foo{a="1",a="2"} 1', "twice"),
    "__name__": ('foo{__name__="bar"} 1', "start with __"),
    "a label of Prometheus' own": ('foo{__meta_x="bar"} 1', "start with __"),
    "two sets of labels": ('foo{a="b"}{c="d"} 1', "one pair of braces"),
    "a missing comma": ('foo{a="b" c="d"} 1', "comma is missing behind label 'a'"),
    "two commas": ('foo{a="b",,} 1', "no label before"),
    "a comma first": ('foo{,a="b"} 1', "no label before"),
    "another operator": ('foo{a!="b"} 1', "have '!'"),
    "no closing brace": ('foo{a="b" 1', "closing brace is missing"),
    "no closing quote": ('foo{a="b} 1', "'a' does not end"),
    "no value": ("foo", "value is missing"),
    "no value after labels": ('foo{a="b"}', "value is missing"),
    "too many numbers": ("foo 7 1 2 3", "'2 3' stands behind"),
    "out of range": ("foo 1e999", "out of the range"),
    "out of range in digits": ("foo " + "9" * 400, "out of the range"),
    "hexadecimal": ("foo 0x1p3", "hexadecimal"),
    "an underscore": ("foo 1_000", "between the digits"),
    "a signed NaN": ("foo +NaN", "no number"),
    "digits of another script": ("foo \u0661", "no number"),
    "a word": ("foo bar", "no number"),
    "a no-break space": ("foo\u00a01", r"have '\\xa0'"),
    "a vertical tab": ("foo\v1", r"have '\\x0b'"),
    "a form feed at the end": ("foo 1\f", r"'\\x0c' stands behind"),
    "a carriage return within": ("foo\r1", r"have '\\r'"),
    "a NUL": ("foo\0 1", "NUL"),
    "a NUL first": ("\0foo 1", "NUL"),
    "a NUL in a label": ('foo{a="\0"} 1', "NUL"),
    "HTML": ("<html><body>", "have '<'"),
    "a long line": ('foo{a="' + "x" * MAX_LINE + '"} 1', "longer than"),
    "blanks without end": (" " * (MAX_LINE + 1) + "x", "longer than"),
    "a type there is not": ("# TYPE foo florp", "no such type|refuses"),
    "a type without a name": ("# TYPE  ", "not a HELP or TYPE"),
    "a type with a quoted name": ('# TYPE "foo" gauge', "not a HELP or TYPE"),
    "a second type": ("# TYPE ok counter\n# TYPE ok gauge", "another type already"),
    "a long HELP": ("# HELP foo " + "x" * MAX_LINE, "longer than"),
    "a NUL in HELP": ("# HELP foo a\0b", "not a HELP or TYPE"),
}

IGNORED = [
    "",
    "   ",
    "# a comment",
    "#",
    "#HELP foo bar",
    "# EOF",
    "# UNIT foo seconds",
    "# HELP foo",
    "# TYPE foo gauge",
]
MINE = 'qube="work",exporter="node"'


@pytest.mark.parametrize(("line", "expected"), KEPT.values(), ids=KEPT.keys())
def test_what_can_be_kept_is_kept(line: str, expected: str) -> None:
    """A line that Prometheus can use is passed on, alone or among others."""
    expected = expected.replace("MINE", MINE)
    alone = read(f"{line}\n".encode())
    assert lines(alone) == [expected]
    assert (alone.samples, alone.lines_dropped, alone.complaint) == (1, 0, "")
    among = read(f"before 1\n{line}\nafter 2\n".encode())
    assert lines(among) == [f"before{{{MINE}}} 1", expected, f"after{{{MINE}}} 2"]


@pytest.mark.parametrize(("line", "why"), DROPPED.values(), ids=DROPPED.keys())
def test_what_cannot_be_passed_on_is_dropped_counted_and_named(line: str, why: str) -> None:
    """A bad line is lost and no other line is; the complaint says which line it was."""
    reading = read(f"ok 1\n{line}\nfine 2\n".encode())
    assert lines(reading) == [f"ok{{{MINE}}} 1", f"fine{{{MINE}}} 2"]
    assert reading.lines_dropped == 1
    assert re.match(rf"line [23]: .*({why})", reading.complaint), reading.complaint
    assert reading.complaint.isprintable()


@pytest.mark.parametrize("line", IGNORED)
def test_comments_and_blank_lines_are_not_counted_as_dropped(line: str) -> None:
    """Comments and blank lines are neither passed on nor counted."""
    reading = read(f"ok 1\n{line}\n".encode())
    assert (lines(reading), reading.lines_dropped) == ([f"ok{{{MINE}}} 1"], 0)


def test_only_the_lines_that_are_not_utf8_are_dropped() -> None:
    """One bad byte in a label does not make the rest of the text unreadable."""
    reading = read(b'ok 1\nfoo{a="\xff"} 1\n# HELP ok \xff\n')
    assert (lines(reading), reading.lines_dropped) == ([f"ok{{{MINE}}} 1"], 2)


@pytest.mark.parametrize(
    ("body", "error", "why"),
    [
        (b"foo 1", ExpositionError, "cut"),
        (b"foo 1\nbar 2", ExpositionError, "cut"),
        (b"# HELP foo text\nfoo one\n", ExpositionError, "line 2: its value is no number"),
        (b"# TYPE foo florp\n", ExpositionError, "line 1: no such type"),
        (b"<html>\n</html>\n", ExpositionError, "a web page, not metrics: '<html>"),
        (b"\xef\xbb\xbf\r\n <!doctype html>\nfoo 1\n", ExpositionError, "a web page"),
        (b'<p class="x">up 1', ExpositionError, "a web page"),
        (b"\x1f\x8b\x08\x00\xff\n", ExpositionError, "line 1"),
        (b"a" * 2000 + b"\n", BodySizeLimitError, "1024 bytes"),
        (b"foo 1\nbar 1\nbaz 1\nqux 1\n", SampleLimitError, "more than 3 samples"),
        (b"\n" * 1000, SampleLimitError, "1000 lines"),
        (b'foo{a="1",b="2",c="3"} 1\n', LabelLimitError, "nothing is left of its text: line 1: more than 2 labels"),
        (b'foo one\nbar{a="1",b="2",c="3"} 1\n', LabelLimitError, "line 2: more than 2 labels"),
        (b'foo{abcdefghijk="1"} 1\n', LabelLimitError, "10 bytes"),
        (b'foo{a="0123456789abcdefg"} 1\n', LabelLimitError, "16 bytes"),
        ('foo{a="äääääääää"} 1\n'.encode(), LabelLimitError, "16 bytes"),
        (b"a_name_of_twenty_bytes 1\n", LabelLimitError, "16 bytes"),
    ],
)
def test_a_target_is_down_where_nothing_is_left_or_too_much_came(
    body: bytes, error: type[ScrapeError], why: str
) -> None:
    """The reason names the limit, or the first line that is wrong."""
    limits = Limits(body_size=1024, samples=3, labels=2, label_name_length=10, label_value_length=16)
    with pytest.raises(error, match=re.escape(why)):
        read(body, limits=limits)


@pytest.mark.parametrize("body", [b"", b"\n", b"# HELP foo text\n\n", b"# TYPE foo gauge\n", b"  \n# nothing runs\n"])
def test_a_valid_text_without_samples_is_up(body: bytes) -> None:
    """As in Prometheus, at the first scrape and after one with samples."""
    one = reader()
    for text, samples in ((body, 0), (body, 0), (b"foo 1\n", 1), (body, 0)):
        reading = finish(one.read(text))
        assert (reading.samples, reading.lines_dropped, reading.complaint) == (samples, 0, "")
        assert b"".join(reading.blocks).count(b"\n") == samples


def test_html_is_a_web_page_where_it_has_no_samples() -> None:
    """Some exporters call their metrics text/html: these are metrics all the same."""
    one = reader(Target(qube="work", exporter=Exporter("node", 9100, (Pattern("dropped"),))))
    for body in (b"", b"\n# foo\n"):
        with pytest.raises(ExpositionError, match="a web page"):
            finish(one.read(body, untrusted_content_type="Text/HTML; charset=utf-8"))
        assert finish(one.read(body, untrusted_content_type="text/plain")).samples == 0
    assert finish(one.read(b"foo 1\n", untrusted_content_type="text/html")).samples == 1
    assert finish(one.read(b"dropped 1\n", untrusted_content_type="text/html")).samples == 0


@pytest.mark.parametrize(
    ("series", "why"),
    [
        (b'foo{a="1",b="2",c="3"}', "more than 2 labels"),
        (b'foo{abcdefghijk="1"}', "10 bytes"),
        (b'foo{a="0123456789abcdefg"}', "16 bytes"),
        (b"a_name_of_twenty_bytes", "16 bytes"),
    ],
)
def test_a_series_over_a_limit_on_labels_is_lost_alone(series: bytes, why: str) -> None:
    """It is dropped and counted at each scrape, and the exporter's others are there."""
    one = reader(limits=Limits(labels=2, label_name_length=10, label_value_length=16))
    for value in (1, 2, 3):
        reading = finish(one.read(b"ok 1\n%b %d\nfine 2\n" % (series, value)))
        assert lines(reading) == [f"ok{{{MINE}}} 1", f"fine{{{MINE}}} 2"]
        assert reading.lines_dropped == 1
        assert "line 2" in reading.complaint
        assert why in reading.complaint
        with pytest.raises(LabelLimitError, match=re.escape(why)):
            finish(one.read(series + b" %d\n" % value))


def test_what_is_exactly_at_a_limit_passes() -> None:
    """A limit is the largest number that is allowed."""
    limits = Limits(body_size=100, samples=1, labels=1, label_name_length=2, label_value_length=4)
    assert read(b'foo{ab="1234"} 1\n', limits=limits).samples == 1


FAMILIES = {
    "a gauge": ("# HELP foo text\n# TYPE foo gauge\nfoo 1\n", [("foo", "gauge", "text")]),
    "no type": ("foo 1\n", [("foo", None, "")]),
    "a counter keeps its name": ("# TYPE foo counter\nfoo 1\n", [("foo", "counter", "")]),
    "a type after its sample": ("foo 1\n# TYPE foo counter\n", [("foo", "counter", "")]),
    "a family in pieces": (
        "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\n" + 'a{x="y"} 2\n',
        [("a", "gauge", ""), ("b", "gauge", "")],
    ),
    "a histogram": (
        '# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n',
        [("h", "histogram", "")],
    ),
    "an empty help before another": ("# HELP f \n# HELP f text\nf 1\n", [("f", None, "text")]),
    "the help of a histogram": (
        "# HELP h text\n# TYPE h histogram\nh_sum 1\nh_count 1\n",
        [("h", "histogram", "text")],
    ),
    "a summary": ('# TYPE s summary\ns{quantile="0.5"} 1\ns_sum 1\ns_count 1\n', [("s", "summary", "")]),
    "parts without a whole": ("h_sum 1\nh_count 1\n", [("h_sum", None, ""), ("h_count", None, "")]),
    "a part with a type of its own": (
        '# TYPE h histogram\n# TYPE h_count counter\nh_bucket{le="+Inf"} 1\nh_count 1\n',
        [("h", "histogram", "")],
    ),
    "a plain sample under a histogram's name": ("# TYPE h histogram\nh 1\n", [("h", None, "")]),
    "an OpenMetrics counter": ("# HELP c n\n# TYPE c counter\nc_total 1\n", [("c_total", "counter", "n")]),
    "an OpenMetrics info": ('# TYPE i info\ni_info{v="1"} 1\n', [("i_info", "gauge", "")]),
    "unknown": ("# TYPE u unknown\nu 1\n", [("u", "untyped", "")]),
    "a gauge and its total": (
        "# TYPE m gauge\n# HELP m of the gauge\nm 1\n# TYPE m_total counter\nm_total 2\n",
        [("m", "gauge", "of the gauge"), ("m_total", "counter", "")],
    ),
    "help with escapes": ("# HELP f a\\\\b\\nc\\d\nf 1\n", [("f", None, r"a\\b\nc\\d")]),
    "a reserved histogram moves whole": (
        '# TYPE qubes_proxy histogram\nqubes_proxy_bucket{le="+Inf"} 1\nqubes_proxy_sum 1\nqubes_proxy_count 1\n',
        [("exported_qubes_proxy", "histogram", "")],
    ),
    "a reserved summary moves whole": (
        '# TYPE up summary\nup{quantile="0.5"} 1\nup_sum 1\nup_count 1\n',
        [("exported_up", "summary", "")],
    ),
}


@pytest.mark.parametrize(("body", "families"), FAMILIES.values(), ids=FAMILIES.keys())
def test_every_sample_stands_in_the_family_its_type_line_says(
    body: str, families: list[tuple[str, str | None, str]]
) -> None:
    """TYPE lines count wherever they stand in the text."""
    reading = read(body.encode())
    assert [(family.name, family.type, family.help.decode()) for family in dict.fromkeys(reading.families)] == families
    assert reading.lines_dropped == 0
    for family, block in zip(reading.families, reading.blocks, strict=True):
        assert block.endswith(b"\n")
        assert all(line.startswith(family.name) for line in block.decode().removesuffix("\n").split("\n"))


IN_VALUES = {
    "one": (b'foo{a="x\nsecond 3\n"} 1\n', [], 3),
    "several": (b'foo{b="c",a="x\nsecond 3\n\n# third\nfourth 4\nz",d="e"} 1 5\n', [], 4),
    "one after the other": (b'foo{a="x\nb 1\ny"} 1\nfoo{a="x\nc 1\nz"} 1\nd 1\nfoo{a="\ne 1\n"} 1\n', ["d"], 9),
    "an escape at the end": (b'foo{a="x\\\nb 1\n\\"c",} 1\n', [], 3),
    "a line that was only bad": (b'foo{a="x\nb 1\nc{d="e"} 1\nf"} 1\n', ["b", "c"], 2),
    "what follows is no value": (b'foo{a="x\nb 1\nf"} one\n', ["b"], 2),
    "what follows is no label": (b'foo{a="x\nb 1\nf"x} 1\n', ["b"], 2),
    "no end": (b'foo{a="x\nb 1\n', ["b"], 1),
    "in other slices": (b'foo{a="x\n' + b"b 1\n" * 1000 + b'f"} 1\nc 1\n', ["c"], 1002),
}


@pytest.mark.parametrize(("body", "names", "dropped"), IN_VALUES.values(), ids=IN_VALUES.keys())
def test_a_line_of_a_label_value_is_no_sample(body: bytes, names: list[str], dropped: int) -> None:
    """A label value with line breaks in it is dropped whole, and nothing that stands in it is taken for a sample."""
    one = reader()
    for _ in range(2):
        reading = finish(one.read(b"first 1\n" + body + b"last 1\n"))
        assert [line.partition("{")[0] for line in lines(reading)] == ["first", *names, "last"]
        assert (reading.samples, reading.lines_dropped) == (len(names) + 2, dropped)
        assert reading.complaint.startswith("line 2: the value of label 'a' does not end in this line")


DECLARED = {
    "metadata alone": (b"# HELP a text\n# TYPE a gauge\n", [("a", "gauge", "text")]),
    "beside samples": (b"# TYPE a gauge\nb 1\n# TYPE c unknown\n", [("a", "gauge", ""), ("c", "untyped", "")]),
    "beside a line that is dropped": (b"# TYPE a gauge\nb 1\nb one\n", [("a", "gauge", "")]),
    "a HELP alone": (b"# HELP a text\nb 1\n", []),
    "with samples": (b"# TYPE a gauge\na 1\n# TYPE h histogram\nh_count 1\n# TYPE i info\ni_info 1\n", []),
    "a counter of OpenMetrics": (b"# TYPE c counter\nc_total 1\n# TYPE d counter\n", [("d", "counter", "")]),
    "a histogram": (b"# TYPE h histogram\n# TYPE h_count counter\n", [("h", "histogram", "")]),
    "a reserved name": (b"# TYPE up gauge\n# TYPE exported_up counter\n", [("exported_up", "gauge", "")]),
    "a reserved name with samples": (b"# TYPE up gauge\nexported_up 1\n", []),
    "dropped by the configuration": (b"# TYPE dropped gauge\n", []),
}


@pytest.mark.parametrize(("body", "declared"), DECLARED.values(), ids=DECLARED.keys())
def test_a_family_without_samples_keeps_its_type_and_help(
    body: bytes, declared: list[tuple[str, str | None, str]]
) -> None:
    """Dashboards look metadata up before there is a first event."""
    one = reader(Target(qube="work", exporter=Exporter("node", 9100, (Pattern("dropped"),))))
    first = finish(one.read(body))
    assert [(family.name, family.type, family.help.decode()) for family in first.declared] == declared
    for _ in range(2):
        again = finish(one.read(body.replace(b" 1\n", b" 2\n")))
        assert again.declared is first.declared  # merge.Merger knows the page again
        assert again.families is first.families


def test_families_without_samples_are_bounded() -> None:
    """No qube can fill the page with them; a very long HELP does not cost the others their place."""
    many = b"".join(b"# TYPE a%d gauge\n" % number for number in range(MAX_DECLARED + 9))
    assert len(read(many).declared) == MAX_DECLARED
    long = b"".join(b"# HELP a%d %b\n# TYPE a%d gauge\n" % (number, b"x" * 16_000, number) for number in range(9))
    names = [family.name for family in read(long + b"# TYPE b gauge\n").declared]
    assert names == ["a0", "a1", "a2", "a3", "b"]


@pytest.mark.parametrize(
    "twin",
    ["foo 2", "foo{} 2", 'foo{a=""} 2', "foo 1 1395066363000", "  foo 2"],
)
def test_the_same_series_twice_counts_once(twin: str) -> None:
    """The first one wins, as in Prometheus, in whatever way the second one is written."""
    reading = read(f"foo 1\nbar 1\n{twin}\n".encode())
    assert lines(reading) == [f"foo{{{MINE}}} 1", f"bar{{{MINE}}} 1"]
    assert (reading.samples, reading.lines_dropped) == (2, 1)
    assert "twice" in reading.complaint


def test_the_order_of_labels_does_not_make_another_series() -> None:
    """Labels are a set: their order means nothing."""
    reading = read(b'foo{a="1",b="2"} 1\nfoo{b="2",a="1"} 2\n')
    assert (reading.samples, reading.lines_dropped) == (1, 1)


def test_a_renamed_metric_does_not_collide_with_one_of_that_name() -> None:
    """Where `up` becomes exported_up and there is one already, the first in the text counts."""
    reading = read(b"exported_up 1\nup 2\n")
    assert (lines(reading), reading.lines_dropped) == ([f"exported_up{{{MINE}}} 1"], 1)


def test_labels_of_the_qube_stand_on_every_series() -> None:
    """Labels that the configuration sets win over the target's."""
    reading = read(b'foo{owner="mallory"} 1\n', target(owner='al"ice'))
    assert lines(reading) == [f'foo{{{MINE},owner="al\\"ice",exported_owner="mallory"}} 1']


def test_labels_that_move_do_not_meet() -> None:
    """Two labels of the target that both need another name get two different ones."""
    reading = read(b'foo{x="3",exported_x="4"} 1\n', target(x="1", exported_x="2"))
    assert lines(reading) == [
        f'foo{{{MINE},x="1",exported_x="2",exported_exported_exported_x="3",exported_exported_x="4"}} 1'
    ]


def test_unwanted_metrics_are_left_out_and_not_counted_as_lost() -> None:
    """`drop` patterns are anchored, as in Prometheus, and what they match is not counted as dropped lines."""
    of = Target(qube="work", exporter=Exporter("node", 9100, (Pattern("(?:go_.*)|(?:foo)"),)))
    reading = read(b"go_threads 1\nfoo 2\nfoobar 3\n", of)
    assert (lines(reading), reading.samples, reading.lines_dropped) == ([f"foobar{{{MINE}}} 3"], 1, 0)


def test_a_target_of_which_nothing_is_wanted_is_up() -> None:
    """A target whose metrics the configuration drops, all of them, did nothing wrong."""
    reading = read(b"foo 1\n", Target(qube="work", exporter=Exporter("node", 9100, (Pattern(".*"),))))
    assert (reading.samples, reading.families) == (0, ())


@pytest.mark.parametrize("exporter", ["node", "process", "postgres", "redis", "pyapp", "blackbox", "prometheus"])
def test_recordings_pass_whole_with_values_as_written(exporter: str) -> None:
    """No sample of a real exporter is lost, renamed or rounded."""
    body = recording(exporter)
    samples = [line for line in body.decode().split("\n") if line and not line.startswith("#")]
    reading = read(body, target(exporter=exporter))
    assert reading.lines_dropped == 0
    assert reading.samples == len(samples)
    assert sorted(line.rpartition(" ")[2] for line in lines(reading)) == sorted(
        line.rpartition(" ")[2] for line in samples
    )
    assert sorted(re.split("[{ ]", line)[0] for line in lines(reading)) == sorted(
        re.split("[{ ]", line)[0] for line in samples
    )


def test_a_recording_in_openmetrics_passes_whole() -> None:
    """A text in OpenMetrics loses its timestamps and exemplars and nothing else."""
    body = (RECORDINGS / "pyapp-1.om").read_bytes()
    reading = read(body)
    samples = [line for line in body.decode().split("\n") if line and not line.startswith("#")]
    assert (reading.samples, reading.lines_dropped) == (len(samples), 0)
    assert not any(" # " in line for line in lines(reading))


@given(
    st.lists(
        st.one_of(
            st.sampled_from([line.encode() for line, _ in (*KEPT.values(), *DROPPED.values())]),
            st.binary(max_size=60),
            st.text(max_size=60).map(str.encode),
        ),
        max_size=12,
    )
)
def test_no_bytes_raise_anything_but_our_own_error(parts: list[bytes]) -> None:
    """Invariant 2: no bytes make `read` raise anything but its own error; and what passes is strict."""
    body = b"\n".join([*parts, b""])
    try:
        reading = read(body, limits=Limits(body_size=1 << 20))
    except ScrapeError:
        return
    assert all(STRICT_LINE.fullmatch(line) for line in b"".join(reading.blocks).split(b"\n")[:-1])
    assert len(b"".join(reading.blocks).split(b"\n")) - 1 == reading.samples
    assert all(f"{{{MINE}".encode() in line for line in b"".join(reading.blocks).split(b"\n") if line)


@pytest.mark.parametrize(
    "value", [b"1", b"+1", b"-.5", b"5.", b"1e5", b"1E-5", b"1e-999", b"nan", b"INF", b"-inf", b"Infinity"]
)
def test_values_that_go_takes(value: bytes) -> None:
    """A value is good if Go's strconv.ParseFloat takes it, for which an underflow is zero and no error."""
    assert is_value(value)


@pytest.mark.parametrize(
    "value", [b"", b".", b"e5", b"1e", b"--1", b"1e400", b"-nan", b"+nan", b"1_0", b"0x10", b" 1", b"1 ", b"infin"]
)
def test_values_that_go_refuses(value: bytes) -> None:
    """Python's float() takes more than Go's strconv.ParseFloat."""
    assert not is_value(value)


def test_families_stay_the_same_object_while_a_text_has_dropped_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is planned once for these families; those of a text with very many are not kept."""
    monkeypatch.setattr("federator.text.exposition.MAX_KEPT_FAMILIES", 3)
    for count, kept in ((3, True), (4, False)):
        one = reader()
        body = b"".join(b"a%d 1\n" % number for number in range(count)) + b"bad\n"
        first, second = finish(one.read(body)), finish(one.read(body))
        assert first.families == second.families
        assert (first.families is second.families) == kept


class Counting:
    """A `drop` pattern that counts how often it is asked."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def fullmatch(self, text: str) -> bool:
        """Drop `b`."""
        self.names.append(text)
        return text == "b"


def test_a_drop_pattern_is_asked_once_for_each_name() -> None:
    """A pattern may be slow, and a name may have very many series."""
    pattern = Counting()
    of = Target(qube="work", exporter=Exporter("node", 9100, (cast("Any", pattern),)))
    one, body = reader(of), b'a{x="1"} 1\na{x="2"} 2\nb 3\nb{x="1"} 4\n'
    for scrape in range(3):
        assert lines(finish(one.read(body.replace(b" 1", b" %d" % scrape)))) == [
            f'a{{{MINE},x="1"}} {scrape}',
            f'a{{{MINE},x="2"}} 2',
        ]
    assert pattern.names == ["a", "b"]


# As written, and as Prometheus 3.5.3 stores it: `le` under TYPE histogram, `quantile` under TYPE summary. It also takes
# Go's 1_0 for 10, which no exporter writes and which stays here as it is.
SPELLINGS = {
    "1": "1.0",
    "0": "0.0",
    "-0": "0.0",
    "+1": "1.0",
    "-1": "-1.0",
    "1.0": "1.0",
    "1.50": "1.5",
    ".5": "0.5",
    "5.": "5.0",
    "1e0": "1.0",
    "100": "100.0",
    "100000": "100000.0",
    "999999": "999999.0",
    "1000000": "1e+06",
    "1234567": "1.234567e+06",
    "123456.7": "123456.7",
    "12345678.9": "1.23456789e+07",
    "0.0001": "0.0001",
    "0.00012345678": "0.00012345678",
    "0.00001": "1e-05",
    "1.25E-5": "1.25e-05",
    "1e21": "1e+21",
    "1e100": "1e+100",
    "5e-324": "5e-324",
    "0.1000000000000000055511151231257827": "0.1",
    "9007199254740993": "9.007199254740992e+15",
    "inf": "+Inf",
    "+Inf": "+Inf",
    "-infinity": "-Inf",
    "nan": "NaN",
    "1e999": "1e999",
    "1_0": "1_0",
    "one": "one",
    " 1": " 1",
    "\u0661": "\u0661",
}


@pytest.mark.parametrize(("written", "stored"), SPELLINGS.items())
def test_le_and_quantile_are_written_as_prometheus_3_writes_them(written: str, stored: str) -> None:
    """Else they would depend on the type, and so on what other targets say. No other label is touched."""
    assert canonical(written) == stored
    (line,) = lines(read(f'm{{le="{written}",level="{written}",quantile="{written}"}} 1\n'.encode()))
    assert line == f'm{{qube="work",exporter="node",le="{stored}",level="{written}",quantile="{stored}"}} 1'


def test_two_spellings_of_a_bucket_are_one_series() -> None:
    """As they are for Prometheus 3."""
    reading = read(b'# TYPE h histogram\nh_bucket{le="1"} 1\nh_bucket{le="1.0"} 2\n')
    assert lines(reading) == ['h_bucket{qube="work",exporter="node",le="1.0"} 1']
    assert reading.lines_dropped == 1
