# SPDX-License-Identifier: GPL-3.0-or-later
"""
Is this the password of this user? Checked with bcrypt, which takes its time by design.

Owns the only use of the package bcrypt, which is optional; and what a flood of wrong passwords can cost. Must not know
HTTP, nor where users come from.

A hash is checked in a thread, one at a time. An unknown user takes as long as a known one. A password that was right
once is remembered, as a digest, and never waits. So are the last wrong ones. New wrong ones have a pace for each
address: beyond it they are not checked, so that they slow down nobody else.
"""

import asyncio
import hashlib
import hmac
import secrets
from collections import Counter
from collections.abc import Mapping

from federator.errors import BusyError, StartError
from federator.network import network_of
from federator.pace import Pace

try:
    import bcrypt
except ImportError:
    bcrypt = None  # type: ignore[assignment]

# bcrypt does not look at more. Some versions of the package refuse a longer password, others cut it.
MAX_PASSWORD_BYTES = 72
# 60 ms for each wrong password and each right one, as htpasswd and the toolkit's documentation have it.
COST = 10
# A person mistypes a few times. A scraper with a wrong password comes less often than this.
WRONG_BURST = 10
WRONG_SECONDS = 2.0
# So many checks may wait, of all and of one address. With the usual cost the last one waits for a second.
MAX_WAITING = 16
MAX_WAITING_PER_ADDRESS = 4
# A scraper with a wrong password sends the same one again and again; it is checked once.
MAX_KNOWN_WRONG = 100
# Addresses with wrong passwords are remembered; from so many on, those whose time is over are forgotten.
MAX_ADDRESSES = 1000


def check_package() -> None:
    """Can passwords be checked at all? Raises StartError."""
    if bcrypt is None:
        raise StartError(
            "web.basic_auth_users: the Python package bcrypt is not installed, so no password can be checked;"
            " install python3-bcrypt in this qube's template"
        )


def hashed(password: bytes) -> str:
    """A new bcrypt hash of a password. Raises ValueError with words for a person, or StartError."""
    check_package()
    if not password or b"\0" in password or len(password) > MAX_PASSWORD_BYTES:
        raise ValueError(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes and no NUL, because bcrypt looks at no more")
    return bcrypt.hashpw(password, bcrypt.gensalt(COST)).decode("ascii")


class Passwords:
    """What is remembered of them: right ones, and who sent wrong ones."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, bytes] = {}  # by user: a digest of its right password and its hash
        self._known_wrong: dict[bytes, None] = {}  # digests, the oldest first
        self._checks: dict[bytes, asyncio.Task[bool]] = {}
        self._waiting: Counter[str] = Counter()
        self._one_at_a_time = asyncio.Lock()
        self._wrong = Pace(WRONG_SECONDS, WRONG_BURST)

    @property
    def addresses(self) -> int:
        """How many sent wrong passwords, as far as it is remembered."""
        return len(self._wrong)

    def retain(self, users: Mapping[bytes, bytes]) -> None:
        """Other users are forgotten."""
        self._remembered = {user: digest for user, digest in self._remembered.items() if user in users}

    async def is_right(self, user: bytes, password: bytes, users: Mapping[bytes, bytes], address: str) -> bool:
        """
        Is it this user's? `users`: their bcrypt hashes, at least one.

        Raises BusyError where too many wrong ones came from this address, or too many checks wait.
        """
        digest = self._digest(user, password, users.get(user, b""))
        if user in users and hmac.compare_digest(self._remembered.get(user, b""), digest):
            return True
        if digest in self._known_wrong:
            return False
        check = self._checks.get(digest)
        if check is None:
            network = network_of(address)
            self._admit(network)
            check = asyncio.create_task(self._check(digest, user, password, users, network))
            self._checks[digest] = check
            self._waiting[network] += 1

            def done(ended: "asyncio.Task[bool]") -> None:
                if not ended.cancelled():
                    ended.exception()  # seen, where all who asked are gone
                del self._checks[digest]
                self._waiting -= Counter([network])  # and without those that are at 0

            check.add_done_callback(done)
        # Who goes away does not end the check: it would be a way to have many at one time, and none of them counted.
        return await asyncio.shield(check)

    def _admit(self, network: str) -> None:
        if self._wrong.wait(network, asyncio.get_running_loop().time()) > 0.0:
            raise BusyError("too many wrong passwords from this address; try again in a while")
        if self._waiting[network] >= MAX_WAITING_PER_ADDRESS or self._waiting.total() >= MAX_WAITING:
            raise BusyError("too many passwords are being checked; try again in a while")

    async def _check(
        self, digest: bytes, user: bytes, password: bytes, users: Mapping[bytes, bytes], network: str
    ) -> bool:
        known = users.get(user)
        # For an unknown user a hash that is there is checked, for the time it takes; the result is not used.
        expected = known or list(users.values())[self._digest(user)[0] % len(users)]
        try:
            async with self._one_at_a_time:
                same = await asyncio.to_thread(_is_same, password, expected)
        except RuntimeError:  # the system has no thread for it
            raise BusyError("no password can be checked now; try again in a while") from None
        if same and known:
            self._remembered[user] = digest
            return True
        self._known_wrong[digest] = None
        if len(self._known_wrong) > MAX_KNOWN_WRONG:
            del self._known_wrong[next(iter(self._known_wrong))]
        now = asyncio.get_running_loop().time()
        self._wrong.reserve(network, now)
        if len(self._wrong) > MAX_ADDRESSES:
            self._wrong.forget(now)
        return False

    def _digest(self, *parts: bytes) -> bytes:
        """Of these, and with a key that nobody else has: what is remembered is of no use to anybody else."""
        digest = hashlib.blake2b(key=self._key)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()


def _is_same(password: bytes, expected: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:MAX_PASSWORD_BYTES], expected) and len(password) <= MAX_PASSWORD_BYTES
    except ValueError:  # it has a NUL
        return False
