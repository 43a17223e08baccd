# SPDX-License-Identifier: GPL-3.0-or-later
"""
The nouns that travel. Frozen, and without behaviour: what is done with them lives elsewhere.

Configuration goes down (Config -> Qube -> Target), answers come up
(Answer -> Reading -> Outcome -> QubeOutcome -> Snapshot).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, NamedTuple

from federator.errors import ScrapeError
from federator.pattern import Pattern

Transport = Literal["qrexec", "local"]
Source = Literal["admin.vm.List", "ruddo.PrometheusDiscover"]
ClientAuth = Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"]
TlsVersion = Literal["TLS12", "TLS13"]
MetricType = Literal["counter", "gauge", "histogram", "summary", "untyped"]

# A service takes at most seven digits of milliseconds, 2 h 46 min. Prometheus' own timeouts are seconds; whatever says
# more than this is a mistake, and would keep channels busy for long.
MAX_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that no log and no terminal shows."""

    text: str

    def __repr__(self) -> str:
        return "<secret>"


# What a qube's service is asked for: a port of the qube's loopback, or what the qube's own file endpoints.d/NAME says.
Endpoint = int | str
# The name cannot be a path, nor a port, and qrexec changes none of its characters.
ENDPOINT_NAME = r"[a-z][a-z0-9_-]{0,31}"


def in_order(endpoints: Collection[Endpoint]) -> tuple[Endpoint, ...]:
    """As the argument of a call has them, so that a policy line can pin it: ports, rising, then names, sorted."""
    ports = [one for one in endpoints if isinstance(one, int)]
    return (*sorted(ports), *sorted(one for one in endpoints if isinstance(one, str)))


def where(endpoint: Endpoint) -> str:
    """An endpoint as people write it."""
    return f"port {endpoint}" if isinstance(endpoint, int) else f"endpoint {endpoint}"


# (host, port), where an empty host is every address; or the path of a Unix socket.
Address = tuple[str, int] | Path
# A file, or its contents.
Pem = Path | Secret


@dataclass(frozen=True, slots=True)
class Tls:
    """[web.tls_server_config]. `where`: the file and the key of the table, for messages. `ciphers`: OpenSSL's names."""

    where: str
    cert: Pem
    key: Pem
    client_ca: Pem | None = None
    client_auth: ClientAuth = "NoClientCert"
    client_allowed_sans: tuple[str, ...] = ()
    min_version: TlsVersion = "TLS12"
    max_version: TlsVersion = "TLS13"
    ciphers: tuple[str, ...] = ()
    prefer_server_ciphers: bool = True


@dataclass(frozen=True, slots=True)
class RateLimit:
    """[web.rate_limit]: `burst` requests at once, then one in `interval` seconds. No limit if `interval` is 0."""

    interval: float = 0.0
    burst: int = 20


@dataclass(frozen=True, slots=True)
class Web:
    """[web]: where the daemon listens, and who is let in. `users`: (name, bcrypt hash)."""

    listen_addresses: tuple[Address, ...]
    hosts: tuple[str, ...] = ()
    tls: Tls | None = None
    users: tuple[tuple[str, Secret], ...] = ()
    rate_limit: RateLimit = field(default_factory=RateLimit)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one target may send. Sizes and lengths in bytes, as Prometheus counts them; the age in seconds."""

    body_size: int = 16 << 20
    samples: int = 50_000
    labels: int = 256
    label_name_length: int = 1024
    label_value_length: int = 16 << 10
    timestamp_age: float = 3600.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """[scrape]: seconds for a whole scrape, bytes of memory for texts, and the limits of each target."""

    timeout: float = 10.0
    timeout_offset: float = 0.5
    memory_limit: int = 160 << 20
    min_interval: float = 1.0
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Qrexec:
    """
    [qrexec]: how qubes are called. Times in seconds, sizes in bytes.

    `patience` is no key: in this time dom0 says that a qube is paused, if it does; see [discovery].
    """

    client: str = "qrexec-client-vm"
    local_service: Path = Path("/etc/qubes-rpc/ruddo.PrometheusProxy")
    buffer_size: int = 16 << 10
    connect_limit: int = 4
    backoff_initial: float = 5.0
    backoff_max: float = 300.0
    patience: float = 0.0


@dataclass(frozen=True, slots=True)
class Exporter:
    """
    [exporters]: where it is in a qube, and the metric names not wanted from it.

    `timeout`: seconds that it may take, if they are not those of all. `interval`: seconds between two scrapes, for
    /sd. `page`: is it on /metrics, without being asked for by its name?
    """

    name: str
    endpoint: Endpoint
    drop: tuple[Pattern, ...] = ()
    timeout: float | None = None
    interval: float | None = None
    page: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """One exporter in one qube. `labels` are the qube's own, beside qube and exporter."""

    qube: str
    exporter: Exporter
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The target as people write it: QUBE:EXPORTER."""
        return f"{self.qube}:{self.exporter.name}"


@dataclass(frozen=True, slots=True)
class Qube:
    """[qubes.NAME]"""

    name: str
    transport: Transport
    targets: tuple[Target, ...]
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those of all its targets, in order: the argument of the qrexec call, which is the permission."""
        return in_order([target.exporter.endpoint for target in self.targets])


