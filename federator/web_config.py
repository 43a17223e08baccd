# SPDX-License-Identifier: GPL-3.0-or-later
"""
The keys of [web]: where the daemon listens, and who is let in. Table -> Web.

Owns these keys, their defaults and ranges. Those of who is let in have the names and meanings of Prometheus'
exporter-toolkit, and may stand in a file of their own, as there. What Python's ssl cannot do is refused, so that
nobody believes that it is in force. Must not know how a request is let in, nor what is in a certificate.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from federator.model import Address, ClientAuth, Pem, RateLimit, Secret, Tls, TlsVersion, Web
from federator.toml_reader import Entry, Table

# A longer path does not fit into the kernel's structure.
MAX_SOCKET_PATH = 107
# More costly hashes take longer than a second for each wrong password.
MAX_BCRYPT_COST = 14
# No more is gained by either.
MAX_RATE_INTERVAL_SECONDS = 3600.0
MAX_RATE_BURST = 1_000_000

_GUARD_KEYS = ("tls_server_config", "basic_auth_users", "rate_limit")
_HASH = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")

# The suites that the toolkit takes: Go's names and OpenSSL's. Those of TLS 1.3 may be named; they are always on.
_CIPHERS: Mapping[str, str] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
_CIPHERS_OF_TLS13 = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256")


def web_settings(table: Table, guard: Table | None) -> Web:
    """Check [web]. `guard`: the table of a file of its own that says who is let in. Raises ConfigError."""
    listed = table.list("listen_addresses", default=["0.0.0.0:8199"])
    addresses = tuple(table.each(listed, lambda entry: entry.convert(listen_address)))
    hosts = tuple(table.each(table.list("hosts", default=[]), lambda entry: entry.convert(_host)))
    if guard is not None:
        for key in _GUARD_KEYS:
            table.reject(key, f"--web.config.file names {guard.file} for this; take it out of one of the two files")
    source = table if guard is None else guard
    tls = source.attempt(lambda: _tls(source), None)
    no_users: tuple[tuple[str, Secret], ...] = ()
    users = source.attempt(lambda: _users(source), no_users)
    rate_limit = source.attempt(lambda: _rate_limit(source), RateLimit())
    source.reject("http_server_config", "not supported; there is HTTP/1.1 only, and no headers to set")
    source.done()
    table.done()
    for number, address in enumerate(addresses):
        if address in addresses[:number] and address != ("", 0):
            raise table.error("listen_addresses", f"{listed[number].value!r} is there twice; once is enough")
        for entry, other in zip(listed[:number], addresses, strict=False):
            if _includes(address, other) or _includes(other, address):
                both = f"{entry.value!r} and {listed[number].value!r}"
                raise table.error("listen_addresses", f"{both}: one of them includes the other; it alone is enough")
    if not listed and not table.faulty:
        raise table.error("listen_addresses", 'empty; name at least one, such as "127.0.0.1:8199"')
    return Web(listen_addresses=addresses, hosts=hosts, tls=tls, users=users, rate_limit=rate_limit)


def listen_address(text: str) -> Address:
    """HOST:PORT, :PORT or [IPV6]:PORT as (host, port); unix:PATH as a path. Raises ValueError with words for people."""
    scheme, _, path = text.partition(":")
    if scheme == "unix":
        if not path.startswith("/") or len(path.encode()) > MAX_SOCKET_PATH or "\0" in path:
            raise ValueError(f"{text!r} is not unix:/PATH with at most {MAX_SOCKET_PATH} bytes")
        return Path(path)
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    # Port 0 lets the system choose a free one: the log says which.
    if colon and re.fullmatch(r"[0-9]{1,9}", port) and int(port) > 65535:
        raise ValueError(f"{text!r}: {port} is not a port; ports are 1 to 65535")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or (":" in host) != ("[" in text):
        raise ValueError(f"{text!r} is not HOST:PORT; write 127.0.0.1:8199, [::1]:8199, or :8199 for every address")
    if not _may_be_host(host):
        raise ValueError(f"{text!r}: {host!r} is not the name of a host")
    return host, int(port)


def _may_be_host(name: str) -> bool:
    """Can its addresses be asked for? An empty part and one of more than 63 characters cannot."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return name.isprintable()


def _includes(one: Address, other: Address) -> bool:
    """Would listening on `one` take the port of `other`, too? A host name may have any addresses."""
    if isinstance(one, Path) or isinstance(other, Path) or one[1] != other[1] or not one[1] or one == other:
        return False
    if not re.fullmatch(r"[0-9.]*|.*:.*", other[0]):
        return not one[0]
    return one[0] in ({"", "::"} if ":" in other[0] else {"", "0.0.0.0"})  # noqa: S104 - it is compared, and not bound


def _host(text: str) -> str:
    if not _HOST_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not the name of a host; write it without a port and without http://")
    return text.lower()


