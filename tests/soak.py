# SPDX-License-Identifier: GPL-3.0-or-later
"""
A day in the life, in minutes: thousands of scrapes while qubes come, go and fail in every way the stand-in knows.

`make soak` runs it for three minutes and prints what the daemon held before and after; test_soak.py does for some
seconds. Chances come from a seed, so that a failure can be had again.
"""

import random
import re
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import SERVICE, recording
from tests.parts import Daemon, Exporter, eventually, toml
from tests.standin.qubes import Qubes

NAMES = ("work", "personal", "vault", "untrusted", "sys-usb", "mail")
STATES = ("Running", "Running", "Running", "Halted", "Paused")
FAULTS = (None, None, None, None, "crash 3", "garbage", "silent", "drip 5", "half-body 300", "flood-stderr", "unsolicited 1", "ignore-term")  # fmt: skip
POLICIES = ("allow autostart=no", "allow autostart=no", "allow autostart=no", "deny")
# Scrapes between two changes: of most qubes most scrapes are good ones.
CALM = 25


@dataclass(frozen=True, slots=True)
class Held:
    """What the daemon holds at rest."""

    files: int
    processes: int
    threads: int
    kilobytes: int


def held(pid: int) -> Held:
    """What a process holds now."""
    folder = Path(f"/proc/{pid}")
    status = (folder / "status").read_text(encoding="utf-8")
    children = [(thread / "children").read_text(encoding="utf-8").split() for thread in (folder / "task").iterdir()]
    return Held(
        files=len(list((folder / "fd").iterdir())),
        processes=sum(map(len, children)),
        threads=int(re.findall(r"Threads:\s+(\d+)", status)[0]),
        kilobytes=int(re.findall(r"VmRSS:\s+(\d+)", status)[0]),
    )


def soak(folder: Path, *, seconds: float, seed: int = 1) -> tuple[Held, Held, Counter[str]]:
    """What the daemon held when all was well first, and last; and how often it was what, by reason."""
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    qubes = Qubes(folder / "machine", SERVICE)
    with ExitStack() as stack:
        exporters = {name: stack.enter_context(Exporter(recording("process"))) for name in NAMES}
        for name in NAMES:
            qubes.add(name, policy=POLICIES[0])
        config = toml(
            {name: {name: exporter.port} for name, exporter in exporters.items()},
            client=qubes.client,
            scrape='timeout = "600ms"\ntimeout_offset = "100ms"',
            qrexec='backoff_initial = "20ms"\nbackoff_max = "100ms"',
        )
        proxy = stack.enter_context(Daemon(folder, config, qubes.env))

        def all_well() -> bool:
            return len(re.findall(r"^qubes_proxy_exporter_up{.*} 1$", proxy.get().text, re.MULTILINE)) == len(NAMES)

        def at_rest() -> Held:
            eventually("all is well", all_well)
            eventually("no call is still being ended", lambda: held(proxy.process.pid).processes == len(NAMES))
            for _ in range(100):
                proxy.get()
            return held(proxy.process.pid)

        before = at_rest()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            seen["scrapes"] += 1
            page = proxy.get()
            assert page.status == 200
            seen.update(re.findall(r'^qubes_proxy_exporter_failure{.*reason="(\w+)"} 1$', page.text, re.MULTILINE))
            if seen["scrapes"] % CALM == 0:
                name = chance.choice(NAMES)
                qubes.set_state(name, chance.choice(STATES))
                qubes.set_fault(name, chance.choice(FAULTS))
                qubes.set_policy(name, chance.choice(POLICIES))
                exporters[name].body = chance.choice([recording("process", 3), recording("node"), b"<html>\n", b"cut"])
        for name in NAMES:
            qubes.set_state(name, "Running")
            qubes.set_fault(name, None)
            qubes.set_policy(name, POLICIES[0])
            exporters[name].body = recording("process")
        after = at_rest()
        seen["bugs"] = proxy.log.count("Traceback")
    eventually("no process is left", lambda: not qubes.left_behind())
    return before, after, seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        first, last, counted = soak(Path(made), seconds=float(sys.argv[1]))
    print(f"before: {first}\nafter:  {last}\n{dict(counted)}")
