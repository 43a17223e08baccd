# SPDX-License-Identifier: GPL-3.0-or-later
"""
What people look at over HTTP: the status page, the page of a qube, the JSON, the stylesheet and the script.

Owns their headers, their parameters, and what of them is kept until the next scrape. Must not know what is on a page,
nor how it is sent. Nothing is scraped because somebody looks.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from federator import api, views
from federator.dom0_replies import PROPERTIES, PROPERTY
from federator.errors import ScrapeError
from federator.fleet import Fleet
from federator.history import History
from federator.model import Config, Reload
from federator.policy import dom0_services
from federator.rows import Filter
from federator.scheduler import Scheduler
from federator.sight import ORDER, Dom0Says, QubeSight, Sight

# Nothing but our own stylesheet and script, no form to elsewhere, and in nobody's frame: whatever a qube smuggles into
# a page can do nothing there.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; connect-src 'self'; base-uri 'none';"
    " form-action 'self'; frame-ancestors 'none'"
)
SECURE = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# May be kept, but has to be asked for each time; and by no cache that others use.
FRESH = {"Cache-Control": "private, no-cache"}
# People wait so long for those who scrape, and look so often whether these are done.
PATIENCE_SECONDS = 2.0
WATCH_SECONDS = 0.05
# A filter is typed by a person.
MAX_FILTER_LENGTH = 200

STATIC = Path(__file__).with_name("static")
STATIC_TYPES = {"status.css": "text/css; charset=utf-8", "status.js": "text/javascript; charset=utf-8"}

T = TypeVar("T")


class Answer(NamedTuple):
    """What is sent."""

    headers: Mapping[str, str]
    body: bytes
    status: int = 200


class Status:
    """
    What people see of a fleet. `reload` says how the last reload went, `is_busy` whether anybody scrapes now.

    `dom0_answers` says by service why dom0 did not answer the last call of [dom0], or None where it did.
    `open_addresses`: where the daemon listens beyond loopback.
    """

    def __init__(  # noqa: PLR0913 - the parts of the daemon that people see
        self,
        fleet: Fleet,
        history: History,
        scheduler: Scheduler,
        *,
        reload: Callable[[], Reload],
        is_busy: Callable[[], bool],
        dom0_answers: Callable[[], Mapping[str, ScrapeError | None]],
        own_name: str,
    ) -> None:
        self.open_addresses: Sequence[str] = ()
        self._fleet = fleet
        self._history = history
        self._reload = reload
        self._is_busy = is_busy
        self._dom0_answers = dom0_answers
        self._own_name = own_name
        self._started = time.time()
        self._shown: tuple[object, ...] = ()
        self._version = 0
        self._made = Kept[views.Made](scheduler)
        self._json = Kept[str](scheduler)
        self._static = {name: _static(name) for name in STATIC_TYPES}

    async def front(
        self, query: Mapping[str, str], address: str, links: Sequence[tuple[str, str]], known_tag: str
    ) -> Answer:
        """
        `/`, with the parameters `q` and `state`.

        `address`: HOST:PORT by which the reader reached us. `known_tag`: the header If-None-Match.
        """
        await self._give_way(self._made)
        sight, wanted = self._sight(address), filter_of(query)
        version = self._version_now()
        # While this is the same, so is all that a person reads, but for the seconds that the script counts.
        of = (self._started, version, sight.reload, tuple(sight.open_addresses), _words(sight), address, wanted)
        headers = {**_html(), "ETag": _tag(repr(of))}
        if headers["ETag"] in known_tag:
            return Answer(headers, b"", 304)
        made = await self._made.get(version, lambda: views.make(sight))
        return Answer(headers, views.front(sight, made, wanted, links).encode())

    def near(self, untrusted_name: str, address: str) -> Answer | None:
        """`/qube/NAME`; None where there is no such qube."""
        qube = next((one for one in self._fleet.qubes if one.name == untrusted_name), None)
        if qube is None:
            return None
        fleet = self._fleet
        asked_dom0 = fleet.config.discovery is not None and fleet.knows_states and qube.transport == "qrexec"
        near = QubeSight(qube, fleet.state(qube) if asked_dom0 else "", fleet.channel(qube.name).calls())
        return Answer(_html(), views.near(self._sight(address), near).encode())

    async def targets(self, address: str) -> Answer:
        """`/api/v1/targets`."""
        await self._give_way(self._json)
        text = await self._json.get(self._version_now(), lambda: api.targets(self._sight(address)))
        return Answer({"Content-Type": "application/json", **SECURE, **FRESH}, text.encode())

    def static(self, name: str, known_tag: str) -> Answer:
        """A file of ours, which changes with the version only."""
        answer = self._static[name]
        return answer._replace(status=304, body=b"") if answer.headers["ETag"] in known_tag else answer

    async def _give_way(self, kept: "Kept[Any]") -> None:
        """If something has to be made, let those who scrape go first, for a while."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE_SECONDS
        while kept.version != self._version_now() and self._is_busy() and loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_SECONDS)  # the places of those who scrape tell nobody when they are free

    def _version_now(self) -> int:
        """Another number whenever the table has to be made anew."""
        dom0 = {service: error and str(error) for service, error in self._dom0_answers().items()}
        shown = (self._history.version, self._fleet.qubes, self._fleet.config, dom0)
        if shown != self._shown:
            self._shown, self._version = shown, self._version + 1
        return self._version

    def _sight(self, address: str) -> Sight:
        fleet = self._fleet
        settings, found = fleet.config.web, fleet.config.discovery
        is_open = settings.tls is None and not settings.users
        return Sight(
            now=time.time(),
            started=self._started,
            config=fleet.config,
            qubes=fleet.qubes,
            history=self._history,
            reload=self._reload(),
            own_name=self._own_name,
            address=address,
            open_addresses=self.open_addresses if is_open else (),
            discovery=Dom0Says(found.source, fleet.knows_states, fleet.discovery_error) if found else None,
            dom0=_of_dom0(fleet.config, self._dom0_answers()),
        )


