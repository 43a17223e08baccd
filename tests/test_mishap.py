# SPDX-License-Identifier: GPL-3.0-or-later
"""A bug, or a lack of memory, in asking a qube."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable

import pytest

from federator.errors import BodySizeLimitError, ScrapeError
from federator.mishap import Caught
from federator.reasons import BugError


class Text:
    """Something large."""


def group(*errors: Exception) -> Exception:
    """What tasks that end together come to."""
    return ExceptionGroup("tasks", errors)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError, BugError),
        (MemoryError, BodySizeLimitError),
        (lambda: group(MemoryError(), group(MemoryError())), BodySizeLimitError),
        (lambda: group(MemoryError(), ZeroDivisionError()), BugError),
    ],
)
async def test_what_went_wrong_is_told_and_not_kept(
    error: Callable[[], Exception], reason: type[ScrapeError], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception holds its frames, and these hold texts; the garbage collector may come in hours."""
    caplog.set_level(logging.CRITICAL, "federator")  # the log of a test would hold it, too
    told: list[ScrapeError] = []
    kept: list[weakref.ref[Text]] = []

    def fail() -> None:
        text = Text()
        kept.append(weakref.ref(text))
        with Caught("bug in a test", told.append, qube="work"):
            raise error()

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    gc.disable()
    try:
        fail()
        assert kept[0]() is None
    finally:
        gc.enable()
    assert [type(one) for one in told] == [reason]


async def test_who_is_cancelled_is_not_caught() -> None:
    """Nothing went wrong."""
    told: list[ScrapeError] = []
    with pytest.raises(asyncio.CancelledError), Caught("bug in a test", told.append):
        raise asyncio.CancelledError
    assert not told
