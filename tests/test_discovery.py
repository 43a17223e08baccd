# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking dom0 what runs, forwarding single exporters, and offering them to a real Prometheus."""

import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT, recording
from tests.parts import Daemon, Exporter, Prometheus, eventually, federator, free_port, script, serving
from tests.standin.qubes import Qubes

# Most of these tests start the daemon.
pytestmark = pytest.mark.slow

MakeExporter = Callable[[bytes], Exporter]
MakeDaemon = Callable[..., Daemon]

# What qubesd answers, made of the folder of the stand-in; it leaves out qubes that the policy does not let us list.
ADMIN_VM_LIST = """#!/bin/sh
cat >/dev/null # qubesd says nothing before the end of its input
printf '0\\0dom0 class=AdminVM state=Running\\n'
for folder in {root}/qubes/*; do
    [ "${{folder##*/}}" = dom0 ] || [ -e "$folder/hidden" ] ||
        echo "${{folder##*/}} class=$(cat "$folder/class" || echo AppVM) state=$(cat "$folder/state")"
done
"""
# Upstream's in dom0, as far as callers see it; qvm-ls is replaced.
UPSTREAM = """#!/bin/bash
read handshake
if [ "$handshake" != "+" ] ; then exit ; fi
echo "="
while true ; do
    read var
    if [ "$var" != "?" ] ; then exit 117 ; fi
    text=$(grep -lx Running {root}/qubes/*/state | sed 's|/state$||;s|.*/||')
    echo "$text" | wc -c
    echo "$text"
done
"""
# No answer, for as long as somebody waits for one.
SILENT = "#!/bin/sh\nexec tail --pid=$PPID -f /dev/null\n"
SECONDS = "refresh_interval = '1s'\n"
# Seconds that a scrape has which may run into a paused qube: nobody answers it before they are over.
IMPATIENT = "1"


def dom0(qubes: Qubes, name: str, text: str) -> None:
    """Install a service in dom0."""
    if not (qubes.root / "qubes" / "dom0").exists():
        qubes.add("dom0", install=False)
    service = qubes.root / "qubes" / "dom0" / "services" / name
    service.write_text(text.format(root=qubes.root), encoding="utf-8")
    service.chmod(0o755)


def found(page: str, gauge: str) -> dict[str, str]:
    """One of our gauges by qube, with its last label where there is one for the reason."""
    return dict(re.findall(rf'^qubes_proxy_{gauge}{{qube="([^"]+)".*?(?:reason="([^"]+)")?}} \S+$', page, re.MULTILINE))


def up(page: str) -> dict[str, str]:
    """qubes_proxy_qube_up."""
    return dict(re.findall(r'^qubes_proxy_qube_up{qube="([^"]+)".*} (\S+)$', page, re.MULTILINE))


@pytest.fixture
def machine(qubes: Qubes, exporter: MakeExporter) -> tuple[Qubes, Exporter]:
    """A machine whose dom0 lists its qubes, and an exporter that all of them share."""
    dom0(qubes, "admin.vm.List", ADMIN_VM_LIST)
    for name in ("work", "vault", "extra", "other"):
        qubes.add(name, policy="allow")
    return qubes, exporter(b"m 1\n")


def test_what_runs_is_scraped_and_what_does_not_is_not_called(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon
) -> None:
    """Halted and paused qubes cost dom0 no call; one that starts is there within one refresh, its backoff forgotten."""
    qubes, exporter = machine
    qubes.set_state("vault", "Halted")
    qubes.set_state("other", "Paused")
    proxy = daemon(
        {"work": {"x": exporter.port}, "vault": {"x": exporter.port}},
        qrexec="backoff_initial = '5m'\n",
        rest=f"[discovery]\nexporters = ['x']\n{SECONDS}",
    )
    page = proxy.get().text
    assert up(page) == {"work": "1", "vault": "0", "extra": "1"}
    assert found(page, "exporter_failure") == {"vault": "not_running"}
    assert {call[0] for call in qubes.calls()} == {"dom0", "work", "extra"}
    assert json.loads(proxy.get("/discover").body) == [{"targets": ["work", "extra"]}]
    assert 'm{qube="extra",exporter="x"} 1' in page
    # Fails once, and would not be called for five minutes: but it is started anew.
    qubes.set_state("extra", "Halted")
    eventually("extra is gone", lambda: "extra" not in up(proxy.get().text))
    qubes.set_state("vault", "Running")
    qubes.set_state("extra", "Running")
    eventually("all are there", lambda: up(proxy.get().text) == {"work": "1", "vault": "1", "extra": "1"})
    assert 'msg="qube is down" qube=vault reason=not_running' in proxy.log
    assert json.loads(proxy.get("/discover").body) == [{"targets": ["work", "vault", "extra"]}]
    # No timer: who is not asked asks nobody.
    calls = len(qubes.calls())
    time.sleep(1.2)
    assert len(qubes.calls()) == calls


