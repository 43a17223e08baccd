# SPDX-License-Identifier: GPL-3.0-or-later
"""
The machine we run on: our qube's name, whether the programs are there that we need, how many files may be open.

Owns these questions, for the daemon and for the command line. Must not know what is scraped or served.
"""

import asyncio
import os
import resource
import shutil
import socket
import subprocess
import sys
from functools import cache

from federator.errors import StartError
from federator.model import Config

# File descriptors that one call takes: three pipes, and one to see the process end.
FILES_PER_CALL = 4
# What else is open: the log, the event loop, the listeners, the configuration being read, Python's own.
FILES_FOR_US = 64
# As many files as the unit allows; no program gains from more.
MAX_FILES = 8192


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


@cache
def own_name() -> str:
    """The name of the qube we are in, as dom0 knows it; the host name, which is the same by default, elsewhere."""
    try:
        done = subprocess.run(["qubesdb-read", "/name"], capture_output=True, timeout=5, check=True)  # noqa: S607 - Qubes' own, wherever it is
        return done.stdout.decode("ascii", "replace").strip()
    except (OSError, subprocess.SubprocessError):
        return socket.gethostname()


def check_programs(settings: Config) -> None:
    """Are the programs there that the configuration needs? Raises StartError: no scrape could ever succeed."""
    client, service = settings.qrexec.client, settings.qrexec.local_service
    transports = {qube.transport for qube in settings.qubes}
    if (settings.discovery or "qrexec" in transports) and shutil.which(client) is None:
        raise StartError(
            f"{settings.path}: qrexec.client: {client} is not on the PATH; install qubes-core-qrexec in this qube's"
            " template, or correct the key"
        )
    if "local" in transports and not os.access(service, os.X_OK):
        raise StartError(
            f"{settings.path}: qrexec.local_service: {service} is missing or not executable; a qube with transport ="
            ' "local" needs the package prometheus-qubes-proxy-service here too'
        )
