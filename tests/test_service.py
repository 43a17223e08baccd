# SPDX-License-Identifier: GPL-3.0-or-later
"""vmside/ruddo.PrometheusProxy as a process, as qrexec runs it. The daemon's own wire reads its output."""

import fcntl
import gzip
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from federator.model import Answer, Endpoint
from federator.text.content_type import exposition_type
from federator.wire import Version2
from tests.helpers import SERVICE, recording, service_module
from tests.parts import MEASURED, PATIENCE_SECONDS, Exporter, eventually, free_port, raw_server, running, script

# Each of these tests starts the service.
pytestmark = pytest.mark.slow

StartService = Callable[..., "Service"]
MakeExporter = Callable[[bytes], Exporter]

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
CHUNKED = HEAD + "Transfer-Encoding: chunked\r\n\r\n"
NOT_CHUNKS = b"answer cut short, or not in chunks as it says"


class Service:
    """The service as a process."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [*script(SERVICE), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={"PATH": os.defpath, **MEASURED, **environment},
        )

    def say(self, text: bytes) -> Self:
        """Write to its stdin."""
        assert self.process.stdin
        self.process.stdin.write(text)
        return self

    def hear(self, size: int) -> bytes:
        """Read this number of bytes from its stdout, fewer only at the end."""
        assert self.process.stdout
        heard = b""
        while len(heard) < size and (piece := self.process.stdout.read(size - len(heard))):
            heard += piece
        return heard

    def ask(
        self, wire: Version2, *ports: Endpoint, milliseconds: int = 20_000, max_body: int = 1 << 20
    ) -> dict[Endpoint, Answer]:
        """Send a request of version 2; the answers by port."""
        assert self.process.stdout
        if not wire.greeted:
            self.say(wire.greeting)
            wire.receive(self.hear(3))
        self.say(wire.ask(milliseconds=milliseconds, max_body=max_body, endpoints=ports))
        answers: dict[Endpoint, Answer] = {}
        while not wire.idle:
            piece = self.process.stdout.read(1 << 16)
            assert piece, "it ended"
            answers |= {answer.endpoint: answer for answer in wire.receive(piece)}
        return answers

    def end(self, *, close: bool = True) -> tuple[int, bytes, bytes]:
        """Wait for its end; the exit status, the rest of stdout, and stderr. `close` ends its input first."""
        streams = self.process
        assert streams.stdin
        assert streams.stdout
        assert streams.stderr
        if close:
            streams.stdin.close()
        out, errors = streams.stdout.read(), streams.stderr.read()
        return streams.wait(PATIENCE_SECONDS), out, errors


@pytest.fixture
def service() -> Iterator[StartService]:
    """Starts services, and ends them with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, **environment: str) -> Service:
            started = Service(*arguments, **environment)
            stack.enter_context(started.process)
            stack.callback(started.process.kill)
            return started

        yield start


def one_answer(service: StartService, port: int, **limits: int) -> Answer:
    """The answer of a new service for one port. The service ends with status 0 after it."""
    started = service(str(port))
    answer = started.ask(Version2(), port, **limits)[port]
    assert started.end() == (0, b"", b"")
    return answer


def test_it_answers_for_every_port_at_once(service: StartService, exporter: MakeExporter) -> None:
    """A slow exporter does not delay the others, a missing one is reported at once, and the next request works too."""
    slow, fast, down = exporter(b"slow 1\n"), exporter(recording("node")), free_port()
    slow.hold.clear()
    ports = sorted([slow.port, fast.port, down])
    started, wire = service("+".join(map(str, ports))), Version2()
    started.say(wire.greeting)
    wire.receive(started.hear(3))
    started.say(wire.ask(milliseconds=20_000, max_body=1 << 20, endpoints=ports))
    first: dict[Endpoint, Answer] = {}
    while len(first) < 2:
        first |= {answer.endpoint: answer for answer in wire.receive(started.hear(1))}
    assert first[fast.port].body == recording("node")
    assert first[fast.port].status == 200
    assert first[fast.port].content_type == "text/plain; version=0.0.4"
    assert (first[down].status, first[down].body) == (0, b"Connection refused")
    slow.hold.set()
    while not wire.idle:
        first |= {answer.endpoint: answer for answer in wire.receive(started.hear(1))}
    assert first[slow.port].body == b"slow 1\n"
    assert started.ask(wire, fast.port)[fast.port].body == recording("node")
    assert started.end() == (0, b"", b"")


def test_what_the_exporter_is_asked(service: StartService, exporter: MakeExporter) -> None:
    """The service sends GET /metrics with the time limit, on a connection that ends after the answer."""
    asked = exporter(b"m 1\n")
    one_answer(service, asked.port, milliseconds=2500)
    ((path, headers),) = asked.requests
    assert path == "/metrics"
    assert headers["Host"] == f"127.0.0.1:{asked.port}"
    assert headers["X-Prometheus-Scrape-Timeout-Seconds"] == "2.500"
    assert headers["Connection"] == "close"
    assert headers["Accept"] == "text/plain;version=0.0.4,*/*;q=0.1"
    assert "Accept-Encoding" not in headers


