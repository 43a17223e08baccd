# SPDX-License-Identifier: GPL-3.0-or-later
"""
Builds everything, starts it, reloads on SIGHUP, stops on SIGTERM and SIGINT. Decides nothing.

Owns the life of the process. Must not know what is scraped or served.
"""

import asyncio
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from federator import __version__, config, host, shares, systemd, units
from federator.budget import Budget
from federator.collector import Collector
from federator.connections import BadRequestFilter, Connections
from federator.counters import Counters
from federator.errors import ConfigError, StartError
from federator.model import Address, Config, Reload
from federator.unexpected import Unexpected
from federator.web import Served, application

# A scraper that is still being sent a page when the daemon ends has at most this many seconds to take it.
FAREWELL_SECONDS = 2.0
# So often it is looked whether much came to stay in memory, and whether there were large texts, whose memory can go
# back to the system.
MEMORY_SECONDS = 10.0
# The first one takes up to half a second, so it waits until nobody scrapes, but for no more than so many times.
BUSY_TIMES = 6
# 20 qubes with node and process exporters have less.
LARGE_TEXTS = 8 << 20
# File descriptors are kept back for the calls of so many qubes that dom0 names. More than these do not run at one time.
MAX_DISCOVERED_QUBES = 64

log = logging.getLogger(__name__)


async def serve(
    path: Path, addresses: Sequence[Address] = (), *, web_file: Path | None = None, systemd_socket: bool = False
) -> None:
    """
    Run until SIGTERM or SIGINT. `addresses` are the command line's, and win over the file's.

    `web_file`: another file that says who is let in. `systemd_socket`: listen on systemd's sockets, and nowhere else.
    Raises ConfigError or StartError where it cannot start.
    """
    host.watch_children()
    host.keep_one_heap()
    loop = asyncio.get_running_loop()
    early = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, early.set)  # what changes after the file was read is not lost
    sockets = _activated() if systemd_socket else []
    settings = config.load(path, web_file)
    host.check(settings)
    served = Served.of(settings, Counters(config.identity(path)), own_name=host.own_name())
    runner = runner_of(served)
    stop = asyncio.Event()

    def hang_up() -> None:
        if not stop.is_set():  # a reload would revive what is being closed
            reload(path, served, watch_addresses=not addresses and not sockets, web_file=web_file)
            connections.limit(host.files_for_connections(_most_calls(served.fleet.config)))

    budgets = (served.fleet.texts, served.fleet.texts_read)
    loop.set_exception_handler(Unexpected(budgets).handle)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await runner.setup()
    connections = _connections(runner, served)
    connections.limit(host.files_for_connections(_most_calls(settings)))
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    if early.is_set():
        hang_up()
    try:
        for sock in sockets:
            await connections.take(sock)
        await _listen(connections, () if sockets else addresses or settings.web.listen_addresses)
        _log_serving(connections, settings)
        served.status.open_addresses = _beyond_loopback(connections)
        systemd.notify("READY=1", _status(settings))
        await _run(stop, served, budgets)
    finally:
        stop.set()  # a reload that comes now would revive what is being closed
        # First, so that those who wait are told; aiohttp 3.8 would wait for them before it stops.
        await asyncio.gather(served.fleet.close(), served.dom0.close())
        await connections.close(FAREWELL_SECONDS)
        await runner.cleanup()


def runner_of(served: Served) -> web.AppRunner:
    """The HTTP library, as the daemon uses it. Nothing that we serve needs a body, so none is waited for."""
    return web.AppRunner(application(served), access_log=None, logger=http_log(), lingering_time=0)


async def _run(stop: asyncio.Event, served: Served, budgets: Collection[Budget]) -> None:
    """What is done now and then, until the daemon is to stop."""
    tasks = [asyncio.create_task(systemd.feed_watchdog()), asyncio.create_task(look_after_memory(served, budgets))]
    await stop.wait()
    for task in tasks:
        task.cancel()
    log.info("stopping")
    systemd.notify("STOPPING=1", "STATUS=stopping")


async def look_after_memory(served: Served, budgets: Collection[Budget]) -> None:
    """It goes back after large texts only: small ones come again and again, and need the same memory."""
    collector, busy_times = Collector(), 0
    while True:
        await asyncio.sleep(MEMORY_SECONDS)
        busy_times = busy_times + 1 if len(served.admission) else BUSY_TIMES
        if busy_times >= BUSY_TIMES:
            busy_times = 0
            with suppress(MemoryError):  # it looks again the next time
                collector.settle()
        if max([budget.peak() for budget in budgets]) > LARGE_TEXTS:
            host.give_memory_back()


