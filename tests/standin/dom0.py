# SPDX-License-Identifier: GPL-3.0-or-later
"""
Stands for the programs of dom0 that README names, where there is no dom0. It is called by their names.

Owns what `qubesctl`, `qvm-run`, `rpm` and `sudoedit` do in one folder that is dom0, every template and every qube at
once. Must not know which packages, states and qubes there are.

    $SALT_CALL    the program of Salt          $EDITED   what a person writes into the file of sudoedit
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SALT, PILLAR = Path("/srv/salt"), Path("/srv/pillar/base")
FORMULA = Path("/srv/formulas/base/prometheus-qubes-proxy-formula")


def run(*words: str) -> None:
    """A program, which must go well."""
    if subprocess.run(words, check=False).returncode:
        sys.exit(f"{' '.join(words)} failed")


def salt(target: str, *words: str) -> None:
    """One qube applies its states. Qubes does it in a disposable, for all but dom0."""
    run(os.environ["SALT_CALL"], "--local", "--retcode-passthrough", "--log-level=warning", f"--id={target}", *words)


def top(what: str, name: str, *more: str) -> None:
    """Qubes makes one top file of all that are enabled; here there is room for one."""
    folder, source = (PILLAR, PILLAR) if more == ("pillar=True",) else (SALT, FORMULA)
    if what == "top.disable":
        (folder / "top.sls").unlink()
    elif (folder / "top.sls").exists():
        sys.exit(f"{folder}/top.sls is there already")
    else:
        directory, _, file = name.partition(".")
        shutil.copy(source / directory / f"{file or 'init'}.top", folder / "top.sls")


def qubesctl(*words: str) -> None:
    """top.enable, top.disable, state.apply, state.highstate."""
    targets = [name for word in words if word.startswith("--targets=") for name in word[10:].split(",")]
    skip = "--skip-dom0" in words
    command, *rest = [word for word in words if not word.startswith("--")]
    if command.startswith("top."):
        top(command, *rest)
        return
    for target in [*([] if skip else ["dom0"]), *targets]:
        salt(target, command, *rest)


def main() -> None:
    """The program whose name this one has."""
    name, *words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if name == "qubesctl":
        qubesctl(*words)
    elif name == "sudo":
        run(*words)
    elif name == "qvm-run":  # --pass-io QUBE COMMAND
        run("sh", "-c", words[2])
    elif name == "rpm":  # what it needs and its scripts are Fedora's
        run(
            "/usr/bin/rpm",
            *words,
            "--dbpath=/var/lib/rpm",
            "--nodeps",
            *(["--noscripts"] if words[0] in {"-U", "-e"} else []),
        )
    elif name == "sudoedit":
        Path(words[0]).write_text(os.environ["EDITED"], encoding="utf-8")
    else:
        sys.exit(f"{name}: not known here")


main()
