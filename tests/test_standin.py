# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for qrexec-client-vm does what the real one was seen to do: real processes, services of a few lines."""

import json
import os
import pwd
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import eventually
from tests.standin.qubes import SERVICE, Qubes

# Each of these tests starts processes and waits for them.
pytestmark = pytest.mark.slow

PATIENCE = 10  # seconds for what has to come, however slow the machine
SILENCE = 0.3  # seconds for what must not come
REFUSED = (126, b"", b"Request refused\n")

ECHO = "#!/bin/sh\nexec cat\n"
# One answer of 200 bytes for each line, the first of which is taken for a greeting.
ANSWER = "#!/bin/sh\nwhile read -r line; do printf '%0200d' 0; done\n"
GREETING, BODY = b"0" * 200, b"0" * 200
TELL = """#!/usr/bin/python3 -IS
import json, os, sys
print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), os.path.basename(sys.argv[0])]))
"""
# Writes as many bytes as its argument says, each 256 of them different from their neighbours; then a file beside it.
POUR = """#!/usr/bin/python3 -IS
import sys
sys.stdout.buffer.write(bytes(range(256)) * (int(sys.argv[1]) // 256))
sys.stdout.flush()
open("%s", "w").close()
sys.exit(7)
"""

Result = tuple[int, bytes, bytes]


class Machine:
    """A system with one qube, "work", the service in it, and the calls to it that are still open."""

    def __init__(self, folder: Path) -> None:
        """The system in a folder; nothing is installed yet."""
        self.folder = folder
        self.qubes = Qubes(folder / "system", folder / "service")
        self.qubes.add("work")
        self.clients: list[subprocess.Popen[bytes]] = []

    def serve(self, text: str, mode: int = 0o755) -> None:
        """The service is this script."""
        self.qubes.service.write_text(text)
        self.qubes.service.chmod(mode)

    def dial(self, target: str = "work", service: str = SERVICE, *options: str) -> subprocess.Popen[bytes]:
        """A call, with pipes."""
        client = subprocess.Popen(
            [self.qubes.client, *options, "--", target, service],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | self.qubes.env,
        )
        self.clients.append(client)
        return client

    def call(self, target: str = "work", service: str = SERVICE, *, stdin: bytes = b"") -> Result:
        """A call from its begin to its end: status, stdout and stderr."""
        return ended(self.dial(target, service), stdin)

    def hang_up(self) -> None:
        """Ends what still runs: the services die with their qube, the clients here."""
        for qube in (self.qubes.root / "qubes").iterdir():
            self.qubes.set_state(qube.name, "Halted")
        for client in self.clients:
            try:
                client.communicate(timeout=1)
            except (subprocess.TimeoutExpired, ValueError):  # it ignores its ends, or its pipes are closed
                client.kill()
            client.wait(PATIENCE)
            for pipe in (client.stdin, client.stdout, client.stderr):
                assert pipe
                pipe.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A system whose processes all end with the test."""
    machine = Machine(tmp_path)
    yield machine
    machine.hang_up()


def ended(client: subprocess.Popen[bytes], stdin: bytes = b"") -> Result:
    """Writes this and the end of stdin, and reads until the client ends."""
    stdout, stderr = client.communicate(stdin, timeout=PATIENCE)
    return client.returncode, stdout, stderr


def say(client: subprocess.Popen[bytes], data: bytes) -> None:
    """Writes to its stdin."""
    assert client.stdin
    client.stdin.write(data)


def heard(client: subprocess.Popen[bytes], size: int, seconds: float = PATIENCE) -> bytes:
    """So many bytes of its stdout; fewer if it ends or if they do not come in time."""
    assert client.stdout
    data, end = b"", time.monotonic() + seconds
    while len(data) < size and select.select([client.stdout], [], [], max(0, end - time.monotonic()))[0]:
        more = client.stdout.read(size - len(data))
        if not more:
            break
        data += more
    return data


def is_silent(client: subprocess.Popen[bytes]) -> bool:
    """Says nothing, and does not end, either."""
    return heard(client, 1, SILENCE) == b"" and client.poll() is None


def comes(path: Path, seconds: float = PATIENCE) -> bool:
    """Does this file come to be?"""
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return path.exists()


# --- The command line, and what the service sees


def run(machine: Machine, *words: str, **env: str) -> Result:
    """A call with any command line."""
    done = subprocess.run(
        [machine.qubes.client, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        env=os.environ | machine.qubes.env | env,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("work",),
        ("work", SERVICE, "cat"),
        ("--nonsense", "work", SERVICE),
        ("--buffer-size=many", "work", SERVICE),
        ("work", "--", SERVICE),
    ],
)
def test_usage_error(machine: Machine, words: tuple[str, ...]) -> None:
    """A wrong command line gets the usage and 2, and no call is made."""
    status, stdout, stderr = run(machine, *words)
    assert (status, stdout, stderr[:6]) == (2, b"", b"usage:")
    assert machine.qubes.calls() == []


@pytest.mark.parametrize("words", [(), ("--",), ("-T", "--"), ("--buffer-size=4096", "-t")])
def test_options_end_at_the_target(machine: Machine, words: tuple[str, ...]) -> None:
    """Options may stand before the target, with or without "--"."""
    machine.serve("#!/bin/sh\necho here\n")
    assert run(machine, *words, "work", SERVICE) == (0, b"here\n", b"")


def test_no_system(machine: Machine) -> None:
    """Where there is no agent the client says so and returns 1."""
    status, stdout, stderr = run(machine, "work", SERVICE, STANDIN_QUBES=str(machine.folder / "nowhere"))
    assert (status, stdout) == (1, b"")
    assert stderr.endswith(b"connect: No such file or directory\n")


@pytest.mark.parametrize(("closed", "said"), [("<&-", b"File descriptor 0 is closed\n"), ("2>&-", b"")])
def test_closed_standard_file(machine: Machine, closed: str, said: bytes) -> None:
    """A standard file that is closed at the start is an error of its own: 125."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", machine.qubes.client, "work", SERVICE],
        capture_output=True,
        timeout=PATIENCE,
        env=os.environ | machine.qubes.env,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (125, b"", said)


