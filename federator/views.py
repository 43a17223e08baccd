# SPDX-License-Identifier: GPL-3.0-or-later
"""
The status page and the page of one qube, as HTML.

Owns what is on them beside the table of `rows`, and their words. Must not know HTTP, nor how anything came about.

What changes between two looks is in elements with an id, which the script puts in the place of those that it has.
"""

from collections.abc import Generator, Sequence
from typing import NamedTuple

from federator import __version__, dom0_view, markup, remedies, units
from federator.history import SCRAPES, Row, TargetRow
from federator.markup import Html, document, joined, tag
from federator.model import CallState, Qube, where
from federator.rows import Filter, Section, bodies, section, sections, table
from federator.settings import setting_lines
from federator.sight import ORDER, WORDS, QubeSight, Seen, Sight
from federator.sparkline import sparkline

NAME = "prometheus-qubes-proxy"
# Where both kinds of packages put it.
DOCUMENTATION = f"/usr/share/doc/{NAME}"
# Lines of the configuration; one takes some 5 µs.
SLICE = 200


class Made(NamedTuple):
    """What takes time to be made, and is the same for everybody until the next scrape."""

    sections: Sequence[Section]
    settings: Html


def make(sight: Sight) -> Generator[None, None, Made]:
    """In slices."""
    made = yield from sections(sight)
    lines: list[Html] = []
    for number, line in enumerate(setting_lines(sight.config)):
        if number % SLICE == SLICE - 1:
            yield
        lines.append(markup.lines([line]))
    return Made(made, joined(lines))


def front(sight: Sight, made: Made, wanted: Filter, links: Sequence[tuple[str, str]]) -> Html:
    """The status page. `links`: paths, and what they are for."""
    verdict = _verdict(sight)
    shown, count = bodies(made.sections, wanted)
    total = sum(len(one.targets) for one in made.sections)
    content = (
        tag(
            "header",
            tag("p", f"{NAME} {__version__}", class_="name"),
            tag("h1", verdict, id="verdict", aria_live="polite"),
            _last_scrape(sight),
            _numbers(sight),
        ),
        tag("div", _banners(sight), id="banners"),
        tag(
            "section",
            tag("h2", "Qubes", class_="unseen"),
            _filter(wanted),
            tag("p", f"{count:,} of {units.plural(total, 'exporter')} shown", id="shown", role="status"),
            table(shown),
        ),
        tag("section", dom0_view.content(sight), id="dom0"),
        tag("section", tag("h2", "The proxy"), _about(sight, made.settings), id="about"),
        tag("section", tag("h2", "Links"), _links(links)),
    )
    return _page(verdict, content)


def near(sight: Sight, of: QubeSight) -> Html:
    """The page of one qube."""
    qube = of.qube
    made = section(sight, qube, linked=False)
    words = WORDS[ORDER[made.rank]] if made.targets else "without exporters"
    policy = remedies.lines_for_policy(sight.config, qube, sight.own_name)
    content = (
        tag(
            "header",
            tag("p", tag("a", f"{NAME}: all qubes", href="/"), class_="name"),
            tag("h1", tag("bdi", qube.name), f": {words}", id="verdict", aria_live="polite"),
            _last_scrape(sight),
        ),
        tag("section", tag("h2", "Exporters", class_="unseen"), table(bodies([made], Filter())[0])),
        tag("section", tag("h2", "The last 60 scrapes"), _history(sight.history.qube(qube.name)), id="history"),
        tag("section", tag("h2", "Calls"), _calls(of), id="calls"),
        tag("section", tag("h2", "What the exporters send"), _heads(sight, qube), id="heads"),
        tag(
            "section",
            tag("h2", "Configuration"),
            _pairs([("transport", qube.transport), *((f"label {name}", value) for name, value in qube.labels)]),
            (tag("p", "The line for it in dom0's policy:"), tag("pre", markup.lines(policy))) if policy else None,
        ),
    )
    return _page(f"{qube.name}: {words}", content)


def _page(title: str, content: Sequence[Html]) -> Html:
    return document(
        "en",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", f"{title} - {NAME}"),
            tag("link", rel="icon", href="data:,"),
            tag("link", rel="stylesheet", href="/static/status.css"),
            tag("script", src="/static/status.js", defer=True),
        ),
        tag(
            "body",
            tag("p", "The proxy does not answer. What you see is old.", id="lost", role="status", hidden=True),
            tag("main", content),
        ),
    )


