# SPDX-License-Identifier: GPL-3.0-or-later
"""
The configuration: which keys there are, their defaults and ranges, and what they mean. Text -> Config.

Owns the schema. To add a key, add it here, to `model.py`, to the commented example in conf/ and to
docs/configuration.md. Must not know how TOML is read, nor what is done with a configuration.
A fault raises a ConfigError that names the file, the key and what to do. Nothing is guessed, and no key is ignored.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from federator import toml_reader
from federator.errors import ConfigError
from federator.model import (
    ENDPOINT_NAME,
    MAX_TIMEOUT_SECONDS,
    Config,
    Discovery,
    Dom0,
    Endpoint,
    Exporter,
    Limits,
    Qrexec,
    Qube,
    Scrape,
    Source,
    Target,
    Transport,
    Web,
    where,
)
from federator.pattern import Pattern
from federator.targets import DOM0, is_qube_name
from federator.toml_reader import Entry, Table
from federator.web_config import web_settings

# /rw/config survives a reboot of a NetVM that is based on a template; /etc is the template's.
DEFAULT_PATHS = (Path("/rw/config/prometheus-qubes-proxy.toml"), Path("/etc/prometheus-qubes-proxy.toml"))

_EXPORTER_NAME = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,62}")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
# Labels that have a meaning already on the series that they would be added to.
_TAKEN_LABELS = frozenset({"qube", "exporter", "reason", "le", "quantile", "job", "instance"})
# Their ports and endpoints are the qrexec argument. qrexec's control channel carries some 3.9 kB, and each takes
# 33 bytes at most; the service takes the same number.
MAX_EXPORTERS_PER_QUBE = 64

# The request to a qube's service has ten digits for the size; a NetVM has less memory than this.
MAX_BODY_SIZE = 1 << 30
# Each sample costs about 1 kB while it is read: these need more memory than a NetVM has.
MAX_SAMPLES = 5_000_000
# Prometheus scrapes once a minute, or more often.
MAX_INTERVAL_SECONDS = 60.0
# Less than the first is not worth remembering anything in; no NetVM has more than the second.
MIN_MEMORY = 6 << 20
MAX_MEMORY = 1 << 40
# A line of a text has at most 16 KiB, so there cannot be more labels, nor longer ones, that mean anything.
MAX_LABELS = 1000
MAX_LABEL_LENGTH = 16 << 10
# 100 years: as good as no limit.
MAX_TIMESTAMP_AGE_SECONDS = 100 * 31_536_000.0
# An open call has two buffers. They are made of grant pages, and a qube has 4 MiB of those.
MAX_BUFFER_SIZE = 1 << 20
# xenstore fails between 10 and 25 calls that are opened at the same time, as it is set up by default.
MAX_CONNECT_LIMIT = 64
# Prometheus takes a series for gone five minutes after its last sample; but some backups run once a day.
MAX_SCRAPE_INTERVAL_SECONDS = 86_400.0
# A round of 100 qubes takes some 80 s, since dom0 is to be called slowly. A pool does not fill unseen in an hour.
MIN_DOM0_INTERVAL_SECONDS = 30.0
MAX_DOM0_INTERVAL_SECONDS = 3600.0
# A qube that works again, or is started, is scraped on the same day.
MAX_BACKOFF_SECONDS = 86_400.0
MAX_REFRESH_SECONDS = 86_400.0


# A thousand qubes take some 100 kB.
MAX_FILE_SIZE = 1 << 20


def default_path() -> Path:
    """The file that is read if the command line names none."""
    return next((path for path in DEFAULT_PATHS if path.exists()), DEFAULT_PATHS[-1])


def misnamed() -> list[Path]:
    """Files that are not read, and were perhaps meant to be: their names are nearly that of a default path."""
    return [
        path.with_name(name)
        for path in DEFAULT_PATHS
        if path.parent.is_dir()
        for name in difflib.get_close_matches(
            path.name, [other.name for other in path.parent.iterdir()], n=3, cutoff=0.8
        )
        if name != path.name
    ]


def load(path: Path, web_file: Path | None = None) -> Config:
    """
    Read and check a configuration file. Raises ConfigError.

    `web_file`: another file, of --web.config.file, that says who is let in.
    """
    text = _text(path, "--config.file")
    top = toml_reader.read(_text(web_file, "--web.config.file"), web_file) if web_file else None
    return from_table(toml_reader.read(text, path), path, top)


def identity(path: Path) -> str:
    """By what a file is told from others: its path without links, as text whatever bytes it has."""
    return str(path.resolve()).encode("utf-8", "backslashreplace").decode()


def without_effect(config: Config) -> list[str]:
    """A line for each table of a good configuration that does nothing, with the remedy."""
    if config.dom0 is None or config.dom0.switches:
        return []
    says = "every switch is false, so dom0 is asked for nothing"
    return [f"dom0: {says}; set stats, storage, volumes, properties or updates to true, or remove the table"]


def _text(path: Path, option: str) -> str:
    try:
        # Reading a pipe would wait until somebody writes to it.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"{path}: not a regular file; name one with {option}=PATH")
        if path.stat().st_size > MAX_FILE_SIZE:
            raise ConfigError(f"{path}: larger than {MAX_FILE_SIZE} bytes; is this the configuration?")
        return path.read_bytes().decode("utf-8-sig")  # editors of other systems write a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; write one, or name yours with {option}=PATH") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; the daemon must be able to read it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8; save the file as UTF-8 text") from None


def parse(text: str, path: Path) -> Config:
    """Check a configuration. `path` is for messages and for relative paths. Raises ConfigError."""
    return from_table(toml_reader.read(text, path), path)


def from_table(top: Table, path: Path, web_top: Table | None = None) -> Config:
    """Check a configuration that is a TOML table already, and so may be `web_file`'s. Raises ConfigError."""
    for key in ("web", "scrape", "qrexec", "exporters", "qubes", "discovery", "dom0"):
        top.entry(key)
    top.done()  # first, since other faults follow from a table with a mistyped name
    web = top.attempt(lambda: web_settings(top.table("web"), web_top), Web(listen_addresses=()))
    scrape = top.attempt(lambda: _scrape(top.table("scrape")), Scrape())
    qrexec = top.attempt(lambda: _qrexec(top.table("qrexec"), path.parent), Qrexec())
    exporters: dict[str, Exporter | None] = {}
    with top.noting():
        for name, entry in top.table("exporters").entries():
            exporters[name] = top.attempt(partial(_exporter, name, entry), None)
    qubes: list[Qube] = []
    with top.noting():
        for name, entry in top.table("qubes").entries():
            with top.noting():
                qubes.append(_qube(name, entry.as_table(), exporters, scrape.limits))
    entry_of_discovery = top.entry("discovery")
    discovery: Discovery | None = None
    if entry_of_discovery:
        with top.noting():
            discovery = _discovery(entry_of_discovery.as_table(), exporters)
            qrexec = replace(qrexec, patience=discovery.refresh_interval)
    dom0 = top.attempt(lambda: _dom0(top.table("dom0")), None) if top.entry("dom0") else None
    top.finish(web_top)
    if not qubes and not (discovery and discovery.exporters) and not dom0:
        raise top.error("qubes", "there is nothing to scrape; add a table such as [qubes.work]")
    return Config(path, web, scrape, qrexec, tuple(qubes), discovery, dom0)


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
    interval = table.duration("min_interval", fallback.min_interval, least=0.0, most=MAX_INTERVAL_SECONDS)
    memory = table.size("memory_limit", fallback.memory_limit, least=MIN_MEMORY, most=MAX_MEMORY)
    table.done()
    if offset >= timeout and not table.faulty:
        raise table.error("timeout_offset", "leaves no time to scrape in; make it shorter than scrape.timeout")
    return Scrape(timeout=timeout, timeout_offset=offset, memory_limit=memory, limits=limits, min_interval=interval)


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
    if qrexec.backoff_max < qrexec.backoff_initial and not table.faulty:
        raise table.error("backoff_max", "shorter than backoff_initial; make it at least as long")
    return qrexec


