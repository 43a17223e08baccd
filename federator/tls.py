# SPDX-License-Identifier: GPL-3.0-or-later
"""
TLS for those who ask us: a context for each handshake, from the certificates as they are now; which clients may in.

Owns the only use of Python's ssl. Must not know what is asked over a connection.

A certificate that was renewed is used from the next connection on: no restart, no signal. Where the new files are not
usable, the log says so, and the old ones stay in use.
"""

import asyncio
import ipaddress
import logging
import os
import ssl
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from federator.errors import ConfigError, HandshakeError, shown
from federator.model import Pem, Secret, Tls

# A chain of certificates has some kilobytes, and all authorities that browsers know have 250.
MAX_PEM_BYTES = 1 << 20
# Both ends say goodbye; a client that does not is gone after this.
GOODBYE_SECONDS = 2.0

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_VERIFY = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_SAN_KINDS = ("DNS", "email", "URI", "IP Address")

log = logging.getLogger(__name__)


class ServerTls:
    """One [web.tls_server_config]. Raises ConfigError where its files are not usable."""

    def __init__(self, settings: Tls) -> None:
        self._settings = settings
        self._allowed = {_comparable(name) for name in settings.client_allowed_sans}
        self._stamps = _stamps(settings)
        self._context = _context(settings)

    async def handshake(
        self, plain: asyncio.Transport, protocol: asyncio.Protocol, seconds: float
    ) -> asyncio.Transport:
        """
        The encrypted transport, for this protocol; its `connection_made` is not called.

        Raises HandshakeError where the client did not pass, OSError where it went away or took too long.

        `protocol` may get the first data before this returns. Its `connection_lost` may be called or not if it fails.
        """
        try:
            secured = await asyncio.get_running_loop().start_tls(
                plain,
                protocol,
                self._current(),
                server_side=True,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=GOODBYE_SECONDS,
            )
        except ssl.SSLError as error:
            plain_http = "it speaks plain HTTP; use https:// in its configuration"
            raise HandshakeError(plain_http if error.reason == "HTTP_REQUEST" else shown(str(error))) from None
        if secured is None or secured.is_closing():
            raise ConnectionAbortedError("the client went away in the handshake")
        if not self._admits(secured.get_extra_info("peercert") or {}):
            raise HandshakeError("its certificate has none of the names in client_allowed_sans")
        return secured

    def _current(self) -> ssl.SSLContext:
        """The context for the next handshake."""
        stamps = _stamps(self._settings)
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                self._context = _context(self._settings)
            except ConfigError as error:
                log.error(  # noqa: TRY400 - it is the operator's mistake, and named; a traceback would hide it
                    "the new certificates are not usable; the old ones stay", extra={"error": str(error)}
                )
            else:
                log.info("new certificates")
        return self._context

    def _admits(self, certificate: Mapping[str, Any]) -> bool:
        """Has this certificate, which was verified, one of the names that are allowed?"""
        names = {_comparable(name) for kind, name in certificate.get("subjectAltName", ()) if kind in _SAN_KINDS}
        return not self._allowed or not names.isdisjoint(self._allowed)


def _comparable(name: str) -> str:
    """An IP address in the one way to write it; another name as it is."""
    try:
        return str(ipaddress.ip_address(name.strip()))
    except ValueError:
        return name


def _stamps(settings: Tls) -> list[tuple[int, int, int] | None]:
    """What changes when a file does."""
    stamps: list[tuple[int, int, int] | None] = []
    for file in (settings.cert, settings.key, settings.client_ca):
        if isinstance(file, Path):
            try:
                found = file.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
    return stamps


def _context(settings: Tls) -> ssl.SSLContext:
    """Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.maximum_version = _VERSIONS[settings.max_version]
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could make us calculate again and again
    if not settings.prefer_server_ciphers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    if settings.ciphers:
        with _named(settings, "cipher_suites", "this qube's OpenSSL has none of them; leave the list out"):
            context.set_ciphers(":".join(settings.ciphers))
    cert, key = _contents(settings, "cert"), _contents(settings, "key")
    problem = "both must be PEM and belong together, and the key must not be encrypted"
    with _named(settings, "cert_file, key_file", problem), _as_file(cert) as cert_file, _as_file(key) as key_file:
        # The password of a key that is encrypted would be asked for on the terminal.
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
    context.verify_mode = _VERIFY[settings.client_auth]
    if settings.client_ca is not None:
        # As with Go, an authority that another one signed can be trusted by itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        authority = _contents(settings, "client_ca")
        with (
            _named(settings, "client_ca_file", "it must have one or more certificates as PEM"),
            _as_file(authority) as file,
        ):
            context.load_verify_locations(file)
    return context


@contextmanager
def _named(settings: Tls, keys: str, problem: str) -> Iterator[None]:
    """Whatever goes wrong here is wrong with these keys."""
    try:
        yield
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)  # not every SSLError has one
        raise ConfigError(f"{settings.where}.{keys}: {problem}{f' ({reason})' if reason else ''}") from None


def _contents(settings: Tls, key: str) -> bytes:
    """The file of this key, or what stands in the configuration instead of it."""
    source: Pem = getattr(settings, key)
    if isinstance(source, Secret):
        return source.text.encode()
    place = f"{settings.where}.{key}_file: {source}"
    try:
        # Without waiting: somebody may have put a FIFO there.
        with open(source, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{place}: not a regular file")
            contents = file.read(MAX_PEM_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; the daemon must be able to read it") from None
    if len(contents) > MAX_PEM_BYTES:
        raise ConfigError(f"{place}: larger than {MAX_PEM_BYTES} bytes; is it the right file?")
    return contents


@contextmanager
def _as_file(contents: bytes) -> Iterator[str]:
    """Python's ssl takes certificates and keys from files alone; this one is in memory."""
    fd = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(fd, contents)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
