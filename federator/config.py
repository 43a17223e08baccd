# SPDX-License-Identifier: GPL-3.0-or-later
"""
TOML text -> Config, or a ConfigError that names the file, the key and what to do.

Owns the grammar of the configuration file and its defaults. Must not know what is done with any of it.
Nothing is guessed and nothing ignored: a key nobody knows is an error, so that a typing mistake cannot hide.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomli

from federator.errors import ConfigError
from federator.model import Config, Discovery, Exporter, Limits, Qrexec, Qube, Scrape, Source, Target, Transport, Web
from federator.targets import DOM0, is_qube_name

# /rw/config survives a reboot of a NetVM that is based on a template; /etc is the template's.
DEFAULT_PATHS = (Path("/rw/config/prometheus-qubes-proxy.toml"), Path("/etc/prometheus-qubes-proxy.toml"))

_EXPORTER_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,62}")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# Labels that mean something on the series they would be added to.
_TAKEN_LABELS = frozenset({"qube", "exporter", "reason", "le", "quantile", "job", "instance"})
# The ports are the qrexec argument; qrexec's control channel carries some 3.9 kB, and the service takes as many.
MAX_EXPORTERS_PER_QUBE = 64

_DURATION = re.compile(
    r"(?:(?P<y>[0-9]+)y)?(?:(?P<w>[0-9]+)w)?(?:(?P<d>[0-9]+)d)?(?:(?P<h>[0-9]+)h)?"
    r"(?:(?P<m>[0-9]+)m)?(?:(?P<s>[0-9]+)s)?(?:(?P<ms>[0-9]+)ms)?"
)
_SECONDS = {"y": 31_536_000.0, "w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SIZE = re.compile(r"([0-9]+)([KMG]i?B|B)")  # KB is 1024 bytes for Prometheus, as KiB is
_SIZES = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

T = TypeVar("T")


def default_path() -> Path:
    """The file that is read where none is named."""
    return next((path for path in DEFAULT_PATHS if path.exists()), DEFAULT_PATHS[-1])


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError."""
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one, or name yours with --config.file=PATH") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; the daemon must be able to read it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8; save the file as UTF-8 text") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """Check a configuration. `path` is for messages, and for what stands relative to the file. Raises ConfigError."""
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    top = _Table(document, file=path, keys=())
    web = _web(top.table("web"))
    scrape = _scrape(top.table("scrape"))
    qrexec = _qrexec(top.table("qrexec"), path.parent)
    exporters = {name: _exporter(name, entry) for name, entry in top.table("exporters").entries()}
    qubes = tuple(
        _qube(name, entry.as_table(), exporters, scrape.limits) for name, entry in top.table("qubes").entries()
    )
    entry = top.entry("discovery")
    discovery = _discovery(entry.as_table(), exporters) if entry else None
    top.done()
    if not qubes and not (discovery and discovery.exporters):
        raise top.error("qubes", "there is nothing to scrape; add a table such as [qubes.work]")
    return Config(path=path, web=web, scrape=scrape, qrexec=qrexec, qubes=qubes, discovery=discovery)


