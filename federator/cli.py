# SPDX-License-Identifier: GPL-3.0-or-later
"""
argv -> serve | check | scrape | policy | hash-password, and the exit status.

0: all went well. 1: a line on stderr says what did not. 2: wrong usage. 78: serve cannot use the configuration.

Owns what is said on a terminal. Must not know how anything is done.
"""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from federator import arguments, config, daemon, host, journal
from federator.access import Access
from federator.arguments import PROGRAM
from federator.counters import Counters
from federator.errors import ConfigError, FederatorError
from federator.fleet import Fleet
from federator.model import Config, Outcome, Target
from federator.passwords import hashed
from federator.policy import numbered_disposables, policy_lines
from federator.scrape import Scraper, budget
from federator.statelog import StateLog
from federator.wire import SERVICE, argument

# EX_CONFIG of sysexits.h. The systemd unit does not start the daemon again after it.
WRONG_CONFIGURATION = 78


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv's by default); returns the exit status."""
    options = arguments.parse(argv)
    path: Path = options.config_file or config.default_path()
    try:
        if options.config_file is None:
            for other in config.misnamed():
                _warn(f"{other} is not read; is it meant to be {other.parent / config.DEFAULT_PATHS[0].name}?")
        return _run(options, path)
    except FederatorError as error:
        for line in str(error).splitlines():  # a configuration may have several faults
            print(f"{PROGRAM}: {line}", file=sys.stderr)
        return WRONG_CONFIGURATION if options.command == "serve" and isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `… | head` has seen enough
        sys.stderr.close()
        return 1


def _run(options: argparse.Namespace, path: Path) -> int:
    if options.command == "serve":
        journal.set_up(options.log_level, options.log_format)
        serving = daemon.serve(
            path, options.listen_addresses, web_file=options.web_file, systemd_socket=options.systemd_socket
        )
        asyncio.run(serving)
        return 0
    if options.command == "scrape":
        journal.set_up("error", options.log_format)  # what is down is said in lines of its own
        return asyncio.run(_scrape(path, options.targets))
    if options.command == "check":
        return _check(path, options.web_file)
    return _policy(path) if options.command == "policy" else _hash_password()


def _check(path: Path, web_file: Path | None) -> int:
    settings = config.load(path, web_file)
    Access(settings.web, host.own_name())  # finds certificates and packages that are missing
    print(f"{path}: exporters: {len(settings.targets)}, qubes: {len(settings.qubes)}")
    width = max((len(qube.name) for qube in settings.qubes), default=0)
    for qube in settings.qubes:
        exporters = ", ".join(f"{target.exporter.name} ({target.exporter.port})" for target in qube.targets)
        how = f"{SERVICE}+{argument(qube.ports)}" if qube.transport == "qrexec" else "here, without qrexec"
        print(f"  {qube.name:{width}}  {how}  {exporters}")
    if settings.discovery:
        names = ", ".join(f"{one.name} ({one.port})" for one in settings.discovery.exporters) or "no exporters"
        print(f"  and of the other qubes that run, by {settings.discovery.source}: {names}")
    host.check(settings)
    host.check_addresses(settings)
    for line in numbered_disposables(settings):
        _warn(f"{path}: {line}")
    return 0


def _hash_password() -> int:
    """From the terminal, twice; or one line of stdin."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            print(f"{PROGRAM}: these are two different passwords", file=sys.stderr)
            return 1
    else:
        password = sys.stdin.readline().removesuffix("\n")
    try:
        print(hashed(password.encode()))
    except ValueError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


def _policy(path: Path) -> int:
    settings = config.load(path)
    host.check_own_qube(settings)
    for line in policy_lines(settings, host.own_name()):
        print(line)
    return 0


def _warn(line: str) -> None:
    print(f"{PROGRAM}: warning: {line}", file=sys.stderr)


async def _scrape(path: Path, names: Sequence[str]) -> int:
    settings = config.load(path)
    host.check(settings)
    host.watch_children()
    counters = Counters()
    fleet = Fleet(settings, counters, own_name=host.own_name())

    def show(outcome: Outcome) -> None:
        print(_line(outcome, width), flush=True)

    try:
        await fleet.refresh(settings.scrape.timeout, patience=settings.scrape.timeout)
        if fleet.discovery_error is not None:
            print(f"{PROGRAM}: dom0 does not say which qubes run: {fleet.discovery_error}", file=sys.stderr)
        selected = _selected(settings, fleet.targets, names)
        width = max((len(target.name) for target in selected), default=0)
        snapshot = await Scraper(fleet, StateLog(), counters).collect(selected, budget(None, settings.scrape), show)
    finally:
        await fleet.close()
    if not snapshot.qubes:
        print(f"{PROGRAM}: nothing was scraped: no qube is configured or was found", file=sys.stderr)
    up = [outcome.reading is not None for outcome in snapshot.outcomes]
    return 0 if up and all(up) and fleet.discovery_error is None else 1


def _selected(settings: Config, targets: Sequence[Target], names: Sequence[str]) -> frozenset[Target]:
    """The targets called QUBE or QUBE:EXPORTER, or all of them. Raises ConfigError for a name nobody configured."""
    selected: set[Target] = set()
    for name in names:
        matching = {target for target in targets if name in (target.qube, target.name)}
        if not matching:
            raise ConfigError(f"{settings.path}: there is no {name!a} to scrape; `check` lists what is configured")
        selected |= matching
    return frozenset(selected or targets)


def _line(outcome: Outcome, width: int) -> str:
    name = f"{outcome.target.name:{width}}"
    if outcome.reading is None:
        return f"{name}  DOWN  {outcome.error.reason}: {outcome.error}" if outcome.error else f"{name}  DOWN"
    reading = outcome.reading
    dropped = f", {reading.lines_dropped} lines dropped ({reading.complaint})" if reading.lines_dropped else ""
    return f"{name}  up    {reading.samples} samples, {outcome.body_size} bytes, {outcome.seconds:.3f} s{dropped}"
