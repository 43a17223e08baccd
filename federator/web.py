# SPDX-License-Identifier: GPL-3.0-or-later
"""
The HTTP side: request -> call -> response.

Owns paths, parameters, headers, statuses, and how many requests are served at one time. Must not know how a scrape is
done, nor how a page is made.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from weakref import WeakValueDictionary

from aiohttp import web
from multidict import MultiMapping

from federator import shares
from federator.access import Access
from federator.admission import Admission, Place
from federator.asking import page_weight
from federator.connections import Connection
from federator.counters import Counters
from federator.dom0 import Dom0Figures
from federator.errors import BusyError, ScrapeError, StoppingError
from federator.fleet import Fleet
from federator.forward import Forwarder
from federator.history import Asked
from federator.model import Config, Reload, Scrape, Snapshot, Target
from federator.network import network_of
from federator.page import Page, Pages, at_once
from federator.request import SHARE_SECONDS
from federator.requestlog import RequestLog
from federator.scrape import Scraper, budget
from federator.statelog import StateLog
from federator.status import STATIC_TYPES, Answer, Status
from federator.targets import RUNNING, forwarded, service_discovery
from federator.text.content_type import TEXT_FORMAT

# A scraper that does not take its page in this time has given it up long ago: it told its timeout, which is over.
SEND_SECONDS = 15.0
SEND_BYTES = 64 << 10

# What /forward answers where there is no text. 403 is upstream's for what ends before the service greets.
FORWARD_STATUSES = {"refused": 403, "no_service": 403, "not_running": 403, "timeout": 504, "http": 502}

# HOST:PORT as Prometheus takes it for a target, or HOST where the port is HTTP's own; a Host header may hold anything.
_HOST = re.compile(r"((?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]))(:[0-9]{1,5})?")

# What is sent at one time of all that asks no qube. 200 qubes make a page for people of some 450 kB.
LOOKS_BYTES = 8 << 20

# So many names stand in an error; a person finds none among more. The nearest one is not looked for: that would take
# some 0.1 ms for each name, of everybody's time.
MAX_LISTED = 20

# The one path that is open to everybody.
HEALTHY = "/-/healthy"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class Served:
    """What the handlers answer from."""

    fleet: Fleet
    scraper: Scraper
    forwarder: Forwarder
    pages: Pages
    dom0: Dom0Figures
    counters: Counters
    access: Access
    admission: Admission
    own_name: str = ""
    reload: Reload = field(default_factory=lambda: Reload(successful=True, at=time.time()))
    requests: RequestLog = field(default_factory=RequestLog)
    looks: Admission = field(default_factory=lambda: Admission(LOOKS_BYTES, remedy="try again"))
    status: Status = field(init=False)
    _making: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)  # by network

    def __post_init__(self) -> None:
        """People see the same parts."""
        self.status = Status(
            self.fleet,
            self.scraper.history,
            self.scraper.scheduler,
            reload=lambda: self.reload,
            is_busy=lambda: len(self.admission) > 0,
            dom0_answers=lambda: self.dom0.answers,
            own_name=self.own_name,
        )

    def making_for(self, address: str) -> asyncio.Lock:
        """
        Hold it while a page for this client is made: its pages are made one after the other.

        So one that asks for many pages at one time takes no more time from another client than it has itself.
        """
        return self._making.setdefault(network_of(address), asyncio.Lock())

    @classmethod
    def of(cls, config: Config, counters: Counters, *, own_name: str = "") -> "Served":
        """All that there is for this configuration. Raises ConfigError or StartError."""
        access = Access(config.web, own_name)
        fleet = Fleet(config, counters, own_name=own_name)
        state_log = StateLog()
        scraper = Scraper(fleet, state_log, counters)
        dom0 = Dom0Figures(config, fleet.limiter, counters)
        forwarder, pages = Forwarder(fleet, state_log, counters), Pages(fleet, scraper.scheduler, dom0)
        admission = Admission(shares.being_sent(config.scrape))
        return cls(fleet, scraper, forwarder, pages, dom0, counters, access, admission, own_name)


class Route(NamedTuple):
    """A path that is served, and what it is for: the front page, the 404 and the documentation name all of them."""

    path: str
    handler: Handler
    purpose: str


SERVED = web.AppKey("served", Served) if hasattr(web, "AppKey") else "served"  # AppKey came with aiohttp 3.9


def application(served: Served) -> web.Application:
    """The daemon's aiohttp application."""
    app = web.Application(middlewares=[_counted, _guarded])
    app[SERVED] = served
    for route in (*ROUTES, *STATIC_ROUTES):
        app.router.add_get(route.path, route.handler)
    return app


