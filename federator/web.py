# SPDX-License-Identifier: GPL-3.0-or-later
"""
The HTTP side: request -> call -> response.

Owns paths, parameters, headers and statuses. Must not know how a scrape is done, nor what is in a page.
"""

import asyncio
import html
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from multidict import MultiMapping

from federator import __version__
from federator.counters import Counters
from federator.errors import ScrapeError, StoppingError
from federator.gauges import gauges
from federator.model import QubeOutcome, Target
from federator.scrape import PATIENCE_SECONDS, Scraper, budget
from federator.targets import RUNNING, forwarded, service_discovery

# Every Prometheus takes this for every Accept header (3.x takes nothing less exact).
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
# zlib's default level costs more than reading and merging together; the first one gives most of what there is to gain.
GZIP_LEVEL = 1
GZIP_WINDOW = 16 + zlib.MAX_WBITS  # 16: with gzip's header
# Pages being made or sent at one time, each of which costs memory; Prometheus' own --web.max-requests is 40 as well.
MAX_REQUESTS = 40
# A scraper that does not take its page in this time has given it up long ago: it told its timeout, which is over.
SEND_SECONDS = 15.0
SEND_BYTES = 64 << 10

# What /forward answers where there is no text. 403 is upstream's for what ends before the service greets.
FORWARD_STATUSES = {"refused": 403, "no_service": 403, "not_running": 403, "timeout": 504}

# HOST:PORT as Prometheus takes it for a target, or HOST where the port is HTTP's own; a Host header may hold anything.
_HOST = re.compile(r"((?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]))(:[0-9]{1,5})?")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Served:
    """What the handlers answer from; the daemon replaces the scraper when it reloads."""

    scraper: Scraper
    counters: Counters
    reloaded_well: bool = True
    reloaded_at: float = field(default_factory=time.time)
    requests: int = 0  # being served now
    pages: dict[tuple[int, ...], "asyncio.Task[bytes]"] = field(default_factory=dict)  # being made now


SERVED = web.AppKey("served", Served) if hasattr(web, "AppKey") else "served"  # AppKey came with aiohttp 3.9


def application(served: Served) -> web.Application:
    """The daemon's aiohttp application."""
    app = web.Application(middlewares=[_counted])
    app[SERVED] = served
    app.router.add_get("/", _front)
    app.router.add_get("/metrics", _metrics)
    app.router.add_get("/metrics/proxy", _metrics_proxy)
    app.router.add_get("/forward", _forward)
    app.router.add_get("/discover", _discover)
    app.router.add_get("/sd", _sd)
    app.router.add_get("/-/healthy", _healthy)
    app.router.add_get("/-/ready", _ready)
    return app


def wanted(query: MultiMapping[str], targets: Sequence[Target]) -> frozenset[Target]:
    """
    The targets that `?qube=NAME` and `?exporter=NAME`, both repeatable, ask for; all of them without either.

    Raises HTTPBadRequest for a name nobody configured: an empty page would hide the mistake.
    """
    known = {
        "qube": {target.qube for target in targets},
        "exporter": {target.exporter.name for target in targets},
    }
    for untrusted_key, untrusted_name in query.items():
        if untrusted_key not in known:
            raise web.HTTPBadRequest(text=f"no parameter {untrusted_key!a}; there are qube=NAME and exporter=NAME\n")
        if untrusted_name not in known[untrusted_key]:
            raise web.HTTPBadRequest(text=f"no {untrusted_key} {untrusted_name!a} is configured\n")
    qubes = set(query.getall("qube", known["qube"]))
    exporters = set(query.getall("exporter", known["exporter"]))
    return frozenset(target for target in targets if target.qube in qubes and target.exporter.name in exporters)


