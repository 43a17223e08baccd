# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints: what a qube's own files name, from real servers of each kind; and what callers and files cannot do."""

import base64
import json
import os
import re
import select
import socket
import socketserver
import ssl
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import bcrypt
import pytest

from federator.errors import ScrapeError
from federator.model import Answer
from federator.reasons import no_text
from federator.wire import Version2
from tests import parts
from tests.certificates import Authority
from tests.helpers import SERVICE, service_module
from tests.parts import (
    PATIENCE_SECONDS,
    Daemon,
    Exporter,
    debian_program,
    eventually,
    free_port,
    process,
    raw_server,
    serving,
)
from tests.standin.qubes import Qubes

# Each of these tests starts the service.
pytestmark = pytest.mark.slow

FOLDERS = ("rw/config", "usr/local/etc", "etc")
TEXT = b"# TYPE m gauge\nm 1\n"


class Home:
    """A qube's folders, and a service that looks for endpoints there instead of below /."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.service = root / "ruddo.PrometheusProxy"
        text = SERVICE.read_text(encoding="utf-8")
        for folder in FOLDERS:
            (root / folder / "prometheus-qubes-proxy" / "endpoints.d").mkdir(parents=True)
            assert f'"/{folder}/prometheus-qubes-proxy"' in text
            text = text.replace(f'"/{folder}/prometheus', f'"{root}/{folder}/prometheus')
        self.service.write_text(text, encoding="utf-8")
        self.service.chmod(0o755)

    def path(self, name: str, folder: str = "rw/config") -> Path:
        """The file of an endpoint."""
        return self.root / folder / "prometheus-qubes-proxy" / "endpoints.d" / name

    def write(self, text: str | bytes, name: str = "app", folder: str = "rw/config") -> None:
        """Define an endpoint."""
        self.path(name, folder).write_bytes(text if isinstance(text, bytes) else text.encode())

    def secret(self, text: str) -> Path:
        """A file with a secret."""
        path = self.root / "secret"
        path.write_text(text, encoding="utf-8")
        return path

    def ask(self, *names: str, milliseconds: int = 20_000, max_body: int = 1 << 20) -> list[Answer]:
        """The answers of a new service for these endpoints, in the order of the names. It ends well after them."""
        wire = Version2()
        request = wire.greeting
        wire.receive(b"=2\n")
        request += wire.ask(milliseconds=milliseconds, max_body=max_body, endpoints=names)
        words = [*parts.script(self.service), "+".join(sorted(names))]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with parts.running(words, bufsize=0, **pipes) as started:
            assert started.stdin
            assert started.stdout
            assert started.stderr
            started.stdin.write(request)
            assert started.stdout.read(3) == b"=2\n"
            answers: list[Answer] = []
            while wire.owed:
                assert select.select([started.stdout], [], [], PATIENCE_SECONDS)[0], "it says nothing"
                piece = os.read(started.stdout.fileno(), 1 << 16)
                assert piece, started.stderr.read()
                answers += wire.receive(piece)
            started.stdin.close()
            assert (started.wait(PATIENCE_SECONDS), started.stderr.read()) == (0, b"")
        return sorted(answers, key=lambda answer: names.index(str(answer.endpoint)))

    def fails(self, name: str = "app", **limits: int) -> ScrapeError:
        """What the daemon makes of an endpoint without a text."""
        error = no_text(self.ask(name, **limits)[0], 1 << 20)
        assert error is not None
        assert "\n" not in str(error)
        assert str(error).isprintable()
        return error


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A qube without endpoints."""
    return Home(tmp_path)


