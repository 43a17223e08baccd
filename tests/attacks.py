# SPDX-License-Identifier: GPL-3.0-or-later
"""
What hostile clients and qubes do to the daemon, one attack after the other, and what honest scrapers see meanwhile.

    python -m tests.attacks [WORD …]     those whose names contain one of the words; all of them without
    python -m tests.attacks --prometheus SCRAPES     the texts of the worst kinds, seen by a real Prometheus

The daemon runs in a process with LIMIT bytes of memory, since a NetVM is small: under the Python that runs this, and
under /usr/bin/python3, which on Debian 12 has the oldest aiohttp that is supported. Hostile clients are processes of
their own, and come from another address than the honest one, which scrapes as Prometheus does: with its timeout, and
compressed. Each of its pages has to come in time, with every sample of the honest qubes, none older than the scrape.

`make attacks` prints the table of SECURITY.md. test_attacks.py does a few of them shortly.
"""

import gzip
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple

from tests.helpers import ROOT, SERVICE, recording
from tests.parts import Daemon, Prometheus, eventually, raw_server, running, toml
from tests.standin.qubes import Qubes

# Bytes of address space of the daemon.
LIMIT = 400 << 20
# Seconds: what an honest scraper waits, as Prometheus does by default; and between its scrapes.
TIMEOUT = 10.0
INTERVAL = 2.0
# How much older than the scrape a value may be, in seconds: scrapers who come within a second share what comes.
SHARED = 1.0
HONEST = ("work", "personal", "mail")
HONEST_ADDRESS, HOSTILE_ADDRESS = "127.0.0.2", "127.0.0.1"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
# What a scrape is allowed by default.
LARGEST = 16 << 20
MOST_SAMPLES = 45_000

Answer = Callable[[socket.socket], None]


# -- what qubes do -----------------------------------------------------------------------------------------------------


def sent(body: bytes) -> bytes:
    """A whole HTTP answer."""
    return b"%sContent-Length: %d\r\n\r\n%s" % (HEAD, len(body), body)


