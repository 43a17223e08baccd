# SPDX-License-Identifier: GPL-3.0-or-later
"""
dom0's figures of the machine's qubes and pools, as families of /metrics.

Owns their names and help texts, what of dom0's facts becomes which sample, and when a sample is too old. Must not know
how dom0 is asked, nor what time it is: the caller says.
"""

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import NamedTuple

from federator.dom0_replies import INFO, MAX_QUBES, Numbers
from federator.model import Family, MetricType, Reading
from federator.targets import REMOTE
from federator.text.escaping import labels_text

# A value is gone that was not told again in so many of its intervals.
VALID_INTERVALS = 3
# qubesd tells its statistics so often, in seconds (stats_interval).
STATS_SECONDS = 3.0
# So often in a row dom0 has to say that a qube used less CPU than before until it counts as started anew. One such
# value between others is an error of dom0, and would look like hours of work at once to `rate`.
STEPS_BACK = 3
# The states that qubesd knows (QubesOS/qubes-core-admin, qubes/vm/qubesvm.py); there may be others one day.
STATES = ("Halted", "Transient", "Running", "Paused", "Suspended", "Halting", "Dying", "Crashed", "NA")
# What the value of such a property may be to become the value of a label: a name of anything in Qubes.
_NAME = re.compile(r"[a-zA-Z0-9_.-]{0,64}")