class Kept(Generic[T]):
    """Something that is made in turns with the reading of texts, once for each version; those who come share it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.version = -1
        self._task: asyncio.Task[T] | None = None

    async def get(self, version: int, make: Callable[[], Generator[None, None, T]]) -> T:
        """It goes on being made where the one who asked first goes away."""
        task = self._task
        if task is None or version != self.version or (task.done() and (task.cancelled() or task.exception())):
            self.version = version
            task = self._task = asyncio.get_running_loop().create_task(self._scheduler.run(make()))
        return await asyncio.shield(task)


def filter_of(untrusted_query: Mapping[str, str]) -> Filter:
    """What is wanted of the table. A state that does not exist is all states."""
    state = next((one for one in ORDER if one == untrusted_query.get("state")), None)
    return Filter(untrusted_query.get("q", "")[:MAX_FILTER_LENGTH], state)


def _of_dom0(config: Config, answers: Mapping[str, ScrapeError | None]) -> tuple[Dom0Says, ...]:
    """All kinds of call that [dom0] makes; single properties in the place of all, where that is how they are had."""
    one_by_one = PROPERTY in answers and PROPERTIES not in answers
    services = [PROPERTY if one_by_one and one == PROPERTIES else one for one in dom0_services(config)]
    return tuple(Dom0Says(one, one in answers, answers.get(one)) for one in services)


def _words(sight: Sight) -> tuple[object, ...]:
    """What the banners say."""
    found = sight.discovery
    error = str(found.error) if found and found.error else ""
    return (sight.is_silent and int(sight.silent_for / 60), found and found.known, error)


def _html() -> dict[str, str]:
    return {"Content-Type": "text/html; charset=utf-8", **SECURE, **FRESH}


def _static(name: str) -> Answer:
    body = (STATIC / name).read_bytes()
    headers = {"Content-Type": STATIC_TYPES[name], **SECURE, **FRESH}
    return Answer({**headers, "ETag": _tag(body.decode())}, body)


def _tag(text: str) -> str:
    """A weak one: two pages that have it say the same."""
    return f'W/"{hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]}"'
