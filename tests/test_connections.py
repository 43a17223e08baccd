# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP connections: how many, and how long without a request; and what the log hears of bad ones."""

import asyncio
import errno
import gc
import logging
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp.web import Request

from federator import config, connections, daemon, host, web
from federator.admission import Admission, Place
from federator.connections import Connections
from federator.counters import Counters
from federator.errors import BusyError
from federator.page import Page
from federator.web import Served
from tests.helpers import Clock, soon
from tests.parts import PATIENCE_SECONDS, Daemon, Exporter, eventually, toml

Listen = Callable[[int], "asyncio.Future[tuple[Connections, int]]"]
METRICS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Prometheus-Scrape-Timeout-Seconds: 20\r\n\r\n"
HEALTHY = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def held(exporter: Callable[[bytes], Exporter]) -> Exporter:
    """The exporter of the daemon, which does not answer yet."""
    one = exporter(b"m 1\n")
    one.hold.clear()
    return one


@pytest.fixture
async def of(tmp_path: Path, held: Exporter) -> AsyncIterator[Served]:
    """What the daemon serves. A scrape may take longer than a test waits for anything."""
    host.watch_children()
    text = toml({"work": {"x": held.port}}, transport="local", scrape='timeout = "60s"')
    of = Served.of(config.parse(text, tmp_path / "x.toml"), Counters())
    yield of
    await of.fleet.close()


@pytest.fixture
async def served(of: Served) -> AsyncIterator[Callable[..., "asyncio.Task[Connections]"]]:
    """Makes a listening daemon of at most so many connections."""
    runner = daemon.runner_of(of)
    await runner.setup()
    assert runner.server is not None
    made: list[Connections] = []

    async def start(most: int) -> Connections:
        assert runner.server is not None
        made.append(Connections(runner.server, most))
        await made[-1].listen("127.0.0.1", 0)
        return made[-1]

    yield lambda most=100: asyncio.create_task(start(most))
    for one in made:
        await one.close(0.5)
    await runner.cleanup()


async def connected(to: Connections) -> Stream:
    """A client."""
    return await asyncio.open_connection(*to.addresses[0])


async def healthy(stream: Stream) -> bool:
    """Ask, and see whether there is an answer."""
    reader, writer = stream
    writer.write(HEALTHY)
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    return head.startswith(b"HTTP/1.1 200")


async def is_cut(stream: Stream) -> bool:
    """Has the other end closed it? Waits for that."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await stream[0].read() == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHo"], ids=["silent", "half-sent"])
async def test_a_connection_without_a_request_is_cut(
    served: Callable[..., "asyncio.Task[Connections]"], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """It would hold a file descriptor for ever."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    listening = await served()
    stream = await connected(listening)
    stream[1].write(said)
    assert await is_cut(stream)
    await asyncio.to_thread(eventually, "it is gone", lambda: len(listening) == 0)
    stream[1].close()


async def test_a_flood_of_connections_does_not_make_another_wait(
    served: Callable[..., "asyncio.Task[Connections]"], caplog: pytest.LogCaptureFixture
) -> None:
    """
    More may wait than asyncio lets wait, since the system drops what is too many, whose client waits a second then; and
    most of the flood is closed at once, without taking the place of anybody.
    """
    listening = await served()
    flood = []
    for _ in range(400):  # while the event loop does something else
        flood.append(socket.socket())
        flood[-1].settimeout(0)
        with suppress(BlockingIOError):
            flood[-1].connect(listening.addresses[0])
    assert _waiting(listening.addresses[0][1]) == 400
    another = await asyncio.open_connection(*listening.addresses[0], local_addr=("127.0.0.2", 0))
    assert await healthy(another)
    another[1].close()
    for one in flood:
        one.close()
    (record,) = [record for record in caplog.records if "too many connections" in record.message]
    assert vars(record)["client"] == "127.0.0.1"
    await asyncio.to_thread(eventually, "they are gone", lambda: len(listening) == 0)


