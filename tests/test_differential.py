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
from tests.parts import PATIENCE_SECONDS, debian_program, eventually, free_port, get, process, serving
from tests.test_complaint import COMPLAINTS

# Most of these tests wait for a Prometheus.
pytestmark = pytest.mark.slow

# The honest qube: its samples must be on every page, unchanged.
HONEST = b'# HELP work_samples Honest.\n# TYPE work_samples gauge\nwork_samples 1\n# TYPE m gauge\nm{a="b"} 1\n'
# Prometheus' own reader does not miss a comma between labels; others of the format do, prometheus_client's among them.
TAKEN = {'a{b="c" d="e"} 1', 'a{b="c"d="e"} 1'}
# Since 2.49 or so it reads a name in quotes, as Prometheus 3 writes names of UTF-8. Older ones on the page would not.
TAKEN_BY_NEWER = {'{ "a" } 1'}
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
    with serving_pages(pages) as port:
        groups = [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"__metrics_path__": f"/{number}", "instance": str(number)}}
            for number in range(len(pages))
        ]
        (folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "5s", "scrape_timeout": "5s"},
                    "scrape_configs": [{"job_name": "pages", "static_configs": groups}],
                }
            ),
            encoding="utf-8",
        )
        address = f"127.0.0.1:{free_port()}"
        words = [
            debian_program("prometheus"),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address={address}",
        ]
        found: dict[int, str] = {}

        def all_scraped() -> bool:
            try:
                answer: Any = json.loads(get(f"http://{address}/api/v1/targets").body)
            except (OSError, ValueError):
                return False
            for one in answer["data"]["activeTargets"]:
                if one["health"] != "unknown":
                    found[int(one["labels"]["instance"])] = one["lastError"]
            return len(found) == len(pages)

        with process(*words, log=folder / "prometheus.log"):
            eventually(f"{len(pages)} pages are scraped within {PATIENCE_SECONDS:.0f} s", all_scraped)
    return [found[number] for number in range(len(pages))]


def test_a_real_prometheus_takes_every_page(tmp_path: Path) -> None:
    """At least 300 bodies, each beside an honest qube and its neighbours."""
    hostile = bodies()
    assert len(hostile) >= 300
    names = list(hostile)
    pages = []
    for number in range(len(names)):
        texts = {f"evil{at}": hostile[names[(number + at) % len(names)]] for at in range(NEIGHBOURS)}
        pages.append(merged({"work": HONEST, **texts}))
    for name, text in zip(names, pages, strict=True):
        assert '\nwork_samples{qube="work",exporter="node"} 1\n' in text, name
        assert re.search(r'^m\{qube="work",exporter="node",a="b"\} 1$', text, re.MULTILINE), name
        assert len(re.findall(r'^[^#][^{]*\{qube="work",exporter="node"', text, re.MULTILINE)) == 7, name
    refused = {
        name: error
        for name, error in zip(names, verdicts([text.encode() for text in pages], tmp_path), strict=True)
        if error
    }
    assert not refused


def test_the_check_can_fail(tmp_path: Path) -> None:
    """Prometheus refuses many of the same bodies when they do not go through the reader."""
    hostile = bodies()
    errors = verdicts([HONEST + body for body in hostile.values()], tmp_path)
    assert sum(map(bool, errors)) > len(hostile) / 3


def test_every_hostile_body_raises_nothing_but_our_own_error() -> None:
    """Invariant 2, for each body whole and cut near its end."""
    for name, body in bodies().items():
        for cut in (0, 1, 2, 7):
            assert isinstance(reading("evil", body[: len(body) - cut]), Reading | ScrapeError), name


def test_what_is_dropped_with_a_complaint_is_what_prometheus_refuses(tmp_path: Path) -> None:
    """And a text without samples is one that it takes."""
    good = [b"", b"\n", (ROOT / "tests" / "field" / "comments-only.prom").read_bytes()]
    bad = [line.encode() + b"\n" for line in COMPLAINTS]
    errors = verdicts([*good, *bad], tmp_path)
    assert not any(errors[: len(good)])
    taken = {line for line, error in zip(COMPLAINTS, errors[len(good) :], strict=True) if not error}
    assert taken - TAKEN_BY_NEWER == TAKEN
