# SPDX-License-Identifier: GPL-3.0-or-later
"""The monitoring qube: Prometheus and the daemon in one qube without network, as the package sets them up."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from federator import config
from tests.helpers import ROOT, SERVICE
from tests.parts import Daemon, Exporter, Prometheus, debian_program, eventually, get, process
from tests.standin.qubes import Qubes
from tests.test_discovery import ADMIN_VM_LIST, dom0
from tests.test_prometheus_yml import job

CONF = ROOT / "conf"
UNIT = CONF / "prometheus-qubes-proxy-monitor.service"
SHARE = "/usr/share/prometheus-qubes-proxy"


def settings() -> list[tuple[str, str]]:
    """The settings of the unit, in their order."""
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    return [(line.partition("=")[0], line.partition("=")[2]) for line in lines if re.match(r"[A-Z]\w+=", line)]


def words(folder: Path, address: str) -> list[str]:
    """The command of the unit, with the packages' files where they are here, and all data in this folder."""
    given = dict(settings())
    variables = dict(value.split("=", 1) for name, value in settings() if name == "Environment")
    command = re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], given["ExecStart"])
    return command.replace(SHARE, str(folder)).replace("/rw/", f"{folder}/").replace("127.0.0.1:9090", address).split()


def prometheus_files(folder: Path, proxy: str) -> Path:
    """What the packages have in /usr/share, for a daemon on another port; the configuration of Prometheus."""
    for name in ("qubes-rules.yml", "qubes-at-a-glance.html"):
        (folder / name).write_bytes((CONF / name).read_bytes())
    text = (CONF / "monitor.yml").read_text(encoding="utf-8").replace("127.0.0.1:8199", proxy)
    text = text.replace(SHARE, str(folder)).replace("/rw/", f"{folder}/")
    (folder / "monitor.yml").write_text(re.sub(r"(scrape_\w+): \d+s", r"\1: 1s", text), encoding="utf-8")
    return folder / "monitor.yml"


def test_it_runs_in_the_flagged_qube_alone() -> None:
    """A template carries it for all its qubes. The distribution's own Prometheus does not start there either."""
    assert ("ConditionPathExists", "/run/qubes-service/prometheus-qubes-proxy-monitor") in settings()
    assert ("User", "user") in settings()
    assert ("IPAddressDeny", "any") in settings()
    assert ("IPAddressAllow", "localhost") in settings()
    own = (CONF / "prometheus-flag.conf").read_text(encoding="utf-8")
    assert "\n[Unit]\nConditionPathExists=/run/qubes-service/prometheus\n" in own


def test_everything_listens_on_loopback_alone() -> None:
    """Neither the NetVM nor the network learns anything."""
    text = (CONF / "monitor.toml").read_text(encoding="utf-8")
    loaded = config.parse(text, Path("monitor.toml"))
    assert loaded.web.listen_addresses == (("127.0.0.1", 8199),)
    assert loaded.discovery
    (command,) = (value for name, value in settings() if name == "ExecStart")
    assert "--web.listen-address=127.0.0.1:9090" in command.split()
    targets = re.findall(r"targets: \[(.*)\]", (CONF / "monitor.yml").read_text(encoding="utf-8"))
    assert targets == ['"127.0.0.1:8199"'] * 2


def test_the_job_is_that_of_the_shipped_file() -> None:
    """But for the address and the machine's name: rules and dashboard need the rest."""
    ours, shipped = (job((CONF / name).read_text(encoding="utf-8")) for name in ("monitor.yml", "prometheus.yml"))
    assert len(ours) == len(shipped)
    differing = [(one, other) for one, other in zip(ours, shipped, strict=True) if one != other]
    assert {one.split()[0] for one, _ in differing} | {"labels:"} == {"-", "labels:"}
    assert len(differing) == 2


@pytest.mark.slow
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """And it is confined."""
    analyze = debian_program("systemd-analyze")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/usr/bin/prometheus", "/bin/true"), encoding="utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert UNIT.name not in done.stderr
    exposed: list[str | Path] = [analyze, "security", "--offline=true", "--threshold=25", "--no-pager", unit]
    done = subprocess.run(exposed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


@pytest.mark.slow
def test_from_the_flag_to_a_graph(qubes: Qubes, exporter: Callable[[bytes], Exporter], tmp_path: Path) -> None:
    """The daemon finds the qubes, Prometheus as the unit runs it has their series, and shows the console."""
    served = exporter(b"m 1\n")
    for name in ("work", "vault"):
        qubes.add(name)
    dom0(qubes, "admin.vm.List", ADMIN_VM_LIST)
    folder = tmp_path / "daemon"
    folder.mkdir()
    text = (CONF / "monitor.toml").read_text(encoding="utf-8").replace("node = 9100", f"node = {served.port}")
    text += f'\n[qrexec]\nclient = "{qubes.client}"\nlocal_service = "{SERVICE}"\n'
    with Daemon(folder, text, qubes.env) as proxy:
        monitor = Prometheus(tmp_path, "")
        monitor.config = prometheus_files(tmp_path, proxy.url.removeprefix("http://"))
        checked: list[str | Path] = [debian_program("promtool"), "check", "config", monitor.config]
        assert subprocess.run(checked, check=False).returncode == 0
        with process(*words(tmp_path, monitor.url.removeprefix("http://")), log=tmp_path / "prometheus.log"):
            monitor.waits_for("m{instance=~'work|vault',job='node'}", {"work": 1.0, "vault": 1.0})
            monitor.waits_for("up{job='qubes-proxy'}", {"": 1.0})
            page = f"{monitor.url}/consoles/qubes-at-a-glance.html"
            eventually("the console shows the qubes", lambda: b"vault" in get(page).body)
            assert b'"QubeDown"' in get(f"{monitor.url}/api/v1/rules").body
        assert any((tmp_path / "prometheus").iterdir())