class Web:
    """What a server was asked, and what it answers: by path, or else TEXT. `wants`: headers without which it is 401."""

    def __init__(self, wants: Mapping[str, str] | None = None) -> None:
        self.wants = wants or {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.redirects: dict[str, str] = {}

    @contextmanager
    def listening(
        self, server_class: type[socketserver.BaseServer], address: object, tls: ssl.SSLContext | None = None
    ) -> Iterator[int]:
        """Listen there; the port, if it has one."""
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests.append((self.path, dict(self.headers)))
                known = all(self.headers.get(name) == value for name, value in web.wants.items())
                to = web.redirects.get(self.path)
                self.send_response(401 if not known else 302 if to else 200)
                if to:
                    self.send_header("Location", to)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(TEXT)

            def address_string(self) -> str:
                return ""

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        class Server(server_class):  # type: ignore[misc, valid-type]
            allow_reuse_address = True
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that does not trust the certificate goes away."""

            def get_request(self) -> tuple[socket.socket, object]:
                connection, client = self.socket.accept()
                connection.settimeout(PATIENCE_SECONDS)
                return (tls.wrap_socket(connection, server_side=True) if tls else connection), client

        with serving(server := Server(address, Handler)):
            yield 0 if isinstance(server.server_address, str | bytes) else server.server_address[1]


class Tcp6(socketserver.ThreadingTCPServer):
    """On IPv6 alone."""

    address_family = socket.AF_INET6


def silent(held: threading.Event) -> Callable[[socket.socket], None]:
    """What a server does that says nothing until then."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        held.wait(PATIENCE_SECONDS)

    return answer


Tcp = socketserver.ThreadingTCPServer
Unix = socketserver.ThreadingUnixStreamServer
LOCAL = ("127.0.0.1", 0)


def test_a_path_and_a_query_with_comments_and_blank_lines(home: Home) -> None:
    """The file reads as a person writes it; the path goes out as it stands there."""
    web = Web()
    with web.listening(Tcp, LOCAL) as port:
        home.write(
            f"\ufeff# netdata\n\n  url\thttp://127.0.0.1:{port}/api/v1/allmetrics?format=prometheus&a=%20  \r\n\n"
        )
        (answer,) = home.ask("app")
    assert (answer.status, answer.body, answer.content_type) == (200, TEXT, "text/plain; version=0.0.4")
    assert web.requests[0][0] == "/api/v1/allmetrics?format=prometheus&a=%20"
    assert web.requests[0][1]["Host"] == f"127.0.0.1:{port}"


def test_ipv6_and_localhost(home: Home) -> None:
    """`localhost` is 127.0.0.1, or ::1 where nothing listens there; it is never looked up."""
    web = Web()
    with web.listening(Tcp6, ("::1", 0)) as port:
        home.write(f"url http://[::1]:{port}/metrics\n", "six")
        home.write(f"url http://localhost:{port}/x\n", "local")
        assert [answer.status for answer in home.ask("six", "local")] == [200, 200]
    assert {(path, headers["Host"]) for path, headers in web.requests} == {
        ("/metrics", f"[::1]:{port}"),
        ("/x", f"localhost:{port}"),
    }


def test_a_unix_socket(home: Home) -> None:
    """With a path, and without one, which is /metrics."""
    web, path = Web(), home.root / "x.sock"
    web.redirects = {"/moved": "/here?a=b", "/away": "http://127.0.0.1:80/", "/host": "http://localhost/there"}
    with web.listening(Unix, str(path)):
        home.write(f"url unix:{path}\n", "short")
        for name in ("metrics", "moved", "away", "host"):
            home.write(f"url unix:{path}:/{name}\n", name)
        statuses = [answer.status for answer in home.ask("short", "metrics", "moved", "away", "host")]
    assert statuses == [200, 200, 200, 302, 200]
    asked = [path for path, _ in web.requests]
    assert sorted(asked) == sorted(["/metrics", "/metrics", "/moved", "/here?a=b", "/away", "/host", "/there"])
    assert {headers["Host"] for _, headers in web.requests} == {"localhost"}


def test_tokens_passwords_and_headers(home: Home) -> None:
    """Each is in a file of its own, but for headers; they go out with each redirect on the same server."""
    token, pair = f"Bearer {'t' * 40}", f"Basic {base64.b64encode('mé:pä ss'.encode()).decode()}"
    for wants, lines in (
        ({"Authorization": token}, f"token_file {home.secret(chr(10) + 't' * 40 + chr(10))}\n"),
        ({"Authorization": pair}, "user mé\npassword_file {}\n"),
        ({"X-Tenant": "blue: 1", "X-Other": ""}, "header X-Tenant: blue: 1\nheader X-Other:\n"),
    ):
        if "{}" in lines:
            lines = lines.format(home.secret("pä ss\n"))  # noqa: PLW2901
        web = Web(wants)
        web.redirects = {"/metrics": "/there"}
        with web.listening(Tcp, LOCAL) as port:
            home.write(f"url http://127.0.0.1:{port}/metrics\n{lines}")
            assert home.ask("app")[0].status == 200, wants
            assert [path for path, _ in web.requests] == ["/metrics", "/there"]
            home.write(f"url http://127.0.0.1:{port}/metrics\n")
            error = home.fails()
        assert error.reason == "http"
        assert "status 401" in str(error)
        assert "the file of endpoint app names the right one" in str(error)


def test_a_token_goes_to_no_other_server(home: Home) -> None:
    """Not to another port, to the other loopback address, from TLS to plain, nor to another host."""
    web, other = Web(), Web()
    with ExitStack() as stack:
        port = stack.enter_context(web.listening(Tcp, LOCAL))
        six = stack.enter_context(other.listening(Tcp6, ("::1", port)))
        away = stack.enter_context(other.listening(Tcp, LOCAL))
        assert six == port
        places = [f"http://127.0.0.1:{away}/", f"http://[::1]:{port}/", f"https://127.0.0.1:{port}/", "//example.org/x"]
        web.redirects = {f"/{number}": place for number, place in enumerate(places)}
        for number in range(len(places)):
            home.write(f"url http://127.0.0.1:{port}/{number}\ntoken_file {home.secret('t')}\n")
            error = home.fails()
            assert (error.reason, "redirects to" in str(error)) == ("http", True)
    assert other.requests == []
    assert len(web.requests) == len(places)


def test_tls_with_a_ca_of_ones_own(home: Home) -> None:
    """The certificate has to be of that CA and for the host of the URL; large answers come over TLS, too."""
    ours, foreign = Authority(home.root / "ours"), Authority(home.root / "foreign")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ours.server())
    web = Web()
    with web.listening(Tcp, LOCAL, context) as port, web.listening(Tcp, LOCAL) as plain:
        for name, host, ca in (
            ("ip", "127.0.0.1", f"ca_file {ours.folder}/ca.crt\n"),
            ("localhost", "localhost", f"ca_file {ours.folder}/ca.crt\n"),
            ("foreign", "127.0.0.1", f"ca_file {foreign.folder}/ca.crt\n"),
            ("system", "127.0.0.1", ""),
            ("key", "127.0.0.1", f"ca_file {ours.folder}/ca.key\n"),
            ("missing", "127.0.0.1", "ca_file /does/not/exist\n"),
        ):
            home.write(f"url https://{host}:{port}/metrics\n{ca}", name)
        home.write(f"url https://127.0.0.1:{plain}/\nca_file {ours.folder}/ca.crt\n", "plain")
        home.write(f"url http://127.0.0.1:{port}/\n", "tls")
        assert [answer.body for answer in home.ask("ip", "localhost")] == [TEXT, TEXT]
        for name, reason, words in (
            ("foreign", "connection", "certificate"),
            ("system", "connection", "certificate"),
            ("plain", "connection", "no TLS with what listens on endpoint plain"),
            ("tls", "connection", "closed the connection without an answer"),
            ("key", "endpoint", "line 2 of"),
            ("missing", "endpoint", "the ca_file of line 2 of"),
        ):
            error = home.fails(name)
            assert (error.reason, words in str(error)) == (reason, True), error


