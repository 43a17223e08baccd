# SPDX-License-Identifier: GPL-3.0-or-later
"""The program as its user sees it: a process with arguments, signals, an exit status, and words on stderr."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from federator import __version__, config, daemon
from federator.connections import Connections
from federator.counters import Counters
from federator.errors import StartError
from federator.fleet import Fleet
from federator.model import Config
from federator.web import Served
from tests.certificates import Authority
from tests.helpers import ROOT, SERVICE, soon
from tests.parts import PATIENCE_SECONDS, Daemon, Exporter, eventually, federator, free_port, process, running, toml
from tests.standin.qubes import CLIENT, Qubes

# Each of these tests starts the daemon or its command line.
pytestmark = pytest.mark.slow

MakeExporter = Callable[[bytes], Exporter]


def run(*words: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The program, to its end."""
    return subprocess.run(
        federator(*words),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A good configuration of one qube, in a file."""
    path = tmp_path / "proxy.toml"
    path.write_text(toml({"work": {"node": 9100}}, client=CLIENT), encoding="utf-8")
    return path


GOOD = '[exporters]\nnode = 9100\nalso = 9100\n[qubes.work]\nexporters = ["node"]\n'
MISTAKES = {
    "a wrong key": (GOOD + "exporter = []\n", "qubes.work.exporter: "),
    "a wrong section": (GOOD + "[webb]\n", "webb: "),
    "a qube name with a space": (GOOD + '[qubes."my work"]\nexporters = ["node"]\n', "qubes.'my work': "),
    "a port over 65535": (GOOD.replace("node = 9100", "node = 99999"), "exporters.node: "),
    "two exporters on one port": (GOOD.replace('["node"]', '["node", "also"]'), "qubes.work.exporters[1]: "),
    "no such exporter": (GOOD.replace('["node"]', '["nod"]'), "qubes.work.exporters"),
    "no TOML": ("qubes = [", "not TOML: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("command", ["serve", "check", "scrape"])
def test_a_mistake_in_the_file_is_named_in_one_line(tmp_path: Path, command: str, mistake: str) -> None:
    """The line has file, key, mistake and remedy. The unit knows by the status that another start would not help."""
    text, named = MISTAKES[mistake]
    path = tmp_path / "proxy.toml"
    path.write_text(text, encoding="utf-8")
    ended = run(command, f"--config.file={path}")
    assert (ended.returncode, ended.stdout) == (78 if command == "serve" else 1, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert f"{path}: " in ended.stderr
    assert named in ended.stderr


@pytest.mark.parametrize("command", ["serve", "scrape"])
def test_a_client_that_is_missing_is_named_in_one_line(served: Path, command: str) -> None:
    """The daemon runs outside Qubes OS, or without the package."""
    served.write_text(toml({"work": {"node": 9100}}), encoding="utf-8")
    ended = run(command, f"--config.file={served}")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "qrexec.client: qrexec-client-vm is not on the PATH; install qubes-core-qrexec" in ended.stderr


def test_a_service_that_is_missing_is_named_in_one_line(served: Path) -> None:
    """The local transport needs it here."""
    text = toml({"work": {"node": 9100}}, transport="local").replace(str(SERVICE), "/nowhere/service")
    served.write_text(text, encoding="utf-8")
    for command in ("serve", "check"):
        ended = run(command, f"--config.file={served}")
        assert ended.returncode == 1
        assert ended.stderr.count("\n") == 1
        assert "qrexec.local_service: /nowhere/service is missing or not executable" in ended.stderr


def test_a_port_in_use_is_named_in_one_line(served: Path) -> None:
    """With what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = run(f"--config.file={served}", f"--web.listen-address={address}")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert f"cannot listen on {address}: Address already in use" in ended.stderr
    assert "--web.listen-address" in ended.stderr


def test_no_file_at_all_is_named_in_one_line(tmp_path: Path) -> None:
    """With what to do."""
    ended = run(f"--config.file={tmp_path / 'none.toml'}")
    assert ended.returncode == 78
    assert ended.stderr.count("\n") == 1
    assert "no such file" in ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--web.listen-address=x"],
        ["--web.listen-address=127.0.0.1:99999"],
        ["--log.level=loud"],
        ["scrap"],
        ["check", "work"],
    ],
)
def test_wrong_arguments(words: list[str]) -> None:
    """As every program has it: usage, exit 2."""
    ended = run(*words)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("-v", "--version"),
        ("help", "--help"),
        ("--web.listen-adress=:1", "--web.listen-address"),
        ("scrap", "scrape"),
        ("--log.level=warning", "warn"),
        ("--zzz", ""),
    ],
)
def test_a_mistyped_argument_is_told_as_the_file_tells_it(word: str, meant: str) -> None:
    """What was meant, where that can be seen."""
    said = run(word).stderr.splitlines()[-1]
    assert said.endswith(f"; did you mean {meant}?") if meant else "did you mean" not in said


