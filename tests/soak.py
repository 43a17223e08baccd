# SPDX-License-Identifier: GPL-3.0-or-later
"""
A day in the life, in minutes: thousands of scrapes while qubes come, go and fail in every way the stand-in knows.

`make soak` runs it for five minutes and prints what the daemon held before and after; test_soak.py does through
each trouble once. Chances come from a seed, so that a failure can be had again.
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

POLICY = "allow autostart=no"
NAMES = ("work", "personal", "vault", "untrusted", "sys-usb", "mail")
# What happens to one qube at a time: a state or a policy, or one of the stand-in's faults, or what its exporter says.
STATES = ("Halted", "Paused")
FAULTS = ("crash 3", "crash 116", "garbage", "silent", "drip 5", "half-body 300", "flood-stderr", "unsolicited 1", "ignore-term", "slow-start 1", "vchan-timeout")  # fmt: skip
TEXTS = (b"<html>\n", b"cut", recording("node"), b"\n" * 250_000)
TROUBLES: list[str | bytes] = [*STATES, *FAULTS, *TEXTS, "deny"]
# Scrapes between two changes.
CALM = 5
# How a text is scraped that comes at once, so that a busy machine has the time to read what is wrong with it.
PATIENTLY = {"X_Prometheus_Scrape_Timeout_Seconds": "10"}


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


def connections(port: int) -> int:
    """How many TCP connections the server on this port has not closed yet: ESTABLISHED or CLOSE_WAIT, in proc(5)'s words."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = [line.split() for line in lines]
    return sum(local.endswith(f":{port:04X}") and state in ("01", "08") for _, local, _, state, *_ in fields)


def afflict(qubes: Qubes, exporter: Exporter, name: str, trouble: str | bytes) -> None:
    """Let this happen to a qube."""
    if isinstance(trouble, bytes):
        exporter.body = trouble
    elif trouble == "deny":
        qubes.set_policy(name, trouble)
    elif trouble not in STATES:
        qubes.set_fault(name, trouble)
    qubes.set_state(name, str(trouble) if trouble in STATES else "Running")


def heal(qubes: Qubes, exporter: Exporter, name: str) -> None:
    """All is well with a qube again."""
    exporter.body = recording("process")
    qubes.set_fault(name, None)
    qubes.set_policy(name, POLICY)
    qubes.set_state(name, "Running")


def soak(folder: Path, *, seconds: float, seed: int = 1) -> tuple[Held, Held, Counter[str]]:
    """
    What the daemon held when all was well first, and last; and how often targets were down, by reason.

    Every trouble happens at least once, however few the seconds.
    """
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    qubes = Qubes(folder / "machine", SERVICE)
    with ExitStack() as stack:
        exporters = {name: stack.enter_context(Exporter(recording("process"))) for name in NAMES}
        for name in NAMES:
            qubes.add(name, policy=POLICY)
        config = toml(
            {name: {name: exporter.port} for name, exporter in exporters.items()},
            client=qubes.client,
            scrape='timeout = "300ms"\ntimeout_offset = "100ms"\nmin_interval = "0s"',
            qrexec='backoff_initial = "20ms"\nbackoff_max = "100ms"',
        )
        proxy = stack.enter_context(Daemon(folder, config, qubes.env))

        def all_well() -> bool:
            return len(re.findall(r"^qubes_proxy_exporter_up{.*} 1$", proxy.get().text, re.MULTILINE)) == len(NAMES)

        def at_rest() -> Held:
            eventually("all is well", all_well)
            eventually("no call is still being ended", lambda: held(proxy.process.pid).processes == len(NAMES))
            for _ in range(30):
                proxy.get()
            eventually("the last scrape's connection is closed", lambda: connections(proxy.port) == 0)
            return held(proxy.process.pid)

        def scrape(times: int, **headers: str) -> None:
            for _ in range(times):
                seen["scrapes"] += 1
                page = proxy.get(**headers)
                assert page.status == 200
                seen.update(re.findall(r'^qubes_proxy_exporter_failure{.*reason="(\w+)"} 1$', page.text, re.MULTILINE))

        before = at_rest()
        end = time.monotonic() + seconds
        while seen["scrapes"] == 0 or time.monotonic() < end:
            for trouble in chance.sample(TROUBLES, len(TROUBLES)):
                name = chance.choice(NAMES)
                # Its call ends, or it would go on as it is: what goes wrong, goes wrong with the next one.
                qubes.set_state(name, "Halted")
                scrape(1)
                afflict(qubes, exporters[name], name, trouble)
                scrape(CALM, **(PATIENTLY if isinstance(trouble, bytes) else {}))
                heal(qubes, exporters[name], name)
                scrape(CALM)
        after = at_rest()
        seen["bugs"] = proxy.log.count("Traceback")
    eventually("no process is left", lambda: not qubes.left_behind())
    return before, after, seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        first, last, counted = soak(Path(made), seconds=float(sys.argv[1]))
    print(f"before: {first}\nafter:  {last}\n{dict(counted)}")
