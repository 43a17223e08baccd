# SPDX-License-Identifier: GPL-3.0-or-later
"""
What dom0 says over its Admin API of the machine's qubes and pools: bytes in, facts out.

Owns the formats of qubesd's events and replies (QubesOS/qubes-core-admin, qubes/api/__init__.py and admin.py). Must not
know when dom0 is asked, nor what the facts are shown as. All of it is untrusted: it may be cut, garbage or endless.
"""

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import NamedTuple

from federator.errors import ProtocolError, shown
from federator.targets import DOM0, REMOTE, REMOTE_CLASS, is_qube_name, words_of_list
from federator.wire import Wire, error_of

# The calls, and what is asked of their arguments.
LIST, STATS = "admin.vm.List", "admin.vm.Stats"
PROPERTIES, PROPERTY = "admin.vm.property.GetAll", "admin.vm.property.Get"
VOLUME, FEATURE = "admin.vm.volume.Info", "admin.vm.feature.Get"
POOLS, POOL, POOL_USAGE = "admin.pool.List", "admin.pool.Info", "admin.pool.UsageDetails"
INFO = ("label", "template", "netvm", "provides_network")
PRIVATE, ROOT = "private", "root"
# Classes of qubes with an operating system of their own.
WITH_SYSTEM = ("TemplateVM", "StandaloneVM")
# Classes of those that qubesd has no volumes of: it hangs up on who asks.
WITHOUT_VOLUMES = frozenset({"AdminVM", REMOTE_CLASS})
FEATURES = UPDATES, END_OF_LIFE = ("updates-available", "os-eol")

# An event of admin.vm.Stats has some 300 bytes.
MAX_EVENT = 16 << 10
# A machine with more qubes than this has other problems; names beyond it are left out.
MAX_QUBES = 1000
MAX_POOLS = 100
# The name of a pool becomes the argument of a call.
_POOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_NUMBER = re.compile(rb"[0-9]{1,18}")
_DATE = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SINGLE_PROPERTY = re.compile(r"default=(?:True|False) type=[a-z]{1,16} (.*)", re.DOTALL)
_PROPERTY = re.compile(r"([a-z_]{1,64}) default=(?:True|False) type=([a-z]{1,16}) (.*)")

Numbers = Mapping[str, int]
# Told for each vm-stats event: the qube, and its numbers by key.
Tell = Callable[[str, Numbers], None]


class Events(Wire[None]):
    r"""
    The open call admin.vm.Stats: events `1\0SUBJECT\0EVENT\0(KEY\0VALUE\0)*\0`, for as long as qubesd runs.

    It has no answers: `tell` hears of each `vm-stats`. Keys whose values are no whole numbers are left out.
    """

    greeting = b""
    asks_once = True

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._untrusted_rest = b""

    @property
    def greeted(self) -> bool:
        """There is no greeting to wait for."""
        return True

    @property
    def owed(self) -> bool:
        """It may always say more."""
        return True

    def receive(self, untrusted: bytes) -> list[None]:
        """See `Wire`."""
        untrusted = self._untrusted_rest + untrusted
        start = 0
        while (event := _event(untrusted, start)) is not None:
            self._take(event)
            start = event.end
        self._untrusted_rest = untrusted[start:]
        if len(self._untrusted_rest) >= MAX_EVENT:
            raise ProtocolError(f"an event of admin.vm.Stats without an end: {shown(self._untrusted_rest[:80])}")
        return []

    def _take(self, event: "_Event") -> None:
        name = event.untrusted_subject.decode("ascii", "replace")
        if event.untrusted_name == b"vm-stats" and (is_qube_name(name) or name == DOM0):
            pairs = zip(event.untrusted_words[::2], event.untrusted_words[1::2], strict=False)
            self._tell(
                name, {key.decode("ascii", "replace"): int(value) for key, value in pairs if _NUMBER.fullmatch(value)}
            )


class _Event(NamedTuple):
    untrusted_subject: bytes
    untrusted_name: bytes
    untrusted_words: list[bytes]
    end: int  # where the next one begins


def _event(untrusted: bytes, start: int) -> _Event | None:
    """The event that begins here; None where it has not come whole. Raises ProtocolError."""
    head = untrusted[start : start + 2]
    if not (b"1\0".startswith(head) or b"2\0".startswith(head)):
        raise ProtocolError(f"no event of admin.vm.Stats: {shown(untrusted[start : start + 80])}")
    words: list[bytes] = []
    at = start + 2
    while True:
        end = untrusted.find(b"\0", at, start + MAX_EVENT)
        if end < 0:
            return None
        if head == b"2\0":
            raise error_of(untrusted[start:], "admin.vm.Stats")
        word = untrusted[at:end]
        at = end + 1
        if len(words) >= 2 and len(words) % 2 == 0 and not word:  # where a key would be
            return _Event(words[0], words[1], words[2:], at)
        words.append(word)


def classes(untrusted: bytes) -> dict[str, tuple[str, str]]:
    """admin.vm.List: class and state of each qube, dom0 among them. Raises ProtocolError for a list that is cut."""
    found: dict[str, tuple[str, str]] = {}
    for untrusted_name, fields in islice(words_of_list(untrusted), MAX_QUBES):
        if not (is_qube_name(untrusted_name) or untrusted_name == DOM0):
            continue
        if fields.get("state", "").isalpha() and fields.get("class", "").isalpha():
            of_class = fields["class"][:32]
            found[untrusted_name] = of_class, REMOTE if of_class == REMOTE_CLASS else fields["state"][:32]
    return found


def pools(untrusted: bytes) -> list[str]:
    """admin.pool.List: a name a line."""
    lines = untrusted.decode("ascii", "replace").split("\n")
    return [name for name in lines if _POOL_NAME.fullmatch(name)][:MAX_POOLS]


def numbers(untrusted: bytes) -> dict[str, int]:
    """Lines of KEY=VALUE: those whose value is a whole number."""
    found: dict[str, int] = {}
    for untrusted_line in untrusted.split(b"\n"):
        key, _, value = untrusted_line.partition(b"=")
        if _NUMBER.fullmatch(value):
            found[key.decode("ascii", "replace")] = int(value)
    return found


def properties(untrusted: bytes) -> dict[str, str]:
    """admin.vm.property.GetAll: the values by name, without those that have none."""
    found: dict[str, str] = {}
    for untrusted_line in untrusted.decode("utf-8", "replace").split("\n"):
        if match := _PROPERTY.fullmatch(untrusted_line):
            found[match[1]] = re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], match[3])
    return found


def single_property(untrusted: bytes) -> str:
    """admin.vm.property.Get: the value, or an empty text where it has none, or is not to be understood."""
    match = _SINGLE_PROPERTY.fullmatch(untrusted.decode("utf-8", "replace"))
    return match[1] if match else ""


def date(untrusted: bytes) -> str | None:
    """A day, as the feature os-eol has it; None for anything else."""
    return untrusted.decode("ascii") if _DATE.fullmatch(untrusted) else None