@pytest.mark.parametrize("configured", [True, False])
def test_a_call_is_kept_while_dom0_says_that_the_qube_is_paused(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, *, configured: bool
) -> None:
    """That of a configured qube, and that of one that discovery found."""
    qubes, exporter = machine
    names = ["work", "extra"] if configured else ["work"]
    proxy = daemon({name: {"x": exporter.port} for name in names}, rest=f"[discovery]\nexporters = ['x']\n{SECONDS}")
    assert up(proxy.get().text)["extra"] == "1"
    qubes.set_state("extra", "Paused")

    def is_told() -> bool:
        page = proxy.get(X_Prometheus_Scrape_Timeout_Seconds=IMPATIENT).text
        if configured:
            return found(page, "exporter_failure").get("extra") == "not_running"
        return "extra" not in up(page)

    eventually("dom0 has said so", is_told)
    qubes.set_state("extra", "Running")
    eventually("it is back", lambda: up(proxy.get().text).get("extra") == "1")
    assert [call[0] for call in qubes.calls()].count("extra") == 1


def test_a_pause_costs_no_call(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """
    Neither one that dom0 has told, nor one that it tells after a scrape ran into it; and what the qube says late is no
    answer to the next scrape.

    After a pause dom0 may refuse each call for a long time, so the one that is open is precious.
    """
    qubes, exporter = machine
    proxy = daemon(
        {"work": {"x": exporter.port}}, scrape="min_interval = '0s'", rest="[discovery]\nrefresh_interval = '2s'\n"
    )
    exporter.body = b"m 1\n"
    assert up(proxy.get().text) == {"work": "1"}  # and the service says that requests may overlap
    qubes.set_policy("work", "deny")
    for number in (2, 3):
        qubes.set_state("work", "Paused")
        seen: set[str] = set()

        def is_told(seen: set[str] = seen) -> bool:
            page = proxy.get(X_Prometheus_Scrape_Timeout_Seconds=IMPATIENT).text
            seen.update(found(page, "exporter_failure").values())
            return "not_running" in seen

        eventually("dom0 tells", is_told)
        assert seen <= {"timeout", "not_running"}
        exporter.body = b"m %d\n" % number
        qubes.set_state("work", "Running")
        eventually("it is back", lambda: 'm{qube="work",exporter="x"}' in proxy.get().text)
        assert f'm{{qube="work",exporter="x"}} {number}\n' in proxy.get().text
    assert len(qubes.calls("work")) == 1
    assert "refused" not in proxy.log


def test_a_qube_in_backoff_is_called_at_once_when_it_starts(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon
) -> None:
    """What failed before it was halted says nothing of what it does now."""
    qubes, exporter = machine
    qubes.set_fault("work", "crash 3")
    proxy = daemon({"work": {"x": exporter.port}}, qrexec="backoff_initial = '5m'\n", rest=f"[discovery]\n{SECONDS}")
    assert found(proxy.get().text, "exporter_failure") == {"work": "closed"}
    qubes.set_fault("work", None)
    qubes.set_state("work", "Halted")
    eventually("it is seen", lambda: found(proxy.get().text, "exporter_failure") == {"work": "not_running"})
    qubes.set_state("work", "Running")
    eventually("it is called", lambda: up(proxy.get().text) == {"work": "1"})


@pytest.mark.parametrize("trouble", ["deny", "silent", "garbage", "crash 3"])
def test_a_dom0_that_does_not_answer_leaves_configured_qubes_working(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, trouble: str
) -> None:
    """It is said once, and the truth is not made up: what dom0 alone could name is not there."""
    qubes, exporter = machine
    if trouble == "deny":
        qubes.set_policy("dom0", "deny")
    elif trouble == "silent":
        dom0(qubes, "admin.vm.List", SILENT)
    else:
        qubes.set_fault("dom0", trouble)
    rest, scrape = f"[discovery]\nexporters=['x']\n{SECONDS}", "timeout = '2s'\n"
    proxy = daemon({"work": {"x": exporter.port}}, rest=rest, scrape=scrape)
    for _ in range(3):
        assert up(proxy.get().text) == {"work": "1"}
    if trouble == "silent":
        assert proxy.get("/sd").status == 503, "a list without what dom0 may yet name would cost Prometheus its targets"
    eventually("it is said", lambda: "dom0 does not say which qubes run" in proxy.log)
    assert [group["labels"]["qube"] for group in json.loads(proxy.get("/sd").body)] == ["work"]
    assert proxy.log.count("dom0 does not say which qubes run") <= 1
    if trouble == "deny":
        assert (
            "dom0's policy does not allow admin.vm.List; `prometheus-qubes-proxy policy` prints the line" in proxy.log
        )


def test_a_discovery_of_upstreams_that_fails(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """The log tells of the service that was called, and not of an exporter."""
    qubes, exporter = machine
    dom0(qubes, "ruddo.PrometheusDiscover", UPSTREAM)
    qubes.set_fault("dom0", "upstream 1")
    rest = f"[discovery]\nsource = 'ruddo.PrometheusDiscover'\nexporters=['x']\n{SECONDS}"
    proxy = daemon({"work": {"x": exporter.port}}, rest=rest)
    assert up(proxy.get().text) == {"work": "1"}
    (line,) = (line for line in proxy.log.splitlines() if "dom0 does not say which qubes run" in line)
    assert "ruddo.PrometheusDiscover in dom0 ended without an answer (status 1)" in line
    assert "exporter" not in line


def test_an_error_only_where_the_truth_is_not_known(machine: tuple[Qubes, Exporter], tmp_path: Path) -> None:
    """A Prometheus that is told [] forgets its targets; one that is told 503 keeps them."""
    qubes, served = machine
    text = (
        f"[qrexec]\nclient = '{qubes.client}'\n[exporters]\nx = {served.port}\n[discovery]\nexporters=['x']\n{SECONDS}"
    )
    qubes.set_policy("dom0", "deny")
    folder = tmp_path / "alone"
    folder.mkdir()
    with Daemon(folder, text + "include = ['nobody']\n", qubes.env) as proxy:
        assert (proxy.get("/sd").status, proxy.get("/discover").status, proxy.get().status) == (503, 503, 200)
        qubes.set_policy("dom0", "allow")
        eventually("it is known that there are none", lambda: proxy.get("/sd").text == "[]")
        assert json.loads(proxy.get("/discover").body) == [{"targets": []}]


@pytest.fixture
def qubesd(qubes: Qubes, tmp_path: Path) -> Iterator[Path]:
    """The socket of a server that answers as qubesd does."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = self.rfile.read()
            assert request == b"admin.vm.List+ dom0 name dom0\0", request
            script = qubes.root / "qubes" / "dom0" / "services" / "admin.vm.List"
            self.wfile.write(subprocess.run([script], stdout=subprocess.PIPE, check=True).stdout)

    path = tmp_path / "qubesd.sock"
    with serving(socketserver.UnixStreamServer(str(path), Handler)):
        yield path


def install_ours_in_dom0(qubes: Qubes, qubesd: Path) -> None:
    """Our ruddo.PrometheusDiscover, which asks this socket."""
    text = (ROOT / "vmside" / "ruddo.PrometheusDiscover").read_text(encoding="utf-8")
    dom0(qubes, "ruddo.PrometheusDiscover", "")
    service = qubes.root / "qubes" / "dom0" / "services" / "ruddo.PrometheusDiscover"
    service.write_text(text.replace("/var/run/qubesd.sock", str(qubesd)), encoding="utf-8")


@pytest.mark.parametrize("source", ["admin.vm.List", "ruddo.PrometheusDiscover"])
def test_a_remote_qube_is_scraped_only_where_it_is_configured(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, qubesd: Path, source: str
) -> None:
    """dom0 says of a RemoteVM that it runs, always."""
    qubes, exporter = machine
    install_ours_in_dom0(qubes, qubesd)
    for name in ("extra", "other"):
        (qubes.root / "qubes" / name / "class").write_text("RemoteVM", encoding="utf-8")
    rest = f"[discovery]\nsource = '{source}'\nexporters=['x']\n{SECONDS}"
    proxy = daemon({"other": {"x": exporter.port}}, rest=rest)
    assert up(proxy.get().text) == {"other": "1", "work": "1", "vault": "1"}
    assert json.loads(proxy.get("/discover").body) == [{"targets": ["other", "vault", "work"]}]


@pytest.mark.parametrize("whose", ["ours", "upstream's"])
def test_prometheus_discover_of_either_kind_is_asked_over_one_call(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, qubesd: Path, whose: str
) -> None:
    """The call stays open, refresh after refresh."""
    qubes, exporter = machine
    if whose == "ours":
        install_ours_in_dom0(qubes, qubesd)
    else:
        dom0(qubes, "ruddo.PrometheusDiscover", UPSTREAM)
    qubes.set_state("vault", "Halted")
    rest = f"[discovery]\nsource = 'ruddo.PrometheusDiscover'\nexporters=['x']\n{SECONDS}"
    proxy = daemon({"vault": {"x": exporter.port}}, rest=rest)
    assert up(proxy.get().text) == {"vault": "0", "work": "1", "extra": "1", "other": "1"}
    qubes.set_state("vault", "Running")
    eventually("it is there", lambda: up(proxy.get().text)["vault"] == "1")
    assert len(qubes.calls("dom0")) == 1


# Runs the service with another path of qubesd's socket and with a clock that moves by `step` seconds for each request.
DISCOVER = """
import itertools, runpy, sys, time

_, script, qubesd, step = sys.argv
ticks = itertools.count()
time.monotonic = lambda: next(ticks) * float(step)
service = runpy.run_path(script)
service["main"].__globals__["QUBESD"] = qubesd
sys.exit(service["main"]())
"""


@pytest.mark.parametrize(("step", "questions"), [(0.0, 1), (0.25, 250), (1.0, 1000)])
def test_prometheus_discover_asks_qubesd_once_a_second(tmp_path: Path, step: float, questions: int) -> None:
    """A caller that asks all the time gets the last answer, and one that asks each second gets a new one."""
    asked: list[bytes] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.read())
            self.wfile.write(b"0\0q%d class=AppVM state=Running\n" % len(asked))

    qubesd = tmp_path / "qubesd.sock"
    service = ROOT / "vmside" / "ruddo.PrometheusDiscover"
    words = [sys.executable, "-c", DISCOVER, str(service), str(qubesd), str(step)]
    with serving(socketserver.UnixStreamServer(str(qubesd), Handler)):
        done = subprocess.run(words, input=b"+\n" + b"?\n" * 1000, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(asked) == questions
    names = done.stdout.split(b"\n")[2::2]
    assert len(names) == 1000
    assert list(dict.fromkeys(names)) == [b"q%d" % (number + 1) for number in range(questions)]


@pytest.mark.parametrize(
    ("said", "status"),
    [(b"", 4), (b"+2\n?\n", 4), (b"+\n$(x)\n", 5), (b"+\n", 0), (b"+\n?\n", 9), (b"x" * 10**6, 4)],
    ids=["nothing", "version 2", "a command", "a greeting", "a request", "a megabyte"],
)
def test_prometheus_discover_does_not_trust_its_caller(said: bytes, status: int) -> None:
    """Anything but the two lines that it knows ends it; here there is no qubesd to ask."""
    service = ROOT / "vmside" / "ruddo.PrometheusDiscover"
    done = subprocess.run([*script(service), "$(x)"], input=said, capture_output=True, timeout=30, check=False)
    assert done.returncode == status
    assert done.stdout in (b"", b"=\n")


def test_forward_answers_as_upstreams_proxy_does(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, exporter: MakeExporter
) -> None:
    """The exporter's own text; 400, 403, 404, 500 and 504, each with a reason for people."""
    qubes, good = machine
    body = recording("process")
    other, missing = exporter(body), free_port()
    other.headers = {"Content-Type": "TEXT/Plain; charset=latin-1"}
    qubes.set_policy("vault", "deny")
    proxy = daemon({"work": {"x": good.port, "y": other.port, "z": missing}, "vault": {"x": good.port}})
    proxy.get()
    answer = proxy.get(f"/forward?target=work&port={other.port}")
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (
        200,
        body,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    assert proxy.get(f"/forward?target=work.example.org&port={good.port}").body == b"m 1\n"
    calls = len(qubes.calls())
    for query, status, words in (
        ("", 400, "port is missing"),
        ("?target=work&port=$(x)", 400, "port is missing"),
        (f"?target=@dispvm&port={good.port}", 400, "not the name of a qube"),
        (f"?target=..%2Fx&port={good.port}", 400, "not the name of a qube"),
        (f"?target={'x' * 2000}&port={good.port}", 400, "not the name of a qube"),
        (f"?target=extra&port={good.port}", 404, "not configured"),
        ("?target=work&port=1", 404, "not configured"),
        (f"?target=work&port={missing}", 500, "connection: "),
        (f"?target=vault&port={good.port}", 403, "refused: "),
    ):
        refusal = proxy.get(f"/forward{query}")
        assert (refusal.status, words in refusal.text) == (status, True), (query, refusal)
    assert len(qubes.calls()) == calls
    good.hold.clear()
    late = proxy.get(f"/forward?target=work&port={good.port}", X_Prometheus_Scrape_Timeout_Seconds="0.5")
    assert (late.status, "timeout: " in late.text) == (504, True)
    good.hold.set()
    # A scraper of single exporters finds the reasons where those of pages are.
    assert 'msg="exporter is down" qube=work exporter=x path=/forward reason=timeout' in proxy.log
    assert 'qubes_proxy_exporter_failures_total{reason="refused"}' in proxy.get("/metrics/proxy").text


@pytest.mark.parametrize(
    ("said", "body", "status", "passed_on"),
    [
        ("application/openmetrics-text; version=1.0.0", b"m 1\n# EOF\n", 200, "application/openmetrics-text"),
        ("application/openmetrics-text; version=1.0.0", b"m 1\n", 500, "exposition: its text is cut"),
        (None, b"m 1\n", 200, "text/plain"),
        ("text/html", b"<html>\n", 502, "http: its Content-Type is no exposition: 'text/html'"),
        ("application/vnd.google.protobuf; proto=x", b"\n", 502, "http: its Content-Type is no exposition"),
    ],
)
def test_the_content_type_is_passed_on_where_prometheus_takes_it(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, said: str | None, body: bytes, status: int, passed_on: str
) -> None:
    """OpenMetrics under the name of the text format is refused by Prometheus, and so is a web page."""
    _, exporter = machine
    exporter.body, exporter.headers = body, {} if said is None else {"Content-Type": said}
    answer = daemon({"work": {"x": exporter.port}}).get(f"/forward?target=work&port={exporter.port}")
    found = answer.headers["Content-Type"] if status == 200 else answer.text
    assert (answer.status, found.startswith(passed_on)) == (status, True), answer


@pytest.mark.parametrize(("body", "status"), [(b"n 1\nm 12", 500), (b"n 1\nm 12\n", 200), (b"", 200)])
def test_a_text_that_is_cut_is_not_forwarded(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, body: bytes, status: int
) -> None:
    """Prometheus would take 12 for the value, where it was 12345."""
    _, exporter = machine
    exporter.body = body
    proxy = daemon({"work": {"x": exporter.port}})
    assert proxy.get(f"/forward?target=work&port={exporter.port}").status == status


def test_the_log_does_not_go_to_and_fro(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """A text that the page cannot have and a direct scrape can: each way says its own, once."""
    _, exporter = machine
    exporter.body = b"<html>\n"
    proxy = daemon({"work": {"x": exporter.port}})
    for _ in range(3):
        assert found(proxy.get().text, "exporter_failure") == {"work": "exposition"}
        assert proxy.get(f"/forward?target=work&port={exporter.port}").status == 200
    assert proxy.log.count("exporter is") == 1


def test_a_qube_that_does_not_run_is_forbidden(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """As upstream answers where qrexec refuses; `work.b`, which is halted and not configured, is not `work`."""
    qubes, exporter = machine
    qubes.add("work.b", state="Halted")
    qubes.set_state("vault", "Halted")
    proxy = daemon({"work": {"x": exporter.port}, "vault": {"x": exporter.port}}, rest=f"[discovery]\n{SECONDS}")
    answer = proxy.get(f"/forward?target=vault&port={exporter.port}")
    assert (answer.status, "not_running: " in answer.text) == (403, True)
    assert proxy.get(f"/forward?target=work.b&port={exporter.port}").status == 404
    assert proxy.get(f"/forward?target=work.c&port={exporter.port}").status == 200
    assert not qubes.calls("vault")


def test_prometheus_scrapes_single_targets_and_the_page_and_both_agree(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, exporter: MakeExporter, tmp_path: Path
) -> None:
    """http_sd_configs without relabelling; the same values, and the same opinion of who is up."""
    qubes, good = machine
    second = exporter(b"# TYPE s counter\ns 7\n")
    qubes.set_state("vault", "Halted")
    rest = f"[discovery]\nexporters = ['x']\ninclude = ['extra']\n{SECONDS}"
    proxy = daemon({"work": {"x": good.port, "y": second.port}, "vault": {"x": good.port}}, rest=rest)
    address = proxy.url.removeprefix("http://")
    prometheus = Prometheus(tmp_path, address)
    with prometheus.config.open("a", encoding="utf-8") as file:
        sd = f"{{url: '{proxy.url}/sd', refresh_interval: 1s}}"
        file.write(f"- {{job_name: single, scrape_interval: 1s, scrape_timeout: 1s, http_sd_configs: [{sd}]}}\n")
    text = prometheus.config.read_text(encoding="utf-8")
    text = re.sub(r"scrape_configs: \[(.*)\]\n", r"scrape_configs:\n- \1\n", text)
    prometheus.config.write_text(text, encoding="utf-8")
    with prometheus.running():
        prometheus.waits_for('m{job="qubes"}', {"work": 1.0, "extra": 1.0})
        prometheus.waits_for('m{job="single"}', {"work": 1.0, "extra": 1.0})
        prometheus.waits_for('s{job="single",exporter="y",instance="work:y"}', {"work": 7.0})
        prometheus.waits_for('up{job="single",exporter="x"}', {"work": 1.0, "vault": 0.0, "extra": 1.0})
        prometheus.waits_for('qubes_proxy_exporter_up{exporter="x"}', {"work": 1.0, "vault": 0.0, "extra": 1.0})
        good.body = b"m 2\n"
        prometheus.waits_for('m{job="qubes"} == on(qube) m{job="single"} == 2', {"work": 2.0, "extra": 2.0})
    assert not qubes.calls("vault")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("proxy.example:8199", "proxy.example:8199"),
        ("[::1]:1", "[::1]:1"),
        ("a/b:1", None),
        ("x", "x:80"),
        ("evil", None),
    ],
)
def test_the_address_to_come_back_to_is_the_one_that_was_asked(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon, host: str, address: str | None
) -> None:
    """Only an address, or a name that the configuration has, is given back; no other host is answered at all."""
    _, exporter = machine
    proxy = daemon({"work": {"x": exporter.port}}, rest="[web]\nhosts = ['proxy.example', 'x']\n")
    answer = proxy.get("/sd", Host=host)
    assert answer.status == (421 if address is None else 200)
    if address is not None:
        groups: Any = json.loads(answer.body)
        assert groups[0]["targets"] == [address]


def test_a_reload_keeps_what_was_discovered(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """And its calls."""
    qubes, exporter = machine
    proxy = daemon({"work": {"x": exporter.port}}, rest="[discovery]\nexporters = ['x']\n")
    before = up(proxy.get().text)
    assert set(before) == {"work", "vault", "extra", "other"}
    calls = [call for call in qubes.calls() if call[0] != "dom0"]
    proxy.process.send_signal(1)
    eventually("reloaded", lambda: "msg=reloaded" in proxy.log)
    assert up(proxy.get().text) == before
    assert [call for call in qubes.calls() if call[0] != "dom0"] == calls


def test_a_reload_does_not_ask_dom0_again(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """And what it said goes on to hold: a halted qube is not called meanwhile, which could start it."""
    qubes, exporter = machine
    qubes.set_state("vault", "Halted")
    proxy = daemon({"work": {"x": exporter.port}, "vault": {"x": exporter.port}}, rest="[discovery]\n")
    assert up(proxy.get().text) == {"work": "1", "vault": "0"}
    for number in (1, 2):
        proxy.process.send_signal(1)
        eventually("reloaded", lambda: proxy.log.count("msg=reloaded") == number)  # noqa: B023 - it is called at once
        assert up(proxy.get().text) == {"work": "1", "vault": "0"}
    # With another setting dom0 is asked anew; what it said before holds until it answers.
    dom0(qubes, "admin.vm.List", SILENT)
    proxy.config.write_text(proxy.config.read_text(encoding="utf-8") + "refresh_interval = '40s'\n", encoding="utf-8")
    proxy.process.send_signal(1)
    eventually("reloaded", lambda: proxy.log.count("msg=reloaded") == 3)
    assert up(proxy.get().text) == {"work": "1", "vault": "0"}
    assert (len(qubes.calls("dom0")), qubes.calls("vault"), qubes.state("vault")) == (2, [], "Halted")


def test_a_reload_while_dom0_is_asked_does_not_cut_the_list(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon
) -> None:
    """A client that waits is answered by the new configuration, and with all that dom0 named."""
    qubes, exporter = machine
    dom0(qubes, "admin.vm.List", ADMIN_VM_LIST.replace("#!/bin/sh\n", "#!/bin/sh\nsleep 1\n"))
    proxy = daemon({"work": {"x": exporter.port}}, rest="[discovery]\nexporters = ['x']\n")
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(proxy.get, "/sd")
        eventually("dom0 is asked", lambda: qubes.calls("dom0"))
        proxy.process.send_signal(1)
    assert {group["labels"]["qube"] for group in json.loads(asking.result().body)} == {
        "work",
        "vault",
        "extra",
        "other",
    }
    assert "msg=reloaded" in proxy.log


def test_the_end_comes_in_the_middle_of_a_reload(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """What the old configuration still waits for is told so, and its calls are ended as well."""
    qubes, exporter = machine
    proxy = daemon({"work": {"x": exporter.port}, "vault": {"x": exporter.port}})
    proxy.get()
    exporter.hold.clear()
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(proxy.get)
        eventually("they are asked", lambda: len(exporter.requests) == 4)
        text = proxy.config.read_text(encoding="utf-8")
        proxy.config.write_text(text.partition('[qubes."vault"]')[0], encoding="utf-8")
        proxy.process.send_signal(1)
        eventually("reloaded", lambda: "msg=reloaded" in proxy.log)
        assert proxy.stop() == 0
    assert asking.result().status == 503
    eventually("nothing is left behind", lambda: not qubes.left_behind())
    assert not re.search("Traceback|was destroyed|never retrieved", proxy.log)


def test_what_a_changed_source_does_not_say_is_not_made_up(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """A qube does not run that was not named by a service that names all that run; another source changes nothing."""
    qubes, exporter = machine
    qubes.set_state("vault", "Halted")
    dom0(qubes, "ruddo.PrometheusDiscover", UPSTREAM)
    rest = "[discovery]\nsource = 'ruddo.PrometheusDiscover'\n"
    proxy = daemon({"work": {"x": exporter.port}, "vault": {"x": exporter.port}}, rest=rest)
    assert up(proxy.get().text) == {"work": "1", "vault": "0"}
    dom0(qubes, "admin.vm.List", SILENT)
    text = proxy.config.read_text(encoding="utf-8")
    proxy.config.write_text(text.replace("ruddo.PrometheusDiscover", "admin.vm.List"), encoding="utf-8")
    proxy.process.send_signal(1)
    eventually("reloaded", lambda: "msg=reloaded" in proxy.log)
    assert up(proxy.get().text) == {"work": "1", "vault": "0"}
    assert (qubes.calls("vault"), qubes.state("vault")) == ([], "Halted")


def test_what_dom0_said_holds_for_a_while(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """One refusal, and a halted qube is still not called; after some intervals all are, and nothing is said to run."""
    qubes, exporter = machine
    qubes.set_state("vault", "Halted")
    qubes.set_policy("vault", "allow autostart=no")
    rest = "[discovery]\nrefresh_interval = '2s'\n"
    proxy = daemon({"work": {"x": exporter.port}, "vault": {"x": exporter.port}}, rest=rest)
    assert found(proxy.get().text, "exporter_failure") == {"vault": "not_running"}
    qubes.set_policy("dom0", "deny")

    def refused() -> bool:
        assert not qubes.calls("vault")
        page = proxy.get().text
        assert found(page, "exporter_failure") == {"vault": "not_running"}
        return "reason=refused" in proxy.log

    eventually("dom0 refuses", refused)
    eventually("it is called", lambda: found(proxy.get().text, "exporter_failure") == {"vault": "refused"})
    assert proxy.get("/discover").status == 503
    assert [group["labels"]["qube"] for group in json.loads(proxy.get("/sd").body)] == ["work", "vault"]
    asked = [call for call in qubes.calls("dom0") if call[2] == "deny"]
    assert len(asked) <= 3, "each refusal doubles the time to the next asking"


def test_qubes_that_dom0_does_not_show_us_are_called(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """The policy of admin.vm.List decides which those are; what is not shown is not known to be halted."""
    qubes, exporter = machine
    for name in ("work", "extra", "other", "vault"):
        (qubes.root / "qubes" / name / "hidden").touch()
    proxy = daemon({"work": {"x": exporter.port}}, rest=f"[discovery]\nexporters = ['x']\n{SECONDS}")
    assert up(proxy.get().text) == {"work": "1"}
    assert "dom0 names no qubes: its policy may hide them" in proxy.log
    (qubes.root / "qubes" / "extra" / "hidden").unlink()
    eventually("extra is found", lambda: up(proxy.get().text) == {"work": "1", "extra": "1"})


def test_we_do_not_call_ourselves(machine: tuple[Qubes, Exporter], tmp_path: Path) -> None:
    """Qrexec denies that with a pop-up; the name is the one that dom0 knows, whatever the host name is."""
    qubes, exporter = machine
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "qubesdb-read").write_text('#!/bin/sh\n[ "$1" = /name ] && printf work\n', encoding="utf-8")
    (programs / "qubesdb-read").chmod(0o755)
    text = f"[qrexec]\nclient = '{qubes.client}'\n[exporters]\nx = {exporter.port}\n[discovery]\nexporters=['x']\n"
    environment = {**qubes.env, "PATH": f"{programs}:{os.environ['PATH']}"}
    with Daemon(tmp_path, text, environment) as proxy:
        assert set(up(proxy.get().text)) == {"vault", "extra", "other"}
        words = federator("policy", f"--config.file={proxy.config}")
        done = subprocess.run(words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, check=True)
        assert b" work  @tag:monitored " in done.stdout


def test_a_scrape_of_nothing_is_no_success(machine: tuple[Qubes, Exporter], tmp_path: Path) -> None:
    """The command line says what dom0 said, and exits with 1."""
    qubes, exporter = machine
    path = tmp_path / "p.toml"
    path.write_text(
        f"[qrexec]\nclient = '{qubes.client}'\n[exporters]\nx = {exporter.port}\n[discovery]\nexporters=['x']\n",
        encoding="utf-8",
    )

    def scrape() -> "subprocess.CompletedProcess[str]":
        words = federator("scrape", f"--config.file={path}")
        environment = {**os.environ, **qubes.env}
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    good = scrape()
    assert (good.returncode, good.stderr, good.stdout.count(" up ")) == (0, "", 4)
    qubes.set_policy("dom0", "deny")
    done = scrape()
    assert (done.returncode, done.stdout) == (1, "")
    assert "dom0 does not say which qubes run: dom0's policy does not allow admin.vm.List" in done.stderr
    assert "nothing was scraped" in done.stderr


def test_policy_prints_what_dom0_needs(tmp_path: Path) -> None:
    """Lines that qrexec's parser takes: five fields, the exact ports, nothing started."""
    path = tmp_path / "p.toml"
    path.write_text(
        "[exporters]\nnode = 9100\nprocess = 9256\n[qubes.work]\nexporters = ['process', 'node']\n"
        "[qubes.net]\ntransport = 'local'\nexporters = ['node']\n[qubes.dom0]\nexporters = ['node']\n"
        "[discovery]\nexporters = ['process', 'node']\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        federator("policy", f"--config.file={path}"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    us = lines[0][2]
    assert lines == [
        ["ruddo.PrometheusProxy", "+9100+9256", us, "work", "allow", "autostart=no"],
        ["ruddo.PrometheusProxy", "+9100", us, "@adminvm", "allow"],
        ["ruddo.PrometheusProxy", "+9100+9256", us, "@tag:monitored", "allow", "autostart=no"],
        ["admin.vm.List", "*", us, "@adminvm", "allow", "target=dom0"],
        ["admin.vm.List", "*", us, "work", "allow", "target=dom0"],
        ["admin.vm.List", "*", us, "@tag:monitored", "allow", "target=dom0"],
    ]
    for name in ("work", "@tag:monitored"):
        assert f"# ruddo.PrometheusProxy  +9256  {us}  {name}  allow autostart=no" in done.stdout


def test_systemd_is_told_how_we_are(machine: tuple[Qubes, Exporter], tmp_path: Path) -> None:
    """Ready, alive, reloading, and stopping: what Type=notify and WatchdogSec= wait for."""
    qubes, exporter = machine
    folder = tmp_path / "unit"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(30)
        heard: list[str] = []

        def hear(line: str) -> None:
            while not any(line in told for told in heard):
                heard.extend(systemd.recv(4096).decode().split("\n"))

        text = (
            f"[qrexec]\nclient = '{qubes.client}'\n[exporters]\nx = {exporter.port}\n[qubes.work]\nexporters = ['x']\n"
        )
        environment = {**qubes.env, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "100000"}
        with Daemon(folder, text, environment) as proxy:
            hear("READY=1")
            hear("STATUS=serving 1 exporter in 1 qube")
            heard.clear()
            for _ in range(3):
                hear("WATCHDOG=1")
                heard.clear()
            os.kill(proxy.process.pid, 1)
            hear("RELOADING=1")
            hear("MONOTONIC_USEC=")
            heard.clear()
            hear("READY=1")
            assert proxy.stop() == 0
            hear("STOPPING=1")


def test_a_qube_that_leaves_while_it_is_asked_leaves_nothing_behind(
    machine: tuple[Qubes, Exporter], daemon: MakeDaemon
) -> None:
    """Its exporter is being asked when dom0 no longer lists it: the scrape goes on to its end, and no process stays."""
    qubes, exporter = machine
    rest = f"[discovery]\nexporters = ['x']\ninclude = ['extra']\n{SECONDS}"
    proxy = daemon({"work": {"x": exporter.port}}, rest=rest)
    exporter.hold.clear()
    with ThreadPoolExecutor() as pool:
        pool.submit(proxy.get, X_Prometheus_Scrape_Timeout_Seconds="9")
        eventually("its exporter is asked", lambda: len(exporter.requests) == 2)
        dom0(qubes, "admin.vm.List", "#!/bin/sh\nprintf '0\\0work class=AppVM state=Running\\n'\n")
        eventually("it is no target any more", lambda: "extra" not in proxy.get("/sd").text)
        exporter.hold.set()
    eventually("its call has ended", lambda: not any("extra" in words for words in qubes.left_behind()))
    assert "Traceback" not in proxy.log


def test_a_silent_dom0_does_not_make_the_page_late(machine: tuple[Qubes, Exporter], daemon: MakeDaemon) -> None:
    """What the scraper waits includes the wait for dom0."""
    qubes, exporter = machine
    dom0(qubes, "admin.vm.List", SILENT)
    proxy = daemon({"work": {"x": exporter.port}}, rest=f"[discovery]\n{SECONDS}")
    exporter.hold.clear()
    page = proxy.get(X_Prometheus_Scrape_Timeout_Seconds="4").text
    seconds = re.search(r'^qubes_proxy_qube_scrape_duration_seconds{qube="work"} (\S+)$', page, re.MULTILINE)
    assert seconds is not None
    assert float(seconds[1]) < 3.4, "of 4 s less 0.5 s, dom0 had a quarter"
