# SPDX-License-Identifier: GPL-3.0-or-later
"""
`make bench`: what a scrape costs, as ratios measured side by side in one run. Prints the tables, and draws the plot.

Times are CPU times (user and system) of the daemon's process; what runs in the qubes is not ours to count. Machines are
shared and noisy: whatever is compared takes turns, round by round, and medians are told.
"""

import gc
import http.client
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from federator.model import Exporter, Limits, Target
from federator.text.exposition import Reader
from federator.text.memory import Memory
from federator.text.merge import Merger
from tests.bench import dom0, looks, texts
from tests.bench.plain import parsed
from tests.helpers import ROOT, finish
from tests.parts import eventually, federator, free_port, get

ROUNDS = 7
SCRAPES = 10
EXPORTERS = {"node": 9100, "process": 9256, "redis": 9121}
LARGE = 500_000  # samples of one target
PORTS = {**EXPORTERS, "large": 9999}
# So many different scrapes, before a series that was new is seen again.
CHURN = 60
CHANCE = random.Random(1)  # the same bodies at every run

# -- reading and merging, in this process ------------------------------------------------------------------------------

Scrapes = Sequence[Mapping[Target, bytes]]


class Core:
    """Reading and merging, with what is remembered from scrape to scrape."""

    def __init__(self, targets: Sequence[Target], limits: Limits) -> None:
        memory = Memory(limits, 1 << 30)
        self.readers = {target: Reader(target, limits, memory) for target in targets}
        self.merger = Merger()

    def page(self, bodies: Mapping[Target, bytes]) -> bytes:
        """One scrape."""
        readings = [finish(self.readers[target].read(body)) for target, body in bodies.items()]
        return b"".join(finish(self.merger.merge(readings)))


