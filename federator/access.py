# SPDX-License-Identifier: GPL-3.0-or-later
"""
May this request come in? By how many there were, by the Host it names, by user and password. And TLS, by the settings.

Owns what is answered to one that may not. Must not know paths, nor what is served.

It comes before all other work for a request, and in the order of what it costs. What a client sent stands in no log.
"""

import asyncio
import base64
import ipaddress
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from federator.errors import BusyError, shown
from federator.model import Web
from federator.pace import Pace
from federator.passwords import Passwords, check_package
from federator.tls import ServerTls


class Refusal(NamedTuple):
    """The answer to a request that may not in."""

    status: int
    text: str
    headers: Mapping[str, str] = {}


UNAUTHORIZED = Refusal(401, "Unauthorized\n", {"WWW-Authenticate": "Basic"})
RATE_LIMITED = Refusal(429, "Too Many Requests\n")


class Access:
    """What [web] says of who may in. `own_name`: the name of this qube. Raises ConfigError or StartError."""

    def __init__(self, web: Web, own_name: str) -> None:
        self._own_name = own_name.lower()
        self._passwords = Passwords()
        self._web = web
        self.tls: ServerTls | None = None
        self._requests = Pace(web.rate_limit.interval, web.rate_limit.burst)
        self.reconfigure(web)

    def reconfigure(self, web: Web) -> None:
        """Take this from now on; raises ConfigError or StartError, and then nothing has changed."""
        if web.users:
            check_package()
        self.tls = ServerTls(web.tls) if web.tls else None
        if web.rate_limit != self._web.rate_limit:
            self._requests = Pace(web.rate_limit.interval, web.rate_limit.burst)
        self._web = web
        self._users = {name.encode(): secret.text.encode() for name, secret in web.users}
        self._passwords.retain(self._users)

    async def refusal(
        self, untrusted_hosts: Sequence[str], untrusted_authorization: str, address: str
    ) -> Refusal | None:
        """None where the request may in. `untrusted_hosts`: all headers Host. A header that is missing is empty."""
        now = asyncio.get_running_loop().time()
        if self._web.rate_limit.interval:
            if self._requests.wait("", now) > 0.0:
                return RATE_LIMITED
            self._requests.reserve("", now)
        names = {"localhost", self._own_name, *self._web.hosts}
        if len(untrusted_hosts) > 1 or not all(is_ours(host, names) for host in untrusted_hosts):
            named = shown(", ".join(untrusted_hosts))
            return Refusal(421, f"no host {named} is served here; add it to web.hosts, or use an address\n")
        if not self._users:
            return None
        found = credentials(untrusted_authorization)
        if found is None:
            return UNAUTHORIZED
        try:
            right = await self._passwords.is_right(*found, self._users, address)
        except BusyError as error:
            return Refusal(429, f"{error}\n")
        return None if right else UNAUTHORIZED


def is_ours(untrusted_host: str, names: set[str]) -> bool:
    """
    Is a header Host an address, or one of these names? With a port or without.

    A web page can make a browser send requests to us under the page's own name, and read the answers. It cannot choose
    another Host.
    """
    host, colon, port = untrusted_host.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal() and len(port) <= 5):
        host = untrusted_host
    if host.lower() in names:
        return True
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        ip = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return False
    return bracketed == (ip.version == 6) and "%" not in host


def credentials(untrusted_authorization: str) -> tuple[bytes, bytes] | None:
    """User and password of a header Authorization of the kind Basic."""
    scheme, _, encoded = untrusted_authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded, validate=True).partition(b":")
    except ValueError:
        return None
    return (user, password) if colon else None