@pytest.mark.parametrize(
    ("reply", "status", "body"),
    [
        (HEAD + "\r\nm 1\n", 200, b"m 1\n"),
        (HEAD + "Content-Length: 4\r\n\r\nm 1\nmore", 200, b"m 1\n"),
        (HEAD + "Content-Length: 9\r\n\r\nm 1\n", 0, b"answer cut short: 4 of 9 bytes"),
        (HEAD + "Transfer-Encoding: chunked\r\n\r\n2\r\nm \r\n2;x=y\r\n1\n\r\n0\r\n\r\n", 200, b"m 1\n"),
        (CHUNKED + "6\r\nm 0\r\n\r\r\n0\r\n", 200, b"m 0\r\n\r"),
        (CHUNKED + "0004 ;x\r\nm 1\n\r\n0;y\r\nTrailer: z\r\n\r\nmore", 200, b"m 1\n"),
        (CHUNKED + "0\r\n\r\n", 200, b""),
        (CHUNKED.replace("1.1", "1.0") + "4\r\nm 1\n\r\n0\r\n\r\n", 200, b"m 1\n"),
        (CHUNKED + "2\r\nm ", 0, b"answer cut short before its last chunk"),
        (CHUNKED + "7\r\nm 0\r\n\r\n", 0, b"answer cut short before its last chunk"),
        (CHUNKED + "4\r\nm 1\n\r\n", 0, b"answer cut short before its last chunk"),
        (CHUNKED, 0, b"answer cut short before its last chunk"),
        (CHUNKED + "m 1\n", 0, NOT_CHUNKS),
        (CHUNKED + "4\nm 1\n\r\n0\n\r\n", 200, b"m 1\n"),
        (CHUNKED + "4\r\nm 1\n\n0\r\n\r\n", 0, NOT_CHUNKS),
        (CHUNKED + "2\r\nm 1\r\n0\r\n\r\n", 0, NOT_CHUNKS),
        (CHUNKED + "-4\r\nm 1\n\r\n0\r\n\r\n", 0, NOT_CHUNKS),
        (CHUNKED + "\r\n0\r\n\r\n", 0, NOT_CHUNKS),
        (CHUNKED + "0000000000000004\r\nm 1\n\r\n0\r\n\r\n", 200, b"m 1\n"),
        (CHUNKED + "00000000000000004\r\nm 1\n\r\n0\r\n\r\n", 0, NOT_CHUNKS),
        (CHUNKED + "4;" + "x" * 1023 + "\r\nm 1\n\r\n0\r\n\r\n", 0, NOT_CHUNKS),
        (CHUNKED + "4;" + "x" * 2000, 0, NOT_CHUNKS),
        (HEAD + "Content-Encoding: gzip\r\n\r\n\x1f", 0, b"answer cut short in its compressed body"),
        (HEAD + "Content-Encoding: gzip\r\n\r\nm 1\n", 0, b"answered with a compressed body, which is damaged"),
        (
            HEAD + "Content-Encoding: br\r\n\r\n\xff",
            0,
            b"answered with a compressed body (br), which was not asked for",
        ),
        (HEAD + "Content-Encoding: br\r\n\r\nm 1\n", 200, b"m 1\n"),
        (
            HEAD + "Content-Encoding: gzip, zstd\r\n\r\n\xff",
            0,
            b"answered with a compressed body (gzip, zstd), which was not asked for",
        ),
        (HEAD + "Content-Encoding: UTF-8\r\n\r\nm 1\n", 200, b"m 1\n"),
        (HEAD + "Content-Length: x\r\n\r\nm 1\n", 0, b"not an HTTP answer: its Content-Length is not a length"),
        (
            HEAD + "Content-Length: 4\r\nContent-Length: 5\r\n\r\nm 1\n",
            0,
            b"not an HTTP answer: its Content-Length is not a length",
        ),
        (HEAD + "Content-Length: 4\r\nContent-Length: 4\r\n\r\nm 1\n", 200, b"m 1\n"),
        (HEAD + "Transfer-Encoding: gzip\r\n\r\nm 1\n", 0, b"not an HTTP answer: its Transfer-Encoding is not known"),
        (HEAD + "no header\r\n\r\nm 1\n", 0, b"not an HTTP answer"),
        (HEAD + ": no name\r\n\r\nm 1\n", 0, b"not an HTTP answer"),
        ("HTTP/1.1 200 OK\r\n goes on\r\n\r\nm 1\n", 0, b"not an HTTP answer"),
        (HEAD + "X: goes\r\n on: here\r\n\r\nm 1\n", 200, b"m 1\n"),
        (HEAD, 0, b"answer cut short in its head"),
        ("HTTP/1.0 200 OK\nContent-Type: text/plain\n\nm 1\n", 200, b"m 1\n"),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 1\r\n\r\n" + HEAD + "\r\nm 1\n",
            200,
            b"m 1\n",
        ),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", 101, b""),
        ("HTTP/1.1 204 No Content\r\n\r\nm 1\n", 204, b""),
        (HEAD + "X: " + "x" * 1_000_000 + "\r\n" + "Y: y\r\n" * 100_000 + "\r\nm 1\n", 200, b"m 1\n"),
        ("HTTP/1.1 404 Not Found\r\n\r\n" + "x" * 5000, 404, b"x" * 1000),
        ("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", 302, b""),
        ("HTTP/1.1 200\r\n\r\n", 200, b""),
        ("", 0, b"closed the connection without an answer"),
        ("SSH-2.0-OpenSSH_9.2\r\n", 0, b"not an HTTP answer"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", 0, b"not an HTTP answer"),
        ("HTTP/1.0 200 OK\r\nX: " + "y" * (11 << 20), 0, b"HTTP headers larger than 10485760 bytes"),
        (HEAD + "\r\n" + "x" * 2000, 0, b"body larger than 1000 bytes"),
        (
            HEAD + "Transfer-Encoding: chunked\r\n\r\n7d0\r\n" + "x" * 2000 + "\r\n0\r\n\r\n",
            0,
            b"body larger than 1000 bytes",
        ),
    ],
)
def test_what_an_exporter_may_answer(service: StartService, reply: str, status: int, body: bytes) -> None:
    """For each answer of an exporter, what the service passes on."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(reply.encode("latin-1"))

    with raw_server(answer) as port:
        got = one_answer(service, port, max_body=1000)
    assert (got.status, got.body) == (status, body)


def raw(*replies: bytes) -> Callable[[socket.socket], None]:
    """Gives each request the next of these replies, the last one again and again."""
    left = list(replies)

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return answer


def reply(content: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An answer that ends with the connection."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + content


TEXT = b"m 1\n" * 50_000


CUT = b"answer cut short in its compressed body"
DAMAGED = b"answered with a compressed body, which is damaged"


@pytest.mark.parametrize(
    ("encoding", "content", "told"),
    [
        ("gzip", gzip.compress(TEXT), TEXT),
        ("GZIP", gzip.compress(TEXT), TEXT),
        ("x-gzip", gzip.compress(TEXT), TEXT),
        ("gzip", gzip.compress(TEXT[:4]) + gzip.compress(TEXT[4:]), TEXT),
        ("deflate", zlib.compress(TEXT), TEXT),
        ("deflate", zlib.compress(TEXT)[2:-4], TEXT),
        ("gzip", gzip.compress(TEXT)[:-1], CUT),
        ("gzip", gzip.compress(TEXT)[:100], CUT),
        ("gzip", gzip.compress(TEXT) + b"x", CUT),
        ("gzip", b"", CUT),
        ("gzip", gzip.compress(TEXT)[:-8] + bytes(8), DAMAGED),
        ("gzip", b"m 1\n", DAMAGED),
        ("deflate", zlib.compress(TEXT) * 2, DAMAGED),
        ("deflate", b"\xff" * 4, DAMAGED),
    ],
)
@pytest.mark.parametrize("framing", ["connection", "length"])
def test_a_compressed_body_is_decompressed(
    service: StartService, encoding: str, content: bytes, told: bytes, framing: str
) -> None:
    """Its own end proves it whole. One that is cut or damaged is no text."""
    headers = [f"Content-Encoding: {encoding}", *([f"Content-Length: {len(content)}"] * (framing == "length"))]
    with raw_server(raw(reply(content, *headers))) as port:
        got = one_answer(service, port)
    assert (got.status, got.whole) == ((200, True) if told is TEXT else (0, False))
    assert got.body == told


# Runs a script, and says at its end which modules it loaded that take long.
LOADED = """
import sys
del sys.argv[0]
with open(sys.argv[0]) as file:
    text = file.read()
