# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own gauges: names, labels and values as the contract has them."""

from federator import __version__
from federator.errors import RefusedError
from federator.gauges import HELPS, gauges
from federator.model import Outcome, Qube, QubeOutcome, Reading, Reload
from tests.helpers import lines, page, target


def test_every_gauge_of_one_scrape() -> None:
    """One target up, one down; the configured labels of a qube are on its gauges too."""
    up, down = target("work", "node", owner="alice"), target("work", "app", owner="alice")
    reading = Reading(families=(), blocks=(), samples=7, lines_dropped=2)
    qube = Qube(name="work", transport="qrexec", targets=(up, down), labels=(("owner", "alice"),))
    outcomes = (
        Outcome(target=up, seconds=0.25, body_size=100, reading=reading),
        Outcome(target=down, seconds=0.5, error=RefusedError("no")),
    )
    ours = gauges(
        [QubeOutcome(qube=qube, up=True, seconds=0.75, outcomes=outcomes)], 9.5, Reload(successful=False, at=1.5)
    )
    of, node, app = (
        'qube="work"',
        'qube="work",exporter="node",owner="alice"',
        'qube="work",exporter="app",owner="alice"',
    )
    assert [line for line in lines(ours) if "build_info" not in line] == [
        "qubes_proxy_config_last_reload_success_timestamp_seconds 1.5",
        "qubes_proxy_config_last_reload_successful 0",
        f'qubes_proxy_exporter_failure{{{app},reason="refused"}} 1',
        f"qubes_proxy_exporter_scrape_body_size_bytes{{{node}}} 100",
        f"qubes_proxy_exporter_scrape_body_size_bytes{{{app}}} 0",
        f"qubes_proxy_exporter_scrape_duration_seconds{{{node}}} 0.25",
        f"qubes_proxy_exporter_scrape_duration_seconds{{{app}}} 0.5",
        f"qubes_proxy_exporter_scrape_lines_dropped{{{node}}} 2",
        f"qubes_proxy_exporter_scrape_lines_dropped{{{app}}} 0",
        f"qubes_proxy_exporter_scrape_samples_scraped{{{node}}} 7",
        f"qubes_proxy_exporter_scrape_samples_scraped{{{app}}} 0",
        f"qubes_proxy_exporter_up{{{node}}} 1",
        f"qubes_proxy_exporter_up{{{app}}} 0",
        f'qubes_proxy_qube_scrape_duration_seconds{{{of},owner="alice"}} 0.75',
        f'qubes_proxy_qube_up{{{of},owner="alice"}} 1',
        "qubes_proxy_scrape_timeout_seconds 9.5",
    ]
    assert f'qubes_proxy_build_info{{version="{__version__}",pythonversion="' in page(ours)


def test_the_table_is_sorted_and_complete() -> None:
    """What is not in it does not exist."""
    assert list(HELPS) == sorted(HELPS)
    assert all(name.startswith("qubes_proxy_") for name in HELPS)


def test_a_configured_label_is_escaped() -> None:
    """It comes from the operator, and may hold anything."""
    work = target("work", "node")
    qube = Qube(name="work", transport="qrexec", targets=(work,), labels=(("note", 'a"b\\c\nd'),))
    ours = gauges([QubeOutcome(qube=qube, up=True, seconds=0.0, outcomes=())], 9.5, Reload(successful=True, at=0.0))
    assert r'qubes_proxy_qube_up{qube="work",note="a\"b\\c\nd"} 1' in page(ours)


def test_the_families_are_the_same_objects_each_time() -> None:
    """By that the merger sees that it need not plan its page anew."""
    first, second = (gauges([], 9.5, Reload(successful=True, at=at)) for at in (1.0, 2.0))
    assert first.families is second.families
    assert first.blocks != second.blocks
