# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures that several test files use. Their parts are in parts.py and standin/."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from federator import config, host
from federator.counters import Counters
from federator.web import Served, application
from tests.helpers import SERVICE, tracebacks_of_daemon
from tests.parts import Daemon, Exporter, eventually, toml
from tests.standin.qubes import Qubes

pytest_plugins = ["tests.leftovers"]

# No test asserts a time: on a busy machine, an example of hypothesis may take as long as it likes.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def qubes(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qubes]:
    """A Qubes OS machine without qubes. At the end of the test none of its processes may run."""
    assert request.node.get_closest_marker("slow"), "it starts processes: mark the test as slow"
    machine = Qubes(tmp_path / "machine", SERVICE)
    for name, value in machine.env.items():
        monkeypatch.setenv(name, value)
    yield machine
    for folder in (machine.root / "qubes").iterdir():
        machine.set_fault(folder.name, None)
    eventually("every process of the machine has ended", lambda: not machine.left_behind())


@pytest.fixture
def machine(qubes: Qubes) -> Qubes:
    """The qube work runs, vault is halted, debian-12 is a template; dom0 answers all that it is asked."""
    qubes.add_dom0()
    qubes.add("work")
    qubes.add("vault", state="Halted")
    qubes.add("debian-12", state="Halted")
    (qubes.root / "qubes" / "debian-12" / "class").write_text("TemplateVM")
    (qubes.root / "qubes" / "debian-12" / "features").write_text("updates-available=1\nos-eol=2028-06-30\n")
    return qubes


@pytest.fixture
def exporter() -> Iterator[Callable[[bytes], Exporter]]:
    """Starts exporters, which run until the end of the test."""
    with ExitStack() as stack:

        def start(body: bytes) -> Exporter:
            return stack.enter_context(Exporter(body))

        yield start


@pytest.fixture
def daemon(tmp_path: Path, qubes: Qubes) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons that call the qubes of the machine. The arguments are those of `parts.toml`."""
    with ExitStack() as stack:

        def start(of: Mapping[str, Mapping[str, int | str]], **more: str) -> Daemon:
            folder = tmp_path / f"daemon-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(Daemon(folder, toml(of, client=qubes.client, **more), qubes.env))

        yield start


@pytest.fixture
def kept_tracebacks() -> Callable[[], list[str]]:
    """Lists the functions of the daemon whose frames are kept since the test began. Earlier tests may keep others."""
    earlier = {id(one): one for one in tracebacks_of_daemon()}  # held, so that no later one gets the id of one of them

    def kept() -> list[str]:
        return [one.tb_frame.f_code.co_qualname for one in tracebacks_of_daemon() if id(one) not in earlier]

    return kept


@pytest.fixture
async def serve(aiohttp_client: Callable[..., Any], tmp_path: Path) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Makes a client of a daemon with this configuration, in this process."""
    host.watch_children()
    made: list[Served] = []

    async def start(text: str) -> Any:  # aiohttp's TestClient; in 3.8 it has no parameters
        made.append(Served.of(config.parse(text, tmp_path / "x.toml"), Counters()))
        return await aiohttp_client(application(made[-1]), auto_decompress=False)

    yield start
    for served in made:
        await served.fleet.close()