try:
    exec(compile(text, "service", "exec"), {"__name__": "__main__"})
finally:
    print(*sorted({"zlib", "urllib.parse", "typing"} & sys.modules.keys()), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("replies", "loaded"),
    [
        ([reply(b"m 1\n", "Content-Encoding: UTF-8")], b""),
        ([reply(gzip.compress(b"m 1\n"), "Content-Encoding: gzip")], b"zlib"),
        ([reply(b"", "Location: /metrics/", status="307 Temporary Redirect"), reply(b"m 1\n")], b"urllib.parse"),
    ],
)
def test_modules_are_loaded_only_where_an_exporter_needs_them(replies: list[bytes], loaded: bytes) -> None:
    """The service starts fast, and takes little memory in every qube."""
    with raw_server(raw(*replies)) as port:
        done = subprocess.run(
            ["/usr/bin/python3", "-ISE", "-c", LOADED, str(SERVICE), str(port)],
            input=b"", capture_output=True, check=False, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert done.stderr == b"\n", "at its start"
        words = ["/usr/bin/python3", "-ISE", "-c", LOADED, str(SERVICE), str(port)]
        with running(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        ) as started:
            assert started.stdin
            assert started.stdout
            assert started.stderr
            started.stdin.write(b"+2\n")
            started.stdin.write(b"?20000 1000 %d\n" % port)
            heard = b""
            while not heard.endswith(b"m 1\n"):
                heard += started.stdout.read(1)
            started.stdin.close()
            assert set(started.stderr.read().split()) - {b"typing"} == set(loaded.split())


def test_a_bomb_costs_little(service: StartService) -> None:
    """One that decompresses to 1 GiB is too large as soon as it is, and takes no more memory than any other body."""
    compressor = zlib.compressobj(wbits=31)
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(1 << 10)) + compressor.flush()
    with raw_server(raw(reply(bomb, "Content-Encoding: gzip"))) as port:
        started, wire = service(str(port)), Version2()
        resource.prlimit(started.process.pid, resource.RLIMIT_AS, (64 << 20, 64 << 20))
        got = started.ask(wire, port, max_body=16 << 20)[port]
        assert (got.status, got.body) == (0, b"body larger than 16777216 bytes")
        assert started.end() == (0, b"", b"")


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        (reply(b"m 1\n"), False),
        (reply(b"m 1", "Content-Length: 3"), True),
        (reply(b"3\r\nm 1\r\n0\r\n", "Transfer-Encoding: chunked"), True),
        (reply(b"m 1", "Content-Type: text/plain; x=y;whole", "Content-Length: 3"), True),
        (reply(b"m 1", "Content-Type: text/plain; x=y;whole"), False),
        (reply(b"m 1", "Content-Type:   ;whole"), False),
    ],
)
def test_the_service_says_what_is_whole(service: StartService, said: bytes, whole: bool) -> None:  # noqa: FBT001
    """Only where HTTP proves it, whatever the exporter says in its Content-Type, which comes through as it was."""
    with raw_server(raw(said)) as port:
        got = one_answer(service, port)
    assert (got.status, got.whole) == (200, whole)
    assert got.content_type == ("-" if b"Type" not in said else ";whole" if b"  " in said else "text/plain; x=y;whole")


