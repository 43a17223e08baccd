# SPDX-License-Identifier: GPL-3.0-or-later
"""What doctor makes of the daemon's pages, by their texts."""

from dataclasses import replace
from pathlib import Path

import pytest

from federator import config
from federator.counters import Counters
from federator.daemonview import Listener, Pages, daemon_checks, listener_checks, scraped_check
from federator.dom0_figures import Figures
from federator.dom0_findings import Tried
from federator.dom0_replies import STATS
from federator.errors import RefusedError, ScrapeError
from federator.gauges import gauges
from federator.model import Outcome, Reload
from federator.policy import Need
from tests.helpers import read, target
from tests.test_contracts import scrape_errors
from tests.test_findings import NOW, snapshot

UP = Outcome(target(), 0.1, reading=read(b"m 1\n"))
DOWN = Outcome(target(), 0.1, error=RefusedError("denied"))

FILE = "/rw/config/prometheus-qubes-proxy.toml"
APART = target()
NOT_ON_PAGE = replace(UP, target=replace(APART, exporter=replace(APART.exporter, page=False)))


def page(*outcomes: Outcome, reloaded: bool = True) -> Pages:
    """The daemon's page, as its own gauges write it."""
    own = gauges(snapshot(*outcomes).qubes, 10.0, Reload(successful=reloaded, at=NOW))
    return Pages(200, b"".join(own.blocks).decode(), f"process_start_time_seconds {NOW:.6e}\n")


@pytest.mark.parametrize(
    ("daemon", "doctor", "result", "words"),
    [
        ([UP], UP, None, ""),
        ([DOWN], DOWN, None, ""),
        ([DOWN], UP, "failed", "down for the daemon (refused), and up for doctor"),
        ([UP], DOWN, "warning", "whose call is still open; a new one is refused"),
        ([], UP, "failed", "another configuration"),
        ([], NOT_ON_PAGE, None, ""),
    ],
)
def test_a_difference_between_the_daemon_and_doctor_is_named(
    daemon: list[Outcome], doctor: Outcome, result: str | None, words: str
) -> None:
    """One exporter; its labels may be any."""
    found = [check for check in daemon_checks(page(*daemon), snapshot(doctor), (), NOW) if check.subject == "work:node"]
    assert [check.result for check in found] == ([result] if result else [])
    assert all(words in check.says and check.remedy for check in found)


def test_how_many_exporters_are_the_same_for_both_is_told() -> None:
    """It was `1 exporters`."""
    said = [check.says for check in daemon_checks(page(UP), snapshot(UP), (), NOW) if check.result == "ok"]
    assert "agrees with doctor about 1 exporter" in said


# By the reason: what is said where only the daemon, and where only doctor, sees the exporter up.
WORDS = {
    "refused": ("whose call is still open; a new one is refused", "hardening"),
    "not_running": ("dom0 told doctor that the qube does not run", "asks dom0 only now and then"),
    "closed": ("doctor's own call failed", "hardening"),
    "no_service": ("doctor's own call failed", "hardening"),
    "protocol": ("doctor's own call failed", "hardening"),
    "timeout": ("too late for doctor", "near the deadline"),
    "connection": ("doctor got another one", "being restarted"),
    "http": ("doctor got another one", "being restarted"),
    "exposition": ("doctor got another one", "being restarted"),
    "sample_limit": ("doctor got another one", "being restarted"),
}


@pytest.mark.parametrize("error", [*scrape_errors()], ids=lambda error: error.__name__)
def test_what_a_difference_means_depends_on_what_failed(error: type[ScrapeError]) -> None:
    """A slow exporter says nothing of new calls, and one that does not answer nothing of the unit."""
    failed = replace(DOWN, error=error("why"))
    (up,) = (one for one in daemon_checks(page(UP), snapshot(failed), (), NOW) if one.subject == "work:node")
    (down,) = (one for one in daemon_checks(page(failed), snapshot(UP), (), NOW) if one.subject == "work:node")
    assert down.says == f"down for the daemon ({error.reason}), and up for doctor"
    if error.reason in WORDS:
        up_words, down_words = WORDS[error.reason]
        assert up_words in up.says
        assert down_words in down.remedy


def test_a_failed_reload_is_named() -> None:
    """The daemon goes on with the old configuration."""
    failed = [one for one in daemon_checks(page(UP, reloaded=False), snapshot(UP), (), NOW) if one.result == "failed"]
    assert [check.hop for check in failed] == ["daemon's configuration"]


@pytest.mark.parametrize(("status", "result"), [(401, "skipped"), (0, "skipped"), (503, "failed"), (421, "failed")])
def test_a_page_that_there_is_not(status: int, result: str) -> None:
    """Nothing is said of what it would have shown."""
    (check,) = daemon_checks(Pages(status), snapshot(UP), (), NOW)
    assert check.result == result
    assert check.remedy or check.copy