def listen_address(text: str) -> tuple[str, int]:
    """HOST:PORT, :PORT or [IPV6]:PORT as (host, port). Raises ValueError with words for a person."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    # Port 0 lets the system choose a free one: the log says which.
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or (":" in host) != ("[" in text):
        raise ValueError(f"{text!r} is not HOST:PORT; write 127.0.0.1:8199, [::1]:8199, or :8199 for every address")
    return host, int(port)


def _web(table: "_Table") -> Web:
    addresses = tuple(
        entry.convert(listen_address) for entry in table.list("listen_addresses", default=["0.0.0.0:8199"])
    )
    for key in ("tls_server_config", "basic_auth_users"):
        table.reject(key, "TLS and passwords are not in this version; guard the port with the firewall instead")
    table.done()
    if not addresses:
        raise table.error("listen_addresses", 'empty; name at least one, such as "127.0.0.1:8199"')
    return Web(listen_addresses=addresses)


def _scrape(table: "_Table") -> Scrape:
    fallback = Scrape()
    limits = Limits(
        body_size=table.size("body_size_limit", fallback.limits.body_size, least=1 << 10, most=1 << 30),
        samples=table.number("sample_limit", fallback.limits.samples, least=1, most=5_000_000),
        labels=table.number("label_limit", fallback.limits.labels, least=1, most=1000),
        label_name_length=table.number("label_name_length_limit", fallback.limits.label_name_length, 1, 10_000),
        label_value_length=table.number("label_value_length_limit", fallback.limits.label_value_length, 1, 10_000),
    )
    timeout = table.duration("timeout", fallback.timeout, least=0.1)
    offset = table.duration("timeout_offset", fallback.timeout_offset, least=0.0)
    table.done()
    if offset >= timeout:
        raise table.error("timeout_offset", "leaves no time to scrape in; make it shorter than scrape.timeout")
    return Scrape(timeout=timeout, timeout_offset=offset, limits=limits)


def _qrexec(table: "_Table", folder: Path) -> Qrexec:
    fallback = Qrexec()
    qrexec = Qrexec(
        client=table.take("client", str, fallback.client),
        local_service=folder / table.take("local_service", str, str(fallback.local_service)),
        buffer_size=table.size("buffer_size", fallback.buffer_size, least=1 << 10, most=1 << 20),
        connect_limit=table.number("connect_limit", fallback.connect_limit, least=1, most=64),
        backoff_initial=table.duration("backoff_initial", fallback.backoff_initial, least=0.0),
        backoff_max=table.duration("backoff_max", fallback.backoff_max, least=0.0),
    )
    table.done()
    if not qrexec.client:
        raise table.error("client", "empty; the program is called qrexec-client-vm")
    if qrexec.backoff_max < qrexec.backoff_initial:
        raise table.error("backoff_max", "shorter than backoff_initial; make it at least as long")
    return qrexec


def _exporter(name: str, entry: "_Entry") -> Exporter:
    if not _EXPORTER_NAME.fullmatch(name):
        raise entry.error("not a name for an exporter; use letters, digits, _ . and -")
    if not isinstance(entry.value, dict):
        return Exporter(name=name, port=entry.port())
    table = entry.as_table()
    port = table.entry("port")
    drop = table.patterns("drop", default=[])
    table.done()
    if port is None:
        raise table.error("port", "missing; say on which port of the qube's loopback it listens")
    return Exporter(name=name, port=port.port(), drop=drop)


def _qube(name: str, table: "_Table", exporters: Mapping[str, Exporter], limits: Limits) -> Qube:
    if not is_qube_name(name) and name != DOM0:
        raise table.wrong("not a name Qubes gives to qubes: a letter, then at most 30 letters, digits, _ . and -")
    transport: Transport = table.choice("transport", ("qrexec", "local"), "qrexec")  # type: ignore[assignment]
    labels = tuple(_label(key, entry, limits) for key, entry in table.table("labels").entries())
    targets = tuple(
        Target(qube=name, exporter=exporter, labels=labels)
        for exporter in _chosen(table, table.list("exporters", default=None), exporters)
    )
    table.done()
    if not targets:
        raise table.error("exporters", 'empty; name what runs in this qube, such as exporters = ["node"]')
    return Qube(name=name, transport=transport, targets=targets, labels=labels)


def _discovery(table: "_Table", exporters: Mapping[str, Exporter]) -> Discovery:
    sources = ("admin.vm.List", "ruddo.PrometheusDiscover")
    source: Source = table.choice("source", sources, sources[0])  # type: ignore[assignment]
    interval = table.duration("refresh_interval", 30.0, least=1.0)
    chosen = _chosen(table, table.list("exporters", default=[]), exporters)
    include = table.patterns("include", default=[".*"])
    exclude = table.patterns("exclude", default=[])
    table.done()
    if not include:
        raise table.error("include", 'empty, so no qube would be found; leave it out, or write [".*"]')
    return Discovery(source=source, refresh_interval=interval, exporters=chosen, include=include, exclude=exclude)


def _chosen(table: "_Table", entries: Sequence["_Entry"], exporters: Mapping[str, Exporter]) -> tuple[Exporter, ...]:
    """The exporters of one qube that are named here, each on a port of its own."""
    used: dict[int, str] = {}
    for entry in entries:
        exporter_name = entry.take(str)
        if exporter_name not in exporters:
            raise entry.error(f"there is no exporter {exporter_name!r}; add it under [exporters] with its port")
        exporter = exporters[exporter_name]
        if exporter_name in used.values():
            raise entry.error(f"{exporter_name!r} is there twice; once is enough")
        if exporter.port in used:
            raise entry.error(
                f"{exporter_name!r} and {used[exporter.port]!r} are both on port {exporter.port};"
                " one port of a qube has one exporter"
            )
        used[exporter.port] = exporter_name
    if len(used) > MAX_EXPORTERS_PER_QUBE:
        raise table.error("exporters", f"more than {MAX_EXPORTERS_PER_QUBE}; one qrexec call carries no more ports")
    return tuple(exporters[exporter_name] for exporter_name in used.values())


def _label(name: str, entry: "_Entry", limits: Limits) -> tuple[str, str]:
    if not _LABEL_NAME.fullmatch(name) or name.startswith("__"):
        raise entry.error("not a label name; use letters, digits and _, no digit first, not __ at the start")
    if name in _TAKEN_LABELS:
        raise entry.error("this label has a meaning of its own on the page; choose another name")
    value = entry.take(str)
    if not value or "\0" in value or len(value.encode()) > limits.label_value_length:
        raise entry.error(f"the value must have 1 to {limits.label_value_length} bytes, and no NUL")
    return name, value


class _Entry:
    """One value, and where it stands."""

    def __init__(self, value: Any, file: Path, keys: tuple[str, ...]) -> None:
        self.value = value
        self._file = file
        self._keys = keys

    def error(self, what: str) -> ConfigError:
        return ConfigError(f"{self._file}: {_dotted(self._keys)}: {what}")

    def take(self, kind: type[T]) -> T:
        if not isinstance(self.value, kind) or (kind is int and isinstance(self.value, bool)):
            raise self.error(f"expected {_KINDS[kind]}, not {_kind_of(self.value)}")
        return self.value

    def convert(self, converter: Callable[[str], T]) -> T:
        text = self.take(str)
        try:
            return converter(text)
        except re.error as error:
            raise self.error(f"{text!r} is not a regular expression: {error}") from None
        except ValueError as error:
            raise self.error(str(error)) from None

    def port(self) -> int:
        port = self.take(int)
        if not 1 <= port <= 65535:
            raise self.error(f"{port} is not a port; ports are 1 to 65535")
        return port

    def as_table(self) -> "_Table":
        return _Table(self.take(dict), file=self._file, keys=self._keys)


class _Table:
    """
    A TOML table being read. Every key has to be asked for; `done` names the one that nobody knows.

    Those that must be there are asked for last.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, keys: tuple[str, ...]) -> None:
        self._values = values
        self._file = file
        self._keys = keys
        self._known: list[str] = []

    def wrong(self, what: str) -> ConfigError:
        return _Entry(None, self._file, self._keys).error(what)

    def error(self, key: str, what: str) -> ConfigError:
        return _Entry(None, self._file, (*self._keys, key)).error(what)

    def entry(self, key: str) -> _Entry | None:
        self._known.append(key)
        return _Entry(self._values[key], self._file, (*self._keys, key)) if key in self._values else None

    def entries(self) -> Iterator[tuple[str, _Entry]]:
        """Every entry, where the keys are names and not ours to know."""
        for key, value in self._values.items():
            yield key, _Entry(value, self._file, (*self._keys, key))

    def table(self, key: str) -> "_Table":
        entry = self.entry(key)
        return entry.as_table() if entry else _Table({}, file=self._file, keys=(*self._keys, key))

    def list(self, key: str, default: Sequence[Any] | None) -> list[_Entry]:
        """A list's items. `default` None: the key must be there."""
        entry = self.entry(key)
        if entry is None and default is None:
            self.done()  # it may be there under a mistyped name
            raise self.error(key, "missing")
        values = entry.take(list) if entry else default or []
        return [_Entry(value, self._file, (*self._keys, f"{key}[{index}]")) for index, value in enumerate(values)]

    def patterns(self, key: str, default: Sequence[str]) -> tuple[re.Pattern[str], ...]:
        return tuple(entry.convert(re.compile) for entry in self.list(key, default=default))

    def take(self, key: str, kind: type[T], fallback: T) -> T:
        entry = self.entry(key)
        return entry.take(kind) if entry else fallback

    def choice(self, key: str, choices: tuple[str, ...], fallback: str) -> str:
        value = self.take(key, str, fallback)
        if value not in choices:
            raise self.error(key, f"{value!r} is none of {', '.join(choices)}")
        return value

    def number(self, key: str, fallback: int, least: int, most: int) -> int:
        value = self.take(key, int, fallback)
        if not least <= value <= most:
            raise self.error(key, f"{value} is out of range; it may be {least} to {most}")
        return value

    def duration(self, key: str, fallback: float, least: float) -> float:
        entry = self.entry(key)
        seconds = entry.convert(_duration) if entry else fallback
        if seconds < least:
            raise self.error(key, f"too short; at least {least:g}s")
        return seconds

    def size(self, key: str, fallback: int, least: int, most: int) -> int:
        entry = self.entry(key)
        if entry is None:
            return fallback
        value = entry.value if type(entry.value) is int else entry.convert(_size)
        if not least <= value <= most:
            raise self.error(key, f"{value} bytes is out of range; it may be {least} to {most} bytes")
        return value

    def reject(self, key: str, why: str) -> None:
        if self.entry(key) is not None:
            raise self.error(key, why)

    def done(self) -> None:
        for key in self._values:
            if key not in self._known:
                close = difflib.get_close_matches(key, self._known, n=1)
                known = f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(self._known))}"
                raise self.error(key, f"unknown key; {known}")


_KINDS: Mapping[type, str] = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list in [brackets]",
    dict: "a table",
}


def _kind_of(value: Any) -> str:
    return _KINDS.get(type(value), "a date or time")


def _dotted(keys: tuple[str, ...]) -> str:
    return ".".join(key if re.fullmatch(r"[A-Za-z0-9_-]+(?:\[[0-9]+\])?", key) else ascii(key) for key in keys)


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if text == "0":
        return 0.0
    if not text or not match:
        raise ValueError(f"{text!r} is not a duration; write it as Prometheus does: 500ms, 10s, 5m")
    return math.fsum(int(number) * _SECONDS[unit] for unit, number in match.groupdict().items() if number)


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it as Prometheus does: 16MiB, 512KiB")
    return int(match[1]) * _SIZES[match[2][0]]
