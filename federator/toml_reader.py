# SPDX-License-Identifier: GPL-3.0-or-later
"""
Reads tables of a TOML file, and says what is wrong in them: the file, the key, and what to do.

Owns the kinds of values: texts, numbers, lists, durations, sizes, ports. Must not know which keys there are.
Each key has to be asked for. A key that was not asked for is an error, so that a typing mistake cannot hide.
A fault is noted, and reading goes on, so that all faults of a file are told in one run: `Table.finish` raises them.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import tomli

from federator.errors import ConfigError, shown

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\[[0-9]+\])?")
# More digits than any value needs, and few enough to calculate with.
_DURATION = re.compile(
    "".join(rf"(?:(?P<{unit}>[0-9]{{1,12}}){unit})?" for unit in ("y", "w", "d", "h", "m", "s", "ms"))
)
_SECONDS = {"y": 31_536_000.0, "w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SIZE = re.compile(r"([0-9]{1,12})([KMG]i?B|B)")  # KB is 1024 bytes for Prometheus, as KiB is
_SIZES = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

# No value needs more. Python reads a number of at most 4300 digits.
MAX_DIGITS = 1000
MAX_DEPTH = 50
_LONG_NUMBER = re.compile(rf"[0-9][0-9_]{{{MAX_DIGITS}}}")
# A larger number is not written out in a message.
SHOWN_DIGITS = 20

T = TypeVar("T")


def read(text: str, path: Path) -> "Table":
    """The top table of a TOML text. `path` is for messages. Raises ConfigError."""
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:  # it says where
        raise ConfigError(f"{path}: {_for_people(str(error), text)}{_near_long_or_deep(text)}") from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, lists in thousands of lists
        raise ConfigError(f"{path}: not TOML: {_near_long_or_deep(text) or error}") from None
    return Table(document, Place(path))


def _for_people(error: str, text: str) -> str:
    """What tomli says, with the line that it means and the usual cause."""
    if twice := re.match(r"Cannot declare \((.*?),?\) twice (\(at line \d+.*\))", error):
        name = twice[1].replace("'", "").replace(", ", ".")
        return f"[{name}] is there twice {twice[2]}; make one table of the two"
    number = re.search(r"at line (\d+)", error)
    line = text.split("\n")[int(number[1]) - 1].strip() if number else ""
    hint = ""
    if error.startswith("Invalid value"):
        hint = '; a text stands in straight quotes: "10s"'
    elif "end of a table declaration" in error:
        hint = '; a name with other characters than letters, digits, _ and - stands in quotes: [qubes."NAME"]'
    return f"not TOML: {error}{f': {shown(line)}' if line else ''}{hint}"


def _near_long_or_deep(text: str) -> str:
    """Which line has what tomli does not read, and names without a place."""
    depth = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if _LONG_NUMBER.search(line):
            return f"line {number}: a number of more than {MAX_DIGITS} digits"
        depth += line.count("[") + line.count("{") - line.count("]") - line.count("}")
        if depth > MAX_DEPTH:
            return f"line {number}: lists or tables in more than {MAX_DEPTH} others"
    return ""


@dataclass(frozen=True, slots=True)
class Place:
    """
    A key of the file, with the keys of the tables around it.

    `asked`: each key that was asked for in this file. `faults`: what is wrong in this file, a line each.
    """

    file: Path
    keys: tuple[str, ...] = ()
    asked: set[str] = field(default_factory=set, compare=False)
    faults: list[str] = field(default_factory=list, compare=False)

    def below(self, key: str) -> "Place":
        """A key of the table that is at this place."""
        return Place(self.file, (*self.keys, key), self.asked, self.faults)

    def error(self, what: str) -> ConfigError:
        """The error to raise for this place."""
        return ConfigError(f"{self.file}: {self.dotted()}: {what}")

    def dotted(self) -> str:
        """The keys as people write them: exporters.node.port."""
        return ".".join(key if _PLAIN_KEY.fullmatch(key) else ascii(key) for key in self.keys)


class Entry:
    """One value, and the place where it stands."""

    def __init__(self, value: Any, place: Place) -> None:
        self.value = value
        self._place = place

    def error(self, what: str) -> ConfigError:
        """The error to raise for this value."""
        return self._place.error(what)

    def take(self, kind: type[T]) -> T:
        """The value, which has to be of this kind."""
        if not isinstance(self.value, kind) or (kind is int and isinstance(self.value, bool)):
            raise self.error(f"expected {_KINDS[kind]}, not {_kind_of(self.value)}")
        return self.value

    def duration(self) -> float:
        """A duration in seconds."""
        if type(self.value) in (int, float):
            raise self.error(f'expected a text in quotes, with a unit: "{self.value}s"')
        return self.convert(_duration)

    def convert(self, converter: Callable[[str], T]) -> T:
        """What `converter` makes of a text. It raises ValueError with words for people."""
        text = self.take(str)
        try:
            return converter(text)
        except ValueError as error:
            raise self.error(str(error)) from None

    def port(self) -> int:
        """A port number."""
        port = self.take(int)
        if not 1 <= port <= 65535:
            raise self.error(f"{_shown(port)} is not a port; ports are 1 to 65535")
        return port

    def as_table(self) -> "Table":
        """The value as a table, to be read on."""
        return Table(self.take(dict), self._place)


class Table:
    """
    A TOML table that is being read.

    Ask for each key that there may be, last for those that must be there; then call `done`, which finds unknown keys.
    """

    def __init__(self, values: Mapping[str, Any], place: Place) -> None:
        self._values = values
        self._place = place
        self._known: list[str] = []
        self._faults_before = len(place.faults)

    @property
    def faulty(self) -> bool:
        """Was a fault noted since this table is being read? Then what does not fit may follow from it."""
        return len(self._place.faults) > self._faults_before

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong in the file, as far as it was read."""
        return tuple(self._place.faults)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A ConfigError that is raised in here is noted, to be told with the others."""
        try:
            yield
        except ConfigError as error:
            self._place.faults.append(str(error))

    def attempt(self, make: Callable[[], T], fallback: T) -> T:
        """What `make` returns; the fallback if it raises ConfigError, which is noted."""
        with self.noting():
            return make()
        return fallback

    def each(self, entries: Iterable[Entry], make: Callable[[Entry], T]) -> list[T]:
        """What `make` makes of each entry; the fault of one is noted, and the entry left out."""
        made: list[T] = []
        for entry in entries:
            with self.noting():
                made.append(make(entry))
        return made

    @property
    def asked(self) -> frozenset[str]:
        """Each key that was asked for so far, in this table and in all others of the file; dotted."""
        return frozenset(self._place.asked)

    @property
    def file(self) -> Path:
        """The file in which it stands."""
        return self._place.file

    @property
    def where(self) -> str:
        """The file and the key of the table, for messages."""
        return f"{self._place.file}: {self._place.dotted()}"

    def wrong(self, what: str) -> ConfigError:
        """The error to raise for the table itself."""
        return self._place.error(what)

    def error(self, key: str, what: str) -> ConfigError:
        """The error to raise for a key of this table."""
        return self._place.below(key).error(what)

    def entry(self, key: str) -> Entry | None:
        """The value of a key, if it is there."""
        place = self._place.below(key)
        place.asked.add(place.dotted())
        self._known.append(key)
        return Entry(self._values[key], place) if key in self._values else None

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Every entry of a table whose keys are names that the user chooses."""
        for key, value in self._values.items():
            yield key, Entry(value, self._place.below(key))

    def table(self, key: str) -> "Table":
        """A table in this table; empty if it is not there."""
        entry = self.entry(key)
        return entry.as_table() if entry else Table({}, self._place.below(key))

    def list(self, key: str, default: Sequence[Any] | None) -> list[Entry]:
        """A list's items. `default` None: the key must be there."""
        entry = self.entry(key)
        if entry is None and default is None:
            self.done()  # it may be there under a mistyped name
            if not self.faulty:
                raise self.error(key, "missing")
        values: Sequence[Any] = self.attempt(lambda: entry.take(list), []) if entry else default or []
        return [Entry(value, self._place.below(f"{key}[{index}]")) for index, value in enumerate(values)]

    def take(self, key: str, kind: type[T], fallback: T) -> T:
        """A value of this kind."""
        entry = self.entry(key)
        return self.attempt(lambda: entry.take(kind), fallback) if entry else fallback

    def choice(self, key: str, choices: tuple[str, ...], fallback: str) -> str:
        """One of some texts."""
        value = self.take(key, str, fallback)
        if value not in choices:
            return self.fault(key, f"{value!r} is none of {', '.join(choices)}", fallback)
        return value

    def number(self, key: str, fallback: int, least: int, most: int) -> int:
        """A whole number in a range."""
        value = self.take(key, int, fallback)
        if not least <= value <= most:
            return self.fault(key, f"{_shown(value)} is out of range; it may be {least} to {most}", fallback)
        return value

    def duration(self, key: str, fallback: float, least: float, most: float) -> float:
        """A duration in a range, in seconds."""
        entry = self.entry(key)
        seconds = self.attempt(entry.duration, fallback) if entry else fallback
        if seconds < least:
            return self.fault(key, f"too short; at least {least:g}s", fallback)
        if seconds > most:
            return self.fault(key, f"too long; at most {most:g}s", fallback)
        return seconds

    def size(self, key: str, fallback: int, least: int, most: int) -> int:
        """A size in a range, in bytes; without a unit it is bytes."""
        entry = self.entry(key)
        if entry is None:
            return fallback
        whole = type(entry.value) is int
        value = entry.value if whole else self.attempt(lambda: entry.convert(_size), fallback)
        if not least <= value <= most:
            what = f"{_shown(value)} bytes is out of range; it may be {least} to {most} bytes"
            return self.fault(key, what, fallback)
        return value

    def fault(self, key: str, what: str, fallback: T) -> T:
        """Note a fault; reading goes on with the fallback."""
        self._place.faults.append(str(self.error(key, what)))
        return fallback

    def reject(self, key: str, why: str) -> None:
        """A key that is known, and not possible in this version."""
        self._known.append(key)
        if key in self._values:
            raise self.error(key, why)

    def done(self) -> None:
        """Note each key that was not asked for."""
        known = sorted(set(self._known))
        for key in self._values:
            if key not in known:
                close = difflib.get_close_matches(key.lower(), known, n=1)
                meant = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
                self.fault(key, f"unknown key; {meant}", None)

    def finish(self, *others: "Table | None") -> None:
        """Raise one ConfigError for all faults of this file, and of other ones; a line each."""
        faults = [*self.faults, *(fault for other in others if other for fault in other.faults)]
        if faults:
            raise ConfigError("\n".join(dict.fromkeys(faults)))


_KINDS: Mapping[type, str] = {
    str: "a text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list in [brackets]",
    dict: "a table",
}


def _shown(number: int) -> str:
    """A number for a message. Python refuses to write one of more than 4300 digits, which hexadecimal ones may have."""
    return str(number) if abs(number) < 10**SHOWN_DIGITS else f"a number of more than {SHOWN_DIGITS} digits"


def _kind_of(value: Any) -> str:
    return _KINDS.get(type(value), "a date or time")


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if text == "0":
        return 0.0
    if not text or not match:
        raise ValueError(f"{text!r} is not a duration; write it as Prometheus does: 500ms, 10s, 5m")
    return math.fsum(int(number) * _SECONDS[unit] for unit, number in match.groupdict().items() if number)


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it as Prometheus does: 16MiB, 512KiB")
    return int(match[1]) * _SIZES[match[2][0]]