def wanted(query: MultiMapping[str], targets: Sequence[Target], dom0_knows: Callable[[str], bool]) -> frozenset[Target]:
    """
    The targets that `?qube=NAME` and `?exporter=NAME`, both repeatable, ask for; all of them without either.

    A qube that has none may be asked for without an exporter, if dom0 knows something of it. An exporter with
    `page = false` is there only if it is asked for by its name.
    Raises HTTPBadRequest for a name nobody configured: an empty page would hide the mistake.
    """
    known = {
        "qube": {target.qube for target in targets},
        "exporter": {target.exporter.name for target in targets},
    }
    of_dom0 = set() if "exporter" in query else set(filter(dom0_knows, query.getall("qube", [])))
    for untrusted_key, untrusted_name in query.items():
        if untrusted_key not in known:
            raise web.HTTPBadRequest(text=f"no parameter {untrusted_key!a}; there are qube=NAME and exporter=NAME\n")
        if untrusted_name not in known[untrusted_key] | of_dom0:
            known_here = _list(known[untrusted_key])
            raise web.HTTPBadRequest(text=f"no {untrusted_key} {untrusted_name!a} is configured; {known_here}\n")
    qubes = set(query.getall("qube", known["qube"]))
    exporters = set(query.getall("exporter", [target.exporter.name for target in targets if target.exporter.page]))
    found = frozenset(target for target in targets if target.qube in qubes and target.exporter.name in exporters)
    if query and not found and not of_dom0:
        raise web.HTTPBadRequest(text="none of these qubes has any of these exporters; `check` lists what there is\n")
    return found


def _list(names: Collection[str]) -> str:
    """The names that there are, for those who may read them on the page anyway."""
    if 0 < len(names) <= MAX_LISTED:
        return f"known here: {', '.join(sorted(names))}"
    return "the status page (/) lists them"


def expected_size(query: MultiMapping[str], seen: Snapshot | None) -> int:
    """Bytes of the page that a query asks for, as a scrape says: the last one of everything, or its own."""
    if seen is None:
        return 0
    qubes, exporters = query.getall("qube", []), query.getall("exporter", [])
    return sum(
        outcome.page_size
        for outcome in seen.outcomes
        if (not qubes or outcome.target.qube in qubes) and (not exporters or outcome.target.exporter.name in exporters)
    )


@asynccontextmanager
async def _place(request: web.Request, size: int = 0) -> AsyncIterator[tuple[Served, Place, float]]:
    """
    A place among the requests that ask qubes, for a page of about so many bytes.

    The fleet knows by then what runs. It is told when the request came.
    """
    served: Served = request.app[SERVED]
    loop = asyncio.get_running_loop()
    started = loop.time()
    # Requests of one moment for the same page get the same one.
    page = (request.path, frozenset(request.query.items()), int(started / SHARE_SECONDS))
    with served.admission.place(_network(request), page, size) as place:
        # A dom0 that is silent must not make the page late.
        await served.fleet.refresh(_seconds_left(request, started, served.fleet.config.scrape) / 4)
        yield served, place, started


def _network(request: web.Request) -> str:
    """For whom its page counts; all who come over a Unix socket are one."""
    return network_of(request.remote or "")


def _seconds_left(request: web.Request, started: float, settings: Scrape) -> float:
    untrusted_timeout = request.headers.get("X-Prometheus-Scrape-Timeout-Seconds")
    return budget(untrusted_timeout, settings) - (asyncio.get_running_loop().time() - started)


