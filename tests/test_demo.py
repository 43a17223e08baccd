# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of `make run`: what it shows, and that no process stays behind."""

import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.parts import PATIENCE_SECONDS, eventually, get

# Each of these tests starts the whole demo.
pytestmark = pytest.mark.slow


def is_empty(session: int) -> bool:
    """Whether no process of this session runs."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            if int(stat[3]) == session and stat[0] != "Z":
                return False
    return True


@pytest.mark.parametrize("taken", [(), (8199, 18202)])
def test_the_demo_has_something_of_everything_and_leaves_nothing_behind(taken: tuple[int, ...]) -> None:
    """The exporters are real, each qube has real processes, and free ports replace ports that are in use."""
    with ExitStack() as stack:
        for port in taken:
            with suppress(OSError):  # another program has the port, which is just as good
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        run_the_demo(signal.SIGHUP if taken else signal.SIGINT)


# What the status page says of each qube. sys-usb's sensor is up and down in turns.
STATES = {
    "work": r"shop\s+up",
    "personal": r"process\s+up",
    "sys-usb": r"sensor\s+(?:up|down)",
    "media": r"encoder\s+up.* 2\.\d s",
    "sys-print": r"up, drops lines.*label values stand in double quotes",
    "mail": r"imap\s+down.*Connection refused.*Start the exporter",
    "banking": r"refused.*ruddo.PrometheusProxy  \+\d+  \S+  banking  allow",
    "vault": r"not running",
}


def shows(url: str, qube: str) -> bool:
    """Does the status page say of this qube what it should, after a scrape?"""
    get(f"{url}/metrics?qube={qube}")
    (section,) = re.findall(rf'(?s)<tbody id="q-{qube}".*?</tbody>', get(f"{url}/").text)
    return re.search(STATES[qube], re.sub(r"<[^>]*>", " ", section), re.DOTALL) is not None


def run_the_demo(number: signal.Signals) -> None:
    """Run the demo until this signal ends it."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "tests.demo.run"], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert demo.stdout
        shown = ""
        while "Ctrl-C ends it" not in shown:
            line = demo.stdout.readline()
            assert line, shown
            shown += line
        (url,) = re.findall(r"\A(http://127\.0\.0\.1:\d+)/ ", shown)
        wanted = [
            r'^qubes_proxy_qube_up{qube="work",owner="alice"} 1$',
            r'^qubes_proxy_qube_up{qube="personal"} 1$',
            r'^qubes_proxy_qube_up{qube="sys-usb"} 1$',
            r'^shop_http_request_seconds_bucket{qube="work",exporter="shop",owner="alice",le="\+Inf",path="/"} \d',
            r'^process_resident_memory_bytes{qube="personal",exporter="process"} \d',
            r'^sensor_celsius{qube="sys-usb",exporter="sensor",sensor="cpu"} \d',
        ]

        def all_there() -> bool:
            page = get(f"{url}/metrics").text
            return all(re.search(pattern, page, re.MULTILINE) for pattern in wanted)

        eventually("the page shows all of them", all_there)
        for qube in STATES:
            eventually(f"the status page shows {qube}", partial(shows, url, qube))
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text(encoding="utf-8")
        daemons = [int(pid) for pid in children.split()]
        assert len(daemons) == 6  # five exporters, one daemon
        demo.send_signal(number)
        assert demo.wait(PATIENCE_SECONDS) == 0
        for leader in (demo.pid, *daemons):
            eventually("its processes are gone", partial(is_empty, leader))
    finally:
        demo.terminate()
        try:
            demo.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            demo.kill()
            demo.wait()
        if demo.stdout:
            demo.stdout.close()