def test_environment(machine: Machine) -> None:
    """A service sees its argument, who calls, a login's variables and nothing of the caller's own."""
    machine.serve(TELL)
    client = machine.dial(service=f"{SERVICE}+9100+9256")
    arguments, variables, folder, name = json.loads(ended(client)[1])
    user = pwd.getpwuid(os.getuid())
    assert arguments == ["9100+9256"]
    assert name == SERVICE
    assert Path(folder) == (Path(user.pw_dir) if Path(user.pw_dir).is_dir() else Path.cwd())
    variables.pop("LC_CTYPE", None)  # Python's own
    assert variables.pop("PATH")
    assert variables.pop("SHELL")
    assert variables == {
        "QREXEC_REMOTE_DOMAIN": "sys-net",
        "QREXEC_SERVICE_FULL_NAME": f"{SERVICE}+9100+9256",
        "QREXEC_SERVICE_ARGUMENT": "9100+9256",
        "QREXEC_REQUESTED_TARGET_TYPE": "",
        "QREXEC_AGENT_PID": str(client.pid),
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
    }


@pytest.mark.parametrize("service", [SERVICE, f"{SERVICE}+"])
def test_no_argument(machine: Machine, service: str) -> None:
    """Without an argument the service has no word for it, an empty variable, and a full name that ends with +."""
    machine.serve(TELL)
    arguments, variables, *_ = json.loads(machine.call(service=service)[1])
    assert arguments == []
    assert variables["QREXEC_SERVICE_ARGUMENT"] == ""
    assert variables["QREXEC_SERVICE_FULL_NAME"] == f"{SERVICE}+"


def test_own_service_for_an_argument(machine: Machine) -> None:
    """A file named SERVICE+ARG goes before the one named SERVICE."""
    machine.serve("#!/bin/sh\necho general\n")
    own = machine.qubes.root / "qubes" / "work" / "services" / f"{SERVICE}+9100"
    own.write_text("#!/bin/sh\necho own\n")
    own.chmod(0o755)
    assert machine.call(service=f"{SERVICE}+9100") == (0, b"own\n", b"")
    assert machine.call(service=f"{SERVICE}+9101") == (0, b"general\n", b"")


