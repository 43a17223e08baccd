# SPDX-License-Identifier: GPL-3.0-or-later
"""What is at the addresses to listen on: whether the daemon could listen there, and who answers."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from federator import cli, config, daemon, listeners, presence
from federator.daemonview import listener_checks
from federator.errors import StartError
from federator.model import Config
from tests import test_presence
from tests.certificates import Authority
from tests.helpers import SERVICE
from tests.parts import eventually, federator, free_port, process, raw_server

flags = test_presence.flags  # the fixture: a qube's service flags

# Nobody has it: it is for documentation.
FOREIGN = "192.0.2.1:8199"


def text(*addresses: str, rest: str = "") -> str:
    """A configuration of the qube that the daemon is in, with these addresses to listen on."""
    return (
        f"[exporters]\nnode = 9100\n[qubes.net]\ntransport = 'local'\nexporters = ['node']\n"
        f"[qrexec]\nlocal_service = '{SERVICE}'\n[web]\nlisten_addresses = {list(addresses)}\n{rest}"
    )


def settings_of(*addresses: str, rest: str = "") -> Config:
    """The same, read."""
    return config.parse(text(*addresses, rest=rest), Path("/x.toml"))


def unusable(settings: Config) -> list[str]:
    """A line for each address where the daemon could not listen."""
    return list(asyncio.run(listeners.unusable(settings)).values())


def other_program(sock: socket.socket) -> None:
    """It speaks HTTP."""
    sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nI am another program\n")
    sock.shutdown(socket.SHUT_WR)


def silent_program(sock: socket.socket) -> None:
    """It takes connections, and says nothing."""
    while sock.recv(1000):
        pass


@pytest.fixture
def taken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address where another program listens, and does this with each connection; or does not even take them."""
    monkeypatch.setattr(presence, "CONNECT_SECONDS", 0.2)
    with ExitStack() as stack:
        if request.param is None:
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            yield f"127.0.0.1:{sock.getsockname()[1]}"
        else:
            yield f"127.0.0.1:{stack.enter_context(raw_server(request.param))}"


@pytest.mark.parametrize("taken", [other_program, silent_program, None], indirect=True)
def test_an_address_that_another_program_has_is_told(taken: str) -> None:
    """With file, key, address and remedy; and `serve` fails with the same words."""
    said = f"cannot listen on {taken}: Address already in use; end what is there (`sudo ss -ltnp` lists what listens)"
    (line,) = unusable(settings_of(taken, f"127.0.0.1:{free_port()}"))
    assert line.startswith(f"/x.toml: web.listen_addresses: {said}")