def answering(body: Callable[[], bytes]) -> Answer:
    """An exporter that says what `body` returns, each time."""

    def answer(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(sent(body()))

    return answer


def honest() -> bytes:
    """A real text, and the time at which it was made."""
    return recording("node") + b"served_at_seconds %f\n" % time.time()


PEACEFUL = answering(lambda: b"m 1\n")


def hanging(connection: socket.socket) -> None:
    """Takes the request and says nothing, until the other side goes away."""
    while connection.recv(1 << 16):
        pass


def slow(connection: socket.socket) -> None:
    """Takes 0.3 s."""
    connection.recv(1 << 16)
    time.sleep(0.3)
    connection.sendall(sent(b"m 1\n"))


def in_tiny_chunks(connection: socket.socket) -> None:
    """A body in chunks of one byte."""
    connection.recv(1 << 16)
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\nm\r\n" * 10_000)


def _padded(lines: bytes) -> bytes:
    """As large as it may be, with comments."""
    return lines + (b"# " + b"x" * 1000 + b"\n") * ((LARGEST - len(lines)) // 1003)


_NUMBERS = count()


def _new_series() -> bytes:
    """As many series as may be, all of them new each time."""
    number = next(_NUMBERS)
    return b"".join(
        b'hostile_%d{number="%d",filler="%s"} 1\n' % (number % 7, n, b"x" * 300) for n in range(MOST_SAMPLES)
    )


_LARGE = _padded(b"large 1\n")
_KNOWN = b"".join(b'known{number="%d",filler="%s"} 1\n' % (n, b"y" * 300) for n in range(MOST_SAMPLES))
_NAMES = b"".join(b"# HELP n%d %s\n# TYPE n%d gauge\nn%d 1\n" % (n, b"h" * 3000, n, n) for n in range(4900))
_KINDS: tuple[Callable[[], bytes], ...] = (
    _new_series,
    lambda: _LARGE,
    lambda: _KNOWN,
    lambda: _NAMES,
    lambda: _KNOWN if time.time() % 20 < 10 else b"small 1\n",
)
WORST = [[answering(kind)] for kind in _KINDS * 4]
FORWARD = "/forward?target={qube}&port={port}"


# -- what clients do: each is a process, until it is killed ------------------------------------------------------------


def connection_to(port: int) -> socket.socket:
    """One of the hostile client's connections."""
    return socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(HOSTILE_ADDRESS, 0))


def request(path: str, *headers: str) -> bytes:
    """A request that is as it should be."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def pipelines(port: int) -> None:
    """Sends requests, and reads no answer."""
    while True:
        with suppress(OSError), connection_to(port) as sock:
            while True:
                sock.send(request("/-/healthy") * 1000)


def asks_and_goes(port: int) -> None:
    """Says that it waits ten minutes, and is gone."""
    while True:
        with suppress(OSError):
            for one in [connection_to(port) for _ in range(40)]:
                one.sendall(request("/metrics", "X-Prometheus-Scrape-Timeout-Seconds: 600"))
                one.close()
        time.sleep(0.2)


def is_idle(port: int) -> None:
    """Opens connections, and says nothing or half of a request."""
    kept: list[socket.socket] = []
    while True:
        with suppress(OSError):
            kept.append(connection_to(port))
            if len(kept) % 2:
                kept[-1].sendall(b"GET /metrics HT")
        del kept[:-900]


def is_patient(port: int) -> None:
    """One client after the other that says it waits ten minutes, and does."""
    kept: list[socket.socket] = []
    while True:
        with suppress(OSError):
            kept.append(connection_to(port))
            kept[-1].sendall(request("/metrics", "X-Prometheus-Scrape-Timeout-Seconds: 600"))
        del kept[:-50]
        time.sleep(0.5)


def loops(path: str, clients: int) -> Callable[[int], None]:
    """So many clients that ask again as soon as they are answered."""
    target = {"qube": os.environ.get("HOSTILE_QUBE"), "port": os.environ.get("HOSTILE_PORT")}

    def one(port: int) -> None:
        while True:
            with suppress(OSError), connection_to(port) as sock:
                sock.sendall(request(path.format(**target), "Connection: close"))
                while sock.recv(1 << 16):
                    pass

    def all_of_them(port: int) -> None:
        for _ in range(clients):
            threading.Thread(target=one, args=(port,), daemon=True).start()
        signal.pause()

    return all_of_them


def reads_slowly(port: int) -> None:
    """Asks for uncompressed pages, each another one, and reads a little of each."""
    kept: list[socket.socket] = []
    while True:
        with suppress(OSError):
            kept.append(connection_to(port))
            qubes = "&".join(f"qube={name}" for name in HONEST[: 1 + len(kept) % len(HONEST)])
            kept[-1].sendall(request(f"/metrics?{qubes}" if len(kept) % 4 else "/metrics"))
        del kept[:-60]
        time.sleep(0.05)


NO_HTTP = (
    b"\x16\x03\x01\x02\x00\r\n\r\n",
    b"GET /\x1b[2J HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
)


def is_bad(port: int) -> None:
    """Sends what is no HTTP, and resets the connection."""
    while True:
        for text in NO_HTTP:
            with suppress(OSError), connection_to(port) as sock:
                sock.sendall(text)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def rebinds(port: int) -> None:
    """Asks under a name of its own, as a browser does that was led here."""
    while True:
        with suppress(OSError), connection_to(port) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            assert not sock.recv(1 << 16).startswith(b"HTTP/1.1 2")


# -- the table ---------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the honest scraper saw: how many scrapes, how many good ones, seconds of each page, what was wrong."""

    scrapes: int = 0
    good: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class World:
    """The machine that is attacked. `war`: set while hostile exporters are hostile; they are small and good before."""

    honest: Sequence[str]
    qubes: Qubes
    daemon: Daemon
    asked: list[float]  # when honest exporters were asked
    war: threading.Event
    hostile: dict[str, tuple[str, int]]  # by attack: the first of its qubes, and the port of an exporter there
    most_calls: int
    seen: Seen = field(default_factory=Seen)


class Attack(NamedTuple):
    """
    One row. `hostile`: what the exporters of each hostile qube do. `client`: what a hostile client does.

    `during`: what else happens, again and again. `verdict`: what else is wrong afterwards, or an empty text. Both are
    told the first hostile qube.
    """

    name: str
    cost: str
    hostile: Sequence[Sequence[Answer]] = ()
    client: Callable[[int], None] | None = None
    during: Callable[[World, str], None] | None = None
    verdict: Callable[[World, str], str] = lambda *_: ""


def few_calls(world: World, qube: str) -> str:
    """A qube that answers and ends is called again after some seconds."""
    calls = len(world.qubes.calls(qube))
    allowed = 2 + sum(world.seen.seconds) / 5 + len(world.seen.seconds) * INTERVAL / 5
    return "" if calls <= allowed else f"{calls} calls to the qube that ends"


def few_lines(world: World, _: str = "") -> str:
    """What anybody can write into the log is limited."""
    log = world.daemon.log
    lines = log.count("\n")
    if "Traceback" in log:
        return "a traceback"
    return "" if lines < 20 * (10 + INTERVAL * len(world.seen.seconds)) else f"{lines} lines of log"


def rarely_asked(world: World, _: str) -> str:
    """An exporter is asked about once a second."""
    asked = len(world.asked) / len(world.honest)
    allowed = 15 + sum(world.seen.seconds) + len(world.seen.seconds) * INTERVAL
    return "" if asked <= 1.2 * allowed else f"each exporter asked {asked:.0f} times"


def reloads(world: World, _: str) -> None:
    """SIGHUP, without a pause."""
    world.daemon.process.send_signal(signal.SIGHUP)
    time.sleep(0.05)


def ends(world: World, qube: str) -> None:
    """A qube ends its call after each answer."""
    for pid in _services_of(world, qube):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)