async def test_a_lack_of_file_descriptors_is_told_now_and_then(
    served: Callable[..., "asyncio.Task[Connections]"],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is accepted for a moment, and then it goes on."""
    monkeypatch.setattr("federator.door.PAUSE_SECONDS", 0.05)
    listening = await served()
    accept, failures = socket.socket.accept, iter(range(3))

    def fail(self: socket.socket) -> tuple[socket.socket, object]:
        if next(failures, None) is not None:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", fail)
    stream = await connected(listening)
    assert await healthy(stream)
    assert [record.message for record in caplog.records] == ["no connection can be accepted for a moment"]
    stream[1].close()


def _waiting(port: int) -> int:
    """Connections that wait to be accepted, by /proc/net/tcp; 0A is the state of a socket that listens."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    (queues,) = [queues for _, local, _, state, queues, *_ in fields if (local[-4:], state) == (f"{port:04X}", "0A")]
    return int(queues.partition(":")[2], 16)


@pytest.mark.parametrize("framing", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
async def test_the_body_of_a_request_is_not_waited_for(
    served: Callable[..., "asyncio.Task[Connections]"], monkeypatch: pytest.MonkeyPatch, framing: str
) -> None:
    """The answer comes at once, and then the connection ends: nobody keeps it by sending a body that nobody wants."""
    clock = Clock(monkeypatch)
    listening = await served()
    silent = await connected(listening)
    silent_is_cut = asyncio.create_task(is_cut(silent))
    reader, writer = stream = await connected(listening)
    writer.write(HEALTHY.replace(b"\r\n\r\n", b"\r\n%s\r\n\r\n5\r\nfirst" % framing.encode()))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readuntil(b"is healthy.\n")
    assert await is_cut(stream)
    assert not silent_is_cut.done()
    clock.advance(connections.HEAD_SECONDS)
    assert await silent_is_cut
    for one in (stream, silent):
        one[1].close()


@pytest.mark.slow
async def test_a_connection_is_kept_between_requests_for_a_while(
    served: Callable[..., "asyncio.Task[Connections]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the time for a head, as scrapers need it; then it is cut. Half a second request is cut earlier."""
    clock = Clock(monkeypatch)
    listening = await served()
    one, other = await connected(listening), await connected(listening)
    for _ in range(3):
        assert await healthy(one)
        assert await healthy(other)
        clock.advance(connections.IDLE_SECONDS - 1.0)
    other[1].write(b"GET /")
    assert await healthy(one)
    assert await healthy(one), "the half request has come by now"
    clock.advance(connections.HEAD_SECONDS)
    assert await is_cut(other)
    assert await healthy(one)
    clock.advance(connections.IDLE_SECONDS)
    assert await is_cut(one)
    for _, writer in (one, other):
        writer.close()


async def test_where_there_are_too_many_the_longest_idle_goes(
    served: Callable[..., "asyncio.Task[Connections]"],
) -> None:
    """A scraper that comes always finds a place, unless all are being answered."""
    listening = await served(3)
    first, second, third = [await connected(listening) for _ in range(3)]
    for stream in (first, second, third, first):
        assert await healthy(stream)
    fourth = await connected(listening)
    assert await healthy(fourth)
    assert len(listening) == 3
    assert await is_cut(second)
    assert await healthy(first)
    for _, writer in (first, second, third, fourth):
        writer.close()


async def test_a_connection_that_is_being_answered_stays(
    served: Callable[..., "asyncio.Task[Connections]"], held: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all are, the new one goes; and the time without a request does not run."""
    clock = Clock(monkeypatch)
    listening = await served(1)
    busy = await connected(listening)
    busy[1].write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Prometheus-Scrape-Timeout-Seconds: 20\r\n\r\n")
    await asyncio.to_thread(eventually, "its exporter is asked", lambda: held.requests)
    new = await connected(listening)
    assert await is_cut(new)
    clock.advance(connections.HEAD_SECONDS)  # less than the request has
    await asyncio.sleep(0.1)
    held.hold.set()
    assert (await busy[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    for _, writer in (busy, new):
        writer.close()


async def test_no_address_takes_all_places(
    served: Callable[..., "asyncio.Task[Connections]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client that opens many connections loses its own, and no other client's."""
    monkeypatch.setattr(connections, "MAX_PER_ADDRESS", 3)
    listening = await served(100)
    host_name, port = listening.addresses[0]
    other = await asyncio.open_connection(host_name, port, local_addr=("127.0.0.2", 0))
    assert await healthy(other)
    greedy = [await connected(listening) for _ in range(10)]
    assert await healthy(greedy[-1])
    assert await is_cut(greedy[0])
    assert len(listening) == 4
    assert await healthy(other)
    for _, writer in (*greedy, other):
        writer.close()


async def test_a_crowd_does_not_keep_a_new_client_out(
    served: Callable[..., "asyncio.Task[Connections]"], held: Exporter
) -> None:
    """Where all connections are being answered, the client with the most of them loses one."""
    listening = await served(3)
    host_name, port = listening.addresses[0]
    crowd = [await connected(listening) for _ in range(2)]
    other = await asyncio.open_connection(host_name, port, local_addr=("127.0.0.2", 0))
    for number, (_, writer) in enumerate((*crowd, other)):
        writer.write(METRICS)
        await asyncio.to_thread(eventually, "it is being answered", lambda: listening.busy > number)  # noqa: B023
    new = await asyncio.open_connection(host_name, port, local_addr=("127.0.0.3", 0))
    assert await healthy(new)
    assert await is_cut(crowd[1])
    held.hold.set()
    for reader, _ in (crowd[0], other):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    for _, writer in (*crowd, other, new):
        writer.close()


async def test_requests_that_come_together_are_answered_one_after_the_other(
    served: Callable[..., "asyncio.Task[Connections]"],
) -> None:
    """However the network cuts them."""
    listening = await served()
    reader, writer = await connected(listening)
    for pieces in ([HEALTHY * 5], [bytes([one]) for one in HEALTHY * 3], [HEALTHY + HEALTHY[:7], HEALTHY[7:]]):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        for _ in range(b"".join(pieces).count(b"GET")):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"healthy.\n")
    writer.close()


async def test_one_request_of_a_connection_is_in_hand() -> None:
    """The HTTP library has no more of what comes behind it: aiohttp 3.8 would keep all of it."""
    inner = Mock(asyncio.Protocol)
    connection = connections.Connection(inner, Connections(lambda: inner))
    connection.connection_made(Mock(asyncio.Transport, **{"is_closing.return_value": False}))

    def passed_on() -> bytes:
        return b"".join(call.args[0] for call in inner.data_received.call_args_list)

    connection.data_received(HEALTHY * 2)
    connection.data_received(METRICS[:7])
    connection.data_received(METRICS[7:])
    for said in (HEALTHY, HEALTHY + HEALTHY, HEALTHY + HEALTHY + METRICS):
        assert passed_on() == said
        connection.request_begins()
        connection.request_ends()
        await asyncio.sleep(0)
    connection.connection_lost(None)


@pytest.mark.parametrize("behind", [b"", b"G", HEALTHY * 3])
async def test_a_client_that_is_gone_gives_its_place_back(
    served: Callable[..., "asyncio.Task[Connections]"], of: Served, held: Exporter, behind: bytes
) -> None:
    """What it asked for is of no more use, whatever came behind it; an honest scraper finds a place at once."""
    listening = await served()
    gone = [await connected(listening) for _ in range(40)]
    for _, writer in gone:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Prometheus-Scrape-Timeout-Seconds: 600\r\n\r\n")
        writer.write(behind)
    await asyncio.to_thread(eventually, "the exporter is asked", lambda: held.requests)
    for _, writer in gone:
        writer.transport.abort()
    await asyncio.to_thread(eventually, "they are gone", lambda: len(listening) == 0)
    await soon("their places are free", lambda: len(of.admission) == 0)
    held.hold.set()
    honest = await connected(listening)
    honest[1].write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await honest[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    honest[1].close()


async def test_requests_for_the_same_page_share_a_place(
    served: Callable[..., "asyncio.Task[Connections]"], of: Served, held: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one moment; and others do not."""
    monkeypatch.setattr(web, "SHARE_SECONDS", 1e9)  # it is one moment
    listening = await served()
    clients = [await connected(listening) for _ in range(4)]
    for (_, writer), said in zip(clients, [METRICS] * 3 + [METRICS.replace(b" HTTP", b"?qube=work HTTP")], strict=True):
        writer.write(said)
    await soon("all are being answered", lambda: listening.busy == 4)
    assert len(of.admission) == 2
    held.hold.set()
    for reader, writer in clients:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.slow
def test_requests_whose_answers_are_not_read_cost_no_memory(
    exporter: Callable[[bytes], Exporter], tmp_path: Path
) -> None:
    """One connection sends 20 MB of requests and reads nothing: it is ended."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    with Daemon(folder, toml({"work": {"x": exporter(b"m 1\n").port}}, transport="local")) as proxy:
        assert proxy.get().status == 200
        before = proxy.memory()
        with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
            sock.settimeout(1.0)
            sent = 0
            with suppress(TimeoutError, ConnectionError):
                while sent < 20_000_000:
                    sent += sock.send(HEALTHY * 1000)
            for _ in range(5):
                assert proxy.get().status == 200
            assert proxy.memory() - before < 20_000_000
            assert sent < 20_000_000, "the daemon reads no more of it"


def counted(proxy: Daemon) -> dict[str, int]:
    """How many requests the daemon says it had: bad ones, and those of /-/healthy that were answered."""
    page = proxy.get("/metrics/proxy").text
    answered = re.findall(r'^qubes_proxy_http_requests_total{.*path="/-/healthy"} (\d+)', page, re.MULTILINE)
    (bad,) = re.findall(r"^qubes_proxy_http_bad_requests_total (\d+)", page, re.MULTILINE)
    return {"bad": int(bad), "answered": sum(map(int, answered))}


@pytest.mark.slow
def test_requests_that_never_reach_a_handler_are_counted(exporter: Callable[[bytes], Exporter], tmp_path: Path) -> None:
    """Half of one is, a connection without a byte and whole requests are not."""
    with Daemon(tmp_path, toml({"work": {"x": exporter(b"m 1\n").port}}, transport="local")) as proxy:
        for said, bad in ((b"", 0), (b"GET / HT", 1), (HEALTHY + b"GET", 2), (HEALTHY, 2)):
            expected = {"bad": bad, "answered": counted(proxy)["answered"] + said.count(HEALTHY)}
            with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
                sock.sendall(said)
                if HEALTHY in said:
                    sock.recv(1000)
            eventually("it is counted", partial(lambda wanted: counted(proxy) == wanted, expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    "request_text",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: abc\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /\x1b[2J\x00 HTTP/1.1\r\n\r\n",
        b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: deflate\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=["a length that is none", "TLS", "control characters", "a compressed body that is none", "a URL that is none"],
)
def test_bad_requests_are_one_line_without_a_traceback(
    exporter: Callable[[bytes], Exporter], tmp_path: Path, request_text: bytes
) -> None:
    """Anybody on the network could fill the log."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    with Daemon(folder, toml({"work": {"x": exporter(b"m 1\n").port}}, transport="local")) as proxy:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", proxy.port)) as sock:
                sock.sendall(request_text)
                sock.settimeout(PATIENCE_SECONDS)
                with suppress(ConnectionResetError):
                    # Some versions of the HTTP library end the connection; and a body that nobody needs is not read.
                    assert re.match(rb"HTTP/1\.. (400|200) |$", sock.recv(1000))
        assert proxy.get("/-/healthy").status == 200
        # A body that nobody needs is bad after its request was answered.
        eventually(
            "each is counted", lambda: {"bad": 50}.items() <= counted(proxy).items() or counted(proxy)["answered"] == 51
        )
        assert "Traceback" not in proxy.log
        assert proxy.log.count("a request that is no HTTP") <= 1
        assert proxy.log.count("\n") <= 3
        assert proxy.log.replace("\n", "").isprintable()


@pytest.mark.slow
def test_tls_on_the_plain_port_is_one_line(daemon: Callable[..., Daemon]) -> None:
    """`scheme: https` in Prometheus was "no HTTP", or not told at all; the client hears that this is HTTP."""
    proxy = daemon({"work": {"node": 9100}})
    for _ in range(3):
        with (
            pytest.raises(ssl.SSLError),
            socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2]))) as sock,
            ssl.create_default_context().wrap_socket(sock, server_hostname="localhost"),
        ):
            pass
    assert proxy.log.count('level=warn msg="TLS on a plain port; ') == 1
    assert "client=127.0.0.1" in proxy.log
    assert "no HTTP" not in proxy.log


def test_a_bug_of_ours_is_not_taken_for_a_bad_request() -> None:
    """Its traceback is logged each time."""
    one = connections.BadRequestFilter()
    for error in (ZeroDivisionError("x"), ValueError("x"), AssertionError("x")) * 2:
        record = logging.makeLogRecord({"msg": "Error handling request"})
        record.exc_info = (type(error), error, None)
        assert one.filter(record)
        assert record.exc_info is not None


async def test_the_end_waits_for_answers_that_are_being_made(
    served: Callable[..., "asyncio.Task[Connections]"], held: Exporter
) -> None:
    """Those are sent whole; new connections are refused meanwhile."""
    listening = await served()
    address = listening.addresses[0]
    busy = [await connected(listening) for _ in range(3)]
    for _, writer in busy:
        writer.write(METRICS)
    await soon("their exporter is asked", lambda: held.requests)
    closing = asyncio.create_task(listening.close(PATIENCE_SECONDS))
    await asyncio.sleep(0.1)
    assert not closing.done()
    with pytest.raises(OSError, match="onnect"):
        await asyncio.open_connection(*address)
    held.hold.set()
    for reader, writer in busy:
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'm{qube="work",exporter="x"} 1\n' in answer
        writer.close()
    await closing
    assert len(listening) == 0


async def test_the_end_is_bounded(served: Callable[..., "asyncio.Task[Connections]"], held: Exporter) -> None:
    """A connection whose answer is not there in time is cut, and so are those without a request."""
    listening = await served()
    busy, idle, half = [await connected(listening) for _ in range(3)]
    busy[1].write(METRICS)
    half[1].write(b"GET /")
    await soon("its exporter is asked", lambda: held.requests)
    await listening.close(0.1)
    for stream in (busy, idle, half):
        assert await is_cut(stream)
        stream[1].close()
    await soon("all are gone", lambda: len(listening) == 0)


async def test_connections_without_a_request_do_not_hold_up_the_end(
    served: Callable[..., "asyncio.Task[Connections]"],
) -> None:
    """They are closed at once."""
    listening = await served()
    idle, half = [await connected(listening) for _ in range(2)]
    assert await healthy(idle)
    half[1].write(b"GET /")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await listening.close(1000.0)
    for stream in (idle, half):
        assert await is_cut(stream)
        stream[1].close()


async def test_a_head_that_comes_slowly_is_cut(
    served: Callable[..., "asyncio.Task[Connections]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte does not give it more time: it would hold a file descriptor for ever."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1000.0)
    listening = await served()
    slow = await connected(listening)
    for byte in HEALTHY[:5]:
        slow[1].write(bytes([byte]))
        other = await connected(listening)
        assert await healthy(other), "the byte has come by now"
        other[1].close()
        clock.advance(connections.HEAD_SECONDS / 4)
    assert await is_cut(slow)
    slow[1].close()


@pytest.mark.parametrize(("path", "status"), [("/none", 404), ("/metrics?x=y", 400), ("/metrics/proxy", 500)])
async def test_a_connection_serves_on_after_a_failure(
    served: Callable[..., "asyncio.Task[Connections]"], monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    """Whatever the answer was, it is made: the connection is not busy, and takes its next request, or is closed."""
    monkeypatch.setattr(Counters, "page", lambda _: 1 / 0)
    listening = await served()
    stream = await connected(listening)
    stream[1].write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE_SECONDS):
        head = await stream[0].readuntil(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        if status == 500:  # the HTTP library closes it
            await stream[0].read()
        else:
            await stream[0].readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
            assert await healthy(stream)
        await listening.close(1000.0)
    stream[1].close()


@pytest.mark.parametrize(
    ("left", "most"), [(10, 10), (1000, 12), (0, 4), (-100, 4)], ids=["as many as are left", "enough", "none", "less"]
)
async def test_the_limit_follows_the_file_descriptors_that_are_left(
    served: Callable[..., "asyncio.Task[Connections]"],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    left: int,
    most: int,
) -> None:
    """Up to MAX_CONNECTIONS. However few are left, a scraper and a person get through, and the log says what to do."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 12)
    listening = await served()
    listening.limit(left)
    clients = [await connected(listening) for _ in range(20)]
    assert await healthy(clients[-1])
    await soon("the others are cut", lambda: len(listening) == most)
    assert ("raise LimitNOFILE= of the unit" in caplog.text) == (left < connections.LEAST_CONNECTIONS)
    for _, writer in clients:
        writer.close()


async def test_a_lower_limit_is_for_the_connections_that_there_are(
    served: Callable[..., "asyncio.Task[Connections]"], held: Exporter
) -> None:
    """A reload may leave fewer file descriptors: the longest idle ones go, and one that is being answered stays."""
    listening = await served()
    clients = [await connected(listening) for _ in range(10)]
    for stream in clients[1:]:
        assert await healthy(stream)
    clients[0][1].write(METRICS)
    await soon("its exporter is asked", lambda: held.requests)
    listening.limit(4)
    for stream in clients[1:7]:
        assert await is_cut(stream)
    assert len(listening) == 4
    assert await healthy(clients[-1])
    held.hold.set()
    assert await healthy(clients[0])
    for _, writer in clients:
        writer.close()


async def test_the_end_lets_an_answer_out_that_was_just_made(
    served: Callable[..., "asyncio.Task[Connections]"], held: Exporter
) -> None:
    """The HTTP library sends a short answer only when its handler is over."""
    held.status = 404
    listening = await served()
    reader, writer = await connected(listening)
    writer.write(f"GET /forward?target=work&port={held.port} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await soon("its exporter is asked", lambda: held.requests)
    closing = asyncio.create_task(listening.close(PATIENCE_SECONDS))
    await asyncio.sleep(0)
    held.hold.set()
    assert (await reader.read()).startswith(b"HTTP/1.1 502 ")
    await closing
    writer.close()


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/metrics", "/forward?target=work&port={port}"])
async def test_a_page_whose_client_is_gone_is_let_go(
    served: Callable[..., "asyncio.Task[Connections]"], held: Exporter, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """At once: the exception of a broken connection held it until the garbage collector came, which may take hours."""
    encode_it, is_reset = web.encode, False

    async def reset_when_encoded(request: Request, *words: Any) -> Any:
        encoded = await encode_it(request, *words)
        if is_reset:
            assert request.transport is not None
            request.transport.abort()
        return encoded

    monkeypatch.setattr(web, "encode", reset_when_encoded)
    held.body = b"".join(b'm{number="%d",filler="%s"} 1\n' % (number, b"x" * 600) for number in range(15_000))
    held.hold.set()
    listening = await served()

    async def ask() -> None:
        reader, writer = await connected(listening)
        words = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        writer.write(words % path.format(port=held.port).encode())
        with suppress(ConnectionError):
            assert bool(await reader.read()) != is_reset
        writer.close()
        await asyncio.to_thread(eventually, "it is gone", lambda: len(listening) == 0)

    await ask()
    is_reset = True
    gc.collect()
    gc.disable()
    try:
        before = _bytes_of_large_texts()
        for _ in range(3):
            await ask()
        await soon("no page is left", lambda: _bytes_of_large_texts() <= before + len(held.body))
    finally:
        gc.enable()


@pytest.mark.slow
async def test_a_page_that_is_refused_is_let_go(
    served: Callable[..., "asyncio.Task[Connections]"], held: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not with the connection, which is kept: the exception of the refusal held it."""
    held.body = b"".join(b'm{number="%d",filler="%s"} 1\n' % (number, b"x" * 600) for number in range(15_000))
    held.hold.set()
    listening = await served()
    reader, writer = await connected(listening)

    async def asked() -> bytes:
        writer.write(METRICS)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        await reader.readexactly(length)
        return head.partition(b"\r\n")[0]

    assert await asked() == b"HTTP/1.1 200 OK"
    resize, plain, made = Admission.resize, Page.plain, []

    async def noted(self: Page) -> Sequence[bytes]:
        pieces = await plain(self)
        made.append(sum(map(len, pieces)))
        return pieces

    def refuse(self: Admission, place: Place, size: int, network: str) -> None:
        resize(self, place, size, network)
        if size in made:
            raise BusyError

    monkeypatch.setattr(Page, "plain", noted)
    monkeypatch.setattr(Admission, "resize", refuse)
    gc.collect()
    gc.disable()
    try:
        before = _bytes_of_large_texts()
        for _ in range(2):
            assert await asked() == b"HTTP/1.1 503 Service Unavailable"
        assert len(made) == 2
        await soon("no page is left", lambda: _bytes_of_large_texts() <= before + len(held.body))
    finally:
        gc.enable()
        writer.close()


def _bytes_of_large_texts() -> int:
    """All that there are in this process."""
    texts = {
        id(text): len(text)
        for one in gc.get_objects()
        for text in gc.get_referents(one)
        if isinstance(text, bytes) and len(text) > 100_000
    }
    return sum(texts.values())