def seconds(work: Callable[[], object]) -> float:
    """CPU time."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def qubes(count: int, exporters: Sequence[str]) -> list[Target]:
    """So many qubes with these exporters."""
    return [Target(f"qube{number}", Exporter(name, EXPORTERS[name])) for number in range(count) for name in exporters]


def naive(bodies: Mapping[Target, bytes]) -> bytes:
    """The same with prometheus-client alone."""
    return parsed([(target.qube, target.exporter.name, body) for target, body in bodies.items()])


def compare_cores(name: str, scrapes: Scrapes, limits: Limits, *, rounds: int = ROUNDS, warm: bool = True) -> str:
    """A line of the table: the scrapes one after the other, against prometheus-client and against a new memory."""
    count = sum(map(texts.samples, scrapes[0].values()))
    core = Core(list(scrapes[0]), limits)
    if warm:
        for bodies in scrapes[:3]:
            core.page(bodies)
    ours, theirs, cold = [], [], []
    for number in range(rounds):
        bodies = scrapes[(number + 3) % len(scrapes)]
        ours.append(seconds(lambda: (core if warm else Core(list(bodies), limits)).page(bodies)))  # noqa: B023
        theirs.append(seconds(lambda: naive(bodies)))  # noqa: B023
        cold.append(seconds(lambda: Core(list(bodies), limits).page(bodies)))  # noqa: B023
    mine, them, anew = (statistics.median(values) / count * 1e6 for values in (ours, theirs, cold))
    return f"| {name} | {count} | {mine:.2f} | {them:.1f} | 1/{them / mine:.1f} | {mine / anew:.2f} |"


def cores() -> Iterator[str]:
    """Reading and merging alone."""
    yield "| reading and merging | samples | µs/sample | prometheus-client alone | ratio | of reading everything |"
    yield "|---|---|---|---|---|---|"
    limits = Limits()
    targets = qubes(20, ["node", "process"])
    plain = {name: texts.recorded(name) for name in EXPORTERS}
    scrapes: Scrapes = [{target: plain[target.exporter.name][k] for target in targets} for k in range(6)]
    yield compare_cores("20 qubes × node + process", scrapes, limits)
    yield compare_cores("the same, first scrape", scrapes, limits, warm=False)
    new = {name: texts.all_values_new(plain[name], CHANCE) for name in ("node", "process")}
    all_new: Scrapes = [{target: new[target.exporter.name][k] for target in targets} for k in range(6)]
    yield compare_cores("every value new", all_new, limits)
    for share in (0.01, 0.1, 1.0):
        churn = [
            {target: texts.series_new(body, share, CHANCE) for target, body in bodies.items()}
            for bodies in [*scrapes, *scrapes]
        ]
        yield compare_cores(f"{share:.0%} of series new", churn, limits)
    shuffled = [{target: texts.restarted(body, CHANCE) for target, body in bodies.items()} for bodies in scrapes]
    yield compare_cores("families in another order", shuffled, limits)
    big, only = Limits(samples=600_000, body_size=256 << 20), Target("large", Exporter("large", PORTS["large"]))
    giants: Scrapes = [{only: texts.large(LARGE, CHANCE)} for _ in range(4)]
    yield compare_cores("one target, 500,000 samples", giants, big, rounds=1)


# -- the whole daemon, as a process ------------------------------------------------------------------------------------


@dataclass
class Server:
    """A server as a process, and what it was seen to need."""

    name: str
    process: "subprocess.Popen[bytes]"
    port: int
    cpu: list[float] = field(default_factory=list)  # seconds per scrape, of each round
    tree: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)

    def get(self, path: str = "/metrics", headers: Mapping[str, str] | None = None) -> bytes:
        """One request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (self.name, answer.status, body[:300])
        connection.close()
        return body

    def used(self) -> float:
        """CPU seconds of the process so far."""
        return used(self.process.pid)

    def used_by_children(self) -> float:
        """And of those that feed it."""
        return sum(map(used, children(self.process.pid)))

    def round(self, scrapes: int, headers: Mapping[str, str] | None = None) -> None:
        """Some scrapes one after the other."""
        before, below = self.used(), self.used_by_children()
        for _ in range(scrapes):
            start = time.perf_counter()
            self.get(headers=headers)
            self.latency.append(time.perf_counter() - start)
        own = self.used() - before
        self.cpu.append(own / scrapes)
        self.tree.append((own + self.used_by_children() - below) / scrapes)

    def peak(self) -> float:
        """MB."""
        return self.memory("VmHWM")

    def memory(self, key: str) -> float:
        """VmRSS or VmHWM, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.findall(rf"{key}:\s+(\d+)", text)[0]) / 1000


class Gateway(Server):
    """
    Prometheus' own pushgateway, which a user could take instead: qubes push, it labels, groups and merges.

    One scrape is a push of every target's text, and one page.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", port: int, folder: Path, count: int) -> None:
        super().__init__("pushgateway", process, port)
        self._scrape = 0
        self._bodies = {
            (f"qube{number}", place.name): [path.read_bytes() for path in sorted(place.iterdir(), key=_number)]
            for number in range(count)
            for place in (folder / "bodies").iterdir()
        }

    def get(self, path: str = "/metrics", headers: Mapping[str, str] | None = None) -> bytes:
        """Push, and scrape."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        for (qube, exporter), bodies in self._bodies.items():
            place = f"/metrics/job/qubes/qube/{qube}/exporter/{exporter}"
            connection.request("PUT", place, body=bodies[self._scrape % len(bodies)])
            answer = connection.getresponse()
            assert (answer.read(), answer.status) in ((b"", 200), (b"", 202)), (qube, exporter)
        connection.close()
        self._scrape += 1
        return super().get(path, headers)


def _number(path: Path) -> int:
    return int(path.name)


def used(pid: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="utf-8").split()[0]) for task in tasks) / 1e9


def children(pid: int) -> list[int]:
    """Its children."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text(encoding="utf-8").split()]


