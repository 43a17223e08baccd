# SPDX-License-Identifier: GPL-3.0-or-later
"""
What nobody catches on the event loop: a bug, or a lack of memory.

Owns how that is told, and what is let go where memory is short. Must not know where it came from.

The event loop goes on after such an exception, and what failed may fail again at once: asyncio tries to read from a
pipe, has no memory to do so, and tries again. So not each of them is told, and memory is made free.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Any

from federator.budget import Budget
from federator.connections import says_client_is_gone
from federator.seldom import Seldom

# Between two lines of the log.
TOLD_SECONDS = 10.0

log = logging.getLogger(__name__)


class Unexpected:
    """The event loop's exception handler. `budgets`: what may be let go."""

    def __init__(self, budgets: Collection[Budget]) -> None:
        self._budgets = budgets
        self._seldom = Seldom(TOLD_SECONDS)
        self._gone = Seldom(TOLD_SECONDS)

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """See asyncio's `loop.set_exception_handler`."""
        del loop
        error = context.get("exception")
        if isinstance(error, MemoryError):
            for budget in self._budgets:
                budget.shed()
        if says_client_is_gone(error):
            self._note_gone()
            return
        times = self._seldom.again()
        if times is None:
            return
        if isinstance(error, MemoryError):
            log.error("memory is short, and the texts of this moment are let go; see scrape.memory_limit")
        else:
            log.error(context.get("message", "bug"), exc_info=error, extra={"suppressed": times})

    def _note_gone(self) -> None:
        times = self._gone.again()
        if times is not None:
            log.debug("a client was gone before its connection was served", extra={"suppressed": times})
