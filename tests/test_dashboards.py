# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard, the alert rules and the console in conf/, each with a real Prometheus that scrapes real daemons."""

import html
import json
import re
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests import grafana_schema
from tests.helpers import ROOT, SERVICE, recording
from tests.parts import Daemon, Exporter, Prometheus, debian_program, eventually, free_port, get, process, toml
from tests.standin.qubes import Qubes
from tests.test_discovery import ADMIN_VM_LIST, dom0
from tests.test_rules import ALERTS, RULES

CONF = ROOT / "conf"
DASHBOARD = (CONF / "qubes-at-a-glance.json").read_text(encoding="utf-8")
PANELS: list[dict[str, Any]] = [one for one in json.loads(DASHBOARD)["panels"] if one["type"] != "row"]
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {"$machine": ".*", "$qube": ".*", "$__rate_interval": "1m"}

# These daemons have no [dom0].
FROM_DOM0 = {"QubesPoolFilling", "QubesPoolNearlyFull", "QubesPoolFullSoon", "QubeCrashed"}
MARKUP = "<script>alert(1)</script>"
HOSTILE = f"""bad{{ 1
node_filesystem_size_bytes{{device="x",fstype="ext4",mountpoint="{MARKUP}"}} 100
node_filesystem_avail_bytes{{device="x",fstype="ext4",mountpoint="{MARKUP}"}} 0
"""
# Expressions of the kind that the main panels of "Node Exporter Full" (grafana.com, 1860) have.
NODE_EXPORTER_FULL = [
    '100 * (1 - avg(rate(node_cpu_seconds_total{mode="idle", instance="$node", job="$job"}[$__rate_interval])))',
    (
        'scalar(node_load1{instance="$node",job="$job"}) * 100 / '
        'count(count(node_cpu_seconds_total{instance="$node",job="$job"}) by (cpu))'
    ),
    (
        '(1 - (node_memory_MemAvailable_bytes{instance="$node", job="$job"} '
        '/ node_memory_MemTotal_bytes{instance="$node", job="$job"})) * 100'
    ),
    (
        '(node_filesystem_size_bytes{instance="$node",job="$job",mountpoint="/",fstype!="rootfs"} '
        '- node_filesystem_avail_bytes{instance="$node",job="$job",mountpoint="/",fstype!="rootfs"}) '
        '/ node_filesystem_size_bytes{instance="$node",job="$job",mountpoint="/",fstype!="rootfs"}'
    ),
    'node_time_seconds{instance="$node",job="$job"} - node_boot_time_seconds{instance="$node",job="$job"}',
    'rate(node_network_receive_bytes_total{instance="$node",job="$job"}[$__rate_interval])*8',
    (
        'rate(node_disk_read_bytes_total{instance="$node",job="$job",device=~"[a-z]+|nvme[0-9]+n[0-9]+|mmcblk[0-9]+"}'
        "[$__rate_interval])"
    ),
    (
        'sum by(instance) (irate(node_cpu_seconds_total{instance="$node",job="$job", mode="system"}[$__rate_interval]))'
        ' / on(instance) group_left sum by (instance)((irate(node_cpu_seconds_total{instance="$node",job="$job"}'
        "[$__rate_interval])))"
    ),
]


def ask(prometheus: Prometheus, expression: str, at: float | None = None) -> list[dict[str, Any]]:
    """The answer of an instant query, which must not be an error."""
    fields = {"query": expression} | ({"time": at} if at else {})
    answer = json.loads(get(f"{prometheus.url}/api/v1/query?{urlencode(fields)}").body)
    assert answer["status"] == "success", f"{expression}: {answer.get('error')}"
    data: dict[str, Any] = answer["data"]
    assert data["resultType"] == "vector", expression
    result: list[dict[str, Any]] = data["result"]
    return result


