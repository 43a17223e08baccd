# SPDX-License-Identifier: GPL-3.0-or-later
"""Which qubes and targets there are: how dom0's replies are read, and which targets follow from them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federator import config
from federator.errors import ProtocolError
from federator.model import Exporter, Target
from federator.targets import (
    forwarded,
    is_qube_name,
    qubes_with_discovered,
    service_discovery,
    states_of_list,
    states_of_names,
)

LIST = (
    b"0\0dom0 class=AdminVM state=Running uuid=00000000-0000-0000-0000-000000000000\n"
    b"work class=AppVM state=Running uuid=1\nvault class=AppVM state=Halted\nsys-usb state=Paused class=DispVM\n"
    b"a.b_c-d class=AppVM state=Transient\n"
)
STATES = {"work": "Running", "vault": "Halted", "sys-usb": "Paused", "a.b_c-d": "Transient"}


def test_the_list_of_dom0_is_read_by_its_keys() -> None:
    """The words of a line may have any order; dom0 itself is left out."""
    assert states_of_list(LIST) == STATES
    assert states_of_list(b"0\0dom0 class=AdminVM state=Running\n") == {}


def test_a_remote_qube_is_no_qube_that_is_known_to_run() -> None:
    """Its name is known all the same: it must not be taken for another one's, cut at its dot."""
    reply = b"0\0work class=AppVM state=Running\nfar.away class=RemoteVM state=Running\n"
    assert states_of_list(reply) == {"work": "Running", "far.away": "remote"}
    assert states_of_names(b"work\nfar.away\nfar.away class=RemoteVM\n") == {"work": "Running", "far.away": "remote"}
    assert states_of_names(b"work\nelse class=RemoteVM\n") == {"work": "Running"}
    settings = config.parse("[exporters]\nnode = 9100\n[discovery]\nexporters=['node']\n", Path("/x"))
    assert [qube.name for qube in qubes_with_discovered(settings, states_of_list(reply), "net")] == ["work"]


@pytest.mark.parametrize("end", [2, 10, len(LIST) - 1, LIST.index(b"vault") + 3])
def test_a_reply_that_is_cut_is_refused(end: int) -> None:
    """Qubes that are missing in it would look halted."""
    with pytest.raises(ProtocolError, match="is cut"):
        states_of_list(LIST[:end])


@pytest.mark.parametrize("reply", [b"", b"0", b"1\0", b"work class=AppVM state=Running\n", b"\xff\n", b"0 \0"])
def test_a_reply_that_is_no_list_is_refused(reply: bytes) -> None:
    """An empty answer must not look like a machine without qubes."""
    with pytest.raises(ProtocolError, match=r"no reply of admin\.vm\.List"):
        states_of_list(reply)


@pytest.mark.parametrize("text", [b"", b"\n", b"dom0\n"])
def test_a_list_without_a_qube_is_refused(text: bytes) -> None:
    """Our own qube runs; upstream's service answers this when qvm-ls failed."""
    with pytest.raises(ProtocolError, match="named no qube"):
        states_of_names(text)


def test_an_error_of_dom0_is_reported() -> None:
    """With its kind; dom0's journal has the rest."""
    with pytest.raises(ProtocolError, match="'QubesException'"):
        states_of_list(b"2\0QubesException\0\0it is \x1b[2J\0\0")


