# SPDX-License-Identifier: GPL-3.0-or-later
"""What people see: the status page, the page of a qube and the JSON, of hostile and of ordinary qubes."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federator import api, config, units, views
from federator.dom0_replies import LIST, POOL, POOLS, STATS, VOLUME
from federator.errors import (
    ExporterUnreachableError,
    NotRunningError,
    RefusedError,
    ScrapeError,
    TimedOutError,
)
from federator.history import Asked, History
from federator.model import CallState, Config, Family, Outcome, QubeOutcome, Reading, Reload, Secret
from federator.rows import Filter
from federator.settings import setting_lines
from federator.sight import Dom0Says, QubeSight, Sight
from federator.sparkline import sparkline
from federator.status import filter_of
from tests.helpers import finish
from tests.test_markup import Reader

SETTINGS = """
[exporters]
node = 9100
app = { port = 9256, drop = ["go_.*"] }
[qubes.work]
exporters = ["node", "app"]
labels = { owner = "alice" }
[qubes.vault]
exporters = ["node"]
[qubes.fw]
exporters = ["node"]
"""
NOW = 1_000_000.0
LINKS = (("/", "this page"), ("/metrics", "everything"))
# What a hostile qube may have in a reason, a HELP text or a dropped line.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></td></table><h1>owned</h1>",
    "\x1b[2J\x1b[31mred",
    "a\u202etxt.exe\u2066",
    "x" * 4096,
    "<!--",
    "&lt;b&gt;",
    "]]>\n\r\t\0",
    "\ud800\ufeff\u200b",
)


def settings(text: str = SETTINGS) -> Config:
    """A configuration."""
    return config.parse(text, Path("/etc/x.toml"))


def sight(outcomes: Sequence[QubeOutcome] = (), **more: Any) -> Sight:
    """What there is to see after a scrape with these outcomes."""
    history = History()
    for one in outcomes:
        history.note(one, NOW - 600)
        history.note(one, NOW - 10)
    if outcomes:
        history.note_asked(Asked(NOW - 10, "10.137.0.9", "/metrics", 1.25, 9.5))
    of = more.pop("of", None) or settings()
    return Sight(NOW, NOW - 5000, of, of.qubes, history, Reload(successful=True, at=NOW), "sys-net", "nv:8199", **more)


def outcomes(errors: dict[str, ScrapeError | None], reading: Reading | None = None) -> list[QubeOutcome]:
    """One scrape of all: what is not named is up; the name of a qube means all of it."""
    reading = reading or Reading((Family("n", "gauge", b"Help."),), (), 1234)
    return [
        QubeOutcome(
            qube,
            qube.name not in errors,
            0.5,
            tuple(
                Outcome(target, 0.012, 0 if error else 57_644, None if error else reading, error)
                for target in qube.targets
                for error in [errors.get(qube.name) or errors.get(target.name)]
            ),
        )
        for qube in settings().qubes
    ]


def front(seen: Sight, wanted: Filter | None = None) -> str:
    """The status page."""
    return views.front(seen, finish(views.make(seen)), wanted or Filter(), LINKS)


def near(seen: Sight, name: str, calls: Sequence[CallState] = (), state: str = "Running") -> str:
    """The page of one qube."""
    qube = next(one for one in seen.qubes if one.name == name)
    return views.near(seen, QubeSight(qube, state, calls))


def text_of(page: str) -> str:
    """What a person reads, in one line."""
    return re.sub(r"\s+", " ", Reader(page).text)


def order(page: str) -> list[str]:
    """The qubes of the table."""
    return re.findall(r'<tbody id="q-([^"]*)"', page)


def test_all_are_up() -> None:
    """What a person asks first."""
    page = front(sight(outcomes({})))
    text = text_of(page)
    assert "All 4 exporters are up" in text
    assert "Last scrape: 10 s ago, of /metrics for 10.137.0.9. It took 1.2 s of 9.5 s." in text
    assert "3 of 3 qubes answered" in text
    assert "1,234" in text
    assert "56.3 KiB" in text
    assert order(page) == ["work", "vault", "fw"]
    assert "Nobody has scraped" not in text


def test_what_is_down_comes_first_with_reason_and_remedy() -> None:
    """A qube that is down is told once; the policy line is ready to copy; one that does not run is no failure."""
    errors: dict[str, ScrapeError | None] = {
        "vault": NotRunningError("vault does not run (dom0: Halted)"),
        "fw": RefusedError("qrexec refused the call to fw"),
        "work:app": ExporterUnreachableError("no answer of the exporter on port 9256"),
    }
    page = front(sight(outcomes(errors)))
    text = text_of(page)
    assert "2 of 3 exporters are down" in text
    assert order(page) == ["work", "fw", "vault"]
    assert text.count("qrexec refused the call to fw") == 1
    assert re.search(r"ruddo\.PrometheusProxy +\+9100 +sys-net +fw +allow autostart=no", text)
    assert "Start the exporter in the qube." in text
    assert "down 9 min or longer" in text
    assert "not running 9 min or longer" in text


def test_dropped_lines_are_told_with_the_first_one() -> None:
    """The exporter is up all the same."""
    page = front(sight(outcomes({}, Reading((), (), 5, 2, "line 3: no value: 'x'"))))
    assert "All 4 exporters are up, 4 exporters with dropped lines" in text_of(page)
    assert "2 lines dropped, since Prometheus would not take them. First: line 3: no value: 'x'" in text_of(page)


@pytest.mark.parametrize(
    ("wanted", "qubes", "shown"),
    [
        (Filter("work"), ["work"], 2),
        (Filter("NODE"), ["work", "fw", "vault"], 3),
        (Filter("work node"), ["work"], 1),
        (Filter("refused"), ["fw"], 1),
        (Filter(state="down"), ["fw"], 1),
        (Filter("node", "up"), ["work", "vault"], 2),
        (Filter(state="not_running"), [], 0),
    ],
)
def test_the_filter(wanted: Filter, qubes: list[str], shown: int) -> None:
    """By words of the row, and by state; the page says how many are left."""
    page = front(sight(outcomes({"fw": RefusedError("refused")})), wanted)
    assert sorted(order(page)) == sorted(qubes)
    assert f"{shown} of 4 exporters shown" in text_of(page)
    assert f'name="q" value="{wanted.words}"' in page


def test_the_filter_comes_from_the_url() -> None:
    """Whatever stands there."""
    assert filter_of({"q": "work", "state": "down"}) == Filter("work", "down")
    assert filter_of({"q": "x" * 5000, "state": "<b>"}) == Filter("x" * 200, None)
    assert filter_of({}) == Filter()


def test_nobody_scrapes() -> None:
    """The snippet is there, with the address by which the reader came; and not while somebody scrapes."""
    text = text_of(front(sight()))
    assert "Nobody has scraped yet" in text
    assert "Nobody has scraped for 1 h since the start: is your Prometheus configured?" in text
    assert '- targets: ["nv:8199"]' in text
    assert text.count("not scraped yet") >= 4
    seen = sight(outcomes({}))
    assert "is your Prometheus configured" in text_of(front(replace(seen, now=NOW + 300)))
    assert "is your Prometheus configured" not in text_of(front(seen))


def test_the_snippet_knows_tls_and_passwords() -> None:
    """It would not work otherwise."""
    web = replace(settings().web, users=(("alice", Secret("$2b$10$hash")),))
    text = text_of(front(sight(of=replace(settings(), web=web))))
    assert "basic_auth: {username: NAME, password: PASSWORD}" in text
    assert "$2b$10$hash" not in text
    assert '"alice" = <secret>' in text


def test_what_else_needs_a_person() -> None:
    """A reload that failed, an open port, a dom0 that does not answer."""
    seen = replace(
        sight(outcomes({})),
        reload=Reload(successful=False, at=NOW, error="x.toml: scrape.timeout: not a duration\nx.toml: web: odd"),
        open_addresses=("10.137.0.5:8199",),
        discovery=Dom0Says("admin.vm.List", known=False, error=TimedOutError("dom0 did not answer in time")),
    )
    text = text_of(front(seen))
    assert "The configuration could not be read again" in text
    assert "x.toml: scrape.timeout: not a durationx.toml: web: odd" in text
    assert "Everyone who can reach 10.137.0.5:8199 can read this page" in text
    assert "dom0 did not answer in time" in text
    assert "admin.vm.List: there is no answer of dom0 that is new enough" in text


def asking_dom0(*says: Dom0Says) -> Sight:
    """What there is to see where [dom0] is configured."""
    of = settings(SETTINGS + "[dom0]\nvolumes = true\n")
    return replace(sight(outcomes({})), config=of, dom0=says)


def test_what_dom0_does_not_answer_comes_with_the_lines_for_its_policy() -> None:
    """What fails is first, and a note above the table leads there."""
    refused = RefusedError("dom0's policy does not allow <b>")
    seen = asking_dom0(
        Dom0Says(STATS, known=True, error=None),
        Dom0Says(POOLS, known=False, error=None),
        Dom0Says(VOLUME, known=True, error=refused),
    )
    page = front(seen)
    text = text_of(page)
    assert "dom0 does not answer 1 of 3 kinds of call for its figures." in text
    assert '<a href="#dom0">' in page
    part = text[text.index("dom0's figurescall") :]
    places = [part.index(words) for words in (f"{VOLUME}no answer", f"{STATS}answered", f"{POOLS}not asked yet")]
    assert places == sorted(places)
    assert "refused dom0's policy does not allow <b>" in part
    for volume, target in (("private", "@anyvm"), ("root", "@type:TemplateVM")):
        assert f"{VOLUME} +{volume} sys-net {target} allow target=dom0" in part
    assert STATS not in part[part.index("What to do") : part.index(f"{STATS}answered")]
    assert "dom0's figures" not in text_of(front(sight(outcomes({}))))
    assert "dom0 does not answer" not in text_of(front(asking_dom0(Dom0Says(STATS, known=True, error=None))))


def test_where_there_is_nothing_but_dom0_the_page_says_what_it_answers() -> None:
    """No qube that is missing: it is what the configuration wants."""
    of = settings("[dom0]\n")
    seen = sight(of=of, dom0=(Dom0Says(STATS, known=True, error=None), Dom0Says(POOLS, known=False, error=None)))
    seen.history.note_asked(Asked(NOW, "127.0.0.1", "/metrics", 1.0, 9.5))
    assert "dom0 answers 1 of 2 kinds of call; no exporter is configured" in text_of(front(seen))


def test_the_json_says_what_dom0_answers() -> None:
    """With [dom0] alone."""
    refused, late = RefusedError("no <b>"), TimedOutError("late")
    seen = asking_dom0(
        Dom0Says(STATS, known=True, error=late),
        Dom0Says(POOLS, known=False, error=None),
        Dom0Says(POOL, known=True, error=refused),
        Dom0Says(LIST, known=True, error=None),
    )
    told = json.loads(finish(api.targets(seen)))["data"]["dom0"]
    assert [(one["call"], one["health"], one["reason"]) for one in told] == [
        (STATS, "down", "timeout"),
        (POOLS, "unknown", ""),
        (POOL, "down", "refused"),
        (LIST, "up", ""),
    ]
    assert [one["policy"] for one in told] == [[], [], [f"{POOL}  *  sys-net  @adminvm  allow target=dom0"], []]
    assert told[2]["lastError"] == "refused: no <b>"
    assert "dom0" not in json.loads(finish(api.targets(sight())))["data"]


def test_an_exporter_that_is_no_part_of_the_page_is_not_waited_for() -> None:
    """With page = false, nobody will scrape it but who asks for it by its name."""
    of = settings(SETTINGS.replace("port = 9256,", "port = 9256, page = false,"))
    text = text_of(front(sight([one for one in outcomes({}) if one.qube.name != "work"], of=of)))
    assert "1 of 3 exporters" not in text
    assert "appnot on /metrics" in text
    assert "page = false: for /forward" in text
    alone = settings('[exporters.app]\nport = 1\npage = false\n[qubes.work]\nexporters = ["app"]\n')
    nothing = sight(of=alone)
    nothing.history.note_asked(Asked(NOW, "127.0.0.1", "/metrics", 1.0, 9.5))
    assert "No exporter is on /metrics" in text_of(front(nothing))
    half = settings(
        "[exporters]\nnode = 1\napp = { port = 2, page = false }\n"
        '[qubes.work]\nexporters = ["node"]\n[qubes.fw]\nexporters = ["app"]\n'
    )
    (target,) = half.qubes[0].targets
    halted = Outcome(target, 0.0, error=NotRunningError("work does not run"))
    page = front(sight([QubeOutcome(half.qubes[0], up=False, seconds=0.0, outcomes=(halted,))], of=half))
    assert "No qube runs that has exporters on /metrics" in text_of(page)


def test_a_target_that_was_not_part_of_the_last_scrape_says_so() -> None:
    """Or an old state would look new."""
    seen = sight(outcomes({}))
    seen.history.note_asked(Asked(NOW + 600, "127.0.0.1", "/metrics", 1.0, 9.5))
    assert "Not part of the last scrape; this is 10 min older." in text_of(front(replace(seen, now=NOW + 600)))


def test_the_page_of_a_qube() -> None:
    """Its calls, its history, the first metrics of its exporters, its labels and its policy line."""
    calls = (
        CallState((9100, 9256), 2, 300.0, 1, 0, 0.0),
        CallState((9100,), 1, None, 3, 2, 17.0),
        CallState((9256,), 2, None, 0, 0, 0.0),
    )
    text = text_of(near(sight(outcomes({})), "work", calls))
    assert "work: up" in text
    assert "dom0 says: Running" in text
    assert "9100, 9256version 2open for 5 min1 time0" in text
    assert "9100version 1closed3 times2in 17 s at the earliest" in text
    assert "2 scrapes, 0 without an answer; durations: 500 ms to 500 ms" in text
    assert "n gauge Help." in text
    assert "label owneralice" in text
    assert re.search(r"ruddo\.PrometheusProxy +\+9100\+9256 +sys-net +work", text)
    assert "vault" not in text


def test_the_page_of_a_qube_that_nobody_scraped() -> None:
    """It is there all the same."""
    text = text_of(near(sight(), "fw", state=""))
    assert "dom0 says" not in text
    assert "fw: not scraped yet" in text
    assert "Not scraped yet." in text
    assert "Nothing in the last scrape." in text


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_of_a_qube_becomes_markup(hostile: str) -> None:
    """The elements of the page are those of a harmless qube: none more, none less, none with another attribute."""

    def pages(words: str) -> tuple[str, str]:
        family = Family(words, "gauge", words.encode("utf-8", "replace"))
        reading = Reading((family,), (), 5, 2, words)
        seen = sight(outcomes({"fw": RefusedError(words), "work:app": TimedOutError(words)}, reading))
        return front(seen, Filter("", None)), near(seen, "work")

    for harmless, page in zip(pages("harmless"), pages(hostile), strict=True):
        expected, found = Reader(harmless), Reader(page)
        assert found.elements == expected.elements
        assert len(page) < len(harmless) + 20_000
        visible = found.text.replace("\n", "")
        assert visible.isprintable()


def test_what_is_typed_into_the_filter_does_not_become_markup() -> None:
    """It comes back on the page."""
    expected = Reader(front(sight(outcomes({})), Filter("nothing", "up"))).elements
    found = Reader(front(sight(outcomes({})), Filter('"><script>alert(1)</script>', "up"))).elements
    assert [name for name, _ in found] == [name for name, _ in expected]


def test_the_json_has_the_fields_of_prometheus() -> None:
    """And ours."""
    errors: dict[str, ScrapeError | None] = {"fw": RefusedError("no <b>")}
    answer = json.loads(finish(api.targets(sight(outcomes(errors)))))
    assert answer["status"] == "success"
    assert answer["data"]["droppedTargets"] == []
    by_name = {(one["labels"]["qube"], one["labels"]["exporter"]): one for one in answer["data"]["activeTargets"]}
    assert len(by_name) == 4
    assert by_name["work", "node"] == {
        "discoveredLabels": {},
        "labels": {"qube": "work", "exporter": "node", "owner": "alice"},
        "scrapePool": "work",
        "scrapeUrl": "http://127.0.0.1:9100/metrics",
        "lastError": "",
        "lastScrape": "1970-01-12T13:46:30.000Z",
        "lastScrapeDuration": 0.012,
        "health": "up",
        "scrapeTimeout": "9.5s",
        "reason": "",
        "remedy": "",
        "since": "1970-01-12T13:36:40.000Z",
        "transport": "qrexec",
        "samples": 1234,
        "bodySizeBytes": 57644,
        "linesDropped": 0,
        "firstDropped": "",
    }
    down = by_name["fw", "node"]
    assert (down["health"], down["lastError"], down["reason"]) == ("down", "refused: no <b>", "refused")
    assert "policy" in down["remedy"]


def test_the_json_before_the_first_scrape() -> None:
    """As Prometheus says it."""
    one = json.loads(finish(api.targets(sight())))["data"]["activeTargets"][0]
    assert (one["health"], one["lastScrape"], one["since"]) == ("unknown", "0001-01-01T00:00:00Z", "")


def test_the_configuration_in_force_is_a_configuration() -> None:
    """Read again, it says the same; so no key is missing or misspelt."""
    text = (
        '[web]\nlisten_addresses = ["0.0.0.0:8199", "[::1]:9", "unix:/run/x"]\nhosts = ["nv"]\n'
        '[web.rate_limit]\ninterval = "1s"\n[scrape]\ntimeout = "7s"\nlabel_limit = 12\nbody_size_limit = "1MiB"\n'
        '[qrexec]\nclient = "/bin/x"\n'
        '[exporters.slow]\nport = 1\ninterval = "1h"\ntimeout = "1500ms"\npage = false\ndrop = ["a.*"]\n'
        f'{SETTINGS}\n[discovery]\nexporters = ["node", "slow"]\nexclude = ["sys-.*"]\n'
    )
    before = settings(text)
    assert settings("\n".join(setting_lines(before))) == before
    assert "page = false" in "\n".join(setting_lines(before))


def test_secrets_are_not_shown() -> None:
    """Neither hashes nor keys; names of users and files are."""
    text = '[web.tls_server_config]\ncert = "CERT"\nkey = "KEY"\n[web.basic_auth_users]\n'
    text += f'alice = "$2b$10${"a" * 53}"\n{SETTINGS}'
    shown = "\n".join(setting_lines(settings(text)))
    assert 'cert = <secret>\nkey = <secret>\nclient_auth_type = "NoClientCert"' in shown
    assert '"alice" = <secret>' in shown
    assert "KEY" not in shown
    assert "$2b" not in shown


def test_the_sparkline() -> None:
    """A line, a gap and a mark where it was down, and a point by itself."""
    assert sparkline([0.1, 0.2, math.nan, 0.2, math.nan, 0.2, 0.2], 7) == (
        '<svg class="s" aria-hidden="true"><path d="M0 10l0 0 2-9M6 1l0 0M10 1l0 0 2 0"></path>'
        '<path class="d" d="M4 19h2M8 19h2"></path></svg>'
    )
    assert '<path d="M4 ' in sparkline([0.1], 3)
    assert 'role="img" aria-label="two"' in sparkline([0.001], 3, "two")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (units.age(59.9), "59 s"),
        (units.age(-1), "0 s"),
        (units.age(3599), "59 min"),
        (units.age(90_000), "1 d"),
        (units.duration(0.0123), "12 ms"),
        (units.duration(12.34), "12.3 s"),
        (units.size(999), "999 B"),
        (units.size(3 << 19), "1.5 MiB"),
        (units.plural(1, "line"), "1 line"),
        (units.plural(2000, "line"), "2,000 lines"),
        (units.clock(0), "1970-01-01 00:00:00 UTC"),
    ],
)
def test_units(made: str, words: str) -> None:
    """As people read them."""
    assert made == words