@dataclass(frozen=True, slots=True)
class Discovery:
    """[discovery]: who says what runs, how old that may be in seconds, and what is scraped of unconfigured qubes."""

    source: Source
    refresh_interval: float
    exporters: tuple[Exporter, ...]
    include: tuple[Pattern, ...]
    exclude: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Dom0:
    """[dom0]: which of its figures dom0 is asked for; all but stats once in `interval` seconds."""

    stats: bool = True
    storage: bool = True
    volumes: bool = False
    properties: bool = False
    updates: bool = False
    interval: float = 300.0

    @property
    def asks_each_qube(self) -> bool:
        """Is dom0 asked about single qubes, and so for the list of them?"""
        return self.volumes or self.properties or self.updates

    @property
    def switches(self) -> tuple[str, ...]:
        """The names of those that are on: what dom0 is asked for."""
        return tuple(switch.name for switch in fields(self) if getattr(self, switch.name) is True)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, checked."""

    path: Path
    web: Web
    scrape: Scrape
    qrexec: Qrexec
    qubes: tuple[Qube, ...]
    discovery: Discovery | None = None
    dom0: Dom0 | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        """Every target, in the order of the file."""
        return tuple(target for qube in self.qubes for target in qube.targets)

    @property
    def calls(self) -> bool:
        """Is anything called over qrexec, a qube or dom0?"""
        asks_dom0 = self.discovery is not None or (self.dom0 is not None and self.dom0.switches)
        return bool(asks_dom0) or any(qube.transport == "qrexec" for qube in self.qubes)


@dataclass(frozen=True, slots=True)
class Callee:
    """Who a call goes to: a service, named without its argument, in a qube or in dom0."""

    name: str
    transport: Transport
    service: str


@dataclass(frozen=True, slots=True)
class CallState:
    """
    One call of a channel, for people to look at: for which endpoints it is or will be made, and in which version.

    `open_seconds`: for how long it has been open; None while it is not. `opened`: how often it was made. `wait`: so
    many seconds have to pass before it is made again. Failures are counted in a row.
    """

    endpoints: tuple[Endpoint, ...]
    version: int
    open_seconds: float | None
    opened: int
    failures: int
    wait: float


@dataclass(frozen=True, slots=True)
class Answer:
    """
    What a qube's service answered for one endpoint. `status` is HTTP's, or 0 with the reason as body.

    `whole`: did HTTP prove that nothing is missing at the end of the body?
    """

    endpoint: Endpoint
    status: int
    body: bytes
    seconds: float | None  # None: version 1 does not say
    content_type: str
    whole: bool = False

    @property
    def text(self) -> bytes:
        """The body as a text whose last line ends. Where nothing proves it whole, what stands there may be cut."""
        return self.body + b"\n" if self.whole and self.body and not self.body.endswith(b"\n") else self.body


class Family(NamedTuple):
    """
    The head of one family. `type` is None where the text does not say one.

    `help` is escaped as in the text format, and empty where there is none.
    """

    name: str
    type: MetricType | None
    help: bytes = b""


@dataclass(frozen=True, slots=True)
class Reading:
    """
    One target's text, judged and labelled, ready to be written out.

    `blocks[i]` holds finished sample lines of `families[i]`, each ending in a newline: `name{qube="…",…} value`. A
    family may be there more than once, where its lines did not stand together. `declared` are families without samples.
    `complaint` is the first line that was dropped, and why; empty where none was.
    """

    families: tuple[Family, ...]
    blocks: Sequence[bytes]
    samples: int
    lines_dropped: int = 0
    complaint: str = ""
    declared: tuple[Family, ...] = ()

    @property
    def heads(self) -> int:
        """How many families may need a head on the page."""
        return len(self.families) + len(self.declared)


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    One target in one scrape: `reading` where it is up, `error` where it is down, never both.

    `body_size`: bytes that the exporter sent. `page_size`: bytes on the page, or about as many.
    """

    target: Target
    seconds: float
    body_size: int = 0
    reading: Reading | None = None
    error: ScrapeError | None = None
    page_size: int = 0

    @property
    def samples(self) -> int:
        """Samples on the page."""
        return self.reading.samples if self.reading else 0


@dataclass(frozen=True, slots=True)
class QubeOutcome:
    """One qube in one scrape. It is up where its service answered, whatever it had to say of its exporters."""

    qube: Qube
    up: bool
    seconds: float
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Snapshot:
    """
    What one scrape found. Two scrapers who waited for the same answers have the same snapshot, and so the same page.

    `at`: when it was complete, in seconds since 1970. `seconds`: how long it took. `allowed`: how long it was allowed
    to take. A snapshot that is kept after its page is gone holds no texts: see `without_texts`.
    """

    at: float
    seconds: float
    allowed: float
    qubes: tuple[QubeOutcome, ...]

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Of every target, in the order of the page."""
        return tuple(outcome for qube in self.qubes for outcome in qube.outcomes)


@dataclass(frozen=True, slots=True)
class Reload:
    """
    The last attempt to read the configuration: did it succeed, and when was the one in use read (since 1970)?

    `error`: why it did not.
    """

    successful: bool
    at: float
    error: str = ""
