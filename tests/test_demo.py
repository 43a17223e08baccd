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

from federator.dom0_figures import FAMILIES
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


def dom0_says_what_the_text_says(shown: str, page: str) -> bool:
    """What the printed text names can be seen among dom0's figures, and no two qubes use the same."""
    names = {name for name, _ in re.findall(r"^(qubes?_(?!proxy)\w+){(.*)} ", page, re.MULTILINE)}
    of = {
        name: dict(re.findall(rf'^{name}{{(?:qube|pool)="([^"]*)".*}} (\S+)$', page, re.MULTILINE))
        for name in ("qube_cpu_seconds_total", "qubes_pool_usage_bytes", "qubes_pool_size_bytes")
    }
    cpu, usage, size = ({one: float(value) for one, value in values.items()} for values in of.values())
    assert "media's CPU, vm-pool, which is 88 % full, and debian-12-xfce's waiting updates" in shown
    assert max(cpu, key=cpu.__getitem__) == "media"
    assert len(set(cpu.values())) == len(cpu) == 10
    assert usage["vm-pool"] / size["vm-pool"] == 0.88
    assert not re.search("^qubes_proxy_dom0_failure", page, re.MULTILINE)
    # Each family, but for the stub domains': dom0 seldom tells these apart.
    return names == {name for name in FAMILIES if "_proxy_" not in name} - {"qube_stubdomain_cpu_seconds_total"}


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
            r'^qube_memory_used_bytes{qube="dom0"} \d',
            r'^qube_running{qube="vault"} 0$',
            r'^qube_info{qube="sys-net",class="AppVM",label="red",.*,provides_network="true"} 1$',
            r'^qube_volume_usage_bytes{qube="work",owner="alice",volume="private"} \d',
            r'^qube_updates_available{qube="debian-12-xfce"} 1$',
            r'^qube_updates_available{qube="fedora-43-xfce"} 0$',
            r'^qube_os_eol_timestamp_seconds{qube="fedora-43-xfce"} \d',
            r'^qubes_pool_metadata_usage_bytes{pool="vm-pool"} \d',
        ]

        def all_there() -> bool:
            page = get(f"{url}/metrics").text
            return all(re.search(pattern, page, re.MULTILINE) for pattern in wanted)

        eventually("the page shows all of them", all_there)
        for qube in STATES:
            eventually(f"the status page shows {qube}", partial(shows, url, qube))
        assert dom0_says_what_the_text_says(shown, get(f"{url}/metrics").text)
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
