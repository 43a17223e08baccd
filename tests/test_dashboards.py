# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard, the alert rules and the console in conf/, each with a real Prometheus that scrapes real daemons."""

import html
import json
import re
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from federator.dom0_replies import VOLUME
from tests import grafana_schema
from tests.helpers import ROOT, SERVICE, recording
from tests.parts import Daemon, Exporter, Prometheus, debian_program, eventually, free_port, get, process, toml
from tests.standin.qubes import Qubes
from tests.test_discovery import ADMIN_VM_LIST, dom0
from tests.test_dom0 import EVERYTHING
from tests.test_rules import ALERTS, RULES

CONF = ROOT / "conf"
DASHBOARD = (CONF / "qubes-at-a-glance.json").read_text(encoding="utf-8")
Table = list[list[list[str]]]
CONSOLE = (CONF / "qubes-at-a-glance.html").read_text(encoding="utf-8")


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All that are no rows. A row that is collapsed has its panels in itself."""
    return [one for top in dashboard["panels"] for one in ([top] if top["type"] != "row" else top["panels"])]


PANELS = panels(json.loads(DASHBOARD))
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
VARIABLES = {"$machine": ".*", "$qube": ".*", "$__rate_interval": "1m"}

# Six hours, whatever is shown: a forecast must not be another one after the mouse wheel. The rules have the same.
FORECAST = "[6h], 3 * 86400)"
# The one for exporters that are nearly too slow, as any time is too long here, and a pool that grows.
QUIET = {"QubeExporterSlow", "QubesPoolFullSoon"}
DAYS_LEFT = 20
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


def something(prometheus: Prometheus, expression: str) -> list[dict[str, Any]]:
    """The answer as soon as there is one: a busy machine loses a scrape now and then, and all series with it."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = ask(prometheus, expression)
        return bool(found)

    eventually(f"{expression} has data", is_there)
    return found


def filled(expression: str, variables: Mapping[str, str] = VARIABLES) -> str:
    """The expression as Grafana sends it."""
    for name, value in variables.items():
        expression = expression.replace(name, value)
    return expression


def what_dom0_knows(qubes: Qubes) -> None:
    """A pool that is nearly full, a qube that crashed, and a template that is out of date."""
    qubes.add_dom0()
    (qubes.root / "qubes" / "dom0" / "pools").write_text("vm-pool 1000000 970000 1000 300\n")
    qubes.add("crashed", state="Crashed")
    qubes.add("debian-12", state="Halted")
    ends = datetime.now(UTC) + timedelta(days=DAYS_LEFT)
    template = qubes.root / "qubes" / "debian-12"
    (template / "class").write_text("TemplateVM")
    (template / "features").write_text(f"updates-available=1\nos-eol={ends:%Y-%m-%d}\n")


def machine(stack: ExitStack, folder: Path) -> Daemon:
    """
    A Qubes machine with something of everything.

    `work` has a real node_exporter, and an exporter that is not there; `personal` a hostile one; `slow` one that does
    not answer in time; `denied` is refused, `halted` does not run. dom0 says what it knows, but of no volumes.
    """
    qubes = Qubes(folder / "machine", SERVICE)
    stack.callback(lambda: eventually("every process of the machine has ended", lambda: not qubes.left_behind()))
    what_dom0_knows(qubes)
    for name in ("work", "personal", "slow", "denied", "halted"):
        qubes.add(name)
    qubes.set_policy("denied", "deny")
    qubes.set_state("halted", "Halted")
    qubes.set_policy("halted", "allow autostart=no")  # a busy machine may call it before dom0 says that it is halted
    for qube in (qubes.root / "qubes").iterdir():
        (qube / "denied").write_text(VOLUME)
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
    text = toml(of, client=qubes.client, rest=f"[discovery]\n{EVERYTHING}")
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
    text = re.sub(r"(scrape_(?:interval|timeout)): \d+s", r"\1: 4s", text)
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
        something(prometheus, filled(expression).removesuffix(" or vector(0)"))
        chosen = ask(prometheus, filled(expression, one_qube))
        assert {one["metric"].get("qube", "work") for one in chosen} <= {"work"}, title


