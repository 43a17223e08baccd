# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP side, asked by a client, over two local qubes."""

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient
from aiohttp.web import HTTPBadRequest, StreamResponse
from multidict import MultiDict

from federator.page import Page
from federator.text.content_type import TEXT_FORMAT
from federator.unexpected import Unexpected
from federator.web import SERVED, Served, wanted
from tests.helpers import soon, target
from tests.parts import PATIENCE_SECONDS, Exporter, eventually, free_port, toml

if TYPE_CHECKING:
    Client = TestClient[Any, Any]
else:
    Client = TestClient  # of aiohttp 3.8, which has no parameters


Serve = Callable[[str], Awaitable[Client]]


@pytest.fixture
async def client(serve: Serve, exporter: Callable[[bytes], Exporter]) -> Client:
    """A client of a daemon with two qubes and two exporters."""
    ports = {"node": exporter(b"n 1\n").port, "app": exporter(b"a 1\n").port}
    return await serve(toml({"work": ports, "personal": {**ports, "extra": free_port()}}, transport="local"))


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


async def test_an_exporter_that_is_not_for_the_page(serve: Serve, exporter: Callable[[bytes], Exporter]) -> None:
    """It is asked by its name only; and who sees the rest sees the page as whole."""
    slow = exporter(b"slow 1\n")
    text = toml({"work": {"node": exporter(b"n 1\n").port, "slow": slow.port}}, transport="local")
    text = text.replace(f'"slow" = {slow.port}', f'"slow" = {{ port = {slow.port}, page = false }}')
    client = await serve(text)
    for query in ("", "?qube=work"):
        page = (await asked(client, "/metrics" + query))[1]
        assert b'n{qube="work",exporter="node"} 1\n' in page
        assert b"slow" not in page
    assert client.app[SERVED].scraper.last is not None
    assert not slow.requests
    assert b"page = false: for /forward" in (await asked(client, "/"))[1]
    assert b'slow{qube="work",exporter="slow"} 1\n' in (await asked(client, "/metrics?exporter=slow"))[1]
    assert (await asked(client, f"/forward?target=work&port={slow.port}"))[1] == b"slow 1\n"
    assert b'"exporter": "slow"' in (await asked(client, "/sd"))[1]


@pytest.mark.parametrize(
    ("query", "count", "gauges"),
    [
        ("?qube=work", 2, 2),
        ("?qube=work&qube=personal", 4, 5),
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
        ("?qube=vault", "no qube 'vault' is configured; known here: personal, work"),
        ("?exporter=x%0Ay", r"no exporter 'x\ny' is configured; known here: app, extra, node"),
        ("?target=work", "no parameter 'target'"),
        ("?qube=work&exporter=extra", "none of these qubes has any of these exporters"),
    ],
)
async def test_a_name_nobody_configured_is_refused(client: Client, query: str, words: str) -> None:
    """An empty page would hide the mistake."""
    answer, text = await asked(client, "/metrics" + query)
    assert answer.status == 400
    assert words in text.decode()


@pytest.mark.parametrize(("count", "words"), [(20, "known here: q0, q1, q10"), (21, "the status page (/) lists them")])
def test_names_are_listed_where_a_person_can_read_them(count: int, words: str) -> None:
    """Those that a client could read on the page."""
    targets = [target(f"q{number}") for number in range(count)]
    with pytest.raises(HTTPBadRequest) as refused:
        wanted(MultiDict(qube="q"), targets, lambda _: False)
    assert f"no qube 'q' is configured; {words}" in (refused.value.text or "")


async def test_forward_refuses_parameters_that_it_does_not_know(client: Client) -> None:
    """As /metrics does; one of them may have been meant to narrow the answer."""
    answer, text = await asked(client, "/forward?target=work&port=9100&exporter=node")
    assert answer.status == 400
    assert b"no parameter 'exporter'" in text


