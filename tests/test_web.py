# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP side, asked by a client, over two local qubes."""

import gzip
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient

from federator import config, daemon
from federator.scrape import Scraper
from federator.telemetry import Counters
from federator.web import TEXT_FORMAT, Served, application
from tests.parts import Exporter, toml

Client = TestClient[Any, Any]


@pytest.fixture
async def client(
    aiohttp_client: Callable[..., Any], exporter: Callable[[bytes], Exporter], tmp_path: Path
) -> AsyncIterator[Client]:
    """A client of a daemon with two qubes and two exporters."""
    daemon.watch_children()
    ports = {"node": exporter(b"n 1\n").port, "app": exporter(b"a 1\n").port}
    text = toml({"work": ports, "personal": ports}, transport="local")
    counters = Counters()
    scraper = Scraper(config.parse(text, tmp_path / "x.toml"), counters)
    yield await aiohttp_client(application(Served(scraper, counters)), auto_decompress=False)
    await scraper.close()


async def asked(client: Client, path: str, **headers: str) -> tuple[ClientResponse, bytes]:
    """The answer, and its body as it came."""
    headers.setdefault("Accept-Encoding", "identity")
    async with client.get(path, headers=headers) as answer:
        return answer, await answer.read()


def theirs(page: bytes) -> set[str]:
    """The series of the exporters on a page."""
    return {line for line in page.decode().splitlines() if line[:2] in ("n{", "a{")}


async def test_the_page_is_the_text_format_for_everybody(client: Client) -> None:
    """Whatever Accept says; and complete."""
    answer, page = await asked(client, "/metrics", Accept="application/openmetrics-text")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == TEXT_FORMAT == "text/plain; version=0.0.4; charset=utf-8"
    assert "Content-Encoding" not in answer.headers
    assert theirs(page) == {
        f'{name}{{qube="{qube}",exporter="{exporter}"}} 1'
        for qube in ("work", "personal")
        for name, exporter in (("n", "node"), ("a", "app"))
    }
    assert page.endswith(b"\n")


@pytest.mark.parametrize(
    ("query", "count", "gauges"),
    [
        ("?qube=work", 2, 2),
        ("?qube=work&qube=personal", 4, 4),
        ("?exporter=node", 2, 2),
        ("?qube=work&exporter=node", 1, 1),
        ("?exporter=node&exporter=app&qube=personal", 2, 2),
    ],
)
async def test_the_page_can_be_narrowed(client: Client, query: str, count: int, gauges: int) -> None:
    """Exporters that were not asked for have no gauges either: they are not down."""
    _, page = await asked(client, "/metrics" + query)
    assert len(theirs(page)) == count
    assert len(re.findall(rb"^qubes_proxy_exporter_up", page, re.MULTILINE)) == gauges


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?qube=vault", "no qube 'vault' is configured"),
        ("?exporter=x%0Ay", r"no exporter 'x\ny' is configured"),
        ("?target=work", "no parameter 'target'"),
    ],
)
async def test_a_name_nobody_configured_is_refused(client: Client, query: str, words: str) -> None:
    """An empty page would hide the mistake."""
    answer, text = await asked(client, "/metrics" + query)
    assert answer.status == 400
    assert words in text.decode()


async def test_gzip_where_it_is_asked_for(client: Client) -> None:
    """As every Prometheus does."""
    answer, page = await asked(client, "/metrics", **{"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(theirs(gzip.decompress(page))) == 4


@pytest.mark.parametrize("path", ["/", "/-/healthy", "/-/ready", "/metrics/proxy"])
async def test_the_other_paths(client: Client, path: str) -> None:
    """All there, and none of them asks a qube."""
    answer, body = await asked(client, path)
    assert answer.status == 200
    assert body
    assert b"qubes_proxy_qrexec_calls_total 0.0\n" in (await asked(client, "/metrics/proxy"))[1]


async def test_unknown_paths_and_methods(client: Client) -> None:
    """A clear answer; and no path of a stranger becomes a label."""
    answer, text = await asked(client, "/metric")
    assert (answer.status, b"/metrics" in text) == (404, True)
    async with client.post("/metrics") as refused:
        assert refused.status == 405
    _, page = await asked(client, "/metrics/proxy")
    assert b'qubes_proxy_http_requests_total{code="404",path="other"} 1.0\n' in page
    assert b'/metric"' not in page


async def test_the_proxys_own_counters(client: Client) -> None:
    """Of the process, HTTP and qrexec; kept apart from the qubes'."""
    await asked(client, "/metrics")
    _, page = await asked(client, "/metrics/proxy")
    for line in (
        b"qubes_proxy_qrexec_calls_total 2.0\n",
        b"qubes_proxy_qrexec_calls_open 2.0\n",
        b"qubes_proxy_qube_scrapes_total 2.0\n",
        b'qubes_proxy_http_requests_total{code="200",path="/metrics"} 1.0\n',
        b"# TYPE process_resident_memory_bytes gauge\n",
    ):
        assert line in page
