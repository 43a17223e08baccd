# SPDX-License-Identifier: GPL-3.0-or-later
"""What nobody catches on the event loop."""

import asyncio
import gc
import logging
from unittest.mock import Mock

import pytest
from aiohttp import web

from federator.budget import Budget
from federator.unexpected import Unexpected


class Text:
    """Holds bytes of a budget."""

    qube = "work"

    def __init__(self) -> None:
        self.gave_up = False

    def give_up(self) -> None:
        """What a call does."""
        self.gave_up = True


async def test_a_lack_of_memory_is_told_once_and_makes_memory_free(caplog: pytest.LogCaptureFixture) -> None:
    """It fails again at once, for as long as nothing is free; that filled the log."""
    budget, text = Budget(100), Text()
    budget.hold(text, 50)
    loop = asyncio.get_running_loop()
    handle = Unexpected([budget]).handle
    for _ in range(100):
        handle(loop, {"message": "Exception in callback", "exception": MemoryError()})
    assert text.gave_up
    assert budget.total == 0
    (record,) = caplog.records
    assert "scrape.memory_limit" in record.message
    assert record.exc_info is None


async def test_a_bug_is_told_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """And nothing is let go for it."""
    budget, text = Budget(100), Text()
    budget.hold(text, 50)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Unexpected([budget]).handle)
    loop.call_soon(lambda: 1 / 0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not text.gave_up
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_a_client_that_is_gone_at_once_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    """The HTTP library starts a task for a connection; where it is reset before the task runs, the task fails."""
    caplog.set_level(logging.DEBUG, "federator")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Unexpected([]).handle)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    assert runner.server is not None
    connections = [runner.server() for _ in range(10)]
    for connection in connections:
        connection.connection_made(Mock(asyncio.Transport))
        connection.connection_lost(None)
    for _ in range(3):
        await asyncio.sleep(0)
    del connection, connections
    gc.collect()
    await runner.cleanup()
    loop.set_exception_handler(None)
    # The newest ones do not fail at this any more, with Python 3.12: they begin the task at once.
    assert [record.levelname for record in caplog.records] in ([], ["DEBUG"])


async def test_other_assertions_of_the_http_library_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """They were dropped without a word. This client is there."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Unexpected([]).handle)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    assert runner.server is not None
    connection = runner.server()
    connection.transport = Mock(asyncio.Transport)
    connection._manager = None  # noqa: SLF001 - so that an assertion fails
    task = loop.create_task(connection.start())
    await asyncio.wait({task})
    del task, connection
    gc.collect()
    await runner.cleanup()
    loop.set_exception_handler(None)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is AssertionError