FAMILIES: Mapping[str, tuple[MetricType, str]] = {
    "qube_running": ("gauge", "Whether the qube runs, as dom0 says."),
    "qube_state": ("gauge", "1 for the state that the qube is in, as dom0 says, and 0 for the others."),
    "qube_last_seen_running_timestamp_seconds": (
        "gauge",
        "When dom0 last said that the qube runs; absent if it has not since this daemon was started.",
    ),
    "qube_info": ("gauge", "What dom0 knows of the qube: class, label, template, NetVM."),
    "qube_cpu_seconds_total": ("counter", "CPU time of the qube since it was started."),
    "qube_stubdomain_cpu_seconds_total": (
        "counter",
        "CPU time of the qube's stub domain, where dom0 tells it apart; some releases of Qubes tell it wrongly.",
    ),
    "qube_vcpus": ("gauge", "Virtual CPUs that are online."),
    "qube_memory_assigned_bytes": ("gauge", "Memory that the hypervisor gave to the qube."),
    "qube_memory_usable_bytes": ("gauge", "Memory that the qube itself may use."),
    "qube_memory_used_bytes": (
        "gauge",
        "Memory that is in use, as the qube alleges; with its swap where it does not tell that apart.",
    ),
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
# Keys of a vm-stats event: in milliseconds, and in KiB. Old releases have memory_kb alone.
_CPU = {"cpu_time": "qube_cpu_seconds_total", "cpu_time_internal": "qube_stubdomain_cpu_seconds_total"}
_KIB = {"memory_assigned_total": "qube_memory_assigned_bytes", "swap_used": "qube_swap_used_bytes"}

Label = tuple[str, str]
Labels = tuple[Label, ...]


class _Sample(NamedTuple):
    value: float
    until: float
    line: bytes


class Figures:
    """All samples of now. `qube_labels`: those that the configuration adds, by qube."""

    def __init__(self, qube_labels: Mapping[str, Labels]) -> None:
        self._qube_labels = qube_labels
        # By family, and by the first label, which says what a sample is about.
        self._samples: dict[str, dict[Label, dict[Labels, _Sample]]] = {name: {} for name in FAMILIES}
        self._steps_back: dict[tuple[str, str], int] = {}
        self._seen_running: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(len(samples) for abouts in self._samples.values() for samples in abouts.values())

    def relabel(self, qube_labels: Mapping[str, Labels]) -> None:
        """Other labels for qubes, from now on. What is known stays."""
        if qube_labels == self._qube_labels:
            return
        self._qube_labels = qube_labels
        for name, abouts in self._samples.items():
            for about, samples in abouts.items():
                for rest, sample in samples.items():
                    samples[rest] = sample._replace(line=self._line(name, about, rest, sample.value))

    def put(self, name: str, about: Label, value: float, now: float, interval: float, *rest: Label) -> None:
        """A sample that is told again in `interval` seconds, with `rest` as its other labels."""
        abouts = self._samples[name]
        if about not in abouts and len(abouts) > MAX_QUBES:  # and dom0
            return
        samples = abouts.setdefault(about, {})
        before = samples.get(rest)
        line = before.line if before and before.value == value else self._line(name, about, rest, value)
        samples[rest] = _Sample(value, now + VALID_INTERVALS * interval, line)

    def knows(self, name: str, about: Label) -> bool:
        """Is there a sample of a family that is about this?"""
        return about in self._samples[name]

    def knows_qube(self, untrusted_name: str) -> bool:
        """Is there any sample about a qube?"""
        return any(("qube", untrusted_name) in abouts for abouts in self._samples.values())

    def drop(self, name: str, about: Label) -> None:
        """Forget the samples of a family that are about this."""
        self._samples[name].pop(about, None)

    def forget(self, qubes: Collection[str]) -> None:
        """These are no more."""
        for qube in qubes:
            self._seen_running.pop(qube, None)
            for name in _CPU.values():
                self._steps_back.pop((name, qube), None)
            for name in FAMILIES:
                self.drop(name, ("qube", qube))

    def forget_states(self, qubes: Collection[str]) -> None:
        """These do not run any more. Whether they are halted, paused or removed is not known."""
        for qube in qubes:
            for name in ("qube_running", "qube_state"):
                self.drop(name, ("qube", qube))

    def clear(self) -> None:
        """Forget everything."""
        self._steps_back.clear()
        self._seen_running.clear()
        for abouts in self._samples.values():
            abouts.clear()

    def reading(self, now: float, qubes: Collection[str] | None = None) -> Reading:
        """What is not too old; of these qubes alone, where they are given."""
        lines: dict[str, list[bytes]] = {}
        for name, abouts in self._samples.items():
            found: list[bytes] = []
            for about, samples in list(abouts.items()):
                for rest in [rest for rest, sample in samples.items() if sample.until < now]:
                    del samples[rest]
                if not samples:
                    del abouts[about]
                if qubes is None or (about[0] == "qube" and about[1] in qubes):
                    found += [sample.line for sample in samples.values()]
            if found:
                lines[name] = found
        return Reading(
            _families(tuple(lines)), [b"".join(one) for one in lines.values()], sum(map(len, lines.values()))
        )

    # -- what dom0 says -----------------------------------------------------------------------------------------

    def note_stats(self, qube: str, told: Numbers, now: float, wall: float) -> None:
        """A vm-stats event. Old releases' keys do; each that is missing or odd costs its own sample only."""

        def put(name: str, value: float) -> None:
            self.put(name, ("qube", qube), value, now, STATS_SECONDS)

        for key, name in _CPU.items():
            if key in told:
                put(name, self._cpu_seconds(name, qube, told[key] / 1000, now))
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
        if qube in self._seen_running:
            self._seen_running[qube] = wall

    def _cpu_seconds(self, name: str, qube: str, told: float, now: float) -> float:
        """A step back is held back for a while, as a qube that was started anew takes many."""
        before = self._samples[name].get(("qube", qube), {}).get(())
        if before is None or before.until < now or told >= before.value:
            self._steps_back.pop((name, qube), None)
            return told
        steps = self._steps_back[name, qube] = self._steps_back.get((name, qube), 0) + 1
        if steps >= STEPS_BACK:
            del self._steps_back[name, qube]
            return told
        return before.value

    def note_state(self, qube: str, state: str, now: float, interval: float, wall: float) -> None:
        """What the qube does, by dom0's list. `wall`: the time of day, in seconds since 1970."""
        if state == REMOTE:  # dom0 does not know
            return
        about = ("qube", qube)
        if any(label[1] not in STATES for (label,) in self._samples["qube_state"].get(about, ())):
            self.drop("qube_state", about)
        for one in STATES if state in STATES else (*STATES, state):
            self.put("qube_state", about, int(one == state), now, interval, ("state", one))
        self.put("qube_running", about, int(state == "Running"), now, interval)
        if state == "Running":
            self._seen_running[qube] = wall
        if qube in self._seen_running:
            seen = self._seen_running[qube]
            self.put("qube_last_seen_running_timestamp_seconds", about, seen, now, interval)

    def note_properties(self, qube: str, of_class: str, told: Mapping[str, str], now: float, interval: float) -> None:
        """What is known of the properties INFO. They are asked for seldom, so they are valid for longer."""
        values = {name: value if _NAME.fullmatch(value := told.get(name, "")) else "" for name in INFO}
        values["provides_network"] = values["provides_network"].lower()
        self.drop("qube_info", ("qube", qube))
        self.put("qube_info", ("qube", qube), 1, now, interval, ("class", of_class), *values.items())

    def note_volume(self, qube: str, volume: str, told: Numbers, now: float, interval: float) -> None:
        """What admin.vm.volume.Info says."""
        for key in ("size", "usage"):
            if key in told:
                self.put(f"qube_volume_{key}_bytes", ("qube", qube), told[key], now, interval, ("volume", volume))

    def note_pool(self, pool: str, info: Numbers, details: Numbers, now: float, interval: float) -> None:
        """What admin.pool.Info and admin.pool.UsageDetails say: the details are those of a thin pool."""
        told = {**info, **{key: value for key, value in details.items() if key.startswith("metadata_")}}
        told |= {key.removeprefix("data_"): value for key, value in details.items() if key.startswith("data_")}
        for part in ("", "metadata_"):
            if told.get(f"{part}size") == 0:  # it has no limit, so it is never full
                continue
            for key in (f"{part}size", f"{part}usage"):
                if key in told:
                    self.put(f"qubes_pool_{key}_bytes", ("pool", pool), told[key], now, interval)

    def note_updates(self, qube: str, told: bytes, now: float, interval: float) -> None:
        """The feature updates-available: `1`, or empty, or not set."""
        self.put("qube_updates_available", ("qube", qube), int(told.strip() == b"1"), now, interval)

    def note_eol(self, qube: str, day: str, now: float, interval: float) -> None:
        """The feature os-eol: a day that there is, or nothing."""
        try:
            seconds = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
        except ValueError:
            return
        self.put("qube_os_eol_timestamp_seconds", ("qube", qube), seconds, now, interval)

    def note_call(self, kind: str, reason: str | None, now: float, interval: float) -> None:
        """What came of a call of this kind: the reason why dom0 did not answer, or None."""
        about = ("call", kind)
        self.put("qubes_proxy_dom0_up", about, int(reason is None), now, interval)
        self.drop("qubes_proxy_dom0_failure", about)
        if reason is not None:
            self.put("qubes_proxy_dom0_failure", about, 1, now, interval, ("reason", reason))

    def forget_call(self, kind: str) -> None:
        """It is not made any more."""
        self.drop("qubes_proxy_dom0_up", ("call", kind))
        self.drop("qubes_proxy_dom0_failure", ("call", kind))

    def _line(self, name: str, about: Label, rest: Labels, value: float) -> bytes:
        own = self._qube_labels.get(about[1], ()) if about[0] == "qube" else ()
        taken = {about[0], *(label for label, _ in rest)}
        pairs = [about, *(pair for pair in own if pair[0] not in taken), *rest]
        return f"{name}{{{labels_text(pairs)}}} {value!r}\n".encode()


@cache
def _families(names: tuple[str, ...]) -> tuple[Family, ...]:
    """The same object for the same names: by that merge.Merger sees that nothing is new."""
    return tuple(Family(name, FAMILIES[name][0], FAMILIES[name][1].encode()) for name in names)