def test_a_certificate_for_another_host(home: Home) -> None:
    """It is of the right CA, and for a name that is not in the URL."""
    ours = Authority(home.root / "ours")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ours.sign("other", "DNS:example.org"))
    with Web().listening(Tcp, LOCAL, context) as port:
        for host in ("127.0.0.1", "localhost"):
            home.write(f"url https://{host}:{port}/\nca_file {ours.folder}/ca.crt\n")
            error = home.fails()
            assert error.reason == "connection"
            assert "mismatch" in str(error)


@pytest.mark.parametrize("speaks", [b"", b"\x16\x03\x03\x00\x05hello", b"HTTP/1.1 200 OK\r\n\r\nm 1\n"])
def test_tls_with_something_else(home: Home, speaks: bytes) -> None:
    """One that does not speak TLS, or goes away, is told as that; one that says nothing is late."""

    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(speaks)

    with raw_server(answer) as port:
        home.write(f"url https://127.0.0.1:{port}/\n")
        assert home.fails().reason == "connection"

    held = threading.Event()
    with raw_server(silent(held)) as port:
        home.write(f"url https://127.0.0.1:{port}/\ntimeout 200ms\n")
        assert home.fails().reason == "timeout"
        held.set()


def test_a_large_text_over_tls(home: Home) -> None:
    """TLS has its own buffers, in which nothing may be left behind."""
    ours = Authority(home.root / "ours")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ours.server())
    large = b"m 1\n" * 500_000

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(4096)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(large)}\r\n\r\n"
            secured.sendall(head.encode() + large)
            secured.recv(1)

    with raw_server(answer) as port:
        home.write(f"url https://127.0.0.1:{port}/\nca_file {ours.folder}/ca.crt\n")
        assert home.ask("app", max_body=len(large))[0].body == large
        assert home.fails(max_body=1000).reason == "body_size_limit"


def test_the_endpoints_own_timeout(home: Home) -> None:
    """It can only be shorter than the caller's time."""
    held = threading.Event()
    with raw_server(silent(held)) as port:
        for line, milliseconds in (("timeout 100ms", 600_000), ("timeout 600s", 100)):
            home.write(f"url http://127.0.0.1:{port}/\n{line}\n")
            assert home.fails(milliseconds=milliseconds).reason == "timeout"
        held.set()


def test_the_qubes_own_file_goes_first(home: Home) -> None:
    """Then /usr/local/etc, then the template's. A change counts at the next scrape, without anything being started."""
    web = Web()
    with web.listening(Tcp, LOCAL) as port:
        for folder in reversed(FOLDERS):
            home.write(f"url http://127.0.0.1:{port}/{folder}\n", folder=folder)
            home.ask("app")
    assert [path for path, _ in web.requests] == ["/etc", "/usr/local/etc", "/rw/config"]
    home.write("")
    assert home.fails().reason == "endpoint", "an empty file of the qube's own takes the template's away"