def test_check_names_what_lasts_longer_than_a_qube(tmp_path: Path) -> None:
    """A warning, as the file is good."""
    path = tmp_path / "p.toml"
    text = (ROOT / "tests/field/config-numbered-disposable.toml").read_text(encoding="utf-8")
    path.write_text(f"{text}[qrexec]\nclient = '{CLIENT}'\n", encoding="utf-8")
    ended = run("check", f"--config.file={path}")
    assert ended.returncode == 0
    assert "warning: " in ended.stderr
    assert "qubes.disp4711: dom0 gives this name to another disposable later" in ended.stderr


@pytest.mark.parametrize(
    ("port", "watch", "warned"),
    [(8199, True, False), (1, True, True), (1, False, False)],
    ids=["as the file says", "elsewhere", "where the command line says"],
)
async def test_a_reload_says_that_an_address_needs_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, port: int, *, watch: bool, warned: bool
) -> None:
    """Where the daemon does not listen on it, and would after one."""
    path = tmp_path / "p.toml"
    text = toml({"work": {"node": 9100}}, client=CLIENT, rest="[web]\nlisten_addresses = ['127.0.0.1:8199']\n")
    path.write_text(text.replace("8199", str(port)), encoding="utf-8")
    served = Served.of(config.load(path), Counters())
    path.write_text(text, encoding="utf-8")
    daemon.reload(path, served, watch_addresses=watch)
    assert served.reload.successful
    assert ("restart the daemon to listen there" in caplog.text) == warned


