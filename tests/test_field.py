# SPDX-License-Identifier: GPL-3.0-or-later
"""
Texts of exporters in the field that went wrong here: what becomes of each of them.

`tests/field/` has the texts: kinds of mistakes, written anew, and not copies of anybody's data. The
configurations there are for test_config.py.
"""

import pytest

from federator.errors import ExpositionError
from tests.helpers import ROOT, lines, page, read, target

FIELD = ROOT / "tests" / "field"
# File -> names of the series on the page, lines dropped, words of the complaint.
READ = {
    "comments-only": ([], 0, ""),
    "dash-in-name": (["http_errors_total"], 1, "line 1: a metric name cannot have '-' in it"),
    "decimal-comma": (["humidity_ratio"], 1, "line 1: its value has a comma"),
    "label-4500-bytes": (["process_disk_write_bytes", "host_power_watts"], 0, ""),
    "labels-73": (["controller_brokers", "heap_bytes"], 0, ""),
    "line-break-in-label": (["ok"], 2, r"line 1: the value of label 'note' does not end in this line; a line break"),
    "missing-comma": (["requests_failed_total"], 1, "line 1: a comma is missing behind label 'code'"),
    "name-without-value": (["mail_total"], 1, "line 1: its value is missing"),
    "reserved-scrape-error": (["scrape_error", "scrape_jobs_total"], 0, ""),
    "single-quotes": (["check_seconds"], 1, "line 2: label values stand in double quotes"),
    "two-brace-groups": (["threads"], 1, "line 1: all labels stand in one pair of braces"),
    "unit-behind-number": (["disk_free_bytes"], 1, "line 1: '%' stands behind its value; is that a unit?"),
    "utf8-name": (["ok"], 1, "line 1: a quoted name needs Prometheus 3; not passed on"),
}
DOWN = {
    "web-page.html": "a web page, not metrics: '<!doctype html>",
    "whole-without-last-newline.prom": "cut: there is no newline at the end",
}


def text(name: str) -> bytes:
    """One of the texts."""
    return (FIELD / name).read_bytes()


def test_each_text_of_the_field_is_tested() -> None:
    """A file that no test reads tests nothing."""
    others = {path.name for path in FIELD.glob("type-of-others-*.prom")}
    assert len(others) == 4
    assert {path.name for path in FIELD.iterdir() if path.suffix != ".toml"} == {f"{name}.prom" for name in READ} | set(
        DOWN
    ) | others


@pytest.mark.parametrize(("name", "expected"), READ.items(), ids=READ)
def test_one_mistake_costs_one_line(name: str, expected: tuple[list[str], int, str]) -> None:
    """The exporter stays up, the others of its lines are passed on, and the log says what is wrong."""
    series, dropped, complaint = expected
    reading = read(text(f"{name}.prom"))
    assert [line.partition("{")[0] for line in lines(reading) if line] == series
    assert (reading.samples, reading.lines_dropped) == (len(series), dropped)
    assert reading.complaint.startswith(complaint)
    assert bool(reading.complaint) == bool(complaint)


@pytest.mark.parametrize(("name", "why"), DOWN.items(), ids=DOWN)
def test_what_is_no_whole_text_is_down(name: str, why: str) -> None:
    """Nothing of it is passed on, and the log says why."""
    with pytest.raises(ExpositionError, match=why):
        read(text(name))


def test_a_whole_text_is_up_once_its_last_line_ends() -> None:
    """Where HTTP proves that it is whole, the daemon ends its last line."""
    assert read(text("whole-without-last-newline.prom") + b"\n").samples == 2


def test_an_exporter_that_gives_no_type_has_no_vote() -> None:
    """A summary stays one, whoever writes the same names without types."""
    readings = [read(text(f"type-of-others-{name}.prom"), target(name)) for name in ("untyped", "typed")]
    merged = page(*readings)
    assert [line for line in merged.split("\n") if line.startswith("#")] == ["# TYPE gc_seconds summary"]
    assert merged.count("gc_seconds{") == 4


def test_series_do_not_depend_on_the_types_of_others() -> None:
    """The honest qube's buckets are written as Prometheus 3 stores them, whether there are liars or not."""
    honest = read(text("type-of-others-honest.prom"), target("honest"))
    liars = [read(text("type-of-others-liar.prom"), target(name)) for name in ("liar", "other")]
    buckets = 'req_seconds_bucket{qube="honest",exporter="node",le="1.0"} 2\n'
    assert buckets in page(honest)
    assert buckets in page(*liars, honest)
    assert "# TYPE req_seconds histogram\n" in page(*liars, honest)
