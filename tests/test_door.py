# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is let in, with real programs: the daemon as a process beside node_exporter's toolkit, promtool, Prometheus."""

import base64
import json
import os
import pty
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.helpers import ROOT
from tests.parts import Exporter, Prometheus, debian_program, eventually, federator, free_port, process, running, toml

bcrypt = pytest.importorskip("bcrypt", reason="the optional package is not installed")

# Each of these tests starts the daemon or another program.
pytestmark = pytest.mark.slow

HASH = bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()
# Over 72 bytes, the toolkit looks at the first 72 alone; here the whole password is wrong.
USERS = ["", "alice:right", "alice:wrong", "alice:", "alice", "bob:right", ":", "alice:right:", "alice:" + "x" * 73]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """It has signed the server's certificate, and that of a client."""
    one = Authority(tmp_path / "tls")
    one.server()
    one.sign("alice", "DNS:alice")
    return one


@contextmanager
def served(folder: Path, text: str, *words: str, address: str = "127.0.0.1:0") -> Iterator[Path]:
    """The daemon with this configuration, listening; its log."""
    config, log = folder / "proxy.toml", folder / "daemon.log"
    config.write_text(text, encoding="utf-8")
    log.touch()
    with process(
        *federator("serve", f"--config.file={config}", f"--web.listen-address={address}", *words), log=log
    ) as one:

        def listens() -> bool:
            assert one.poll() is None, log.read_text(encoding="utf-8")
            return "msg=serving" in log.read_text(encoding="utf-8")

        eventually("it listens", listens)
        yield log


def port_of(log: Path) -> int:
    """Where the daemon listens."""
    return int(log.read_text(encoding="utf-8").partition("address=127.0.0.1:")[2].split()[0])


def status(port: int, tls: ssl.SSLContext | None, path: str, headers: Mapping[str, str]) -> int | str:
    """What an answer begins with, or that there is none."""
    make = HTTPSConnection("127.0.0.1", port, timeout=30, context=tls) if tls else HTTPConnection("127.0.0.1", port)
    try:
        make.request("GET", path, headers=dict(headers))
        return make.getresponse().status
    except TimeoutError:
        return "silence"
    except OSError:
        return "no answer"
    finally:
        make.close()


def basic(text: str) -> dict[str, str]:
    """The header for a user and a password."""
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()} if text else {}


SETTINGS = {
    "nothing": {},
    "users": {"basic_auth_users": {"alice": HASH}},
    "TLS": {"tls_server_config": {"cert_file": "tls/server.crt", "key_file": "tls/server.key"}},
    "TLS 1.3 and users": {
        "tls_server_config": {"cert_file": "tls/server.crt", "key_file": "tls/server.key", "min_version": "TLS13"},
        "basic_auth_users": {"alice": HASH},
    },
    "certificates of clients": {
        "tls_server_config": {
            "cert_file": "tls/server.crt",
            "key_file": "tls/server.key",
            "client_auth_type": "RequireAndVerifyClientCert",
            "client_ca_file": "tls/ca.crt",
        }
    },
    "certificates of clients who have one": {
        "tls_server_config": {
            "cert_file": "tls/server.crt",
            "key_file": "tls/server.key",
            "client_auth_type": "VerifyClientCertIfGiven",
            "client_ca_file": "tls/ca.crt",
            "max_version": "TLS12",
            "cipher_suites": ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"],
        }
    },
}


