# SPDX-License-Identifier: GPL-3.0-or-later
"""Which qubes and targets there are: dom0's replies, and what is made of them."""

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
    """Words by key, in any order; dom0 itself is no target."""
    assert states_of_list(LIST) == STATES
    assert states_of_list(b"0\0dom0 class=AdminVM state=Running\n") == {}


@pytest.mark.parametrize("end", [2, 10, len(LIST) - 1, LIST.index(b"vault") + 3])
def test_a_reply_that_is_cut_is_refused(end: int) -> None:
    """What is missing would look halted, or gone."""
    with pytest.raises(ProtocolError, match="is cut"):
        states_of_list(LIST[:end])


@pytest.mark.parametrize("reply", [b"", b"0", b"1\0", b"work class=AppVM state=Running\n", b"\xff\n", b"0 \0"])
def test_what_is_no_list_is_refused(reply: bytes) -> None:
    """An answer that was cut at once must not look like a machine without qubes."""
    with pytest.raises(ProtocolError, match=r"no reply of admin\.vm\.List"):
        states_of_list(reply)


@pytest.mark.parametrize("text", [b"", b"\n", b"dom0\n"])
def test_a_list_of_nobody_is_refused(text: bytes) -> None:
    """We run, so somebody does: upstream's service says this where qvm-ls failed."""
    with pytest.raises(ProtocolError, match="named no qube"):
        states_of_names(text)


def test_an_error_of_dom0_is_told() -> None:
    """By its kind; the rest is in dom0's journal."""
    with pytest.raises(ProtocolError, match="'QubesException'"):
        states_of_list(b"2\0QubesException\0\0it is \x1b[2J\0\0")


ODD_NAMES = [b"", b"../x", b"$(x)", b"@dispvm", b"--help", b"\xc3\xa4", b"x" * 32, b"none", b"x-dm", b"dom0"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_qubes_does_not_give_are_left_out(name: bytes) -> None:
    """They would be arguments of a program."""
    assert set(states_of_list(b"0\0" + name + b" state=Running\nok state=Running\n")) == {"ok"}
    assert states_of_names(name + b"\nok\n") == {"ok": "Running"}


@given(st.binary())
def test_no_reply_makes_a_name_that_is_none(reply: bytes) -> None:
    """Whatever it is."""
    for name in [*states_of_list(b"0\0" + reply + b"\n"), *states_of_names(reply + b"\nwork\n")]:
        assert is_qube_name(name)


def test_running_qubes_that_are_wanted_come_after_those_of_the_file() -> None:
    """In an order of their own, so that pages stay as they are; the configured ones are there whatever they do."""
    text = (
        "[exporters]\nnode = 9100\nshop = 9200\n[qubes.vault]\nexporters=['shop']\n[discovery]\nexporters=['node']\n"
        "include=['w.*', 's.*', 'vault', 'net']\nexclude=['sys-.*']\n"
    )
    settings = config.parse(text, Path("/x"))
    states = dict.fromkeys(["work", "web", "sys-usb", "vault", "net", "other"], "Running") | {"wiki": "Halted"}
    qubes = qubes_with_discovered(settings, states, "net")
    assert [(qube.name, qube.ports) for qube in qubes] == [("vault", (9200,)), ("web", (9100,)), ("work", (9100,))]
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
def test_a_forward_is_for_a_target_there_is(name: str, port: str, found: str | None) -> None:
    """By its full name first; upstream's cut at the dot comes second."""
    target = forwarded(name, port, TARGETS)
    assert (target.qube if target else None) == found
    assert target is None or target.exporter.port == int(port)


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
def test_bad_input_is_refused_before_anything_is_done_with_it(name: str, port: str) -> None:
    """Whatever its shape."""
    with pytest.raises(ValueError, match=r"port is missing, or|target is missing, or"):
        forwarded(name, port, TARGETS)


def test_a_qube_that_is_known_is_not_taken_for_another() -> None:
    """`work.b` is halted, and no target now: it is not `work`."""
    assert forwarded("work.b", "9100", TARGETS, {"work", "work.b"}) is None
    assert forwarded("work.b", "9100", TARGETS, {"work"}) == forwarded("work", "9100", TARGETS)
    assert forwarded("dom0", "9100", TARGETS) is None


def test_discovery_needs_no_relabelling() -> None:
    """Every label that the merged page has, and an instance of its own, for each target."""
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