def test_an_address_that_this_qube_does_not_have_is_told() -> None:
    """It is another qube's, or was this one's."""
    (line,) = unusable(settings_of(FOREIGN))
    assert line.startswith(f"/x.toml: web.listen_addresses: cannot listen on {FOREIGN}: ")
    assert line.endswith("; write an address of this qube, or :PORT for all of them")


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EACCES, "choose a port from 1024 on"), (errno.EPERM, "SocketBindAllow=tcp:PORT")]
)
def test_a_port_that_is_not_for_this_user_is_told(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    """The system's own limit, or that of the unit. The tests may run as root, who may use all ports."""

    async def refuse(*_: object, **__: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_server", refuse)
    (line,) = unusable(settings_of("127.0.0.1:80"))
    assert "cannot listen on 127.0.0.1:80: " in line
    assert words in line


def test_a_socket_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file is in its place, or its folder is not there. A socket that is there makes way, so it stays as it is."""
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        names = ("file", "none/socket", "socket", "new")
        first, second = unusable(settings_of(*(f"unix:{tmp_path / name}" for name in names)))
    assert f"cannot listen on unix:{tmp_path}/file: Address already in use; " in first
    assert f"unix:{tmp_path}/none/socket: No such file or directory; make the folder of the socket" in second
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "socket"]
    assert unusable(settings_of("unix:/run/prometheus-qubes-proxy/http.sock")) == []


def test_a_socket_that_is_not_for_this_user_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's is for its user and group: it may be well. The tests may run as root, who may use all."""
    path = tmp_path / "socket"
    monkeypatch.setattr("os.access", lambda *_: False)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        settings = settings_of(f"unix:{path}")
        assert unusable(settings) == []
        found = asyncio.run(listeners.at(path, settings))
    (check,) = listener_checks([found], "/x.toml", tls=False)
    assert (check.result, check.copy) == ("skipped", ("sudo prometheus-qubes-proxy doctor",))
    assert len(unusable(settings_of(f"unix:{tmp_path}/other"))) == 1


def test_serve_says_the_same(tmp_path: Path) -> None:
    """What `check` warns of is what the daemon ends with."""
    path = tmp_path / "p.toml"
    path.write_text(text(FOREIGN), encoding="utf-8")
    with pytest.raises(StartError) as failed:
        asyncio.run(daemon.serve(path))
    (line,) = unusable(config.load(path))
    assert line.removeprefix(f"{path}: web.listen_addresses: ") in str(failed.value)


def test_check_warns_and_says_nothing_of_a_daemon_that_could_not_start(
    flags: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status stays 0: the daemon's own command line may name other addresses."""
    (flags / "prometheus-qubes-proxy").touch()
    path = tmp_path / "p.toml"
    path.write_text(text(FOREIGN), encoding="utf-8")
    assert cli.main(["check", f"--config.file={path}"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"warning: {path}: web.listen_addresses: cannot listen on {FOREIGN}: " in line


def wanting_a_certificate(folder: Path, kind: str) -> str:
    """The table of TLS."""
    cert, key = Authority(folder / "ca").server()
    files = f"cert_file = '{cert}'\nkey_file = '{key}'\nclient_ca_file = '{folder / 'ca' / 'ca.crt'}'\n"
    return f"[web.tls_server_config]\n{files}client_auth_type = '{kind}'\n"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["TLS12", "TLS13"])
def test_a_daemon_that_wants_a_certificate_is_there(tmp_path: Path, version: str) -> None:
    """It says nothing to us, so all that is seen of it is TLS."""
    rest = f"{wanting_a_certificate(tmp_path, 'RequireAndVerifyClientCert')}max_version = '{version}'\n"
    port = free_port()
    address = f"127.0.0.1:{port}"
    path = tmp_path / "p.toml"
    path.write_text(text(address, rest=rest), encoding="utf-8")
    with process(*federator("serve", f"--config.file={path}"), log=tmp_path / "log"):
        eventually("it serves", lambda: b"msg=serving" in (tmp_path / "log").read_bytes())
        settings = settings_of(address, rest=rest)
        assert unusable(settings) == []
        found = asyncio.run(listeners.at(("127.0.0.1", port), settings))
    assert (found.there, found.tls, found.status) == ("daemon", True, 0)


@pytest.mark.parametrize("taken", [silent_program], indirect=True)
@pytest.mark.parametrize("kind", ["RequireAndVerifyClientCert", "VerifyClientCertIfGiven"])
def test_what_is_silent_is_no_daemon_that_wants_a_certificate(taken: str, kind: str, tmp_path: Path) -> None:
    """It is another program, or a daemon that hangs: `doctor` said that all was well."""
    settings = settings_of(taken, rest=wanting_a_certificate(tmp_path, kind))
    assert len(unusable(settings)) == 1
    found = asyncio.run(listeners.at(settings.web.listen_addresses[0], settings))
    assert found.there == "mute"


def test_check_asks_the_daemon_only_what_needs_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload runs it: it must not use up web.rate_limit, which is for all clients together."""
    asked: list[str] = []

    async def fetch(_: object, path: str, *__: object, **___: object) -> tuple[int, bytes]:
        asked.append(path)
        return 200, b"prometheus-qubes-proxy is healthy"

    monkeypatch.setattr(listeners, "fetch", fetch)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert unusable(settings_of(f"127.0.0.1:{sock.getsockname()[1]}")) == []
    assert asked == ["/-/healthy"]


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_where_our_daemon_listens_nothing_is_told(tmp_path: Path, *, tls: bool) -> None:
    """Nor where the file has TLS now, and the daemon has not read it yet; or the other way round."""
    cert, key = Authority(tmp_path / "ca").sign("netvm", "DNS:netvm.example")
    rest = f"[web.tls_server_config]\ncert_file = '{cert}'\nkey_file = '{key}'\n"
    port = free_port()
    address = f"127.0.0.1:{port}"
    path = tmp_path / "p.toml"
    path.write_text(text(address, rest=rest if tls else ""), encoding="utf-8")
    with process(*federator("serve", f"--config.file={path}"), log=tmp_path / "log"):
        eventually("it serves", lambda: b"msg=serving" in (tmp_path / "log").read_bytes())
        assert unusable(settings_of(address)) == []
        assert unusable(settings_of(address, rest=rest)) == []
        found = asyncio.run(listeners.at(("127.0.0.1", port), settings_of(address)))
    assert (found.there, found.tls) == ("daemon", tls)
