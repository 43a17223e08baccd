# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole way: HTTP, the daemon as a process, the stand-in qrexec, the real service; and a real Prometheus."""

import re
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from federator.text.value import canonical
from tests.helpers import recording
from tests.parts import Daemon, Exporter, Prometheus, debian_program, eventually, free_port, get, process, toml
from tests.standin.qubes import Qubes

# Each of these tests starts the daemon.
pytestmark = pytest.mark.slow

Series = tuple[str, frozenset[tuple[str, str]]]


def series(text: str) -> dict[Series, str]:
    """Each series of a text with its value as it is written; told by prometheus-client, line by line."""
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            ((sample,),) = (family.samples for family in text_string_to_metric_families(line + "\n"))
            # A label without a value is no label, to Prometheus and on our page.
            labels = frozenset(
                (name, canonical(value) if name in ("le", "quantile") else value)
                for name, value in sample.labels.items()
                if value
            )
            found[sample.name, labels] = line.rpartition(" ")[2]
    return found


def gauge(page: str, name: str) -> dict[str, str]:
    """One of our gauges by qube."""
    return dict(re.findall(rf'^qubes_proxy_{name}{{qube="([^"]+)".*}} (\S+)$', page, re.MULTILINE))


def reasons(page: str) -> dict[str, str]:
    """Why targets are down, by qube."""
    return dict(re.findall(r'^qubes_proxy_exporter_failure{qube="([^"]+)".*reason="([^"]+)"} 1$', page, re.MULTILINE))