@contextmanager
def machine(count: int, bodies: Mapping[str, Sequence[bytes]]) -> Iterator[Path]:
    """A folder with the configuration for so many qubes with these exporters, and what feeds them."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        client = folder / "feeder.py"
        shutil.copy(Path(__file__).with_name("feeder.py"), client)
        for exporter, texts_of_it in bodies.items():
            place = folder / "bodies" / str(PORTS[exporter])
            place.mkdir(parents=True)
            for number, body in enumerate(texts_of_it):
                (place / str(number)).write_bytes(body)
        named = "\n".join(f"{name} = {PORTS[name]}" for name in bodies)
        listed = "".join(f"[qubes.qube{number}]\nexporters = {list(bodies)}\n" for number in range(count))
        limits = (
            "timeout = '100s'\nsample_limit = 600_000\nbody_size_limit = '256MiB'\nmemory_limit = '3GiB'"
            if "large" in bodies
            else "timeout = '60s'" + ("\nmemory_limit = '1GiB'" if count > 100 else "")
        )
        config = f"[scrape]\nmin_interval = '0s'\n{limits}\n[qrexec]\nclient = '{client}'\nconnect_limit = 16\n[exporters]\n{named}\n{listed}"
        (folder / "proxy.toml").write_text(config, encoding="utf-8")
        yield folder


@contextmanager
def server(name: str, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Ours, ours watched, or one of plain.py's; it listens, and has scraped nothing yet."""
    port, config = free_port(), folder / "proxy.toml"
    serve = ["serve", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"]
    words = {
        "proxy": federator(*serve),
        "watched": [sys.executable, "-m", "tests.bench.holds", *serve],
    }.get(name) or [sys.executable, "-m", "tests.bench.plain", name, str(config), str(port)]
    with started(words, folder / f"{name}.log", port, environment) as process:
        yield Server(name, process, port)


@contextmanager
def gateway(folder: Path, count: int) -> Iterator[Gateway | None]:
    """The peer, where it is installed (Debian: prometheus-pushgateway)."""
    program, port = shutil.which("prometheus-pushgateway"), free_port()
    if program is None:
        yield None
        return
    # By default it merges all it has at every push, to see whether it could; and Debian's keeps it on disk.
    more = ["--push.disable-consistency-check", "--persistence.file="]
    words = [program, f"--web.listen-address=127.0.0.1:{port}", *more]
    with started(words, folder / "pushgateway.log", port) as process:
        yield Gateway(process, port, folder, count)


@contextmanager
def started(
    words: Sequence[str],
    log: Path,
    port: int,
    environment: Mapping[str, str] | None = None,
    checkout: Path = ROOT,
) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=checkout, stderr=output, env={**os.environ, **(environment or {})})

    def answers() -> bool:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        with suppress(OSError):
            get(f"http://127.0.0.1:{port}/-/ready")
            return True
        return False

    try:
        eventually(f"{words} answers", answers)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def median_us(values: Sequence[float], samples: int) -> float:
    """Microseconds per sample."""
    return statistics.median(values) / samples * 1e6


@dataclass(frozen=True)
class Measured:
    """One size of machine. CPU in µs per sample, by server; the peer is not among them where it is not installed."""

    samples: int
    cpu: dict[str, float]
    row: str


def compare_daemons(name: str, count: int, bodies: Mapping[str, Sequence[bytes]], *, rounds: int = ROUNDS) -> Measured:
    """A line of the table: all of them warm, in turns."""
    samples = count * sum(texts.samples(scrapes[1]) for scrapes in bodies.values())
    few = samples > 50_000  # for those who take a second and more
    with machine(count, bodies) as folder, ExitStack() as stack:
        proxy, join, parse = (stack.enter_context(server(name, folder)) for name in ("proxy", "join", "parse"))
        peer = stack.enter_context(gateway(folder, count))
        everybody = [one for one in (proxy, join, parse, peer) if one is not None]
        for one in everybody:
            for _ in range(3 if one in (proxy, join) or not few else 1):
                one.get()
            one.latency.clear()
        calls = _calls(proxy)
        for _ in range(rounds):
            for one in everybody:
                one.round(SCRAPES if one in (proxy, join) else 1 if few else 2)
        new_calls = _calls(proxy) - calls
        cpu = {one.name: median_us(one.cpu, samples) for one in everybody}
        ours = cpu["proxy"]
        latency = " / ".join(f"{statistics.median(one.latency) * 1e3:.0f}" for one in everybody)
        peak = " / ".join(f"{one.peak():.0f}" for one in everybody)
        of_peer = f"1/{cpu[peer.name] / ours:.1f}" if peer else "not installed"
        row = (
            f"| {name} | {samples:,} | {ours:.2f} | 1/{cpu['parse'] / ours:.1f} | {of_peer} | {ours / cpu['join']:.1f} |"
            f" {latency} | {median_us(proxy.tree, samples):.2f} | {peak} | {new_calls} |"
        )
        return Measured(samples, cpu, row)


