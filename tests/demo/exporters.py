# SPDX-License-Identifier: GPL-3.0-or-later
"""
Small real exporters for the demo, on prometheus-client: `exporters.py KIND PORT`, until stdin ends.

The process that starts an exporter holds the other end of its stdin. So the exporter ends with that process.
"""

import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    Summary,
    make_wsgi_app,
)

TICK_SECONDS = 1.0
# How long the encoder takes to answer: a scrape is allowed 2.5 s, less 0.25 for the way.
SLOW_SECONDS = 2.05
# How long the sensor can be read, and how long it then cannot be read.
UP_SECONDS, DOWN_SECONDS = 30.0, 10.0

# What the printer sends beside good lines.
BAD_LINES = b"""printer_toner_percent{color='black'} 40
printer-jobs 3
"""

# Called at each tick, to change the numbers.
Tick = Callable[[], None]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its parent's name for it
        """Print nothing: the terminal is for the daemon's log."""


@contextmanager
def listening(port: int, registry: CollectorRegistry, kind: str) -> Iterator[None]:
    """Serve /metrics on the loopback."""
    app = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if kind == "encoder":
            time.sleep(SLOW_SECONDS)
        return [*app(environ, start_response), *([BAD_LINES] if kind == "printer" else [])]

    server = make_server("127.0.0.1", port, answer, server_class=_Server, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def shop(registry: CollectorRegistry) -> Tick:
    """An application: its requests by path and code, their durations and sizes."""
    requests = Counter("shop_http_requests", "Requests answered.", ["path", "code"], registry=registry)
    seconds = Histogram("shop_http_request_seconds", "Time to answer.", ["path"], registry=registry)
    size = Summary("shop_http_response_bytes", "Size of the answers.", registry=registry)
    carts = Gauge("shop_carts", "Carts that are not empty.", registry=registry)

    def tick() -> None:
        for path in ("/", "/basket", 'C:\\"quoted"\npath'):
            for _ in range(random.randrange(5)):
                requests.labels(path, random.choice(["200", "200", "200", "404", "500"])).inc()
                seconds.labels(path).observe(random.expovariate(10))
                size.observe(random.randrange(200, 20_000))
        carts.set(random.randrange(30))

    return tick


def process(registry: CollectorRegistry) -> Tick:
    """The metrics that prometheus-client has about its own process."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return lambda: None


def sensor(registry: CollectorRegistry) -> Tick:
    """Two temperatures."""
    celsius = Gauge("sensor_celsius", "Temperature.", ["sensor"], registry=registry)

    def tick() -> None:
        for name in ("cpu", "disk"):
            celsius.labels(name).set(round(random.gauss(40, 2), 1))

    return tick


def encoder(registry: CollectorRegistry) -> Tick:
    """A program that has better things to do than to answer."""
    return Counter("encoder_frames", "Frames encoded.", registry=registry).inc


def printer(registry: CollectorRegistry) -> Tick:
    """A program whose author did not read how Prometheus' texts are written."""
    return Counter("printer_pages", "Pages printed.", registry=registry).inc


KINDS = {"shop": shop, "process": process, "sensor": sensor, "encoder": encoder, "printer": printer}


def run(kind: str, port: int) -> None:
    """Serve until stdin ends."""
    registry = CollectorRegistry()
    tick = KINDS[kind](registry)
    flaky = kind == "sensor"
    is_up, ended = True, False
    while not ended:
        server: AbstractContextManager[None] = listening(port, registry, kind) if is_up else nullcontext()
        with server:
            left = (UP_SECONDS if is_up else DOWN_SECONDS) if flaky else float("inf")
            while left > 0 and not ended:
                tick()
                ended = bool(select.select([sys.stdin], [], [], TICK_SECONDS)[0])
                left -= TICK_SECONDS
        is_up = not is_up


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends run.py, which closes our stdin
    run(sys.argv[1], int(sys.argv[2]))