def _of_dom0(query: MultiMapping[str]) -> frozenset[str] | None:
    """The qubes of which dom0's figures are wanted. They are no exporter's."""
    if "exporter" in query:
        return frozenset()
    return frozenset(query.getall("qube")) if "qube" in query else None


async def _metrics(request: web.Request) -> web.StreamResponse:
    scraper: Scraper = request.app[SERVED].scraper
    async with _place(request, expected_size(request.query, scraper.last)) as (served, place, came):
        seconds = _seconds_left(request, came, served.fleet.config.scrape)
        served.dom0.somebody_scrapes(served.fleet.states)
        asked = wanted(request.query, served.fleet.targets, served.dom0.figures.knows_qube)
        snapshot = await scraper.collect(asked, seconds)
        # What was expected knows neither the first scrape nor an exporter that is not for the page.
        served.admission.resize(place, expected_size(request.query, snapshot), _network(request))
        _note_asked(served, request, snapshot.seconds, snapshot.allowed)
        async with served.making_for(request.remote or ""):
            started = asyncio.get_running_loop().time()
            page = served.pages.of(snapshot, served.reload, _of_dom0(request.query))
            served.admission.resize(place, _size(await page.plain()), _network(request))
            encoded = await encode(request, page)
            # Not how long it takes to be sent: a client that reads slowly must not take the time of others.
            made = asyncio.get_running_loop().time()
            scraper.cost.note(page_weight(snapshot.outcomes), made - started, made)
        sending = _send(request, *encoded)
        del snapshot, page, encoded  # nor their memory
        return await sending


def _note_asked(served: Served, request: web.Request, seconds: float, allowed: float) -> None:
    served.scraper.history.note_asked(
        Asked(time.time(), request.remote or "a Unix socket", request.path, seconds, allowed)
    )


def _size(pieces: Iterable[bytes]) -> int:
    return sum(map(len, pieces))


async def _send(request: web.Request, headers: Mapping[str, str], pieces: Sequence[bytes]) -> web.StreamResponse:
    """
    Send it here, where its time can be bounded; aiohttp would wait for a reader for ever.

    In parts that the socket takes at once: what it does not take of a large one, aiohttp copies, more than once.
    An exception holds what its frames hold, for as long as the garbage collector likes: so none of them has the page.
    """
    response = web.StreamResponse(headers={**headers, "Content-Length": str(_size(pieces))})
    parts = _parts(pieces if request.method != "HEAD" else ())
    del pieces
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await response.prepare(request)
            for part in parts:
                await response.write(part)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    except ConnectionError:  # the client is gone
        pass
    finally:
        parts.close()
    return response


def _parts(pieces: Iterable[bytes]) -> Generator[bytes, None, None]:
    for piece in pieces:
        for start in range(0, len(piece), SEND_BYTES):
            yield piece[start : start + SEND_BYTES]


async def _forward(request: web.Request) -> web.StreamResponse:
    """As upstream's proxy answers it: 400 for bad input, 403 for what qrexec refuses, 500 for most of the rest."""
    async with _place(request) as (served, place, came):
        target, settings = _forwarded(request.query, served.fleet), served.fleet.config.scrape
        # An exporter that takes longer than all others may be given more time here, where nobody else waits for it.
        own = replace(settings, timeout=target.exporter.timeout or settings.timeout)
        seconds = _seconds_left(request, came, own)
        started = asyncio.get_running_loop().time()
        try:
            content_type, text = await served.forwarder.fetch(target, seconds)
            _note_asked(served, request, asyncio.get_running_loop().time() - started, seconds)
        except ScrapeError as error:
            return web.Response(status=FORWARD_STATUSES.get(error.reason, 500), text=f"{error.reason}: {error}\n")
        served.admission.resize(place, len(text), _network(request))
        sending = _send(request, *await encode(request, Page(at_once(text)), content_type))
        del text
        return await sending