def test_service_sees_sockets(machine: Machine) -> None:
    """A service's stdin and stdout are sockets: they cannot be opened again by name."""
    machine.serve("#!/bin/sh\n[ -S /dev/stdin ] && [ -S /dev/stdout ] && ! (: </dev/stdin) 2>/dev/null\n")
    assert machine.call() == (0, b"", b"")


def test_bad_characters(machine: Machine) -> None:
    """Bad characters are not refused but become underscores, each byte one; in a target $ becomes @."""
    machine.serve(TELL)
    arguments, *_ = json.loads(machine.call(service=f"{SERVICE}+a b/c;d$(x)é")[1])
    assert arguments == ["a_b_c_d__x___"]
    machine.call("$tag:a b/\u00e9")
    machine.call("")
    machine.call("x" * 80)
    assert machine.qubes.calls() == [
        ("work", f"{SERVICE}+a_b_c_d__x___", "allow"),
        ("@tag:a_b___", f"{SERVICE}+", "refuse"),
        ("@default", f"{SERVICE}+", "refuse"),
        ("x" * 63, f"{SERVICE}+", "refuse"),
    ]


# --- What dom0 decides


@pytest.mark.parametrize(
    ("target", "state", "policy", "decision"),
    [
        ("work", "Running", "deny", "deny"),
        ("work", "Running", "deny notify=no", "deny"),
        ("work", "Running", "ask", "deny"),
        ("work", "Halted", "deny", "deny"),
        ("work", "Halted", "allow autostart=no", "refuse"),
        ("work", "Halting", "allow autostart=no", "refuse"),
        ("work", "Paused", "allow autostart=no", "refuse"),
        ("work", "Running", "allow +9256 +9100+9256", "deny"),
        ("unknown", "Running", "allow", "refuse"),
        ("sys-net", "Running", "allow", "refuse"),
        ("dom0", "Running", "allow", "refuse"),
    ],
)
def test_refusal(machine: Machine, target: str, state: str, policy: str, decision: str) -> None:
    """Whatever the reason, a refusal is 126 and the same words, and the qube stays as it is."""
    machine.serve(ECHO)
    machine.qubes.add("sys-net")
    machine.qubes.set_state("work", state)
    machine.qubes.set_policy("work", policy)
    assert machine.call(target) == REFUSED
    assert machine.qubes.calls() == [(target, f"{SERVICE}+", decision)]
    assert machine.qubes.state("work") == state


@pytest.mark.parametrize("service", ["", "+9100", "x" * 256])
def test_refused_names(machine: Machine, service: str) -> None:
    """A service without a name, or with one too long, is refused."""
    assert machine.call(service=service) == REFUSED


def test_a_call_starts_a_halted_qube(machine: Machine) -> None:
    """A call to a halted qube starts it, and goes on as any other."""
    machine.serve(ECHO)
    machine.qubes.set_state("work", "Halted")
    assert machine.call(stdin=b"hello\n") == (0, b"hello\n", b"")
    assert machine.qubes.state("work") == "Running"
    assert machine.call() == (0, b"", b"")
    assert [decision for *_, decision in machine.qubes.calls()] == ["start", "allow"]


def test_policy_is_judged_when_the_call_comes(machine: Machine) -> None:
    """An open channel outlives a deny; the next call does not."""
    machine.serve(ECHO)
    client = machine.dial()
    say(client, b"1")
    assert heard(client, 1) == b"1"
    machine.qubes.set_policy("work", "deny")
    say(client, b"2")
    assert heard(client, 1) == b"2"
    assert machine.call() == REFUSED


def test_a_wedge_is_a_fault_of_the_caller(machine: Machine) -> None:
    """What would wedge all qrexec of a real qube has a status that no other failure has."""
    machine.serve(ECHO)
    status, stdout, stderr = machine.call(service=f"{SERVICE}+" + "9" * 3900)
    assert (status, stdout) == (70, b"")
    assert b"used wrongly" in stderr
    assert [decision for *_, decision in machine.qubes.calls()] == ["wedge"]


