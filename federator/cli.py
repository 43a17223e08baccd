# SPDX-License-Identifier: GPL-3.0-or-later
"""
argv -> serve | check | scrape | doctor | policy | hash-password, and the exit status.

0: all went well. 1: a line on stderr says what did not. 2: wrong usage. 78: serve cannot use the configuration.

Owns which command does what. Must not know how anything is done.
"""

import argparse
import asyncio
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from federator import arguments, config, daemon, doctor, host, journal, listeners, once, presence
from federator.access import Access
from federator.errors import ConfigError, FederatorError
from federator.model import Address, Exporter
from federator.passwords import hashed
from federator.policy import numbered_disposables, policy_lines
from federator.terminal import OutputError, complain, politely, say, warn
from federator.wire import SERVICE, argument

# EX_CONFIG of sysexits.h. The systemd unit does not start the daemon again after it.
WRONG_CONFIGURATION = 78


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (sys.argv's by default); returns the exit status."""
    return politely(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = arguments.parse(argv)
    path: Path = options.config_file or config.default_path()
    try:
        if options.config_file is None:
            for other in config.misnamed():
                warn(f"{other} is not read; is it meant to be {other.parent / config.DEFAULT_PATHS[0].name}?")
        return _run(options, path)
    except OutputError:
        raise
    except FederatorError as error:
        complain(error)
        return WRONG_CONFIGURATION if options.command == "serve" and isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return 130


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
        return _scrape(path, options.targets, as_json=options.json)
    if options.command == "doctor":
        journal.set_up("error", options.log_format)
        return asyncio.run(doctor.examine(path, options.web_file, as_json=options.json))
    if options.command == "check":
        return _check(path, options.web_file)
    return _policy(path) if options.command == "policy" else _hash_password()


def _check(path: Path, web_file: Path | None) -> int:
    settings = config.load(path, web_file)
    Access(settings.web, host.own_name())  # finds certificates and packages that are missing
    say(f"{path}: exporters: {len(settings.targets)}, qubes: {len(settings.qubes)}")
    width = max((len(qube.name) for qube in settings.qubes), default=0)
    for qube in settings.qubes:
        exporters = ", ".join(_written(target.exporter) for target in qube.targets)
        how = f"{SERVICE}+{argument(qube.endpoints)}" if qube.transport == "qrexec" else "here, without qrexec"
        say(f"  {qube.name:{width}}  {how}  {exporters}")
    if settings.discovery:
        names = ", ".join(map(_written, settings.discovery.exporters)) or "no exporters"
        say(f"  and of the other qubes that run, by {settings.discovery.source}: {names}")
    if settings.dom0:
        say(f"  and [dom0] asks for: {', '.join(settings.dom0.switches) or 'nothing'}")
    for line in (*numbered_disposables(settings), *config.without_effect(settings)):
        warn(f"{path}: {line}")
    unusable = asyncio.run(listeners.unusable(settings))
    for line in (*presence.unreadable(settings, web_file), *unusable.values()):
        warn(line)
    host.check(settings)
    host.check_addresses(settings)
    _warn_if_missing([address for address in settings.web.listen_addresses if address not in unusable])
    return 0


def _written(exporter: Exporter) -> str:
    apart = "" if exporter.page else ", not on /metrics"
    return f"{exporter.name} ({exporter.endpoint}{apart})"


def _warn_if_missing(addresses: Sequence[Address]) -> None:
    """These commands need no daemon, and all may be well for them while Prometheus reaches nobody."""
    line = presence.missing(addresses)
    if line is not None:
        warn(line)


def _scrape(path: Path, names: Sequence[str], *, as_json: bool) -> int:
    settings = config.load(path)
    host.check(settings)
    status = asyncio.run(once.scrape(settings, names, as_json=as_json))
    _warn_if_missing(settings.web.listen_addresses)
    return status


def _policy(path: Path) -> int:
    settings = config.load(path)
    host.check_own_qube(settings)
    for line in policy_lines(settings, host.own_name()):
        say(line)
    return 0


def _hash_password() -> int:
    """From the terminal, twice; or one line of stdin."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ").encode(errors="surrogateescape")
        if getpass.getpass("Once more: ").encode(errors="surrogateescape") != password:
            complain("these are two different passwords")
            return 1
    else:
        password = sys.stdin.buffer.readline().removesuffix(b"\n")
    try:
        say(hashed(password))
    except ValueError as error:
        complain(error)
        return 1
    return 0
