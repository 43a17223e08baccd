# SPDX-License-Identifier: GPL-3.0-or-later
"""Which requests are let in, and what the others are told."""

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from federator import config, host, passwords
from federator.access import RATE_LIMITED, UNAUTHORIZED, Access, credentials, is_ours
from federator.counters import Counters
from federator.errors import StartError
from federator.model import RateLimit, Secret, Web
from federator.web import Served, application
from tests import test_passwords
from tests.helpers import Clock
from tests.parts import toml

bcrypt = pytest.importorskip("bcrypt", reason="the optional package is not installed")

HASH = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
checks = test_passwords.checks  # the fixture
ALICE = (("alice", Secret(HASH)),)


def basic(text: str | bytes) -> str:
    """A header Authorization."""
    return "Basic " + base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


RIGHT = basic("alice:right")


@pytest.mark.parametrize(
    "good",
    [
        "192.0.2.1",
        "192.0.2.1:8199",
        "[2001:db8::1]",
        "[2001:db8::1]:8199",
        "localhost",
        "LocalHost:80",
        "sys-net",
        "Proxy.Example.org:8199",
    ],
)
def test_addresses_and_names_of_ours_are_ours(good: str) -> None:
    """With a port, or without."""
    assert is_ours(good, {"localhost", "sys-net", "proxy.example.org"})


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "evil.example.org",
        "evil.example.org:8199",
        "localhost.evil.org",
        "xlocalhost",
        "localhost:8199:8199",
        "localhost:x",
        "localhost:123456",
        "localhost.",
        "192.0.2.1.evil.org",
        "192.0.2",
        "0x7f.1",
        "2001:db8::1",
        "[192.0.2.1]",
        "[fe80::1%eth0]",
        "[localhost]",
        "localhost\u0660",
        "localhost:\u0661",
        "\ud800",
    ],
)
def test_other_names_are_not(bad: str) -> None:
    """However near they come."""
    assert not is_ours(bad, {"localhost", "sys-net", "proxy.example.org"})


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", None),
        ("Bearer x", None),
        ("Basic", None),
        ("Basic !", None),
        ("Basic \udcff", None),
        ("Basic YQ", None),
        (basic("nocolon"), None),
        (basic("a:b:c"), (b"a", b"b:c")),
        (basic(":"), (b"", b"")),
        (basic(b"\xff:\0"), (b"\xff", b"\0")),
        ("bAsIc YTpi", (b"a", b"b")),
    ],
)
def test_credentials(header: str, found: tuple[bytes, bytes] | None) -> None:
    """Whatever a client sends."""
    assert credentials(header) == found


async def test_what_costs_least_is_looked_at_first(
    checks: test_passwords.Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate, then the Host, then the password; as the toolkit, which has no Host to look at."""
    clock = Clock(monkeypatch)
    access = Access(Web((), users=ALICE, rate_limit=RateLimit(10.0, 3)), "sys-net")
    assert await access.refusal(["sys-net"], RIGHT, "") is None
    refused = await access.refusal(["evil"], RIGHT, "")
    assert refused
    assert (refused.status, "web.hosts" in refused.text) == (421, True)
    assert await access.refusal(["sys-net"], "", "") == UNAUTHORIZED
    assert await access.refusal(["sys-net"], RIGHT, "") == RATE_LIMITED
    assert len(checks.asked) == 1
    clock.advance(10.0)
    assert await access.refusal(["sys-net"], RIGHT, "") is None
    assert await access.refusal(["sys-net"], RIGHT, "") == RATE_LIMITED


async def test_two_hosts_are_one_too_many() -> None:
    """What stands between us and the client may have looked at the other one."""
    access = Access(Web(()), "sys-net")
    assert await access.refusal(["sys-net"], "", "") is None
    assert await access.refusal([], "", "") is None
    refused = await access.refusal(["sys-net", "sys-net"], "", "")
    assert refused
    assert refused.status == 421


async def test_a_reload_changes_who_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the next request on; and one that is not good changes nothing."""
    access = Access(Web(()), "sys-net")
    assert await access.refusal(["x"], "", "") is not None
    access.reconfigure(Web((), hosts=("x",), users=ALICE))
    assert await access.refusal(["x"], RIGHT, "") is None
    assert await access.refusal(["x"], "", "") == UNAUTHORIZED
    monkeypatch.setattr(passwords, "bcrypt", None)
    with pytest.raises(StartError):
        access.reconfigure(Web((), users=(("bob", Secret(HASH)),)))
    assert await access.refusal(["x"], RIGHT, "") is None


@pytest.fixture
async def client(aiohttp_client: Callable[..., Any], tmp_path: Path) -> Any:
    """A client of a daemon that knows alice."""
    host.watch_children()
    text = toml({"work": {"x": 1}}, transport="local", rest=f"[web.basic_auth_users]\nalice = '{HASH}'\n")
    served = Served.of(config.parse(text, tmp_path / "x.toml"), Counters(), own_name="sys-net")
    yield await aiohttp_client(application(served))
    await served.fleet.close()


@pytest.mark.parametrize("path", ["/", "/metrics", "/metrics/proxy", "/forward", "/sd", "/discover", "/-/ready", "/no"])
async def test_nothing_but_healthy_is_open(client: Any, path: str) -> None:
    """A stranger does not even learn which paths there are."""
    async with client.get(path) as answer:
        assert (answer.status, await answer.text()) == (401, "Unauthorized\n")
        assert answer.headers["WWW-Authenticate"] == "Basic"
    async with client.post(path) as answer:
        assert answer.status == 401
    for wrong in ("Basic !", basic("alice:" + "x" * 5000), basic("alice:\0"), basic("bob:right")):
        async with client.get(path, headers={"Authorization": wrong}) as answer:
            assert answer.status == 401
    async with client.get(path, headers={"Authorization": RIGHT}) as answer:
        assert answer.status not in (401, 403, 421, 429)


async def test_healthy_is_open_to_all(client: Any) -> None:
    """What looks whether the daemon lives knows no password, and perhaps another name."""
    async with client.get("/-/healthy", headers={"Host": "evil"}) as answer:
        assert answer.status == 200


async def test_another_host_is_refused(client: Any) -> None:
    """A page of the web that made its own name point to us gets nothing, with a password or without."""
    for headers in ({}, {"Authorization": RIGHT}):
        async with client.get("/sd", headers={"Host": "evil.example.org", **headers}) as answer:
            assert answer.status == 421
            text = await answer.text()
            assert text == "no host 'evil.example.org' is served here; add it to web.hosts, or use an address\n"


async def test_sd_gives_back_a_host_of_ours(client: Any) -> None:
    """As the scraper has reached us."""
    async with client.get("/sd", headers={"Host": "SYS-NET:1234", "Authorization": RIGHT}) as answer:
        assert [group["targets"] for group in await answer.json()] == [["SYS-NET:1234"]]


async def test_many_wrong_passwords_are_answered_with_429(client: Any) -> None:
    """And a right one that was known before is served meanwhile."""
    async with client.get("/-/ready", headers={"Authorization": RIGHT}) as answer:
        assert answer.status == 200

    async def status(password: str) -> int:
        async with client.get("/-/ready", headers={"Authorization": basic(f"alice:{password}")}) as answer:
            found: int = answer.status
            return found

    statuses = await asyncio.gather(*(status(f"wrong{number}") for number in range(100)), status("right"))
    assert set(statuses[:-1]) == {401, 429}
    assert statuses[-1] == 200