async def test_a_reload_tells_which_file_was_read(tmp_path: Path) -> None:
    """A link may lead to another one by then. Where that one is bad, the old one is in force."""
    link = tmp_path / "p.toml"
    good = toml({"work": {"node": 9100}}, client=CLIENT)
    for name, text in {"one": good, "two": good, "bad": "[scrap]"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    link.symlink_to("one")
    served = Served.of(config.load(link), Counters())
    for name, told in {"one": "one", "two": "two", "bad": "two"}.items():
        link.unlink()
        link.symlink_to(name)
        daemon.reload(link, served, watch_addresses=False)
        lines = [one for one in served.counters.page().decode().splitlines() if one.startswith("qubes_proxy_config_i")]
        assert lines == [f'qubes_proxy_config_info{{path="{tmp_path / told}"}} 1.0']


def test_version() -> None:
    """On stdout, as Prometheus' own."""
    assert run("--version").stdout.startswith(f"prometheus-qubes-proxy, version {__version__} ")


def test_check_shows_what_would_be_scraped(served: Path) -> None:
    """Qubes, the qrexec call that dom0 will see, exporters; and the shipped example is a good one."""
    assert run("check", f"--config.file={served}").stdout == (
        f"{served}: exporters: 1, qubes: 1\n  work  ruddo.PrometheusProxy+9100  node (9100)\n"
    )
    environment = {"PATH": f"{CLIENT.parent}:{os.environ['PATH']}"}
    assert run("check", "--config.file=conf/prometheus-qubes-proxy.toml", **environment).returncode == 0


def test_check_says_all_before_it_says_that_the_program_for_calls_is_missing(served: Path) -> None:
    """A person who writes the file on another computer wants to know the rest, too."""
    more = "[dom0]\nstats = false\nstorage = false\n"
    served.write_text(toml({"work": {"node": 9100}}, client=Path("/nonexistent/client"), rest=more), encoding="utf-8")
    ended = run("check", f"--config.file={served}")
    assert ended.returncode == 1
    *warnings, last = ended.stderr.splitlines()
    assert any("dom0" in line for line in warnings)
    assert "/nonexistent/client is not on the PATH" in last


def test_check_shows_what_is_not_on_the_page_and_what_dom0_is_asked_for(served: Path) -> None:
    """An exporter that only /sd and its own name have; and the switches of [dom0] that are on."""
    more = "[discovery]\nexporters = ['slow']\n[exporters.slow]\nport = 9753\npage = false\n[dom0]\nupdates = true\n"
    served.write_text(toml({"work": {"node": 9100}}, client=CLIENT, rest=more), encoding="utf-8")
    ended = run("check", f"--config.file={served}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[1:] == [
        "  work  ruddo.PrometheusProxy+9100  node (9100)",
        "  and of the other qubes that run, by admin.vm.List: slow (9753, not on /metrics)",
        "  and [dom0] asks for: stats, storage, updates",
    ]


def test_a_dom0_that_is_asked_for_nothing_is_told(served: Path) -> None:
    """It is a good configuration, and figures of dom0 would be missed."""
    more = "[dom0]\nstats = false\nstorage = false\n"
    served.write_text(toml({"work": {"node": 9100}}, client=CLIENT, rest=more), encoding="utf-8")
    ended = run("check", f"--config.file={served}")
    assert ended.returncode == 0
    assert ended.stdout.endswith("\n  and [dom0] asks for: nothing\n")
    assert f"{served}: dom0: every switch is false, so dom0 is asked for nothing; set stats, " in ended.stderr


def test_every_key_of_the_example_is_what_it_says(tmp_path: Path) -> None:
    """Its commented lines are the defaults, or load at least."""
    text = (ROOT / "conf" / "prometheus-qubes-proxy.toml").read_text(encoding="utf-8")
    Authority(tmp_path / "tls").server()
    path = tmp_path / "all.toml"
    # The keys of TLS name files that are not there, and some exclude others.
    text = re.sub(r"^# \[web\.tls_server_config\].*?(?=^# \[web\.basic)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE)
    path.write_text(text.replace("/etc/qubes-rpc/ruddo.PrometheusProxy", str(SERVICE)), encoding="utf-8")
    ended = run("check", f"--config.file={path}", PATH=f"{CLIENT.parent}:{os.environ['PATH']}")
    assert ended.returncode == 0, ended.stderr
    assert "process (9256)" not in ended.stdout  # defined, not used
    assert "sys-net  here, without qrexec" in ended.stdout


def test_scrape_shows_a_line_for_each_target(qubes: Qubes, exporter: MakeExporter, tmp_path: Path) -> None:
    """Up or down and why; exit 0 only if all are up."""
    qubes.add("work")
    qubes.add("vault", policy="deny")
    path = tmp_path / "proxy.toml"
    up = exporter(b"m 1\nbad line\n")
    path.write_text(toml({"work": {"node": up.port}, "vault": {"app": 9100}}, client=CLIENT), encoding="utf-8")
    ended = run("scrape", f"--config.file={path}")
    assert ended.returncode == 1
    lines = ended.stdout.splitlines()
    assert re.fullmatch(r"work:node  up    1 sample, 13 bytes, 0\.\d{3} s, 1 line dropped \(line 2: .*\)", lines[0])
    assert re.fullmatch(r"vault:app  DOWN  refused: qrexec refused the call to vault: .*", lines[1])
    assert lines[2] == "1 of 2 exporters up"
    assert run("scrape", f"--config.file={path}", "work").returncode == 0
    assert run("scrape", f"--config.file={path}", "work:node").returncode == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("work:nod", "did you mean work:node?"),
        ("wrk", "did you mean work?"),
        ("node", "did you mean work:node?"),
        ("nod", "did you mean work:node?"),
        ("elsewhere", "name a QUBE or QUBE:EXPORTER, as `check` lists them"),
    ],
)
def test_a_name_that_scrape_does_not_know_has_a_near_one(served: Path, name: str, words: str) -> None:
    """A qube, an exporter of one, or the exporter without its qube."""
    text = toml({"work": {"node": 9100}, "vault": {"node": 9100}}, client=CLIENT)
    served.write_text(text, encoding="utf-8")
    unknown = run("scrape", f"--config.file={served}", name)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert f"there is no '{name}' to scrape; {words}" in unknown.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_scrape_in_flight_and_all_children(
    qubes: Qubes, exporter: MakeExporter, daemon: Callable[..., Daemon], number: int
) -> None:
    """A scraper that waits is told 503, which is a failed scrape; not half a page."""
    qubes.add("work")
    slow = exporter(b"m 1\n")
    slow.hold.clear()
    proxy = daemon({"work": {"node": slow.port}})
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(proxy.get)
        eventually("the exporter is asked", lambda: slow.requests)
        assert proxy.stop(number) == 0
    assert waiting.result().status == 503
    eventually("nothing is left behind", lambda: not qubes.left_behind())
    assert "Traceback" not in proxy.log