def as_toml(settings: Mapping[str, Mapping[str, object]]) -> str:
    """JSON's texts and lists are TOML's, and YAML's."""
    return "\n".join(
        f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
        for name, table in settings.items()
    )


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_same_as_the_toolkit(
    tmp_path: Path,
    authority: Authority,
    settings: Mapping[str, Mapping[str, object]],
    exporter: Callable[[bytes], Exporter],
) -> None:
    """The same file, in YAML and in TOML; the same requests to node_exporter and to us; the same statuses."""
    (tmp_path / "web.yml").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "web.toml").write_text(as_toml(settings), encoding="utf-8")
    subprocess.run([debian_program("promtool"), "check", "web-config", tmp_path / "web.yml"], check=True)
    theirs = free_port()
    words = (f"--web.config.file={tmp_path / 'web.yml'}", f"--web.listen-address=127.0.0.1:{theirs}")
    quiet = ("--collector.disable-defaults", "--collector.time", "--log.level=error")
    text = toml({"work": {"x": exporter(b"m 1\n").port}}, transport="local")
    clients: list[ssl.SSLContext | None] = [None]
    for name, newest in (("", ssl.TLSVersion.TLSv1_3), ("", ssl.TLSVersion.TLSv1_2), ("alice", ssl.TLSVersion.TLSv1_3)):
        context = ssl.create_default_context(cafile=authority.folder / "ca.crt")
        context.maximum_version = newest
        if name:
            context.load_cert_chain(authority.folder / f"{name}.crt", authority.folder / f"{name}.key")
        clients.append(context)
    with (
        process(debian_program("prometheus-node-exporter"), *words, *quiet, log=tmp_path / "node.log"),
        served(tmp_path, text, f"--web.config.file={tmp_path / 'web.toml'}") as log,
    ):
        eventually("node_exporter listens", lambda: _listens(theirs))
        ours = port_of(log)
        requests = [(one, "/", user) for one in clients for user in USERS]
        requests += [(one, "/metrics", "alice:right") for one in clients]
        found = [[status(port, one, path, basic(user)) for one, path, user in requests] for port in (theirs, ours)]
        if "tls_server_config" in settings:  # Go answers plain HTTP on its port with 400, we close the connection
            plain = [index for index, (one, _, _) in enumerate(requests) if one is None]
            assert [{statuses[index] for index in plain} for statuses in found] == [{400}, {"no answer"}]
            found = [[one for index, one in enumerate(statuses) if index not in plain] for statuses in found]
        assert found[1] == found[0]
        assert 200 in found[1]
        assert "Traceback" not in log.read_text(encoding="utf-8")


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def test_prometheus_scrapes_over_tls_with_a_password(
    tmp_path: Path, authority: Authority, exporter: Callable[[bytes], Exporter]
) -> None:
    """And another one, without it, does not."""
    settings = SETTINGS["TLS 1.3 and users"]
    tls = f"tls_config: {{ca_file: '{authority.folder / 'ca.crt'}'}}"
    _scraped(
        tmp_path,
        exporter(b"m 7\n"),
        settings,
        good=f"{tls}, basic_auth: {{username: alice, password: right}}",
        bad=f"{tls}, basic_auth: {{username: alice, password: wrong}}",
    )


def test_prometheus_scrapes_with_a_certificate(
    tmp_path: Path, authority: Authority, exporter: Callable[[bytes], Exporter]
) -> None:
    """And another one, without it, does not."""
    folder = authority.folder
    settings = {
        "tls_server_config": {
            **SETTINGS["certificates of clients"]["tls_server_config"],
            "client_allowed_sans": ["alice"],
        }
    }
    ca = f"ca_file: '{folder / 'ca.crt'}'"
    _scraped(
        tmp_path,
        exporter(b"m 7\n"),
        settings,
        good=f"tls_config: {{{ca}, cert_file: '{folder / 'alice.crt'}', key_file: '{folder / 'alice.key'}'}}",
        bad=f"tls_config: {{{ca}}}",
    )


