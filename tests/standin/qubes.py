# SPDX-License-Identifier: GPL-3.0-or-later
"""
A Qubes OS machine for tests: the folder that the stand-in `qrexec-client-vm` reads, written from the outside.

Owns the folder's layout, and that files are replaced whole. Must not know who calls, nor why.
"""

import os
from pathlib import Path

CLIENT = Path(__file__).with_name("qrexec-client-vm")
SERVICE = "ruddo.PrometheusProxy"
# What the stand-in for qubesd answers.
ADMIN = CLIENT.with_name("admin")
ADMIN_CALLS = (
    "admin.vm.List",
    "admin.vm.Stats",
    "admin.vm.property.GetAll",
    "admin.vm.property.Get",
    "admin.vm.volume.Info",
    "admin.vm.feature.Get",
    "admin.pool.List",
    "admin.pool.Info",
    "admin.pool.UsageDetails",
)


class Qubes:
    """The qubes of one machine, as dom0 knows them. `service` is what they have installed."""

    def __init__(self, root: Path, service: Path, source: str = "sys-net") -> None:
        self.root = root
        self.client = CLIENT
        self.source = source
        self.service = service
        (root / "qubes").mkdir(parents=True)

    @property
    def env(self) -> dict[str, str]:
        """What the stand-in finds the machine by, and the qube that calls."""
        return {"STANDIN_QUBES": str(self.root), "STANDIN_SOURCE": self.source}

    def add(self, name: str, *, state: str = "Running", policy: str = "allow", install: bool = True) -> None:
        """A qube, with the service in it or without."""
        services = self.root / "qubes" / name / "services"
        services.mkdir(parents=True)
        if install:
            (services / SERVICE).symlink_to(self.service)
        self.set_state(name, state)
        self.set_policy(name, policy)

    def add_dom0(self) -> None:
        """dom0, which answers all of the Admin API that is asked."""
        self.add("dom0", install=False)
        for call in ADMIN_CALLS:
            (self.root / "qubes" / "dom0" / "services" / call).symlink_to(ADMIN)

    def set_service(self, text: str) -> None:
        """What qubes that are added from now on have installed: a script."""
        self.service = self.root / "service"
        self.service.write_text(text, encoding="utf-8")
        self.service.chmod(0o755)

    def service_of(self, name: str) -> Path:
        """The qube's service, to remove it or to take its permissions."""
        return self.root / "qubes" / name / "services" / SERVICE

    def set_state(self, name: str, state: str) -> None:
        """Running, Paused, Halting, Halted."""
        self._write(name, "state", state)

    def set_policy(self, name: str, policy: str) -> None:
        """What dom0 says to calls: allow, deny, `allow autostart=no`."""
        self._write(name, "policy", policy)

    def set_fault(self, name: str, fault: str | None) -> None:
        """What goes wrong in the next calls; see FAULTS in the stand-in. None: all is well again."""
        self._write(name, "fault", fault or "")

    def state(self, name: str) -> str:
        """Its state; a call may have started it."""
        return (self.root / "qubes" / name / "state").read_text(encoding="utf-8").strip()

    def calls(self, name: str | None = None) -> list[tuple[str, str, str]]:
        """Every call that reached dom0, to one qube or to all: target, service, what dom0 decided."""
        log = self.root / "calls.log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        calls = [(target, service, decision) for target, service, decision in map(str.split, lines)]
        return [call for call in calls if name in (None, call[0])]

    def left_behind(self) -> list[str]:
        """The command lines of processes of this machine that still run: clients by environment, services by path."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and int(folder.name) != os.getpid():
                try:
                    words = (folder / "cmdline").read_bytes()
                    environment = (folder / "environ").read_bytes()
                except OSError:
                    continue
                if f"{self.root}/".encode() in words or f"STANDIN_QUBES={self.root}\0".encode() in environment:
                    found.append(words.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def _write(self, name: str, file: str, text: str) -> None:
        path = self.root / "qubes" / name / file
        new = path.with_suffix(".new")
        new.write_text(f"{text}\n", encoding="utf-8")
        new.replace(path)
