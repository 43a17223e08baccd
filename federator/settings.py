# SPDX-License-Identifier: GPL-3.0-or-later
"""
A configuration in force as the lines of a file, for people to look at, with `<secret>` for each secret.

Owns how values are written. Must not know which keys there are: it walks the nouns of `model`.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from federator.model import Config, Exporter, Limits, RateLimit, Tls
from federator.pattern import Pattern

# Keys whose names in the file are others than in `model`.
_NAMES = {
    **{field.name: f"{field.name}_limit" for field in fields(Limits)},
    "samples": "sample_limit",
    "labels": "label_limit",
    "client_auth": "client_auth_type",
    "ciphers": "cipher_suites",
    "prefer_server_ciphers": "prefer_server_cipher_suites",
}
# What is written as a table of its own, or is no key.
_APART = frozenset({"limits", "tls", "users", "rate_limit", "where", "cert", "key", "client_ca", "patience"})


def setting_lines(config: Config) -> Iterator[str]:
    """The whole configuration."""
    yield "[web]"
    yield from _keys(config.web)
    if config.web.tls is not None:
        yield from ("", "[web.tls_server_config]", *_tls(config.web.tls))
    if config.web.users:
        yield from ("", "[web.basic_auth_users]", *(f"{_text(name)} = {hash_!r}" for name, hash_ in config.web.users))
    if config.web.rate_limit != RateLimit():
        yield from ("", "[web.rate_limit]", *_keys(config.web.rate_limit))
    yield from ("", "[scrape]", *_keys(config.scrape), *_keys(config.scrape.limits))
    yield from ("", "[qrexec]", *_keys(config.qrexec))
    discovered = config.discovery.exporters if config.discovery else ()
    exporters = {one.name: one for one in (*(target.exporter for target in config.targets), *discovered)}
    yield from ("", "[exporters]", *map(_exporter, exporters.values()))
    for qube in config.qubes:
        yield from ("", f"[qubes.{_text(qube.name)}]", f"transport = {_text(qube.transport)}")
        yield f"exporters = {_value(tuple(target.exporter for target in qube.targets))}"
        if qube.labels:
            yield f"labels = {{ {', '.join(f'{name} = {_text(value)}' for name, value in qube.labels)} }}"
    if config.discovery is not None:
        yield from ("", "[discovery]", *_keys(config.discovery))
    if config.dom0 is not None:
        yield from ("", "[dom0]", *_keys(config.dom0))


def _keys(table: Any) -> Iterator[str]:
    """Each field of a noun as a key."""
    names = _NAMES if isinstance(table, Limits | Tls) else {}
    for field in fields(table):
        if field.name not in _APART:
            yield f"{names.get(field.name, field.name)} = {_value(getattr(table, field.name))}"


def _tls(tls: Tls) -> Iterator[str]:
    """A certificate is a file, or the contents themselves."""
    for key in ("cert", "key", "client_ca"):
        pem = getattr(tls, key)
        if pem is not None:
            yield f"{key}_file = {_value(pem)}" if isinstance(pem, Path) else f"{key} = {pem!r}"
    yield from _keys(tls)


def _exporter(exporter: Exporter) -> str:
    is_port = isinstance(exporter.endpoint, int)
    usual = Exporter(exporter.name, exporter.endpoint)
    keys = [
        f"{field.name} = {_value(getattr(exporter, field.name))}"
        for field in fields(exporter)
        if getattr(exporter, field.name) != getattr(usual, field.name)
    ]
    if is_port and not keys:
        return f"{_text(exporter.name)} = {exporter.endpoint}"
    keys.insert(0, f"{'port' if is_port else 'endpoint'} = {_value(exporter.endpoint)}")
    return f"{_text(exporter.name)} = {{ {', '.join(keys)} }}"


def _value(value: Any) -> str:
    """A value as TOML; floats are durations."""
    if isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, tuple) and len(value) == 2 and type(value[1]) is int:  # an address
        return _text(f"[{value[0]}]:{value[1]}" if ":" in value[0] else f"{value[0]}:{value[1]}")
    if isinstance(value, tuple):
        return f"[{', '.join(_text(f'unix:{one}') if isinstance(one, Path) else _value(one) for one in value)}]"
    if isinstance(value, float):
        return _text(f"{value:.0f}s" if value.is_integer() else f"{value * 1000:.0f}ms")
    words = {Exporter: "name", Pattern: "pattern"}.get(type(value))
    return _text(getattr(value, words) if words else str(value))


def _text(text: str) -> str:
    """A bare key, or a string."""
    return json.dumps(text, ensure_ascii=False)
