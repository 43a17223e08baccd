# SPDX-License-Identifier: GPL-3.0-or-later
"""
Builds everything, starts it, reloads on SIGHUP, stops on SIGTERM and SIGINT. Decides nothing.

Owns the life of the process. Must not know what is scraped or served.
"""

import asyncio
import errno
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from aiohttp import web

from federator import __version__, config, systemd
from federator.counters import Counters
from federator.errors import ConfigError, StartError
from federator.model import Config
from federator.scrape import Scraper
from federator.web import Served, application

# Whoever is still being sent a page when the daemon ends has so long to take it.
FAREWELL_SECONDS = 2.0

log = logging.getLogger(__name__)


async def serve(path: Path, addresses: Sequence[tuple[str, int]] = ()) -> None:
    """
    Run until SIGTERM or SIGINT. `addresses` are the command line's, and win over the file's.

    Raises ConfigError or StartError where it cannot start.
    """
    watch_children()
    settings = config.load(path)
    check_programs(settings)
    counters = Counters()
    served = Served(Scraper(settings, counters, own_name=own_name()), counters)
    runner = web.AppRunner(application(served), access_log=None)
    stop = asyncio.Event()
    retiring: dict[asyncio.Task[None], Scraper] = {}

    def reload() -> None:
        old = served.scraper
        good = False
        systemd.notify_reloading()
        try:
            good = _reload(path, served, () if addresses else settings.web.listen_addresses)
        finally:  # or systemd would wait for it
            more = "" if good else "; the new configuration is not good"
            systemd.notify("READY=1", _status(served.scraper.config, more))
        if good:
            task = asyncio.create_task(old.retire())
            retiring[task] = old
            task.add_done_callback(retiring.pop)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await runner.setup()
    try:
        bound = await _listen(runner, addresses or settings.web.listen_addresses)
        log.info(
            "serving",
            extra={"version": __version__, "address": " ".join(bound), "config": path, **_size(settings)},
        )
        systemd.notify("READY=1", _status(settings))
        watched = asyncio.create_task(systemd.feed_watchdog())
        await stop.wait()
        watched.cancel()
        log.info("stopping")
        systemd.notify("STOPPING=1", "STATUS=stopping")
    finally:
        # First, so that whoever waits is told; aiohttp 3.8 would wait for them before it stops.
        retired = list(retiring)
        await asyncio.gather(served.scraper.close(), *(old.close() for old in retiring.values()))
        await asyncio.gather(*retired)
        with suppress(TimeoutError):
            await asyncio.wait_for(runner.cleanup(), FAREWELL_SECONDS)


def watch_children() -> None:
    """Before Python 3.12 the event loop starts a thread for every process it waits for, unless told to use pidfds."""
    if sys.version_info < (3, 12):
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


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


def _reload(path: Path, served: Served, listening: Sequence[tuple[str, int]]) -> bool:
    """Take the new file whole, or not at all. `listening`: on the addresses of the file, if it is they that count."""
    try:
        settings = config.load(path)
        check_programs(settings)
    except (ConfigError, StartError) as error:
        served.reloaded_well = False
        log.error(  # noqa: TRY400 - it is the operator's mistake, and named; a traceback would hide it
            "reload failed; the old configuration stays", extra={"error": str(error)}
        )
        return False
    old = served.scraper
    served.scraper = Scraper(settings, served.counters, previous=old, own_name=own_name())
    served.reloaded_well, served.reloaded_at = True, time.time()
    if listening and settings.web.listen_addresses != listening:
        log.warning("web.listen_addresses changed; restart the daemon to listen there")
    log.info("reloaded", extra={"config": path, **_size(settings)})
    return True


async def _listen(runner: web.AppRunner, addresses: Sequence[tuple[str, int]]) -> list[str]:
    for host, port in addresses:
        site = web.TCPSite(runner, host or None, port)
        try:
            await site.start()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            running = "is another prometheus-qubes-proxy running? " if error.errno == errno.EADDRINUSE else ""
            raise StartError(
                f"cannot listen on {host}:{port}: {reason}; {running}choose another address with"
                " --web.listen-address=HOST:PORT or web.listen_addresses"
            ) from None
    return [f"{name[0]}:{name[1]}" for name in runner.addresses]


def _status(settings: Config, more: str = "") -> str:
    """The line of `systemctl status`."""
    found = " and what dom0 names" if settings.discovery else ""
    return (
        f"STATUS=serving {len(settings.targets)} exporters in {len(settings.qubes)} qubes{found} from"
        f" {settings.path}{more}"
    )


def _size(settings: Config) -> dict[str, int]:
    return {"qubes": len(settings.qubes), "targets": len(settings.targets)}
