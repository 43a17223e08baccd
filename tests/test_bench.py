# SPDX-License-Identifier: GPL-3.0-or-later
"""That `make bench` still runs, and compares like with like. What it measures is for nobody to assert."""

import random

import pytest

from federator import views
from federator.rows import Filter
from tests.bench import __main__ as bench
from tests.bench import dom0, looks, texts
from tests.helpers import finish, reader, recording, target
from tests.parts import debian_program

# The bench measures times, and reads large texts.
pytestmark = [pytest.mark.slow, pytest.mark.unmeasured]


def test_a_small_machine_is_measured_from_end_to_end() -> None:
    """Ours, the floor, prometheus-client alone and the peer answer, and steady scrapes make no call."""
    debian_program("prometheus-pushgateway")
    bodies = {name: texts.churned(name, 0.01, 6, random.Random(1)) for name in ("node", "process")}
    measured = bench.compare_daemons("a row", 1, bodies, rounds=1)
    assert measured.samples == texts.samples(recording("node", 3)) + texts.samples(recording("process", 3))
    assert all(cpu > 0 for cpu in measured.cpu.values()), measured
    assert len(measured.cpu) == 4
    assert measured.row.endswith("| 0 |"), measured


def test_dom0_is_asked_while_a_small_machine_is_measured() -> None:
    """No more often than docs/dom0.md says, and the page has what it tells."""
    turns, calls, page = bench.compare_dom0(2, 1)
    most = dom0.most_calls(2, 1)
    assert all(calls[service] <= number for service, number in most.items()), calls
    assert calls.keys() <= most.keys()
    assert turns
    assert 'qube_cpu_seconds_total{qube="qube1"}' in page


def test_the_status_page_of_a_large_machine_is_small() -> None:
    """Under 500 kB, with pictures that are as long as can be."""
    seen = looks.sight()
    page = views.front(seen, finish(views.make(seen)), Filter(), ())
    assert len(page.encode()) < 500_000
    assert page.count("<tbody id=") == looks.QUBES


def test_the_texts_are_good_and_different() -> None:
    """A benchmark of texts that are refused, or always the same, would say nothing."""
    chance = random.Random(1)
    for exporter in bench.EXPORTERS:
        bodies = texts.recorded(exporter)
        changed = texts.all_values_new(bodies, chance)
        for body in (*bodies, *changed, texts.restarted(bodies[0], chance), texts.series_new(bodies[0], 1, chance)):
            reading = finish(reader(target("work", exporter)).read(body))
            assert (reading.lines_dropped, reading.samples) == (0, texts.samples(body))
        same = [old == new for old, new in zip(bodies[0].split(b"\n"), changed[0].split(b"\n"), strict=True)]
        assert sum(same) < 0.9 * len(same)
    assert texts.samples(texts.large(1000, chance)) == 1000