def _calls(proxy: Server) -> int:
    page = proxy.get("/metrics/proxy").decode()
    return int(float(re.findall(r"^qubes_proxy_qrexec_calls_total (\S+)", page, re.MULTILINE)[0]))


def daemons() -> Iterator[str]:
    """The whole path."""
    yield "| whole daemon, warm: qubes × exporters | samples | CPU µs/sample | of prometheus-client alone | of pushgateway | × floor | latency ms (ours / floor / prometheus-client / pushgateway) | with what feeds it | peak MB (the same four) | qrexec calls |"  # fmt: skip
    yield "|---|---|---|---|---|---|---|---|---|---|"
    results: dict[tuple[int, int], Measured] = {}
    for count in (1, 20, 200):
        for exporters in (["node"], ["node", "process"], list(EXPORTERS)):
            bodies = {name: texts.recorded(name) for name in exporters}
            rounds = ROUNDS if count <= 20 else 3
            measured = compare_daemons(f"{count} × {' + '.join(exporters)}", count, bodies, rounds=rounds)
            results[count, len(exporters)] = measured
            yield measured.row
    for share in (0.01, 0.1):
        bodies = {name: texts.churned(name, share, CHURN, CHANCE) for name in ("node", "process")}
        yield compare_daemons(f"20 × node + process, {share:.0%} of series new", 20, bodies, rounds=4).row
    giant = {"large": [texts.large(LARGE, CHANCE) for _ in range(3)]}
    yield compare_daemons(f"one target, {LARGE:,} samples", 1, giant, rounds=1).row
    growth = results[200, 2].cpu["proxy"] / results[20, 2].cpu["proxy"]
    yield f"\nFrom 20 to 200 qubes × node + process, a sample costs {growth:.2f} times as much."
    draw(results[20, 2])


def at_rest() -> Iterator[str]:
    """Start-up, first page, rest, and how long the event loop is held."""
    yield "| 20 qubes × node + process | |"
    yield "|---|---|"
    bodies = {name: texts.recorded(name) for name in ("node", "process")}
    with machine(20, bodies) as folder:
        colds: list[float] = []
        alone: list[float] = []
        samples = 20 * sum(texts.samples(scrapes[0]) for scrapes in bodies.values())
        for _ in range(3):
            for name, times in (("proxy", colds), ("parse", alone)):
                started = time.perf_counter()
                with server(name, folder) as one:
                    ready = time.perf_counter() - started
                    before = one.used()
                    one.get()
                    times.append(one.used() - before)
                    first = time.perf_counter() - started
                    if name == "proxy":
                        told = (ready, first, one.memory("VmRSS"))
        ready, first, resident = told
        yield f"| until it is ready / until the first page, s | {ready:.2f} / {first:.2f} |"
        ratio = statistics.median(colds) / statistics.median(alone)
        cost = median_us(colds, samples)
        yield f"| first scrape, calls included, CPU µs/sample, and of prometheus-client alone | {cost:.2f}, {ratio:.2f} |"
        with server("proxy", folder) as one:
            for _ in range(100):
                one.get()
            after_100 = one.memory("VmRSS")
            for _ in range(900):
                one.get()
            after_1000 = one.memory("VmRSS")
            yield f"| resident after 1 / 100 / 1,000 scrapes, MB | {resident:.0f} / {after_100:.0f} / {after_1000:.0f} |"
            yield f"| peak, MB | {one.peak():.0f} |"
            time.sleep(1)
            before = one.used()
            time.sleep(10)
            yield f"| CPU in 10 s while nobody scrapes, ms | {(one.used() - before) * 1e3:.1f} |"
            one.cpu.clear()
            for _ in range(3):
                one.round(SCRAPES)
            plain = median_us(one.cpu, samples)
            one.cpu.clear()
            for _ in range(3):
                one.round(SCRAPES, {"Accept-Encoding": "gzip"})
            yield f"| CPU µs/sample without and with gzip | {plain:.2f}, {median_us(one.cpu, samples):.2f} |"
        holds = folder / "holds"
        with server("watched", folder, {"BENCH_HOLDS": str(holds)}) as one:
            for _ in range(3):
                one.get()
            longest: list[float] = []
            for _ in range(ROUNDS):
                one.process.send_signal(signal.SIGUSR1)
                for _ in range(SCRAPES):
                    one.get()
                one.process.send_signal(signal.SIGUSR2)
                eventually("the hold is told", holds.exists)
                longest.append(float(holds.read_text(encoding="utf-8")))
                holds.unlink()
            yield (
                f"| longest hold of the event loop in {SCRAPES} scrapes, ms, median and worst of {ROUNDS} |"
                f" {statistics.median(longest) * 1e3:.1f}, {max(longest) * 1e3:.1f} |"
            )