async def test_gzip_where_it_is_asked_for(client: Client) -> None:
    """As every Prometheus does."""
    answer, page = await asked(client, "/metrics", **{"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len(theirs(gzip.decompress(page))) == 4


async def test_without_memory_for_the_page_it_is_told_once(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All who share the page hear that it cannot be made; that was a traceback for each. The next one is made."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    asyncio.get_running_loop().set_exception_handler(Unexpected([]).handle)
    with monkeypatch.context() as short:
        short.setattr("federator.page.gauges", no_memory)
        answers = await asyncio.gather(*[asked(client, "/metrics") for _ in range(5)])
    assert [answer.status for answer, _ in answers] == [503] * 5
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage().startswith("memory is short") for record in told] == [True]
    assert (await asked(client, "/metrics"))[0].status == 200


async def test_gzip_without_a_thread(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no thread to compress in, the page goes out as it is."""

    async def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("federator.page.asyncio.to_thread", refuse)
    answer, page = await asked(client, "/metrics", **{"Accept-Encoding": "gzip"})
    assert (answer.status, "Content-Encoding" in answer.headers) == (200, False)
    assert len(theirs(page)) == 4


@pytest.mark.parametrize("path", ["/", "/-/healthy", "/-/ready", "/metrics/proxy"])
async def test_the_other_paths(client: Client, path: str) -> None:
    """All there, and none of them asks a qube."""
    answer, body = await asked(client, path)
    assert answer.status == 200
    assert body
    assert b"qubes_proxy_qrexec_calls_total 0.0\n" in (await asked(client, "/metrics/proxy"))[1]


async def test_head_is_get_without_a_body(client: Client) -> None:
    """And leaves the connection as it was: what comes next on it is understood."""
    head = await client.head("/metrics")
    assert (head.status, await head.read()) == (200, b"")
    page = await client.get("/metrics")
    assert (page.status, len(await page.read()) > 100) == (200, True)
    assert page.headers["Content-Type"] == head.headers["Content-Type"]


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


@pytest.mark.slow
async def test_a_scraper_that_never_reads_is_cut_off(
    serve: Serve, exporter: Callable[[bytes], Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page would stay in memory for ever; another scraper does not notice."""
    monkeypatch.setattr("federator.web.SEND_SECONDS", 0.3)
    large = exporter(b"".join(b'm{a="%s%d"} 1\n' % (b"x" * 4000, number) for number in range(3000)))
    client = await serve(toml({"work": {"large": large.port}}, transport="local", scrape='timeout = "60s"'))
    served: Served = client.app[SERVED]
    reader, writer = await asyncio.open_connection(client.host, client.port, limit=1024)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await asyncio.to_thread(eventually, "the exporter is asked", lambda: large.requests)
    await asyncio.to_thread(eventually, "the reader is cut off", lambda: len(served.admission) == 0)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await reader.readexactly(100_000_000)
    writer.close()
    assert len((await asked(client, "/metrics"))[1]) > 12_000_000


@pytest.mark.parametrize("path", ["/metrics/proxy", "/sd", "/discover"])
async def test_what_asks_no_qube_is_sent_for_a_while_too(
    client: Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """It was sent until the connection was cut as an idle one; and while it is sent, it takes no place of a scrape."""
    served: Served = client.app[SERVED]
    sending, write = asyncio.Event(), StreamResponse.write

    async def unread(self: StreamResponse, data: bytes) -> None:
        await write(self, data)
        sending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(StreamResponse, "write", unread)
    monkeypatch.setattr("federator.web.SEND_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await sending.wait()
        assert (len(served.looks), len(served.admission)) == (1, 0)
        with suppress(ConnectionError):
            await reader.read()
    await soon("its place is free", lambda: not len(served.looks))
    writer.close()


async def test_a_page_of_unknown_size_is_refused_before_it_is_made(
    serve: Serve, exporter: Callable[[bytes], Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first scrape, and for an exporter that is not for the page: it was made beside those being sent."""
    ports = {name: exporter(b'm{filler="%s"} 1\n' % (b"x" * 3000)).port for name in ("node", "own")}
    text = toml({"work": ports}, transport="local")
    text = text.replace(f'"own" = {ports["own"]}', f'"own" = {{ port = {ports["own"]}, page = false }}')
    client = await serve(text)
    served: Served = client.app[SERVED]
    made: list[Page] = []
    plain = Page.plain

    async def noted(self: Page) -> Sequence[bytes]:
        made.append(self)
        return await plain(self)

    monkeypatch.setattr(Page, "plain", noted)
    served.admission.most_bytes = 30_000
    with served.admission.place("another", "page", 27_000):
        for query in ("", "?exporter=own"):
            answer, body = await asked(client, "/metrics" + query)
            assert (answer.status, b"memory" in body) == (503, True)
    assert not made
    for query in ("", "?exporter=own"):
        assert (await asked(client, "/metrics" + query))[0].status == 200


async def test_the_pages_of_one_client_are_made_one_after_the_other(
    serve: Serve, exporter: Callable[[bytes], Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that asked for twenty pages at one time took the time in which another's page was to be made."""
    ports = {f"e{number}": exporter(b"m 1\n").port for number in range(4)}
    client = await serve(toml({"work": ports}, transport="local"))
    held, made, plain = asyncio.Event(), 0, Page.plain
    collected: list[str] = []
    making_for = Served.making_for

    def noted(self: Served, address: str) -> asyncio.Lock:
        collected.append(address)
        return making_for(self, address)

    monkeypatch.setattr(Served, "making_for", noted)

    async def held_up(self: Page) -> Sequence[bytes]:
        nonlocal made
        made += 1
        await held.wait()
        return await plain(self)

    monkeypatch.setattr(Page, "plain", held_up)

    async def scrape(exporter_name: str, address: str) -> bytes:
        reader, writer = await asyncio.open_connection(client.host, client.port, local_addr=(address, 0))
        head = f"GET /metrics?exporter={exporter_name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        try:
            return await reader.read()
        finally:
            writer.close()

    scrapes = [asyncio.create_task(scrape(f"e{number}", "127.0.0.1")) for number in range(3)]
    await soon("all are to be made", lambda: len(collected) == 3)
    assert made == 1
    scrapes.append(asyncio.create_task(scrape("e3", "127.0.0.2")))
    await soon("the other client's is made", lambda: made == 2)
    held.set()
    assert all(b"\nm{" in page for page in await asyncio.gather(*scrapes))


async def test_fifty_scrapers_at_once(serve: Serve, exporter: Callable[[bytes], Exporter]) -> None:
    """All share one asking, one page and one place; those that want fifty different pages are told to come again."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    others = {f"down{number}": free_port() for number in range(6)}
    # Without a pace: nineteen pages that ask the slow exporter took nine seconds.
    text = toml({"work": {"slow": slow.port, **others}}, transport="local", scrape='min_interval = "0s"')
    client = await serve(text)
    served: Served = client.app[SERVED]

    async def scrape(query: str = "") -> tuple[int, bytes]:
        async with client.get("/metrics" + query) as answer:
            return answer.status, await answer.read()

    scrapes = [asyncio.create_task(scrape()) for _ in range(50)]
    await asyncio.to_thread(eventually, "the exporter is asked", lambda: slow.requests)
    parts = [[name for bit, name in enumerate(others) if number >> bit & 1] for number in range(50)]
    queries = ["?exporter=slow" + "".join(f"&exporter={name}" for name in part) for part in parts]
    different = [asyncio.create_task(scrape(query)) for query in queries]
    await asyncio.to_thread(eventually, "some are refused", lambda: sum(one.done() for one in different) >= 30)
    assert len(slow.requests) == 1
    slow.hold.set()
    answers = await asyncio.gather(*scrapes)
    assert [status for status, _ in answers] == [200] * 50
    assert len({page for _, page in answers}) == 1
    assert {status for status, _ in await asyncio.gather(*different)} == {200, 503}
    assert (len(served.admission), len(served.pages)) == (0, 0)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"400"),
        (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"DELETE /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
    ],
)
async def test_odd_requests(client: Client, request_text: bytes, status: bytes) -> None:
    """A clear answer; the next request is served."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(request_text)
    assert (await reader.readline()).split()[1] == status
    writer.close()
    assert (await asked(client, "/metrics"))[0].status == 200


async def test_half_a_request_holds_up_nobody(client: Client) -> None:
    """Nor does somebody who goes away in the middle of a scrape."""
    connections = [await asyncio.open_connection(client.host, client.port) for _ in range(20)]
    for number, (_, writer) in enumerate(connections):
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"\r\n" * (number % 2))
    for _, writer in connections:
        writer.transport.abort()
    answer, page = await asked(client, "/metrics")
    assert (answer.status, len(theirs(page))) == (200, 4)