def _services_of(world: World, qube: str) -> Iterator[int]:
    wanted = f"{world.qubes.root}/qubes/{qube}/services/".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if wanted in (folder / "cmdline").read_bytes():
                    yield int(folder.name)


# The numbers are those of SECURITY.md.
ATTACKS = (
    Attack("none", ""),
    Attack("1 pipelined requests, no answer read", "a connection", client=pipelines),
    Attack("2 requests of clients that are gone, one hanging exporter", "3 kB a second", [[hanging]], asks_and_goes),
    Attack("3 idle and half-open connections", "a connection each", client=is_idle),
    Attack("4 clients that wait ten minutes, one hanging exporter", "2 requests a second", [[hanging]], is_patient),
    Attack("5 twelve texts of 16 MiB", "3 qubes", [[answering(lambda: _LARGE)] * 4] * 3),
    Attack("6 a qube that answers and ends", "1 qube", [[answering(lambda: b"m 1\n")]], during=ends, verdict=few_calls),
    Attack("7 clients that loop on /forward", "38 connections", [[slow]], loops(FORWARD, 38)),
    Attack("8 texts of the worst kinds, one hanging exporter", "20 qubes", [*WORST, [hanging]]),
    Attack("9 clients that loop on /metrics", "10 connections", client=loops("/metrics", 10), verdict=rarely_asked),
    Attack("10 requests that are no HTTP", "some hundred a second", client=is_bad, verdict=few_lines),
    Attack("13 a body in chunks of one byte", "1 qube", [[in_tiny_chunks]]),
    Attack("15 requests under a foreign name", "a web page", client=rebinds),
    Attack("16 SIGHUP all the time", "root in the NetVM", during=reloads),
    Attack("17 clients that read slowly, each another page", "60 connections", client=reads_slowly),
)


