# SPDX-License-Identifier: GPL-3.0-or-later
"""dom0's figures as families of the page."""

from federator.dom0_figures import FAMILIES, STATES, STATS_SECONDS, STEPS_BACK, Figures
from federator.dom0_replies import MAX_QUBES
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
    figures.note_stats("work", NEW, 0.0, 9.0)
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
    figures.note_stats("work", {"memory_kb": 400, "cpu_time": 1, "cpu_usage": 3}, 0.0, 9.0)
    assert text(figures) == 'qube_cpu_seconds_total{qube="work"} 0.001\nqube_memory_usable_bytes{qube="work"} 409600\n'


def test_no_value_is_older_than_three_intervals() -> None:
    """It is gone then, and not repeated."""
    figures = Figures({})
    figures.note_stats("work", {"online_vcpus": 2}, 100.0, 9.0)
    assert text(figures, 100.0 + 3 * STATS_SECONDS)
    assert not text(figures, 100.1 + 3 * STATS_SECONDS)
    assert not len(figures)


def test_cpu_time_steps_back_only_where_a_qube_was_started_anew() -> None:
    """`rate` would take one wrong value for hours of work."""
    figures = Figures({})

    def cpu(milliseconds: int) -> float:
        figures.note_stats("work", {"cpu_time": milliseconds}, 0.0, 9.0)
        return float(text(figures).split()[-1])

    for wrong in (9_000, 500, 0):
        assert [cpu(one) for one in (10_000, wrong, wrong, 10_000)] == [10.0] * 4
        assert [cpu(wrong) for _ in range(STEPS_BACK)] == [*[10.0] * (STEPS_BACK - 1), wrong / 1000]
    cpu(10_000)
    cpu(0)
    figures.forget({"work"})
    assert [cpu(one) for one in (10_000, 0, 0, 0)] == [10.0, 10.0, 10.0, 0.0]


def test_the_rest() -> None:
    """State, properties, volumes, pools, updates; a new state or label takes the place of the old one."""
    figures = Figures({})
    for state in ("Running", "Halted"):
        figures.note_state("work", state, 0.0, 30.0, 1000.0 + len(state))
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
        *(f'qube_state{{qube="work",state="{one}"}} {int(one == "Halted")}' for one in STATES),
        'qube_last_seen_running_timestamp_seconds{qube="work"} 1007.0',
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


def test_the_stub_domain_is_told_apart_where_dom0_does() -> None:
    """Its share is a counter of its own, with the same care for steps back."""
    figures = Figures({})
    for milliseconds in (9000, 8000):
        figures.note_stats("work", {"cpu_time": 1, "cpu_time_internal": milliseconds}, 0.0, 9.0)
    assert 'qube_stubdomain_cpu_seconds_total{qube="work"} 9.0' in text(figures)


def test_a_state_that_is_not_known_is_shown_until_there_is_another() -> None:
    """Later releases may have one."""
    figures = Figures({})
    figures.note_state("work", "Molten", 0.0, 30.0, 0.0)
    assert 'qube_state{qube="work",state="Molten"} 1' in text(figures)
    figures.note_state("work", "Running", 0.0, 30.0, 0.0)
    assert "Molten" not in text(figures)
    assert text(figures).count("qube_state") == len(STATES)


def test_it_was_last_seen_running_when_statistics_came() -> None:
    """They come more often than the list."""
    figures = Figures({})
    figures.note_state("work", "Running", 0.0, 30.0, 100.0)
    figures.note_stats("work", {}, 0.0, 120.0)
    figures.note_state("work", "Halted", 0.0, 30.0, 130.0)
    assert 'qube_last_seen_running_timestamp_seconds{qube="work"} 120.0' in text(figures)


def test_a_flood_of_names_has_an_end() -> None:
    """Those that are known stay."""
    figures = Figures({})
    for number in range(2 * MAX_QUBES):
        figures.note_stats(f"q{number}", {"online_vcpus": 1}, 0.0, 0.0)
    figures.note_stats("q0", {"online_vcpus": 4}, 0.0, 0.0)
    assert len(figures) == MAX_QUBES + 1
    assert 'qube_vcpus{qube="q0"} 4' in text(figures)


def test_what_is_no_name_becomes_no_label() -> None:
    """A property whose value is hostile is empty."""
    figures = Figures({})
    figures.note_properties("work", "AppVM", {"label": 'red"}\n', "template": "x" * 65, "netvm": "n"}, 0.0, 30.0)
    labels = 'class="AppVM",label="",template="",netvm="n",provides_network=""'
    assert text(figures) == f'qube_info{{qube="work",{labels}}} 1\n'


def test_no_qube_can_speak_in_dom0s_name() -> None:
    """Each of these names becomes `exported_…` in a qube's own text."""
    assert all(is_reserved(name) for name in FAMILIES)


def test_a_pool_without_a_limit_is_never_full() -> None:
    """A size of 0 would be divided by."""
    figures = Figures({})
    figures.note_pool("dir", {"size": 0, "usage": 7}, {"metadata_size": 10, "metadata_usage": 1}, 0.0, 10.0)
    assert "qubes_pool_size" not in text(figures)
    assert "qubes_pool_usage" not in text(figures)
    assert 'qubes_pool_metadata_usage_bytes{pool="dir"} 1\n' in text(figures)