def _scraped(
    tmp_path: Path, exporter: Exporter, settings: Mapping[str, Mapping[str, object]], *, good: str, bad: str
) -> None:
    rest = as_toml({f"web.{name}": table for name, table in settings.items()})
    with (
        served(tmp_path, toml({"work": {"x": exporter.port}}, transport="local", rest=rest)) as log,
        ExitStack() as stack,
    ):
        address = f"127.0.0.1:{port_of(log)}"
        seen = {}
        for name, job in (("good", good), ("bad", bad)):
            folder = tmp_path / name
            folder.mkdir()
            prometheus = Prometheus(folder, address, more=f"scheme: https, {job}, ")
            seen[name] = stack.enter_context(prometheus.running())
        seen["good"].waits_for("m", {"work": 7.0})
        seen["bad"].waits_for("up", {"": 0.0})
        assert seen["bad"].query("m") == {}
        assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("address", "guard", "told"),
    [
        ("127.0.0.1:0", {}, 0),
        ("[::1]:0", {}, 0),
        ("0.0.0.0:0", {}, 1),
        (":0", {}, 1),
        ("0.0.0.0:0", SETTINGS["users"], 0),
        ("0.0.0.0:0", SETTINGS["TLS"], 0),
    ],
)
def test_an_open_door_is_told_once(
    tmp_path: Path, authority: Authority, address: str, guard: Mapping[str, Mapping[str, object]], told: int
) -> None:
    """Beyond loopback, with neither TLS nor a password."""
    assert authority
    rest = as_toml({f"web.{name}": table for name, table in guard.items()})
    with served(tmp_path, toml({"work": {"x": 1}}, transport="local", rest=rest), address=address) as log:
        if told:
            eventually("it is told", lambda: "there is neither TLS nor a password" in log.read_text(encoding="utf-8"))
    assert log.read_text(encoding="utf-8").count("there is neither TLS nor a password") == told


@pytest.mark.parametrize(("command", "code"), [("serve", 78), ("check", 1)])
def test_a_certificate_that_is_missing_stops_the_start(tmp_path: Path, command: str, code: int) -> None:
    """In one line, with file and key, and with the status that a wrong configuration has."""
    rest = as_toml({"web.tls_server_config": SETTINGS["TLS"]["tls_server_config"]})
    config = tmp_path / "p.toml"
    config.write_text(toml({"work": {"x": 1}}, transport="local", rest=rest), encoding="utf-8")
    done = subprocess.run(federator(command, f"--config.file={config}"), cwd=ROOT, capture_output=True, check=False)
    line = f"prometheus-qubes-proxy: {config}: web.tls_server_config.cert_file: {tmp_path}/tls/server.crt: No such file"
    assert (done.returncode, done.stderr.decode().startswith(line)) == (code, True)
    assert done.stderr.count(b"\n") == 1


# Descriptors 3 and 4 are the sockets, and LISTEN_PID is the daemon's own.
_AS_SYSTEMD = """
import os, sys
sockets = [os.dup(os.dup(os.dup(int(number)))) for number in sys.argv[1:3]]
for wanted, fd in enumerate([os.dup(fd) for fd in sockets], 3):
    os.dup2(fd, wanted)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2")
os.execv(sys.argv[3], sys.argv[3:])
"""


