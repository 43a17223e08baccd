# SPDX-License-Identifier: GPL-3.0-or-later
"""What doctor makes of facts, by values: hops, results, remedies."""

from dataclasses import replace
from pathlib import Path

import pytest

from federator.errors import ClosedError, ExpositionError, HttpError, ScrapeError, TimedOutError
from federator.findings import BROKEN, HOPS, Check, Place, clock_checks, firewall_check, place_checks, target_checks
from federator.model import Config, Outcome, Qrexec, Qube, QubeOutcome, Scrape, Snapshot, Web
from federator.reasons import LateTextError, SlowExporterError
from tests.helpers import read, target
from tests.test_contracts import REASONS

NOW = 1_800_000_000.0
PLACE = Place("sys-net", in_qube=True, flagged=True)
EVERYWHERE = [("", 8199)]


def snapshot(*outcomes: Outcome, up: bool = True) -> Snapshot:
    """One scrape of these exporters, each in a qube of its own."""
    qubes = tuple(
        QubeOutcome(Qube(one.target.qube, "qrexec", (one.target,)), up=up, seconds=one.seconds, outcomes=(one,))
        for one in outcomes
    )
    return Snapshot(at=NOW, seconds=0.1, allowed=10.0, qubes=qubes)


def checks(of: Snapshot) -> list[Check]:
    """What each hop comes to."""
    qubes = tuple(qube.qube for qube in of.qubes)
    config = Config(Path("p.toml"), Web(tuple(EVERYWHERE)), Scrape(), Qrexec(), qubes)
    return target_checks(config, of, {}, "sys-net")


def results(of: Snapshot) -> dict[str, str]:
    """The result of each hop."""
    return {check.hop: check.result for check in checks(of)}


def says(of: Snapshot) -> dict[str, str]:
    """The words of each hop."""
    return {check.hop: check.says for check in checks(of)}


def says_time(seconds: str, qube: str = "work") -> Outcome:
    """An exporter that says what time it is."""
    body = f"# TYPE node_time_seconds gauge\nnode_time_seconds {seconds}\n".encode()
    of = target(qube)
    return Outcome(of, 0.1, reading=read(body, of))


def test_each_reason_is_at_a_hop() -> None:
    """The closed set of reasons, and no other."""
    assert set(BROKEN) == REASONS
    assert set(BROKEN.values()) == set(HOPS)


@pytest.mark.parametrize(
    ("error", "up", "passed"),
    [
        (TimedOutError("paused"), False, 0),
        (ClosedError("no agent"), False, 0),
        (ClosedError("killed"), True, 2),
        (TimedOutError("another exporter of the qube answered"), True, 2),
        (SlowExporterError("the service says so"), True, 3),
        (LateTextError("it came, and was not read"), True, 4),
        (HttpError("status 500"), True, 3),
        (ExpositionError("no line of it is good"), True, 4),
    ],
)
def test_what_a_failure_does_not_show_is_not_called_well(error: ScrapeError, *, up: bool, passed: int) -> None:
    """A qube that never answered says nothing of dom0's policy, and an exporter that is late nothing of its text."""
    found = results(snapshot(Outcome(target(), 1.0, error=error), up=up))
    assert list(found.values()).count("ok") == passed
    assert list(found.values()).count("failed") == 1


def test_dropped_lines_and_a_near_deadline_are_warnings() -> None:
    """The exporter is up all the same."""
    of = snapshot(Outcome(target(), 9.0, reading=read(b"m 1\nno line\n")))
    found = results(of)
    assert (found["text"], found["time"], found["exporter"]) == ("warning", "warning", "ok")
    assert says(of)["text"].startswith("1 line dropped that Prometheus would not take, the first one: line 2: ")


def test_one_sample_is_called_one_sample() -> None:
    """It was `1 samples`."""
    of = snapshot(Outcome(target(), 0.1, body_size=4, reading=read(b"m 1\n")))
    assert says(of)["text"] == "1 sample, 4 bytes"


def test_a_local_qube_has_no_policy() -> None:
    """Nobody calls it."""
    of = snapshot(Outcome(target(), 0.1, reading=read(b"m 1\n")))
    local = replace(of.qubes[0], qube=replace(of.qubes[0].qube, transport="local"))
    assert list(results(replace(of, qubes=(local,)))) == list(HOPS[2:])


@pytest.mark.parametrize(
    ("place", "hop", "words"),
    [
        (replace(PLACE, flagged=False), "service flag", "no service flag"),
        (replace(PLACE, run_qubes=False), "/run/qubes", "is no folder"),
        (replace(PLACE, agent="missing"), "qrexec agent", "has no socket"),
        (replace(PLACE, agent="closed to us"), "qrexec agent", "not in the group qubes"),
    ],
)
def test_what_is_wrong_with_the_place(place: Place, hop: str, words: str) -> None:
    """One hop is broken, and it is named."""
    (failed,) = (check for check in place_checks(place, calls=True) if check.result == "failed")
    assert failed.hop == hop
    assert words in failed.says
    assert failed.remedy


def test_a_machine_that_is_no_qube_has_no_flags() -> None:
    """Nothing failed there."""
    assert [check.result for check in place_checks(Place("pc", in_qube=False), calls=True)] == ["skipped"]


RULE = "ip saddr {} tcp dport {} ct state new accept"


@pytest.mark.parametrize(
    ("rules", "result"),
    [
        (RULE.format("10.137.0.5", 8199), "ok"),
        (RULE.format("192.0.2.1", 8199) + "\n" + RULE.format("10.137.0.5", 8199), "ok"),
        ("tcp dport { 22, 8199 } accept", "ok"),
        (RULE.format("192.0.2.1", 8199), "failed"),
        (RULE.format("10.137.0.5", 81990), "failed"),
        (RULE.format("10.137.0.5", 8199).replace("accept", "drop"), "failed"),
        ("", "failed"),
        (None, "skipped"),
    ],
)
def test_a_rule_of_the_firewall(rules: str | None, result: str) -> None:
    """It is for the port, accepts, and has another address than the example."""
    assert firewall_check(replace(PLACE, firewall=rules), EVERYWHERE).result == result


def test_loopback_needs_no_rule() -> None:
    """Nor does a socket."""
    assert firewall_check(replace(PLACE, firewall=""), [("127.0.0.1", 8199), Path("/run/x")]).result == "skipped"


def test_a_clock_that_is_wrong_is_named() -> None:
    """The qube's; or ours, if all qubes agree on another time."""
    right, hour = f"{NOW:.0f}", f"{NOW + 3600:.0f}"
    checks = clock_checks(snapshot(says_time(right, "a"), says_time(hour, "b")))
    assert [(check.subject, check.result) for check in checks] == [("a", "ok"), ("b", "warning")]
    (check,) = clock_checks(snapshot(says_time(hour, "a"), says_time(hour, "b")))
    assert (check.subject, check.result) == ("this qube", "warning")


@pytest.mark.parametrize("seconds", ["NaN", "+Inf"])
def test_a_time_that_is_none_is_passed_over(seconds: str) -> None:
    """A qube may say what it likes."""
    (check,) = clock_checks(snapshot(says_time(seconds)))
    assert check.result == "skipped"