def variables_have_what_can_be_chosen(prometheus: Prometheus) -> None:
    """Also dom0, and qubes that have no exporter."""
    found = {}
    for one in json.loads(DASHBOARD)["templating"]["list"][1:]:
        query = re.fullmatch(r"label_values\((.*), (\w+)\)", one["query"]["query"])
        assert query
        url = f"{prometheus.url}/api/v1/label/{query[2]}/values?{urlencode({'match[]': filled(query[1])})}"
        found[one["name"]] = set(json.loads(get(url).body)["data"])
    assert found["machine"] == {"laptop", MARKUP}
    assert found["qube"] == {"dom0", "work", "personal", "slow", "denied", "halted", "crashed", "debian-12"}


def dashboard_shows_what_is_so(prometheus: Prometheus) -> None:
    """Numbers and states, by the titles of the panels. What is slow may be up, if it says itself that it is late."""
    others = {**VARIABLES, "$qube": "work|personal|denied|halted"}
    by_title = {title: filled(expression, others) for title, expression in EXPRESSIONS}

    def number(title: str) -> float:
        ((value),) = (float(one["value"][1]) for one in something(prometheus, by_title[title]))
        return value

    titles = "Qubes up", "Qubes down", "Qubes not running", "Exporters up", "Exporters down", "Lines dropped"
    assert [number(title) for title in titles] == [2, 1, 1, 2, 1, 1]
    assert [number(title) for title in ("Proxy reachable", "Configuration loaded")] == [0, 0]
    prometheus.waits_for(by_title["Qubes"], {"work": 1, "personal": 1, "denied": 0, "halted": -1})
    found = {
        one["metric"]["qube"]: one["metric"]["reason"]
        for one in something(prometheus, by_title["Why they are down now"])
    }
    expected = {"work": "connection", "denied": "refused", "halted": "not_running"}
    assert found == expected


def dashboard_shows_what_dom0_says(prometheus: Prometheus) -> None:
    """By the titles of the panels."""
    by_title = {title: something(prometheus, filled(expression)) for title, expression in EXPRESSIONS}
    states = {one["metric"]["qube"]: float(one["value"][1]) for one in by_title["States of qubes"]}
    up = dict.fromkeys(("dom0", "work", "personal", "slow", "denied"), 1)
    assert states == {**up, "halted": 0, "debian-12": 0, "crashed": 4}
    first = {title: next(iter(found)) for title, found in by_title.items()}
    assert float(first["Updates wait"]["value"][1]) == 1
    assert first["Where updates wait"]["metric"]["qube"] == "debian-12"
    assert DAYS_LEFT - 2 < float(first["Days until the end of updates"]["value"][1]) < DAYS_LEFT
    assert first["What dom0 does not answer"]["metric"]["call"] == VOLUME
    pools = [expression for title, expression in EXPRESSIONS if title.startswith("Pools: how full")]
    assert [float(something(prometheus, filled(one))[0]["value"][1]) for one in pools] == pytest.approx([0.97, 0.3] * 2)


def rules_fire_and_say_why(prometheus: Prometheus) -> None:
    """All but two."""

    def alerts() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for one in json.loads(get(f"{prometheus.url}/api/v1/alerts").body)["data"]["alerts"]:
            found.setdefault(one["labels"]["alertname"], []).append(one)
        return found

    eventually("the rules fire", lambda: set(alerts()) == set(ALERTS) - QUIET)
    fired = alerts()
    assert {one["labels"]["qube"] for one in fired["QubeDown"]} - {"slow"} == {"denied"}
    assert {one["labels"]["qube"] for one in fired["QubeExporterDown"]} - {"slow"} == {"work"}
    assert {one["labels"]["qube"] for one in fired["QubeCrashed"]} == {"crashed"}
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
    rows, pools, qubes = map(rows_of, re.findall(r"(?s)<table>(.*?)</table>", answer.text))
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
    console_shows_what_dom0_says(answer.text, pools, qubes)


