# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the daemon is there: its service flag, its port, and files that its user can read."""

import os
import pwd
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from federator import cli, config, host, presence
from federator.findings import Place
from tests.helpers import SERVICE
from tests.parts import free_port
from tests.standin.qubes import CLIENT


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A qube called net, whose service flags are in this folder."""
    folder = tmp_path / "qubes-service"
    folder.mkdir()
    monkeypatch.setattr(presence, "SERVICE_FLAGS", folder)
    monkeypatch.setattr(host, "own_name", lambda: "net")
    return folder


def test_a_forgotten_service_flag_is_said(flags: Path) -> None:
    """`systemctl restart` succeeded and did nothing, and `scrape` said that all was up."""
    assert "in dom0: qvm-service --enable net prometheus-qubes-proxy" in (presence.missing([]) or "")
    (flags / "prometheus-qubes-proxy").touch()
    assert presence.missing([]) is None


def test_a_daemon_that_does_not_listen_is_said(flags: Path, tmp_path: Path) -> None:
    """With the address that is silent; on every kind of address."""
    (flags / "prometheus-qubes-proxy").touch()
    silent = free_port()
    path = tmp_path / "sock"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        port = server.getsockname()[1]
        unix.bind(str(path))
        unix.listen()
        assert presence.missing([("0.0.0.0", port), ("", port), path]) is None
        said = presence.missing([("127.0.0.1", port), ("::1", silent)])
    assert said == (
        f"the daemon does not listen on [::1]:{silent}; start it: sudo systemctl restart prometheus-qubes-proxy"
    )
    assert "unix:/" in (presence.missing([path]) or "")


def test_nothing_is_said_outside_of_qubes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There are no service flags."""
    monkeypatch.setattr(presence, "SERVICE_FLAGS", tmp_path / "none")
    assert presence.missing([("127.0.0.1", free_port())]) is None


@pytest.mark.slow
@pytest.mark.usefixtures("flags")
@pytest.mark.parametrize("command", ["check", "scrape"])
def test_check_and_scrape_say_it_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Beside what they find, which changes neither their output nor their status."""
    monkeypatch.setattr("federator.journal.set_up", lambda *_: None)  # the log of the tests stays as it is
    path = tmp_path / "p.toml"
    path.write_text(
        f"[exporters]\nnode = {free_port()}\n[qubes.net]\ntransport = 'local'\nexporters = ['node']\n"
        f"[qrexec]\nlocal_service = '{SERVICE}'\nclient = '{CLIENT}'\n",
        encoding="utf-8",
    )
    assert cli.main([command, f"--config.file={path}"]) == (0 if command == "check" else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "warning: the daemon does not start in this qube" in line


def test_what_doctor_wants_to_know_of_this_qube(flags: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fact by itself: the flag, qrexec's folder, the agent's socket, the firewall's rules."""
    agent = tmp_path / "run" / "agent"
    monkeypatch.setattr(presence, "RUN_QUBES", agent.parent)
    monkeypatch.setattr(presence, "AGENT_SOCKET", agent)
    monkeypatch.setattr(presence, "FIREWALL_RULES", ("false",))
    assert presence.place() == Place("net", in_qube=True, run_qubes=False, agent="missing")
    agent.parent.mkdir()
    (flags / "prometheus-qubes-proxy").touch()
    monkeypatch.setattr(presence, "FIREWALL_RULES", ("echo", "tcp dport 8199 accept"))
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(agent))
        whole = Place("net", in_qube=True, flagged=True, firewall="tcp dport 8199 accept\n")
        assert presence.place() == whole
        monkeypatch.setattr("os.access", lambda *_: False)
        assert presence.place() == replace(whole, agent="closed to us")
    monkeypatch.setattr(presence, "RUN_QUBES", flags)  # /var/run leads elsewhere
    assert not presence.place().run_qubes


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads what others may not")
def test_a_file_that_only_root_reads_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` as root was content, and the daemon could not start."""
    monkeypatch.setattr(presence, "UNIT_USER", "nobody")
    folder = Path("/tmp")  # noqa: S108 - all others in pytest's folder are closed to nobody
    path = folder / f"{tmp_path.name}-{os.getpid()}.toml"
    path.write_text("[exporters]\nnode = 1\n[qubes.work]\nexporters = ['node']\n", encoding="utf-8")
    try:
        path.chmod(0o600)
        (line,) = presence.unreadable(config.load(path), None)
        assert line.startswith(f"{path}: the daemon runs as nobody, who cannot read this file; ")
        path.chmod(0o640)
        os.chown(path, 0, pwd.getpwnam("nobody").pw_gid)
        assert presence.unreadable(config.load(path), None) == []
    finally:
        path.unlink()