# What the daemon of version 0.2.0 read.
OLD_HEADER = re.compile(
    rb"(?P<port>[1-9][0-9]{0,4}) (?P<status>0|[1-5][0-9]{2}) (?P<length>[0-9]{1,10}) "
    rb"(?P<seconds>[0-9]{1,6}(?:\.[0-9]{1,9})?) (?P<content_type>[ -~]+)"
)


@pytest.mark.parametrize(
    "content_type", ["text/plain; version=0.0.4", "application/openmetrics-text; version=0.0.1", ""]
)
def test_a_daemon_that_knows_no_words_understands_the_service(service: StartService, content_type: str) -> None:
    """It reads a Content-Type of the same kind, and lengths and statuses as ever."""
    headers = ["Content-Length: 4", *([f"Content-Type: {content_type}"] if content_type else [])]
    down = free_port()
    with raw_server(raw(reply(b"m 1\n", *headers))) as port:
        started = service("+".join(map(str, sorted([port, down])))).say(b"+2\n")
        assert started.hear(3) == b"=2\n"
        for asked, status, body in ((port, b"200", b"m 1\n"), (down, b"0", b"Connection refused")):
            started.say(f"?20000 1000 {asked}\n".encode())
            header = b""
            while not header.endswith(b"\n"):
                header += started.hear(1)
            match = OLD_HEADER.fullmatch(header[:-1])
            assert match
            assert (match["status"], started.hear(int(match["length"]))) == (status, body)
            told = match["content_type"].decode()
            assert exposition_type(told) == exposition_type(content_type if status != b"0" else "-")
            assert len(header) < 256
    assert started.end() == (0, b"", b"")


def test_an_exporter_on_the_other_loopback_address(service: StartService) -> None:
    """`localhost` is ::1 for some programs. Where something listens on 127.0.0.1, that is asked."""
    heard = []

    def answer(connection: socket.socket) -> None:
        heard.append(connection.recv(4096))
        connection.sendall(reply(b"m 6\n"))

    with socket.socket() as reserved:  # or another test might listen there
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        with raw_server(answer, "::1", port):
            assert one_answer(service, port).body == b"m 6\n"
            assert b"\r\nHost: [::1]:%d\r\n" % port in heard[0]
            with raw_server(raw(reply(b"m 4\n")), port=port):
                assert one_answer(service, port).body == b"m 4\n"


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/metrics/", b"/metrics/"),
        ("metrics/", b"/metrics/"),
        ("?format=prometheus#part", b"/metrics?format=prometheus"),
        ("../a/./b/../c", b"/a/c"),
        ("http://127.0.0.1:{port}/x", b"/x"),
        ("http://localhost:{port}", b"/"),
        ("HTTP://LOCALHOST:{port}/x", b"/x"),
        ("//localhost:{port}/x?y=%20z", b"/x?y=%20z"),
        ("/a b\xe9", b"/a%20b%E9"),
        ("http://127.0.0.1/x", None),
        ("http://127.0.0.1:1/x", None),
        ("https://127.0.0.1:{port}/x", None),
        ("http://example.org:{port}/x", None),
        ("http://127.0.0.2:{port}/x", None),
        ("http://[::1/x", None),
        ("http://localhost:{port}x/", None),
        ("file:///etc/passwd", None),
        ("/" + "x" * 9000, None),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_on_the_same_port(
    service: StartService, location: str, path: bytes | None, status: int
) -> None:
    """Another port is not permitted. It is told where the redirect leads, and the status says that it is one."""
    requests: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        requests.append(connection.recv(4096).split(b" ")[1])
        to = location.format(port=connection.getsockname()[1])
        moved = f"HTTP/1.1 {status} Moved\r\nLocation: {to}\r\nContent-Length: 9\r\n\r\n".encode("latin-1")
        connection.sendall(moved if len(requests) == 1 else reply(b"m 1\n"))

    with raw_server(answer) as port:
        got = one_answer(service, port)
    if path is None:
        assert (requests, got.status) == ([b"/metrics"], status)
        assert got.body == f"redirects to {location.format(port=port)}".encode()[:1024]
    else:
        assert (requests, got.status, got.body) == ([b"/metrics", path], 200, b"m 1\n")


