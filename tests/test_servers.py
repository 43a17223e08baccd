# SPDX-License-Identifier: GPL-3.0-or-later
"""
What a real Prometheus takes from a server on loopback, it takes through us as well: one table of servers, each of them
scraped by a real Prometheus directly and on the page.
"""

import gzip
import json
import socket
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.parts import Daemon, Prometheus, debian_program, eventually, free_port, get, process, raw_server, toml

pytestmark = pytest.mark.slow

BODY = b"# HELP ok_total A counter.\n# TYPE ok_total counter\nok_total 3\n"
PLAIN = "Content-Type: text/plain; version=0.0.4"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


class Asked(NamedTuple):
    """What a server was asked."""

    path: str
    version: str
    headers: dict[str, str]
    port: int


def reply(
    body: bytes = BODY, *headers: str, status: str = "200 OK", version: str = "1.1", length: int | None = -1
) -> bytes:
    """An answer. `length` is what its head says: of the body where it is -1, nothing where it is None."""
    said = [] if length is None else [f"Content-Length: {len(body) if length < 0 else length}"]
    return "\r\n".join([f"HTTP/{version} {status}", *(headers or [PLAIN]), *said, "", ""]).encode() + body


def moved(asked: Asked, to: str, status: str = "307 Temporary Redirect") -> bytes:
    """What leads from /metrics to somewhere else on this server, where the text is."""
    if asked.path == "/metrics":
        return reply(b"", f"Location: {to.format(port=asked.port)}", status=status)
    return reply() if asked.path == "/metrics/" else reply(b"", status="404 Not Found")


def accepts(asked: Asked, media_type: str) -> bytes:
    """What a server says that has text of one type only, whatever it is called, and is strict about it."""
    ranges = [one.split(";")[0].strip() for one in asked.headers.get("accept", "*/*").split(",")]
    return reply() if {"*/*", media_type} & set(ranges) else reply(b"", status="406 Not Acceptable")


