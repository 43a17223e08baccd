# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: which keys and values it may have, and the message for each fault."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli

from federator import config, toml_reader
from federator.errors import ConfigError
from federator.model import Exporter, Limits, Target
from federator.wire import Version2
from tests.helpers import service_module

FILE = Path("/etc/here/p.toml")
WORK = '[exporters]\nnode = 9100\nprocess = 9256\n[qubes.work]\nexporters = ["node"]\n'


def test_a_small_file_is_enough() -> None:
    """All other keys have a default, and the defaults are the documented ones."""
    settings = config.parse(WORK, FILE)
    assert settings.targets == (Target("work", Exporter("node", 9100)),)
    assert settings.web.listen_addresses == (("0.0.0.0", 8199),)
    assert (settings.scrape.timeout, settings.scrape.timeout_offset) == (10.0, 0.5)
    assert settings.scrape.limits == Limits(16 << 20, 50_000, 256, 1024, 16_384)
    assert (settings.qrexec.client, settings.qrexec.buffer_size) == ("qrexec-client-vm", 16 << 10)
    assert (settings.qrexec.backoff_initial, settings.qrexec.backoff_max) == (5.0, 300.0)
    assert settings.qrexec.local_service == Path("/etc/qubes-rpc/ruddo.PrometheusProxy")


def test_a_full_file_is_read_whole() -> None:
    """Each key has its effect."""
    settings = config.parse(
        """
        [web]
        listen_addresses = ["127.0.0.1:8199", "[::1]:8200", ":8201"]
        [scrape]
        timeout = "1m30s"
        timeout_offset = "250ms"
        body_size_limit = "1MB"
        sample_limit = 10
        label_limit = 11
        label_name_length_limit = 12
        label_value_length_limit = 13
        [qrexec]
        client = "/usr/bin/qrexec-client-vm"
        local_service = "../service"
        buffer_size = "4KiB"
        connect_limit = 2
        backoff_initial = "1s"
        backoff_max = "1h"
        [exporters]
        node = 9100
        process = { port = 9256, drop = ["go_.*", "foo"] }
        [qubes.work]
        exporters = ["process", "node"]
        labels = { owner = "alice" }
        [qubes."sys-net"]
        transport = "local"
        exporters = ["node"]
        """,
        FILE,
    )
    assert settings.web.listen_addresses == (("127.0.0.1", 8199), ("::1", 8200), ("", 8201))
    assert (settings.scrape.timeout, settings.scrape.timeout_offset) == (90.0, 0.25)
    assert settings.scrape.limits == Limits(1 << 20, 10, 11, 12, 13)
    assert settings.qrexec.backoff_max == 3600.0
    assert settings.qrexec.local_service == Path("/etc/here/../service")
    work, net = settings.qubes
    assert [target.name for target in work.targets] == ["work:process", "work:node"]
    assert (work.endpoints, work.transport, work.labels) == ((9100, 9256), "qrexec", (("owner", "alice"),))
    drop = work.targets[0].exporter.drop
    assert [any(one.fullmatch(name) for one in drop) for name in ("go_gc", "foo", "food")] == [True, True, False]
    assert net.transport == "local"


def test_patterns_do_not_affect_each_other() -> None:
    """Each may have flags and group names of its own."""
    text = WORK + "[discovery]\ninclude = ['(?i)w.*', '(?P<a>x)']\nexclude = ['(?P<a>y)', '(?P<a>z)']\n"
    discovery = config.parse(text, FILE).discovery
    assert discovery is not None
    assert [bool(pattern.fullmatch("WORK")) for pattern in discovery.include] == [True, False]