LOOKED_ROUNDS = 3
# Between two scrapes. Few Prometheus servers scrape as often as every five seconds.
PAUSE_SECONDS = 5.0


@contextmanager
def looking(port: int) -> Iterator[None]:
    """Somebody who looks at the status page every second, in a process of its own."""
    script = f"while sleep 1; do curl --silent --output /dev/null http://127.0.0.1:{port}/; done"
    with subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True) as process:
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def looked_at() -> Iterator[str]:
    """What the status page costs, and what looking at it costs those who scrape."""
    yield from looks.pages()
    bodies = {name: texts.recorded(name) for name in EXPORTERS}
    latency: dict[bool, list[float]] = {False: [], True: []}
    cpu: dict[bool, list[float]] = {False: [], True: []}
    with machine(looks.QUBES, bodies) as folder, server("proxy", folder) as one:
        for _ in range(3):
            one.get()
        for number in range(2 * LOOKED_ROUNDS):
            looked = bool(number % 2)
            one.latency.clear()
            one.cpu.clear()
            with looking(one.port) if looked else ExitStack():
                for _ in range(SCRAPES):
                    one.round(1)
                    time.sleep(PAUSE_SECONDS)
            latency[looked] += one.latency
            cpu[looked] += one.cpu
    for what, values in (("until the page is there", latency), ("CPU of the daemon until then", cpu)):
        without, with_one = (statistics.median(values[looked]) * 1e3 for looked in (False, True))
        yield (
            f"| a scrape of it, {what}, ms, while nobody looks / while somebody looks every second |"
            f" {without:.0f} / {with_one:.0f} ({with_one / without - 1:+.1%}) |"
        )


DOM0_QUBES = 100
DOM0_INTERVALS = 3


@dataclass(frozen=True)
class Turn:
    """One scrape with [dom0] and two without: seconds until the page was there, and of them CPU time of the daemon."""

    without: tuple[float, float]
    again: tuple[float, float]
    with_dom0: tuple[float, float]
    asked: bool  # were short calls made meanwhile?


def _scraped(one: Server) -> tuple[float, float]:
    start, cpu = time.perf_counter(), one.used()
    one.get()
    took = time.perf_counter() - start, one.used() - cpu
    time.sleep(0.1)
    return took


def compare_dom0(count: int, seconds: float) -> tuple[list[Turn], Mapping[str, int], str]:
    """
    The same qubes, scraped with [dom0] and without, in turns, for so long; calls to dom0 by service; the last page.

    Each turn scrapes twice without, so that it is seen how much two scrapes differ by chance.
    """
    bodies = {"node": texts.recorded("node")}
    with machine(count, bodies) as plain, machine(count, bodies) as folder, ExitStack() as stack:
        qubes = dom0.machine(folder, count)
        without = stack.enter_context(server("proxy", plain))
        asking = stack.enter_context(server("proxy", folder, qubes.env))
        for _ in range(3):
            without.get()
            asking.get()
        turns: list[Turn] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            calls = len(qubes.calls())
            servers = {"without": without, "with_dom0": asking, "again": without}
            took = {name: _scraped(servers[name]) for name in CHANCE.sample(list(servers), len(servers))}
            turns.append(Turn(**took, asked=len(qubes.calls()) > calls))
        by_service = Counter(service.partition("+")[0] for _, service, _ in qubes.calls())
        return turns, by_service, asking.get().decode()