# Name: what it says, and whether Prometheus takes it.
SERVERS: dict[str, tuple[Callable[[Asked], bytes], bool]] = {
    "plain": (lambda _: reply(), True),
    "no length": (lambda _: reply(length=None), True),
    "http 1.0": (lambda _: reply(version="1.0", length=None), True),
    "http 1.1 only": (
        lambda asked: reply() if asked.version == "HTTP/1.1" else reply(b"", status="426 Upgrade Required"),
        True,
    ),
    "chunks": (lambda _: reply(CHUNKS, "Transfer-Encoding: chunked", length=None), True),
    "chunks and a length": (lambda _: reply(CHUNKS, "Transfer-Encoding: chunked", length=3), True),
    "chunks, cut": (lambda _: reply(CHUNKS[:-20], "Transfer-Encoding: chunked", length=None), False),
    "transfer encoding not known": (lambda _: reply(BODY, "Transfer-Encoding: gzip"), False),
    "length, cut": (lambda _: reply(length=len(BODY) + 1), False),
    "length no number": (lambda _: reply(BODY, "Content-Length: many", length=None), False),
    "two lengths": (lambda _: reply(BODY, f"Content-Length: {len(BODY)}"), True),
    "two lengths that differ": (lambda _: reply(BODY, "Content-Length: 5"), False),
    "no last newline": (lambda _: reply(BODY[:-1]), True),
    "no last newline, in chunks": (
        lambda _: reply(b"5\r\nok 31\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=None),
        True,
    ),
    "accepts json only": (lambda asked: accepts(asked, "application/json"), True),
    "accepts text only": (lambda asked: accepts(asked, "text/plain"), True),
    "redirect to a slash": (lambda asked: moved(asked, "/metrics/"), True),
    "redirect, absolute": (lambda asked: moved(asked, "http://127.0.0.1:{port}/metrics/", "301 Moved"), True),
    "redirect, relative": (lambda asked: moved(asked, "metrics/", "308 Permanent Redirect"), True),
    "redirect to localhost": (lambda asked: moved(asked, "//localhost:{port}/metrics/", "302 Found"), True),
    "redirect, see other": (lambda asked: moved(asked, "/metrics/", "303 See Other"), True),
    "redirect to nothing": (lambda asked: moved(asked, "/gone"), False),
    "redirect without end": (lambda _: reply(b"", "Location: /metrics", status="302 Found"), False),
    "redirect nowhere": (lambda _: reply(b"", status="302 Found"), False),
    "gzip": (lambda _: reply(gzip.compress(BODY), PLAIN, "Content-Encoding: gzip"), True),
    "gzip, two members": (
        lambda _: reply(gzip.compress(BODY[:20]) + gzip.compress(BODY[20:]), PLAIN, "Content-Encoding: gzip"),
        True,
    ),
    "gzip, cut": (lambda _: reply(gzip.compress(BODY)[:-4], PLAIN, "Content-Encoding: gzip"), False),
    "gzip that is none": (lambda _: reply(BODY, PLAIN, "Content-Encoding: gzip"), False),
    "content encoding utf-8": (lambda _: reply(BODY, PLAIN, "Content-Encoding: UTF-8"), True),
    "content encoding br that is none": (lambda _: reply(BODY, PLAIN, "Content-Encoding: br"), True),
    "line feeds": (lambda _: b"HTTP/1.0 200 OK\nContent-Type: text/plain\n\n" + BODY, True),
    "interim answers": (
        lambda _: b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + reply(),
        True,
    ),
    "head of 20 kB": (lambda _: reply(BODY, PLAIN, "X-Pad: " + "x" * 20_000), True),
    "head of 1 MB": (lambda _: reply(BODY, PLAIN, *["X-Pad: " + "x" * 10_000] * 100), True),
    "head of 11 MB": (lambda _: reply(BODY, PLAIN, *["X-Pad: " + "x" * 100_000] * 110), False),
    "header on two lines": (lambda _: reply(BODY, PLAIN, "X-Pad: x", " y"), True),
    "header without a colon": (lambda _: reply(BODY, PLAIN, "X-Pad"), False),
    "no content": (lambda _: reply(b"", status="204 No Content", length=None), False),
    "not found": (lambda _: reply(status="404 Not Found"), False),
    "created": (lambda _: reply(status="201 Created"), False),
    "no answer": (lambda _: b"", False),
    "not http": (lambda _: b"SSH-2.0-OpenSSH_9.2\r\n\r\n", False),
    "https": (lambda _: b"\x15\x03\x01\x00\x02\x02\x46", False),
}
# On ::1 only.
IPV6 = {"ipv6": (lambda _: reply(), True), "ipv6, redirect": (lambda asked: moved(asked, "/metrics/"), True)}


def answers(said: Callable[[Asked], bytes]) -> Callable[[socket.socket], None]:
    """Reads a request, and answers with what this says of it."""

    def answer(connection: socket.socket) -> None:
        untrusted = b""
        while b"\r\n\r\n" not in untrusted:
            piece = connection.recv(4096)
            if not piece:
                return
            untrusted += piece
        first, *rest = untrusted.decode().split("\r\n")
        _, path, version = first.split(" ")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in rest}
        connection.sendall(said(Asked(path, version, headers, connection.getsockname()[1])))

    return answer


class Seen(NamedTuple):
    """What Prometheus has of one server: is it up, and its samples."""

    up: bool
    samples: frozenset[tuple[tuple[str, str], ...]]


def series(prometheus: Prometheus, selector: str) -> list[dict[str, str]]:
    """The newest samples, as labels with the value."""
    try:
        answer: Any = json.loads(
            get(f"{prometheus.url}/api/v1/query?{urllib.parse.urlencode({'query': selector})}").body
        )
    except (OSError, ValueError):  # it is still starting
        return []
    return [one["metric"] | {"value": one["value"][1]} for one in answer["data"]["result"]]


OWN = ("up", "scrape_", "qubes_proxy_")


