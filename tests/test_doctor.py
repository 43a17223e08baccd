# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `doctor`: the commonest mistakes, each made on a machine of the stand-in, found and explained."""

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from federator import cli, doctor, host, presence
from federator.dom0_findings import HOP
from federator.passwords import hashed
from tests.certificates import Authority
from tests.helpers import ROOT
from tests.parts import Daemon, Exporter, eventually, federator, free_port, get, process, raw_server, toml
from tests.standin.qubes import CLIENT, Qubes

# Each of these tests scrapes, and some start a daemon.
pytestmark = pytest.mark.slow


class Scene:
    """A NetVM called sys-net in which all is well: one qube with an exporter, and a firewall that lets one in."""

    def __init__(self, folder: Path, qubes: Qubes, patch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.folder, self.qubes, self.patch, self.stack = folder, qubes, patch, stack
        self.exporter = stack.enter_context(Exporter(b"m 1\n"))
        self.of = {"work": {"node": self.exporter.port}}
        self.more: dict[str, str] = {"client": str(CLIENT)}
        self.port = free_port()
        qubes.add("work")
        self.flags = folder / "qubes-service"
        self.flags.mkdir()
        (self.flags / "prometheus-qubes-proxy").touch()
        self.run = folder / "run"
        self.run.mkdir()
        agent = stack.enter_context(socket.socket(socket.AF_UNIX))
        agent.bind(str(self.run / "agent"))
        patch.setattr(presence, "SERVICE_FLAGS", self.flags)
        patch.setattr(presence, "RUN_QUBES", self.run)
        patch.setattr(presence, "AGENT_SOCKET", self.run / "agent")
        patch.setattr(host, "own_name", lambda: "sys-net")
        patch.setattr("federator.journal.set_up", lambda *_: None)  # the log of the tests stays as it is
        self.let_in(f"ip saddr 10.137.0.50 tcp dport {self.port} ct state new accept")

    def let_in(self, rule: str) -> None:
        """The chain custom-input of the firewall."""
        self.patch.setattr(presence, "FIREWALL_RULES", ("echo", f"chain custom-input {{\n{rule}\n}}"))

    def text(self) -> str:
        """The configuration."""
        client = Path(self.more["client"])
        rest = f'[web]\nlisten_addresses = ["0.0.0.0:{self.port}"]\n{self.more.get("rest", "")}'
        return toml(self.of, client=client, scrape=self.more.get("scrape", ""), rest=rest)

    def start(self) -> Daemon:
        """The daemon, with the configuration as it is now."""
        daemon = Daemon(self.folder, self.text(), self.qubes.env)
        daemon.port = self.port
        daemon.url = f"http://127.0.0.1:{self.port}"
        return self.stack.enter_context(daemon)

    def serve(self) -> None:
        """The same for a daemon that does not say to everybody that it is ready."""
        path = self.folder / "proxy.toml"
        path.write_text(self.text(), encoding="utf-8")
        words = federator("serve", f"--config.file={path}", f"--web.listen-address=127.0.0.1:{self.port}")
        log = self.folder / "served.log"
        self.stack.enter_context(process(*words, log=log))
        eventually("it serves", lambda: b"msg=serving" in log.read_bytes())


@pytest.fixture
def scene(tmp_path: Path, qubes: Qubes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """Where all is well, until the test makes a mistake."""
    with ExitStack() as stack:
        yield Scene(tmp_path, qubes, monkeypatch, stack)


Says = Callable[[], tuple[int, list[dict[str, Any]]]]


@pytest.fixture
def examine(scene: Scene, capsys: pytest.CaptureFixture[str]) -> Says:
    """Runs doctor; its exit status and its checks."""

    def run() -> tuple[int, list[dict[str, Any]]]:
        path = scene.folder / "proxy.toml"
        path.write_text(scene.text(), encoding="utf-8")
        status = cli.main(["doctor", "--json", f"--config.file={path}"])
        said = json.loads(capsys.readouterr().out)
        assert said["ok"] == (status == 0)
        return status, said["checks"]

    return run


def test_nothing_is_wrong_where_all_is_well(scene: Scene, examine: Says) -> None:
    """Exit status 0, and each hop is looked at."""
    daemon = scene.start()
    daemon.get()
    status, checks = examine()
    assert [check for check in checks if check["result"] not in {"ok", "skipped"}] == []
    assert status == 0
    assert {check["hop"] for check in checks if check["result"] == "ok"} == {
        *("configuration", "service flag", "/run/qubes", "qrexec agent", "daemon", "firewall", "program"),
        *("policy", "qube", "service", "exporter", "text", "time"),
        *("daemon's view", "daemon's configuration", "scraped"),
    }


def _mistyped(scene: Scene) -> None:
    scene.more["scrape"] = 'timeuot = "5s"'


def _undefined(scene: Scene) -> None:
    scene.more["rest"] = '[qubes.vault]\nexporters = ["app"]'


def _own_qube(scene: Scene) -> None:
    scene.of["sys-net"] = scene.of["work"]


def _no_flag(scene: Scene) -> None:
    (scene.flags / "prometheus-qubes-proxy").unlink()


def _no_client(scene: Scene) -> None:
    scene.more["client"] = "/usr/bin/no-such-program"


def _foreign_program(scene: Scene) -> None:
    def answer(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nI am another program\n")
        sock.shutdown(socket.SHUT_WR)

    scene.stack.enter_context(raw_server(answer, port=scene.port))


def _no_daemon(_: Scene) -> None:
    """It was not started."""


def _no_policy(scene: Scene) -> None:
    scene.qubes.set_policy("work", "deny")


def _two_exporters(scene: Scene) -> tuple[int, int]:
    other = scene.stack.enter_context(Exporter(b"n 1\n"))
    scene.of["work"]["app"] = other.port
    first, second = sorted(scene.of["work"].values())
    return first, second


def _line_a_port(scene: Scene) -> None:
    first, second = _two_exporters(scene)
    scene.qubes.set_policy("work", f"allow +{first} +{second}")


def _upstream(scene: Scene) -> None:
    first, second = _two_exporters(scene)
    scene.qubes.set_policy("work", f"allow +{first}+{second}")
    scene.qubes.set_fault("work", "upstream")


def _halted(scene: Scene) -> None:
    scene.qubes.set_policy("work", "allow autostart=no")
    scene.qubes.set_state("work", "Halted")


def _no_discovery(scene: Scene) -> None:
    scene.qubes.add("dom0", policy="deny")
    scene.more["rest"] = '[discovery]\nsource = "admin.vm.List"\nexporters = ["node"]'


def _no_service(scene: Scene) -> None:
    scene.qubes.service_of("work").unlink()


def _no_exporter(scene: Scene) -> None:
    scene.exporter.stop()


def _no_http(scene: Scene) -> None:
    port = scene.stack.enter_context(raw_server(lambda sock: sock.sendall(b"SSH-2.0-OpenSSH\r\n")))
    scene.of["work"]["node"] = port


def _web_page(scene: Scene) -> None:
    scene.exporter.body = b"<!doctype html>\n<title>Exporter</title>\n"


def _slow(scene: Scene) -> None:
    scene.exporter.hold.clear()
    scene.more["scrape"] = 'timeout = "1s"'


def _not_reloaded(scene: Scene) -> None:
    scene.start()
    scene.of["vault"] = scene.of["work"]
    scene.qubes.add("vault")


def _nobody_scrapes(scene: Scene) -> None:
    scene.start()
    now = time.time
    scene.patch.setattr(doctor, "now", lambda: now() + 3600)


def _no_rule(scene: Scene) -> None:
    scene.let_in("ip saddr 10.137.0.50 tcp dport 22 ct state new accept")


@dataclass(frozen=True)
class Mistake:
    """`make` makes it; the check of this hop has these words, and the remedy those."""

    make: Callable[[Scene], None]
    hop: str
    says: str
    remedy: str = ""


# By the words of docs/troubleshooting.md. {node} and {both} stand for ports.
MISTAKES = {
    "A key of the configuration is mistyped": Mistake(_mistyped, "configuration", "timeuot", "timeout"),
    "A qube has an exporter that is not defined": Mistake(_undefined, "configuration", "app"),
    "The NetVM itself is a qube without `transport`": Mistake(_own_qube, "configuration", 'transport = "local"'),
    "The NetVM has no service flag": Mistake(
        _no_flag, "service flag", "no service flag", "qvm-service --enable sys-net prometheus-qubes-proxy"
    ),
    "The program for calls is missing": Mistake(_no_client, "program", "install qubes-core-qrexec"),
    "Another program has the daemon's port": Mistake(_foreign_program, "daemon", "another program", "sudo ss -ltnp"),
    "The daemon does not run": Mistake(_no_daemon, "daemon", "does not listen", "sudo systemctl restart"),
    "dom0's policy has no line for the qube": Mistake(
        _no_policy, "policy", "refused", "ruddo.PrometheusProxy  +{node}  sys-net  work  allow autostart=no"
    ),
    "dom0's policy has a line for each port, where one call has all": Mistake(
        _line_a_port, "policy", "refused", "ruddo.PrometheusProxy  +{both}  sys-net  work  allow autostart=no"
    ),
    "The qube has upstream's service, which needs a line for each port": Mistake(
        _upstream, "policy", "upstream's", "ruddo.PrometheusProxy  +{node}  sys-net  work  allow autostart=no"
    ),
    "The qube is halted": Mistake(_halted, "policy", "does not run", "qvm-start work"),
    "dom0 may not be asked which qubes run": Mistake(
        _no_discovery, "discovery", "does not say", "admin.vm.List          *"
    ),
    "The qube's template has no service": Mistake(
        _no_service, "service", "is not installed in work", "prometheus-qubes-proxy-service"
    ),
    "The exporter does not run": Mistake(_no_exporter, "exporter", "Connection refused", "Start the exporter"),
    "The port is not the exporter's": Mistake(_no_http, "exporter", "does not speak HTTP", "is it the exporter?"),
    "The port serves a web page": Mistake(_web_page, "text", "web page", "is it an exporter"),
    "The exporter is slower than the deadline": Mistake(_slow, "time", "in time", "scrape_timeout"),
    "The daemon did not read the new configuration": Mistake(
        _not_reloaded, "daemon's view", "another configuration", "sudo systemctl reload prometheus-qubes-proxy"
    ),
    "Prometheus does not scrape the daemon": Mistake(_nobody_scrapes, "scraped", "nobody scrapes", "curl http://"),
    "The firewall does not let Prometheus in": Mistake(_no_rule, "firewall", "no rule", "sudoedit /rw/config/"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_common_mistake_is_found_and_explained(scene: Scene, examine: Says, mistake: Mistake) -> None:
    """At its hop, in words, with the remedy; and the exit status is 1."""
    mistake.make(scene)
    status, checks = examine()
    ports = sorted(scene.of["work"].values())
    remedy = mistake.remedy.format(node=ports[0], both="+".join(map(str, ports)))
    found = [check for check in checks if check["hop"] == mistake.hop and check["result"] == "failed"]
    assert any(mistake.says in check["says"] for check in found), checks
    assert any(remedy in line for check in found for line in (check["says"], check["remedy"], *check["copy"])), found
    assert status == 1


def test_a_text_that_never_came_is_not_called_well(scene: Scene, examine: Says) -> None:
    """The service answered; what the slow exporter would have said is not known."""
    _slow(scene)
    hops = {check["hop"]: check["result"] for check in examine()[1] if check["subject"] == "work:node"}
    assert hops == {
        **dict.fromkeys(("policy", "qube", "service"), "ok"),
        **dict.fromkeys(("exporter", "text"), "skipped"),
        "time": "failed",
    }


def test_what_hangs_is_not_called_another_program(scene: Scene, examine: Says) -> None:
    """It takes connections, and says nothing; the daemon perhaps hangs."""
    scene.patch.setattr(presence, "CONNECT_SECONDS", 0.1)

    def answer(sock: socket.socket) -> None:
        while sock.recv(1000):
            """It reads, and says nothing."""

    scene.stack.enter_context(raw_server(answer, port=scene.port))
    (said,) = (check["says"] for check in examine()[1] if check["hop"] == "daemon")
    assert "gives no HTTP answer" in said


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\nprometheus-qubes-proxy"])
def test_what_drips_for_ever_does_not_hold_doctor_up(scene: Scene, examine: Says, begin: bytes) -> None:
    """A byte now and then, in the head or in the body, is no answer: there is one deadline for all of it."""
    scene.patch.setattr(presence, "CONNECT_SECONDS", 0.3)

    def answer(sock: socket.socket) -> None:
        sock.sendall(begin)
        while True:
            sock.sendall(b"x")
            time.sleep(0.05)

    scene.stack.enter_context(raw_server(answer, port=scene.port))
    (said,) = (check["says"] for check in examine()[1] if check["hop"] == "daemon")
    assert "gives no HTTP answer" in said


@pytest.mark.parametrize("dripping", ["/metrics/proxy", "/metrics"])
def test_a_page_of_the_daemon_that_drips_does_not_hold_doctor_up(scene: Scene, examine: Says, dripping: str) -> None:
    """The daemon is there, and what it sees is not known."""
    scene.patch.setattr(doctor, "_SEND_SECONDS", 0.3)
    scene.more["scrape"] = 'timeout = "1s"'

    def answer(sock: socket.socket) -> None:
        path = sock.recv(1000).split()[1].decode()
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nprometheus-qubes-proxy is healthy.\n")
        while path == dripping:
            sock.sendall(b"x")
            time.sleep(0.05)
        sock.shutdown(socket.SHUT_WR)

    scene.stack.enter_context(raw_server(answer, port=scene.port))
    checks = examine()[1]
    # One that tells its counters, and not its file among them, is an older one.
    result = "ok" if dripping == "/metrics/proxy" else "warning"
    assert [check["result"] for check in checks if check["hop"] == "daemon"] == [result]
    (view,) = (check for check in checks if check["hop"] == "daemon's view")
    assert (view["result"], "does not answer in time" in view["says"]) == ("skipped", True)


def test_a_daemon_behind_a_password_is_there(scene: Scene, examine: Says) -> None:
    """What it sees is not known to doctor, and that is no failure; a person can look with the password."""
    scene.more["rest"] = f'[web.basic_auth_users]\nprometheus = "{hashed(b"secret")}"'
    scene.serve()
    status, checks = examine()
    assert status == 0
    (view,) = (check for check in checks if check["hop"] == "daemon's view")
    assert (view["result"], "password" in view["says"]) == ("skipped", True)
    assert "web.basic_auth_users" in view["remedy"]
    (there,) = (check for check in checks if check["hop"] == "daemon")
    assert (there["result"], "its file is not known" in there["says"]) == ("ok", True)


def test_a_daemon_with_another_file_is_not_ours(scene: Scene, examine: Says) -> None:
    """Such as that of `make run`, on the same port; nothing is compared with what it sees."""
    scene.start()
    other, ours = scene.folder, scene.folder / "ours"
    ours.mkdir()
    scene.folder = ours
    status, checks = examine()
    (found,) = (check for check in checks if check["hop"] == "daemon")
    assert (status, found["result"]) == (1, "failed")
    assert f"reads '{other}/proxy.toml', and not {ours}/proxy.toml" in found["says"]
    assert not {"daemon's view", "daemon's configuration", "scraped"} & {check["hop"] for check in checks}


def test_a_daemon_that_could_not_listen_is_not_to_be_started(scene: Scene, examine: Says) -> None:
    """Who starts it would see it end: the address has to be another one."""
    text = scene.text().replace(f"0.0.0.0:{scene.port}", "192.0.2.1:8199")
    scene.patch.setattr(scene, "text", lambda: text)
    (found,) = (check for check in examine()[1] if check["hop"] == "daemon")
    assert (found["result"], "cannot listen on 192.0.2.1:8199: " in found["says"]) == ("failed", True)
    assert "Correct web.listen_addresses" in found["remedy"]


@pytest.mark.parametrize("running", [True, False])
def test_a_daemon_with_tls_is_asked_over_tls(scene: Scene, examine: Says, tmp_path: Path, *, running: bool) -> None:
    """Its certificate is for the name by which others know it."""
    authority = Authority(tmp_path / "ca")
    cert, key = authority.sign("netvm", "DNS:netvm.example")
    scene.more["rest"] = f'[web.tls_server_config]\ncert_file = "{cert}"\nkey_file = "{key}"'
    if running:
        scene.serve()
    hops = {check["hop"]: check["result"] for check in examine()[1]}
    assert hops["daemon"] == ("ok" if running else "failed")
    assert hops.get("daemon's view") == ("ok" if running else None)


def test_discovery_that_names_nobody_is_explained(scene: Scene, examine: Says) -> None:
    """dom0 answers, and its policy hides every qube."""
    scene.qubes.add("dom0")
    dom0 = scene.qubes.service_of("dom0").with_name("admin.vm.List")
    dom0.write_text("#!/bin/sh\nprintf '0\\000dom0 class=AdminVM state=Running\\n'\n", encoding="utf-8")
    dom0.chmod(0o755)
    found = '[discovery]\nsource = "admin.vm.List"\nexporters = ["node"]'
    text = f'qrexec.client = "{CLIENT}"\nexporters.node = 9100\n{found}'
    scene.patch.setattr(scene, "text", lambda: text)
    (check,) = (check for check in examine()[1] if check["hop"] == "discovery")
    assert check["result"] == "failed"
    assert any("@tag:monitored" in line for line in check["copy"])


def test_no_line_of_policy_is_wanted_where_dom0_cannot_be_asked(
    scene: Scene, examine: Says, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Outside of Qubes OS, nothing in dom0 or in a qube is the remedy."""
    for name in scene.qubes.env:
        monkeypatch.setenv(name, str(tmp_path / "none"))
    scene.patch.setattr(presence, "SERVICE_FLAGS", tmp_path / "none")
    scene.more["rest"] = "[discovery]\n"
    checks = [check for check in examine()[1] if "no qrexec agent here" in check["says"]]
    assert {check["hop"] for check in checks} == {"discovery", "service"}
    assert all(check["remedy"].startswith("Run it in a qube") and not check["copy"] for check in checks)


def test_all_is_well_where_qubes_are_found_and_none_is_configured(scene: Scene, examine: Says) -> None:
    """Only [discovery]: what dom0 names is looked at like what the configuration names."""
    scene.qubes.add("dom0")
    dom0 = scene.qubes.service_of("dom0").with_name("admin.vm.List")
    listed = r"0\000dom0 class=AdminVM state=Running\nwork class=AppVM state=Running\n"
    dom0.write_text(f"#!/bin/sh\nprintf '{listed}'\n", encoding="utf-8")
    dom0.chmod(0o755)
    rest = f'[web]\nlisten_addresses = ["127.0.0.1:{scene.port}"]\n[discovery]\nexporters = ["node"]\n'
    text = f'qrexec.client = "{CLIENT}"\nexporters.node = {scene.exporter.port}\n{rest}'
    scene.patch.setattr(scene, "text", lambda: text)
    scene.start().get()
    status, checks = examine()
    assert (status, [check for check in checks if check["result"] == "failed"]) == (0, [])
    assert {check["hop"] for check in checks if check["subject"] == "work:node"} == {
        *("policy", "qube", "service", "exporter", "text", "time"),
    }


def test_a_line_that_dom0s_figures_lack_is_named(scene: Scene, examine: Says) -> None:
    """What dom0 answers is well, and no exporter is the worse for it."""
    scene.qubes.add_dom0()
    scene.more["rest"] = "[dom0]\nproperties = true\n"
    scene.start().get()
    status, checks = examine()
    assert [check["says"] for check in checks if check["hop"] == HOP] == ["7 of 7 policy lines for [dom0] work"]
    assert status == 0
    (scene.qubes.root / "qubes" / "dom0" / "denied").write_text("admin.pool.Info", encoding="utf-8")
    status, checks = examine()
    (failed,) = (check for check in checks if check["result"] == "failed")
    assert (failed["hop"], failed["copy"]) == (HOP, ["admin.pool.Info  *  sys-net  @adminvm  allow target=dom0"])
    assert status == 1


@pytest.fixture
def only_dom0(scene: Scene) -> Scene:
    """No exporter anywhere: dom0 is asked for its figures, and nothing else."""
    scene.qubes.add_dom0()
    web = f'[web]\nlisten_addresses = ["127.0.0.1:{scene.port}"]'
    scene.patch.setattr(scene, "text", lambda: f'qrexec.client = "{scene.more["client"]}"\n{web}\n[dom0]\n')
    return scene


def test_all_is_well_where_only_dom0_is_asked(only_dom0: Scene, examine: Says) -> None:
    """Nothing is called missing because no qube is scraped, and what calls need is looked at."""
    only_dom0.start().get()
    status, checks = examine()
    assert (status, [check for check in checks if check["result"] == "failed"]) == (0, [])
    assert {"/run/qubes", "qrexec agent", "program"} <= {one["hop"] for one in checks if one["result"] == "ok"}


@pytest.mark.parametrize(
    ("mistake", "hop"),
    [(_no_client, "program"), (lambda scene: (scene.run / "agent").unlink(), "qrexec agent")],
    ids=["no client", "no agent"],
)
def test_what_calls_need_is_missed_where_only_dom0_is_asked(
    only_dom0: Scene, examine: Says, mistake: Callable[[Scene], None], hop: str
) -> None:
    """dom0 is called as qubes are."""
    only_dom0.start()
    mistake(only_dom0)
    status, checks = examine()
    assert (status, hop in {check["hop"] for check in checks if check["result"] == "failed"}) == (1, True)


def test_a_dom0_that_is_asked_for_nothing_is_a_warning(scene: Scene, examine: Says) -> None:
    """As for `check`."""
    scene.more["rest"] = "[dom0]\nstats = false\nstorage = false\n"
    (warning,) = (check for check in examine()[1] if check["result"] == "warning")
    assert (warning["hop"], "dom0: every switch is false" in warning["says"]) == ("configuration", True)


@pytest.mark.parametrize("text", ["", "exporters.node = 9100\n"])
def test_a_configuration_without_qubes_and_discovery_is_explained(scene: Scene, examine: Says, text: str) -> None:
    """The file, and what to add."""
    scene.patch.setattr(scene, "text", lambda: text)
    status, checks = examine()
    (said,) = (check["says"] for check in checks if check["result"] == "failed")
    assert said == f"{scene.folder / 'proxy.toml'}: qubes: there is nothing to scrape; add a table such as [qubes.work]"
    assert status == 1


def test_the_documentation_has_these_mistakes() -> None:
    """Twenty, each with what doctor says."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = text.partition("## The twenty commonest mistakes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \|", section, re.MULTILINE)
    assert rows == [(name, mistake.hop) for name, mistake in MISTAKES.items()]
    assert len(rows) == 20


def test_a_person_gets_a_table_with_the_remedies(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines to copy stand alone; hops behind a broken one are left out."""
    scene.start()
    get(f"http://127.0.0.1:{scene.port}/metrics")
    scene.qubes.set_policy("work", "deny")
    path = scene.folder / "proxy.toml"
    path.write_text(scene.text(), encoding="utf-8")
    assert cli.main(["doctor", f"--config.file={path}"]) == 1
    said, progress = capsys.readouterr()
    lines = said.splitlines()
    (at,) = (number for number, line in enumerate(lines) if re.match(r"FAILED +work:node +policy +refused: ", line))
    assert lines[at + 1].startswith("    Add this line to dom0's policy")
    port = scene.of["work"]["node"]
    assert lines[at + 2].strip() == f"ruddo.PrometheusProxy  +{port}  sys-net  work  allow autostart=no"
    assert re.search(r"^warning +work:node +daemon's view +up for the daemon", said, re.MULTILINE)
    assert re.fullmatch(r"\d+ checks: 1 failed, 1 warning", lines[-1])
    assert "not known" not in said
    assert progress == "", "no terminal"
