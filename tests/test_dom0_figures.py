# SPDX-License-Identifier: GPL-3.0-or-later
"""dom0's figures as families of the page."""

from federator.dom0_figures import FAMILIES, STATS_SECONDS, STEPS_BACK, Figures
from federator.text.relabel import is_reserved

NEW = {
    "memory_kb": 400,
    "cpu_time": 1500,
    "memory_assigned_total": 500,
    "memory_assigned_usable": 400,
    "memory_with_swap_used": 350,
    "swap_used": 50,
    "online_vcpus": 2,
}


def text(of: Figures, now: float = 0.0, qubes: frozenset[str] | None = None) -> str:
    """The lines of the page."""
    return b"".join(of.reading(now, qubes).blocks).decode()


def test_a_qube_has_cpu_and_memory() -> None:
    """In seconds and bytes, with the qube's own labels."""
    figures = Figures({"work": (("owner", "alice"),)})
    figures.note_stats("work", NEW, 0.0)
    assert text(figures).splitlines() == [
        'qube_cpu_seconds_total{qube="work",owner="alice"} 1.5',
        'qube_vcpus{qube="work",owner="alice"} 2',
        'qube_memory_assigned_bytes{qube="work",owner="alice"} 512000',
        'qube_memory_usable_bytes{qube="work",owner="alice"} 409600',
        'qube_memory_used_bytes{qube="work",owner="alice"} 307200',
        'qube_swap_used_bytes{qube="work",owner="alice"} 51200',
    ]
    figures.relabel({})
    assert "owner" not in text(figures)


def test_old_releases_know_less() -> None:
    """memory_kb alone."""
    figures = Figures({})
    figures.note_stats("work", {"memory_kb": 400, "cpu_time": 1, "cpu_usage": 3}, 0.0)
    assert text(figures) == 'qube_cpu_seconds_total{qube="work"} 0.001\nqube_memory_usable_bytes{qube="work"} 409600\n'


def test_no_value_is_older_than_three_intervals() -> None:
    """It is gone then, and not repeated."""
    figures = Figures({})
    figures.note_stats("work", {"online_vcpus": 2}, 100.0)
    assert text(figures, 100.0 + 3 * STATS_SECONDS)
    assert not text(figures, 100.1 + 3 * STATS_SECONDS)
    assert not len(figures)


def test_cpu_time_steps_back_only_where_a_qube_was_started_anew() -> None:
    """`rate` would take one wrong value for hours of work."""
    figures = Figures({})

    def cpu(milliseconds: int) -> float:
        figures.note_stats("work", {"cpu_time": milliseconds}, 0.0)
        return float(text(figures).split()[-1])

    assert [cpu(one) for one in (10_000, 9_000, 11_000, 500, 600)] == [10.0, 10.0, 11.0, 0.5, 0.6]
    assert cpu(10_000) == 10.0
    assert [cpu(9_000) for _ in range(STEPS_BACK)] == [*[10.0] * (STEPS_BACK - 1), 9.0]


def test_the_rest() -> None:
    """State, properties, volumes, pools, updates; a new state or label takes the place of the old one."""
    figures = Figures({})
    for state in ("Running", "Halted"):
        figures.note_state("work", state, 0.0, 30.0)
    for label in ("red", "green"):
        told = {"label": label, "template": "debian-12", "netvm": "sys-net", "provides_network": "True"}
        figures.note_properties("work", "AppVM", told, 0.0, 300.0)
    figures.note_volume("work", "private", {"size": 20, "usage": 7, "revisions_to_keep": 1}, 0.0, 300.0)
    figures.note_pool("vm-pool", {"size": 1, "usage": 2}, {"data_size": 100, "data_usage": 60}, 0.0, 300.0)
    figures.note_pool("thin", {}, {"metadata_size": 10, "metadata_usage": 3}, 0.0, 300.0)
    figures.note_updates("debian-12", b"1", 0.0, 300.0)
    figures.note_eol("debian-12", "2026-06-30", 0.0, 300.0)
    figures.note_eol("debian-12", "2026-99-30", 0.0, 300.0)
    figures.note_call("admin.pool.List", "refused", 0.0, 300.0)
    info = 'qube_info{qube="work",class="AppVM",label="green",template="debian-12",netvm="sys-net"'
    info += ',provides_network="true"}'
    assert set(text(figures).splitlines()) == {
        'qube_running{qube="work"} 0',
        'qube_state{qube="work",state="Halted"} 1',
        info + " 1",
        'qube_volume_size_bytes{qube="work",volume="private"} 20',
        'qube_volume_usage_bytes{qube="work",volume="private"} 7',
        'qubes_pool_size_bytes{pool="vm-pool"} 100',
        'qubes_pool_usage_bytes{pool="vm-pool"} 60',
        'qubes_pool_metadata_size_bytes{pool="thin"} 10',
        'qubes_pool_metadata_usage_bytes{pool="thin"} 3',
        'qube_updates_available{qube="debian-12"} 1',
        'qube_os_eol_timestamp_seconds{qube="debian-12"} 1782777600.0',
        'qubes_proxy_dom0_up{call="admin.pool.List"} 0',
        'qubes_proxy_dom0_failure{call="admin.pool.List",reason="refused"} 1',
    }
    assert "pool" not in text(figures, 0.0, frozenset({"work"}))
    assert text(figures, 0.0, frozenset()) == ""
    figures.forget({"work"})
    assert "work" not in text(figures)


def test_no_qube_can_speak_in_dom0s_name() -> None:
    """Each of these names becomes `exported_…` in a qube's own text."""
    assert all(is_reserved(name) for name in FAMILIES)