def _tls(source: Table) -> Tls | None:
    entry = source.entry("tls_server_config")
    if entry is None:
        return None
    table = entry.as_table()
    cert, key, client_ca = (_pem(table, name) for name in ("cert", "key", "client_ca"))
    client_auth = _client_auth(table)
    sans = tuple(one.take(str) for one in table.list("client_allowed_sans", default=[]))
    oldest, newest = _version(table, "min_version", "TLS12"), _version(table, "max_version", "TLS13")
    ciphers = _ciphers(table)
    prefer_server_ciphers = table.take("prefer_server_cipher_suites", bool, fallback=True)
    table.reject("curve_preferences", "Python's ssl cannot choose curves; leave the key out")
    table.done()
    if table.faulty:  # what is missing may be there under a mistyped name
        return None
    for name, value in (("cert", cert), ("key", key)):
        if value is None:
            raise table.error(f"{name}_file", f"missing; name the file, or give its contents as {name}")
    assert cert is not None, "it was looked at above"
    assert key is not None, "it was looked at above"
    verifies = client_auth != "NoClientCert"
    if client_ca and not verifies:
        raise table.error("client_auth_type", "missing; write RequireAndVerifyClientCert, or leave out client_ca_file")
    if verifies and not client_ca:
        raise table.error(
            "client_ca_file", f"missing; {client_auth} verifies certificates, so say with which authority"
        )
    if sans and client_auth != "RequireAndVerifyClientCert":
        raise table.error("client_allowed_sans", "needs client_auth_type RequireAndVerifyClientCert")
    if oldest > newest:
        raise table.error("min_version", "newer than max_version")
    return Tls(
        where=table.where,
        cert=cert,
        key=key,
        client_ca=client_ca,
        client_auth=client_auth,
        client_allowed_sans=sans,
        min_version=oldest,
        max_version=newest,
        ciphers=ciphers,
        prefer_server_ciphers=prefer_server_ciphers,
    )


def _pem(table: Table, key: str) -> Pem | None:
    """A file, or else its contents; the toolkit prefers the file, too."""
    file, contents = table.take(f"{key}_file", str, ""), table.take(key, str, "")
    if file:
        return table.file.parent / file
    return Secret(contents) if contents else None


def _client_auth(table: Table) -> ClientAuth:
    verifying = ("NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert")
    entry = table.entry("client_auth_type")
    value = (entry.take(str) if entry else "") or verifying[0]
    if value in ("RequestClientCert", "RequireAnyClientCert", "RequireClientCert"):
        table.fault(
            "client_auth_type",
            f"Python's ssl cannot do {value}: it verifies each certificate it asks for;"
            " use VerifyClientCertIfGiven or RequireAndVerifyClientCert",
            None,
        )
    elif value not in verifying:
        table.fault("client_auth_type", f"{value!r} is none of {', '.join(verifying)}", None)
    return value  # type: ignore[return-value]


def _version(table: Table, key: str, fallback: TlsVersion) -> TlsVersion:
    value = table.take(key, str, fallback)
    if value in ("TLS10", "TLS11"):
        what = f"{value} is not safe, and OpenSSL does not speak it any more; use TLS12 or TLS13"
        return table.fault(key, what, fallback)
    if value not in ("TLS12", "TLS13"):
        return table.fault(key, f"{value!r} is neither TLS12 nor TLS13", fallback)
    return value  # type: ignore[return-value]


def _ciphers(table: Table) -> tuple[str, ...]:
    entries = table.list("cipher_suites", default=[])
    names = [entry.take(str) for entry in entries]
    for name, entry in zip(names, entries, strict=True):
        with table.noting():
            if name not in _CIPHERS and name not in _CIPHERS_OF_TLS13:
                raise entry.error(f"unknown cipher suite {name!r}; those of TLS 1.2 are {', '.join(_CIPHERS)}")
    chosen = tuple(_CIPHERS[name] for name in names if name in _CIPHERS)
    if names and not chosen and not table.faulty:
        raise table.error(
            "cipher_suites",
            "these are all of TLS 1.3, which are always on; add one of TLS 1.2, or leave the list out and write"
            ' min_version = "TLS13"',
        )
    return chosen


def _users(source: Table) -> tuple[tuple[str, Secret], ...]:
    table = source.table("basic_auth_users")
    names = [(name, table.attempt(partial(_hash, name, entry), None)) for name, entry in table.entries()]
    return tuple((name, secret) for name, secret in names if secret is not None)


def _hash(name: str, entry: Entry) -> Secret:
    if not name or ":" in name:
        raise entry.error("not a name that a client can send; it has no colon, and is not empty")
    match = _HASH.fullmatch(entry.take(str))
    if match is None:
        raise entry.error("not a bcrypt hash; make one with `prometheus-qubes-proxy hash-password`")
    if not 4 <= int(match[1]) <= MAX_BCRYPT_COST:
        raise entry.error(
            f"the cost of this bcrypt hash is {match[1]}; it may be 4 to {MAX_BCRYPT_COST}, and 10 is usual"
        )
    return Secret(match[0])


def _rate_limit(source: Table) -> RateLimit:
    table = source.table("rate_limit")
    fallback = RateLimit()
    limit = RateLimit(
        interval=table.duration("interval", fallback.interval, least=0.0, most=MAX_RATE_INTERVAL_SECONDS),
        burst=table.number("burst", fallback.burst, least=1, most=MAX_RATE_BURST),
    )
    table.done()
    return limit