def filled(expression: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """The expression as Grafana sends it."""
    for name, value in variables.items():
        expression = expression.replace(name, value)
    return expression


def machine(stack: ExitStack, folder: Path) -> Daemon:
    """
    A Qubes machine with something of everything.

    `work` has a real node_exporter, and an exporter that is not there; `personal` a hostile one; `slow` one that does
    not answer in time; `denied` is refused, `halted` does not run.
    """
    qubes = Qubes(folder / "machine", SERVICE)
    stack.callback(lambda: eventually("every process of the machine has ended", lambda: not qubes.left_behind()))
    dom0(qubes, "admin.vm.List", ADMIN_VM_LIST)
    for name in ("work", "personal", "slow", "denied", "halted"):
        qubes.add(name)
    qubes.set_policy("denied", "deny")
    qubes.set_state("halted", "Halted")
    port = free_port()
    address = f"--web.listen-address=127.0.0.1:{port}"
    stack.enter_context(process(debian_program("prometheus-node-exporter"), address, log=folder / "node.log"))
    hostile = stack.enter_context(Exporter(recording("node") + HOSTILE.encode()))
    slow = stack.enter_context(Exporter())
    slow.hold.clear()
    of = {
        "work": {"node": port, "gone": free_port()},
        "personal": {"node-2": hostile.port},
        "slow": {"app": slow.port},
        "denied": {"app": slow.port},
        "halted": {"app": slow.port},
    }
    text = toml(of, client=qubes.client, rest="[discovery]\n")
    return stack.enter_context(Daemon(folder, text, qubes.env))


def without_qubes(stack: ExitStack, folder: Path) -> Daemon:
    """A daemon whose discovery finds no qube, and whose configuration cannot be read any more."""
    folder.mkdir()
    qubes = Qubes(folder / "machine", SERVICE)
    stack.callback(lambda: eventually("every process of the machine has ended", lambda: not qubes.left_behind()))
    dom0(qubes, "admin.vm.List", ADMIN_VM_LIST)
    text = toml({}, client=qubes.client, rest="[exporters.x]\nport = 9100\n[discovery]\nexporters = ['x']\n")
    proxy = stack.enter_context(Daemon(folder, text, qubes.env))
    proxy.config.write_text("nonsense", encoding="utf-8")
    proxy.process.send_signal(signal.SIGHUP)
    eventually("the reload failed", lambda: "qubes_proxy_config_last_reload_successful 0" in proxy.get().text)
    return proxy


def watching(folder: Path, targets: Mapping[str, str], *, relabelled: bool) -> Prometheus:
    """A Prometheus with the shipped files, these addresses by machine, and alerts that fire at once."""
    folder.mkdir()
    prometheus = Prometheus(folder, "")
    text = (CONF / "prometheus.yml").read_text(encoding="utf-8")
    text = re.sub(r"(scrape_(?:interval|timeout)): \d+s", r"\1: 2s", text)
    text = text.replace("global:\n", "global:\n  evaluation_interval: 1s\n")
    (first, address), *others = targets.items()
    more = "".join(f"      - {json.dumps({'targets': [at], 'labels': {'machine': name}})}\n" for name, at in others)
    text = re.sub(r"( +labels: {machine: laptop}.*\n)", rf"\1{more}", text.replace("10.137.0.5:8199", address))
    assert first == "laptop"
    if not relabelled:
        text = re.sub(r" +metric_relabel_configs:\n(?: +- .*\n)+", "", text)
    prometheus.config.write_text(text, encoding="utf-8")
    (folder / "qubes-rules.yml").write_text(re.sub(r"for: \w+", "for: 0s", RULES), encoding="utf-8")
    return prometheus


def expressions_return_data(prometheus: Prometheus) -> None:
    """Also without what it falls back to if there is none; and with one qube chosen, none of another one."""
    one_qube = {**VARIABLES, "$machine": "laptop", "$qube": "work"}
    for title, expression in EXPRESSIONS:
        assert ask(prometheus, filled(expression).removesuffix(" or vector(0)")), title
        chosen = ask(prometheus, filled(expression, one_qube))
        assert {one["metric"].get("qube", "work") for one in chosen} <= {"work"}, title


def dashboard_shows_what_is_so(prometheus: Prometheus) -> None:
    """Numbers and states, by the titles of the panels. What is slow may be up, if it says itself that it is late."""
    others = {**VARIABLES, "$qube": "work|personal|denied|halted"}
    by_title = {title: filled(expression, others) for title, expression in EXPRESSIONS}

    def number(title: str) -> float:
        ((value),) = (float(one["value"][1]) for one in ask(prometheus, by_title[title]))
        return value

    titles = "Qubes up", "Qubes down", "Qubes not running", "Exporters up", "Exporters down", "Lines dropped"
    assert [number(title) for title in titles] == [2, 1, 1, 2, 1, 1]
    assert [number(title) for title in ("Proxy reachable", "Configuration loaded")] == [0, 0]
    prometheus.waits_for(by_title["Qubes"], {"work": 1, "personal": 1, "denied": 0, "halted": -1})
    found = {
        one["metric"]["qube"]: one["metric"]["reason"] for one in ask(prometheus, by_title["Why they are down now"])
    }
    expected = {"work": "connection", "denied": "refused", "halted": "not_running"}
    assert found == expected


def rules_fire_and_say_why(prometheus: Prometheus) -> None:
    """All but the one for exporters that are nearly too slow: for it, any time is too long here."""

    def alerts() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for one in json.loads(get(f"{prometheus.url}/api/v1/alerts").body)["data"]["alerts"]:
            found.setdefault(one["labels"]["alertname"], []).append(one)
        return found

    eventually("the rules fire", lambda: set(alerts()) == set(ALERTS) - {"QubeExporterSlow"} - FROM_DOM0)
    fired = alerts()
    assert {one["labels"]["qube"] for one in fired["QubeDown"]} - {"slow"} == {"denied"}
    assert {one["labels"]["qube"] for one in fired["QubeExporterDown"]} - {"slow"} == {"work"}
    assert {one["labels"]["machine"] for one in fired["QubesProxyUnreachable"]} == {"gone"}
    assert {one["labels"]["machine"] for one in fired["QubesProxyNothingDiscovered"]} == {MARKUP}
    texts = [text for group in fired.values() for one in group for text in one["annotations"].values()]
    assert not [text for text in texts if "error" in text or "no value" in text]
    descriptions = "\n".join(one["annotations"]["description"] for group in fired.values() for one in group)
    for reason in ("refused", "connection", "timeout"):
        assert f"The reason is {reason}." in descriptions
    (slow,) = re.findall(r"(?s)- alert: QubeExporterSlow\n +expr: >-\n(.*?)\n +for:", RULES)
    assert ask(prometheus, slow.replace("0.8", "0"))


def console_shows_it_too(prometheus: Prometheus) -> None:
    """What is wrong comes first, and what a qube says is text."""
    answer = get(f"{prometheus.url}/consoles/qubes-at-a-glance.html")
    assert answer.status == 200, answer.text
    assert MARKUP not in answer.text
    rows = [
        [html.unescape(re.sub(r"<[^>]*>|\s+", " ", cell)).split() for cell in re.findall(r"(?s)<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"(?s)<tr>(.*?)</tr>", answer.text)
    ]
    seen = {row[0][0]: [" ".join(cell) for cell in row[1:4]] for row in rows[1:]}
    assert seen["slow"][1] in ("down", "partly up")
    seen["slow"][1] = "down"
    assert list(seen.items()) == [
        ("denied", ["laptop", "down", "app : refused"]),
        ("slow", ["laptop", "down", "app : timeout"]),
        ("work", ["laptop", "partly up", "gone : connection"]),
        ("personal", ["laptop", "up", ""]),
        ("halted", ["laptop", "not running", "app : not_running"]),
    ]
    (work,) = (row for row in rows if row[0] == ["work"])
    assert all(work), "each cell has something"
    assert ["-"] not in work
    (personal,) = (row for row in rows if row[0] == ["personal"])
    assert personal[-1] == ["100%", MARKUP]
    for words in ("No page from", "could not load its configuration", "has no qube to watch"):
        assert words in answer.text
    assert "has no job called qubes" not in answer.text


def node_exporter_full_shows_one_qube(prometheus: Prometheus) -> None:
    """With the shipped relabelling its `job` and `instance` are an exporter and a qube: it gets what these have."""
    now = ask(prometheus, "vector(time())")[0]["value"][0]
    for expression in NODE_EXPORTER_FULL:
        theirs = filled(expression, {"$node": "work", "$job": "node", "$__rate_interval": "1m"})
        wanted = theirs.replace('instance="work"', 'qube="work"').replace('job="node"', 'exporter="node"')
        found = ask(prometheus, theirs, now)
        assert found == ask(prometheus, wanted, now), expression
        assert found, expression
        assert {one["metric"].get("qube", "work") for one in found} == {"work"}, expression
        other = filled(expression, {"$node": "personal", "$job": "node-2", "$__rate_interval": "1m"})
        assert ask(prometheus, other, now) != found, expression


@pytest.mark.slow
@pytest.mark.parametrize("relabelled", [True, False])
def test_all_that_is_for_prometheus_and_grafana(tmp_path: Path, *, relabelled: bool) -> None:
    """Of a machine with all kinds of qubes, one without any, and one that is off; after some scrapes."""
    debian_program("prometheus")
    with ExitStack() as stack:
        daemons = {"laptop": machine(stack, tmp_path), MARKUP: without_qubes(stack, tmp_path / "bare")}
        targets = {name: one.url.removeprefix("http://") for name, one in daemons.items()}
        targets["gone"] = f"127.0.0.1:{free_port()}"
        prometheus = watching(tmp_path / "prometheus", targets, relabelled=relabelled)
        stack.enter_context(prometheus.running(f"--web.console.templates={CONF}"))
        prometheus.waits_for(
            'count by (qube) (rate(node_load1{qube=~"work|personal"}[1m]))', {"work": 1, "personal": 1}
        )
        prometheus.waits_for("count(count by (machine) (up{job='qubes'}))", {"": 3})
        expressions_return_data(prometheus)
        dashboard_shows_what_is_so(prometheus)
        rules_fire_and_say_why(prometheus)
        console_shows_it_too(prometheus)
        if relabelled:
            node_exporter_full_shows_one_qube(prometheus)


@pytest.mark.slow
def test_the_console_of_a_prometheus_without_the_job_says_so(tmp_path: Path) -> None:
    """It would be an empty table."""
    one = Prometheus(tmp_path, "")
    one.config.write_text("scrape_configs: []\n", encoding="utf-8")
    with one.running(f"--web.console.templates={CONF}"):
        eventually("it answers", lambda: one.query("vector(1)"))
        assert "has no job called qubes" in get(f"{one.url}/consoles/qubes-at-a-glance.html").text


def lint(dashboard: dict[str, Any]) -> list[str]:
    """The rules of Grafana's dashboard-linter that apply here, as far as they are not queries to a Prometheus."""
    names = [one["name"] for one in dashboard["templating"]["list"]]
    source = {"type": "prometheus", "uid": "${datasource}"}
    found = [] if names[0] == "datasource" else ["no variable for the data source"]
    found += [] if dashboard["editable"] is False else ["editable"]
    variables = [one for one in dashboard["templating"]["list"] if one["type"] == "query"]
    found += [f"{one['name']}: refresh" for one in variables if one["refresh"] != 2]
    for panel in [*variables, *(one for one in dashboard["panels"] if one["type"] != "row")]:
        title = panel.get("title", panel.get("name"))
        found += [] if panel["datasource"] == source else [f"{title}: data source"]
        if panel in variables:
            continue
        found += [f"{title}: no {key}" for key in ("title", "description", "targets") if not panel.get(key)]
        found += [] if panel["fieldConfig"]["defaults"].get("unit") else [f"{title}: no unit"]
        for expression in (target["expr"] for target in panel["targets"]):
            found += [f"{title}: not by $machine"] * ('machine=~"$machine"' not in expression)
            found += [f"{title}: interval"] * bool(re.search(r"\[(?!\$__rate_interval\])", expression))
            counters = re.findall(r"(\w*\(?)\w+_total\b", expression)
            found += [f"{title}: counter without rate"] * any(one not in ("rate(", "increase(") for one in counters)
    return found


def test_the_dashboard_keeps_the_rules_of_grafanas_linter() -> None:
    """And no two panels lie on each other."""
    dashboard = json.loads(DASHBOARD)
    assert lint(dashboard) == []
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert ids == list(range(1, len(ids) + 1))
    assert len({panel["title"] for panel in dashboard["panels"]}) == len(ids)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)) == 24 * (1 + max(y for _, y in cells))


FAULTS = [
    ('"title": "CPU"', '"title": ""'),
    ('"unit": "percentunit"', '"unit": ""'),
    ("[$__rate_interval]", "[5m]"),
    ("rate(node_disk_read", "max(node_disk_read"),
    ('"uid": "${datasource}"', '"uid": "prometheus"'),
    ('"editable": false', '"editable": true'),
    ('qubes_proxy_exporter_up{machine=~\\"$machine\\",', "qubes_proxy_exporter_up{"),
]


@pytest.mark.parametrize(("right", "wrong"), FAULTS)
def test_the_linter_finds_faults(right: str, wrong: str) -> None:
    """One that finds nothing would be of no use."""
    assert right in DASHBOARD
    assert lint(json.loads(DASHBOARD.replace(right, wrong)))


@pytest.mark.slow
def test_the_dashboard_has_grafanas_types(tmp_path: Path) -> None:
    """Keys and values that Grafana does not know are faults."""
    grafana_schema.install(tmp_path)
    assert grafana_schema.faults(tmp_path, DASHBOARD) == ""
    for right, wrong in (
        ('"x": 0', '"x": "0"'),
        ('"refresh": "1m"', '"refrish": "1m"'),
        ('"unit"', '"unitt"'),
        ('"mode": "absolute"', '"mode": "absolut"'),
        ('"type": "query"', '"type": "quary"'),
    ):
        assert right in DASHBOARD
        assert grafana_schema.faults(tmp_path, DASHBOARD.replace(right, wrong, 1)), wrong