def _connections(runner: web.AppRunner, served: Served) -> Connections:
    assert runner.server is not None, "it was set up"
    return Connections(
        runner.server,
        logger=http_log(),
        tls=lambda: served.access.tls,
        count_bad_request=served.counters.bad_requests.inc,
    )


def _log_serving(connections: Connections, settings: Config) -> None:
    addresses: list[Address] = [*connections.addresses, *map(Path, connections.unix_paths)]
    bound = [host.written(address) for address in addresses]
    fields = {"version": __version__, "address": " ".join(bound), "config": settings.path, **_size(settings)}
    log.info("serving", extra=fields)
    _warn_if_open(connections, settings)


def reload(path: Path, served: Served, *, watch_addresses: bool, web_file: Path | None = None) -> None:
    """
    Take the new file whole, or not at all.

    `watch_addresses`: warn where the file names other addresses now; those of a running daemon do not change.
    """
    systemd.notify_reloading()
    old = served.fleet.config
    try:
        settings = config.load(path, web_file)
        host.check(settings)
        served.access.reconfigure(settings.web)
        served.fleet.reconfigure(settings)
        served.dom0.reconfigure(settings)
        served.admission.most_bytes = shares.being_sent(settings.scrape)
    except (ConfigError, StartError) as error:
        served.reload = replace(served.reload, successful=False, error=str(error))
        for line in str(error).splitlines():  # a configuration may have several faults
            log.error(  # noqa: TRY400 - it is the operator's mistake, and named; a traceback would hide it
                "reload failed; the old configuration stays", extra={"error": line}
            )
    else:
        served.reload = Reload(successful=True, at=time.time())
        served.counters.config_read(config.identity(path))  # it may be a link that leads elsewhere now
        if watch_addresses and settings.web.listen_addresses != old.web.listen_addresses:
            log.warning("web.listen_addresses changed; restart the daemon to listen there")
        log.info("reloaded", extra={"config": path, **_size(settings)})
    finally:  # or systemd would wait for it
        more = "" if served.reload.successful else "; the new configuration is not good"
        systemd.notify("READY=1", _status(served.fleet.config, more))


def http_log() -> logging.Logger:
    """The log of the HTTP library."""
    logger = logging.getLogger("federator.http")
    if not logger.filters:
        logger.addFilter(BadRequestFilter())
    return logger


def _activated() -> list[socket.socket]:
    sockets = systemd.listening_sockets()
    if not sockets:
        raise StartError("--web.systemd-socket: systemd gave no socket; start the daemon through a unit of type socket")
    if not all(sock.type == socket.SOCK_STREAM and _listens(sock) for sock in sockets):
        raise StartError(
            "--web.systemd-socket: the unit of type socket must have ListenStream= and Accept=no, no others"
        )
    return sockets


def _beyond_loopback(connections: Connections) -> list[str]:
    """The addresses at which others than this qube may reach the daemon."""
    return [
        f"{name}:{port}"
        for name, port in connections.addresses
        if not ipaddress.ip_address(name.partition("%")[0]).is_loopback
    ]


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _warn_if_open(connections: Connections, settings: Config) -> None:
    """Once, at the start."""
    if _beyond_loopback(connections) and settings.web.tls is None and not settings.web.users:
        log.warning(
            "everyone who can reach the port can read the page: there is neither TLS nor a password;"
            " guard the port with the firewall, or set web.tls_server_config and web.basic_auth_users"
        )


async def _listen(connections: Connections, addresses: Sequence[Address]) -> None:
    for address in addresses:
        try:
            if isinstance(address, Path):
                await connections.listen_unix(address)
            else:
                await connections.listen(*address)
        except OSError as error:
            raise StartError(
                f"{host.cannot_listen(address, error)} (--web.listen-address=HOST:PORT or web.listen_addresses)"
            ) from None


def _most_calls(settings: Config) -> int:
    """How many calls may be open at one time: one an exporter at most, and dom0's. A guess for what dom0 names."""
    discovered = MAX_DISCOVERED_QUBES * len(settings.discovery.exporters) if settings.discovery else 0
    return len(settings.targets) + discovered + 1


def _status(settings: Config, more: str = "") -> str:
    """The line of `systemctl status`."""
    found = " and what dom0 names" if settings.discovery else ""
    exporters, qubes = units.plural(len(settings.targets), "exporter"), units.plural(len(settings.qubes), "qube")
    return f"STATUS=serving {exporters} in {qubes}{found} from {settings.path}{more}"


def _size(settings: Config) -> dict[str, int]:
    return {"qubes": len(settings.qubes), "targets": len(settings.targets)}