FAULTS = {
    "a mistyped key that has to be there": (
        WORK.replace("exporters = [", "exportrs = ["),
        "qubes.work.exportrs: unknown key; did you mean exporters?",
    ),
    "a label of Prometheus' own": (
        WORK + "labels = { instance = 'x' }\n",
        "qubes.work.labels.instance: this label has a meaning of its own",
    ),
    "not TOML": ("[web", "/etc/here/p.toml: not TOML: "),
    "nothing": ("", "qubes: there is nothing to scrape; add a table such as [qubes.work]"),
    "an unknown table": (WORK + "[qube.x]\n", "qube: unknown key; did you mean qubes?"),
    "an unknown key": ("[scrape]\ntimout = '1s'\n" + WORK, "scrape.timout: unknown key; did you mean timeout?"),
    "a key like none": (
        "[web]\nzzz = 1\n" + WORK,
        "web.zzz: unknown key; known here: basic_auth_users, hosts, http_server_config, listen_addresses",
    ),
    "an unknown key of a qube": (WORK + "port = 1\n", "qubes.work.port: unknown key; "),
    "an unknown key of an exporter": (
        "[exporters]\nnode = { port = 1, dorp = [] }\n",
        "exporters.node.dorp: unknown key; did you mean drop?",
    ),
    "a wrong type": (
        "[scrape]\nsample_limit = '5'\n" + WORK,
        "scrape.sample_limit: expected a whole number, not a text in",
    ),
    "true for a number": (
        "[scrape]\nsample_limit = true\n" + WORK,
        "scrape.sample_limit: expected a whole number, not true",
    ),
    "a table for a text": ("[qrexec.client]\n" + WORK, "qrexec.client: expected a text in quotes, not a table"),
    "a text for a list": (
        '[exporters]\nnode=1\n[qubes.a]\nexporters = "node"\n',
        "qubes.a.exporters: expected a list in",
    ),
    "a text for a table": ('qubes = "a"\n', "qubes: expected a table, not a text in quotes"),
    "a bad duration": ("[scrape]\ntimeout = '10'\n" + WORK, "scrape.timeout: '10' is not a duration; write it as Prom"),
    "a negative duration": ("[scrape]\ntimeout = '-1s'\n" + WORK, "scrape.timeout: '-1s' is not a duration"),
    "no time": ("[scrape]\ntimeout = '0s'\n" + WORK, "scrape.timeout: too short; at least 0.1s"),
    "no time left": ("[scrape]\ntimeout = '500ms'\n" + WORK, "scrape.timeout_offset: leaves no time to scrape in;"),
    "a bad size": (
        "[scrape]\nbody_size_limit = '16 MB'\n" + WORK,
        "scrape.body_size_limit: '16 MB' is not a size; write",
    ),
    "no size": ("[scrape]\nbody_size_limit = 0\n" + WORK, "scrape.body_size_limit: 0 bytes is out of range; it may be"),
    "no sample": ("[scrape]\nsample_limit = 0\n" + WORK, "scrape.sample_limit: 0 is out of range; it may be 1 to"),
    "no place": ("[qrexec]\nconnect_limit = 0\n" + WORK, "qrexec.connect_limit: 0 is out of range; it may be 1 to 64"),
    "a backoff that shrinks": (
        "[qrexec]\nbackoff_max = '1s'\n" + WORK,
        "qrexec.backoff_max: shorter than backoff_initial",
    ),
    "no program": ("[qrexec]\nclient = ''\n" + WORK, "qrexec.client: empty; the program is called qrexec-client-vm"),
    "no address": ("[web]\nlisten_addresses = []\n" + WORK, "web.listen_addresses: empty; name at least one"),
    "a bad address": (
        "[web]\nlisten_addresses = ['x']\n" + WORK,
        "web.listen_addresses[0]: 'x' is not HOST:PORT; write",
    ),
    "a bad port to listen on": (
        "[web]\nlisten_addresses = [':99999']\n" + WORK,
        "web.listen_addresses[0]: ':99999': 99999 is not a port",
    ),
    "discovery's source": (WORK + "[discovery]\nsource = 'qvm-ls'\n", "discovery.source: 'qvm-ls' is none of admin.vm"),
    "discovery of nothing": (
        WORK + "[discovery]\ninclude = []\n",
        "discovery.include: empty, so no qube would be found",
    ),
    "discovery too often": (WORK + "[discovery]\nrefresh_interval = '5ms'\n", "discovery.refresh_interval: too short"),
    "a discovered exporter": (
        WORK + "[discovery]\nexporters = ['x']\n",
        "discovery.exporters[0]: there is no exporter",
    ),
    "a pattern of discovery": (WORK + "[discovery]\nexclude = ['(']\n", "discovery.exclude[0]: '(' is not a regular"),
    "a pattern that Prometheus does not have": (
        WORK + "[discovery]\ninclude = ['(?!vault).*']\n",
        "discovery.include[0]: '(?!vault).*' has something at position 0 that Prometheus' patterns do not have",
    ),
    "a pattern that explodes": (
        WORK.replace("9100", "{ port = 1, drop = ['a', '(a{100}){100}'] }"),
        "exporters.node.drop[1]: '(a{100}){100}' needs more than 1000 steps; write smaller numbers into its {}, or",
    ),
    "a timeout that no request can carry": (
        "[scrape]\ntimeout = '2h47m'\n" + WORK,
        "scrape.timeout: too long; at most 600s",
    ),
    "a duration of many digits": ("[scrape]\ntimeout = '" + "9" * 500 + "s'\n" + WORK, "9s' is not a duration"),
    "a size of many digits": ("[qrexec]\nbuffer_size = '" + "9" * 5000 + "B'\n" + WORK, "9B' is not a size"),
    "a number of many digits": (
        "[scrape]\nsample_limit = " + "9" * 5000 + "\n" + WORK,
        "p.toml: not TOML: line 2: a number of more than 1000 digits",
    ),
    "a hexadecimal number of many digits": (
        "[scrape]\nsample_limit = 0x" + "f" * 5000 + "\n" + WORK,
        "scrape.sample_limit: a number of more than 20 digits is out of range",
    ),
    "a port of many digits": (WORK.replace("9100", "9" * 400), "exporters.node: a number of more than 20 digits is no"),
    "lists within lists": (
        "a = " + "[" * 5000 + "\n",
        "p.toml: not TOML: line 1: lists or tables in more than 50 others",
    ),
    "lists within lists, on lines of their own": (
        "a = " + "[\n" * 5000 + "\n",
        "p.toml: not TOML: line 51: lists or tables in more than 50 others",
    ),
    "discovery alone": ("[exporters]\nx = 1\n[discovery]\n", "qubes: there is nothing to scrape"),
    "a space in a qube's name": (
        WORK.replace(".work", '."my work"'),
        "qubes.'my work': not a name Qubes gives to qubes",
    ),
    "a long name": (WORK.replace("work", "w" * 32), ": not a name Qubes gives to qubes"),
    "a keyword": (WORK.replace(".work", '."@dispvm"'), "qubes.'@dispvm': not a name"),
    "an option": (WORK.replace(".work", '."--help"'), ".--help: not a name"),
    "a name Qubes keeps": (WORK.replace("work", "none"), "qubes.none: not a name"),
    "a device model": (WORK.replace("work", "work-dm"), "qubes.work-dm: not a name"),
    "port 99999": (WORK.replace("9100", "99999"), "exporters.node: 99999 is not a port; ports are 1 to 65535"),
    "port 0": (WORK.replace("9100", "{ port = 0 }"), "exporters.node.port: 0 is not a port"),
    "a port as text": (WORK.replace("9100", "'9100'"), "exporters.node: expected a whole number, not a text in quotes"),
    "no port": (WORK.replace("9100", "{}"), "exporters.node.port: missing; say on which port"),
    "a bad expression": (
        WORK.replace("9100", "{ port = 1, drop = ['('] }"),
        "exporters.node.drop[0]: '(' is not a regular",
    ),
    "an address twice": (
        "[web]\nlisten_addresses = [':1', ':1']\n" + WORK,
        "web.listen_addresses: ':1' is there twice; once is enough",
    ),
    "an address that includes another one": (
        "[web]\nlisten_addresses = ['127.0.0.1:1', '0.0.0.0:1']\n" + WORK,
        "web.listen_addresses: '127.0.0.1:1' and '0.0.0.0:1': one of them includes the other; it alone is enough",
    ),
    "a table twice": ("[qubes.work]\nexporters = []\n" + WORK, "[qubes.work] is there twice (at line"),
    "a name without quotes": ("[qubes.my!]\n" + WORK, "'[qubes.my!]'; a name with other characters than"),
    "quotes of a word processor": ("[scrape]\ntimeout = “10s”\n" + WORK, "; a text stands in straight quotes"),
    "a time without a unit": (
        "[scrape]\ntimeout = 10\n" + WORK,
        'scrape.timeout: expected a text in quotes, with a unit: "10s"',
    ),
    "a glob": (WORK + "[discovery]\ninclude = ['*']\n", "at position 0; .* stands for any characters"),
    "an interval on the page": (
        WORK.replace("9100", "{ port = 1, interval = '1h' }"),
        "exporters.node.interval: /metrics asks every exporter each time; add page = false, and let Prometheus scrape",
    ),
    "a timeout of nothing": (WORK.replace("9100", "{ port = 1, timeout = '0s' }"), "exporters.node.timeout: too short"),
    "a page that is a text": (WORK.replace("9100", "{ port = 1, page = 'no' }"), "exporters.node.page: expected true"),
    "a bad exporter name": ("[exporters]\n'a b' = 1\n", "exporters.'a b': not a name for an exporter"),
    "an exporter nobody defined": (
        WORK.replace('["node"]', '["nod"]'),
        "qubes.work.exporters[0]: there is no exporter 'nod'; did you mean 'node'? Otherwise add it under [exporters]",
    ),
    "an exporter twice": (
        WORK.replace('["node"]', '["node", "node"]'),
        "qubes.work.exporters[1]: 'node' is there twice",
    ),
    "two exporters on one port": (
        WORK.replace("9256", "9100").replace('["node"]', '["node", "process"]'),
        "qubes.work.exporters[1]: 'process' and 'node' are both on port 9100; each exporter of a qube has its own",
    ),
    "no exporters": (WORK.replace('["node"]', "[]"), "qubes.work.exporters: empty; name what runs in this qube"),
    "exporters forgotten": ("[qubes.work]\n", "qubes.work.exporters: missing"),
    "a transport there is not": (WORK + "transport = 'ssh'\n", "qubes.work.transport: 'ssh' is none of qrexec, local"),
    "a bad label": (WORK + "labels = { a-b = 'c' }\n", "qubes.work.labels.a-b: not a label name"),
    "a label of Prometheus": (WORK + "labels = { __a = 'c' }\n", "qubes.work.labels.__a: not a label name"),
    "a label of ours": (
        WORK + "labels = { qube = 'c' }\n",
        "qubes.work.labels.qube: this label has a meaning of its own",
    ),
    "a label of histograms": (WORK + "labels = { le = '1' }\n", "qubes.work.labels.le: this label has a meaning"),
    "an empty label": (WORK + "labels = { a = '' }\n", "qubes.work.labels.a: the value must have 1 to 16384 bytes"),
    "a number as label": (WORK + "labels = { a = 1 }\n", "qubes.work.labels.a: expected a text in quotes, not a whole"),
    "a date": (
        "[scrape]\ntimeout = 2020-01-01\n" + WORK,
        "scrape.timeout: expected a text in quotes, not a date or time",
    ),
}


