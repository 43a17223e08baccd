# SPDX-License-Identifier: GPL-3.0-or-later
"""
The real parts that tests are made of: HTTP servers, and the daemon and Debian's programs as processes, all on loopback.

Each part is a context manager and ends what it started.
"""

import http.client
import json
import os
import resource
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.helpers import ROOT, SERVICE

# How long a test waits for something that must happen before the test fails. It is no limit that users know.
PATIENCE_SECONDS = 30.0
# Where coverage is measured, Python finds in these variables that it has to measure its own process as well.
MEASURED = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def eventually(what: str, condition: Callable[[], object]) -> None:
    """Wait until the condition is true. If it never is, the failure says what did not happen."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        time.sleep(0.02)


# The ports that `free_port` gives. The system gives others, 32768 and up, to whoever asks it for any port. So no other
# server takes one before the program listens for which it is meant: some take seconds to start.
FIRST_PORT, LAST_PORT = 20_000, 32_767
# Several runs of the tests share this machine. Each has so many of the ports.
PORTS_OF_A_RUN = 500


@cache
def ports_of_this_run() -> Iterator[int]:
    """The ports of this run, over and over. A name tells others that they are taken; it goes when the process ends."""
    for first in range(FIRST_PORT, LAST_PORT - PORTS_OF_A_RUN, PORTS_OF_A_RUN):
        taken = socket.socket(socket.AF_UNIX)
        try:
            taken.bind(f"\0ports of prometheus-qubes-proxy's tests from {first}")
        except OSError:
            taken.close()
        else:
            taken.detach()  # it stays open as long as the process lives
            return cycle(range(first, first + PORTS_OF_A_RUN))
    pytest.fail("all ports for tests are taken: too many runs at one time")


def free_port() -> int:
    """A port on which no program listens, and which no other test gets soon."""
    for port in islice(ports_of_this_run(), PORTS_OF_A_RUN):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    pytest.fail("no port is free")


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Let this server answer, in a thread that ends with the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Exporter:
    """An exporter that answers what the test sets."""

    def __init__(self, body: bytes = b"m 1\n") -> None:
        self.body = body
        self.status = 200
        self.headers = {"Content-Type": "text/plain; version=0.0.4"}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.hold = threading.Event()  # while it is cleared, requests wait
        self.hold.set()
        self.port = 0
        self._running = ExitStack()

    def start(self) -> None:
        """Listen. After `stop` on the same port as before."""
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                exporter.requests.append((self.path, dict(self.headers)))
                exporter.hold.wait()
                with suppress(OSError):
                    self.send_response(exporter.status)
                    for name, value in exporter.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(exporter.body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)  # its threads are daemons: `stop` does not wait
        self.port = server.server_port
        self._running.enter_context(serving(server))

    def stop(self) -> None:
        """Refuse connections."""
        self._running.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self.stop()


@contextmanager
def raw_server(answer: Callable[[socket.socket], None], address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A server that gives each connection to `answer`, in a thread of its own; its port. At the end all are closed."""
    connections: list[socket.socket] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connections.append(self.request)
            with suppress(OSError):
                answer(self.request)

    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        allow_reuse_address = True

        def server_close(self) -> None:
            for connection in connections:
                with suppress(OSError):  # it is closed already
                    connection.shutdown(socket.SHUT_RDWR)
            super().server_close()  # waits for the threads of the connections

    with ExitStack() as stack:
        if address == "::1" and not port:  # the same port of 127.0.0.1 is nobody else's meanwhile
            reserved = stack.enter_context(socket.socket())
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            port = reserved.getsockname()[1]
        server = Server((address, port), Handler)
        stack.enter_context(serving(server))
        bound: int = server.server_address[1]
        yield bound


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body."""
        return self.body.decode()


def get(url: str, headers: Mapping[str, str] | None = None) -> Response:
    """GET. An error status is an answer, too."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=dict(headers or {})), timeout=PATIENCE_SECONDS
        ) as answer:
            return Response(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Response(error.code, dict(error.headers), error.read())


def script(path: Path) -> list[str]:
    """The words that run a script: its name, or where coverage is measured, a Python that measures it."""
    return [sys.executable, str(path)] if MEASURED else [str(path)]


def federator(*words: str | Path, python: str = sys.executable) -> list[str]:
    """The command line of the real program."""
    return [python, "-m", "federator", *map(str, words)]


class Daemon:
    """The daemon as a process, with a text as its configuration. `memory`: bytes of address space that it may have."""

    def __init__(
        self,
        folder: Path,
        text: str,
        environment: Mapping[str, str] | None = None,
        *,
        python: str = sys.executable,
        memory: int = resource.RLIM_INFINITY,
        arguments: Sequence[str] = (),
    ) -> None:
        self.config = folder / "proxy.toml"
        self.config.write_text(text, encoding="utf-8")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "daemon.log"
        self._environment = {**os.environ, **(environment or {})}
        self._python = python
        self._memory = memory
        self._arguments = arguments
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        listen = f"--web.listen-address=127.0.0.1:{self.port}"
        words = federator("serve", f"--config.file={self.config}", listen, *self._arguments, python=self._python)
        limited = ["prlimit", f"--as={self._memory}", *words] if self._memory != resource.RLIM_INFINITY else words
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(limited, cwd=ROOT, env=self._environment, stderr=log)
        try:
            eventually("the daemon is ready", self._is_ready)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.process.poll() is None and self.stop() is None:
            self.stop(signal.SIGKILL)
        if error is not None:
            print(self.log)

    @property
    def log(self) -> str:
        """Its log up to now."""
        return self._log.read_text(encoding="utf-8")

    def get(self, path: str = "/metrics", **headers: str) -> Response:
        """GET from it. In the names of headers `_` stands for `-`."""
        return get(self.url + path, {name.replace("_", "-"): value for name, value in headers.items()})

    def memory(self) -> int:
        """Bytes that it has in memory now."""
        return self._memory_of("VmRSS")

    def peak_memory(self) -> int:
        """The most bytes that it ever had in memory."""
        return self._memory_of("VmHWM")

    def _memory_of(self, field: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition(f"{field}:")[2].split()[0]) * 1024

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Send a signal; the exit status, or None if the process does not end."""
        self.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(PATIENCE_SECONDS)
        return None

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        with suppress(OSError, http.client.HTTPException):  # a connection to oneself, while nobody listens there
            return get(f"{self.url}/-/ready").status == 200
        return False


# Where the package is not called like the program.
DEBIAN_PACKAGES = {
    "promtool": "prometheus",
    "rpmbuild": "rpm",
    "dpkg-buildpackage": "dpkg-dev",
    "dh": "debhelper",
    "dh_python3": "dh-python",
    "systemd-analyze": "systemd",
    "deb-systemd-helper": "init-system-helpers",
}


def debian_program(name: str) -> str:
    """A program from a Debian package. If it is missing, the test is skipped; in CI, which installs them, it fails."""
    found = shutil.which(name)
    if found is None:
        why = f"{name} is not installed (Debian: apt install {DEBIAN_PACKAGES.get(name, name)})"
        if os.environ.get("REQUIRE_DEBIAN_PACKAGES"):
            pytest.fail(why)
        pytest.skip(why)
    return found


@contextmanager
def running(words: Sequence[str | Path], **more: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """
    A process that ends with the block: by SIGTERM, or SIGKILL where that does not help. `more` is for `Popen`.

    `Popen` itself waits at the end of its block, for ever where an assertion failed before the process was ended.
    """
    with subprocess.Popen(list(map(str, words)), **more) as started:
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                started.kill()


@contextmanager
def process(*words: str | Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that runs until the end of the block, and its log."""
    with log.open("ab") as output, running(words, cwd=ROOT, stdout=output, stderr=output) as started:
        yield started


class Prometheus:
    """A real Prometheus that scrapes one address. `more`: further keys of its job, as YAML writes them in one line."""

    def __init__(self, folder: Path, target: str, *, interval: str = "1s", more: str = "") -> None:
        self._folder = folder
        self.url = f"http://127.0.0.1:{free_port()}"
        self.config = folder / "prometheus.yml"
        self.config.write_text(
            f"global: {{scrape_interval: {interval}, scrape_timeout: {interval}}}\n"
            f"scrape_configs: [{{job_name: qubes, {more}static_configs: [{{targets: ['{target}']}}]}}]\n",
            encoding="utf-8",
        )

    @contextmanager
    def running(self, *more: str) -> Iterator[Self]:
        """Run it. `more`: further arguments."""
        words = [
            debian_program("prometheus"),
            f"--config.file={self.config}",
            f"--storage.tsdb.path={self._folder / 'tsdb'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            *more,
        ]
        with process(*words, log=self._folder / "prometheus.log"):
            yield self

    def query(self, expression: str) -> dict[str, float]:
        """The answer of an instant query: value by the label `qube`, which is empty for a series without it."""
        with suppress(OSError, ValueError):  # Prometheus is still starting
            answer: Any = json.loads(
                get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}").body
            )
            if answer["status"] == "success":
                return {one["metric"].get("qube", ""): float(one["value"][1]) for one in answer["data"]["result"]}
        return {}

    def waits_for(self, expression: str, values: Mapping[str, float]) -> None:
        """Wait until the query has this answer."""
        seen: dict[str, float] = {}

        def holds() -> bool:
            seen.clear()
            seen.update(self.query(expression))
            return seen == values

        try:
            eventually(expression, holds)
        except AssertionError:
            pytest.fail(f"{expression} is {seen}, not {values}")


def toml(
    qubes: Mapping[str, Mapping[str, int | str]], *, transport: str = "qrexec", client: Path | None = None, **more: str
) -> str:
    """
    A configuration file with these exporters, name and port or endpoint, of these qubes. A name is the same everywhere.

    `more` can have further lines for the sections `scrape` and `qrexec`, and whole sections as `rest`.
    """
    ports = {name: port for exporters in qubes.values() for name, port in exporters.items()}
    sections = [
        f"[scrape]\n{more.get('scrape', '')}",
        f'[qrexec]\nlocal_service = "{SERVICE}"\n'
        + (f'client = "{client}"\n' if client else "")
        + more.get("qrexec", ""),
        "[exporters]\n"
        + "\n".join(
            f'"{name}" = {port}' if isinstance(port, int) else f'"{name}" = {{ endpoint = "{port}" }}'
            for name, port in ports.items()
        ),
        *(
            f'[qubes."{qube}"]\ntransport = "{transport}"\nexporters = {json.dumps(list(exporters))}'
            for qube, exporters in qubes.items()
        ),
        more.get("rest", ""),
    ]
    return "\n".join(sections)