def _forwarded(query: MultiMapping[str], fleet: Fleet) -> Target:
    for untrusted_key in query:
        if untrusted_key not in ("target", "port", "endpoint"):
            raise web.HTTPBadRequest(text=f"no parameter {untrusted_key!a}; ask for /forward?target=QUBE&port=PORT\n")
    try:
        target = forwarded(query.get("target", ""), query, fleet.targets, fleet.dotted_names)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{error}; ask for /forward?target=QUBE&port=PORT\n") from None
    if target is None:
        raise web.HTTPNotFound(text="that exporter of that qube is not configured; `check` lists what is\n")
    return target


async def _discover(request: web.Request) -> web.StreamResponse:
    """As upstream's proxy answers it: the qubes that run, of those that are scraped."""
    async with _look(request) as (served, send):
        fleet = await _patiently_refreshed(served.fleet)
        if not fleet.knows_states:
            raise web.HTTPServiceUnavailable(text="dom0 does not say which qubes run; the log says why\n")
        names = [qube.name for qube in fleet.qubes if fleet.state(qube) == RUNNING]
        return await send(_json([{"targets": names}]))


async def _sd(request: web.Request) -> web.StreamResponse:
    """Prometheus keeps the last list where this fails, and drops what is not on it: so fail if and only if not sure."""
    async with _look(request) as (served, send):
        fleet = await _patiently_refreshed(served.fleet)
        if not fleet.knows_targets:
            raise web.HTTPServiceUnavailable(text="dom0 has not said yet which qubes run; the log says why\n")
        return await send(_json(service_discovery(fleet.targets, _own_address(request))))


async def _patiently_refreshed(fleet: Fleet) -> Fleet:
    seconds = fleet.config.scrape.timeout
    await fleet.refresh(seconds, patience=seconds)
    return fleet


def _json(said: object) -> Answer:
    return Answer({"Content-Type": "application/json; charset=utf-8"}, json.dumps(said).encode())


def _own_address(request: web.Request) -> str:
    """The address at which the client reached us; the socket's, where the Host header is missing or odd."""
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


async def encode(
    request: web.Request, page: Page, content_type: str = TEXT_FORMAT
) -> tuple[dict[str, str], Sequence[bytes]]:
    """Headers and body of a page, compressed if the scraper likes that."""
    headers = {"Content-Type": content_type, "Vary": "Accept-Encoding"}
    if accepts_gzip(request.headers.get("Accept-Encoding", "")):
        with suppress(RuntimeError):  # the system has no thread for it
            return {**headers, "Content-Encoding": "gzip"}, await page.gzipped()
    return headers, await page.plain()


async def _metrics_proxy(request: web.Request) -> web.StreamResponse:
    async with _look(request) as (served, send):
        headers, pieces = await encode(request, Page(at_once(served.counters.page())))
        return await send(Answer(headers, b"".join(pieces)))


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="prometheus-qubes-proxy is healthy.\n")


async def _ready(_: web.Request) -> web.Response:
    return web.Response(text="prometheus-qubes-proxy is ready.\n")


@asynccontextmanager
async def _look(
    request: web.Request,
) -> AsyncIterator[tuple[Served, Callable[[Answer], Awaitable[web.StreamResponse]]]]:
    """A place to look at what is known, and how that is sent. Those who look take no place of those who scrape."""
    served: Served = request.app[SERVED]
    with served.looks.place(_network(request), id(request)) as place:

        async def send(answer: Answer) -> web.StreamResponse:
            if answer.status == 304:  # without a body, which aiohttp 3.8 would end with a last chunk
                return web.Response(status=304, headers=answer.headers)
            served.looks.resize(place, len(answer.body), _network(request))
            return await _send(request, answer.headers, [answer.body])

        yield served, send


async def _front(request: web.Request) -> web.StreamResponse:
    links = [(route.path, route.purpose) for route in ROUTES if "{" not in route.path]
    async with _look(request) as (served, send):
        known_tag = request.headers.get("If-None-Match", "")
        return await send(await served.status.front(request.query, _own_address(request), links, known_tag))