def test_an_endpoint_that_no_file_defines(home: Home) -> None:
    """The words name the folders."""
    error = home.fails("nobody")
    assert error.reason == "endpoint"
    assert "no file for endpoint nobody" in str(error)
    assert "endpoints.d/nobody in" in str(error)


def test_nothing_listens(home: Home) -> None:
    """On a port or a socket, each says what the system says."""
    home.write(f"url http://127.0.0.1:{free_port()}/\n", "tcp")
    home.write(f"url https://127.0.0.1:{free_port()}/\n", "tls")
    home.write("url unix:/does/not/exist.sock\n", "unix")
    home.write(f"url unix:{home.service}\n", "file")
    for name, words in (("tcp", "refused"), ("tls", "refused"), ("unix", "No such file"), ("file", "refused")):
        error = home.fails(name)
        assert (error.reason, words in str(error)) == ("connection", True), error
        assert f"on endpoint {name}" in str(error)


URL = "url http://127.0.0.1:1/\n"
WRONG_FILES: dict[str, tuple[str | bytes, str]] = {
    "no URL": ("timeout 5s\n", "no line that starts with url"),
    "two URLs": (URL + URL, "line 2 .* already, in line 1"),
    "unknown word": (URL + "\ntoken s3cr3t\n", "line 3 .* starts with none of url"),
    "no value": (URL + "timeout\n", "line 2 .* value behind timeout"),
    "not UTF-8": (b"url http://127.0.0.1:1/\xff\n", "not UTF-8"),
    "NUL": (URL + "header X: a\0b\n", "line 2 .* without control characters"),
    "carriage return in a header": (URL + "header X: a\rInjected: b\n", "line 2 .* without control characters"),
    "two headers in one": (URL + "header X: a\vInjected: b\n", "line 2 .* without control characters"),
    "header without a colon": (URL + "header X\n", "line 2 .* not NAME: VALUE"),
    "header's name": (URL + "header X Y: a\n", "line 2 .* not NAME: VALUE"),
    "header of another language": (URL + "header X: é\n", "line 2 .* not NAME: VALUE"),
    "Host": (URL + "header hOST: a\n", "line 2 .* the service sends itself"),
    "Transfer-Encoding": (URL + "header Transfer-Encoding: chunked\n", "line 2 .* the service sends itself"),
    "password without user": (URL + "password_file /x\n", "line 2 .* no user with it"),
    "user without password": (URL + "user x\n", "line 2 .* no password_file with it"),
    "user with a colon": (URL + "user a:b\npassword_file /x\n", "line 2 .* has no colon"),
    "user and token": (URL + "user a\npassword_file /x\ntoken_file /x\n", "line 2 .* token_file, too"),
    "two kinds of Authorization": (URL + "header authorization: x\ntoken_file /x\n", "line 2 .* beside a token_file"),
    "relative file": (URL + "token_file x\n", "line 2 .* must start with /"),
    "CA without TLS": (URL + "ca_file /dev/null\n", "line 2 .* not https"),
    "timeout": (URL + "timeout 5 s\n", "line 2 .* not a time"),
    "timeout 0": (URL + "timeout 0s\n", "line 2 .* not a time"),
    "header for files": ("url file:/x/*.prom\nheader X: y\n", "line 2 .* nothing of files"),
    "missing token": (URL + "token_file /does/not/exist\n", "the token_file of line 2 of .*: No such file"),
    "folder for a token": (URL + "token_file /etc\n", "the token_file of line 2 of .*: not a regular file"),
    "device for a token": (URL + "token_file /dev/zero\n", "the token_file of line 2 of .*: not a regular file"),
    "long socket": (f"url unix:/{'x' * 120}\n", "line 1 .* longer than 107 bytes"),
    **{
        f"URL {url}": (f"url {url}\n", "line 1 .* not a URL of this qube")
        for url in (
            "http://example.org/", "http://10.137.0.1:9100/", "http://127.0.0.1.example.org/", "http://0.0.0.0/",
            "http://127.0.0.1@example.org/", "http://example.org#@127.0.0.1/", "http://user:pw@127.0.0.1/",
            "http://[::]/", "http://[::ffff:10.0.0.1]/", "http://127.1/", "http://127.0.0.01/", "http://127.0.0.256/",
            "http://2130706433/", "http://0x7f.0.0.1/", "http://localhost.example.org/", "http://127.0.0.1:0/",
            "http://127.0.0.1:65536/", "http://127.0.0.1:09100/", "http://127.0.0.1:9100", "ftp://127.0.0.1/",
            "HTTP://127.0.0.1/", "http://127.0.0.1/a b", "http://127.0.0.1/é", "http://127.0.0.1/#x", "http:///x",
            "unix:relative.sock", "unix:", "unix:@abstract", "file:relative/*.prom", "file:/x/*/y.prom", "file:/x/",
            "file:/x/**/y.prom", "file:", "/etc/passwd", "http://127.0.0.1\\@example.org/", "javascript:1",
        )
        if url != "http://127.0.0.1:9100"
    },
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_told_with_its_line(home: Home, case: str) -> None:
    """Nothing is fetched, and nothing of what stands there is told to the caller."""
    text, words = WRONG_FILES[case]
    home.write(text)
    error = home.fails()
    assert error.reason == "endpoint"
    assert str(home.path("app"))[:60] in str(error)
    (answer,) = home.ask("app")
    assert re.search(words, answer.body.decode()), answer.body
    for secret in ("s3cr3t", "example.org", "Injected", "/does/not"):
        assert secret not in str(error)


def test_a_token_cannot_be_a_header_more(home: Home) -> None:
    """A line break in the token's file, or in a password's, does not reach the server as one."""
    web = Web()
    with web.listening(Tcp, LOCAL) as port:
        home.write(f"url http://127.0.0.1:{port}/\ntoken_file {home.secret('a' + chr(13) + chr(10) + 'Injected: b')}\n")
        error = home.fails()
        assert error.reason == "endpoint"
        assert "does not have one token" in home.ask("app")[0].body.decode()
        assert web.requests == []
        home.write(f"url http://127.0.0.1:{port}/\nuser u\npassword_file {home.root / 'secret'}\n")
        assert home.ask("app")[0].status == 200
    assert "Injected" not in web.requests[0][1]


def hostile_file(home: Home, kind: str) -> None:
    """Something that is no file of some lines, in the place of one."""
    path = home.path("app")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "terminal":
        path.symlink_to("/dev/tty")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "terminal", "loop", "socket", "huge"])
