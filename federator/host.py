# SPDX-License-Identifier: GPL-3.0-or-later
"""
The machine we run on: our qube's name, whether the programs are there that we need, how many files may be open, the
memory that it gets back.

Owns these questions, for the daemon and for the command line. Must not know what is scraped or served.
"""

import asyncio
import ctypes
import errno
import os
import resource
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from federator.errors import ConfigError, StartError
from federator.model import Address, Config

# File descriptors that one call takes: three pipes, and one to see the process end.
FILES_PER_CALL = 4
# What else is open: the log, the event loop, the listeners, the configuration being read, Python's own.
FILES_FOR_US = 64
# As many files as the unit allows; no program gains from more.
MAX_FILES = 8192
# What to do where the system refuses a socket, by its error.
_LISTEN_REMEDIES = {
    errno.EADDRINUSE: "end what is there (`sudo ss -ltnp` lists what listens), or choose another address",
    errno.EACCES: "choose a port from 1024 on; for a Unix socket, a folder that the daemon's user can write to",
    errno.EPERM: "the systemd unit allows port 8199 only; for another, `systemctl edit` adds SocketBindAllow=tcp:PORT",
    errno.ENOENT: "make the folder of the socket, or choose another",
}
# Otherwise it has no such address. Newer Pythons do not pass the system's error on then.
_OTHER_ADDRESS = "write an address of this qube, or :PORT for all of them"
# The unit makes it for the daemon alone, when it starts.
UNIT_FOLDER = Path("/run/prometheus-qubes-proxy")
# From glibc's malloc.h.
_M_ARENA_MAX = -8


def watch_children() -> None:
    """Before Python 3.12 the event loop starts a thread for every process it waits for, unless told to use pidfds."""
    if sys.version_info < (3, 12):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


def files_for_connections(calls: int) -> int:
    """
    How many file descriptors there are for HTTP connections, if as many as `calls` need are kept back for those.

    Raises this process' soft limit first, where the system lets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return (MAX_FILES if soft == resource.RLIM_INFINITY else soft) - FILES_FOR_US - FILES_PER_CALL * calls


def keep_one_heap() -> None:
    """
    All threads take their memory from one heap. Each with its own would reserve 64 MB of addresses for it.

    Those who limit the daemon's memory by its addresses (RLIMIT_AS) would see it fail at half of the limit.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def give_memory_back() -> None:
    """
    Free memory goes back to the system. The C library keeps what lies between blocks in use, for ever.

    It takes some milliseconds. Other C libraries than glibc have no such function, and need none.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@cache
def own_name() -> str:
    """The name of the qube we are in, as dom0 knows it; the host name, which is the same by default, elsewhere."""
    try:
        done = subprocess.run(["qubesdb-read", "/name"], capture_output=True, timeout=5, check=True)  # noqa: S607 - Qubes' own, wherever it is
        return done.stdout.decode("ascii", "replace").strip()
    except (OSError, subprocess.SubprocessError):
        return socket.gethostname()


def check(settings: Config) -> None:
    """Can this machine do what the configuration says? Raises ConfigError or StartError if no scrape can succeed."""
    check_own_qube(settings)
    client, service = settings.qrexec.client, settings.qrexec.local_service
    transports = {qube.transport for qube in settings.qubes}
    if settings.calls and shutil.which(client) is None:
        raise StartError(
            f"{settings.path}: qrexec.client: {client} is not on the PATH; install qubes-core-qrexec in this qube's"
            " template, or correct the key"
        )
    if "local" in transports and not os.access(service, os.X_OK):
        raise StartError(
            f"{settings.path}: qrexec.local_service: {service} is missing or not executable; a qube with transport ="
            ' "local" needs the package prometheus-qubes-proxy-service here too'
        )


def check_own_qube(settings: Config) -> None:
    """Raises ConfigError where the qube that we are in is to be called over qrexec."""
    for qube in settings.qubes:
        if qube.name == own_name() and qube.transport == "qrexec":
            raise ConfigError(
                f"{settings.path}: qubes.{qube.name}: this is the qube that the daemon runs in, and qrexec refuses"
                ' calls of a qube to itself; add transport = "local"'
            )


def check_addresses(settings: Config) -> None:
    """Raises StartError where a host name to listen on has no address."""
    for address in settings.web.listen_addresses:
        if not isinstance(address, Path) and address[0]:
            try:
                socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            except socket.gaierror as error:
                raise StartError(f"{settings.path}: web.listen_addresses: {cannot_listen(address, error)}") from None


async def listen_fault(address: Address) -> OSError | None:
    """Why the daemon could not listen there now; None if it could. Nobody can connect meanwhile."""
    if isinstance(address, Path):
        code = _socket_fault(address)
        return OSError(code, os.strerror(code)) if code else None
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(asyncio.Protocol, address[0] or None, address[1], start_serving=False)
    except OSError as error:
        return error
    server.close()
    return None


def _socket_fault(path: Path) -> int:
    """An errno, or 0. It is only looked at: to try would take a daemon's socket away."""
    folder = path.parent
    if folder == UNIT_FOLDER:
        return 0
    try:
        if path.exists() and not path.is_socket():
            return errno.EADDRINUSE
        if not folder.is_dir():
            return errno.ENOENT
    except PermissionError:
        return errno.EACCES
    return 0 if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES


def written(address: Address) -> str:
    """An address as web.listen_addresses and the command line have it."""
    if isinstance(address, Path):
        return f"unix:{address}"
    name, port = address
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def cannot_listen(address: Address, error: OSError) -> str:
    """Why there can be no socket at this address, and the remedy."""
    if isinstance(error, socket.gaierror):
        why = f"the host name has no address ({error.strerror})"
    else:
        why = os.strerror(error.errno) if error.errno else str(error)
    return f"cannot listen on {written(address)}: {why}; {_LISTEN_REMEDIES.get(error.errno or 0, _OTHER_ADDRESS)}"