async def _qube(request: web.Request) -> web.StreamResponse:
    async with _look(request) as (served, send):
        answer = served.status.near(request.match_info["name"], _own_address(request))
        if answer is None:
            raise web.HTTPNotFound(text="there is no such qube; / lists those that there are\n")
        return await send(answer)


async def _targets(request: web.Request) -> web.StreamResponse:
    async with _look(request) as (served, send):
        return await send(await served.status.targets(_own_address(request)))


async def _static(request: web.Request) -> web.StreamResponse:
    async with _look(request) as (served, send):
        return await send(
            served.status.static(request.path.rpartition("/")[2], request.headers.get("If-None-Match", ""))
        )


ROUTES = (
    Route("/", _front, "this page, for people; ?q=WORDS and ?state=STATE narrow it"),
    Route("/qube/{name}", _qube, "one qube, for people"),
    Route("/api/v1/targets", _targets, "what this page shows, as JSON"),
    Route("/metrics", _metrics, "everything, on one page; ?qube=NAME and ?exporter=NAME narrow it"),
    Route("/metrics/proxy", _metrics_proxy, "the proxy itself"),
    Route("/forward", _forward, "one exporter's own text, by ?target=QUBE&port=PORT"),
    Route("/sd", _sd, "every exporter by itself, for Prometheus' http_sd_configs; each through /forward"),
    Route("/discover", _discover, "the qubes that run"),
    Route(HEALTHY, _healthy, "200 while the proxy runs"),
    Route("/-/ready", _ready, "200 while the proxy serves"),
)


STATIC_ROUTES = tuple(Route(f"/static/{name}", _static, "part of the pages for people") for name in STATIC_TYPES)


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Before all other work for a request. Who asks whether we live may be anybody."""
    if request.path != HEALTHY:
        access: Access = request.app[SERVED].access
        untrusted_hosts = request.headers.getall("Host", [])
        untrusted_authorization = request.headers.get("Authorization", "")
        refusal = await access.refusal(untrusted_hosts, untrusted_authorization, request.remote or "")
        if refusal is not None:
            return web.Response(status=refusal.status, text=refusal.text, headers=refusal.headers)
    return await handler(request)


def _without_traceback(refusal: web.HTTPException) -> web.Response:
    """The same answer. An exception would hold its frames, with a page in them, while its connection is kept."""
    headers = {name: value for name, value in refusal.headers.items() if not name.lower().startswith("content-")}
    return web.Response(status=refusal.status, reason=refusal.reason, text=refusal.text, headers=headers)


@web.middleware
async def _counted(request: web.Request, handler: Handler) -> web.StreamResponse:
    # Paths come from outside: only those we know become label values.
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else "other"
    code = 500
    connection = request.transport.get_protocol() if request.transport else None
    if isinstance(connection, Connection):
        connection.request_begins()
    try:
        response = await handler(request)
        code = response.status
    except web.HTTPException as refusal:
        code = refusal.status
        if code == 404 and resource is None:
            *paths, last = [route.path for route in ROUTES]
            return web.Response(status=404, text=f"there is {', '.join(paths)} and {last}\n")
        return _without_traceback(refusal)
    except (BusyError, StoppingError) as error:
        # Here, and not where the place is given back: a generator of contextlib that raises another exception holds
        # the first one, with a page in its frames, until the garbage collector comes: so it was seen with Python 3.13.
        code = 503
        return web.Response(status=503, text=f"{error}\n")
    except MemoryError as error:
        code = 503
        # unexpected.py tells it once for all who share the page, and lets go of what it can.
        asyncio.get_running_loop().call_exception_handler({"message": "no memory for a page", "exception": error})
        return web.Response(status=503, text="memory is short; see scrape.memory_limit\n")
    else:
        return response
    finally:
        request.app[SERVED].counters.requests.labels(path, str(code)).inc()
        request.app[SERVED].requests.note(request.path_qs, code, request.remote or "")
        if isinstance(connection, Connection):
            connection.request_ends()
