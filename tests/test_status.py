# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages for people, asked for by a client: headers, what is kept, who may look."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from federator import daemon
from federator.views import make
from federator.web import SERVED, Served
from tests import test_web
from tests.helpers import soon
from tests.parts import Exporter, toml
from tests.test_markup import Reader

client = test_web.client  # the fixture: a client of the whole application
asked = test_web.asked
Client = test_web.Client

PAGES = ("/", "/qube/work", "/api/v1/targets", "/static/status.css", "/static/status.js")


@pytest.mark.parametrize("path", PAGES)
async def test_headers(client: Client, path: str) -> None:
    """What a browser needs to know to trust nothing on the page."""
    answer, body = await asked(client, path)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(body)))
    policy = answer.headers["Content-Security-Policy"]
    for words in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
        assert words in policy
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "private, no-cache"
    types = {"css": "text/css", "js": "text/javascript", "targets": "application/json"}
    kind = types.get(path.rpartition(".")[2].rpartition("/")[2], "text/html")
    assert answer.headers["Content-Type"].startswith(kind)


@pytest.mark.parametrize("path", ["/", "/qube/work"])
async def test_nothing_is_inline_and_nothing_from_elsewhere(client: Client, path: str) -> None:
    """The policy forbids it; so it would not work."""
    await asked(client, "/metrics")
    _, body = await asked(client, path)
    for name, attributes in Reader(body.decode()).elements:
        assert name != "style"
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "action"):
            assert (attributes.get(key) or "/").startswith(("/", "data:,"))
    assert b"<script>" not in body


async def test_a_scrape_is_seen_and_looking_is_no_scrape(client: Client) -> None:
    """Who looks first sees nothing; after a scrape, what it found."""
    _, before = await asked(client, "/")
    assert b"Nobody has scraped yet" in before
    await asked(client, "/metrics")
    _, page = await asked(client, "/")
    assert b"1 of 5 exporters is down" in page
    assert b"of <code>/metrics</code> for <bdi>127.0.0.1</bdi>" in page
    _, near = await asked(client, "/qube/personal")
    assert b"open for" in near
    _, text = await asked(client, "/api/v1/targets")
    health = [one["health"] for one in json.loads(text)["data"]["activeTargets"]]
    assert sorted(health) == ["down", "up", "up", "up", "up"]
    for path in PAGES:
        await asked(client, path)
    _, counters = await asked(client, "/metrics/proxy")
    assert b"qubes_proxy_qube_scrapes_total 2.0\n" in counters


async def test_a_scrape_of_one_qube_changes_its_rows_only(client: Client) -> None:
    """`?qube=` is as good as any scrape for what it asks for."""
    await asked(client, "/metrics?qube=work")
    _, text = await asked(client, "/api/v1/targets")
    health = {(one["labels"]["qube"], one["health"]) for one in json.loads(text)["data"]["activeTargets"]}
    assert health == {("work", "up"), ("personal", "unknown")}


async def test_a_forward_is_somebody_who_asks(client: Client) -> None:
    """Who scrapes each exporter by itself need not be told that nobody scrapes."""
    _, text = await asked(client, "/sd")
    port = json.loads(text)[0]["labels"]["__param_port"]
    await asked(client, f"/forward?target=work&port={port}")
    _, page = await asked(client, "/")
    assert b"is your Prometheus configured" not in page
    assert b"<code>/forward</code>" in page


async def test_the_filter_of_the_url(client: Client) -> None:
    """It works without the script."""
    await asked(client, "/metrics")
    _, page = await asked(client, "/?q=personal&state=down")
    assert b"1 of 5 exporters shown" in page
    assert b'<tbody id="q-personal"' in page
    assert b'<tbody id="q-work"' not in page


async def test_a_page_that_did_not_change_is_not_sent_again(client: Client) -> None:
    """Until the next scrape; and each filter is a page of its own."""
    await asked(client, "/metrics")
    answer, _ = await asked(client, "/")
    tag = {"If-None-Match": answer.headers["ETag"]}
    again, body = await asked(client, "/", **tag)
    assert (again.status, body) == (304, b"")
    assert (await asked(client, "/?q=work", **tag))[0].status == 200
    await asked(client, "/metrics")
    assert (await asked(client, "/", **tag))[0].status == 200
    script, _ = await asked(client, "/static/status.js")
    assert (await asked(client, "/static/status.js", **{"If-None-Match": script.headers["ETag"]}))[0].status == 304