def test_missing_service(machine: Machine) -> None:
    """A qube without the service gives 127 and no word."""
    machine.qubes.add("bare", install=False)
    assert machine.call("bare") == (127, b"", b"")
    assert machine.qubes.calls() == [("bare", f"{SERVICE}+", "allow")]


@pytest.mark.parametrize(
    ("text", "mode"), [(ECHO, 0o644), ("no first line\n", 0o755), ("#!/nowhere/interpreter\n", 0o755)]
)
def test_service_that_cannot_be_run(machine: Machine, text: str, mode: int) -> None:
    """A service that is there but cannot be executed gives 125 and no word."""
    machine.serve(text, mode)
    assert machine.call() == (125, b"", b"")


# --- Who hears of whose end


def test_end_of_stdin(machine: Machine) -> None:
    """The end of stdin is the service's, and the client stays until the service ends with a status."""
    machine.serve("#!/bin/sh\ncat\necho after\nexit 42\n")
    assert machine.call(stdin=b"before\n") == (42, b"before\nafter\n", b"")


def test_service_ends_first(machine: Machine) -> None:
    """The end of the service is the client's, though stdin is still open."""
    machine.serve("#!/bin/sh\necho bye\nexit 3\n")
    client = machine.dial()
    assert client.wait(PATIENCE) == 3
    assert heard(client, 100) == b"bye\n"


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("KILL", 137)])
def test_service_killed(machine: Machine, name: str, status: int) -> None:
    """A service that dies of a signal has the status 128 and its number."""
    machine.serve(f"#!/bin/sh\nkill -{name} $$\n")
    client = machine.dial()
    assert client.wait(PATIENCE) == status