def test_redirects_come_to_an_end(service: StartService) -> None:
    """As Prometheus follows them: nine."""
    moved = reply(b"", "Location: /again", status="302 Found")
    with raw_server(raw(*[moved] * 9, reply(b"m 1\n"))) as port:
        assert one_answer(service, port).body == b"m 1\n"
    with raw_server(raw(*[moved] * 10, reply(b"m 1\n"))) as port:
        got = one_answer(service, port)
    assert (got.status, got.body) == (302, b"redirects again and again, to /again")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", b"closed the connection without an answer: Connection reset by peer"),
        (b"HTTP/1.1 200 OK\r\n", b"answer cut short: Connection reset by peer"),
        (reply(b"m 1\n", "Content-Length: 9"), b"answer cut short: Connection reset by peer"),
    ],
)
def test_a_connection_that_breaks_is_no_exporter_that_is_not_there(
    service: StartService, said: bytes, told: bytes
) -> None:
    """Something listened, and spoke or not."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)
        if said:
            eventually("it is read", lambda: not _pending(connection))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with raw_server(answer) as port:
        got = one_answer(service, port)
    assert (got.status, got.body) == (0, told)


def _pending(connection: socket.socket) -> int:
    """How many bytes the other end has not acknowledged; on loopback, has not in its buffer."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunks_are_taken_apart_as_they_come(size: int) -> None:
    """After each piece the content is complete up to this piece, however the connection cuts the chunks."""
    wire, content = b"", [b""]  # the content after each byte of `wire`
    for chunk in (b"0\r\n\r\n", b"m 1\n" * 100, b"\r", b"\n"):
        line = b"%x;x=y\r\n" % len(chunk)
        wire += line + chunk + b"\r\n"
        done = content[-1]
        content += [done] * len(line)
        content += [done + chunk[: end + 1] for end in range(len(chunk))]
        content += [done + chunk] * len(b"\r\n")
    body, got = service_module().ChunkedBody(), b""
    for start in range(0, len(wire), size):
        got += body.feed(wire[start : start + size])
        assert got == content[min(start + size, len(wire))]
        assert not body.whole
    assert not body.feed(b"0\r\n")
    assert body.whole
    assert got == content[-1]


def test_the_work_for_chunks_grows_with_their_number() -> None:
    """Ten times as many chunks of one byte are ten times as many steps: no byte is looked at again."""

    def steps(chunks: int) -> int:
        body, events = service_module().ChunkedBody(), 0

        def count(*_: object) -> None:
            nonlocal events
            events += 1

        sys.setprofile(count)
        for _ in range(chunks):
            assert body.feed(b"1\r\nx\r\n") == b"x"
        sys.setprofile(None)
        return events

    few = steps(100)
    assert 0 < steps(1000) <= 10 * few


# Runs a script with a clock that only `recv` moves: by a second for each call. At the end it prints how often an
# exporter was read from.
CLOCK_OF_WORK = """
import runpy, socket, sys, time

calls = 0

class Socket(socket.socket):
    def recv(self, size):
        global calls
        calls += 1
        return super().recv(size)

socket.socket = Socket
time.monotonic = lambda: float(calls)
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(calls, file=sys.stderr)
"""


def test_no_exporter_is_read_from_after_the_requests_time() -> None:
    """The time is checked before each piece of work, also where many exporters send tiny chunks without an end."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(CHUNKED.encode())
        while True:
            connection.sendall(b"1\r\nx\r\n" * 1000)

    with ExitStack() as stack:
        ports = sorted(stack.enter_context(raw_server(answer)) for _ in range(8))
        words = [sys.executable, "-c", CLOCK_OF_WORK, str(SERVICE), "+".join(map(str, ports))]
        process = stack.enter_context(
            running(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        wire = Version2()
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(wire.greeting)
        process.stdin.flush()
        wire.receive(process.stdout.read(3))
        process.stdin.write(wire.ask(milliseconds=100_000, max_body=1 << 30, endpoints=ports))
        process.stdin.flush()
        answers: list[Answer] = []
        while len(answers) < len(ports):
            answers += wire.receive(process.stdout.read(1))
        process.stdin.close()
        assert process.stderr.read() == b"100\n"
    assert {answer.body for answer in answers} == {b"timed out"}


def test_a_greedy_caller_who_does_not_read_costs_bounded_memory(service: StartService) -> None:
    """The service lives with little memory: it holds 128 MiB of bodies, and the largest that are too much fail."""
    length, reached = 48 << 20, threading.Semaphore(0)

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        try:
            connection.sendall(f"{HEAD}Content-Length: {length}\r\n\r\n".encode())
            for _ in range(length >> 20):
                connection.sendall(bytes(1 << 20))
        finally:
            reached.release()

    with ExitStack() as stack:
        ports = sorted(stack.enter_context(raw_server(answer)) for _ in range(4))
        started, wire = service("+".join(map(str, ports))), Version2()
        resource.prlimit(started.process.pid, resource.RLIMIT_AS, (256 << 20, 256 << 20))
        started.say(wire.greeting)
        wire.receive(started.hear(3))
        assert started.process.stdout
        output = started.process.stdout.fileno()
        started.say(wire.ask(milliseconds=600_000, max_body=9_999_999_999, endpoints=ports))
        for _ in ports:
            assert reached.acquire(timeout=PATIENCE_SECONDS)
        answers: list[Answer] = []
        while not wire.idle:
            piece = os.read(output, 1 << 16)
            assert piece, "the service ended"
            answers += wire.receive(piece)
    assert sorted(len(answer.body) for answer in answers if answer.status == 200) == [length, length]
    assert {answer.body for answer in answers if answer.status == 0} == {
        b"body larger than the rest of 134217728 bytes for all texts"
    }


def test_heads_count_as_bodies_do(service: StartService) -> None:
    """Many exporters whose heads have one endless line cost no more memory than many with large bodies."""
    line = b"HTTP/1.1 200 OK\r\nX: " + b"x" * (9 << 20)

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(line)
        while connection.recv(4096):
            """Wait for the end."""

    with ExitStack() as stack:
        ports = sorted(stack.enter_context(raw_server(answer)) for _ in range(20))
        started, wire = service("+".join(map(str, ports))), Version2()
        resource.prlimit(started.process.pid, resource.RLIMIT_AS, (256 << 20, 256 << 20))
        started.say(wire.greeting)
        wire.receive(started.hear(3))
        started.say(wire.ask(milliseconds=20_000, max_body=1, endpoints=ports))
        told: list[bytes] = []
        while len(told) < 6:  # the others have 126 MiB
            told += [one.body for one in wire.receive(started.hear(1))]
        assert set(told) == {b"body larger than the rest of 134217728 bytes for all texts"}


def test_the_service_has_a_limit_of_its_own(service: StartService) -> None:
    """One body has 64 MiB at most, whatever the caller asks for."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(f"{HEAD}\r\n".encode())
        while True:
            connection.sendall(bytes(1 << 20))

    with raw_server(answer) as port:
        assert one_answer(service, port, max_body=9_999_999_999).body == b"body larger than 67108864 bytes"