def over_unix(path: Path) -> bytes:
    """The answer to a request on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: sys-net\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(65536), b""))


def test_a_unix_socket(tmp_path: Path, exporter: Callable[[bytes], Exporter]) -> None:
    """For a reverse proxy; it is for our user and group, and one that is left from before is replaced."""
    path = tmp_path / "s"
    text = toml({"work": {"x": exporter(b"m 1\n").port}}, transport="local", rest='[web]\nhosts = ["sys-net"]\n')
    for _ in range(2):
        with served(tmp_path, text, address=f"unix:{path}") as log:
            assert f"address=unix:{path}" in log.read_text(encoding="utf-8")
            answer = over_unix(path)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b'\nm{qube="work",exporter="x"} 1\n' in answer
            assert path.stat().st_mode & 0o777 == 0o660
        log.unlink()


def test_sockets_of_systemd(tmp_path: Path, exporter: Callable[[bytes], Exporter]) -> None:
    """It listens on these, and on no address of the file; a child of the daemon does not get them."""
    path, config = tmp_path / "s", tmp_path / "p.toml"
    text = toml({"work": {"x": exporter(b"m 1\n").port}}, transport="local", rest='[web]\nhosts = ["sys-net"]\n')
    config.write_text(text, encoding="utf-8")
    words = federator("serve", f"--config.file={config}", "--web.systemd-socket")
    with socket.socket(socket.AF_UNIX) as one, socket.create_server(("127.0.0.1", 0)) as other:
        one.bind(str(path))
        one.listen()
        with running(
            [sys.executable, "-c", _AS_SYSTEMD, str(one.fileno()), str(other.fileno()), *words],
            cwd=ROOT,
            pass_fds=(one.fileno(), other.fileno()),
            stderr=subprocess.PIPE,
        ) as daemon:
            try:
                assert daemon.stderr is not None
                line = next(line for line in daemon.stderr if b"msg=serving" in line).decode()
                assert f'address="127.0.0.1:{other.getsockname()[1]} unix:{path}"' in line
                assert b'\nm{qube="work",exporter="x"} 1\n' in over_unix(path)
                assert status(other.getsockname()[1], None, "/metrics", {}) == 200
            finally:
                daemon.terminate()


def test_without_a_socket_of_systemd_it_does_not_start(tmp_path: Path) -> None:
    """It would serve nobody."""
    config = tmp_path / "p.toml"
    config.write_text(toml({"work": {"x": 1}}, transport="local"), encoding="utf-8")
    words = federator("serve", f"--config.file={config}", "--web.systemd-socket")
    done = subprocess.run(words, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"--web.systemd-socket: systemd gave no socket" in done.stderr


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["a datagram", "a connection"])
def test_a_socket_of_systemd_that_is_no_listening_stream(tmp_path: Path, kind: socket.SocketKind) -> None:
    """ListenDatagram= and Accept=yes of the unit."""
    config = tmp_path / "p.toml"
    config.write_text(toml({"work": {"x": 1}}, transport="local"), encoding="utf-8")
    words = federator("serve", f"--config.file={config}", "--web.systemd-socket")
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        descriptors = (one.fileno(), other.fileno())
        done = subprocess.run(
            [sys.executable, "-c", _AS_SYSTEMD, *map(str, descriptors), *words],
            cwd=ROOT,
            pass_fds=descriptors,
            capture_output=True,
            check=False,
        )
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"--web.systemd-socket: the unit of type socket must have ListenStream=" in done.stderr


def test_hash_password_of_a_pipe() -> None:
    """One line; the hash is one that the toolkit takes."""
    done = subprocess.run(
        federator("hash-password"), cwd=ROOT, input="pässword\n".encode(), capture_output=True, check=True
    )
    assert bcrypt.checkpw("pässword".encode(), done.stdout.strip())
    assert done.stdout.startswith(b"$2b$10$")
    done = subprocess.run(federator("hash-password"), cwd=ROOT, input=b"\xff\n", capture_output=True, check=True)
    assert bcrypt.checkpw(b"\xff", done.stdout.strip())
    done = subprocess.run(federator("hash-password"), cwd=ROOT, input=b"\n", capture_output=True, check=False)
    assert (done.returncode, b"1 to 72 bytes" in done.stderr) == (1, True)


@pytest.mark.parametrize(("second", "code"), [(b"secret", 0), (b"other", 1)])
def test_hash_password_of_a_terminal(second: bytes, code: int) -> None:
    """It asks twice, and shows nothing of it."""
    ours, theirs = pty.openpty()
    with running(
        federator("hash-password"),
        cwd=ROOT,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        for prompt, word in ((b"Password: ", b"secret"), (b"Once more: ", second)):
            while not shown.endswith(prompt):
                shown += os.read(ours, 1000)
            os.write(ours, word + b"\n")
        assert process.stdout is not None
        printed = process.stdout.read().strip()
        assert process.wait(30) == code
    os.close(ours)
    assert b"secret" not in shown + printed
    assert not code or not printed
    assert code or bcrypt.checkpw(b"secret", printed)
