# SPDX-License-Identifier: GPL-3.0-or-later
"""
What `doctor` makes of its tries of [dom0]'s calls: which lines of policy work, and what to do about the others.

Owns these checks. Must not know how dom0 was asked.
"""

from collections.abc import Sequence
from typing import NamedTuple

from federator.errors import ScrapeError
from federator.findings import HERE, Check
from federator.policy import Need
from federator.remedies import dom0_lines, dom0_remedy
from federator.targets import DOM0

HOP = "dom0's figures"


class Tried(NamedTuple):
    """
    One line of policy, and what came of a call that it has to allow.

    `error`: why dom0 did not answer. `skipped`: why there was no call.
    """

    need: Need
    error: ScrapeError | None = None
    skipped: str = ""


def dom0_checks(tried: Sequence[Tried], own_name: str) -> list[Check]:
    """One for all that dom0 answers, and one for each line that does not work."""
    good = [one for one in tried if not one.error and not one.skipped]
    says = f"{len(good)} of {len(tried)} policy lines for [dom0] work"
    checks = [Check(HOP, HERE, "ok", says)] if good else []
    for one in tried:
        call = f"{one.need.service} {one.need.argument} {one.need.target}"
        if one.skipped:
            checks.append(Check(HOP, DOM0, "skipped", f"{call}: {one.skipped}"))
        elif one.error:
            copy = dom0_lines(one.error, [one.need], own_name)
            says = f"{call}: {one.error.reason}: {one.error}"
            checks.append(Check(HOP, DOM0, "failed", says, dom0_remedy(one.error), tuple(copy)))
    return checks