@pytest.mark.parametrize("length", [1024, 5000])
@pytest.mark.parametrize("framing", ["end of connection", "length", "chunks"])
def test_the_body_of_an_http_error_is_cut(service: StartService, framing: str, length: int) -> None:
    """At most MAX_ERROR_BODY bytes of it are passed on, although the request allows a large body."""
    body = "x" * length
    rest = {
        "end of connection": f"\r\n{body}",
        "length": f"Content-Length: {length}\r\n\r\n{body}",
        "chunks": f"Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n",
    }[framing]

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(f"HTTP/1.1 404 Not Found\r\n{rest}".encode())

    with raw_server(answer) as port:
        got = one_answer(service, port, max_body=1 << 20)
    assert got.status == 404
    assert got.body == b"x" * 1024


def test_a_content_type_cannot_break_the_header(service: StartService) -> None:
    """One that is not printable ASCII is left out, a long one is cut."""
    for untrusted, told in ((b"text/\xffplain", "-"), (b"a\tb", "-"), (b"x" * 500, "x" * 128)):

        def answer(connection: socket.socket, untrusted: bytes = untrusted) -> None:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: " + untrusted + b"\r\n\r\nm 1\n")

        with raw_server(answer) as port:
            assert one_answer(service, port).content_type == told


@pytest.mark.parametrize("spoken", [b"", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\nm 1\n"])
def test_who_does_not_answer_in_time_is_late(service: StartService, spoken: bytes) -> None:
    """After silence, half of the headers or half of the body the reason is "timed out", and the service goes on."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(spoken)
        connection.recv(4096)
        while connection.recv(4096):
            pass

    with raw_server(answer) as port:
        late = one_answer(service, port, milliseconds=300)
    assert (late.status, late.body) == (0, b"timed out")


def test_a_drip_is_bounded_in_time(service: StartService) -> None:
    """An exporter that sends single bytes gets no more time."""

    def answer(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"H")
            if select_for(connection):
                return

    with raw_server(answer) as port:
        late = one_answer(service, port, milliseconds=300)
    assert late.status == 0


def select_for(connection: socket.socket) -> bool:
    """Wait a moment; whether the other end has closed the connection."""
    connection.settimeout(0.02)
    try:
        return connection.recv(4096) == b""
    except TimeoutError:
        return False


def test_version_1_is_upstreams(service: StartService, exporter: MakeExporter) -> None:
    """Upstream's proxy sends `+`, reads two bytes, then again and again sends `?` and reads a length and a body."""
    body = recording("process")
    started = service(str(exporter(body).port)).say(b"+\n")
    assert started.hear(2) == b"=\n"
    for _ in range(3):
        started.say(b"?\n")
        length = f"{len(body)}\n".encode()
        assert started.hear(len(length)) == length
        assert started.hear(len(body)) == body
    assert started.end() == (0, b"", b"")


def test_version_1_has_no_empty_answer(service: StartService, exporter: MakeExporter) -> None:
    """An exporter without metrics has not failed, but upstream's proxy treats a length of 0 as a failure."""
    started = service(str(exporter(b"").port)).say(b"+\n?\n")
    assert started.hear(5) == b"=\n1\n\n"
    assert started.end() == (0, b"", b"")


def test_version_1_ends_at_a_failure(service: StartService, exporter: MakeExporter) -> None:
    """Version 1 cannot report a failure in another way."""
    gone = exporter(b"gone")
    gone.status = 503
    for port, why in ((free_port(), b"Connection refused"), (gone.port, b"status 503")):
        started = service(str(port)).say(b"+\n")
        started.hear(2)
        status, out, errors = started.say(b"?\n").end(close=False)
        assert (status, out) == (9, b"")
        assert errors == b"ruddo.PrometheusProxy: no answer from port %d: %s\n" % (port, why)


@pytest.mark.parametrize(
    "argument",
    ["", "0", "09100", "65536", "99999", "9100+9100", "9256+9100", "9100+", "+9100", "9100 9256", "9100;id", "$(id)",
     "٣", "9" * 4000, "+".join(map(str, range(1, 66))), "-h", "../9100", "9100\n"],
)  # fmt: skip
def test_an_argument_that_is_no_list_of_ports(service: StartService, argument: str) -> None:
    """One line on stderr says what the argument must be, and stdout stays empty."""
    for started in (service(argument), service(QREXEC_SERVICE_ARGUMENT=argument)):
        status, out, errors = started.end(close=False)
        assert (status, out) == (3, b"")
        assert errors.count(b"\n") == 1
        assert b"the argument must be the permitted ports" in errors


def test_the_argument_may_come_in_the_environment(service: StartService) -> None:
    """The environment has it, too, when qrexec starts the service."""
    assert service(QREXEC_SERVICE_ARGUMENT="9100").say(b"+2\n").end() == (0, b"=2\n", b"")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.0\n", 4),
        (b"+3\n", 4),
        (b"\n", 4),
        (b"+2\r\n", 4),
        (b"x" * 5000, 5),
        (b"+2\n?\n", 5),
        (b"+2\n?1000 1000\n", 5),
        (b"+2\n?1000 1000 9101\n", 5),
        (b"+2\n?1000 1000 9100 9100\n", 5),
        (b"+2\n?0 1000 9100\n", 5),
        (b"+2\n?1000 1000  9100\n", 5),
        (b"+2\n?1000 1000 9100 \n", 5),
        (b"+2\n?-1 1000 9100\n", 5),
        (b"+2\n?1000 1000 9100\r\n", 5),
        (b"+2\n+2\n", 5),
        (b"+\n??\n", 5),
        (b"+2\n" + b"?" * 5000, 5),
    ],
)
def test_a_caller_who_does_not_keep_to_the_protocol(service: StartService, said: bytes, status: int) -> None:
    """The service ends at once with an exit status for this mistake and one line, and fetches nothing."""
    ended, out, errors = service("9100").say(said).end(close=False)
    assert ended == status
    assert out in (b"", b"=2\n", b"=\n")
    assert errors.startswith(b"ruddo.PrometheusProxy: ")
    assert errors.count(b"\n") == 1