@contextmanager
def attacked(
    folder: Path, attacks: Sequence[Attack], python: str = sys.executable, honest_qubes: Sequence[str] = HONEST
) -> Iterator[World]:
    """The machine, with its honest and hostile qubes, and the daemon that scrapes all of them. There is peace yet."""
    machine = Qubes(folder / "machine", SERVICE)
    asked: list[float] = []
    war = threading.Event()

    def honestly() -> bytes:
        asked.append(time.time())
        return honest()

    def at_war(hostile_answer: Answer) -> Answer:
        def answer(connection: socket.socket) -> None:
            (hostile_answer if war.is_set() else PEACEFUL)(connection)

        return answer

    with ExitStack() as stack:
        config: dict[str, dict[str, int]] = {}
        for qube in honest_qubes:
            config[qube] = {f"honest-{qube}": stack.enter_context(raw_server(answering(honestly)))}
        hostile: dict[str, tuple[str, int]] = {}
        for attack in attacks:
            for answers in attack.hostile:
                qube = f"evil{len(config)}"
                config[qube] = {
                    f"{qube}-{port}": stack.enter_context(raw_server(at_war(one))) for port, one in enumerate(answers)
                }
                hostile.setdefault(attack.name, (qube, next(iter(config[qube].values()))))
        for qube in config:
            machine.add(qube)
        (folder / "daemon").mkdir()
        proxy = stack.enter_context(
            Daemon(folder / "daemon", toml(config, client=machine.client), machine.env, python=python, memory=LIMIT)
        )
        yield World(honest_qubes, machine, proxy, asked, war, hostile, len(config))
    eventually("no process is left", lambda: not machine.left_behind())


@contextmanager
def hostilities(world: World, attacks: Sequence[Attack]) -> Iterator[None]:
    """The attacks, all at one time, until the end of the block."""
    with ExitStack() as stack:
        world.war.set()
        for attack in attacks:
            qube, port = world.hostile.get(attack.name, ("", 0))
            if attack.client is not None:
                # On another machine, whose time is not the daemon's.
                words = [
                    "nice",
                    "-n19",
                    sys.executable,
                    "-m",
                    "tests.attacks",
                    "--client",
                    attack.name,
                    str(world.daemon.port),
                ]
                env = {**os.environ, "HOSTILE_QUBE": qube, "HOSTILE_PORT": str(port)}
                stack.enter_context(running(words, cwd=ROOT, env=env))
            if attack.during is not None:
                thread = threading.Thread(target=_repeat, args=(attack.during, world, qube))
                thread.start()
                stack.callback(thread.join)
        stack.callback(world.war.clear)
        yield


def _repeat(what: Callable[[World, str], None], world: World, qube: str) -> None:
    while world.war.is_set():
        what(world, qube)


def scrapes(world: World, seconds: float) -> None:
    """Honest scrapes, as often as a Prometheus makes them, for so many seconds."""
    end = time.monotonic() + seconds
    while not world.seen.scrapes or time.monotonic() < end:
        wrong = scrape(world)
        world.seen.scrapes += 1
        world.seen.good += not wrong
        world.seen.wrong += [wrong] if wrong else []
        time.sleep(INTERVAL)


def verdicts(world: World, attacks: Sequence[Attack]) -> list[str]:
    """What is wrong beside that."""
    if world.daemon.process.poll() is not None:
        return ["the daemon is gone"]
    found = (attack.verdict(world, world.hostile.get(attack.name, ("", 0))[0]) for attack in attacks)
    return [verdict for verdict in found if verdict]


def scrape(world: World) -> str:
    """One honest scrape; what is wrong with it, or an empty text."""
    started, wall = time.monotonic(), time.time()
    address = (HONEST_ADDRESS, 0)
    connection = http.client.HTTPConnection("127.0.0.1", world.daemon.port, timeout=TIMEOUT, source_address=address)
    headers = {"Accept-Encoding": "gzip", "X-Prometheus-Scrape-Timeout-Seconds": str(TIMEOUT)}
    # When it was connected, and when the page began: of a page that does not come whole, they say what took so long.
    reached: list[float] = []
    try:
        connection.connect()
        reached.append(time.monotonic() - started)
        connection.request("GET", "/metrics", headers=headers)
        answer = connection.getresponse()
        reached.append(time.monotonic() - started)
        body = answer.read()
    except OSError as error:
        return f"no page: {error}; connected and begun after {[round(seconds, 1) for seconds in reached]} s"
    finally:
        connection.close()
    seconds = time.monotonic() - started
    world.seen.seconds.append(seconds)
    if answer.status != 200:
        return f"status {answer.status}: {body.decode(errors='replace').strip()}"
    if seconds > TIMEOUT:
        return f"late: {seconds:.1f} s"
    return incomplete(gzip.decompress(body).decode(), wall, world.honest)


