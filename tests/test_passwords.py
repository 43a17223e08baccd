# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords: which are right, and what a flood of wrong ones costs."""

import asyncio
import gc
import threading
from collections.abc import Iterator

import pytest

from federator import passwords
from federator.errors import BusyError, StartError
from federator.passwords import Passwords
from tests.helpers import Clock
from tests.parts import eventually

bcrypt = pytest.importorskip("bcrypt", reason="the optional package is not installed")

USERS = {b"alice": bcrypt.hashpw(b"right", bcrypt.gensalt(4)), b"bob": bcrypt.hashpw(b"b" * 72, bcrypt.gensalt(4))}


class Checks:
    """Counts what bcrypt is asked, and can hold it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.at_once = self.most_at_once = 0
        check = bcrypt.checkpw

        def checkpw(password: bytes, expected: bytes) -> bool:
            self.asked.append((password, expected))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.go_on.wait()
            self.at_once -= 1
            return bool(check(password, expected))

        monkeypatch.setattr(bcrypt, "checkpw", checkpw)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    """What bcrypt is asked."""
    one = Checks(monkeypatch)
    yield one
    one.go_on.set()  # or the event loop would wait for its thread


@pytest.mark.parametrize(
    ("user", "password", "right"),
    [
        (b"alice", b"right", True),
        (b"alice", b"wrong", False),
        (b"alice", b"", False),
        (b"bob", b"right", False),
        (b"bob", b"b" * 72, True),
        (b"bob", b"b" * 73, False),
        (b"bob", b"b" * 10_000, False),
        (b"alice", b"right\0", False),
        (b"alice", b"\xff\xfe", False),
        (b"nobody", b"right", False),
        (b"", b"", False),
    ],
)
async def test_only_the_password_itself_is_right(user: bytes, password: bytes, *, right: bool) -> None:
    """Version 5 of bcrypt raises ValueError for more than 72 bytes, version 3 cuts them. Here they are wrong."""
    one = Passwords()
    assert await one.is_right(user, password, USERS, "192.0.2.1") is right
    assert await one.is_right(user, password, USERS, "192.0.2.1") is right


async def test_a_user_who_is_not_there_takes_as_long_as_one_who_is(checks: Checks) -> None:
    """A hash of the configuration is checked, so it takes the time of one; who knows its password does not get in."""
    one = Passwords()
    assert not await one.is_right(b"alice", b"wrong", USERS, "192.0.2.1")
    for number in range(5):
        assert not await one.is_right(b"nobody%d" % number, b"right", USERS, "192.0.2.1")
    assert len(checks.asked) == 6
    assert {expected for _, expected in checks.asked} <= set(USERS.values())


async def test_a_right_password_is_remembered_until_its_hash_changes(checks: Checks) -> None:
    """It costs no time again. A user who was taken out, or has another password, is out at once."""
    one = Passwords()
    for _ in range(3):
        assert await one.is_right(b"alice", b"right", USERS, "192.0.2.1")
    assert len(checks.asked) == 1
    changed = {**USERS, b"alice": bcrypt.hashpw(b"new", bcrypt.gensalt(4))}
    assert not await one.is_right(b"alice", b"right", changed, "192.0.2.1")
    assert not await one.is_right(b"alice", b"right", {b"bob": USERS[b"bob"]}, "192.0.2.1")
    assert await one.is_right(b"alice", b"right", USERS, "192.0.2.1")
    assert len(checks.asked) == 3
    one.retain({})
    assert await one.is_right(b"alice", b"right", USERS, "192.0.2.1")
    assert len(checks.asked) == 4


async def test_a_thousand_wrong_passwords_do_not_slow_a_right_one(checks: Checks) -> None:
    """Few of them are checked, and one that was right before never waits, not even from the same address."""
    one = Passwords()
    assert await one.is_right(b"alice", b"right", USERS, "192.0.2.1")
    refused = 0
    for number in range(1000):
        try:
            assert not await one.is_right(b"alice", b"wrong%d" % number, USERS, "192.0.2.1")
        except BusyError:
            refused += 1
    assert len(checks.asked) <= 1 + passwords.WRONG_BURST + 1000 - refused
    assert refused > 900
    checks.go_on.clear()
    waiting = asyncio.create_task(one.is_right(b"bob", b"wrong", USERS, "192.0.2.2"))
    await asyncio.to_thread(eventually, "it is being checked", lambda: checks.at_once)
    assert await one.is_right(b"alice", b"right", USERS, "192.0.2.1")
    checks.go_on.set()
    assert not await waiting


async def test_the_same_wrong_password_again_is_checked_once(checks: Checks) -> None:
    """A scraper that is configured wrongly hears that, and not that it came too often. The memory of them is small."""
    one = Passwords()
    for _ in range(1000):
        assert not await one.is_right(b"alice", b"wrong", USERS, "192.0.2.1")
    assert len(checks.asked) == 1
    assert await one.is_right(b"alice", b"wrong", {b"alice": bcrypt.hashpw(b"wrong", bcrypt.gensalt(4))}, "192.0.2.1")
    for number in range(passwords.MAX_KNOWN_WRONG):
        assert not await one.is_right(b"alice", b"wrong%d" % number, USERS, f"192.0.2.{number}")
    before = len(checks.asked)
    assert not await one.is_right(b"alice", b"wrong", USERS, "192.0.2.1")
    assert len(checks.asked) == before + 1


async def test_wrong_passwords_are_counted_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another address can try; the same one can when time has passed; all of one IPv6 network are one."""
    clock = Clock(monkeypatch)
    one = Passwords()

    async def tries(address: str) -> int:
        for number in range(100):
            try:
                await one.is_right(b"alice", f"{address} {number}".encode(), USERS, address)
            except BusyError:
                return number
        return 100

    assert await tries("2001:db8::1") == passwords.WRONG_BURST
    assert await tries("2001:db8::2") == 0
    assert await tries("2001:db8:0:1::1") == passwords.WRONG_BURST
    with pytest.raises(BusyError, match="too many wrong passwords from this address"):
        await one.is_right(b"alice", b"right", USERS, "2001:db8::3")
    clock.advance(passwords.WRONG_SECONDS)
    assert await one.is_right(b"alice", b"right", USERS, "2001:db8::3")


