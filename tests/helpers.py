# SPDX-License-Identifier: GPL-3.0-or-later
"""What several test files need: running the generators of the core, and the recorded texts."""

import asyncio
import gc
import time
from collections.abc import Callable, Generator, Sequence
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TypeVar

import pytest

from federator.model import Exporter, Limits, Reading, Target
from federator.text.exposition import Reader
from federator.text.memory import Memory
from federator.text.merge import Merger

ROOT = Path(__file__).parent.parent
SERVICE = ROOT / "vmside" / "ruddo.PrometheusProxy"
RECORDINGS = ROOT / "tests" / "recordings"

T = TypeVar("T")


def finish(work: Generator[None, None, T]) -> T:
    """The result of work that is done in slices."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result


# How long a test waits for something that must happen before the test fails. It is no limit that users know.
PATIENCE_SECONDS = 30.0


async def soon(what: str, condition: Callable[[], object]) -> None:
    """Wait on the event loop until the condition is true. If it never is, the failure says what did not happen."""
    end = time.monotonic() + PATIENCE_SECONDS  # not the event loop's clock, which a test may advance
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        await asyncio.sleep(0.01)


class Clock:
    """The event loop's clock, which a test can advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        time_of_loop = loop.time
        self._ahead = 0.0
        monkeypatch.setattr(loop, "time", lambda: time_of_loop() + self._ahead)

    def advance(self, seconds: float) -> None:
        """So much time passes at once."""
        self._ahead += seconds


def tracebacks_of_daemon() -> list[TracebackType]:
    """The tracebacks that keep frames of the daemon: these hold what the frames held, whole texts."""
    gc.collect()
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, TracebackType) and "/federator/" in one.tb_frame.f_code.co_filename
    ]


@cache
def service_module() -> ModuleType:
    """The qubes' service, as a module: it is a program without an extension."""
    loader = SourceFileLoader("service", str(SERVICE))
    spec = spec_from_loader("service", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def recording(exporter: str, number: int = 2) -> bytes:
    """One recorded scrape of a real exporter."""
    return (RECORDINGS / f"{exporter}-{number}.prom").read_bytes()


def target(qube: str = "work", exporter: str = "node", port: int = 9100, **labels: str) -> Target:
    """A target, where it does not matter which."""
    return Target(qube=qube, exporter=Exporter(exporter, port), labels=tuple(labels.items()))


def read(body: bytes, of: Target | None = None, limits: Limits | None = None) -> Reading:
    """A text, read once."""
    return finish(reader(of, limits).read(body))


def reader(of: Target | None = None, limits: Limits | None = None) -> Reader:
    """A reader that remembers nothing yet."""
    limits = limits or Limits()
    return Reader(of or target(), limits, Memory(limits))


def lines(reading: Reading) -> list[str]:
    """All the sample lines of a reading."""
    return b"".join(reading.blocks).decode().removesuffix("\n").split("\n")


def page(*readings: Reading) -> str:
    """Readings, merged."""
    return merged(Merger(), readings)


def merged(merger: Merger, readings: Sequence[Reading]) -> str:
    """Readings, merged by one that remembers."""
    return b"".join(finish(merger.merge(readings))).decode()
