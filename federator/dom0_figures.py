# SPDX-License-Identifier: GPL-3.0-or-later
"""
dom0's figures of the machine's qubes and pools, as families of /metrics.

Owns their names and help texts, what of dom0's facts becomes which sample, and when a sample is too old. Must not know
how dom0 is asked, nor what time it is: the caller says.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

from federator.dom0_replies import Numbers
from federator.model import Family, MetricType, Reading
from federator.text.escaping import labels_text

# A value is gone that was not told again in so many of its intervals.
VALID_INTERVALS = 3
# qubesd tells its statistics so often, in seconds (stats_interval).
STATS_SECONDS = 3.0
# So often dom0 may say that a qube used less CPU than before until it counts as started anew. One such value between
# others is an error of dom0, and would look like hours of work at once to `rate`.
STEPS_BACK = 3

FAMILIES: Mapping[str, tuple[MetricType, str]] = {
    "qube_running": ("gauge", "Whether the qube runs, as dom0 says."),
    "qube_state": ("gauge", "1 for the state that the qube is in, as dom0 says."),
    "qube_info": ("gauge", "What dom0 knows of the qube: class, label, template, NetVM."),
    "qube_cpu_seconds_total": ("counter", "CPU time of the qube since it was started, with that of its stub domain."),
    "qube_vcpus": ("gauge", "Virtual CPUs that are online."),
    "qube_memory_assigned_bytes": ("gauge", "Memory that the hypervisor gave to the qube."),
    "qube_memory_usable_bytes": ("gauge", "Memory that the qube itself may use."),
    "qube_memory_used_bytes": ("gauge", "Memory that is in use, as the qube alleges."),
    "qube_swap_used_bytes": ("gauge", "Swap that is in use, as the qube alleges."),
    "qube_volume_size_bytes": ("gauge", "Size of the qube's volume."),
    "qube_volume_usage_bytes": ("gauge", "What the qube's volume takes of its pool."),
    "qube_updates_available": ("gauge", "Whether updates of the qube wait."),
    "qube_os_eol_timestamp_seconds": ("gauge", "When the qube's distribution gets no more updates."),
    "qubes_pool_size_bytes": ("gauge", "Size of the storage pool."),
    "qubes_pool_usage_bytes": ("gauge", "What is used of the storage pool. A thin pool that is full loses data."),
    "qubes_pool_metadata_size_bytes": ("gauge", "Size of the thin pool's metadata."),
    "qubes_pool_metadata_usage_bytes": ("gauge", "What is used of the thin pool's metadata. If full, data is lost."),
    "qubes_proxy_dom0_up": ("gauge", "Whether dom0 answered the last call of this kind."),
    "qubes_proxy_dom0_failure": ("gauge", "1 while dom0 does not answer calls of this kind, with the reason."),
}
# Keys of a vm-stats event, in KiB. Old releases have memory_kb alone.
_KIB = {"memory_assigned_total": "qube_memory_assigned_bytes", "swap_used": "qube_swap_used_bytes"}

Labels = tuple[tuple[str, str], ...]


class _Sample(NamedTuple):
    value: float
    until: float
    line: bytes


class Figures:
    """All samples of now. `qube_labels`: those that the configuration adds, by qube."""

    def __init__(self, qube_labels: Mapping[str, Labels]) -> None:
        self._qube_labels = qube_labels
        self._samples: dict[str, dict[Labels, _Sample]] = {name: {} for name in FAMILIES}
        self._steps_back: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._samples.values()))

    def relabel(self, qube_labels: Mapping[str, Labels]) -> None:
        """Other labels for qubes, from now on. What is known stays."""
        self._qube_labels = qube_labels
        for name, samples in self._samples.items():
            for labels, sample in samples.items():
                samples[labels] = sample._replace(line=self._line(name, labels, sample.value))

    def put(self, name: str, labels: Labels, value: float, now: float, interval: float) -> None:
        """A sample that is told again in `interval` seconds."""
        until = now + VALID_INTERVALS * interval
        self._samples[name][labels] = _Sample(value, until, self._line(name, labels, value))

    def drop(self, name: str, first: tuple[str, str]) -> None:
        """Forget the samples of a family that begin with this label."""
        for labels in [labels for labels in self._samples[name] if labels[0] == first]:
            del self._samples[name][labels]

    def forget(self, qubes: Collection[str]) -> None:
        """These are no more."""
        for samples in self._samples.values():
            for labels in [labels for labels in samples if _is_of(labels, qubes)]:
                del samples[labels]

    def reading(self, now: float, qubes: Collection[str] | None = None) -> Reading:
        """What is not too old; of these qubes alone, where they are given."""
        lines: dict[str, list[bytes]] = {}
        for name, samples in self._samples.items():
            for labels in [labels for labels, sample in samples.items() if sample.until < now]:
                del samples[labels]
            wanted = [one.line for labels, one in samples.items() if qubes is None or _is_of(labels, qubes)]
            if wanted:
                lines[name] = wanted
        return Reading(
            _families(tuple(lines)), [b"".join(one) for one in lines.values()], sum(map(len, lines.values()))
        )

    # -- what dom0 says -----------------------------------------------------------------------------------------

    def note_stats(self, qube: str, told: Numbers, now: float) -> None:
        """A vm-stats event. Old releases' keys do; each that is missing or odd costs its own sample only."""

        def put(name: str, value: float) -> None:
            self.put(name, (("qube", qube),), value, now, STATS_SECONDS)

        if "cpu_time" in told:
            put("qube_cpu_seconds_total", self._cpu_seconds(qube, told["cpu_time"] / 1000, now))
        if "online_vcpus" in told:
            put("qube_vcpus", told["online_vcpus"])
        for key, name in _KIB.items():
            if key in told:
                put(name, told[key] * 1024)
        usable = told.get("memory_assigned_usable", told.get("memory_kb"))
        if usable is not None:
            put("qube_memory_usable_bytes", usable * 1024)
        if "memory_with_swap_used" in told:
            put("qube_memory_used_bytes", max(0, told["memory_with_swap_used"] - told.get("swap_used", 0)) * 1024)

    def _cpu_seconds(self, qube: str, told: float, now: float) -> float:
        """A qube that starts anew begins near 0; other steps back are held back for a while."""
        before = self._samples["qube_cpu_seconds_total"].get((("qube", qube),))
        if before is None or before.until < now or told >= before.value or told < before.value / 2:
            self._steps_back.pop(qube, None)
            return told
        steps = self._steps_back[qube] = self._steps_back.get(qube, 0) + 1
        if steps >= STEPS_BACK:
            del self._steps_back[qube]
            return told
        return before.value

    def note_state(self, qube: str, state: str, now: float, interval: float) -> None:
        """What the qube does, by dom0's list."""
        self.drop("qube_state", ("qube", qube))
        self.put("qube_state", (("qube", qube), ("state", state)), 1, now, interval)
        self.put("qube_running", (("qube", qube),), int(state == "Running"), now, interval)

    def note_properties(self, qube: str, of_class: str, told: Mapping[str, str], now: float, interval: float) -> None:
        """What admin.vm.property.GetAll says. Its answer is asked for seldom, so it is valid for longer."""
        labels = (
            ("qube", qube),
            ("class", of_class),
            *((name, told.get(name, "")[:64]) for name in ("label", "template", "netvm")),
            ("provides_network", str(told.get("provides_network") == "True").lower()),
        )
        self.drop("qube_info", ("qube", qube))
        self.put("qube_info", labels, 1, now, interval)

    def note_volume(self, qube: str, volume: str, told: Numbers, now: float, interval: float) -> None:
        """What admin.vm.volume.Info says."""
        for key in ("size", "usage"):
            if key in told:
                self.put(f"qube_volume_{key}_bytes", (("qube", qube), ("volume", volume)), told[key], now, interval)

    def note_pool(self, pool: str, info: Numbers, details: Numbers, now: float, interval: float) -> None:
        """What admin.pool.Info and admin.pool.UsageDetails say: the details are those of a thin pool."""
        told = {**info, **{key: value for key, value in details.items() if key.startswith("metadata_")}}
        told |= {key.removeprefix("data_"): value for key, value in details.items() if key.startswith("data_")}
        for key in ("size", "usage", "metadata_size", "metadata_usage"):
            if key in told:
                self.put(f"qubes_pool_{key}_bytes", (("pool", pool),), told[key], now, interval)

    def note_updates(self, qube: str, told: bytes, now: float, interval: float) -> None:
        """The feature updates-available: `1`, or empty, or not set."""
        self.put("qube_updates_available", (("qube", qube),), int(told.strip() == b"1"), now, interval)

    def note_eol(self, qube: str, day: str, now: float, interval: float) -> None:
        """The feature os-eol: a day that there is, or nothing."""
        try:
            seconds = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
        except ValueError:
            return
        self.put("qube_os_eol_timestamp_seconds", (("qube", qube),), seconds, now, interval)

    def note_call(self, kind: str, reason: str | None, now: float, interval: float) -> None:
        """What came of a call of this kind: the reason why dom0 did not answer, or None."""
        self.put("qubes_proxy_dom0_up", (("call", kind),), int(reason is None), now, interval)
        self.drop("qubes_proxy_dom0_failure", ("call", kind))
        if reason is not None:
            self.put("qubes_proxy_dom0_failure", (("call", kind), ("reason", reason)), 1, now, interval)

    def _line(self, name: str, labels: Labels, value: float) -> bytes:
        (first, *rest) = labels
        own = self._qube_labels.get(first[1], ()) if first[0] == "qube" else ()
        taken = {label for label, _ in labels}
        pairs = [first, *(pair for pair in own if pair[0] not in taken), *rest]
        return f"{name}{{{labels_text(pairs)}}} {value!r}\n".encode()


def _is_of(labels: Labels, qubes: Collection[str]) -> bool:
    return labels[0][0] == "qube" and labels[0][1] in qubes


@cache
def _families(names: tuple[str, ...]) -> tuple[Family, ...]:
    """The same object for the same names: by that merge.Merger sees that nothing is new."""
    return tuple(Family(name, FAMILIES[name][0], FAMILIES[name][1].encode()) for name in names)