def test_descendants_are_not_waited_for(machine: Machine) -> None:
    """What a service leaves behind, with its stdout still open, does not keep the client."""
    machine.serve("#!/bin/sh\nsleep 60 &\necho $!\n")
    status, stdout, stderr = machine.call()
    os.kill(int(stdout), signal.SIGKILL)
    assert (status, stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_client_killed(machine: Machine, number: signal.Signals) -> None:
    """The client dies of a signal at once; the service gets the end of stdin, and nothing is left."""
    after = machine.folder / "after"
    machine.serve(f"#!/bin/sh\ncat\necho >'{after}'\n")
    client = machine.dial()
    say(client, b"1")
    assert heard(client, 1) == b"1"
    client.send_signal(number)
    assert client.wait(PATIENCE) == -number
    assert comes(after)


def test_closed_stdout(machine: Machine) -> None:
    """A reader that goes away is not told to the service: output is thrown away until stdin ends."""
    machine.serve("#!/bin/sh\nread line; echo one; read line; echo two; read line; exit 5\n")
    client = machine.dial()
    say(client, b"\n")
    assert heard(client, 4) == b"one\n"
    assert client.stdout
    assert client.stdin
    client.stdout.close()
    say(client, b"\n")
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(SILENCE)
    client.stdin.close()
    assert client.wait(PATIENCE) == 5


def test_service_closes_its_stdout(machine: Machine) -> None:
    """The end of the service's stdout comes before the end of the service."""
    machine.serve("#!/bin/sh\necho one; exec >&-; read line; exit 6\n")
    client = machine.dial()
    assert heard(client, 100) == b"one\n"
    assert client.poll() is None
    say(client, b"\n")
    assert client.wait(PATIENCE) == 6


# --- Bytes on their way


def test_stderr(machine: Machine) -> None:
    """The service's stderr comes as it is, whatever its bytes are."""
    machine.serve("#!/bin/sh\nprintf 'a\\377\\033[2J\\000b\\n' >&2\necho out\nexit 1\n")
    assert machine.call() == (1, b"out\n", b"a\xff\x1b[2J\0b\n")


def test_stderr_that_nobody_reads(machine: Machine) -> None:
    """While stderr is not read, nothing comes on stdout."""
    machine.serve("#!/bin/sh\nhead -c 1000000 /dev/zero >&2\necho out\n")
    client = machine.dial()
    assert is_silent(client)
    assert ended(client) == (0, b"out\n", bytes(1000000))


@pytest.mark.parametrize("size", [0, 256, 65536, 170240, 3 << 20])
def test_all_output_comes(machine: Machine, size: int) -> None:
    """Whatever a service said before it ended comes, even if the reader is late."""
    machine.serve(POUR % (machine.folder / "poured"))
    client = machine.dial(service=f"{SERVICE}+{size}")
    if size < 200_000:
        assert comes(machine.folder / "poured")
    assert ended(client) == (7, bytes(range(256)) * (size // 256), b"")


def test_back_pressure(machine: Machine) -> None:
    """A service that is not read has to wait, after a few buffers full."""
    machine.serve(POUR % (machine.folder / "poured"))
    client = machine.dial("work", f"{SERVICE}+1048576", "--buffer-size=4096")
    assert len(heard(client, 1000)) == 1000
    assert not comes(machine.folder / "poured", SILENCE)
    assert len(ended(client)[1]) == 1048576 - 1000


def test_large_input(machine: Machine) -> None:
    """Input of many buffers comes back whole."""
    machine.serve(ECHO)
    data = bytes(range(256)) * 8192
    assert machine.call(stdin=data) == (0, data, b"")


# --- States of the qube


def test_qube_killed(machine: Machine) -> None:
    """A qube that goes away in the middle ends the call with 255 and a line of the client's own."""
    machine.serve(ECHO)
    client = machine.dial()
    say(client, b"1")
    assert heard(client, 1) == b"1"
    machine.qubes.set_state("work", "Halted")
    assert client.wait(PATIENCE) == 255
    status, stdout, stderr = ended(client)
    assert (status, stdout) == (255, b"")
    assert b"vchan connection closed early (fds: 0 1 2)\n" in stderr


def test_qube_shut_down(machine: Machine) -> None:
    """A qube that shuts down ends its services with SIGTERM: 143."""
    machine.serve("#!/bin/sh\necho up\ncat\n")
    client = machine.dial()
    assert heard(client, 3) == b"up\n"
    machine.qubes.set_state("work", "Halting")
    assert client.wait(PATIENCE) == 143


def test_shutdown_is_one_signal(machine: Machine) -> None:
    """A service that handles SIGTERM is told once, and its status is its own."""
    machine.serve("#!/bin/sh\ntrap 'echo term' TERM\necho up\nread line\nread line\nexit 9\n")
    client = machine.dial()
    assert heard(client, 3) == b"up\n"
    machine.qubes.set_state("work", "Halting")
    assert heard(client, 5) == b"term\n"
    assert is_silent(client)
    assert ended(client) == (9, b"", b"")


def test_paused_during_a_call(machine: Machine) -> None:
    """A paused qube is silent both ways, does not even end, and goes on where it was."""
    before = machine.folder / "before"
    machine.serve(f"#!/bin/sh\nread line; echo one\nread line; echo >'{before}'; echo two; exit 4\n")
    client = machine.dial()
    say(client, b"\n")
    assert heard(client, 4) == b"one\n"
    machine.qubes.set_state("work", "Paused")
    time.sleep(1)  # until it is seen, on a busy machine as well: nothing outside shows that
    say(client, b"\n")
    assert is_silent(client)
    assert not before.exists()
    machine.qubes.set_state("work", "Running")
    assert heard(client, 4) == b"two\n"
    assert client.wait(PATIENCE) == 4


def test_paused_before_a_call(machine: Machine) -> None:
    """A call to a paused qube is allowed and hangs until the qube is resumed."""
    machine.serve(ECHO)
    machine.qubes.set_state("work", "Paused")
    client = machine.dial()
    say(client, b"1")
    eventually("dom0 allows it", lambda: machine.qubes.calls() == [("work", f"{SERVICE}+", "allow")])
    assert is_silent(client)
    machine.qubes.set_state("work", "Running")
    assert heard(client, 1) == b"1"


def test_other_qubes_go_on(machine: Machine) -> None:
    """What befalls one qube is nothing to another."""
    machine.serve(ECHO)
    machine.qubes.add("vault")
    machine.qubes.set_fault("work", "crash 9")
    machine.qubes.set_state("work", "Paused")
    assert machine.call("vault", stdin=b"1") == (0, b"1", b"")


# --- Faults


def test_fault_unknown(machine: Machine) -> None:
    """A fault that does not exist is a fault of the test."""
    machine.serve(ECHO)
    machine.qubes.set_fault("work", "crahs")
    assert machine.call()[0] == 70


def test_fault_taken_back(machine: Machine) -> None:
    """A fault holds for the calls made while it is set."""
    machine.serve(ECHO)
    machine.qubes.set_fault("work", "crash 9")
    assert machine.call() == (9, b"", b"")
    machine.qubes.set_fault("work", None)
    assert machine.call(stdin=b"1") == (0, b"1", b"")


def test_fault_vchan_timeout(machine: Machine) -> None:
    """The service is allowed, but the data vchan does not come: 1, and two lines."""
    machine.serve(ECHO)
    machine.qubes.set_fault("work", "vchan-timeout")
    status, stdout, stderr = machine.call()
    assert (status, stdout) == (1, b"")
    assert stderr.endswith(b"vchan connection timeout\nData vchan connection failed\n")


def test_fault_flood_stderr(machine: Machine) -> None:
    """So many bytes come on stderr, and nothing else before they are read."""
    machine.serve(ECHO)
    machine.qubes.set_fault("work", "flood-stderr 1000000")
    client = machine.dial()
    say(client, b"1")
    assert is_silent(client)
    status, stdout, stderr = ended(client)
    assert (status, stdout, len(stderr)) == (0, b"1", 1000000)
    assert stderr.startswith(b"stderr of a qube \xff\x1b[2J\nxxx")


def test_fault_slow_start(machine: Machine) -> None:
    """The service starts after so many seconds."""
    machine.serve(ECHO)
    machine.qubes.set_fault("work", "slow-start 0.6")
    client = machine.dial()
    say(client, b"1")
    assert is_silent(client)
    assert heard(client, 1) == b"1"


def test_fault_garbage(machine: Machine) -> None:
    """Garbage comes instead of the service; then nothing until stdin ends."""
    machine.serve(ECHO)
    machine.qubes.set_fault("work", "garbage")
    client = machine.dial()
    garbage = b"\0\xff\x1b[2J not what you asked for \x80\n\n"
    assert heard(client, len(garbage)) == garbage
    say(client, b"1")
    assert is_silent(client)
    assert ended(client) == (0, b"", b"")


def test_fault_silent(machine: Machine) -> None:
    """The service takes everything and says nothing until stdin ends."""
    machine.serve(ECHO)
    machine.qubes.set_fault("work", "silent")
    client = machine.dial()
    say(client, b"1")
    assert is_silent(client)
    assert ended(client, bytes(1000000)) == (0, b"", b"")


def test_fault_ignore_eof(machine: Machine) -> None:
    """The end of stdin has no effect; SIGTERM has."""
    machine.serve(ECHO)
    machine.qubes.set_fault("work", "ignore-eof")
    client = machine.dial()
    say(client, b"1")
    assert heard(client, 1) == b"1"
    assert client.stdin
    client.stdin.close()
    assert is_silent(client)
    client.terminate()
    assert client.wait(PATIENCE) == -signal.SIGTERM


def test_fault_ignore_term(machine: Machine) -> None:
    """Neither the end of stdin nor SIGTERM nor the service's end has an effect; SIGKILL has, and the service ends."""
    after = machine.folder / "after"
    machine.serve(f"#!/bin/sh\ncat\necho >'{after}'\n")
    machine.qubes.set_fault("work", "ignore-term")
    client = machine.dial()
    say(client, b"1")
    assert heard(client, 1) == b"1"
    assert client.stdin
    client.stdin.close()
    client.terminate()
    assert is_silent(client)
    client.kill()
    assert client.wait(PATIENCE) == -signal.SIGKILL
    assert comes(after)


def test_fault_ignore_term_outlives_the_service(machine: Machine) -> None:
    """With ignore-term the client stays when its service has ended."""
    machine.serve("#!/bin/sh\necho bye\n")
    machine.qubes.set_fault("work", "ignore-term")
    client = machine.dial()
    assert heard(client, 4) == b"bye\n"
    client.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(SILENCE)


def test_fault_drip(machine: Machine) -> None:
    """Output comes a byte at a time."""
    machine.serve(ANSWER)
    machine.qubes.set_fault("work", "drip 50")
    client = machine.dial()
    say(client, b"\n")
    assert client.stdout
    assert 0 < len(client.stdout.read(200)) < 200  # of ten seconds' worth


def test_fault_drip_loses_nothing(machine: Machine) -> None:
    """All of the output comes, though the service has ended long before."""
    machine.serve(POUR % (machine.folder / "poured"))
    machine.qubes.set_fault("work", "drip 0")
    assert machine.call(service=f"{SERVICE}+2048") == (7, bytes(range(256)) * 8, b"")


def test_fault_unsolicited(machine: Machine) -> None:
    """Bytes that nobody asked for come once after each turn but the first so many."""
    machine.serve(ANSWER)
    machine.qubes.set_fault("work", "unsolicited 2")
    client = machine.dial()
    for _ in range(2):
        say(client, b"\n")
        assert heard(client, 200) == BODY
    assert is_silent(client)
    for _ in range(2):
        say(client, b"\n")
        assert heard(client, 212) == BODY + b"unsolicited\n"
    assert is_silent(client)


@pytest.mark.parametrize("size", [0, 1, 100, 199, 200])
def test_fault_half_body(machine: Machine, size: int) -> None:
    """The vchan is lost after exactly so many bytes, those of the first turn not counted."""
    machine.serve(ANSWER)
    machine.qubes.set_fault("work", f"half-body {size}")
    client = machine.dial()
    say(client, b"\n")
    assert heard(client, 200) == GREETING
    assert is_silent(client)
    say(client, b"\n")
    assert heard(client, 200) == BODY[:size]
    assert client.wait(PATIENCE) == 255


def test_fault_half_body_of_all_that_a_service_says(machine: Machine) -> None:
    """The vchan is lost before the service's own end is told, where both come with the same byte."""
    machine.serve("#!/bin/sh\nread line; echo one; read line; printf 12345; exit 4\n")
    machine.qubes.set_fault("work", "half-body 5")
    client = machine.dial()
    say(client, b"\n")
    assert heard(client, 4) == b"one\n"
    say(client, b"\n")
    assert heard(client, 100) == b"12345"
    assert client.wait(PATIENCE) == 255


def test_fault_half_body_of_a_shorter_one(machine: Machine) -> None:
    """A service that ends before so many bytes ends as any other."""
    machine.serve("#!/bin/sh\nread line; echo one; read line; printf 1234; exit 4\n")
    machine.qubes.set_fault("work", "half-body 5")
    client = machine.dial()
    say(client, b"\n")
    assert heard(client, 4) == b"one\n"
    say(client, b"\n")
    assert heard(client, 100) == b"1234"
    assert client.wait(PATIENCE) == 4


# --- The helper


def test_calls_before_the_first(machine: Machine) -> None:
    """No call, no line."""
    assert machine.qubes.calls() == []


def test_calls_in_their_order(machine: Machine) -> None:
    """Each call has its line when it has been decided, in the order of their coming."""
    machine.serve(ECHO)
    machine.qubes.add("vault", policy="deny")
    machine.qubes.add("media", state="Halted")
    for target in ("work", "vault", "media", "nobody"):
        machine.call(target, f"{SERVICE}+9100")
    assert machine.qubes.calls() == [
        ("work", f"{SERVICE}+9100", "allow"),
        ("vault", f"{SERVICE}+9100", "deny"),
        ("media", f"{SERVICE}+9100", "start"),
        ("nobody", f"{SERVICE}+9100", "refuse"),
    ]


def test_another_source(machine: Machine) -> None:
    """The calls come from the qube the helper was told, which the service sees and which cannot call itself."""
    machine.qubes.source = "work"
    machine.qubes.add("vault")
    machine.serve('#!/bin/sh\nprintf "$QREXEC_REMOTE_DOMAIN"\n')
    assert machine.call("vault") == (0, b"work", b"")
    assert machine.call("work") == REFUSED


def test_unknown_qube_has_no_state(machine: Machine) -> None:
    """A qube has to be added before its state can be set."""
    with pytest.raises(FileNotFoundError):
        machine.qubes.set_state("nobody", "Running")
