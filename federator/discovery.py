# SPDX-License-Identifier: GPL-3.0-or-later
"""
Asking dom0 which qubes run.

Owns when dom0 is asked, and what is believed where it does not answer. Must not know what the answer is for.

There is no timer: dom0 is asked when somebody wants to know and the last answer is old, so an idle daemon costs it
nothing. Where dom0 refuses or is silent, what it said last holds for a while, since a call may start a halted qube.
Then nobody is held to be halted, and what is configured is called, as if there were no discovery.
"""

import asyncio
import logging
import os
from contextlib import suppress

from federator.channel import Call, Counters, explain
from federator.errors import ScrapeError, TimedOutError
from federator.model import Answer, Discovery, Qrexec, Qube
from federator.targets import DOM0, RUNNING, states_of_list, states_of_names
from federator.wire import Version1

# What dom0 said holds for so many intervals where it says nothing new.
VALID_INTERVALS = 3
# Who comes as often as the interval says finds the last answer old enough, although no two scrapes come on time.
PUNCTUALITY = 0.9
# After this time an answer does not come any more.
TIMEOUT_SECONDS = 10.0
# A thousand qubes' names take 32 kB.
MAX_ANSWER = 1 << 20

log = logging.getLogger(__name__)
_DOM0 = Qube(name=DOM0, transport="qrexec", targets=())


class Discoverer:
    """
    What dom0 said last: `states` by qube, and of all that it ever named the `dotted_names`.

    `told`: has it ever answered? `settled`: has any asking come to an end, well or not? `error`: why the last one did
    not end well. What `previous` was told under other settings is as true as before.
    """

    def __init__(
        self, settings: Discovery, qrexec: Qrexec, counters: Counters, previous: "Discoverer | None" = None
    ) -> None:
        self.states: dict[str, str] = previous.states if previous else {}
        self.dotted_names: set[str] = previous.dotted_names if previous else set()
        self.settled = False
        self.error: ScrapeError | None = None
        self.names_targets = bool(settings.exporters)
        self._unnamed: str = previous._unnamed if previous else RUNNING  # noqa: SLF001 - of its kind; the state of others
        self._told_at: float | None = previous._told_at if previous else None  # noqa: SLF001 - of its kind
        self._settings = settings
        self._qrexec = qrexec
        self._counters = counters
        self._call: Call | None = None
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._failures = 0

    @property
    def told(self) -> bool:
        """Has dom0 ever answered?"""
        return self._told_at is not None

    @property
    def known(self) -> bool:
        """Is `states` something to go by?"""
        valid = VALID_INTERVALS * self._settings.refresh_interval
        return self._told_at is not None and asyncio.get_running_loop().time() < self._told_at + valid

    def state(self, name: str) -> str:
        """What dom0 said of a qube; Running where that is not known, so that it is called and answers for itself."""
        return self.states.get(name, self._unnamed) if self.known else RUNNING

    async def refresh(self, seconds: float) -> None:
        """Ask dom0, if the last answer is old, and wait `seconds` at most for what it says. Raises nothing."""
        if self._task is None and asyncio.get_running_loop().time() >= self._not_before:
            self._task = asyncio.create_task(self._update())
            self._task.add_done_callback(self._updated)
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=seconds)

    async def close(self) -> None:
        """End what runs."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._call is not None:
            await self._call.end()

    def _updated(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("bug in discovery", exc_info=bug)

    async def _update(self) -> None:
        try:
            await self._ask()
        finally:
            self.settled = True

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        interval = self._settings.refresh_interval
        started = loop.time()
        by_list = self._settings.source == "admin.vm.List"
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                self.states = await (self._list() if by_list else self._names())
        except (ScrapeError, TimeoutError) as failed:
            error = failed if isinstance(failed, ScrapeError) else TimedOutError("dom0 did not answer in time")
            wait = min(interval * 2**self._failures, max(interval, self._qrexec.backoff_max))
            self._not_before = loop.time() + wait
            if self.error is None:
                log.warning(
                    "dom0 does not say which qubes run; configured qubes are called all the same, after a while",
                    extra={"source": self._settings.source, "reason": error.reason, "error": str(error)},
                )
            self._failures = min(self._failures + 1, 16)
            self.error = error
            return
        if self.error is not None or not self.told:
            fields = {"source": self._settings.source, "qubes": len(self.states)}
            if self.states:
                log.info("dom0 says which qubes run", extra=fields)
            else:
                log.warning(
                    "dom0 names no qubes: its policy may hide them; `prometheus-qubes-proxy policy` prints the lines",
                    extra=fields,
                )
        # admin.vm.List leaves out what dom0's policy does not let us list; the other source names all that run.
        self._unnamed = RUNNING if by_list else "not running"
        self.dotted_names.update(name for name in self.states if "." in name)
        self._told_at = loop.time()
        self._not_before = started + PUNCTUALITY * interval
        self._failures, self.error = 0, None

    async def _list(self) -> dict[str, str]:
        """A call of its own: admin.vm.List answers once. No process is started in dom0 for it."""
        words = [self._qrexec.client, f"--buffer-size={self._qrexec.buffer_size}", "--", DOM0, "admin.vm.List"]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
            )
        except OSError as error:
            raise TimedOutError(f"{words[0]} cannot be started: {error.strerror}") from None
        self._counters.call_started()
        try:
            untrusted_reply, untrusted_words = await process.communicate()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            self._counters.call_ended()
        if process.returncode != 0:
            last_words = untrusted_words.strip().rpartition(b"\n")[2]
            raise explain(
                process.returncode, last_words, _DOM0, Version1(), spoke=bool(untrusted_reply), service="admin.vm.List"
            )
        return states_of_list(untrusted_reply)

    async def _names(self) -> dict[str, str]:
        """Over a call that stays open: it is upstream's protocol, version 1."""
        source = self._settings.source
        try:
            if self._call is None or not self._call.usable:
                await self._drop()
                words = [self._qrexec.client, f"--buffer-size={self._qrexec.buffer_size}", "--", DOM0, source]
                self._call = Call(_DOM0, Version1(), self._counters, service=source)
                await self._call.open(words, os.environ)
            answers: list[bytes] = []

            def tell(_: int, answer: Answer | ScrapeError) -> None:
                if isinstance(answer, Answer):
                    answers.append(answer.body)

            await self._call.ask((0,), milliseconds=0, max_body=MAX_ANSWER, tell=tell)
        except BaseException:  # late answers included: such a call is never used again
            await self._drop()
            raise
        return states_of_names(b"".join(answers))

    async def _drop(self) -> None:
        if self._call is not None:
            ending, self._call = self._call.end(), None
            await asyncio.shield(ending)
