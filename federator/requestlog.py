# SPDX-License-Identifier: GPL-3.0-or-later
"""
What the log says of requests: each at `debug`; at `info` one that its scraper asked wrongly, now and then.

Owns these lines and their rate. Must not know what is served.
"""

import logging

from federator.errors import shown
from federator.seldom import Seldom

# Prometheus asks every 30 seconds, and asks as wrongly each time.
WRONG_REQUEST_SECONDS = 60.0
# The answers that say that what was asked for is not there. A 401 or 429 may be an attack, and is counted elsewhere.
_WRONG = (400, 404)

log = logging.getLogger(__name__)


class RequestLog:
    """One for the whole daemon, as the rate is that of all clients together."""

    def __init__(self) -> None:
        self._seldom = Seldom(WRONG_REQUEST_SECONDS)

    def note(self, untrusted_path: str, code: int, client: str) -> None:
        """A request was answered. The path is as it was asked for, with its parameters."""
        fields = {"path": shown(untrusted_path), "status": code, "client": client}
        log.debug("answered a request", extra=fields)
        if code in _WRONG:
            times = self._seldom.again()
            if times is not None:
                extra = {**fields, "suppressed": times}
                log.info("a request for what is not there; further ones are not logged for 60 s", extra=extra)
