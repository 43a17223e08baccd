# SPDX-License-Identifier: GPL-3.0-or-later
"""
The configuration: which keys there are, their defaults and ranges, and what they mean. Text -> Config.

Owns the schema. To add a key, add it here, to `model.py`, to the commented example in conf/ and to
docs/configuration.md. Must not know how TOML is read, nor what is done with a configuration.
Raises a ConfigError that names the file, the key and what to do. Nothing is guessed, and no key is ignored.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from federator import toml_reader
from federator.errors import ConfigError
from federator.model import (
    MAX_TIMEOUT_SECONDS,
    Config,
    Discovery,
    Exporter,
    Limits,
    Qrexec,
    Qube,
    Scrape,
    Source,
    Target,
    Transport,
    Web,
)
from federator.pattern import Pattern
from federator.targets import DOM0, is_qube_name
from federator.toml_reader import Entry, Table

# /rw/config survives a reboot of a NetVM that is based on a template; /etc is the template's.
DEFAULT_PATHS = (Path("/rw/config/prometheus-qubes-proxy.toml"), Path("/etc/prometheus-qubes-proxy.toml"))

_EXPORTER_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,62}")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# Labels that mean something on the series they would be added to.
_TAKEN_LABELS = frozenset({"qube", "exporter", "reason", "le", "quantile", "job", "instance"})
# The ports are the qrexec argument; qrexec's control channel carries some 3.9 kB, and the service takes as many.
MAX_EXPORTERS_PER_QUBE = 64

# The request to a qube's service has ten digits for the size; a NetVM has less memory than this.
MAX_BODY_SIZE = 1 << 30
# Each sample costs about 1 kB while it is read: these need more memory than a NetVM has.
MAX_SAMPLES = 5_000_000
# A line of a text has at most 16 KiB, so there cannot be more labels, nor longer ones, that mean anything.
MAX_LABELS = 1000
MAX_LABEL_LENGTH = 10_000
# 100 years: as good as no limit.
MAX_TIMESTAMP_AGE_SECONDS = 100 * 31_536_000.0
# An open call has two buffers. They are made of grant pages, and a qube has 4 MiB of those.
MAX_BUFFER_SIZE = 1 << 20
# xenstore fails between 10 and 25 calls that are opened at the same time, as it is set up by default.
MAX_CONNECT_LIMIT = 64
# A qube that works again, or is started, is scraped on the same day.
MAX_BACKOFF_SECONDS = 86_400.0
MAX_REFRESH_SECONDS = 86_400.0


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
    return from_table(toml_reader.read(text, path), path)


def from_table(top: Table, path: Path) -> Config:
    """Check a configuration that is a TOML table already. Raises ConfigError."""
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


def _web(table: Table) -> Web:
    addresses = tuple(
        entry.convert(listen_address) for entry in table.list("listen_addresses", default=["0.0.0.0:8199"])
    )
    for key in ("tls_server_config", "basic_auth_users"):
        table.reject(key, "TLS and passwords are not in this version; guard the port with the firewall instead")
    table.done()
    if not addresses:
        raise table.error("listen_addresses", 'empty; name at least one, such as "127.0.0.1:8199"')
    return Web(listen_addresses=addresses)


def _scrape(table: Table) -> Scrape:
    fallback = Scrape()
    most = fallback.limits
    limits = Limits(
        body_size=table.size("body_size_limit", most.body_size, least=1 << 10, most=MAX_BODY_SIZE),
        samples=table.number("sample_limit", most.samples, least=1, most=MAX_SAMPLES),
        labels=table.number("label_limit", most.labels, least=1, most=MAX_LABELS),
        label_name_length=table.number("label_name_length_limit", most.label_name_length, 1, MAX_LABEL_LENGTH),
        label_value_length=table.number("label_value_length_limit", most.label_value_length, 1, MAX_LABEL_LENGTH),
        timestamp_age=table.duration("timestamp_age_limit", most.timestamp_age, 1.0, MAX_TIMESTAMP_AGE_SECONDS),
    )
    timeout = table.duration("timeout", fallback.timeout, least=0.1, most=MAX_TIMEOUT_SECONDS)
    offset = table.duration("timeout_offset", fallback.timeout_offset, least=0.0, most=MAX_TIMEOUT_SECONDS)
    table.done()
    if offset >= timeout:
        raise table.error("timeout_offset", "leaves no time to scrape in; make it shorter than scrape.timeout")
    return Scrape(timeout=timeout, timeout_offset=offset, limits=limits)


def _qrexec(table: Table, folder: Path) -> Qrexec:
    fallback = Qrexec()
    qrexec = Qrexec(
        client=table.take("client", str, fallback.client),
        local_service=folder / table.take("local_service", str, str(fallback.local_service)),
        buffer_size=table.size("buffer_size", fallback.buffer_size, least=1 << 10, most=MAX_BUFFER_SIZE),
        connect_limit=table.number("connect_limit", fallback.connect_limit, least=1, most=MAX_CONNECT_LIMIT),
        backoff_initial=table.duration("backoff_initial", fallback.backoff_initial, 0.0, MAX_BACKOFF_SECONDS),
        backoff_max=table.duration("backoff_max", fallback.backoff_max, 0.0, MAX_BACKOFF_SECONDS),
    )
    table.done()
    if not qrexec.client:
        raise table.error("client", "empty; the program is called qrexec-client-vm")
    if qrexec.backoff_max < qrexec.backoff_initial:
        raise table.error("backoff_max", "shorter than backoff_initial; make it at least as long")
    return qrexec


def _exporter(name: str, entry: Entry) -> Exporter:
    if not _EXPORTER_NAME.fullmatch(name):
        raise entry.error("not a name for an exporter; use letters, digits, _ . and -")
    if not isinstance(entry.value, dict):
        return Exporter(name=name, port=entry.port())
    table = entry.as_table()
    port = table.entry("port")
    drop = _patterns(table, "drop", default=[])
    table.done()
    if port is None:
        raise table.error("port", "missing; say on which port of the qube's loopback it listens")
    return Exporter(name=name, port=port.port(), drop=drop)


def _qube(name: str, table: Table, exporters: Mapping[str, Exporter], limits: Limits) -> Qube:
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


def _discovery(table: Table, exporters: Mapping[str, Exporter]) -> Discovery:
    sources = ("admin.vm.List", "ruddo.PrometheusDiscover")
    source: Source = table.choice("source", sources, sources[0])  # type: ignore[assignment]
    interval = table.duration("refresh_interval", 30.0, least=1.0, most=MAX_REFRESH_SECONDS)
    chosen = _chosen(table, table.list("exporters", default=[]), exporters)
    include = _patterns(table, "include", default=[".*"])
    exclude = _patterns(table, "exclude", default=[])
    table.done()
    if not include:
        raise table.error("include", 'empty, so no qube would be found; leave it out, or write [".*"]')
    return Discovery(source=source, refresh_interval=interval, exporters=chosen, include=include, exclude=exclude)


def _patterns(table: Table, key: str, default: Sequence[str]) -> tuple[Pattern, ...]:
    return tuple(entry.convert(Pattern) for entry in table.list(key, default=default))


def _chosen(table: Table, entries: Sequence[Entry], exporters: Mapping[str, Exporter]) -> tuple[Exporter, ...]:
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


def _label(name: str, entry: Entry, limits: Limits) -> tuple[str, str]:
    if not _LABEL_NAME.fullmatch(name) or name.startswith("__"):
        raise entry.error("not a label name; use letters, digits and _, no digit first, not __ at the start")
    if name in _TAKEN_LABELS:
        raise entry.error("this label has a meaning of its own on the page; choose another name")
    value = entry.take(str)
    if not value or "\0" in value or len(value.encode()) > limits.label_value_length:
        raise entry.error(f"the value must have 1 to {limits.label_value_length} bytes, and no NUL")
    return name, value
