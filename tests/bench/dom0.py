# SPDX-License-Identifier: GPL-3.0-or-later
"""
A machine whose dom0 tells all that it knows, for a daemon with every switch of [dom0] on; and what dom0 may be asked.

Owns the stand-in's folder, and the table of docs/dom0.md as numbers. Must not know how anything is measured.
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path

from federator.dom0_figures import STATS_SECONDS
from federator.dom0_replies import FEATURE, LIST, POOL, POOL_USAGE, POOLS, PROPERTIES, STATS, VOLUME
from tests.helpers import SERVICE
from tests.standin.qubes import CLIENT, Qubes

TEMPLATES = 10
POOL_LINES = ("vm-pool 1000000 600000 1000 300", "root-pool 2000000 700000 2000 400")


def machine(folder: Path, count: int) -> Qubes:
    """So many qubes that run, beside the feeder. What is no template has its features, and nobody asks for them."""
    (folder / "qrexec-client-vm").symlink_to(CLIENT)
    qubes = Qubes(folder / "machine", SERVICE)
    qubes.add_dom0()
    for number in range(count):
        qubes.add(f"qube{number}", install=False)
    home = qubes.root / "qubes"
    (home / "dom0" / "seconds").write_text(str(STATS_SECONDS), encoding="utf-8")
    (home / "dom0" / "pools").write_text("\n".join(POOL_LINES), encoding="utf-8")
    for number in range(min(TEMPLATES, count)):
        (home / f"qube{number}" / "class").write_text("TemplateVM", encoding="utf-8")
        (home / f"qube{number}" / "features").write_text("updates-available=1\nos-eol=2028-06-30", encoding="utf-8")
    with (folder / "proxy.toml").open("a", encoding="utf-8") as config:
        switches = ("stats", "storage", "volumes", "properties", "updates")
        config.write("[dom0]\ninterval = '90s'\n" + "".join(f"{switch} = true\n" for switch in switches))
    return qubes


INTERVAL_SECONDS = 90.0  # a round of 100 qubes takes some 80 s


def most_calls(count: int, intervals: int) -> Mapping[str, int]:
    """How often dom0 may be asked in so many intervals, by service: the table of docs/dom0.md."""
    templates, pools = min(TEMPLATES, count), len(POOL_LINES)
    return {
        STATS: 1,
        POOLS: intervals,
        POOL: pools * intervals,
        POOL_USAGE: pools * intervals,
        LIST: intervals,
        VOLUME: (count + templates) * intervals,
        PROPERTIES: count * ceil(intervals / 12),
        FEATURE: (2 * templates + 1) * intervals,
    }