async def test_one_is_checked_at_a_time_and_few_wait(checks: Checks) -> None:
    """Who goes away has not ended the check: otherwise a client could have many at once, and none of them counted."""
    one = Passwords()
    checks.go_on.clear()
    requests = [
        asyncio.create_task(one.is_right(b"alice", b"wrong%d" % number, USERS, f"192.0.2.{number // 10}"))
        for number in range(100)
    ]
    await asyncio.to_thread(eventually, "one is being checked", lambda: checks.at_once)
    for request in requests[::2]:
        request.cancel()
    answers = await asyncio.gather(*(request for request in requests if request.done()), return_exceptions=True)
    assert {str(answer) for answer in answers} == {"too many passwords are being checked; try again in a while"}
    checks.go_on.set()
    await asyncio.gather(*requests, return_exceptions=True)
    await asyncio.to_thread(eventually, "all are checked", lambda: len(checks.asked) >= passwords.MAX_WAITING)
    assert (len(checks.asked), checks.most_at_once) == (passwords.MAX_WAITING, 1)


async def test_the_same_password_at_the_same_time_is_checked_once(checks: Checks) -> None:
    """As a Prometheus with several jobs sends it."""
    one = Passwords()
    requests = [one.is_right(b"alice", b"right", USERS, f"192.0.2.{number}") for number in range(50)]
    assert await asyncio.gather(*requests) == [True] * 50
    assert len(checks.asked) == 1


async def test_addresses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has many of them does not fill the memory."""
    monkeypatch.setattr(passwords, "MAX_ADDRESSES", 10)
    clock = Clock(monkeypatch)
    one = Passwords()
    for number in range(30):
        clock.advance(passwords.WRONG_SECONDS)
        assert not await one.is_right(b"alice", b"wrong", USERS, f"192.0.2.{number}")
    assert one.addresses <= 10


async def test_without_a_thread_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no mistake of the client, and not counted as a wrong password."""

    async def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    one = Passwords()
    with monkeypatch.context() as patch:
        patch.setattr("federator.passwords.asyncio.to_thread", refuse)
        with pytest.raises(BusyError, match="no password can be checked now"):
            await one.is_right(b"alice", b"right", USERS, "192.0.2.1")
    assert await one.is_right(b"alice", b"right", USERS, "192.0.2.1")


async def test_a_check_that_fails_when_all_who_asked_are_gone_is_no_surprise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop would log it as an exception that was never retrieved."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def refuse(*_: object) -> None:
        asked.set()
        await go_on.wait()
        raise RuntimeError("can't start new thread")

    surprises: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: surprises.append(context))
    monkeypatch.setattr("federator.passwords.asyncio.to_thread", refuse)
    request = asyncio.create_task(Passwords().is_right(b"alice", b"right", USERS, "192.0.2.1"))
    await asked.wait()
    request.cancel()
    await asyncio.wait([request])
    go_on.set()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    await asyncio.sleep(0)
    del request
    gc.collect()
    assert surprises == []


def test_without_the_package_the_daemon_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which package, and does not serve everybody."""
    monkeypatch.setattr(passwords, "bcrypt", None)
    with pytest.raises(StartError, match="install python3-bcrypt"):
        passwords.check_package()
    with pytest.raises(StartError, match="install python3-bcrypt"):
        passwords.hashed(b"x")


@pytest.mark.parametrize("password", [b"", b"a\0b", b"x" * 73])
def test_a_password_that_bcrypt_would_cut_is_not_hashed(password: bytes) -> None:
    """It could not be used, or a shorter one could."""
    with pytest.raises(ValueError, match="1 to 72 bytes"):
        passwords.hashed(password)


async def test_a_hash_of_ours_is_taken() -> None:
    """What hash-password prints."""
    users = {b"alice": passwords.hashed("pässword".encode()).encode()}
    assert await Passwords().is_right(b"alice", "pässword".encode(), users, "")
