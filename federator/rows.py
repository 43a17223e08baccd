# SPDX-License-Identifier: GPL-3.0-or-later
"""
The table of the status page: a section for each qube, a row for each of its exporters.

Owns what a row says, and which rows a filter leaves. Must not know what else is on the page.

A section depends on the history and nothing else, so it can be kept until the next scrape. Ages are those at that
scrape.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from federator import markup, remedies, units
from federator.errors import ScrapeError
from federator.history import SCRAPES, Row, TargetRow
from federator.markup import Html, joined, tag
from federator.model import Qube, Target
from federator.sight import ORDER, WORDS, Seen, Sight, seen
from federator.sparkline import sparkline

COLUMNS = ("exporter", "state", "took", "samples", "size", "dropped", "last 60 scrapes")
# A section takes some 200 µs. Others have their turn after so many.
SLICE = 10
# The bar of a duration has so many steps; the stylesheet has a class for each.
BAR_STEPS = 20
# What was not part of the last scrape, by so much, is told to be old.
OLD_SECONDS = 60.0


class TargetLines(NamedTuple):
    """The rows of one exporter; `words`, in small letters, are what a filter looks at."""

    seen: Seen
    words: str
    html: Html


class Section(NamedTuple):
    """One qube. `rank`: those that need a person come first."""

    name: str
    rank: int
    head: Html
    targets: Sequence[TargetLines]


class Filter(NamedTuple):
    """What a person wants to see: rows that have all these words, in this state."""

    words: str = ""
    state: Seen | None = None

    def fits(self, target: TargetLines) -> bool:
        """Is this exporter wanted?"""
        return self.state in {None, target.seen} and all(word in target.words for word in self.words.lower().split())


def sections(sight: Sight) -> Generator[None, None, list[Section]]:
    """All qubes, in slices, in the order of the page."""
    made: list[Section] = []
    for number, qube in enumerate(sight.qubes):
        if number % SLICE == SLICE - 1:
            yield
        made.append(section(sight, qube))
    return sorted(made, key=lambda one: one.rank)


def section(sight: Sight, qube: Qube, *, linked: bool = True) -> Section:
    """One qube. Where the whole qube is down, that is said once, and not for each of its exporters."""
    row = sight.history.qube(qube.name)
    whole = row.error if row else None
    lines = [_target(sight, target, whole) for target in qube.targets]
    name = tag("a", qube.name, href=f"/qube/{qube.name}") if linked else tag("strong", qube.name)
    words: tuple[str | Html, ...] = ()
    if row is not None and whole is not None:
        words = (" ", _state(row.state, _for(row)))
    head = joined(
        (
            tag("tr", tag("th", name, *words, colspan=len(COLUMNS), scope="rowgroup"), class_="qube"),
            why(whole, remedies.remedy(whole, qube.name), _policy(sight, qube, whole)) if whole else None,
        )
    )
    rank = min((ORDER.index(line.seen) for line in lines), default=len(ORDER))
    return Section(qube.name, rank, head, lines)


def bodies(made: Iterable[Section], wanted: Filter) -> tuple[list[Html], int]:
    """The sections that a filter leaves, and how many exporters are in them."""
    found: list[Html] = []
    count = 0
    for one in made:
        rows = [line.html for line in one.targets if wanted.fits(line)]
        if rows:
            count += len(rows)
            found.append(tag("tbody", one.head, rows, id=f"q-{one.name}", class_=ORDER[one.rank]))
    return found, count


def table(parts: Sequence[Html]) -> Html:
    """With its head."""
    heads = [tag("th", column, scope="col", class_=f"c{number}") for number, column in enumerate(COLUMNS)]
    caption = tag("caption", "Qubes and their exporters, those that fail first", class_="unseen")
    return tag("table", caption, tag("thead", tag("tr", heads)), parts, id="targets")


def _target(sight: Sight, target: Target, whole: ScrapeError | None) -> TargetLines:
    row = sight.history.target(target)
    state = seen(target, row)
    name = target.exporter.name
    error = row.error if row else None
    words = f"{target.qube} {name} {WORDS[state]} {f'{error.reason} {error}' if error else ''}".lower()
    cells = [tag("th", name, scope="row"), tag("td", _state(state, _for(row)))]
    if row is None:
        note = "page = false: for /forward, and for those who ask for it by its name" if state == "off_page" else None
        return TargetLines(state, words, tag("tr", cells, tag("td", note, colspan=len(COLUMNS) - 2), class_=state))
    up = error is None
    cells += [
        tag("td", _took(sight, row) if row.state != "not_running" else None, class_="n"),
        tag("td", f"{row.samples:,}" if up else None, class_="n"),
        tag("td", units.size(row.body_size) if row.body_size else None, class_="n"),
        tag("td", f"{row.lines_dropped:,}" if up else None, class_="n"),
        tag("td", sparkline(row.durations, SCRAPES)),
    ]
    more = None
    if error is not None and (whole is None or str(error) != str(whole)):
        more = why(error, remedies.remedy(error, target.qube))
    elif row.lines_dropped:
        more = _dropped(row)
    asked = sight.history.asked
    if asked is not None and asked.at - row.at > OLD_SECONDS:
        more = joined((more, _note(f"Not part of the last scrape; this is {units.age(asked.at - row.at)} older.")))
    return TargetLines(state, words, joined((tag("tr", cells, class_=state), more)))


def _state(state: Seen, age: str) -> Html:
    """In words and a colour; the stylesheet adds a sign."""
    return joined((tag("b", WORDS[state], class_=state), f" {age}" if age else None))


def _for(row: Row | None) -> str:
    """For how long. If it was so at the first scrape, it may have been so before."""
    if row is None:
        return ""
    return f"{units.age(row.at - row.since)}{' or longer' if row.since == row.first else ''}"


def _took(sight: Sight, row: TargetRow) -> tuple[Html, str]:
    """A bar against the deadline, and the time."""
    steps = min(BAR_STEPS, round(BAR_STEPS * row.seconds / sight.allowed)) if sight.allowed > 0 else 0
    return tag("i", class_=f"w{steps}"), units.duration(row.seconds)


def why(error: ScrapeError, remedy: str, policy: Sequence[str] = (), *, columns: int = len(COLUMNS)) -> Html:
    """The row below what failed: why, what to do, and the lines of policy for that."""
    return tag(
        "tr",
        tag(
            "td",
            tag("p", tag("code", error.reason), " ", tag("bdi", str(error))),
            tag("p", tag("strong", "What to do: "), remedy),
            tag("pre", markup.lines(policy)) if policy else None,
            colspan=columns,
        ),
        class_="why",
    )


def _policy(sight: Sight, qube: Qube, error: ScrapeError) -> Sequence[str]:
    return remedies.lines_for_policy(sight.config, qube, sight.own_name) if error.reason == "refused" else ()


def _dropped(row: TargetRow) -> Html:
    return _note(
        f"{units.plural(row.lines_dropped, 'line')} dropped, since Prometheus would not take them. First: ",
        row.complaint,
    )


def _note(text: str, untrusted_words: str = "") -> Html:
    """A line below an exporter."""
    shown = tag("bdi", untrusted_words) if untrusted_words else None
    return tag("tr", tag("td", tag("p", text, shown), colspan=len(COLUMNS)), class_="why")
