# SPDX-License-Identifier: GPL-3.0-or-later
"""
The calls to dom0 for its figures, and what came of the last one of each kind.

Owns how one such call is made and ended, and the log's lines on dom0's silence. Must not know when dom0 is asked, nor
what it is asked for.
"""

import asyncio
import logging

from federator import reasons
from federator.call import Call, CallCounter, ConnectionLimiter, command
from federator.dom0_figures import Figures
from federator.dom0_replies import FEATURE, POOL_USAGE, PROPERTY, Events
from federator.errors import ProtocolError, ScrapeError
from federator.model import Callee, Qrexec
from federator.targets import DOM0
from federator.wire import OneReply, payload

TIMEOUT_SECONDS = 10.0
# GetAll of a qube has some 5 kB.
MAX_REPLY = 256 << 10
# Their replies are one value, without an end of line.
_VALUES = frozenset({FEATURE, PROPERTY})
_NOT_SET = b"2\0QubesFeatureNotFoundError\0"

log = logging.getLogger(__name__)


class Dom0Calls:
    """
    Makes them. `figures` are told which kinds of call dom0 answers.

    `answers`: by service, why dom0 did not answer the last call; None where it did.
    """

    def __init__(self, qrexec: Qrexec, limiter: ConnectionLimiter, counter: CallCounter, figures: Figures) -> None:
        self.qrexec = qrexec
        self._limiter = limiter
        self._counter = counter
        self._figures = figures
        self.answers: dict[str, ScrapeError | None] = {}
        self._ends: set[asyncio.Task[None]] = set()

    async def listen(self, service: str, wire: Events) -> None:
        """Until dom0 ends the call, or this is cancelled. Raises ScrapeError."""
        callee = Callee(DOM0, "qrexec", service)
        call = Call(callee, wire, self._counter)
        try:
            async with self._limiter.place():
                await call.open(*command(self.qrexec, callee))
            await call.ask(b"", lambda _: None)
        finally:
            self._end(call)

    async def ask(self, service: str, target: str, argument: str) -> bytes:
        """What dom0 answers. Raises ScrapeError."""
        callee = Callee(target, "qrexec", service)
        wire = OneReply(MAX_REPLY)
        call = Call(callee, wire, self._counter)
        replies: list[bytes] = []
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._limiter.place():
                await call.open(*command(self.qrexec, callee, argument))
                await call.ask(wire.ask(), replies.append)
        except TimeoutError:
            raise reasons.late(DOM0) from None
        finally:
            self._end(call)
        if not replies:
            raise ProtocolError(f"dom0 did not answer {service}")
        if service == FEATURE and replies[0].startswith(_NOT_SET):
            return b""
        reply = payload(replies[0], service)
        # Lines, each with its end; a pool may have no details.
        if service not in _VALUES and not reply.endswith(b"\n") and (reply or service != POOL_USAGE):
            raise ProtocolError(f"dom0's reply of {service} is cut")
        return reply

    def fails(self, service: str) -> bool:
        """Was a failure of this kind of call the last that was noted?"""
        return self.answers.get(service) is not None

    def forget(self, service: str) -> None:
        """It is not asked for any more: no failure of it is to be shown."""
        self.answers.pop(service, None)
        self._figures.forget_call(service)

    def note(self, service: str, error: ScrapeError | None, interval: float) -> None:
        """What came of a call that is made again in `interval` seconds. One line of the log where that changes."""
        fields = {"call": service}
        if error is not None and not self.fails(service):
            log.warning("dom0 does not tell its figures", extra={**fields, "reason": error.reason, "error": str(error)})
        elif error is None and self.fails(service):
            log.info("dom0 tells its figures again", extra=fields)
        self.answers[service] = error.bare() if error else None
        reason = error.reason if error else None
        self._figures.note_call(service, reason, asyncio.get_running_loop().time(), interval)

    async def all_ended(self) -> None:
        """Returns when all processes are gone."""
        while self._ends:
            await asyncio.wait(self._ends)

    def _end(self, call: Call[None] | Call[bytes]) -> None:
        end = call.end()
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)
