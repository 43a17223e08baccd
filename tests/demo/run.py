# SPDX-License-Identifier: GPL-3.0-or-later
"""
What `make run` runs: the demo's exporters, and the real daemon with conf/demo.toml, until Ctrl-C.

A stand-in for qrexec says that `vault` is halted, and refuses calls to `banking`. One for qubesd says what dom0 knows.

Where a port is in use, a copy of the configuration has a free one. Nothing stays behind: the exporters end with their
stdin, which this process holds, the daemon is told to stop, and the copy is deleted.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import tomli

from tests.demo import exporters
from tests.demo.machine import make_machine

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "conf" / "demo.toml"

WELCOME = """{url}/   <- open this in a browser: what is up, what is not, why, and what to do

Eight demo qubes are being served. Nobody has scraped yet, so the page is empty until you do, in another terminal:

    curl {url}/metrics                      all of them, merged
    curl '{url}/metrics?qube=work'          one qube
    curl -s {url}/metrics | grep _up        which exporters are up; sys-usb's sensor is down for 10 s now and then
    curl {url}/metrics/proxy                the proxy itself
    curl -s {url}/metrics | grep -E '^qubes?_(cpu|pool|updates)'     what dom0 knows, from the second scrape on

    {machine} {python} -m federator scrape --config.file={config}
                                            the same on the command line; in the place of scrape: check, policy, doctor

work and personal are up, media is slow, sys-print sends bad lines, mail's exporter does not run, banking is refused by
dom0, vault is halted.
In dom0's figures: media's CPU, vm-pool, which is 88 % full, and debian-12-xfce's waiting updates.

Ctrl-C ends it.
"""


def free_ports(wanted: dict[str, int]) -> dict[str, int]:
    """The wanted ports where they are free, else other free ones. All are held until the last one is found."""
    found: dict[str, int] = {}
    with ExitStack() as held:
        for name, port in wanted.items():
            sock = held.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                sock.bind(("127.0.0.1", 0))
            found[name] = sock.getsockname()[1]
    return found


def prepare(folder: Path) -> tuple[Path, int, dict[str, int]]:
    """The configuration (a copy, if a port is in use), the daemon's port, and the exporters' ports by kind."""
    text = DEMO.read_text(encoding="utf-8")
    demo = tomli.loads(text)
    wanted = {name: table["port"] if isinstance(table, dict) else table for name, table in demo["exporters"].items()}
    wanted["web"] = int(demo["web"]["listen_addresses"][0].rpartition(":")[2])
    ports = free_ports(wanted)
    config = DEMO
    if ports != wanted:
        new = {str(port): str(ports[name]) for name, port in wanted.items()}
        text = re.sub(r"\b\d+\b", lambda number: new.get(number[0], number[0]), text)
        config = folder / DEMO.name
        config.write_text(text.replace('"../vmside', f'"{ROOT}/vmside'), encoding="utf-8")
    return config, ports.pop("web"), ports


def wait_until_ready(url: str, daemon: "subprocess.Popen[bytes]") -> bool:
    """True when the daemon answers, False when it has ended."""
    while daemon.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return False


def main() -> int:
    """Run the demo; 0 if Ctrl-C or SIGTERM ended it, 1 if the daemon ended by itself."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal is closed
        signal.signal(number, signal.default_int_handler)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prometheus-qubes-proxy-")))
        config, port, ports = prepare(folder)
        machine = make_machine(folder / "machine", ROOT / "vmside" / "ruddo.PrometheusProxy", refused="banking")
        for kind in exporters.KINDS:
            words = [sys.executable, exporters.__file__, kind, str(ports[kind])]
            exporter = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE))
            assert exporter.stdin is not None
            stack.callback(exporter.stdin.close)
        # In a session of its own the daemon does not get Ctrl-C from the terminal. This process ends it.
        words = [sys.executable, "-m", "federator", f"--config.file={config}"]
        daemon = stack.enter_context(
            subprocess.Popen(words, cwd=ROOT, env={**os.environ, **machine.env}, start_new_session=True)
        )
        try:
            url = f"http://127.0.0.1:{port}"
            if wait_until_ready(url, daemon):
                python, file = shlex.quote(sys.executable), shlex.quote(str(config))
                print(
                    WELCOME.format(url=url, python=python, config=file, machine=f"STANDIN_QUBES={machine.root}"),
                    flush=True,
                )
                daemon.wait()
            print(f"The daemon ended by itself, with status {daemon.returncode}; its last messages are above.")
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            print("\nEnding.")
            return 0
        finally:
            daemon.terminate()
            daemon.wait()
    return 1


if __name__ == "__main__":
    sys.exit(main())