def _exporter(name: str, entry: Entry) -> Exporter | None:
    """None if its port or endpoint may be there under a mistyped name."""
    if not _EXPORTER_NAME.fullmatch(name):
        raise entry.error("not a name for an exporter; use letters, digits, _ . and -")
    if not isinstance(entry.value, dict):
        return Exporter(name=name, endpoint=entry.port())
    table = entry.as_table()
    port, endpoint = table.entry("port"), table.entry("endpoint")
    drop = _patterns(table, "drop", default=[])
    timeout = table.duration("timeout", 0.0, 0.1, MAX_TIMEOUT_SECONDS) if table.entry("timeout") else None
    interval = table.duration("interval", 0.0, 1.0, MAX_SCRAPE_INTERVAL_SECONDS) if table.entry("interval") else None
    page = table.take("page", bool, True)  # noqa: FBT003 - the default, as of every key
    table.done()
    if port and endpoint:
        raise table.error("endpoint", "there is a port, too; an exporter is on a port, or is an endpoint")
    place: Endpoint
    if endpoint:
        place = endpoint.convert(_endpoint_name)
    elif port:
        place = port.port()
    elif table.faulty:
        return None
    else:
        raise table.error("port", "missing; say on which port of the qube's loopback it listens, or name an endpoint")
    if interval is not None and page and not table.faulty:
        raise table.error(
            "interval",
            "/metrics asks every exporter each time; add page = false, and let Prometheus scrape it through /sd",
        )
    return Exporter(name, place, drop, timeout, interval, page)


