# SPDX-License-Identifier: GPL-3.0-or-later
"""The alert rules in conf/: each fires where it should, and nowhere else, with and without the shipped relabelling."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.parts import debian_program

# Each of these tests starts promtool.
pytestmark = pytest.mark.slow

RULES = (ROOT / "conf" / "qubes-rules.yml").read_text(encoding="utf-8")
ALERTS = re.findall(r"^ +- alert: (\w+)$", RULES, re.MULTILINE)
# promtool compares annotations, too. test_dashboards.py looks at those of real alerts.
BARE = re.sub(r"^ {8}annotations:\n(?: {10}.*\n)+", "", RULES, flags=re.MULTILINE)

QUBE, NODE = 'qube="work"', 'qube="work",exporter="node"'
UP, DOWN = f"qubes_proxy_qube_up{{{QUBE}}} 1", f"qubes_proxy_qube_up{{{QUBE}}} 0"
NODE_UP, NODE_DOWN = f"qubes_proxy_exporter_up{{{NODE}}} 1", f"qubes_proxy_exporter_up{{{NODE}}} 0"
TOOK_9_SECONDS = f"qubes_proxy_exporter_scrape_duration_seconds{{{NODE}}} 9"
BUILD = "qubes_proxy_build_info 1"
END = f"qube_os_eol_timestamp_seconds{{{QUBE}}}"


def failure(reason: str) -> str:
    """The series that says why the exporter is down."""
    return f'qubes_proxy_exporter_failure{{{NODE},reason="{reason}"}} 1'


def pool(kind: str, usage: str) -> list[str]:
    """The series of a pool of 100 bytes; `usage` may grow: `51+0.1` is 0.1 more each minute."""
    return [
        f'qubes_pool_{kind}{of}_bytes{{pool="vm-pool"}} {value}' for of, value in (("usage", usage), ("size", "100"))
    ]


def states(present: str) -> list[str]:
    """The states of a qube that is in this one."""
    names = present, *({"Running", "Halted", "Crashed"} - {present})
    return [f'qube_state{{{QUBE},state="{name}"}} {int(name == present)}' for name in names]


# Alert: the series of a machine where it fires, with the labels of the first one, and of a machine where it does not.
CASES = [
    ("QubesProxyUnreachable", ["up 0"], ["up 1"]),
    ("QubesProxyNothingDiscovered", [BUILD], [BUILD, DOWN]),
    (
        "QubesProxyConfigNotLoaded",
        ["qubes_proxy_config_last_reload_successful 0"],
        ["qubes_proxy_config_last_reload_successful 1"],
    ),
    ("QubeDown", [DOWN, failure("refused")], [DOWN, failure("not_running")]),
    ("QubeDown", [DOWN, failure("timeout")], [UP]),
    ("QubeExporterDown", [NODE_DOWN, UP, failure("http")], [NODE_DOWN, DOWN, failure("refused")]),
    ("QubeExporterDown", [NODE_DOWN, UP], [NODE_UP, UP]),
    (
        "QubeExporterSlow",
        [TOOK_9_SECONDS, NODE_UP, "qubes_proxy_scrape_timeout_seconds 9.5"],
        [TOOK_9_SECONDS, NODE_UP, "qubes_proxy_scrape_timeout_seconds 29.5"],
    ),
    (
        "QubeExporterSlow",
        [TOOK_9_SECONDS, NODE_UP, "qubes_proxy_scrape_timeout_seconds 9.5"],
        [TOOK_9_SECONDS, NODE_DOWN, "qubes_proxy_scrape_timeout_seconds 9.5"],
    ),
    (
        "QubeLinesDropped",
        [f"qubes_proxy_exporter_scrape_lines_dropped{{{NODE}}} 1"],
        [f"qubes_proxy_exporter_scrape_lines_dropped{{{NODE}}} 0"],
    ),
    (
        "QubesDom0DoesNotAnswer",
        ['qubes_proxy_dom0_up{call="admin.pool.List"} 0'],
        ['qubes_proxy_dom0_up{call="admin.pool.List"} 1'],
    ),
    ("QubesPoolFilling", pool("", "86"), pool("", "84")),
    ("QubesPoolFilling", pool("metadata_", "86") + pool("", "9"), pool("metadata_", "84") + pool("", "9")),
    ("QubesPoolNearlyFull", pool("", "96"), pool("", "94")),
    ("QubesPoolNearlyFull", pool("metadata_", "96") + pool("", "9"), pool("metadata_", "94") + pool("", "9")),
    ("QubesPoolFullSoon", pool("", "51+0.1"), pool("", "51")),
    ("QubesPoolFullSoon", pool("", "51+0.1"), pool("", "1+0.1")),
    ("QubesPoolFullSoon", pool("metadata_", "51+0.1") + pool("", "9"), pool("metadata_", "51") + pool("", "9")),
    ("QubesPoolFullSoon", pool("metadata_", "51+0.1") + pool("", "9"), pool("metadata_", "1+0.1") + pool("", "9")),
    ("QubeCrashed", states("Crashed"), states("Running")),
    ("QubeCrashed", states("Crashed"), states("Halted")),
    ("QubeUpdatesWait", [f"qube_updates_available{{{QUBE}}} 1"], [f"qube_updates_available{{{QUBE}}} 0"]),
    ("QubeUpdatesWait", [f"qube_updates_available{{{QUBE}}} 1"], [f"qube_updates_available{{{QUBE}}} 0 1"]),
    # promtool begins in 1970.
    ("QubeEndOfUpdates", [f"{END} {29 * 86400}"], [f"{END} {31 * 86400}"]),
    ("QubeEndOfUpdates", [f"{END} 0"], [f"{END} {31 * 86400}"]),
]


def stored(line: str, machine: str, *, relabelled: bool) -> tuple[str, dict[str, str], str]:
    """Name, labels and value of a series of the page, as Prometheus stores it."""
    found = re.fullmatch(r"(\w+)(?:{(.*)})? (.+)", line)
    assert found
    own = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
    labels = {"instance": f"{machine}:8199", "job": "qubes", "machine": machine, **own}
    if relabelled:
        labels |= {"instance": own.get("qube", labels["instance"]), "job": own.get("exporter", labels["job"])}
    return found[1], labels, found[3]


def run(folder: Path, alert: str, series: list[tuple[str, dict[str, str], str]], expected: list[dict[str, str]]) -> str:
    """Let promtool compare the alerts of half an hour with these, and none after a minute; what it says against it."""
    written = [
        {
            "series": f"{name}{{{','.join(f'{key}={json.dumps(of)}' for key, of in labels.items())}}}",
            "values": f"{value}x40",
        }
        for name, labels, value in series
    ]
    tests = [
        {"eval_time": "1m", "alertname": alert, "exp_alerts": []},
        {"eval_time": "30m", "alertname": alert, "exp_alerts": [{"exp_labels": one} for one in expected]},
    ]
    (folder / "rules.yml").write_text(BARE, encoding="utf-8")
    cases = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": written, "alert_rule_test": tests}],
    }
    (folder / "cases.yml").write_text(json.dumps(cases), encoding="utf-8")  # JSON is YAML, too
    words = [debian_program("promtool"), "test", "rules", str(folder / "cases.yml")]
    tested = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if tested.returncode == 0 else tested.stdout + tested.stderr


def severity(alert: str) -> dict[str, str]:
    """The label that the rule itself sets."""
    found = re.search(rf"- alert: {alert}\n(?:.*\n)*? +labels: {{severity: (\w+)}}", RULES)
    assert found
    return {"severity": found[1]}


@pytest.mark.parametrize("relabelled", [True, False])
@pytest.mark.parametrize(("alert", "wrong", "fine"), CASES)
def test_a_rule_fires_on_the_machine_where_something_is_wrong_and_on_no_other(
    alert: str, wrong: list[str], fine: list[str], tmp_path: Path, *, relabelled: bool
) -> None:
    """Both machines have a qube of the same name. If all is well on both, nothing fires."""
    broken, well, second = (
        [stored(line, machine, relabelled=relabelled) for line in lines]
        for machine, lines in (("laptop", wrong), ("desktop", fine), ("laptop", fine))
    )
    expected = {**broken[0][1], **severity(alert)}
    assert run(tmp_path, alert, broken + well, [expected]) == ""
    assert run(tmp_path, alert, second + well, []) == ""
    assert "FAILED" in run(tmp_path, alert, broken + well, [])


def test_no_job_called_qubes_is_no_silence(tmp_path: Path) -> None:
    """A Prometheus whose job has another name would never fire anything."""
    other = [("up", {"job": "other", "instance": "a"}, "1")]
    expected = {"job": "qubes", **severity("QubesProxyUnreachable")}
    assert run(tmp_path, "QubesProxyUnreachable", other, [expected]) == ""


def test_two_machines_without_a_label_for_the_machine_are_no_error(tmp_path: Path) -> None:
    """`group_left` with two series on its one side ends the evaluation of a rule, and so its alerts."""
    lines = [TOOK_9_SECONDS, NODE_UP, "qubes_proxy_scrape_timeout_seconds 9.5"]
    series = [
        (name, {key: of for key, of in labels.items() if key != "machine"}, value)
        for machine in ("laptop", "desktop")
        for name, labels, value in (stored(line, machine, relabelled=False) for line in lines)
    ]
    expected = [{**labels, **severity("QubeExporterSlow")} for name, labels, _ in series if "duration" in name]
    assert run(tmp_path, "QubeExporterSlow", series, expected) == ""


def test_each_rule_has_a_case_and_is_documented() -> None:
    """And promtool finds nothing wrong with the file as it is shipped."""
    assert {alert for alert, _, _ in CASES} == set(ALERTS)
    rows = re.findall(
        r"^\| `(Qube\w+)` \|", (ROOT / "docs" / "dashboards.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert rows == ALERTS
    words = [debian_program("promtool"), "check", "rules", str(ROOT / "conf" / "qubes-rules.yml")]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 0