async def test_a_connection_goes_on_after_a_page_that_did_not_change(client: Client) -> None:
    """Nothing comes after the head of a 304, so a browser understands what comes next."""
    answer, _ = await asked(client, "/static/status.js")
    reader, writer = await asyncio.open_connection(client.host, client.port)
    head = f"Host: localhost\r\nIf-None-Match: {answer.headers['ETag']}\r\n\r\n"
    for _ in range(2):
        writer.write(f"GET /static/status.js HTTP/1.1\r\n{head}".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 304 ")
    writer.close()


async def test_the_table_is_made_once_for_each_scrape(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many people look, and whatever they filter."""
    made = []

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return make(*arguments)

    monkeypatch.setattr("federator.views.make", counted)
    await asked(client, "/metrics")
    for path in ("/", "/?q=work", "/", "/?state=up"):
        assert (await asked(client, path))[0].status == 200
    assert len(made) == 1
    await asked(client, "/metrics")
    await asked(client, "/")
    assert len(made) == 2


async def test_making_the_table_gives_way_to_those_who_scrape(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made when they are done, or after a while; what is there is shown at once."""
    monkeypatch.setattr("federator.status.PATIENCE_SECONDS", 1000.0)
    await asked(client, "/")
    served: Served = client.app[SERVED]
    with served.admission.place("127.0.0.1", "somebody"):
        assert (await asked(client, "/?q=work"))[0].status == 200  # it was made before
        served.scraper.history.retain(served.fleet.qubes)
        looking = [asyncio.create_task(asked(client, path)) for path in ("/", "/api/v1/targets")]
        await soon("both are there", lambda: len(served.looks) == 2)
        assert not any(one.done() for one in looking)
    for one in looking:
        assert (await one)[0].status == 200
    monkeypatch.setattr("federator.status.PATIENCE_SECONDS", 0.0)
    with served.admission.place("127.0.0.1", "somebody"):
        served.scraper.history.retain(served.fleet.qubes)
        assert (await asked(client, "/"))[0].status == 200


async def test_making_the_table_may_fail_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is not kept."""

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError
        yield

    monkeypatch.setattr("federator.views.make", fail)
    assert (await asked(client, "/"))[0].status == 500
    monkeypatch.undo()
    assert (await asked(client, "/"))[0].status == 200


async def test_an_unknown_qube(client: Client) -> None:
    """And what is no name of a qube; what was asked for is not repeated."""
    for name in ("vault", "%3Cscript%3E", "..%2F..%2Fetc"):
        answer, body = await asked(client, f"/qube/{name}")
        assert answer.status == 404
        assert b"script" not in body
        assert answer.headers["Content-Type"].startswith("text/plain")


async def test_the_host_is_checked(client: Client) -> None:
    """A web page of somebody else must not read it."""
    for path in PAGES:
        assert (await asked(client, path, Host="evil.example"))[0].status == 421
    _, page = await asked(client, "/", Host="127.0.0.1:8199")
    assert b"targets: [&quot;127.0.0.1:8199&quot;]" in page


async def test_a_password_is_asked_for(
    serve: Callable[[str], Awaitable[Client]], exporter: Callable[[bytes], Exporter]
) -> None:
    """As for everything but /-/healthy."""
    pytest.importorskip("bcrypt")
    users = f'[web.basic_auth_users]\nalice = "$2b$04${"a" * 53}"'
    text = toml({"work": {"node": exporter(b"n 1\n").port}}, transport="local", rest=users)
    client = await serve(text)
    for path in PAGES:
        assert (await asked(client, path))[0].status == 401


@pytest.mark.parametrize("path", ["/", "/metrics/proxy", "/sd", "/discover"])
async def test_many_who_look_do_not_keep_a_scraper_out(
    client: Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """They have places of their own."""
    monkeypatch.setattr("federator.admission.MAX_REQUESTS", 0)
    assert (await asked(client, path))[0].status == 503
    monkeypatch.undo()
    served: Served = client.app[SERVED]
    served.looks.most_bytes = 10
    with served.looks.place("127.0.0.1", "somebody", 10):
        answer, body = await asked(client, path)
        assert (answer.status, b"try again" in body) == (503, True)
        assert (await asked(client, "/metrics"))[0].status == 200
    assert len(served.looks) == 0


async def test_a_reload_that_fails_is_on_the_page(client: Client, tmp_path: Path) -> None:
    """With the key that is wrong."""
    served: Served = client.app[SERVED]
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[scrape]\ntimeuot = 3\n[exporters]\n[qubes]\n", encoding="utf-8")
    daemon.reload(wrong, served, watch_addresses=False)
    _, page = await asked(client, "/")
    assert b"timeuot" in page