def asked_dom0() -> Iterator[str]:
    """What every switch of [dom0] costs those who scrape, and how often dom0 is called."""
    # Not to the end of the last interval: there the next one would begin.
    turns, calls, page = compare_dom0(DOM0_QUBES, DOM0_INTERVALS * dom0.INTERVAL_SECONDS - 3)
    figures = len(re.findall(r"^qubes?_(?!proxy_)\w+{", page, re.MULTILINE))
    yield f"| {DOM0_QUBES} qubes × node, every switch of [dom0] on: {figures} samples of it | times | CPU of the daemon, ms, median / 95 % | until the page is there, ms, median / 95 % |"  # fmt: skip
    yield "|---|---|---|---|"
    for what, values in (
        ("a scrape without [dom0]", [one.without for one in turns]),
        ("a scrape with it", [one.with_dom0 for one in turns]),
        ("longer with it, while dom0 is asked about qubes", _longer([one for one in turns if one.asked])),
        ("longer with it, for the rest of the interval", _longer([one for one in turns if not one.asked])),
        ("longer by chance: of two without it", [_minus(one.again, one.without) for one in turns]),
    ):
        columns = (sorted(1e3 * value[column] for value in values) for column in (1, 0))
        told = " | ".join(f"{one[len(one) // 2]:.1f} / {one[int(0.95 * len(one))]:.1f}" for one in columns if one)
        yield f"| {what} | {len(values)} | {told} |"
    yield f"\n| calls to dom0 in {DOM0_INTERVALS} intervals | seen | at most, by docs/dom0.md |"
    yield "|---|---|---|"
    most = dom0.most_calls(DOM0_QUBES, DOM0_INTERVALS)
    for service, number in most.items():
        yield f"| {service} | {calls[service]} | {number} |"
    yield f"| all | {sum(calls.values())} | {sum(most.values())} |"


def _longer(turns: Sequence[Turn]) -> list[tuple[float, float]]:
    return [_minus(one.with_dom0, one.without) for one in turns]


def _minus(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] - other[0], one[1] - other[1]


def draw(measured: Measured) -> None:
    """The picture in docs/performance.md."""
    bars = [
        (label, measured.cpu[name], color)
        for label, name, color in (
            ("prometheus-client alone", "parse", "#c9302c"),
            ("pushgateway (Go)", "pushgateway", "#e08b3a"),
            ("prometheus-qubes-proxy", "proxy", "#2a6fbb"),
            ("joining without looking", "join", "#999999"),
        )
        if name in measured.cpu
    ]
    widest = max(value for _, value, _ in bars)
    rows = "".join(
        f'<text x="0" y="{40 + 34 * row}">{name}</text>'
        f'<rect x="190" y="{24 + 34 * row}" width="{max(2.0, 400 * value / widest):.1f}" height="22" fill="{color}"/>'
        f'<text x="{196 + 400 * value / widest:.1f}" y="{40 + 34 * row}">{value:.2f} µs</text>'
        for row, (name, value, color) in enumerate(bars)
    )
    title = f"CPU per sample, whole scrape: 20 qubes, 2 exporters each, {measured.samples:,} samples"
    height = 24 + 34 * len(bars)
    (Path(__file__).parents[2] / "docs" / "pictures" / "scrape.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{height}" font-family="sans-serif" font-size="13">'
        f'<rect width="680" height="{height}" fill="white"/><text x="0" y="14" font-weight="bold">{title}</text>{rows}</svg>\n',
        encoding="utf-8",
    )


def main() -> None:
    """All tables, or those named."""
    tables = {"cores": cores, "daemons": daemons, "rest": at_rest, "looks": looked_at, "dom0": asked_dom0}
    for name in sys.argv[1:] or tables:
        for line in tables[name]():
            print(line, flush=True)
        print(flush=True)


if __name__ == "__main__":
    main()
