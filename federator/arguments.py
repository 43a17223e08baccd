# SPDX-License-Identifier: GPL-3.0-or-later
"""
The arguments of the command line: argv -> options, or usage and exit status 2.

Owns their names, their help, and what a mistyped one was meant to be. Must not know what a command does.
"""

import argparse
import difflib
import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from federator import __version__, config, journal
from federator.model import Address
from federator.terminal import PROGRAM, say
from federator.web_config import listen_address

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMANDS = ("serve", "check", "scrape", "doctor", "policy", "hash-password")
# All others would pass over it without a word.
_ONLY_WITH = {
    "--json": ("scrape", "doctor"),
    "--web.listen-address": ("serve",),
    "--web.systemd-socket": ("serve",),
    "--web.config.file": ("serve", "check", "doctor"),
}
# What other programs call an option of ours.
_ELSEWHERE = {"-v": "--version", "-V": "--version", "version": "--version", "help": "--help", "-c": "--config.file"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options for `argv` (sys.argv's by default)."""
    parser = _parser()
    options = parser.parse_intermixed_args(argv)
    if options.targets and options.command != "scrape":
        parser.error(f"{options.command} takes no {options.targets[0]!a}; only scrape takes names of qubes")
    given = {
        "--json": options.json,
        "--web.listen-address": options.listen_addresses,
        "--web.systemd-socket": options.systemd_socket,
        "--web.config.file": options.web_file,
    }
    for name, commands in _ONLY_WITH.items():
        if given[name] and options.command not in commands:
            parser.error(f"{options.command} takes no {name}; only {' and '.join(commands)} can have it")
    return options


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:
        """Help and version. argparse itself passes over what could not be written."""
        if file in (None, sys.stdout):
            say(message.rstrip("\n"))
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """Usage, what is wrong, and what was perhaps meant; exit status 2."""
        mistyped = re.search(r"invalid choice: '([^']*)'|unrecognized arguments: ([^ =]*)", message)
        word = (mistyped[1] or mistyped[2]) if mistyped else ""
        options = [name for name in self.format_help().replace(",", " ").split() if name.startswith("--")]
        close = difflib.get_close_matches(word, {*COMMANDS, *journal.LEVELS, *journal.FORMATS, *options}, n=1)
        meant = _ELSEWHERE.get(word) or (close[0] if close else "")
        super().error(f"{message}; did you mean {meant}?" if meant else message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="One Prometheus scrape target for every exporter of every qube.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=COMMANDS,
        default="serve",
        help="serve (default) runs the daemon; check says what would be scraped, and whether it could be;"
        " scrape does one scrape now; doctor names what is broken between Prometheus and the exporters, with the"
        " remedy; policy prints the lines that dom0 needs;"
        " hash-password prints the bcrypt hash of a password",
    )
    parser.add_argument("targets", nargs="*", metavar="QUBE[:EXPORTER]", help="with scrape: these alone")
    parser.add_argument(
        "--json",
        action="store_true",
        help="with scrape: a list with an object for each exporter; with doctor: an object with all checks",
    )
    parser.add_argument(
        "--config.file",
        dest="config_file",
        type=Path,
        metavar="PATH",
        help=f"default: {config.DEFAULT_PATHS[0]} if it exists, else {config.DEFAULT_PATHS[1]}",
    )
    _add_web(parser)
    parser.add_argument("--log.level", dest="log_level", choices=journal.LEVELS, default="info")
    parser.add_argument("--log.format", dest="log_format", choices=journal.FORMATS, default="logfmt")
    parser.add_argument(
        "--version",
        action="version",
        version=f"{PROGRAM}, version {__version__} (python {platform.python_version()})",
    )
    return parser


def _add_web(parser: argparse.ArgumentParser) -> None:
    """Where the daemon listens, and who is let in."""
    parser.add_argument(
        "--web.listen-address",
        dest="listen_addresses",
        type=_listen_address,
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="with serve: listen here, not where the file says; may be given more than once; or unix:/PATH",
    )
    parser.add_argument(
        "--web.systemd-socket",
        dest="systemd_socket",
        action="store_true",
        help="with serve: listen on the sockets that systemd gives, and nowhere else",
    )
    parser.add_argument(
        "--web.config.file",
        dest="web_file",
        type=Path,
        metavar="PATH",
        help="with serve, check and doctor: another file with tls_server_config, basic_auth_users and rate_limit",
    )


def _listen_address(text: str) -> Address:
    try:
        return listen_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
