# SPDX-License-Identifier: GPL-3.0-or-later
"""
What went wrong in asking a qube, or in reading its text, and is no fault of the qube: a bug, or a lack of memory.

Owns how that is told. Must not know what was done, nor what follows from it.
"""

import asyncio
import logging
from collections.abc import Callable

from federator import reasons
from federator.errors import ScrapeError

log = logging.getLogger(__name__)


def tell(event: str, error: Exception, **fields: str) -> None:
    """A bug is told with its traceback. A lack of memory is told by unexpected.py, which lets go of what it can."""
    if reasons.is_lack_of_memory(error):
        context = {"message": f"no memory: {event}", "exception": MemoryError()}
        asyncio.get_running_loop().call_exception_handler(context)
    else:
        log.error(event, exc_info=error, extra=fields)


class Caught:
    """
    `with` this: whatever goes wrong is told, as this event; and to `then`, as the reason why there is no text.

    A class: a generator of contextlib would hold the exception and what its frames hold, until the garbage collector
    comes.
    """

    def __init__(self, event: str, then: Callable[[ScrapeError], object], **fields: str) -> None:
        self._event = event
        self._then = then
        self._fields = fields

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        """Bugs and a lack of memory end here; that this is cancelled does not."""
        if not isinstance(error, Exception):
            return False
        self._then(reasons.of_ours(error))
        tell(self._event, error, **self._fields)
        return True