ODD_NAMES = [b"", b"../x", b"$(x)", b"@dispvm", b"--help", b"\xc3\xa4", b"x" * 32, b"none", b"x-dm", b"dom0"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_no_qube_can_have_are_left_out(name: bytes) -> None:
    """A name becomes an argument of a program."""
    assert set(states_of_list(b"0\0" + name + b" state=Running\nok state=Running\n")) == {"ok"}
    assert states_of_names(name + b"\nok\n") == {"ok": "Running"}


@given(st.binary())
def test_each_name_that_is_read_is_a_name_of_a_qube(reply: bytes) -> None:
    """No bytes of a reply lead to another name."""
    for name in [*states_of_list(b"0\0" + reply + b"\n"), *states_of_names(reply + b"\nwork\n")]:
        assert is_qube_name(name)


def test_running_qubes_that_are_wanted_come_after_those_of_the_file() -> None:
    """They are sorted, so that the page keeps its order. Configured qubes are there even if they do not run."""
    text = (
        "[exporters]\nnode = 9100\nshop = 9200\n[qubes.vault]\nexporters=['shop']\n[discovery]\nexporters=['node']\n"
        "include=['w.*', 's.*', 'vault', 'net']\nexclude=['sys-.*']\n"
    )
    settings = config.parse(text, Path("/x"))
    states = dict.fromkeys(["work", "web", "sys-usb", "vault", "net", "other"], "Running") | {"wiki": "Halted"}
    qubes = qubes_with_discovered(settings, states, "net")
    assert [(qube.name, qube.endpoints) for qube in qubes] == [("vault", (9200,)), ("web", (9100,)), ("work", (9100,))]
    assert qubes_with_discovered(settings, {}, "net") == settings.qubes


TARGETS = [Target(qube, Exporter("x", port)) for qube in ("work", "a.b", "dot") for port in (9100, 9200)]


@pytest.mark.parametrize(
    ("name", "port", "found"),
    [
        ("work", "9100", "work"),
        ("work.example.org", "9200", "work"),
        ("a.b", "9100", "a.b"),
        ("dot.b", "9100", "dot"),
        ("a", "9100", None),
        ("work", "9999", None),
        ("unknown", "9100", None),
    ],
)
def test_forward_finds_a_target(name: str, port: str, found: str | None) -> None:
    """By the whole name first, then by the part before the first dot, as upstream does."""
    target = forwarded(name, {"port": port}, TARGETS)
    assert (target.qube if target else None) == found
    assert target is None or target.exporter.endpoint == int(port)


BAD_NAMES = [
    "",
    ".",
    "../x",
    "$(x)",
    "`x`",
    "@dispvm",
    "@adminvm",
    "-x",
    "--help",
    "w\0rk",
    "wörk",
    "x" * 70_000,
    "a b",
]
BAD_PORTS = [
    "",
    "0",
    "-1",
    "65536",
    "99999999999999999999",
    "9100x",
    "9100 ",
    " 9100",
    "09100",
    "٩١٠٠",
    "1e3",
    "$(x)",
    "9100+1",
]


@pytest.mark.parametrize(
    ("name", "port"),
    [(name, "9100") for name in BAD_NAMES] + [("work", port) for port in BAD_PORTS],
    ids=[ascii(text[:40]) for text in BAD_NAMES + BAD_PORTS],  # older versions of pytest put them into the environment
)
def test_forward_refuses_bad_input(name: str, port: str) -> None:
    """Names and ports of any shape come from the network."""
    with pytest.raises(ValueError, match=r"port is missing, or|target is missing, or"):
        forwarded(name, {"port": port}, TARGETS)


def test_a_known_qube_is_not_taken_for_another() -> None:
    """`work.b` exists but is no target; a request for it is not answered with `work`."""
    assert forwarded("work.b", {"port": "9100"}, TARGETS, {"work", "work.b"}) is None
    assert forwarded("work.b", {"port": "9100"}, TARGETS, {"work"}) == forwarded("work", {"port": "9100"}, TARGETS)
    assert forwarded("dom0", {"port": "9100"}, TARGETS) is None


def test_service_discovery_needs_no_relabelling() -> None:
    """Each target has all labels of the merged page, and its own instance."""
    group, *_ = service_discovery([Target("work", Exporter("node", 9100), (("owner", "alice"),))], "10.1.1.1:8199")
    assert group == {
        "targets": ["10.1.1.1:8199"],
        "labels": {
            "owner": "alice",
            "__metrics_path__": "/forward",
            "__param_target": "work",
            "__param_port": "9100",
            "instance": "work:node",
            "qube": "work",
            "exporter": "node",
        },
    }


def test_service_discovery_tells_prometheus_the_times_of_an_exporter() -> None:
    """In the place of the job's scrape_interval and scrape_timeout."""
    slow = Exporter("slow", 9100, timeout=30.0, interval=3600.0, page=False)
    group, *_ = service_discovery([Target("work", slow)], "10.1.1.1:8199")
    labels = group["labels"]
    assert isinstance(labels, dict)
    assert (labels["__scrape_interval__"], labels["__scrape_timeout__"]) == ("3600000ms", "30000ms")
