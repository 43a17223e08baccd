# SPDX-License-Identifier: GPL-3.0-or-later
"""
The machine: whether it can do what the configuration says, and how many file descriptors there are for connections.

The limits of a process cannot be reset: so in a child.
"""

import json
import resource
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from federator import config, host
from federator.errors import ConfigError, StartError
from federator.host import FILES_FOR_US, FILES_PER_CALL, MAX_FILES
from tests.helpers import ROOT

CHILD = """
import json, resource, sys
from federator import host
soft, hard, calls = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(json.dumps([host.files_for_connections(calls), *resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "calls", "expected_soft"),
    [(200, 500, 10, 500), (500, 500, 0, 500), (500, MAX_FILES + 1, 100, MAX_FILES), (100, 100, 30, 100)],
    ids=["the soft limit is raised", "as it is", "not more than is of use", "too few"],
)
def test_descriptors_are_kept_back_for_calls(soft: int, hard: int, calls: int, expected_soft: int) -> None:
    """The soft limit is raised as far as the system lets it, and connections have what calls and we do not need."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this machine allows fewer files")
    words = [sys.executable, "-c", CHILD, *map(str, (soft, hard, calls))]
    found = json.loads(subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout)
    assert found == [expected_soft - FILES_FOR_US - FILES_PER_CALL * calls, expected_soft, hard]


def test_no_limit_is_taken_for_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is to be raised then."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("there is no limit to raise"))
    assert host.files_for_connections(1) == MAX_FILES - FILES_FOR_US - FILES_PER_CALL


WORK = '[exporters]\nnode = 9100\n[qubes.work]\nexporters = ["node"]\n'


def test_our_own_qube_needs_the_local_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qrexec refuses calls of a qube to itself. dom0 was blamed, and `policy` printed a line that never works."""
    monkeypatch.setattr(host, "own_name", lambda: "work")
    with pytest.raises(ConfigError, match=r'qubes\.work: this is the qube .* add transport = "local"'):
        host.check(config.parse(WORK, Path("/x")))
    host.check_own_qube(config.parse(WORK + 'transport = "local"\n', Path("/x")))
    host.check_own_qube(config.parse(WORK.replace("work", "other"), Path("/x")))


@pytest.mark.parametrize(
    ("text", "called"),
    [
        (WORK, True),
        (WORK + 'transport = "local"\n', False),
        ("[discovery]\nexporters = []\n[dom0]\n", True),
        ("[dom0]\n", True),
        ("[dom0]\nstats = false\nstorage = false\nupdates = true\n", True),
        ("[dom0]\nstats = false\nstorage = false\n", False),
    ],
)
def test_the_client_is_needed_where_a_qube_or_dom0_is_called(text: str, *, called: bool) -> None:
    """dom0 is called for its figures, too; and where nothing is called, nothing is needed."""
    settings = config.parse(f"{text}[qrexec]\nclient = '/no/client'\nlocal_service = '/bin/true'\n", Path("/x"))
    assert settings.calls == called
    with pytest.raises(StartError, match=r"qrexec\.client: /no/client") if called else nullcontext():
        host.check(settings)


def test_an_address_that_does_not_resolve_is_named() -> None:
    """It was "Unknown error -3", and only at the start."""
    settings = config.parse(WORK + "[web]\nlisten_addresses = ['no.such.host.invalid:8199']\n", Path("/x"))
    with pytest.raises(StartError, match=r"no\.such\.host\.invalid:8199: the host name has no address \("):
        host.check_addresses(settings)
    host.check_addresses(
        config.parse(WORK + "[web]\nlisten_addresses = [':1', '127.0.0.1:2', 'unix:/x']\n", Path("/x"))
    )


def test_addresses_are_written_as_they_are_configured() -> None:
    """With brackets around those of IPv6."""
    addresses: list[tuple[str, int] | Path] = [("::1", 8199), ("127.0.0.1", 8199), ("", 8199), Path("/run/x.sock")]
    assert [host.written(address) for address in addresses] == [
        "[::1]:8199",
        "127.0.0.1:8199",
        ":8199",
        "unix:/run/x.sock",
    ]