@asynccontextmanager
async def _place(request: web.Request) -> AsyncIterator[tuple[Scraper, float]]:
    """A place among the requests that ask qubes: the scraper, which knows by then what runs, and the seconds left."""
    served: Served = request.app[SERVED]
    if served.requests >= MAX_REQUESTS:
        raise web.HTTPServiceUnavailable(text=f"{MAX_REQUESTS} scrapes are being served already\n")
    served.requests += 1
    try:
        loop = asyncio.get_running_loop()
        started = loop.time()
        untrusted_timeout = request.headers.get("X-Prometheus-Scrape-Timeout-Seconds")
        seconds = budget(untrusted_timeout, served.scraper.config.scrape)
        # A dom0 that is silent must not make the page late.
        scraper = await _refreshed(served, seconds / 4)
        yield scraper, seconds - (loop.time() - started)
    finally:
        served.requests -= 1


async def _metrics(request: web.Request) -> web.StreamResponse:
    async with _place(request) as (scraper, seconds):
        page = await _scraped(request, scraper, seconds)
        headers, body = await _encoded(request, page)
        return await _send(request, headers, body)


async def _scraped(request: web.Request, scraper: Scraper, seconds: float) -> bytes:
    served: Served = request.app[SERVED]
    try:
        qubes = await scraper.collect(wanted(request.query, scraper.targets), seconds)
    except StoppingError as stopping:
        raise web.HTTPServiceUnavailable(text=f"{stopping}\n") from None
    # Scrapers who share the answers share the page. Who goes away meanwhile must not take it from the others.
    key = tuple(id(outcome) for qube in qubes for outcome in qube.outcomes)
    task = served.pages.get(key)
    if task is None:
        task = served.pages[key] = asyncio.create_task(_page(served, qubes))
        task.add_done_callback(lambda _: served.pages.pop(key))
    return await asyncio.shield(task)


async def _send(request: web.Request, headers: Mapping[str, str], body: bytes) -> web.StreamResponse:
    """
    Send it here, where its time can be bounded; aiohttp would wait for a reader for ever.

    In pieces that the socket takes at once: what it does not take of a large one, aiohttp copies, more than once.
    """
    response = web.StreamResponse(headers={**headers, "Content-Length": str(len(body))})
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await response.prepare(request)
            if request.method != "HEAD":
                for start in range(0, len(body), SEND_BYTES):
                    await response.write(body[start : start + SEND_BYTES])
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response


async def _page(served: Served, qubes: tuple[QubeOutcome, ...]) -> bytes:
    ours = gauges(qubes, reloaded_well=served.reloaded_well, reloaded_at=served.reloaded_at)
    theirs = [outcome.reading for qube in qubes for outcome in qube.outcomes if outcome.reading]
    return await served.scraper.turns.take(served.scraper.merger.merge([ours, *theirs]))


async def _forward(request: web.Request) -> web.StreamResponse:
    """As upstream's proxy answers it: 400 for bad input, 403 for what qrexec refuses, 500 for most of the rest."""
    async with _place(request) as (scraper, seconds):
        target = _forwarded(request.query, scraper)
        try:
            text = await scraper.fetch(target, seconds)
        except StoppingError as stopping:
            raise web.HTTPServiceUnavailable(text=f"{stopping}\n") from None
        except ScrapeError as error:
            return web.Response(status=FORWARD_STATUSES.get(error.reason, 500), text=f"{error.reason}: {error}\n")
        headers, body = await _encoded(request, text)
        return await _send(request, headers, body)


def _forwarded(query: MultiMapping[str], scraper: Scraper) -> Target:
    try:
        target = forwarded(query.get("target", ""), query.get("port", ""), scraper.targets, scraper.names)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{error}; ask for /forward?target=QUBE&port=PORT\n") from None
    if target is None:
        raise web.HTTPNotFound(text="that exporter of that qube is not configured; `check` lists what is\n")
    return target


async def _discover(request: web.Request) -> web.Response:
    """As upstream's proxy answers it: the qubes that run, of those that are scraped."""
    scraper = await _patiently_refreshed(request)
    if not scraper.knows_states:
        raise web.HTTPServiceUnavailable(text="dom0 does not say which qubes run; the log says why\n")
    names = [qube.name for qube in scraper.qubes if scraper.state(qube) == RUNNING]
    return web.json_response([{"targets": names}])