def test_a_file_that_is_none(home: Home, kind: str) -> None:
    """It neither holds up the service nor fills it, and no other file is taken in its place."""
    home.write(URL, folder="etc")
    hostile_file(home, kind)
    error = home.fails()
    assert error.reason == "endpoint"
    assert "cannot read" in str(error)


# What a hostile NetVM may ask for as an argument, and in a request of one that was permitted.
HOSTILE_NAMES = [
    "..", ".", "a/b", "../app", "app/../app", "/etc/passwd", "app.", "app\0", "app\nx", "App", "APP", "1app", "-app",
    "_app", "a" * 33, "a" * 4000, "ap%70", "app ", " app", "app+", "+app", "app++other", "app+app", "other+app",
    "app+9100", "äpp", "app*", "app?", "~", "$HOME", "app\r", "endpoints.d", "a,b", "\uff41pp",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=[ascii(name[:40]) for name in HOSTILE_NAMES])
def test_a_hostile_caller_reads_nothing_by_a_name(home: Home, name: str) -> None:
    """Neither as the argument nor in a request does such a name open a file or a connection."""
    web = Web()
    with web.listening(Tcp, LOCAL) as port:
        for other in ("app", "other"):
            home.write(f"url http://127.0.0.1:{port}/\n", other)
        (home.root / "rw/config/prometheus-qubes-proxy/app").write_text(f"url http://127.0.0.1:{port}/\n")
        for argument, request in (
            (name, b"+2\n?1000 1000 app\n"),
            ("9100+app", b"+2\n?1000 1000 " + name.encode() + b"\n"),
        ):
            if "\0" in argument:  # the system has no such arguments
                continue
            words = [*parts.script(home.service), argument]
            with parts.running(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
                out, errors = started.communicate(request, PATIENCE_SECONDS)
            assert started.returncode in (3, 5), (out, errors)
            assert out in (b"", b"=2\n")
            assert errors.count(b"\n") == 1
        assert web.requests == []


def test_names_are_permitted_one_by_one(home: Home) -> None:
    """The argument is the permission, for names as for ports; and version 1 knows no names."""
    for argument, request, status in (
        ("app", b"+2\n?1000 1000 other\n", 5),
        ("app", b"+2\n?1000 1000 9100\n", 5),
        ("9100", b"+2\n?1000 1000 app\n", 5),
        ("app", b"+2\n?1000 1000 app app\n", 5),
        ("app", b"+\n?\n", 3),
        ("+".join(f"a{number:02}" for number in range(65)), b"+2\n", 3),
    ):
        words = [*parts.script(home.service), argument]
        with parts.running(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
            out, _ = started.communicate(request, PATIENCE_SECONDS)
        assert (started.returncode, out) in {(status, b""), (status, b"=2\n")}, argument


def test_as_many_names_as_there_may_be(home: Home) -> None:
    """64 of the longest names, in one request."""
    names = [f"{'a' * 30}{number:02}" for number in range(64)]
    for answer in home.ask(*names):
        assert (answer.status, answer.body.startswith(b"no endpoints.d/")) == (0, True)


class Textfiles:
    """A folder of .prom files, as an endpoint."""

    def __init__(self, home: Home, pattern: str = "*.prom") -> None:
        self.home = home
        self.folder = home.root / "textfile"
        self.folder.mkdir()
        home.write(f"url file:{self.folder}/{pattern}\n")

    def write(self, name: str, text: str | bytes) -> Path:
        """A file in it, last written a while ago."""
        path = self.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.utime(path, (1_700_000_000, 1_700_000_000))
        return path

    def text(self, **limits: int) -> str:
        """What comes of them."""
        (answer,) = self.home.ask("app", **limits)
        assert answer.status == 200, answer.body
        assert (answer.content_type, answer.whole) == ("text/plain; version=0.0.4", True)
        return answer.body.decode()


@pytest.fixture
def textfiles(home: Home) -> Textfiles:
    """A folder without files."""
    return Textfiles(home)


def test_textfiles_come_as_node_exporter_gives_them(textfiles: Textfiles) -> None:
    """One after the other by name, with the time of each and whether one was wrong; files of other names are not."""
    textfiles.write("b.prom", "b 2\n")
    textfiles.write("a.prom", "# HELP a A.\n# TYPE a counter\na 1\n")
    textfiles.write("empty.prom", "")
    for name in ("c.prom.tmp", ".hidden.prom", "README"):
        textfiles.write(name, "wrong 1\n")
    folder = textfiles.folder
    assert textfiles.text() == (
        "# HELP a A.\n# TYPE a counter\na 1\nb 2\n"
        "# HELP node_textfile_mtime_seconds Unixtime mtime of textfiles successfully read.\n"
        "# TYPE node_textfile_mtime_seconds gauge\n"
        f'node_textfile_mtime_seconds{{file="{folder}/a.prom"}} 1700000000.000\n'
        f'node_textfile_mtime_seconds{{file="{folder}/b.prom"}} 1700000000.000\n'
        f'node_textfile_mtime_seconds{{file="{folder}/empty.prom"}} 1700000000.000\n'
        "# HELP node_textfile_scrape_error 1 if there was an error opening or reading a file, 0 otherwise\n"
        "# TYPE node_textfile_scrape_error gauge\n"
        "node_textfile_scrape_error 0\n"
    )


def test_a_broken_textfile_costs_itself(textfiles: Textfiles, tmp_path: Path) -> None:
    """Pipes, devices, folders, loops, links that lead out, and files being written are left out, and that is said."""
    secret = tmp_path / "secret.prom"
    secret.write_text("secret 1\n", encoding="utf-8")
    textfiles.write("good.prom", "good 1\n")
    textfiles.write("large.prom", b"large 1\n" * 20_000)
    textfiles.write("half.prom", b"half 1\n" * 20_000 + b"half 12")
    os.mkfifo(textfiles.folder / "pipe.prom")
    (textfiles.folder / "folder.prom").mkdir()
    for name, to in (("out", str(secret)), ("loop", "loop.prom"), ("gone", "/does/not/exist"), ("dev", "/dev/zero")):
        (textfiles.folder / f"{name}.prom").symlink_to(to)
    os.mknod(textfiles.folder / "socket.prom", stat.S_IFSOCK | 0o600)
    text = textfiles.text()
    assert text.startswith("good 1\n" + "large 1\n" * 20_000 + "# HELP node_textfile_mtime_seconds")
    assert text.count("node_textfile_mtime_seconds{") == 2
    assert text.endswith("node_textfile_scrape_error 1\n")
    assert "half" not in text
    assert "secret 1" not in text


def test_without_a_textfile_the_endpoint_is_down(textfiles: Textfiles) -> None:
    """None matches, or none is good, or the folder cannot be read; each says so."""
    error = textfiles.home.fails()
    assert (error.reason, "does the program run that writes it?" in str(error)) == ("connection", True)
    textfiles.write("half.prom", "half 1")
    error = textfiles.home.fails()
    assert (error.reason, "its last line has no end" in str(error)) == ("endpoint", True)
    for url, words in (("/does/not/exist/*.prom", "No such file"), ("/etc/passwd/*.prom", "Not a directory")):
        textfiles.home.write(f"url file:{url}\n")
        error = textfiles.home.fails()
        assert (error.reason, words in str(error)) == ("endpoint", True), error
    (textfiles.folder / "link.prom").symlink_to("/etc/passwd")
    textfiles.home.write(f"url file:{textfiles.folder}/link.prom\n")
    error = textfiles.home.fails()
    assert (error.reason, "link.prom" in str(error)) == ("endpoint", True)
    assert b"root:" not in textfiles.home.ask("app")[0].body


def test_textfiles_are_bounded(textfiles: Textfiles) -> None:
    """In bytes, all together, also where a file says that it is small; and in number."""
    for name in ("a", "b", "c"):
        textfiles.write(f"{name}.prom", b"m 1\n" * 1000)
    assert textfiles.home.fails(max_body=10_000).reason == "body_size_limit"
    assert textfiles.home.fails(max_body=12_000).reason == "body_size_limit", "the times of the files count, too"
    sparse = textfiles.folder / "sparse.prom"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    assert textfiles.home.fails().reason == "body_size_limit"
    sparse.unlink()
    for number in range(1001):
        textfiles.write(f"{number}.prom", "")
    error = textfiles.home.fails()
    assert (error.reason, "more than 1000 files" in str(error)) == ("endpoint", True)


def test_a_textfiles_name_cannot_break_the_text(textfiles: Textfiles) -> None:
    """Who writes to the folder chooses the names; a label's value holds whatever they are."""
    for name in (b'a"} 1\nfake 1\n.prom', b"\xff.prom", b"back\\slash.prom", "ü.prom".encode()):
        with open(os.path.join(os.fsencode(textfiles.folder), name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(b"m 1\n")
    lines = textfiles.text().splitlines()
    assert "fake 1" not in lines
    assert len([line for line in lines if line.startswith("node_textfile_mtime_seconds{")]) == 4
    assert sum("\\n" in line and '\\"' in line for line in lines) == 1


def test_a_huge_folder_is_left(home: Home) -> None:
    """So many names are not even looked at."""
    files = Textfiles(home)
    module = service_module()
    for number in range(module.MAX_NAMES + 1):
        (files.folder / str(number)).touch()
    assert "more than" in str(home.fails())


def test_ssl_and_the_like_are_loaded_only_where_an_endpoint_needs_them(home: Home) -> None:
    """A qube with ports alone, or with plain endpoints, pays nothing for the others."""
    files = Textfiles(home)
    files.write("a.prom", "a 1\n")
    home.write(f"url http://127.0.0.1:{free_port()}/\n", "plain")
    home.write(f"url https://127.0.0.1:{free_port()}/\n", "tls")
    code = (
        "import runpy, sys; del sys.argv[0]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print(*sorted({'ssl', 'fnmatch', 'zlib'} & set(sys.modules)), file=sys.stderr)"
    )
    for name, loaded in (("9100", b""), ("plain", b""), ("app", b"fnmatch"), ("tls", b"ssl")):
        words = ["/usr/bin/python3", "-ISE", "-c", code, str(home.service), name]
        with parts.running(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
            assert started.stdin
            assert started.stdout
            assert started.stderr
            started.stdin.write(f"+2\n?9000 9000 {name}\n".encode())
            started.stdin.flush()
            while started.stdout.readline().startswith(b"="):
                pass
            _, errors = started.communicate(timeout=PATIENCE_SECONDS)
        assert loaded in errors.split() if loaded else not errors.strip(), (name, errors)


# What an endpoint's file says, and the reason for which it is down: each kind of failure that there is.
FAILURES = {
    "missing": ("", "endpoint"),
    "wrong": ("url http://example.org/\n", "endpoint"),
    "secret": ("url http://127.0.0.1:{port}/\ntoken_file /does/not/exist\n", "endpoint"),
    "silent": ("url unix:/does/not/exist.sock\n", "connection"),
    "cert": ("url https://127.0.0.1:{tls}/metrics\n", "connection"),
    "nofile": ("url file:{folder}/*.none\n", "connection"),
    "token": ("url https://127.0.0.1:{tls}/metrics\nca_file {ca}\n", "http"),
    "page": ("url http://[::1]:{six}/\n", "exposition"),
}


def test_each_kind_and_each_failure_from_end_to_end(
    home: Home, tmp_path: Path, qubes: Qubes, exporter: Callable[[bytes], Exporter], daemon: Callable[..., Daemon]
) -> None:
    """Real node_exporters on IPv6, and with TLS and a password; a Unix socket, files; all over one qrexec call."""
    ca = Authority(home.root / "ca")
    certificate, key = ca.server()
    folder = tmp_path / "textfile"
    folder.mkdir()
    (folder / "backup.prom").write_text("# TYPE backup_age_seconds gauge\nbackup_age_seconds 42\n", encoding="utf-8")
    (folder / "raid.prom").write_text("raid_disks 2\n", encoding="utf-8")
    (folder / "README").write_text("This is no metric.\n", encoding="utf-8")
    web = tmp_path / "web.yml"
    password = "$2y$04$" + bcrypt.hashpw(b"pa ss", bcrypt.gensalt(4)).decode()[7:]
    web.write_text(
        f"tls_server_config: {{cert_file: {certificate}, key_file: {key}}}\nbasic_auth_users: {{me: {password}}}\n",
        encoding="utf-8",
    )
    six, tls, port = free_port(), free_port(), exporter(b"plain 1\n").port
    names = {"port": port, "tls": tls, "six": six, "folder": folder, "ca": f"{ca.folder}/ca.crt"}
    program = [debian_program("prometheus-node-exporter"), "--collector.disable-defaults", "--collector.textfile"]
    program += [f"--collector.textfile.directory={folder}", "--web.disable-exporter-metrics"]
    for name, (text, _) in FAILURES.items():
        if text:
            home.write(text.format_map(names), name)
    home.secret("pa ss\n")
    home.write(f"url http://[::1]:{six}/metrics\n", "ipv6")
    home.write(
        f"url https://localhost:{tls}/metrics\nca_file {ca.folder}/ca.crt\nuser me\npassword_file {home.root}/secret\n",
        "tls",
    )
    home.write(f"url file:{folder}/*.prom\n", "files")
    home.write(f"url unix:{tmp_path}/x.sock:/other?path\n", "unix")
    qubes.service = home.service
    qubes.add("work")
    good = ("files", "ipv6", "tls", "unix")
    with ExitStack() as stack:
        log = tmp_path / "log"
        stack.enter_context(process(*program, f"--web.listen-address=[::1]:{six}", log=log))
        stack.enter_context(
            process(*program, f"--web.listen-address=127.0.0.1:{tls}", f"--web.config.file={web}", log=log)
        )
        unix = Web()
        stack.enter_context(unix.listening(Unix, str(tmp_path / "x.sock")))
        proxy = daemon({"work": {"port": port, **{f"e-{name}": name for name in (*good, *FAILURES)}}})
        eventually("both node_exporters listen", lambda: proxy.get().text.count("raid_disks{") == 3)
        page = proxy.get().text
        down = dict(
            re.findall(r'^qubes_proxy_exporter_failure{.*exporter="e-(\w+)".*reason="(\w+)"} 1$', page, re.MULTILINE)
        )
        forwarded = {name: proxy.get(f"/forward?target=work&endpoint={name}") for name in (*good, *FAILURES)}
        listed = {one["labels"]["exporter"]: one["labels"] for one in json.loads(proxy.get("/sd").body)}
        people = proxy.get("/qube/work").text
        targets = {
            one["labels"]["exporter"]: one
            for one in json.loads(proxy.get("/api/v1/targets").body)["data"]["activeTargets"]
        }
    assert down == {name: reason for name, (_, reason) in FAILURES.items()}
    for name in ("files", "ipv6", "tls"):
        assert re.search(rf'^backup_age_seconds{{.*exporter="e-{name}".*}} 42$', page, re.MULTILINE)
        # With the same name and the same labels as node_exporter's own, but for those of the daemon.
        assert re.search(
            rf'^node_textfile_mtime_seconds{{.*exporter="e-{name}".*file="{folder}/raid.prom"}} ', page, re.MULTILINE
        )
    assert 'plain{qube="work",exporter="port"} 1' in page
    assert 'm{qube="work",exporter="e-unix"} 1' in page
    assert {name for name, answer in forwarded.items() if answer.status == 200} == {*good}
    assert {path for path, _ in unix.requests} == {"/other?path"}
    assert len(qubes.calls()) == 1
    assert qubes.calls()[0][1] == f"ruddo.PrometheusProxy+{port}+{'+'.join(sorted((*good, *FAILURES)))}"
    assert listed["e-tls"]["__param_endpoint"] == "tls"
    assert "__param_port" not in listed["e-tls"]
    assert listed["port"]["__param_port"] == str(port)
    assert "endpoint tls" in people
    assert targets["e-tls"]["scrapeUrl"] == "endpoint:tls"
    assert targets["e-missing"]["remedy"].startswith("In the qube or its template")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("target=work&endpoint=App", "endpoint is not a name"),
        ("target=work&endpoint=../app", "endpoint is not a name"),
        ("target=work&endpoint=9100", "endpoint is not a name"),
        ("target=work&endpoint=a&port=9100", "ask for one of them"),
        ("target=work", "port is missing"),
    ],
)
def test_forward_refuses_what_is_no_name(qubes: Qubes, daemon: Callable[..., Daemon], query: str, words: str) -> None:
    """With a 400; a name that is not configured is a 404; and no qube is called."""
    proxy = daemon({"work": {"app": "app"}})
    answer = proxy.get(f"/forward?{query}")
    assert (answer.status, words in answer.text) == (400, True), answer.text
    assert proxy.get("/forward?target=work&endpoint=other").status == 404
    assert qubes.calls() == []