@pytest.mark.parametrize(
    ("requests", "minutes", "result"),
    [
        ({("/metrics", "200"): 1}, 1, "ok"),
        ({("/forward", "200"): 100}, 60, "ok"),
        ({("/metrics", "200"): 2}, 60, "failed"),
        ({("/metrics", "200"): 2, ("/metrics", "401"): 100}, 60, "failed"),
        ({("/sd", "200"): 100}, 60, "failed"),
        ({}, 60, "failed"),
        ({}, 1, "skipped"),
    ],
)
def test_whether_anybody_scrapes(requests: dict[tuple[str, str], int], minutes: int, result: str) -> None:
    """By the daemon's own counter; two runs of doctor are no scraper."""
    counters = Counters()
    for (path, code), count in requests.items():
        counters.requests.labels(path, code).inc(count)
    lines = [line for line in counters.page().decode().splitlines() if not line.startswith("process_start")]
    text = "\n".join([*lines, f"process_start_time_seconds {NOW - minutes * 60:.6e}", ""])
    assert scraped_check(text, NOW).result == result


@pytest.mark.parametrize(
    ("daemon", "doctor", "subjects"),
    [
        ("refused", None, ["dom0"]),
        (None, None, []),
        ("refused", RefusedError("no"), []),  # doctor has told that itself
        (None, RefusedError("no"), []),  # an open call goes on; doctor has told that new ones fail
    ],
)
def test_what_dom0_answers_doctor_and_not_the_daemon_is_named(
    daemon: str | None, doctor: RefusedError | None, subjects: list[str]
) -> None:
    """It may be waiting before it asks again."""
    figures = Figures({})
    figures.note_call(STATS, daemon, 0.0, 10.0)
    pages = replace(page(UP), untrusted_metrics=b"".join(figures.reading(0.0).blocks).decode())
    tried = [Tried(Need(STATS, "+", "@adminvm"), doctor)]
    found = [check for check in daemon_checks(pages, snapshot(), tried, NOW) if check.hop == "daemon's view"]
    failed = [check for check in found if check.result != "ok"]
    assert [check.subject for check in failed] == subjects
    assert all(STATS in check.says and "(refused)" in check.says and check.copy for check in failed)


@pytest.mark.parametrize("text", ["", "\x1b[2J\n", "process_start_time_seconds 1e+e\n" * 3, "# HELP a\n"])
def test_foreign_text_raises_nothing(text: str) -> None:
    """Another program may be on the port."""
    assert scraped_check(text, NOW).says.isprintable()
    assert all(check.says.isprintable() for check in daemon_checks(Pages(200, text, text), snapshot(UP), (), NOW))


def proxy_page(path: Path) -> str:
    """/metrics/proxy of a daemon that reads this file."""
    return Counters(config.identity(path)).page().decode()


@pytest.mark.parametrize("name", ["p.toml", 'a "b"\\n', "two\nlines", "\udcff"])
def test_a_file_is_known_again(name: str, tmp_path: Path) -> None:
    """By its path without links, whatever bytes it has."""
    (tmp_path / "link").symlink_to(tmp_path / name)
    found = Listener(":1", 1, "daemon", status=200, untrusted_proxy=proxy_page(tmp_path / "link"))
    assert found.untrusted_file == config.identity(tmp_path / name)


@pytest.mark.parametrize(
    ("status", "text", "result", "words"),
    [
        (200, proxy_page(Path(FILE)), "ok", ""),
        (200, proxy_page(Path("/srv/demo\x1b.toml")), "failed", r"reads '/srv/demo\x1b.toml', and not " + FILE),
        (200, "", "warning", "is older than this program, so its file is not known"),
        (401, "", "ok", "it asks for a password, so its file is not known"),
        (429, "", "ok", "it answers status 429, so its file is not known"),
        (0, "", "ok", "a client's certificate, or does not answer doctor, so its file is not known"),
    ],
)
def test_a_daemon_with_another_file_is_another_one(status: int, text: str, result: str, words: str) -> None:
    """What it would show is not this file's; and what is hidden is said to be."""
    of = Listener(":1", 1, "daemon", status=status, untrusted_proxy=text)
    (check,) = listener_checks([of], FILE, tls=False)
    assert check.result == result
    assert words in check.says
    assert check.says.isprintable()
    assert not any("demo" in line for line in check.copy), "a foreign name is in no line for a shell"


@pytest.mark.parametrize("tls", [False, True])
def test_a_daemon_that_speaks_tls_and_should_not_has_not_read_the_file(*, tls: bool) -> None:
    """Or the other way round."""
    results = [listener_checks([Listener(":1", 1, "daemon", tls=one)], FILE, tls=tls)[0] for one in (tls, not tls)]
    assert [check.result for check in results] == ["ok", "failed"]
    assert results[1].copy == ("sudo systemctl reload prometheus-qubes-proxy",)


def test_a_port_that_the_unit_does_not_allow_is_named() -> None:
    """Only where the daemon is not there."""
    (silent,) = listener_checks([Listener(":9999", 9999, "nothing")], FILE, tls=False)
    assert "SocketBindAllow=tcp:9999" in silent.remedy
    (usual,) = listener_checks([Listener(":8199", 8199, "nothing")], FILE, tls=False)
    assert "SocketBindAllow" not in usual.remedy
    (unable,) = listener_checks([Listener(":9999", 9999, "nothing", "cannot listen: why; remedy")], FILE, tls=False)
    assert unable.says == "the daemon cannot listen: why; remedy"
    (other,) = listener_checks([Listener("unix:/x", None, "other")], FILE, tls=False)
    assert other.result == "failed"
