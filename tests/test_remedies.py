# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person can do: the remedy fits what happened."""

import pytest

from federator import reasons
from federator.errors import ClosedError
from federator.model import Callee
from federator.remedies import dom0_remedy, here, remedy
from federator.wire import SERVICE, Version2

WORK = Callee("work", "qrexec", SERVICE)


@pytest.mark.parametrize("words", ["No such file or directory", "Connection refused", "Permission denied"])
def test_who_cannot_call_is_not_sent_to_the_qube(words: str) -> None:
    """It may run, and have all that it needs: the call did not leave this machine."""
    error = reasons.call_ended(1, f"x: connect: {words}".encode(), WORK, Version2(), spoke=False)
    assert remedy(error) == here(error)
    assert remedy(error).startswith("Run it in a qube, as a user of the group qubes")
    assert remedy(error.bare()) == remedy(error) == dom0_remedy(error)


def test_a_program_that_is_not_started_and_a_bug_are_not_the_qubes() -> None:
    """The program is looked at, and the bug reported."""
    assert "qrexec.client" in remedy(reasons.not_started("qrexec-client-vm", "Permission denied"))
    for bug in (reasons.of_ours(ValueError()), reasons.of_ours(ValueError(), reasons.TextBugError)):
        assert remedy(bug).startswith("Report it")


def test_a_call_that_ends_is_the_qubes() -> None:
    """There is something to see."""
    assert remedy(ClosedError("it ended")).startswith("Look at the qube")
    assert here(ClosedError("it ended")) == ""
