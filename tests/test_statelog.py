# SPDX-License-Identifier: GPL-3.0-or-later
"""What the log is told of who is up."""

import logging

import pytest

from federator.errors import ExporterUnreachableError, ScrapeError, TimedOutError
from federator.model import Outcome, Qube, QubeOutcome, Reading
from federator.statelog import StateLog
from tests.helpers import target


def outcome(*errors: ScrapeError | None, up: bool = True, dropped: int = 0) -> QubeOutcome:
    """A qube with an exporter for each error, or for each None."""
    targets = [target(exporter=f"e{number}") for number in range(len(errors))]
    reading = Reading(families=(), blocks=(), samples=1, lines_dropped=dropped, complaint="line 1: bad")
    return QubeOutcome(
        qube=Qube(name="work", transport="qrexec", targets=tuple(targets)),
        up=up,
        seconds=0.1,
        outcomes=tuple(
            Outcome(target=one, seconds=0.1, error=error, reading=None if error else reading)
            for one, error in zip(targets, errors, strict=True)
        ),
    )


def test_the_log_is_told_of_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    """A qube going down once, with its reason, and not its exporters; once when it is back."""
    caplog.set_level(logging.INFO)
    state_log = StateLog()
    late, refused = TimedOutError("late"), ExporterUnreachableError("refused")
    for one in (outcome(None), outcome(late, up=False), outcome(late, up=False), outcome(None), outcome(None)):
        state_log.write(one)
    for one in (outcome(None, refused), outcome(None, refused), outcome(None, None)):
        state_log.write(one)
    for dropped in (2, 3, 0, 1):
        state_log.write(outcome(None, dropped=dropped))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "qube is down"),
        ("INFO", "qube is back"),
        ("WARNING", "exporter is down"),
        ("INFO", "exporter is back"),
        ("WARNING", "lines dropped that Prometheus would not take"),
        ("WARNING", "lines dropped that Prometheus would not take"),
    ]
    assert vars(caplog.records[0])["reason"] == "timeout"
    assert vars(caplog.records[0])["qube"] == "work"
    assert vars(caplog.records[2])["exporter"] == "e1"


def test_what_went_away_is_new_when_it_comes_again(caplog: pytest.LogCaptureFixture) -> None:
    """A qube that was down when it left, and is down when it is back, is told of again; one that stayed is not."""
    state_log = StateLog()
    down = outcome(TimedOutError("late"), up=False)
    for retained in ([down.qube], []):
        state_log.write(down)
        state_log.write_forwarded(down.outcomes[0])
        state_log.retain(retained)
    state_log.write(down)
    state_log.write_forwarded(down.outcomes[0])
    assert [record.getMessage() for record in caplog.records] == ["qube is down", "exporter is down"] * 2
