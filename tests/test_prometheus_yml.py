# SPDX-License-Identifier: GPL-3.0-or-later
"""What README and conf/prometheus.yml have for Prometheus: labels that tell qubes apart, and an alert."""

import re
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.parts import Daemon, Exporter, Prometheus, debian_program
from tests.standin.qubes import Qubes

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHIPPED = ROOT / "conf" / "prometheus.yml"


def job(text: str) -> list[str]:
    """The lines of the job `qubes`, without comments."""
    lines = textwrap.dedent(text[text.index("  - job_name: qubes\n") :].partition("\n\n")[0]).splitlines()
    return [code for code in (line.partition("#")[0].rstrip() for line in lines) if code]


def test_readme_shows_the_job_of_the_shipped_file() -> None:
    """An operator may copy either."""
    snippet = textwrap.dedent("\n".join(re.findall(r"^    .*$", README.partition("### 7.")[2], re.MULTILINE)))
    assert job(snippet.partition("\nqubes_proxy")[0]) == job(SHIPPED.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_shipped_file_gives_each_qube_an_instance(
    qubes: Qubes, exporter: Callable[[bytes], Exporter], daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """`sum by (instance)` gave the memory of all qubes together. The proxy's own series keep their own."""
    bodies = {"work": b'm 1\nm{instance="vault",job="x"} 2\n', "vault": b"m 4\n"}
    for name in bodies:
        qubes.add(name)
    proxy = daemon({name: {f"{name}-app": exporter(body).port} for name, body in bodies.items()})
    address = proxy.url.removeprefix("http://")
    prometheus = Prometheus(tmp_path, address)
    text = SHIPPED.read_text(encoding="utf-8").replace("10.137.0.5:8199", address)
    prometheus.config.write_text(re.sub(r"(scrape_(?:interval|timeout)): \d+s", r"\1: 1s", text), encoding="utf-8")
    (tmp_path / "qubes-rules.yml").write_bytes((ROOT / "conf" / "qubes-rules.yml").read_bytes())
    checked = subprocess.run([debian_program("promtool"), "check", "config", prometheus.config], check=False)
    assert checked.returncode == 0
    with prometheus.running():
        by_instance = (
            "label_replace(sum by (instance) (m{job=~'.*-app',machine='laptop'}), 'qube', '$1', 'instance', '(.*)')"
        )
        prometheus.waits_for(by_instance, {"work": 3.0, "vault": 4.0})
        prometheus.waits_for("qubes_proxy_exporter_up{instance='work',job='work-app'}", {"work": 1.0})
        prometheus.waits_for(f"up{{job='qubes',instance='{address}'}}", {"": 1.0})


DOWN = """
      - {series: 'qubes_proxy_exporter_up{machine="MACHINE",qube="work",exporter="node"}', values: 0x5}
      - series: 'qubes_proxy_exporter_failure{machine="MACHINE",qube="work",exporter="node",reason="REASON"}'
        values: 1x5"""


def down(machine: str, reason: str) -> str:
    """The series of an exporter that is down."""
    return DOWN.replace("MACHINE", machine).replace("REASON", reason)


CASES = f"""
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:{down("a", "not_running")}{down("b", "connection")}
      - {{series: 'qubes_proxy_exporter_up{{machine="b",qube="vault",exporter="node"}}', values: 1x5}}
    alert_rule_test:
      - eval_time: 2m
        alertname: down
        exp_alerts: [{{exp_labels: {{machine: b, qube: work, exporter: node}}}}]
"""


def test_the_alert_of_one_machine_is_not_silenced_by_another(tmp_path: Path) -> None:
    """`unless on (qube, exporter)` let the halted qube of one silence the broken one of the other."""
    (expression,) = re.findall(r"^    (qubes_proxy_exporter_up == 0 .*)$", README, re.MULTILINE)
    for candidate, passes in (
        (expression, True),
        (expression.replace("ignoring (reason)", "on (qube, exporter)"), False),
    ):
        rules = f"groups: [{{name: g, rules: [{{alert: down, expr: '{candidate}'}}]}}]\n"
        (tmp_path / "rules.yml").write_text(rules, encoding="utf-8")
        (tmp_path / "cases.yml").write_text(CASES, encoding="utf-8")
        words = [debian_program("promtool"), "test", "rules", str(tmp_path / "cases.yml")]
        tested = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (tested.returncode == 0) == passes, tested.stdout + tested.stderr