def test_version_1_is_for_one_port(service: StartService) -> None:
    """With more ports in the argument the service refuses version 1."""
    assert service("9100+9256").say(b"+\n").end(close=False)[0] == 3


@pytest.mark.parametrize("said", [b"+", b"+2\n?50"])
def test_the_end_of_input_in_the_middle_of_a_line(service: StartService, said: bytes) -> None:
    """The service ends, and says why."""
    status, _, errors = service("9100").say(said).end()
    assert (status, errors) == (
        7,
        b"ruddo.PrometheusProxy: the input ended before a request was complete and answered\n",
    )


def test_the_end_of_input_while_it_fetches(service: StartService, exporter: MakeExporter) -> None:
    """The service ends without waiting for the exporter."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    started = service(str(slow.port)).say(b"+2\n")
    started.hear(3)
    started.say(f"?600000 1000 {slow.port}\n".encode())
    assert started.end()[0] == 7


def test_requests_for_different_ports_overlap(service: StartService, exporter: MakeExporter) -> None:
    """Each with its own limits; and once a port is answered, it may be asked for again."""
    slow, fast = exporter(b"slow 1\n"), exporter(b"fast 1\n")
    wire, started = Version2(), service("+".join(map(str, sorted([slow.port, fast.port]))))
    assert started.ask(wire, slow.port)[slow.port].body == b"slow 1\n"
    assert wire.overlaps
    slow.hold.clear()
    started.say(wire.ask(milliseconds=600_000, max_body=100, endpoints=[slow.port]))
    for max_body, body in ((100, b"fast 1\n"), (3, b"body larger than 3 bytes"), (100, b"fast 1\n")):
        started.say(wire.ask(milliseconds=20_000, max_body=max_body, endpoints=[fast.port]))
        assert hear_answer(started, wire).body == body
    started.say(wire.ask(milliseconds=1, max_body=100, endpoints=[fast.port]))
    assert hear_answer(started, wire).endpoint == fast.port, "its time is its own"
    assert wire.pending == {slow.port}
    slow.hold.set()
    assert hear_answer(started, wire).body == b"slow 1\n"
    assert started.end() == (0, b"", b"")


def hear_answer(started: Service, wire: Version2) -> Answer:
    """The next answer."""
    (answer,) = hear_answers(started, wire, 1)
    return answer


def hear_answers(started: Service, wire: Version2, number: int) -> list[Answer]:
    """The next answers, of which several may come at once."""
    assert started.process.stdout
    answers: list[Answer] = []
    while len(answers) < number:
        piece = started.process.stdout.read(1 << 16)
        assert piece, "it ended"
        answers += wire.receive(piece)
    return answers


def test_a_request_waits_until_the_caller_has_read(service: StartService, exporter: MakeExporter) -> None:
    """So a caller that reads nothing cannot make it work or hold more."""
    large, other = exporter(b"m 1\n" * 500_000), exporter(b"o 1\n")
    wire, started = Version2(), service("+".join(map(str, sorted([large.port, other.port]))))
    started.ask(wire, other.port)
    started.say(wire.ask(milliseconds=20_000, max_body=9999999, endpoints=[large.port]))
    head = started.hear(20)  # it sends the answer now, which is larger than the pipe
    started.say(wire.ask(milliseconds=20_000, max_body=100, endpoints=[other.port]))
    assert wire.receive(head) == []
    time.sleep(0.2)  # nothing is waited for: what must not happen has its chance
    assert len(other.requests) == 1
    assert {one.endpoint for one in hear_answers(started, wire, 2)} == {large.port, other.port}
    assert len(other.requests) == 2


def test_the_end_of_input_while_a_request_waits(service: StartService, exporter: MakeExporter) -> None:
    """It is seen at once."""
    large, other = exporter(b"m 1\n" * 500_000), exporter(b"o 1\n")
    started = service("+".join(map(str, sorted([large.port, other.port])))).say(b"+2\n")
    started.hear(3)
    started.say(f"?600000 9999999 {large.port}\n".encode())
    started.hear(20)
    started.say(f"?600000 100 {other.port}\n".encode())
    assert started.process.stdin
    started.process.stdin.close()
    assert started.process.wait(PATIENCE_SECONDS) == 7


def test_a_request_that_waits_gives_a_caller_who_does_not_read_no_more_time(
    service: StartService, exporter: MakeExporter
) -> None:
    """The time of the answer that is unread counts."""
    large, other = exporter(b"m 1\n" * 500_000), exporter(b"o 1\n")
    started = service("+".join(map(str, sorted([large.port, other.port])))).say(b"+2\n")
    started.hear(3)
    started.say(f"?1500 9999999 {large.port}\n".encode())
    started.hear(20)
    started.say(f"?600000 100 {other.port}\n".encode())
    assert started.process.wait(PATIENCE_SECONDS) == 8
    assert not other.requests


def test_whoever_asks_for_a_port_while_its_answer_is_owed_is_left(
    service: StartService, exporter: MakeExporter
) -> None:
    """A second request for a port before the first one is answered ends the service."""
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    started = service(str(slow.port)).say(b"+2\n")
    started.hear(3)
    request = f"?600000 1000 {slow.port}\n".encode()
    assert started.say(request + request).end(close=False)[0] == 6


def test_a_caller_who_does_not_read_is_left(service: StartService, exporter: MakeExporter) -> None:
    """The service ends soon after the request's time, so that it does not stay in the qube."""
    large = exporter(b"m 1\n" * 500_000)
    started = service(str(large.port)).say(b"+2\n")
    started.hear(3)
    started.say(f"?1500 9999999 {large.port}\n".encode())
    assert started.process.wait(PATIENCE_SECONDS) == 8


