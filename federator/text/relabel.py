# SPDX-License-Identifier: GPL-3.0-or-later
"""
What a target's series are called on the page: our labels in front, and nothing that could be taken for ours.

Owns the labels that the daemon adds, the names that are reserved, and which metrics the configuration drops. Must not
know lines or texts. As in Prometheus, what would collide with a name of ours gets `exported_` before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

from federator.model import Family, Target
from federator.text.escaping import labels_text
from federator.text.value import canonical

# Prometheus writes these itself: for each scrape (scrape/scrape.go, the last three with the feature
# extra-scrape-metrics), and for alerts. Other names with `scrape_` are exporters', such as the kubelet's scrape_error.
_RESERVED_NAMES = frozenset(
    {
        "up",
        "scrape_duration_seconds",
        "scrape_samples_scraped",
        "scrape_samples_post_metric_relabeling",
        "scrape_series_added",
        "scrape_timeout_seconds",
        "scrape_sample_limit",
        "scrape_body_size_bytes",
        "ALERTS",
        "ALERTS_FOR_STATE",
    }
)
_RESERVED_PREFIX = "qubes_proxy_"
# What dom0 says of qubes and pools: no qube may say that in its place.
_OF_DOM0 = frozenset(
    {
        *("qube_running", "qube_state", "qube_last_seen_running_timestamp_seconds", "qube_info"),
        *("qube_cpu_seconds_total", "qube_stubdomain_cpu_seconds_total", "qube_vcpus"),
        *("qube_memory_assigned_bytes", "qube_memory_usable_bytes", "qube_memory_used_bytes", "qube_swap_used_bytes"),
        *("qube_volume_size_bytes", "qube_volume_usage_bytes"),
        *("qube_updates_available", "qube_os_eol_timestamp_seconds"),
        *("qubes_pool_size_bytes", "qubes_pool_usage_bytes"),
        *("qubes_pool_metadata_size_bytes", "qubes_pool_metadata_usage_bytes"),
    }
)
_EXPORTED = "exported_"
# Prometheus 3 writes the numbers in these labels in its own way, if the type is histogram or summary. The type on the
# page depends on what other targets say; a series must not. So the numbers are written so here, whatever the type is.
_NUMBER_LABELS = frozenset({"le", "quantile"})


class PageName(NamedTuple):
    """Where the samples of one metric name stand on the page: in which family, and under which name."""

    family: Family
    name: bytes


# Metric name in the text -> what it is on the page, or None if the configuration drops it.
PageNames = dict[str, PageName | None]


class Relabeling:
    """The names and labels of one target's series on the page."""

    def __init__(self, target: Target) -> None:
        ours = {"qube": target.qube, "exporter": target.exporter.name, **dict(target.labels)}
        self.our_names = frozenset(ours)  # of labels
        self._our_labels = labels_text(ours.items()).encode()
        self._drop = target.exporter.drop

    def page_name(self, family: Family, name: str) -> PageName | None:
        """The name on the page of a metric that belongs to this family; None if the configuration drops it."""
        if any(pattern.fullmatch(name) for pattern in self._drop):
            return None
        # A histogram moves as a whole: `qubes_proxy` itself is not reserved, but its `qubes_proxy_count` is.
        parts = family.name + "_" if family.type in ("histogram", "summary") else name
        if is_reserved(family.name) or is_reserved(parts):
            return PageName(family._replace(name=_EXPORTED + family.name), (_EXPORTED + name).encode())
        return PageName(family, name.encode())

    def line_start(self, name: bytes, labels: bytes) -> bytes:
        """What stands before the value on the page. `labels` is what `page_labels` made of the target's labels."""
        return name + b"{" + self._our_labels + labels + b"} "

    def renamed(self, labels: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """The target's labels, sorted by name. One that has a name of ours gets another name."""
        names = {name for name, _ in labels}
        if self.our_names.isdisjoint(names):
            return labels
        result: list[tuple[str, str]] = []
        for untrusted_name, value in labels:
            name = untrusted_name
            if name in self.our_names:
                while name in self.our_names or name in names:
                    name = _EXPORTED + name
                names.add(name)
            result.append((name, value))
        return sorted(result)


def page_labels(labels: Sequence[tuple[str, str]]) -> bytes:
    """The target's labels as they stand on the page, after ours: `,name="value"` each."""
    if not _NUMBER_LABELS.isdisjoint([name for name, _ in labels]):
        labels = [(name, canonical(value) if name in _NUMBER_LABELS else value) for name, value in labels]
    text = labels_text(labels).encode()
    return b"," + text if text else b""


def is_reserved(name: str) -> bool:
    """Is this a name that only the daemon or Prometheus may use?"""
    return name in _RESERVED_NAMES or name in _OF_DOM0 or name.startswith(_RESERVED_PREFIX)
