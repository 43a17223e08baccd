# SPDX-License-Identifier: GPL-3.0-or-later
"""
Invariant 3, checked with a real Prometheus: it accepts the merged exposition, whatever all the qubes say.

Every body goes through the daemon's reader and merge, beside the body of an honest qube and its neighbours in the
table. Debian's Prometheus then scrapes the pages, each as a target of its own, so that a page that it refuses
names its body.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from federator.errors import ScrapeError
from federator.gauges import gauges
from federator.model import Outcome, Qube, QubeOutcome, Reading, Reload
from tests.helpers import ROOT, page, read, target
from tests.hostile import bodies
from tests.parts import Prometheus, eventually, get, serving
from tests.test_complaint import COMPLAINTS

# Most of these tests wait for a Prometheus.
pytestmark = pytest.mark.slow

# The honest qube: its samples must be on every page, unchanged.
HONEST = b'# HELP work_samples Honest.\n# TYPE work_samples gauge\nwork_samples 1\n# TYPE m gauge\nm{a="b"} 1\n'
# Prometheus' own reader does not miss a comma between labels; others of the format do, prometheus_client's among them.
TAKEN = {'a{b="c" d="e"} 1', 'a{b="c"d="e"} 1'}
# Since 2.49 or so it reads a name in quotes, as Prometheus 3 writes names of UTF-8. Older ones on the page would not.
TAKEN_BY_NEWER = {'{ "a" } 1'}
WITHOUT_SAMPLES = [b"", b"\n", (ROOT / "tests" / "field" / "comments-only.prom").read_bytes()]
# Bodies per page, so that the types and names of several hostile bodies meet.
NEIGHBOURS = 3


def reading(name: str, body: bytes) -> Reading | ScrapeError:
    """The reading of a body, or why there is none."""
    try:
        return read(body, target(name))
    except ScrapeError as error:
        return error


def merged(texts: Mapping[str, bytes]) -> str:
    """The whole page of qubes with these texts, and our gauges."""
    readings = {name: reading(name, body) for name, body in texts.items()}
    outcomes = [
        QubeOutcome(
            qube=Qube(name=name, transport="qrexec", targets=(target(name),)),
            up=True,
            seconds=0.1,
            outcomes=(
                Outcome(
                    target=target(name),
                    seconds=0.1,
                    reading=result if isinstance(result, Reading) else None,
                    error=result if isinstance(result, ScrapeError) else None,
                ),
            ),
        )
        for name, result in readings.items()
    ]
    ours = gauges(outcomes, 1.0, Reload(successful=True, at=1.0))
    return page(ours, *(result for result in readings.values() if isinstance(result, Reading)))


@contextmanager
def serving_pages(pages: list[bytes]) -> Iterator[int]:
    """Serve page N at /N; gives the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(pages[int(self.path.removeprefix("/"))])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with serving(server := ThreadingHTTPServer(("127.0.0.1", 0), Handler)):
        yield server.server_port


def verdicts(pages: list[bytes], folder: Path) -> list[str]:
    """For each page, the error of Prometheus, or an empty text if it takes the page."""
    prometheus = Prometheus(folder, "")
    found: dict[int, str] = {}

    def all_are_judged() -> bool:
        answer: Any = json.loads(get(f"{prometheus.url}/api/v1/targets").body)
        for one in answer["data"]["activeTargets"]:
            # A page that did not reach it in time says nothing; it asks again.
            if one["health"] != "unknown" and not one["lastError"].startswith('Get "'):
                found[int(one["labels"]["instance"])] = one["lastError"]
        return len(found) == len(pages)

    with serving_pages(pages) as port:
        groups = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"__metrics_path__": f"/{number}", "instance": str(number)}}
            for number in range(len(pages))
        ]
        config = {
            "global": {"scrape_interval": "5s", "scrape_timeout": "5s"},
            "scrape_configs": [{"job_name": "pages", "static_configs": groups}],
        }
        prometheus.config.write_text(json.dumps(config), encoding="utf-8")
        with prometheus.running():
            prometheus.waits_for("count(up)", {"": len(pages)})  # a short answer, unlike the one with all targets
            eventually(f"{len(pages)} pages are judged", all_are_judged)
    return [found[number] for number in range(len(pages))]


def merged_pages() -> dict[str, bytes]:
    """For each hostile body, its page beside an honest qube and its neighbours."""
    hostile = bodies()
    names = list(hostile)
    return {
        name: merged(
            {"work": HONEST, **{f"evil{at}": hostile[names[(number + at) % len(names)]] for at in range(NEIGHBOURS)}}
        ).encode()
        for number, name in enumerate(names)
    }


def complained(line: str) -> bytes:
    """A page of a line that we drop with a complaint."""
    return line.encode() + b"\n"


def raw_pages() -> list[bytes]:
    """The same bodies as they are: they did not go through the reader."""
    return [HONEST + body for body in bodies().values()]


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, str]:
    """What one Prometheus says of all pages of this file, by page: it takes its time to start."""
    pages = [*merged_pages().values(), *raw_pages(), *WITHOUT_SAMPLES, *map(complained, COMPLAINTS)]
    return dict(zip(pages, verdicts(pages, tmp_path_factory.mktemp("differential")), strict=True))


def test_a_real_prometheus_takes_every_page(errors: Mapping[bytes, str]) -> None:
    """At least 300 bodies, each beside an honest qube and its neighbours."""
    pages = merged_pages()
    assert len(pages) >= 300
    for name, page_of in pages.items():
        text = page_of.decode()
        assert '\nwork_samples{qube="work",exporter="node"} 1\n' in text, name
        assert re.search(r'^m\{qube="work",exporter="node",a="b"\} 1$', text, re.MULTILINE), name
        assert len(re.findall(r'^[^#][^{]*\{qube="work",exporter="node"', text, re.MULTILINE)) == 7, name
    refused = {name: error for name, one in pages.items() if (error := errors[one])}
    assert not refused


def test_the_check_can_fail(errors: Mapping[bytes, str]) -> None:
    """Prometheus refuses many of the same bodies when they do not go through the reader."""
    pages = raw_pages()
    assert sum(bool(errors[one]) for one in pages) > len(pages) / 3


def test_every_hostile_body_raises_nothing_but_our_own_error() -> None:
    """Invariant 2, for each body whole and cut near its end."""
    for name, body in bodies().items():
        for cut in (0, 1, 2, 7):
            assert isinstance(reading("evil", body[: len(body) - cut]), Reading | ScrapeError), name


def test_what_is_dropped_with_a_complaint_is_what_prometheus_refuses(errors: Mapping[bytes, str]) -> None:
    """And a text without samples is one that it takes."""
    assert not any(errors[one] for one in WITHOUT_SAMPLES)
    taken = {line for line in COMPLAINTS if not errors[complained(line)]}
    assert taken - TAKEN_BY_NEWER == TAKEN