@pytest.mark.parametrize(("text", "words"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_names_file_key_and_remedy_in_one_line(text: str, words: str) -> None:
    """No value is guessed, and no key is ignored."""
    with pytest.raises(ConfigError) as caught:
        config.parse(text, FILE)
    message = str(caught.value)
    assert message.startswith("/etc/here/p.toml: ")
    assert words in message
    assert "\n" not in message


def test_all_faults_of_a_file_are_told_in_one_run() -> None:
    """A line each; unknown tables come first, since other faults follow from them."""
    text = """
    [web]
    listen_addresses = ["x", "y"]
    [web.tls_server_config]
    cert_fil = "a"
    min_version = "TLS9"
    [scrape]
    timeout = "10"
    timeout_offset = "1h"
    sample_limit = 0
    [Exporters]
    node = 9100
    [exporters]
    bad = 99999
    [qubes.work]
    exporters = ["node", "bad"]
    labels = { qube = "x", __y = "z" }
    [qubes."my work"]
    exporters = ["bad"]
    [discovery]
    exclude = ["("]
    include = [")"]
    """
    with pytest.raises(ConfigError) as caught:
        config.parse(text, FILE)
    assert "did you mean exporters?" in str(caught.value).splitlines()[0]
    places = [line.removeprefix(f"{FILE}: ").partition(": ")[0] for line in str(caught.value).splitlines()]
    assert places == [
        "Exporters",
        "web.listen_addresses[0]",
        "web.listen_addresses[1]",
        "web.tls_server_config.min_version",
        "web.tls_server_config.cert_fil",
        "scrape.sample_limit",
        "scrape.timeout",
        "scrape.timeout_offset",
        "exporters.bad",
        "qubes.work.labels.qube",
        "qubes.work.labels.__y",
        "qubes.work.exporters[0]",
        "qubes.'my work'",
        "discovery.include[0]",
        "discovery.exclude[0]",
    ]


FIELD = Path(__file__).parent / "field"


def test_a_byte_order_mark_is_taken() -> None:
    """Editors of other systems write one. It was "Invalid statement (line 1, column 1)"."""
    settings = config.load(FIELD / "config-bom.toml")
    assert [qube.name for qube in settings.qubes] == ["work"]


def test_a_long_number_is_one_line_with_its_place() -> None:
    """It was a traceback."""
    with pytest.raises(ConfigError) as caught:
        config.load(FIELD / "config-long-number.toml")
    assert str(caught.value).endswith("config-long-number.toml: not TOML: line 2: a number of more than 1000 digits")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """It may be missing, a folder, or not text."""
    with pytest.raises(ConfigError, match=r"no such file; write one, or name yours with --config\.file=PATH"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe4\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("5ms", 0.005), ("1m", 60.0), ("1h30m", 5400.0), ("1d", 86400.0), ("1w", 604800.0), ("1y", 31536e3)],
)
def test_durations_are_written_as_in_prometheus(text: str, seconds: float) -> None:
    """Each unit, and several in one text."""
    table = toml_reader.read(f"key = '{text}'", FILE)
    assert table.duration("key", 1.0, least=0.0, most=1e9) == pytest.approx(seconds)


# Each number and duration: its key, the least and the most it may be, and what is just beyond.
RANGES = [
    ("scrape.timeout", "'100ms'", "'10m'", "'99ms'", "'600001ms'"),
    ("scrape.body_size_limit", "1024", "'1GiB'", "1023", "'1073741825B'"),
    ("scrape.sample_limit", "1", "5_000_000", "0", "5_000_001"),
    ("scrape.min_interval", "'0'", "'1m'", "'-1s'", "'60001ms'"),
    ("scrape.memory_limit", "'6MiB'", "'1024GiB'", "'6143KiB'", "'1025GiB'"),
    ("scrape.label_limit", "1", "1000", "0", "1001"),
    ("scrape.label_name_length_limit", "1", "16_384", "0", "16_385"),
    ("scrape.label_value_length_limit", "1", "16_384", "0", "16_385"),
    ("qrexec.buffer_size", "'1KiB'", "'1MiB'", "1023", "1048577"),
    ("qrexec.connect_limit", "1", "64", "0", "65"),
    ("qrexec.backoff_max", "'5s'", "'1d'", "'4999ms'", "'86400001ms'"),
    ("discovery.refresh_interval", "'1s'", "'1d'", "'999ms'", "'86400001ms'"),
    ("exporters.port", "1", "65535", "0", "65536"),  # an exporter called port
]


@pytest.mark.parametrize(("key", "least", "most", "less", "more"), RANGES, ids=[line[0] for line in RANGES])
def test_each_number_has_a_range(key: str, least: str, most: str, less: str, more: str) -> None:
    """At its bounds it is taken, beyond them it is refused."""
    table, _, name = key.partition(".")
    text = WORK if table != "exporters" else WORK.replace("[exporters]\n", "")
    offset = "timeout_offset = '0s'\n" if name == "timeout" else ""
    for value in (least, most):
        config.parse(f"[{table}]\n{offset}{name} = {value}\n{text}", FILE)
    for value in (less, more):
        with pytest.raises(ConfigError, match=re.escape(f"{key}: ")):
            config.parse(f"[{table}]\n{offset}{name} = {value}\n{text}", FILE)


def test_the_times_that_depend_on_others_have_a_range() -> None:
    """The offset is shorter than the timeout; the first backoff is at most the longest, which has a bound."""
    config.parse("[scrape]\ntimeout = '10m'\ntimeout_offset = '599999ms'\n" + WORK, FILE)
    with pytest.raises(ConfigError, match=r"scrape\.timeout_offset: leaves no time"):
        config.parse("[scrape]\ntimeout = '10m'\ntimeout_offset = '10m'\n" + WORK, FILE)
    config.parse("[qrexec]\nbackoff_initial = '1d'\nbackoff_max = '1d'\n" + WORK, FILE)
    with pytest.raises(ConfigError, match=r"qrexec\.backoff_initial: too long; at most 86400s"):
        config.parse("[qrexec]\nbackoff_initial = '25h'\nbackoff_max = '1d'\n" + WORK, FILE)


def test_a_request_can_carry_each_timeout_and_size() -> None:
    """The service takes seven digits of milliseconds, and ten of bytes; with more, it would end, and qubes be down."""
    settings = config.parse("[scrape]\ntimeout = '10m'\nbody_size_limit = '1GiB'\n" + WORK, FILE).scrape
    wire = Version2()
    wire.receive(b"=2\n")
    line = wire.ask(milliseconds=round(settings.timeout * 1000), max_body=settings.limits.body_size, endpoints=[65535])
    assert service_module().REQUEST.fullmatch(line.removesuffix(b"\n").decode())


def test_a_qube_has_at_most_as_many_exporters_as_a_call_carries() -> None:
    """64 are taken, one more is refused."""
    for count in (64, 65):
        ports = "".join(f"e{number} = {number}\n" for number in range(1, count + 1))
        text = f"[exporters]\n{ports}[qubes.work]\nexporters = {[f'e{number}' for number in range(1, count + 1)]}\n"
        if count == 64:
            assert len(config.parse(text, FILE).targets) == count
        else:
            with pytest.raises(ConfigError, match=r"qubes\.work\.exporters: more than 64; one qrexec call carries no"):
                config.parse(text, FILE)


def test_a_pattern_that_could_hold_the_daemon_is_matched_in_linear_time() -> None:
    """A name of a qube cannot make `drop` take seconds."""
    text = WORK.replace("9100", "{ port = 1, drop = ['(\\w+_?)+_bucket'] }")
    (drop,) = config.parse(text, FILE).targets[0].exporter.drop
    assert not drop.fullmatch("a" * 5000)
    assert drop.fullmatch("a_bucket")


# Every name that users choose is NAME, as in the documentation.
ALL_TABLES = """
[web.tls_server_config]
cert_file = "tls/server.crt"
key_file = "tls/server.key"
[exporters.NAME]
port = 9100
[qubes.NAME]
exporters = ["NAME"]
[discovery]
[dom0]
"""
EXAMPLE = Path(__file__).parent.parent / "conf" / "prometheus-qubes-proxy.toml"


def keys_of_the_schema() -> set[str]:
    """Every key that the schema asks for, and that is no table of further keys."""
    table = toml_reader.read(ALL_TABLES, FILE)
    config.from_table(table, FILE)
    return {key for key in table.asked if not any(other.startswith(f"{key}.") for other in table.asked)}


def uncommented_example() -> str:
    """The example with all that is commented out."""
    return re.sub(r"^# (?=\[|\w+ = )", "", EXAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_example_has_every_key() -> None:
    """The keys of the schema are the keys of the example in conf/, with those that are commented out."""
    keys: set[str] = set()

    def walk(values: dict[str, Any], above: str) -> None:
        for name, value in values.items():
            key = f"{above}{'NAME' if above in ('exporters.', 'qubes.') else name}"
            if isinstance(value, dict) and not key.endswith((".labels", ".basic_auth_users")):
                walk(value, f"{key}.")
            else:
                keys.add(key)

    walk(tomli.loads(uncommented_example()), "")
    # exporters.NAME = 9100 is the short form of exporters.NAME.port.
    assert keys - {"exporters.NAME"} == keys_of_the_schema()


def test_the_example_shows_the_defaults() -> None:
    """It is a valid file with all its comments taken away, and then says what is so without it."""
    shown = config.parse(uncommented_example(), FILE)
    default = config.parse(ALL_TABLES, FILE)
    assert replace(shown.web, users=()) == default.web
    assert (shown.scrape, shown.qrexec) == (default.scrape, default.qrexec)
    assert shown.discovery
    assert default.discovery
    assert replace(shown.discovery, exporters=(), exclude=()) == default.discovery


def test_the_documentation_has_every_key() -> None:
    """The keys of the schema are the rows of the table in docs/configuration.md."""
    text = (EXAMPLE.parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)
    assert len(rows) == len(set(rows))
    # exporters.NAME = 9100 is the short form of exporters.NAME.port.
    assert set(rows) - {"exporters.NAME"} == keys_of_the_schema()


def test_a_file_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe would block the reload for ever, and a huge file is another one."""
    pipe, huge = tmp_path / "pipe", tmp_path / "huge"
    os.mkfifo(pipe)
    huge.write_bytes(b"#" * (config.MAX_FILE_SIZE + 1))
    for path, words in ((pipe, "not a regular file"), (huge, "larger than")):
        with pytest.raises(ConfigError, match=words):
            config.load(path)


def test_a_file_whose_name_is_mistyped_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies beside the one that is read, and was passed over without a word."""
    folders = [tmp_path / "rw", tmp_path / "etc"]
    monkeypatch.setattr(config, "DEFAULT_PATHS", [folder / "prometheus-qubes-proxy.toml" for folder in folders])
    assert config.misnamed() == []
    folders[0].mkdir()
    for name in ("prometheus-qube-proxy.toml", "prometheus-qubes-proxy.toml", "rc.local"):
        (folders[0] / name).touch()
    assert config.misnamed() == [folders[0] / "prometheus-qube-proxy.toml"]