def _verdict(sight: Sight) -> str:
    """What a person asks first."""
    counts = sight.counts()
    running = counts.total() - counts["not_running"] - counts["off_page"]
    if sight.history.asked is None:
        return "Nobody has scraped yet"
    if counts["down"]:
        return f"{counts['down']:,} of {units.plural(running, 'exporter')} {_are(counts['down'])} down"
    known = running - counts["unknown"]
    if not counts.total() and sight.dom0:
        answered = sum(one.known and one.error is None for one in sight.dom0)
        return f"dom0 answers {answered} of {units.plural(len(sight.dom0), 'kind')} of call; no exporter is configured"
    if counts["off_page"] == counts.total() > 0:
        return "No exporter is on /metrics"
    if not known:
        none_runs = f"No qube runs that has exporters{' on /metrics' if counts['off_page'] else ''}"
        return "Not one exporter is scraped yet" if counts["unknown"] else none_runs
    more = f", {units.plural(counts['dropped'], 'exporter')} with dropped lines" if counts["dropped"] else ""
    return f"All {known:,} exporters are up{more}" if known > 1 else "The exporter is up"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _last_scrape(sight: Sight) -> Html:
    asked = sight.history.asked
    if asked is None:
        text: Sequence[str | Html] = ("Not scraped since the start, ", _ago(sight.started, sight.now), ".")
    else:
        text = (
            "Last scrape: ",
            _ago(asked.at, sight.now),
            ", of ",
            tag("code", asked.path),
            " for ",
            tag("bdi", asked.address),
            f". It took {units.duration(asked.seconds)} of {units.duration(asked.allowed)}.",
        )
    return tag("p", text, id="last")


def _ago(at: float, now: float) -> Html:
    """The script counts on from there."""
    seconds = max(0, int(now - at))
    return tag("time", f"{units.age(seconds)} ago", datetime=units.rfc3339(at), data_age=seconds, title=units.clock(at))


def _numbers(sight: Sight) -> Html:
    """How many are in which state, with a link to those. Qubes are counted by whether their service answered."""
    counts = sight.counts()
    states = [
        tag("li", tag("a", tag("b", WORDS[state], class_=state), f" {counts[state]:,}", href=f"/?state={state}"))
        for state in ORDER
        if counts[state]
    ]
    rows = [sight.history.qube(qube.name) for qube in sight.qubes]
    up = sum(row is not None and row.state == "up" for row in rows)
    qubes = f"{up:,} of {units.plural(len(sight.qubes), 'qube')} answered"
    return tag("ul", states, tag("li", qubes), class_="numbers", id="numbers")


def _banners(sight: Sight) -> Sequence[Html]:
    """What a person has to look after beside the exporters."""
    found: list[Html] = []
    if sight.is_silent:
        found.append(_silence(sight))
    if not sight.reload.successful:
        found.append(
            _banner(
                "The configuration could not be read again; the old one stays in force.",
                *(tag("p", tag("bdi", line)) for line in sight.reload.error.splitlines()),
            )
        )
    if sight.open_addresses:
        found.append(
            _banner(
                f"Everyone who can reach {', '.join(sight.open_addresses)} can read this page and the metrics: there is"
                " neither TLS nor a password.",
                tag(
                    "p",
                    tag("strong", "What to do: "),
                    "guard the port with the firewall, or set web.tls_server_config and web.basic_auth_users.",
                ),
            )
        )
    if sight.discovery is not None and sight.discovery.error is not None:
        error = sight.discovery.error
        found.append(
            _banner(
                "dom0 does not say which qubes run.",
                tag("p", tag("code", error.reason), " ", tag("bdi", str(error))),
                tag("p", "Configured qubes are called all the same. `prometheus-qubes-proxy policy` prints the lines."),
            )
        )
    failing = sum(one.error is not None for one in sight.dom0)
    if failing:
        says = f"dom0 does not answer {failing} of {units.plural(len(sight.dom0), 'kind')} of call for its figures."
        found.append(_banner(says, tag("p", tag("a", "Why, and what to do", href="#dom0"))))
    return found


def _banner(text: str, *more: Html) -> Html:
    return tag("section", tag("h2", text), more, class_="banner")


def _silence(sight: Sight) -> Html:
    web = sight.config.web
    more = (
        *(("    scheme: https",) if web.tls else ()),
        *(("    basic_auth: {username: NAME, password: PASSWORD}",) if web.users else ()),
    )
    snippet = (
        "scrape_configs:",
        "  - job_name: qubes",
        *more,
        "    static_configs:",
        f'      - targets: ["{sight.address}"]',
        "    metric_relabel_configs:    # or all qubes would have one instance",
        "      - {source_labels: [qube], regex: (.+), target_label: instance}",
        "      - {source_labels: [exporter], regex: (.+), target_label: job}",
    )
    since = "" if sight.history.asked else " since the start"
    return _banner(
        f"Nobody has scraped for {units.age(sight.silent_for)}{since}: is your Prometheus configured?",
        tag("p", "This belongs into its prometheus.yml. The NetVM's firewall must let it in, too."),
        tag("pre", markup.lines(snippet)),
    )


