# SPDX-License-Identifier: GPL-3.0-or-later
"""
Stands for the start of a qube where there is no systemd: runs the commands of units, until an address has an answer.

    boot.py ADDRESS WORD UNIT...      in a network of its own, which has nothing but loopback

Owns what of a unit is needed to run its command: ConditionPathExists, Environment, ExecStartPre, ExecStart. Prints the
answer of ADDRESS as soon as it contains WORD. Must not know what the units are.
"""

import fcntl
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_SECONDS = 120.0


def loopback_up() -> None:
    """SIOCSIFFLAGS with IFF_UP | IFF_RUNNING."""
    with socket.socket() as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x41))


def start(unit: Path) -> "subprocess.Popen[bytes]":
    """Run the command of a unit as its user."""
    lines = re.findall(r"^([A-Z]\w+)=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE)
    settings = dict(lines)
    if not Path(settings.get("ConditionPathExists", "/")).exists():
        sys.exit(f"{unit}: no {settings['ConditionPathExists']}")
    variables = dict(value.split("=", 1) for name, value in lines if name == "Environment")
    for name, value in lines:
        if name == "ExecStartPre":
            subprocess.run(value.lstrip("+").split(), check=True)
    words = (
        re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], settings["ExecStart"]).replace("$ARGS", "").split()
    )
    user = settings.get("User")
    return subprocess.Popen(words, user=user, group=user, extra_groups=[])


def main() -> None:
    """All units, and what there is then at the address."""
    address, word, *units = sys.argv[1:]
    loopback_up()
    started = [start(Path(unit)) for unit in units]
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if any(process.poll() is not None for process in started):
            sys.exit(f"one of {units} has ended")
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                text = answer.read().decode()
        except OSError:
            text = ""
        if word in text:
            print(text)
            break
        time.sleep(0.2)
    else:
        sys.exit(f"{address} did not say {word}: {text}")
    for process in started:
        process.terminate()


main()
