# SPDX-License-Identifier: GPL-3.0-or-later
"""
A fresh Debian 12 in a folder, in which tests install our packages and apply our states.

Owns how it is made and entered. Must not know what is tested in it.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

# What our packages need: Debian's own libraries and Prometheus.
INCLUDED = ("python3-aiohttp", "python3-prometheus-client", "python3-tomli", "prometheus", "ca-certificates", "rpm")
# Debian's packages start no services in a root with this file.
POLICY_RC = "#!/bin/sh\nexit 101\n"
# A process id namespace of its own: nothing that a package starts outlives the command.
ENTER = """
folder=$1 venv=$2; shift 2
[ -z "$venv" ] || { mkdir -p "$folder$venv" && mount --bind "$venv" "$folder$venv"; }
exec chroot "$folder" "$@"
"""


class Root:
    """One such folder. `venv` may be a folder of this machine that its programs see at the same path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv: Path | None = None

    def run(self, *words: str | Path, env: Mapping[str, str] | None = None, network: bool = True) -> str:
        """Run a program in it, as root, to its end, which must be a good one; what it printed."""
        entering = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={self.folder}/proc"]
        entering += [] if network else ["--net"]
        done = subprocess.run(
            [*entering, "sh", "-c", ENTER, "sh", self.folder, self.venv or "", *words],
            env={
                "PATH": os.defpath + ":/usr/sbin:/sbin",
                "HOME": "/root",
                "LC_ALL": "C.UTF-8",
                **FRONTEND,
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def files(self) -> set[str]:
        """Every file and link that is there to stay: none of apt's and dpkg's own, and no logs."""
        passing = ("var/lib/apt/", "var/lib/dpkg/", "var/lib/rpm/", "var/cache/", "var/log/", "proc/", "tmp/", "run/")
        found = {
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_symlink() or not path.is_dir()
        }
        return {path for path in found if not path.startswith(passing)}


FRONTEND = {"DEBIAN_FRONTEND": "noninteractive"}


def made(folder: Path) -> Root:
    """A new one, from the mirror of this machine. Skips where there is none, or no mmdebstrap."""
    # Not `debian_program`: CI has mmdebstrap where it runs these tests, and not in the Debian that it makes with it.
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("only root can make a Debian in a folder, with mmdebstrap (Debian: apt install mmdebstrap)")
    words = ["mmdebstrap", "--quiet", "--variant=apt", "--skip=cleanup/apt/lists", f"--include={','.join(INCLUDED)}"]
    subprocess.run([*words, "bookworm", folder], check=True)
    for name in ("resolv.conf", "hosts"):
        shutil.copy(f"/etc/{name}", folder / "etc" / name)
    (folder / "usr/sbin/policy-rc.d").write_text(POLICY_RC, encoding="utf-8")
    (folder / "usr/sbin/policy-rc.d").chmod(0o755)
    return Root(folder)
