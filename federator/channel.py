# SPDX-License-Identifier: GPL-3.0-or-later
"""
Speaking to one qube, for as long as it is configured.

Owns how the qube's endpoints are shared out among calls, which version is spoken, and that requests for one endpoint go
one after the other. Must not know how one call is made, nor what an answer is for.

    Channel    one qube
      Slot     one set of endpoints, all of the qube's or a single one: see `slot`
        Call   one process: see `call`
"""

import asyncio
from collections.abc import Collection

from federator import reasons
from federator.budget import Budget
from federator.call import CallCounter, ConnectionLimiter
from federator.errors import ScrapeError
from federator.model import Answer, Callee, CallState, Endpoint, Qrexec, Qube, in_order
from federator.pace import Pace
from federator.reasons import OnlyVersion1Error
from federator.request import Request
from federator.slot import Caller, Slot
from federator.turns import Turn, Turns
from federator.wire import SERVICE, TextWire, Version1, Version2


class Channel:
    """
    The way to one qube. Requests for one endpoint go one after the other, those that give way last; each is over when
    every endpoint is answered or the time is. Requests for different endpoints do not wait for each other, once the
    service has said that it takes them so.

    One call is made for all endpoints, in version 2. Where the service there knows only version 1, or where dom0's
    policy refuses that call, since it was written for upstream's proxy, there is one for each.

    `close` must be awaited before the event loop ends, or processes are left to find out by themselves.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - all but the qube are one for all channels
        self,
        qube: Qube,
        settings: Qrexec,
        limiter: ConnectionLimiter,
        counter: CallCounter,
        texts: Budget,
        pace: Pace,
    ) -> None:
        self.qube = qube
        self._caller = Caller(Callee(qube.name, qube.transport, SERVICE), settings, limiter, counter, texts)
        self._turns = {endpoint: Turns() for endpoint in qube.endpoints}  # who may ask for an endpoint
        self._speaking = Turns()  # who may choose slots, make the call for all, and speak where one may at a time
        self._parts = 0  # parts of requests for which slots were chosen
        self._pace = pace
        self._slots = [Slot(qube.endpoints, Version2, self._caller)]
        self._forgetful = False
        self._one_port_refused = False  # were version 1 and its calls for one port all that is left, and refused?

    def __repr__(self) -> str:
        busy = "busy" if any(turns.taken for turns in self._turns.values()) else "free"
        return f"<Channel to {self.qube.name}: {busy}, {', '.join(map(repr, self.calls()))}>"

    def calls(self) -> list[CallState]:
        """How its calls are, for people to look at."""
        now = asyncio.get_running_loop().time()
        return [slot.state(now) for slot in self._slots]

    def serves(self, qube: Qube, settings: Qrexec) -> bool:
        """Would a channel for this qube, under these settings, make the same calls?"""
        ours = self._caller.settings
        return (
            (self.qube.name, self.qube.transport, self.qube.endpoints) == (qube.name, qube.transport, qube.endpoints)
            and (ours.client, ours.local_service) == (settings.client, settings.local_service)
            and ours.buffer_size == settings.buffer_size
        )

    def reconfigure(self, qube: Qube, settings: Qrexec) -> None:
        """Go on with the calls that are open, where `serves` says so; forget what went wrong."""
        self.qube = qube
        self._caller.settings = settings
        for slot in self._slots:
            slot.backoff.initial, slot.backoff.maximum = settings.backoff_initial, settings.backoff_max
        self.forget()

    async def ask(self, request: Request) -> None:
        """
        Ask the qube for the exporters of a request, which hears of each endpoint exactly once, until its deadline.

        Raises nothing of its own: whatever goes wrong is told.
        """
        try:
            async with request.deadline.limit(), asyncio.TaskGroup() as asking:
                free = [endpoint for endpoint in in_order(request.owed) if self._turns[endpoint].take_if_free()]
                for endpoint in request.owed.difference(free):
                    asking.create_task(self._ask_later(request, endpoint))
                if free:
                    await self._ask_part(request, free)
        except TimeoutError:
            pass
        request.tell_all(request.owed.copy(), reasons.not_its_turn(self.qube.name))

    async def close(self) -> None:
        """End all calls; returns when their processes are gone, or have had every chance to."""
        for slot in self._slots:
            slot.drop()
        await self._caller.all_ended()

    async def retire(self) -> None:
        """Close when the last request is over: a request might open a call after `close`."""
        for turns in self._turns.values():
            async with turns.turn(first=False):
                pass
        await self.close()

    def forget(self) -> None:
        """Before the next request, forget what went wrong: somebody may have mended it. Calls that are open stay."""
        self._forgetful = True

    async def _ask_later(self, request: Request, endpoint: Endpoint) -> None:
        """Ask for an endpoint when its turn comes. The others of the request do not wait for it."""
        await self._turns[endpoint].take(first=not request.gives_way)
        await self._ask_part(request, [endpoint])

    async def _ask_part(self, request: Request, endpoints: Collection[Endpoint]) -> None:
        """Ask for endpoints whose turn it is. Each turn is passed on with the answer."""

        def tell(endpoint: Endpoint, result: Answer | ScrapeError) -> None:
            self._turns[endpoint].pass_on()
            request.tell(endpoint, result)

        deadline = request.deadline
        part = Request(endpoints, deadline, request.max_body, tell, gives_way=request.gives_way)
        try:
            await self._keep_pace(part)
            deadline.begin(asyncio.get_running_loop().time())
            await self._ask(part)
        except Exception as failed:
            part.tell_all(part.owed.copy(), reasons.of_ours(failed))
            raise
        finally:
            part.tell_all(part.owed.copy(), reasons.not_its_turn(self.qube.name))

    async def _keep_pace(self, request: Request) -> None:
        """No client makes an exporter work all the time. Clients that come meanwhile share what comes of it."""
        now = asyncio.get_running_loop().time()
        if wait := max(self._pace.reserve((self.qube.name, endpoint), now) for endpoint in request.owed):
            await asyncio.sleep(min(wait, max(0.0, request.deadline.wanted_by - now)))

    async def _ask(self, part: Request) -> None:
        async with self._speaking.turn(first=not part.gives_way) as turn:
            self._choose_slots(asyncio.get_running_loop().time())
            self._parts += 1
            try:
                await self._ask_slots(part, turn)
            finally:
                self._parts -= 1

    async def _ask_slots(self, part: Request, turn: Turn) -> None:
        joint = self._slots[0]
        if len(joint.endpoints) > 1:
            try:
                await joint.ask(part, turn)
            except OnlyVersion1Error:
                if self._one_port_refused:  # it is as it was: the calls for one port wait for the next time
                    joint.fail(reasons.one_port_a_call(self.qube.name, self.qube.endpoints), part)
                    return
                self._call_singly(Version1)
            else:
                return
        turn.pass_on()  # each of these calls is for one endpoint, whose turn it is
        async with asyncio.TaskGroup() as asking:
            for slot in self._slots:
                if part.owed.intersection(slot.endpoints):
                    asking.create_task(self._ask_single(slot, part, turn))

    async def _ask_single(self, slot: Slot, part: Request, turn: Turn) -> None:
        try:
            await slot.ask(part, turn)
        except OnlyVersion1Error:
            if isinstance(slot.endpoints[0], int):
                slot.speak(Version1)
                await slot.ask(part, turn)
            else:
                slot.fail(reasons.old_service(self.qube.name), part)

    # Which slots there are:
    #   at first, and after everything was forgotten     one for all endpoints
    #   the service there knows only version 1           one for each endpoint
    #   all together was refused, and never accepted     one for each endpoint, the next time that a call may be made
    #   each by itself was refused                       one for all endpoints again, the next time; and so on in turns
    #   and the service there knows only version 1       the same; but the call for all endpoints only greets then, so
    #                                                    each time costs dom0 one of the two, and not both

    def _choose_slots(self, now: float) -> None:
        """See to it that the slots are those that calls should be made for now."""
        is_open = self._parts > 0 or any(slot.is_open for slot in self._slots)
        if self._forgetful:
            self._forgetful = self._one_port_refused = False
            if not is_open:
                self._replace([Slot(self.qube.endpoints, Version2, self._caller)])
            for slot in self._slots:
                slot.forgive()
        elif len(self.qube.endpoints) == 1 or is_open or not any(slot.refused_and_may_try(now) for slot in self._slots):
            return
        elif len(self._slots) > 1:
            self._one_port_refused = any(slot.knows_one_port for slot in self._slots)
            self._replace([Slot(self.qube.endpoints, Version2, self._caller, self._failures)])
        elif not self._slots[0].accepted:  # a policy that allowed them together does so still: the qube is halted
            self._call_singly(Version1 if self._slots[0].knows_one_port else Version2)

    def _call_singly(self, version: type[TextWire]) -> None:
        self._replace(
            [_single(self.qube, endpoint, version, self._caller, self._failures) for endpoint in self.qube.endpoints]
        )

    @property
    def _failures(self) -> int:
        return max(slot.backoff.failures for slot in self._slots)

    def _replace(self, slots: list[Slot]) -> None:
        for slot in self._slots:
            slot.drop()
        self._slots = slots


def _single(qube: Qube, endpoint: Endpoint, version: type[TextWire], caller: Caller, failures: int) -> Slot:
    """A slot for one endpoint. Version 1 knows no names, so these are asked for in version 2 in any case."""
    is_port = isinstance(endpoint, int)
    slot = Slot((endpoint,), version if is_port else Version2, caller, failures)
    if version is Version1:
        slot.refusal = reasons.one_port_a_call(qube.name, qube.endpoints) if is_port else reasons.old_service(qube.name)
    return slot