def _endpoint_name(name: str) -> str:
    if not re.fullmatch(ENDPOINT_NAME, name):
        raise ValueError("not a name for an endpoint; use a small letter, then at most 31 of a-z, 0-9, _ and -")
    return name


def _qube(name: str, table: Table, exporters: Mapping[str, Exporter | None], limits: Limits) -> Qube:
    if not is_qube_name(name) and name != DOM0:
        raise table.wrong("not a name Qubes gives to qubes: a letter, then at most 30 letters, digits, _ . and -")
    transport: Transport = table.choice("transport", ("qrexec", "local"), "qrexec")  # type: ignore[assignment]
    labels: list[tuple[str, str]] = []
    with table.noting():
        for key, entry in table.table("labels").entries():
            with table.noting():
                labels.append(_label(key, entry, limits))
    listed = table.list("exporters", default=None)
    targets = tuple(
        Target(qube=name, exporter=exporter, labels=tuple(labels)) for exporter in _chosen(table, listed, exporters)
    )
    table.done()
    if not listed and not table.faulty:
        raise table.error("exporters", 'empty; name what runs in this qube, such as exporters = ["node"]')
    return Qube(name=name, transport=transport, targets=targets, labels=tuple(labels))


def _discovery(table: Table, exporters: Mapping[str, Exporter | None]) -> Discovery:
    sources = ("admin.vm.List", "ruddo.PrometheusDiscover")
    source: Source = table.choice("source", sources, sources[0])  # type: ignore[assignment]
    interval = table.duration("refresh_interval", 30.0, least=1.0, most=MAX_REFRESH_SECONDS)
    chosen = _chosen(table, table.list("exporters", default=[]), exporters)
    include = _patterns(table, "include", default=[".*"])
    exclude = _patterns(table, "exclude", default=[])
    table.done()
    if not include and not table.faulty:
        raise table.error("include", 'empty, so no qube would be found; leave it out, or write [".*"]')
    return Discovery(source=source, refresh_interval=interval, exporters=chosen, include=include, exclude=exclude)


def _dom0(table: Table) -> Dom0:
    usual = Dom0()
    names = ("stats", "storage", "volumes", "properties", "updates")
    switches = {name: table.take(name, bool, getattr(usual, name)) for name in names}
    interval = table.duration("interval", usual.interval, MIN_DOM0_INTERVAL_SECONDS, MAX_DOM0_INTERVAL_SECONDS)
    table.done()
    return Dom0(**switches, interval=interval)


def _patterns(table: Table, key: str, default: Sequence[str]) -> tuple[Pattern, ...]:
    return tuple(table.each(table.list(key, default=default), lambda entry: entry.convert(Pattern)))


def _chosen(table: Table, entries: Sequence[Entry], exporters: Mapping[str, Exporter | None]) -> tuple[Exporter, ...]:
    """The exporters of one qube that are named here, each in a place of its own; but those whose fault is noted."""
    used: dict[Endpoint, Exporter] = {}

    def choose(entry: Entry) -> None:
        exporter_name = entry.take(str)
        if exporter_name not in exporters:
            close = difflib.get_close_matches(exporter_name, exporters, n=1)
            meant = f"did you mean {close[0]!r}? Otherwise " if close else ""
            raise entry.error(f"there is no exporter {exporter_name!r}; {meant}add it under [exporters] with its port")
        exporter = exporters[exporter_name]
        if exporter is None:
            return
        if exporter in used.values():
            raise entry.error(f"{exporter_name!r} is there twice; once is enough")
        if exporter.endpoint in used:
            raise entry.error(
                f"{exporter_name!r} and {used[exporter.endpoint].name!r} are both on {where(exporter.endpoint)};"
                " each exporter of a qube has its own"
            )
        used[exporter.endpoint] = exporter

    table.each(entries, choose)
    if len(used) > MAX_EXPORTERS_PER_QUBE:
        raise table.error("exporters", f"more than {MAX_EXPORTERS_PER_QUBE}; one qrexec call carries no more")
    return tuple(used.values())


def _label(name: str, entry: Entry, limits: Limits) -> tuple[str, str]:
    if not _LABEL_NAME.fullmatch(name) or name.startswith("__"):
        raise entry.error("not a label name; use letters, digits and _, no digit first, not __ at the start")
    if name in _TAKEN_LABELS:
        raise entry.error("this label has a meaning of its own on the page; choose another name")
    value = entry.take(str)
    if not value or "\0" in value or len(value.encode()) > limits.label_value_length:
        raise entry.error(f"the value must have 1 to {limits.label_value_length} bytes, and no NUL")
    return name, value