def test_every_sample_of_the_recordings_is_on_the_page_with_its_value_as_written(
    qubes: Qubes, exporter: Callable[[bytes], Exporter], daemon: Callable[..., Daemon]
) -> None:
    """Three qubes, three exporters each; and five scrapes make exactly one qrexec call per qube."""
    names = ("node", "process", "postgres")
    config: dict[str, dict[str, int]] = {}
    expected: dict[Series, str] = {}
    for number, qube in enumerate(("work", "personal", "vault"), 1):
        qubes.add(qube)
        config[qube] = {}
        for name in names:
            body = recording(name, number)
            config[qube][f"{name}-{number}"] = exporter(body).port
            ours = {("qube", qube), ("exporter", f"{name}-{number}")}
            expected |= {(metric, labels | ours): value for (metric, labels), value in series(body.decode()).items()}
    proxy = daemon(config)
    for _ in range(5):
        page = proxy.get().text
        found = {key: value for key, value in series(page).items() if not key[0].startswith("qubes_proxy_")}
        assert found == expected
        assert gauge(page, "qube_up") == dict.fromkeys(config, "1")
    assert len(expected) > 3000
    assert sorted(call[0] for call in qubes.calls()) == sorted(config)
    heads = [line for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert heads == sorted(heads)


def test_a_qube_that_fails_costs_nobody_else_a_sample_and_says_why(
    qubes: Qubes, exporter: Callable[[bytes], Exporter], daemon: Callable[..., Daemon]
) -> None:
    """Invariant 5, with one qube for each way to fail; none of them is started by being scraped."""
    faults = {
        "denied": "refused",
        "halted": "refused",
        "unknown": "refused",
        "bare": "no_service",
        "locked": "no_service",
        "empty": "connection",
        "paused": "timeout",
        "crashing": "closed",
        "garbage": "protocol",
        "silent": "timeout",
        "broken": "exposition",
        "moved": "http",
    }
    good = exporter(recording("node"))
    config = {"work": {"node": good.port}}
    for name in faults:
        if name != "unknown":
            qubes.add(name)
        config[name] = {name: good.port if name not in ("broken", "moved", "empty") else exporter(b"no newline").port}
    config["empty"] = {"empty": free_port()}
    moved = exporter(b"gone")
    moved.status = 503
    config["moved"] = {"moved": moved.port}
    qubes.add("work")
    qubes.set_policy("denied", "deny")
    qubes.set_policy("halted", "allow autostart=no")
    qubes.set_state("halted", "Halted")
    qubes.service_of("bare").unlink()
    qubes.service_of("locked").unlink()
    qubes.service_of("locked").write_text("not executable", encoding="utf-8")
    qubes.set_state("paused", "Paused")
    qubes.set_fault("crashing", "crash 3")
    qubes.set_fault("garbage", "garbage")
    qubes.set_fault("silent", "silent")
    proxy = daemon(config, qrexec="connect_limit = 20")
    alone = series(proxy.get("/metrics?qube=work").text)
    page = proxy.get(X_Prometheus_Scrape_Timeout_Seconds="4").text
    assert reasons(page) == faults
    assert gauge(page, "exporter_up") == {"work": "1"} | dict.fromkeys(faults, "0")
    assert {key for key in alone if not key[0].startswith("qubes_proxy_")} == {
        key for key in series(page) if not key[0].startswith("qubes_proxy_")
    }
    assert qubes.state("halted") == "Halted"
    # Another scrape at once: they are backing off, and dom0 hears nothing of it.
    calls = len(qubes.calls("denied")) + len(qubes.calls("halted")) + len(qubes.calls("bare"))
    proxy.get(X_Prometheus_Scrape_Timeout_Seconds="4")
    assert len(qubes.calls("denied")) + len(qubes.calls("halted")) + len(qubes.calls("bare")) == calls
    qubes.set_state("paused", "Running")


def test_the_page_is_one_that_promtool_takes(
    qubes: Qubes, exporter: Callable[[bytes], Exporter], daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Conflicting types and hostile lines in two qubes; `check metrics` fails on what it cannot parse."""
    promtool = debian_program("promtool")
    bodies = {
        "work": b'# TYPE m gauge\nm{qube="vault"} 1\nm{a="stamped in 1970"} 1 12345\nup 1\nbad{ 1\n'
        b'# TYPE h histogram\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n',
        "vault": b"# TYPE m counter\nm 2\nm 2\nqubes_proxy_qube_up 7\n\xff\xfe 1\nh 3\n",
    }
    for qube in bodies:
        qubes.add(qube)
    proxy = daemon({qube: {qube: exporter(body).port} for qube, body in bodies.items()})
    page = proxy.get().body
    (tmp_path / "page").write_bytes(page)
    with (tmp_path / "page").open("rb") as file:
        checked = subprocess.run(
            [promtool, "check", "metrics"], stdin=file, capture_output=True, text=True, check=False
        )
    assert "error while linting" not in checked.stderr
    assert checked.returncode in (0, 3), checked.stderr  # 3: style
    assert 'm{qube="work",exporter="work",exported_qube="vault"} 1\n' in page.decode()
    assert 'exported_up{qube="work",exporter="work"} 1\n' in page.decode()
    assert "stamped in 1970" not in page.decode()


@pytest.mark.unmeasured  # the daemon has four seconds for each scrape
def test_a_real_prometheus_over_real_exporters(qubes: Qubes, tmp_path: Path, daemon: Callable[..., Daemon]) -> None:
    """Every series is there by qube; then one exporter stops, one qube is paused, one is halted and comes back."""
    node, procs = debian_program("prometheus-node-exporter"), debian_program("prometheus-process-exporter")
    names = ("work", "personal", "vault")
    config: dict[str, dict[str, int]] = {}
    running = {}
    with ExitStack() as stack:
        procs_config = tmp_path / "process.yml"
        procs_config.write_text("process_names: [{name: '{{.Comm}}', cmdline: ['.+']}]\n", encoding="utf-8")
        for qube in names:
            qubes.add(qube, policy="allow autostart=no")
            config[qube] = {f"node-{qube}": free_port(), f"process-{qube}": free_port()}
            ports = config[qube]
            words = [node, f"--web.listen-address=127.0.0.1:{ports[f'node-{qube}']}"]
            running[qube] = stack.enter_context(process(*words, log=tmp_path / f"node-{qube}.log"))
            words = [
                procs,
                "-config.path",
                str(procs_config),
                f"-web.listen-address=127.0.0.1:{ports[f'process-{qube}']}",
            ]
            stack.enter_context(process(*words, log=tmp_path / f"process-{qube}.log"))
            for port in ports.values():
                eventually(f"an exporter of {qube} listens", partial(_answers, port))
        # A scrape of the paused qube takes all its time. Then a busy machine still has to send the page.
        proxy = daemon(config, scrape='timeout_offset = "1s"', qrexec='backoff_initial = "500ms"\nbackoff_max = "1s"')
        address = proxy.url.removeprefix("http://")
        prometheus = stack.enter_context(Prometheus(tmp_path, address, interval="5s").running())

        everybody = dict.fromkeys(names, 1.0)
        prometheus.waits_for("qubes_proxy_qube_up", everybody)
        prometheus.waits_for("min by (qube) (qubes_proxy_exporter_up)", everybody)
        prometheus.waits_for("count by (qube) (node_memory_MemTotal_bytes)", everybody)
        prometheus.waits_for('count by (qube) (namedprocess_namegroup_num_procs{groupname="prometheus"})', everybody)
        assert prometheus.query('up{job="qubes"}') == {"": 1.0}
        direct = {sample[0] for sample in series(get(f"http://127.0.0.1:{config['work']['node-work']}/metrics").text)}
        through = {name for name, labels in series(proxy.get("/metrics?exporter=node-work").text)}
        assert direct <= through
        calls = len(qubes.calls())
        assert calls == len(names)

        running["work"].terminate()
        others = {"personal": 1.0, "vault": 1.0}
        prometheus.waits_for("qubes_proxy_exporter_up{exporter=~'node-.*'}", {"work": 0.0, **others})
        prometheus.waits_for('qubes_proxy_exporter_failure{reason="connection"}', {"work": 1.0})
        prometheus.waits_for("count by (qube) (node_memory_MemTotal_bytes)", others)
        prometheus.waits_for("qubes_proxy_qube_up", everybody)
        prometheus.waits_for("count by (qube) (namedprocess_namegroup_num_procs{groupname='prometheus'})", everybody)
        assert len(qubes.calls()) == calls

        qubes.set_state("personal", "Paused")
        prometheus.waits_for('sum by (qube) (qubes_proxy_exporter_failure{reason="timeout"})', {"personal": 2.0})
        prometheus.waits_for("qubes_proxy_qube_up", {"work": 1.0, "personal": 0.0, "vault": 1.0})
        prometheus.waits_for("count by (qube) (node_memory_MemTotal_bytes)", {"vault": 1.0})
        qubes.set_state("personal", "Running")
        prometheus.waits_for("qubes_proxy_qube_up", everybody)

        qubes.set_state("vault", "Halted")
        prometheus.waits_for("qubes_proxy_qube_up", {"work": 1.0, "personal": 1.0, "vault": 0.0})
        prometheus.waits_for('sum by (qube) (qubes_proxy_exporter_failure{reason="refused"})', {"vault": 2.0})
        prometheus.waits_for("count by (qube) (node_memory_MemTotal_bytes)", {"personal": 1.0})
        assert qubes.state("vault") == "Halted"
        qubes.set_state("vault", "Running")
        prometheus.waits_for("qubes_proxy_qube_up", everybody)
        prometheus.waits_for("count by (qube) (node_memory_MemTotal_bytes)", others)
        assert prometheus.query('min_over_time(up{job="qubes"}[1h])') == {"": 1.0}, "a scrape was refused"
        downs = re.findall(r"qube is down.* qube=(\S+)", proxy.log)
        assert downs == ["personal", "vault"]


def _answers(port: int) -> bool:
    try:
        return get(f"http://127.0.0.1:{port}/metrics").status == 200
    except OSError:
        return False


def test_nothing_is_left_when_the_daemon_ends(
    qubes: Qubes, exporter: Callable[[bytes], Exporter], daemon: Callable[..., Daemon]
) -> None:
    """SIGTERM ends the calls that are open, and one that ignores everything but SIGKILL."""
    for qube in ("work", "stubborn"):
        qubes.add(qube)
    qubes.set_fault("stubborn", "ignore-term")
    port = exporter(b"m 1\n").port
    proxy = daemon({"work": {"node": port}, "stubborn": {"node": port}})
    assert gauge(proxy.get().text, "qube_up") == {"work": "1", "stubborn": "1"}
    assert proxy.stop() == 0
    eventually("its processes are gone", lambda: not qubes.left_behind())


def test_the_local_transport_needs_no_qrexec(exporter: Callable[[bytes], Exporter], tmp_path: Path) -> None:
    """The NetVM's own exporters."""
    with Daemon(tmp_path, toml({"sys-net": {"node": exporter(b"m 1\n").port}}, transport="local")) as proxy:
        assert 'm{qube="sys-net",exporter="node"} 1\n' in proxy.get().text
        assert proxy.stop() == 0
