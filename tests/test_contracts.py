# SPDX-License-Identifier: GPL-3.0-or-later
"""The program and its documentation say the same. Each test here tells the author of a change what else to touch."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from federator import __version__, access, errors, passwords, web
from federator.connections import PLAIN_PORT
from federator.counters import Counters
from federator.gauges import HELPS
from federator.remedies import REMEDIES
from tests import test_web
from tests.helpers import ROOT
from tests.test_config import keys_of_the_schema
from tests.test_layers import ALLOWED

assert web  # importing it imports every module that can define a ScrapeError

client = test_web.client  # the fixture: a client of the whole application

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
# The closed set that dashboards and alerts rely on.
REASONS = {
    "refused",
    "no_service",
    "not_running",
    "closed",
    "timeout",
    "protocol",
    "endpoint",
    "connection",
    "http",
    "exposition",
    "body_size_limit",
    "sample_limit",
    "label_limit",
}


def documented(name: str) -> list[str]:
    """What the first columns of a document's tables have in backticks, and nothing else."""
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)


def scrape_errors(root: type[errors.ScrapeError] = errors.ScrapeError) -> Iterator[type[errors.ScrapeError]]:
    """Every kind of ScrapeError, in whichever module."""
    for error in root.__subclasses__():
        yield error
        yield from scrape_errors(error)


def test_reasons_are_a_closed_set() -> None:
    """Errors, the tree in errors.py, and the table of docs/troubleshooting.md have the same reasons."""
    found = list(scrape_errors())
    assert {error.reason for error in found} == REASONS
    tree = re.findall(r"^ {12}(\w+)", inspect.getdoc(errors) or "", re.MULTILINE)
    # One that another module defines is that module's own business, and has the reason of its parent.
    assert sorted(error.__name__ for error in found if error.__module__ == errors.__name__) == sorted(tree)
    # Its other tables have messages, which are several words.
    reasons = [name for name in documented("docs/troubleshooting.md") if re.fullmatch(r"[a-z_]+", name)]
    assert sorted(reasons) == sorted(REASONS)
    assert set(REMEDIES) == REASONS


def test_metrics_are_documented() -> None:
    """docs/metrics.md has a row for each gauge on /metrics and each metric of ours on /metrics/proxy, and no other."""
    page = Counters().page().decode()
    # The library adds when each counter began, on a line of its own.
    counters = re.findall(r"^# TYPE (qubes_proxy_\w+)(?<!_created) ", page, re.MULTILINE)
    assert sorted(documented("docs/metrics.md")) == sorted([*HELPS, *counters])


async def test_paths_are_documented(client: test_web.Client) -> None:
    """docs/http.md, the text of the 404 and the links of the front page have all paths, and no other."""
    assert client.app is not None
    paths = {resource.canonical for resource in client.app.router.resources()}
    assert paths == {name for name in documented("docs/http.md") if name.startswith("/")}
    # Files that are parts of pages are not for those who look for a path.
    paths = {path for path in paths if not path.startswith("/static/")}
    async with client.get("/no-such-path") as answer:
        named = set(re.findall(r"(?<!\S)/[\w/{}-]*", await answer.text()))
    async with client.get("/") as answer:
        linked = set(re.findall(r'<li><a href="(/[^"?]*)', await answer.text()))
    assert named == paths
    assert linked == {path for path in paths if "{" not in path}


def test_what_keeps_a_browser_from_the_status_page_is_documented() -> None:
    """docs/troubleshooting.md has each refusal, in the words of the program, and the keys behind it."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = text.partition("## The status page does not open")[2].partition("\n## ")[0]
    named = {*re.findall(r"`(web\.[a-z_]+|[a-z]+_[a-z_]+)`", section)}
    keys = {part for key in keys_of_the_schema() for part in (key, ".".join(key.split(".")[:2]), key.split(".")[-1])}
    assert named <= keys
    assert {"web.listen_addresses", "web.hosts", "web.basic_auth_users", "web.tls_server_config"} <= named
    plain = PLAIN_PORT.partition(b"\r\n\r\n")[2].decode()
    for said in (access.UNAUTHORIZED.text, access.RATE_LIMITED.text, plain):
        assert f"`{said.strip()}`" in section
    for start, module in (("no host ", access), ("too many wrong passwords from this address", passwords)):
        assert f"`{start}" in section
        assert start in inspect.getsource(module)


def test_files_are_documented() -> None:
    """ARCHITECTURE.md has a row for each module of the table of who may import whom, and no other."""
    files = [name for name in documented("ARCHITECTURE.md") if name.endswith(".py")]
    assert sorted(files) == sorted(f"{module.replace('.', '/')}.py" for module in ALLOWED)


def _anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.is_file(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_changelog_has_a_section_for_this_version() -> None:
    """A release has one with its day; between two releases it is called Unreleased, and the version ends in .dev0."""
    first = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0]
    if __version__.endswith(".dev0"):
        assert first == "Unreleased"
    else:
        assert re.fullmatch(rf"{re.escape(__version__)} \(\d{{4}}-\d\d-\d\d\)", first)
