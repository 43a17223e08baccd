# SPDX-License-Identifier: GPL-3.0-or-later
"""
What the proxy is measured against. As a program, a server with the same channels, pipes and HTTP library:

    python -m tests.bench.plain join   CONFIG PORT    joins the bodies without looking at them: the floor
    python -m tests.bench.plain parse  CONFIG PORT    does the work with prometheus-client alone
"""

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path

from aiohttp import web
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from federator import config
from federator.budget import Budget
from federator.call import ConnectionLimiter
from federator.channel import Channel
from federator.counters import Counters
from federator.errors import ScrapeError
from federator.host import watch_children
from federator.model import Answer, Endpoint
from federator.pace import Pace
from federator.request import Deadline, Request
from federator.web import SEND_BYTES

# qube, exporter, body
Body = tuple[str, str, bytes]


class _Registry:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def joined(bodies: Iterable[Body]) -> bytes:
    """The least that anybody could do."""
    return b"".join([body for _, _, body in bodies])


def parsed(bodies: Iterable[Body]) -> bytes:
    """Parse, relabel, regroup, render: what a straightforward proxy does."""
    families: dict[str, Metric] = {}
    for qube, exporter, body in bodies:
        for family in text_string_to_metric_families(body.decode()):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                labels = {**sample.labels, "qube": qube, "exporter": exporter}
                merged.samples.append(Sample(sample.name, labels, sample.value))
    return generate_latest(_Registry(families.values()))


async def _serve(how: str, path: Path, port: int) -> None:
    watch_children()
    settings = config.load(path)
    limiter, counters = ConnectionLimiter(settings.qrexec.connect_limit), Counters()
    texts = Budget(1 << 40)
    channels = [Channel(qube, settings.qrexec, limiter, counters, texts, Pace(0.0, 1)) for qube in settings.qubes]
    work = {"join": joined, "parse": parsed}[how]

    async def metrics(request: web.Request) -> web.StreamResponse:
        bodies: list[Body] = []

        async def ask(channel: Channel) -> None:
            names = {target.exporter.endpoint: target.exporter.name for target in channel.qube.targets}

            def tell(asked: Endpoint, result: Answer | ScrapeError) -> None:
                assert isinstance(result, Answer), result
                bodies.append((channel.qube.name, names[asked], result.body))

            until = asyncio.get_running_loop().time() + settings.scrape.timeout
            deadline = Deadline(until, until)
            await channel.ask(Request(names, deadline, settings.scrape.limits.body_size, tell))

        await asyncio.gather(*map(ask, channels))
        page = work(bodies)
        response = web.StreamResponse(headers={"Content-Type": "text/plain", "Content-Length": str(len(page))})
        await response.prepare(request)
        for start in range(0, len(page), SEND_BYTES):
            await response.write(page[start : start + SEND_BYTES])
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
