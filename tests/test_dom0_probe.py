# SPDX-License-Identifier: GPL-3.0-or-later
"""doctor tries each line of policy that [dom0] needs: real processes, and a stand-in that answers as qubesd does."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from federator import config, dom0_probe, host
from federator.dom0_findings import HOP, Tried, dom0_checks
from federator.dom0_replies import FEATURE, LIST, POOL, POOL_USAGE, POOLS, PROPERTIES, PROPERTY, STATS, VOLUME
from federator.errors import ProtocolError, RefusedError
from federator.findings import Check
from federator.model import Config
from federator.policy import ANY_QUBE, Need, dom0_needs, dom0_rules
from tests.helpers import soon
from tests.parts import toml
from tests.standin.qubes import Qubes
from tests.test_dom0 import EVERYTHING

# Nearly each of these tests asks a stand-in of processes.
pytestmark = pytest.mark.slow

# A call with its argument, as the stand-in knows it; and the lines of policy that do nothing without it.
DENIED = {
    STATS: [f"{STATS} +"],
    POOLS: [f"{POOLS} +", f"{POOL} *", f"{POOL_USAGE} *"],
    POOL: [f"{POOL} *"],
    POOL_USAGE: [f"{POOL_USAGE} *"],
    f"{PROPERTIES}\n{PROPERTY}": [f"{PROPERTIES} +"],
    f"{VOLUME}+private": [f"{VOLUME} +private"],
    f"{VOLUME}+root": [f"{VOLUME} +root"] * 2,
    f"{FEATURE}+os-eol": [f"{FEATURE} +os-eol"] * 2,
}


@pytest.fixture(autouse=True)
def _with_a_standalone_qube(machine: Qubes) -> None:
    machine.add("alone", state="Halted")
    (machine.root / "qubes" / "alone" / "class").write_text("StandaloneVM", encoding="utf-8")


def settings(machine: Qubes, table: str = EVERYTHING) -> Config:
    """A configuration with this [dom0]."""
    return config.parse(toml({}, client=machine.client, rest=table), Path("/x"))


async def probe(machine: Qubes, of: Config) -> list[Tried]:
    """As doctor does; no process stays."""
    host.watch_children()
    tried = await dom0_probe.probe(of)
    await soon("no process is left", lambda: not machine.left_behind())
    assert [one.need for one in tried] == dom0_needs(of)
    return tried


def failed(tried: list[Tried]) -> list[Check]:
    """The checks that are not well."""
    return [check for check in dom0_checks(tried, "sys-net") if check.result == "failed"]


async def test_each_line_is_tried_once_where_all_is_well(machine: Qubes) -> None:
    """With as many calls as there are lines, but for the list, which two lines share."""
    tried = await probe(machine, settings(machine))
    assert [(one.error, one.skipped) for one in tried] == [(None, "")] * len(tried)
    (check,) = dom0_checks(tried, "sys-net")
    assert (check.hop, check.result) == (HOP, "ok")
    assert check.says == f"{len(tried)} of {len(tried)} policy lines for [dom0] work"
    assert len(machine.calls()) == len(tried) - 1
    assert machine.state("debian-12") == "Halted"


@pytest.mark.parametrize("denied", DENIED)
async def test_a_line_that_is_missing_is_named(machine: Qubes, denied: str) -> None:
    """With the line to add, and no other; what cannot be tried without it is skipped."""
    for folder in (machine.root / "qubes").iterdir():
        (folder / "denied").write_text(denied, encoding="utf-8")
    of = settings(machine)
    tried = await probe(machine, of)
    missing = [one.need for one in tried if one.error]
    for check, need in zip(failed(tried), missing, strict=True):
        assert check.says.startswith(f"{need.service} {need.argument} {need.target}: refused: ")
        assert check.copy == tuple(dom0_rules([need], "sys-net"))
        assert "30-user.policy" in check.remedy
    idle = [f"{one.need.service} {one.need.argument}" for one in tried if one.error or one.skipped]
    assert idle == DENIED[denied]


async def test_a_list_without_qubes_lacks_its_line(machine: Qubes) -> None:
    """dom0 allows the list, and no line lets it name a qube."""
    for name in ("work", "vault", "debian-12", "alone"):
        (machine.root / "qubes" / name / "hidden").write_text("yes", encoding="utf-8")
    tried = await probe(machine, settings(machine))
    (check,) = failed(tried)
    assert check.says.startswith(f"{LIST} * {ANY_QUBE}: refused: dom0 lists itself")
    assert check.copy == tuple(dom0_rules([Need(LIST, "*", ANY_QUBE)], "sys-net"))
    assert {one.need.service for one in tried if one.skipped} == {PROPERTIES, VOLUME, FEATURE}


async def test_a_line_for_a_class_without_qubes_is_skipped(machine: Qubes) -> None:
    """It may be there, or be missing: nobody can tell, and nothing is lost."""
    shutil.rmtree(machine.root / "qubes" / "alone")
    tried = await probe(machine, settings(machine, "[dom0]\nstats = false\nstorage = false\nupdates = true\n"))
    assert not failed(tried)
    assert {one.need.target for one in tried if one.skipped} == {"@type:StandaloneVM"}
    assert {one.need.target for one in tried if not one.skipped} == {"@adminvm", "@type:TemplateVM"}


async def test_of_a_qube_elsewhere_no_volume_is_asked(machine: Qubes) -> None:
    """dom0 has none of it, and would hang up."""
    machine.add("a-far-one")
    (machine.root / "qubes" / "a-far-one" / "class").write_text("RemoteVM", encoding="utf-8")
    tried = await probe(machine, settings(machine, "[dom0]\nstats = false\nstorage = false\nvolumes = true\n"))
    assert not failed(tried)
    assert not machine.calls("a-far-one")


async def test_single_properties_are_enough(machine: Qubes) -> None:
    """So no line is missing."""
    for folder in (machine.root / "qubes").iterdir():
        (folder / "denied").write_text(PROPERTIES, encoding="utf-8")
    assert not failed(await probe(machine, settings(machine)))


async def test_a_silent_dom0_is_asked_once(machine: Qubes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or doctor would wait for each call."""
    monkeypatch.setattr(dom0_probe, "STATS_WITHIN", 0.5)
    (machine.root / "qubes" / "dom0" / "trouble").write_text("silent", encoding="utf-8")
    tried = await probe(machine, settings(machine))
    (check,) = failed(tried)
    assert check.says.startswith(f"{STATS} + @adminvm: timeout: ")
    assert not check.copy
    assert all("dom0 was silent" in one.skipped for one in tried[1:])
    assert len(machine.calls()) == 1


