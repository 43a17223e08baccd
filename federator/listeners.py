# SPDX-License-Identifier: GPL-3.0-or-later
"""
What is at the addresses of web.listen_addresses: our daemon, another program, or nothing; and whether the daemon could
listen there.

Owns these questions of `check` and `doctor`, and how the daemon's pages are fetched. Must not know what they say.
"""

import asyncio
import errno
import re
import socket
import ssl
from pathlib import Path
from typing import Literal

from federator import host, presence
from federator.daemonview import Listener
from federator.model import Address, Config

# How the daemon answers /-/healthy, which anybody may ask.
_OURS = b"prometheus-qubes-proxy"
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})\b")


async def unusable(settings: Config) -> dict[Address, str]:
    """Where the daemon could not listen, and the remedy. Not where a daemon of ours listens already."""
    found = {}
    for address in settings.web.listen_addresses:
        if presence.closed_to_us(address):
            continue
        fault = await host.listen_fault(address)
        if fault is None or (fault.errno == errno.EADDRINUSE and (await _who(address, settings))[0] == "daemon"):
            continue
        found[address] = f"{settings.path}: web.listen_addresses: {host.cannot_listen(address, fault)}"
    return found


async def at(address: Address, settings: Config) -> Listener:
    """What is there."""
    name, port = host.written(address), None if isinstance(address, Path) else address[1]
    if presence.closed_to_us(address):
        return Listener(name, port, "closed")
    if not presence.answers(address):
        fault = await host.listen_fault(address)
        return Listener(name, port, "nothing", host.cannot_listen(address, fault) if fault else "")
    there, tls = await _who(address, settings)
    status, body = 0, b""
    if there == "daemon":
        status, body = await _quickly(address, "/metrics/proxy", settings, tls=tls)
    return Listener(name, port, there, tls=tls, status=status, untrusted_proxy=body.decode(errors="replace"))


async def _who(address: Address, settings: Config) -> tuple[Literal["daemon", "other", "mute"], bool]:
    """What takes connections there, and whether it speaks TLS. It asks only what the daemon's rate limit leaves out."""
    configured = settings.web.tls is not None
    answered = False
    for tls in (configured, not configured):  # the daemon may not have read the file again
        status, body = await _quickly(address, "/-/healthy", settings, tls=tls)
        if status == 200 and body.startswith(_OURS):
            return "daemon", tls
        answered = answered or status != 0
    if answered:
        return "other", configured
    # A daemon that wants a client's certificate says nothing to those without one.
    wants_certificate = settings.web.tls is not None and settings.web.tls.client_auth == "RequireAndVerifyClientCert"
    return ("daemon" if wants_certificate and await _speaks_tls(address) else "mute"), configured


async def _speaks_tls(address: Address) -> bool:
    """What hangs does not, and most other programs do not."""
    try:
        sock = presence.connect(address, presence.CONNECT_SECONDS)
    except OSError:
        return False
    try:
        async with asyncio.timeout(presence.CONNECT_SECONDS):
            _, writer = await _opened(sock, tls=True)
    except ConnectionError:  # TLS 1.2 ends before the handshake is complete where there is no certificate
        return True
    except OSError:
        return False
    writer.transport.abort()
    return True


async def _opened(sock: socket.socket, *, tls: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        sock=sock, ssl=_unverified() if tls else None, server_hostname="localhost" if tls else None
    )


async def _quickly(address: Address, path: str, settings: Config, *, tls: bool) -> tuple[int, bytes]:
    """Like `fetch`, of a page for which the daemon asks nobody."""
    try:
        async with asyncio.timeout(presence.CONNECT_SECONDS):
            return await fetch(address, path, settings.scrape.memory_limit, tls=tls)
    except TimeoutError:
        return 0, b""


async def fetch(address: Address, path: str, limit: int, *, tls: bool) -> tuple[int, bytes]:
    """
    HTTP status, and the body up to the limit. Status 0 if there was no answer.

    It may be another program, whose answer never ends: who calls this has one deadline for all of it.
    """
    try:
        reader, writer = await _opened(presence.connect(address, presence.CONNECT_SECONDS), tls=tls)
    except OSError:
        return 0, b""
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        untrusted = bytearray()
        while len(untrusted) < limit and (piece := await reader.read(1 << 16)):
            untrusted += piece
    except OSError:
        return 0, b""
    finally:
        writer.transport.abort()
    head, _, body = untrusted.partition(b"\r\n\r\n")
    status = _STATUS.match(head)
    return (int(status[1]), bytes(body)) if status else (0, b"")


def _unverified() -> ssl.SSLContext:
    """The certificate has a name by which others know this qube. We know by its address that it is ours."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
