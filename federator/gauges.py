# SPDX-License-Identifier: GPL-3.0-or-later
"""
The gauges of our own on /metrics: every name, its help text, and its value in one scrape.

Owns the qubes_proxy_* families. Must not know how the outcomes that they tell of came about.
"""

import platform
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from federator import __version__
from federator.model import Family, Outcome, QubeOutcome, Reading, Reload
from federator.text.escaping import labels_text

# name -> help. All of them are gauges: they tell of this scrape, and of nothing before it.
HELPS = {
    "qubes_proxy_build_info": "The version of the proxy, and of the Python it runs on.",
    "qubes_proxy_config_last_reload_success_timestamp_seconds": "When the configuration in use was read.",
    "qubes_proxy_config_last_reload_successful": "Whether the last attempt to read the configuration succeeded.",
    "qubes_proxy_exporter_failure": "1 while the exporter is down, with the reason.",
    "qubes_proxy_exporter_scrape_body_size_bytes": "Size of the exporter's text.",
    "qubes_proxy_exporter_scrape_duration_seconds": "How long the exporter took to answer.",
    "qubes_proxy_exporter_scrape_lines_dropped": "Lines of the exporter's text that could not be passed on.",
    "qubes_proxy_exporter_scrape_samples_scraped": "Samples of the exporter that were merged.",
    "qubes_proxy_exporter_up": "Whether the exporter's text was read and merged.",
    "qubes_proxy_qube_scrape_duration_seconds": "From asking to the last answer, opening the channel included.",
    "qubes_proxy_qube_up": "Whether the qube's service answered in this scrape.",
    "qubes_proxy_scrape_timeout_seconds": "How long this scrape was allowed to take.",
}


def gauges(qubes: Sequence[QubeOutcome], allowed: float, reload: Reload) -> Reading:
    """One scrape's outcomes, and the time that it was allowed, as families of our own, to be merged with the others."""
    lines: dict[str, list[str]] = {name: [] for name in HELPS}

    def add(name: str, labels: Iterable[tuple[str, str]], value: float) -> None:
        pairs = labels_text(labels)
        lines[name].append(f"{name}{{{pairs}}} {value!r}\n" if pairs else f"{name} {value!r}\n")

    build = (("version", __version__), ("pythonversion", platform.python_version()))
    add("qubes_proxy_build_info", build, 1)
    add("qubes_proxy_config_last_reload_successful", (), int(reload.successful))
    add("qubes_proxy_config_last_reload_success_timestamp_seconds", (), reload.at)
    add("qubes_proxy_scrape_timeout_seconds", (), round(allowed, 6))
    for qube in qubes:
        labels = (("qube", qube.qube.name), *qube.qube.labels)
        add("qubes_proxy_qube_up", labels, int(qube.up))
        add("qubes_proxy_qube_scrape_duration_seconds", labels, round(qube.seconds, 6))
        for outcome in qube.outcomes:
            _add_exporter(add, outcome)
    names = tuple(name for name in HELPS if lines[name])
    return Reading(
        families=_families(names),
        blocks=["".join(lines[name]).encode() for name in names],
        samples=sum(map(len, lines.values())),
    )


@cache
def _families(names: tuple[str, ...]) -> tuple[Family, ...]:
    """The same object for the same names: by that merge.Merger sees that nothing is new."""
    return tuple(Family(name, "gauge", HELPS[name].encode()) for name in names)


def _add_exporter(add: Callable[[str, Iterable[tuple[str, str]], float], None], outcome: Outcome) -> None:
    target, reading, error = outcome.target, outcome.reading, outcome.error
    labels = (("qube", target.qube), ("exporter", target.exporter.name), *target.labels)
    add("qubes_proxy_exporter_up", labels, int(reading is not None))
    add("qubes_proxy_exporter_scrape_duration_seconds", labels, round(outcome.seconds, 6))
    add("qubes_proxy_exporter_scrape_samples_scraped", labels, outcome.samples)
    add("qubes_proxy_exporter_scrape_body_size_bytes", labels, outcome.body_size)
    add("qubes_proxy_exporter_scrape_lines_dropped", labels, reading.lines_dropped if reading else 0)
    if error is not None:
        add("qubes_proxy_exporter_failure", (*labels, ("reason", error.reason)), 1)
