# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person can do: the remedy fits what happened."""

import pytest

from federator import reasons
from federator.errors import ClosedError, NoServiceError, RefusedError
from federator.model import Callee
from federator.remedies import dom0_remedy, here, remedy
from federator.wire import SERVICE, Version2

WORK = Callee("work", "qrexec", SERVICE)


@pytest.mark.parametrize("words", ["No such file or directory", "Connection refused", "Permission denied"])
def test_who_cannot_call_is_not_sent_to_the_qube(words: str) -> None:
    """It may run, and have all that it needs: the call did not leave this machine."""
    error = reasons.call_ended(1, f"x: connect: {words}".encode(), WORK, Version2(), spoke=False)
    assert remedy(error, "work") == here(error)
    assert remedy(error, "work").startswith("Run it in a qube, as a user of the group qubes")
    assert remedy(error.bare(), "work") == remedy(error, "work") == dom0_remedy(error)


def test_a_program_that_is_not_started_and_a_bug_are_not_the_qubes() -> None:
    """The program is looked at, and the bug reported."""
    assert "qrexec.client" in remedy(reasons.not_started("qrexec-client-vm", "Permission denied"), "work")
    for bug in (reasons.of_ours(ValueError()), reasons.of_ours(ValueError(), reasons.TextBugError)):
        assert remedy(bug, "work").startswith("Report it")


def test_a_call_that_ends_is_the_qubes() -> None:
    """There is something to see."""
    assert remedy(ClosedError("it ended"), "work").startswith("Look at the qube")
    assert here(ClosedError("it ended")) == ""


def test_nobody_is_sent_to_a_template_of_dom0() -> None:
    """It has none, and it always runs."""
    missing, refused = (remedy(error, "dom0") for error in (NoServiceError("no"), RefusedError("no")))
    assert missing == "Install the package prometheus-qubes-proxy-service in dom0, or update it."
    assert refused.startswith("Add this line to dom0's policy")
    assert "run" not in refused
    assert "template" in remedy(NoServiceError("no"), "work")