# Runs a script with a clock that stands still. Only `poll` moves it: where nothing is ready, by the whole time limit.
# At the end it prints how far the clock moved.
VIRTUAL_CLOCK = """
import runpy, select, sys, time

now = 0.0

class Poll:
    def __init__(self):
        self.real = real_poll()
        self.register = self.real.register

    def poll(self, milliseconds):
        global now
        ready = self.real.poll(None if milliseconds is None else 0)
        if not ready:
            now += milliseconds / 1000
        return ready

real_poll, select.poll = select.poll, Poll
time.monotonic = lambda: now
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(now, file=sys.stderr)
"""


def test_a_caller_who_does_not_read_has_less_than_a_second_more() -> None:
    """After the request's time the caller may still read, but the service ends within a second."""
    port, (read_end, write_end) = free_port(), os.pipe()
    with os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb", buffering=0) as stdout:
        os.set_blocking(write_end, False)
        while stdout.write(bytes(1 << 16)):
            """Fill the pipe, so that nothing more fits."""
        words = [sys.executable, "-c", VIRTUAL_CLOCK, str(SERVICE), str(port)]
        with running(words, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE) as process:
            assert process.stdin
            assert process.stderr
            process.stdin.write(b"+2\n?1500 1000 %d\n" % port)
            process.stdin.flush()
            why, seconds = process.stderr.read().decode().splitlines()
            assert process.wait(PATIENCE_SECONDS) == 8
    assert why == "ruddo.PrometheusProxy: the caller does not read its answers"
    assert 1.5 < float(seconds) < 2.5


def test_a_caller_who_is_gone(service: StartService, exporter: MakeExporter) -> None:
    """The service ends when its output is closed."""
    large = exporter(b"m 1\n" * 500_000)
    started = service(str(large.port)).say(b"+2\n")
    started.hear(3)
    assert started.process.stdout
    started.process.stdout.close()
    started.say(f"?60000 9999999 {large.port}\n".encode())
    assert started.process.wait(PATIENCE_SECONDS) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_without_a_word(service: StartService, number: int) -> None:
    """The service ends so when its qube shuts down."""
    started = service("9100").say(b"+2\n")
    started.hear(3)
    started.process.send_signal(number)
    assert started.end(close=False) == (-number, b"", b"")


def test_it_is_what_it_says_it_is() -> None:
    """One executable file that needs only the standard library, and that the qube's environment cannot change."""
    first, text = SERVICE.read_text(encoding="utf-8").split("\n", 1)
    assert first == "#!/usr/bin/python3 -ISE"
    assert os.access(SERVICE, os.X_OK)
    modules = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert modules == {"__future__", "errno", "os", "re", "select", "signal", "socket", "stat", "sys", "time"}
    assert Path("/usr/bin/python3").exists()