def incomplete(page: str, wall: float, qubes: Sequence[str]) -> str:
    """What an honest qube lost, or an empty text."""
    for qube in qubes:
        samples = len(re.findall(rf'^\w+{{qube="{qube}",exporter="honest', page, re.MULTILINE))
        made = re.search(rf'^served_at_seconds{{qube="{qube}",.*}} (\S+)$', page, re.MULTILINE)
        if made is None:
            return f"{qube} is down"
        if float(made[1]) < wall - SHARED - 0.5:
            return f"{qube}'s values are {wall - float(made[1]):.1f} s older than the scrape"
        if samples < SAMPLES:
            return f"{qube} has {samples} of {SAMPLES} samples"
    return ""


SAMPLES = len(re.findall(rb"^[^#\n]", recording("node"), re.MULTILINE)) + 1


def run(attack: Attack, python: str, seconds: float) -> tuple[Seen, str]:
    """What honest scrapers saw in so many seconds, and what else was wrong; and the memory of the daemon."""
    with tempfile.TemporaryDirectory() as made, attacked(Path(made), [attack], python) as world:
        with hostilities(world, [attack]):
            scrapes(world, seconds)
            world.seen.wrong += verdicts(world, [attack])
        if world.seen.wrong:
            print(world.daemon.log, file=sys.stderr)
        gone = world.daemon.process.poll() is not None
        return world.seen, "" if gone else f"{world.daemon.peak_memory() >> 20} MB"


def seen_by_prometheus(folder: Path, scrapes: int) -> dict[str, float]:
    """What a real Prometheus says of so many scrapes, with its default timeout, while 20 qubes do their worst."""
    (worst,) = (attack for attack in ATTACKS if len(attack.hostile) > len(WORST))
    (folder / "prometheus").mkdir()
    with attacked(folder, [worst]) as world, hostilities(world, [worst]), ExitStack() as stack:
        prometheus = Prometheus(folder / "prometheus", f"127.0.0.1:{world.daemon.port}", interval="10s")
        server = stack.enter_context(prometheus.running())
        window = f"[{scrapes * 10 + 60}s]"

        def asked() -> float:
            return server.query(f"count_over_time(up{window})").get("", 0.0)

        while asked() < scrapes:
            time.sleep(2)
        # Every sample of the text stands before this one.
        complete = server.query(f'count_over_time(served_at_seconds{{qube=~"{"|".join(HONEST)}"}}{window})')
        return {
            "scrapes": asked(),
            "up": server.query(f"sum_over_time(up{window})")[""],
            "longest": server.query(f"max_over_time(scrape_duration_seconds{window})")[""],
            "complete": min(complete.get(qube, 0.0) for qube in HONEST),
            "memory": world.daemon.peak_memory() >> 20,
        }


def aiohttp_of(python: str) -> str:
    """Which version it has."""
    code = "import aiohttp; print(aiohttp.__version__)"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main(words: Sequence[str]) -> int:
    """The table; 1 if an attack did something to an honest scraper."""
    if words[:1] == ["--client"]:
        (attack,) = (one for one in ATTACKS if one.name == words[1])
        assert attack.client is not None, "it has a client"
        attack.client(int(words[2]))
    if words[:1] == ["--prometheus"]:
        with tempfile.TemporaryDirectory() as made:
            print(seen_by_prometheus(Path(made), int(words[1])))
        return 0
    seconds = float(os.environ.get("SECONDS_EACH", "20"))
    failed = False
    pythons = {aiohttp_of(python): python for python in (sys.executable, "/usr/bin/python3")}
    print("| attack | its cost | aiohttp | honest scrapes | longest | memory |\n|---|---|---|---|---|---|", flush=True)
    for attack in ATTACKS:
        if words and not any(word in attack.name for word in words):
            continue
        for version, python in pythons.items():
            seen, peak = run(attack, python, seconds)
            failed = failed or bool(seen.wrong)
            said = f"{seen.good} of {seen.scrapes}" + "".join(f"; {wrong}" for wrong in dict.fromkeys(seen.wrong))
            fields = (attack.name, attack.cost, version, said, f"{max(seen.seconds, default=0.0):.1f} s", peak)
            print(f"| {' | '.join(fields)} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