async def test_statistics_that_end_at_once_are_told(machine: Qubes) -> None:
    """As where qubesd is restarted, or answers with an error."""
    (machine.root / "qubes" / "dom0" / "trouble").write_text("cut", encoding="utf-8")
    tried = await probe(machine, settings(machine, "[dom0]\nstorage = false\n"))
    (check,) = failed(tried)
    assert check.says.startswith(f"{STATS} + @adminvm: closed: ")


def test_each_reason_has_its_own_remedy() -> None:
    """The lines are for a refusal alone."""
    need = Need(STATS, "+", "@adminvm")
    refused, broken = (
        dom0_checks([Tried(need, error)], "sys-net")[0] for error in (RefusedError("no"), ProtocolError("odd"))
    )
    assert refused.copy
    assert not broken.copy
    assert "qubesd" in broken.remedy
    assert replace(refused, says="", remedy="", copy=()) == replace(broken, says="", remedy="", copy=())


async def test_doctor_can_be_interrupted(machine: Qubes) -> None:
    """No call stays open."""
    host.watch_children()
    (machine.root / "qubes" / "dom0" / "trouble").write_text("silent", encoding="utf-8")
    task = asyncio.create_task(dom0_probe.probe(settings(machine)))
    await soon("dom0 is called", machine.calls)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await soon("no process is left", lambda: not machine.left_behind())