def seen_by(found: list[dict[str, str]], label: str, up: str) -> dict[str, Seen]:
    """By server: `label` has its name, and the metric `up` says whether it is up."""
    seen = {}
    for name in {one[label] for one in found if label in one}:
        of_it = [one for one in found if one.get(label) == name]
        samples = [
            tuple(
                sorted((key, value) for key, value in one.items() if key not in ("job", "instance", "qube", "exporter"))
            )
            for one in of_it
            if not one["__name__"].startswith(OWN)
        ]
        ups = [one["value"] == "1" for one in of_it if one["__name__"] == up]
        if ups:
            seen[name] = Seen(ups[0], frozenset(samples))
    return seen


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The address of each server, by name; and of a node exporter on either loopback address."""
    with ExitStack() as stack:
        found = {
            **{
                name: f"127.0.0.1:{stack.enter_context(raw_server(answers(said)))}"
                for name, (said, _) in SERVERS.items()
            },
            **{
                name: f"[::1]:{stack.enter_context(raw_server(answers(said), '::1'))}"
                for name, (said, _) in IPV6.items()
            },
        }
        for address in ("127.0.0.1", "[::1]"):
            listen = f"{address}:{free_port()}"
            words = [debian_program("prometheus-node-exporter"), f"--web.listen-address={listen}"]
            stack.enter_context(process(*words, "--collector.disable-defaults", "--collector.uname",
                                        log=tmp_path / f"{address}.log"))  # fmt: skip
            eventually("it listens", partial(_answers, listen))
            found[f"node exporter on {address}"] = listen
        yield found


def _answers(address: str) -> bool:
    try:
        return get(f"http://{address}/metrics").status == 200
    except OSError:
        return False


def test_what_prometheus_takes_from_a_server_it_takes_through_us(servers: dict[str, str], tmp_path: Path) -> None:
    """Directly and on the page: up or not, and the same samples."""
    ports = {name: int(address.rpartition(":")[2]) for name, address in servers.items()}
    labels = {name: f"s{index}" for index, name in enumerate(servers)}
    text = toml({"sys-net": {labels[name]: port for name, port in ports.items()}}, transport="local",
                scrape="timeout = '5s'\n")  # fmt: skip
    with Daemon(tmp_path, text) as daemon:
        prometheus = Prometheus(tmp_path, f"127.0.0.1:{daemon.port}", interval="5s")
        jobs = [
            f"{{job_name: page, static_configs: [{{targets: ['127.0.0.1:{daemon.port}']}}]}}",
            *(
                f"{{job_name: {labels[name]}, static_configs: [{{targets: ['{address}']}}]}}"
                for name, address in servers.items()
            ),
        ]
        prometheus.config.write_text(
            f"global: {{scrape_interval: 5s, scrape_timeout: 5s}}\nscrape_configs: [{', '.join(jobs)}]\n",
            encoding="utf-8",
        )
        direct: dict[str, Seen] = {}
        on_page: dict[str, Seen] = {}

        def all_are_seen() -> bool:
            direct.update(seen_by(series(prometheus, '{job!="page",job!=""}'), "job", "up"))
            on_page.update(seen_by(series(prometheus, '{job="page"}'), "exporter", "qubes_proxy_exporter_up"))
            return direct.keys() == on_page.keys() == set(labels.values())

        with prometheus.running():
            eventually("all are scraped, both ways", all_are_seen)
    names = {label: name for name, label in labels.items()}
    real = {labels[name] for name in servers if name.startswith("node exporter")}
    for label in real:
        assert {dict(one)["__name__"] for one in direct[label].samples} == {
            dict(one)["__name__"] for one in on_page[label].samples
        }
    differing = {
        names[label]: (direct[label], on_page[label]) for label in names if direct[label] != on_page[label]
        and label not in real
    }  # fmt: skip
    assert not differing
    expected = {name: up for name, (_, up) in (SERVERS | IPV6).items()}
    assert {names[label]: seen.up for label, seen in direct.items() if label not in real} == expected
    assert all(bool(seen.samples) == seen.up for seen in on_page.values())