def _filter(wanted: Filter) -> Html:
    """It works without the script."""
    states: list[tuple[Seen | None, str]] = [(None, "all states"), *((state, WORDS[state]) for state in ORDER)]
    options = [tag("option", words, value=state or "", selected=state == wanted.state) for state, words in states]
    return tag(
        "form",
        tag("label", "Filter ", tag("input", name="q", value=wanted.words, type="search", autocomplete="off")),
        tag("label", "State ", tag("select", options, name="state")),
        tag("button", "Show"),
        action="/",
        id="filter",
        role="search",
    )


def _about(sight: Sight, settings: Html) -> Sequence[Html]:
    reload, discovery = sight.reload, sight.discovery
    pairs = [
        ("version", __version__),
        ("running since", units.clock(sight.started)),
        ("configuration", str(sight.config.path)),
        ("read", units.clock(reload.at)),
        ("last reload", "succeeded" if reload.successful else "failed"),
        ("this qube", sight.own_name or "its name is not known"),
    ]
    if discovery is None:
        pairs.append(("discovery", "off: the configured qubes are taken to run"))
    else:
        known = "dom0 says which qubes run" if discovery.known else "there is no answer of dom0 that is new enough"
        pairs.append(("discovery", f"{discovery.service}: {known}"))
    return (
        _pairs(pairs),
        tag(
            "details",
            tag("summary", "Configuration in force"),
            tag("pre", settings, tabindex=0),
        ),
    )


def _pairs(pairs: Sequence[tuple[str, str]]) -> Html:
    return tag("dl", [(tag("dt", name), tag("dd", tag("bdi", value))) for name, value in pairs])


def _links(links: Sequence[tuple[str, str]]) -> Html:
    items = [tag("li", tag("a", path, href=path), f": {purpose}") for path, purpose in links]
    return tag("ul", items, tag("li", "The documentation is in this qube, in ", tag("code", DOCUMENTATION), "."))


def _history(row: Row | None) -> Html:
    """Of the whole qube, larger."""
    if row is None:
        return tag("p", "Not scraped yet.")
    took = [seconds for seconds in row.durations if seconds == seconds]  # noqa: PLR0124 - NaN, where it was down
    down = len(row.durations) - len(took)
    times = f"{units.duration(min(took))} to {units.duration(max(took))}" if took else "none"
    words = f"{units.plural(len(row.durations), 'scrape')}, {down} without an answer; durations: {times}"
    return tag("p", sparkline(row.durations, SCRAPES, words), tag("br"), words, class_="large")


def _calls(of: QubeSight) -> Sequence[Html]:
    says = tag("p", "dom0 says: ", tag("bdi", of.state)) if of.state else None
    heads = ("endpoints", "protocol", "state", "opened", "failures in a row", "next call")
    rows = [
        tag("tr", [tag("td", cell, data_of=head) for head, cell in zip(heads, _call(call), strict=True)])
        for call in of.calls
    ]
    head = tag("thead", tag("tr", [tag("th", word, scope="col") for word in heads]))
    return tuple(one for one in (says, tag("table", head, tag("tbody", rows), class_="plain")) if one is not None)


def _call(call: CallState) -> tuple[str, ...]:
    is_open = call.open_seconds is not None
    return (
        ", ".join(map(str, call.endpoints)),
        f"version {call.version}",
        f"open for {units.age(call.open_seconds)}" if call.open_seconds is not None else "closed",
        units.plural(call.opened, "time"),
        f"{call.failures}",
        "" if is_open else f"in {units.age(call.wait)} at the earliest" if call.wait else "at the next scrape",
    )


def _heads(sight: Sight, qube: Qube) -> Sequence[Html]:
    """The first metrics of each text."""
    return [
        _head(f"{target.exporter.name}, {where(target.exporter.endpoint)}", sight.history.target(target))
        for target in qube.targets
    ]


def _head(name: str, row: TargetRow | None) -> Html:
    if row is None or not row.head:
        return tag("div", tag("h3", name), tag("p", "Nothing in the last scrape."))
    items = [
        tag("li", tag("code", one.name), f" {one.type or 'without a type'} ", tag("bdi", one.help.decode()))
        for one in row.head
    ]
    rest = row.families - len(row.head)
    return tag("div", tag("h3", name), tag("ul", items, tag("li", f"and {rest:,} more") if rest else None))