def rows_of(table: str) -> Table:
    """The words of each cell of each row."""
    return [
        [html.unescape(re.sub(r"<[^>]*>|\s+", " ", cell)).split() for cell in re.findall(r"(?s)<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"(?s)<tr>(.*?)</tr>", table)
    ]


def console_shows_what_dom0_says(page: str, pools: Table, qubes: Table) -> None:
    """Those that use CPU come first; a bar has a value that the browser understands."""
    assert pools[1:] == [[["vm-pool"], ["laptop"], ["97%"], ["97%"], ["30%"], ["30%"]]]
    seen = {row[0][0]: [" ".join(cell) for cell in row[1:]] for row in qubes[1:]}
    assert list(seen)[-3:] == ["crashed", "debian-12", "halted"]
    assert seen.keys() - set(list(seen)[-3:]) == {"dom0", "work", "personal", "slow", "denied"}
    assert {name: row[1] for name, row in seen.items() if name in ("work", "crashed", "halted")} == {
        "work": "Running",
        "crashed": "Crashed",
        "halted": "Halted",
    }
    assert seen["debian-12"][2:-1] == ["-", "-", "-", "-", "wait"]
    assert int(seen["debian-12"][-1]) in (DAYS_LEFT - 1, DAYS_LEFT)
    assert "-" not in seen["work"][:-2]
    assert "488.3MiB" in seen["work"][4].replace(" ", "")
    values = [float(value) for value in re.findall(r'<meter [^>]*value="([^"]*)"', page)]
    assert len(values) == 4 + 2 * 5
    assert all(0 <= value <= 1 for value in values)
    assert f"does not answer {VOLUME}: refused" in page


def node_exporter_full_shows_one_qube(prometheus: Prometheus) -> None:
    """With the shipped relabelling its `job` and `instance` are an exporter and a qube: it gets what these have."""
    now = ask(prometheus, "vector(time())")[0]["value"][0]
    alike = []
    for expression in NODE_EXPORTER_FULL:
        theirs = filled(expression, {"$node": "work", "$job": "node", "$__rate_interval": "1m"})
        wanted = theirs.replace('instance="work"', 'qube="work"').replace('job="node"', 'exporter="node"')
        found = ask(prometheus, theirs, now)
        assert found == ask(prometheus, wanted, now), expression
        assert found, expression
        assert {one["metric"].get("qube", "work") for one in found} == {"work"}, expression
        other = filled(expression, {"$node": "personal", "$job": "node-2", "$__rate_interval": "1m"})
        alike.append(ask(prometheus, other, now) == found)
    assert alike.count(True) <= 1, "the CPU of a busy machine may be that of the other qube's text"


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
        prometheus.waits_for("max by (qube) (qube_updates_available) == 1", {"debian-12": 1})
        prometheus.waits_for("count(qube_os_eol_timestamp_seconds)", {"": 1})
        prometheus.waits_for("count(qubes_proxy_dom0_failure)", {"": 1})
        prometheus.waits_for("count(deriv(qubes_pool_metadata_usage_bytes[1m]))", {"": 1})
        prometheus.waits_for('count(rate(qube_cpu_seconds_total{qube!=""}[1m]))', {"": 5})
        variables_have_what_can_be_chosen(prometheus)
        expressions_return_data(prometheus)
        dashboard_shows_what_is_so(prometheus)
        dashboard_shows_what_dom0_says(prometheus)
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
        page = get(f"{one.url}/consoles/qubes-at-a-glance.html").text
        assert "has no job called qubes" in page
        assert "has no <code>[dom0]</code>" in page
        assert page.count("<table>") == 1


def lint(dashboard: dict[str, Any]) -> list[str]:
    """The rules of Grafana's dashboard-linter that apply here, as far as they are not queries to a Prometheus."""
    names = [one["name"] for one in dashboard["templating"]["list"]]
    source = {"type": "prometheus", "uid": "${datasource}"}
    found = [] if names[0] == "datasource" else ["no variable for the data source"]
    found += [] if dashboard["editable"] is False else ["editable"]
    variables = [one for one in dashboard["templating"]["list"] if one["type"] == "query"]
    found += [f"{one['name']}: refresh" for one in variables if one["refresh"] != 2]
    for panel in [*variables, *panels(dashboard)]:
        title = panel.get("title", panel.get("name"))
        found += [] if panel["datasource"] == source else [f"{title}: data source"]
        if panel in variables:
            continue
        found += [f"{title}: no {key}" for key in ("title", "description", "targets") if not panel.get(key)]
        found += [] if panel["fieldConfig"]["defaults"].get("unit") else [f"{title}: no unit"]
        for expression in (target["expr"] for target in panel["targets"]):
            found += [f"{title}: not by $machine"] * ('machine=~"$machine"' not in expression)
            others = re.sub(rf"predict_linear\(\w+{{[^}}]*}}{re.escape(FORECAST)}", "", expression)
            found += [f"{title}: interval"] * bool(re.search(r"\[(?!\$__rate_interval\])", others))
            counters = re.findall(r"(\w*\(?)\w+_total\b", expression)
            found += [f"{title}: counter without rate"] * any(one not in ("rate(", "increase(") for one in counters)
    return found


def test_the_dashboard_keeps_the_rules_of_grafanas_linter() -> None:
    """And no two panels lie on each other."""
    dashboard = json.loads(DASHBOARD)
    assert lint(dashboard) == []
    rows = [one for one in dashboard["panels"] if one["type"] == "row"]
    everything = [*rows, *panels(dashboard)]
    assert sorted(panel["id"] for panel in everything) == list(range(1, len(everything) + 1))
    assert len({panel["title"] for panel in everything}) == len(everything)
    for shown in (dashboard["panels"], *(row["panels"] for row in rows if row["collapsed"])):
        cells = [
            (x, y)
            for at in (panel["gridPos"] for panel in shown)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        ]
        lines = {y for _, y in cells}
        assert len(cells) == len(set(cells)) == 24 * len(lines)
        assert max(lines) - min(lines) + 1 == len(lines)


def test_what_needs_dom0_is_out_of_the_way_and_says_so() -> None:
    """Most people have no [dom0]. A row that is collapsed asks nothing."""
    for row in (one for one in json.loads(DASHBOARD)["panels"] if one["type"] == "row"):
        assert row["collapsed"] == bool(row["panels"]) == ("[dom0]" in row["title"])
        for panel in row["panels"]:
            assert "dom0" in panel["fieldConfig"]["defaults"]["noValue"], panel["title"]
    of_dom0 = r"\b(qubes?_(?!proxy)|qubes_proxy_dom0)\w+{"
    first = next(number for number, (_, expression) in enumerate(EXPRESSIONS) if re.search(of_dom0, expression))
    assert EXPRESSIONS[first][0] == "CPU of every qube"


def test_the_forecast_is_the_same_everywhere() -> None:
    """Of data and metadata, in the rules, the dashboard and the console."""
    assert [text.count(FORECAST) for text in (RULES, DASHBOARD, CONSOLE)] == [2, 2, 2]
    assert [text.count("predict_linear(") for text in (RULES, DASHBOARD, CONSOLE)] == [2, 2, 2]


FAULTS = [
    ('"title": "CPU"', '"title": ""'),
    ('"unit": "percentunit"', '"unit": ""'),
    ("[$__rate_interval]", "[5m]"),
    (FORECAST, "[1h], 86400)"),
    ("predict_linear(", "deriv("),
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