async def _sd(request: web.Request) -> web.Response:
    """Prometheus keeps the last list where this fails, and drops what is not on it: so fail if and only if not sure."""
    scraper = await _patiently_refreshed(request)
    if not scraper.knows_targets:
        raise web.HTTPServiceUnavailable(text="dom0 has not said yet which qubes run; the log says why\n")
    return web.json_response(service_discovery(scraper.targets, _own_address(request)))


async def _patiently_refreshed(request: web.Request) -> Scraper:
    served: Served = request.app[SERVED]
    seconds = served.scraper.config.scrape.timeout
    return await _refreshed(served, seconds, patience=seconds)


async def _refreshed(served: Served, seconds: float, patience: float = PATIENCE_SECONDS) -> Scraper:
    """The scraper, which knows by then what runs if dom0 says so in time; the new one, if there is one by then."""
    while True:
        scraper = served.scraper
        await scraper.refresh(seconds, patience)
        if scraper is served.scraper:
            return scraper


def _own_address(request: web.Request) -> str:
    """Where whoever asks has reached us; by the socket, where the Host header is missing or odd."""
    untrusted_host = request.headers.get("Host", "")
    if match := _HOST.fullmatch(untrusted_host):
        return match[1] + (match[2] or ":80")
    host, port = request.transport.get_extra_info("sockname")[:2] if request.transport else ("127.0.0.1", 8199)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def accepts_gzip(untrusted_header: str) -> bool:
    """What Accept-Encoding says of it: `gzip` in any case of letters, unless its q is 0."""
    codings = (part.partition(";") for part in untrusted_header.lower().split(","))
    parameters = [parameter for coding, _, parameter in codings if coding.strip() == "gzip"]
    return any(not re.fullmatch(r"\s*q\s*=\s*0(?:\.0*)?\s*", parameter) for parameter in parameters)


async def _encoded(request: web.Request, page: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of a page, compressed if the scraper likes that."""
    headers = {"Content-Type": TEXT_FORMAT, "Vary": "Accept-Encoding"}
    if accepts_gzip(request.headers.get("Accept-Encoding", "")):
        headers["Content-Encoding"] = "gzip"
        page = await asyncio.to_thread(_gzipped, page)
    return headers, page


def _gzipped(page: bytes) -> bytes:
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    return compressor.compress(page) + compressor.flush()


async def _metrics_proxy(request: web.Request) -> web.Response:
    headers, body = await _encoded(request, request.app[SERVED].counters.page())
    return web.Response(body=body, headers=headers)


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="prometheus-qubes-proxy is healthy.\n")


async def _ready(_: web.Request) -> web.Response:
    return web.Response(text="prometheus-qubes-proxy is ready.\n")


async def _front(request: web.Request) -> web.Response:
    scraper = request.app[SERVED].scraper
    text = f"""<!doctype html>
<title>prometheus-qubes-proxy</title>
<h1>prometheus-qubes-proxy</h1>
<p>Version {html.escape(__version__)}. {len(scraper.targets)} exporters in {len(scraper.qubes)} qubes.
<ul>
<li><a href="/metrics">/metrics</a>: everything, on one page
<li><a href="/metrics/proxy">/metrics/proxy</a>: the proxy itself
<li><a href="/sd">/sd</a>: every exporter by itself, for Prometheus' http_sd_configs; each through /forward
<li><a href="/discover">/discover</a>: the qubes that run
</ul>
"""
    return web.Response(text=text, content_type="text/html")


@web.middleware
async def _counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    # Paths come from outside: only those we know become label values.
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else "other"
    code = 500
    try:
        response = await handler(request)
        code = response.status
    except web.HTTPException as refusal:
        code = refusal.status
        if code == 404 and resource is None:
            raise web.HTTPNotFound(
                text="there is /metrics, /metrics/proxy, /forward, /discover, /sd, /-/healthy and /-/ready\n"
            ) from None
        raise
    else:
        return response
    finally:
        request.app[SERVED].counters.requests.labels(path, str(code)).inc()
