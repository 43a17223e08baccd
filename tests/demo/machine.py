# SPDX-License-Identifier: GPL-3.0-or-later
"""
What dom0 knows of the demo's machine: its qubes, how much each of them uses, and how full the pools are.

Owns these facts, and the files by which the stand-ins read them. Must not know the daemon.
"""

from pathlib import Path
from typing import NamedTuple

from tests.standin.qubes import Qubes

GIB = 1 << 30
# Name, size, what is used of it, and the same of a thin pool's metadata.
POOLS = f"""
vm-pool {400 * GIB} {352 * GIB} {4 * GIB} {GIB}
varlibqubes {40 * GIB} {11 * GIB}
"""
DEBIAN, FEDORA = "debian-12-xfce", "fedora-43-xfce"
FIREWALL = "sys-firewall"


class Facts(NamedTuple):
    """One qube. `load`: milliseconds of CPU in a second, MiB of memory, virtual CPUs. `used`: GiB of its volumes."""

    label: str
    load: tuple[int, int, int] | None  # None: it is halted
    template: str = DEBIAN
    netvm: str = FIREWALL
    of_class: str = "AppVM"
    used: float = 1.0
    features: str = ""


QUBES = {
    "work": Facts("blue", (310, 2400, 2), used=14.5),
    "personal": Facts("yellow", (90, 1600, 2), FEDORA, used=22),
    "sys-usb": Facts("red", (12, 350, 1), FEDORA, netvm="", of_class="DispVM", used=0.2),
    "media": Facts("purple", (1700, 4000, 4), template="", of_class="StandaloneVM", used=61),
    "sys-print": Facts("orange", (25, 500, 1), used=0.4),
    "mail": Facts("green", (60, 1200, 2), used=6),
    "banking": Facts("green", (35, 900, 2), FEDORA, used=1.5),
    "vault": Facts("black", None, netvm="", used=0.3),
    "sys-net": Facts("red", (45, 400, 2), netvm="", used=0.3),
    FIREWALL: Facts("green", (20, 450, 2), netvm="sys-net", used=0.2),
    DEBIAN: Facts("black", None, "", "", "TemplateVM", 7.5, "updates-available=1\nos-eol=2028-06-30\n"),
    FEDORA: Facts("black", None, "", "", "TemplateVM", 9, "os-eol=2026-12-09\n"),
}
DOM0_LOAD = (140, 4096, 4)


def make_machine(folder: Path, service: Path, refused: str) -> Qubes:
    """What the stand-ins for qrexec and qubesd read. dom0 refuses scrapes of the qube `refused`."""
    machine = Qubes(folder, service)
    machine.add_dom0()
    write(machine, "dom0", pools=POOLS, seconds="1", load=" ".join(map(str, DOM0_LOAD)))
    for name, facts in QUBES.items():
        state, policy = "Running" if facts.load else "Halted", "deny" if name == refused else "allow autostart=no"
        machine.add(name, state=state, policy=policy)
        write(
            machine,
            name,
            label=facts.label,
            template=facts.template,
            netvm=facts.netvm,
            provides_network=str(name in {"sys-net", FIREWALL}),
            load=" ".join(map(str, facts.load or ())),
            features=facts.features,
            volumes=volumes(facts),
            **{"class": facts.of_class},
        )
    return machine


def volumes(facts: Facts) -> str:
    """Lines of NAME SIZE USAGE. What has no template has a root volume of its own, with most of what is used."""
    used = int(facts.used * GIB)
    root = 0 if facts.template else min(used * 7 // 8, 8 * GIB)
    private = used - root
    return f"root {20 * GIB} {root}\nprivate {max(2 * GIB, 2 * private)} {private}\n"


def write(machine: Qubes, name: str, **files: str) -> None:
    """The files of one qube."""
    for file, text in files.items():
        (machine.root / "qubes" / name / file).write_text(text, encoding="utf-8")