def test_sighup_while_starting_does_not_end_the_daemon(served: Path) -> None:
    """From nearly its first instruction: importing alone takes 0.2 s."""
    for number in range(10):
        words = federator("serve", f"--config.file={served}", "--web.listen-address=127.0.0.1:0")
        with running(words, cwd=ROOT, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            status = Path(f"/proc/{process.pid}/status")
            eventually("it ignores SIGHUP", partial(_ignores_or_catches, status, signal.SIGHUP))
            for _ in range(number):
                process.send_signal(signal.SIGHUP)
            said = iter(process.stderr.readline, b"")
            serves = any(b"msg=serving" in line for line in said)  # it may have reloaded before
            process.send_signal(signal.SIGTERM)
            assert serves
            process.stderr.read()
            assert process.wait(PATIENCE_SECONDS) == 0


def test_sighup_while_importing_does_not_end_the_daemon() -> None:
    """It comes with the first import."""
    program = (
        "import importlib.abc, os, runpy, signal, sys\n"
        "class HangUp(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'federator.cli': os.kill(os.getpid(), signal.SIGHUP)\n"
        "sys.meta_path.insert(0, HangUp())\n"
        "sys.argv = ['federator', '--version']\n"
        "runpy.run_module('federator', run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 0
    assert ended.stdout.startswith(b"prometheus-qubes-proxy")


def _ignores_or_catches(status: Path, number: int) -> bool:
    """By /proc/PID/status: masks of signals."""
    text = status.read_text(encoding="utf-8")
    masks = [int(re.findall(rf"^{name}:\s+(\w+)$", text, re.MULTILINE)[0], 16) for name in ("SigIgn", "SigCgt")]
    return any(mask >> (number - 1) & 1 for mask in masks)


def test_sighup_while_stopping_does_not_revive_the_daemon(
    qubes: Qubes, exporter: MakeExporter, daemon: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After STOPPING=1 systemd hears no READY=1, nothing is reloaded, and no call is made that nobody closes."""
    qubes.add("work")
    qubes.set_fault("work", "ignore-eof")  # it takes a while to end
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        proxy = daemon({"work": {"node": exporter(b"m 1\n").port}})
        assert proxy.get().status == 200
        proxy.process.send_signal(signal.SIGTERM)
        while b"STOPPING=1" not in systemd.recv(4096):
            pass
        proxy.process.send_signal(signal.SIGHUP)
        assert proxy.process.wait(PATIENCE_SECONDS) == 0
        systemd.settimeout(0)
        with pytest.raises(BlockingIOError):
            systemd.recv(4096)
    assert "msg=reloaded" not in proxy.log


def test_sighup_takes_the_new_file_whole_or_not_at_all(
    qubes: Qubes, exporter: MakeExporter, daemon: Callable[..., Daemon]
) -> None:
    """Invariant 8; and a qube that did not change keeps its call."""
    for name in ("work", "personal"):
        qubes.add(name)
    port = exporter(b"m 1\n").port
    proxy = daemon({"work": {"node": port}})
    successful = "\nqubes_proxy_config_last_reload_successful "
    assert successful + "1\n" in proxy.get().text
    good = proxy.config.read_text(encoding="utf-8")

    proxy.config.write_text(good + "\n[webb]\n", encoding="utf-8")
    proxy.process.send_signal(signal.SIGHUP)
    eventually("the bad file is refused", lambda: successful + "0\n" in proxy.get().text)
    assert 'm{qube="work",exporter="node"} 1\n' in proxy.get().text
    assert "webb" in proxy.log

    text = toml({"work": {"node": port}, "personal": {"node": port}}, client=qubes.client)
    proxy.config.write_text(text, encoding="utf-8")
    proxy.process.send_signal(signal.SIGHUP)
    eventually("the good file is taken", lambda: 'm{qube="personal",exporter="node"} 1\n' in proxy.get().text)
    assert successful + "1\n" in proxy.get().text
    assert len(qubes.calls("work")) == 1

    proxy.config.write_text(toml({"personal": {"node": port}}, client=qubes.client), encoding="utf-8")
    proxy.process.send_signal(signal.SIGHUP)
    eventually("the qube is no more", lambda: 'qube="work"' not in proxy.get().text)
    eventually("its call is closed", lambda: "calls_open 1.0\n" in proxy.get("/metrics/proxy").text)
    assert len(qubes.calls("personal")) == 1


def test_the_log_can_be_json(tmp_path: Path, exporter: MakeExporter) -> None:
    """One object a line."""
    path = tmp_path / "proxy.toml"
    path.write_text(toml({"work": {"node": exporter(b"m 1\n").port}}, transport="local"), encoding="utf-8")
    words = federator(f"--config.file={path}", f"--web.listen-address=127.0.0.1:{free_port()}", "--log.format=json")
    log = tmp_path / "log"
    with process(*words, log=log) as proxy:
        eventually("it serves", lambda: '"msg": "serving"' in log.read_text(encoding="utf-8"))
        proxy.terminate()
        assert proxy.wait(PATIENCE_SECONDS) == 0
    messages = [json.loads(line)["msg"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert {"serving", "stopping"} <= set(messages)


async def test_file_descriptors_are_kept_back_for_the_calls_of_every_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One for each exporter, those that dom0 may name, and dom0: at the start, and again after a reload."""
    calls: list[int] = []

    def files(of_calls: int) -> int:
        calls.append(of_calls)
        return 100 - of_calls

    limits: list[int] = []
    caplog.set_level("INFO")
    monkeypatch.setattr("federator.host.files_for_connections", files)
    monkeypatch.setattr(Connections, "limit", lambda _, most: limits.append(most))
    path = tmp_path / "p.toml"
    text = toml({"work": {"a": 9100, "b": 9200}}, client=CLIENT)
    path.write_text(text, encoding="utf-8")
    serving = asyncio.create_task(daemon.serve(path, [("127.0.0.1", 0)]))
    await soon("it serves", lambda: "serving" in caplog.messages)
    path.write_text(toml({"work": {"a": 9100}, "vault": {"a": 9100, "b": 9200, "c": 9300}}, client=CLIENT))
    os.kill(os.getpid(), signal.SIGHUP)
    await soon("it reloads", lambda: caplog.messages.count("reloaded") == 1)
    path.write_text(text + "\n[discovery]\nexporters = ['a', 'b']\n")
    os.kill(os.getpid(), signal.SIGHUP)
    await soon("it reloads", lambda: caplog.messages.count("reloaded") == 2)
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    assert calls == [3, 5, 3 + 2 * daemon.MAX_DISCOVERED_QUBES]
    assert limits == [100 - number for number in calls]


async def test_a_reload_that_is_asked_for_while_the_file_is_read_is_made(
    served: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written after the file was read would be missing until the next reload."""
    caplog.set_level("INFO")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as at the start of the process
    load = config.load

    def load_slowly(path: Path, web_file: Path | None = None) -> Config:
        settings = load(path, web_file)
        if "serving" not in caplog.messages:
            os.kill(os.getpid(), signal.SIGHUP)
        return settings

    monkeypatch.setattr(config, "load", load_slowly)
    serving = asyncio.create_task(daemon.serve(served, [("127.0.0.1", 0)]))
    await soon("it serves, and reloads", lambda: {"serving", "reloaded"} <= set(caplog.messages))
    os.kill(os.getpid(), signal.SIGTERM)
    await serving


async def test_sighup_while_a_start_fails_does_not_revive_the_daemon(
    served: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is being closed already: nothing is reloaded, and no call is made that nobody closes."""
    caplog.set_level("INFO")
    close = Fleet.close

    async def close_slowly(self: Fleet) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.1)
        await close(self)

    monkeypatch.setattr(Fleet, "close", close_slowly)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StartError):
        await daemon.serve(served, [taken.getsockname()[:2]])
    assert "reloaded" not in caplog.messages


def test_a_reload_of_a_broken_file_fails_before_the_daemon_hears_of_it(served: Path) -> None:
    """`systemctl reload` returned 0. systemd runs the commands of ExecReload= up to the first that fails."""
    unit = (ROOT / "conf" / "prometheus-qubes-proxy.service").read_text(encoding="utf-8")
    check, hang_up = re.findall(r"^ExecReload=(.*)$", unit, re.MULTILINE)
    assert check == "/usr/bin/prometheus-qubes-proxy check"
    assert run("check", f"--config.file={served}").returncode == 0
    served.write_text("[scrap]\n", encoding="utf-8")
    assert run("check", f"--config.file={served}").returncode == 1
    with running(["sleep", str(PATIENCE_SECONDS)]) as waiting:
        words = shlex.split(hang_up.replace("$MAINPID", str(waiting.pid)))
        subprocess.run(words, check=True, env={"PATH": "/nowhere"})  # no package but the shell's is needed
        assert waiting.wait(PATIENCE_SECONDS) == -signal.SIGHUP


def test_the_memory_of_large_texts_goes_back_to_the_system(
    exporter: Callable[[bytes], Exporter], tmp_path: Path
) -> None:
    """Not at once, and whatever the C library would keep."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    exporters = {f"x{number}": exporter(b"m 1\n") for number in range(3)}
    ports = {name: one.port for name, one in exporters.items()}
    with Daemon(folder, toml({"work": ports}, transport="local", scrape='min_interval = "0s"')) as proxy:
        proxy.get()
        before = proxy.memory()
        for number in range(4):
            for name, one in exporters.items():
                one.body = b"".join(
                    b"# HELP %b_%d_%d %b\nm%d 1\n" % (name.encode(), number, n, b"h" * 2500, n) for n in range(4000)
                )
            proxy.get()
        for one in exporters.values():
            one.body = b"m 1\n"

        def small() -> bool:
            page = proxy.get().text
            return page.count("\nm{") == 3 and proxy.memory() < before + 40_000_000

        assert proxy.peak_memory() > before + 60_000_000
        eventually("the memory is given back", small)
