# SPDX-License-Identifier: GPL-3.0-or-later
"""
The command `doctor`: every hop between Prometheus and the exporters, which one is broken, and the remedy.

Owns where its facts come from, its table, its JSON and its exit status. Must not know what the facts mean: `findings`
and `daemonview` do.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import time as now

from federator import config, dom0_probe, findings, host, listeners, once, presence, remedies, units
from federator.access import Access
from federator.daemonview import Pages, daemon_checks, listener_checks
from federator.dom0_findings import Tried, dom0_checks
from federator.errors import ConfigError, StartError
from federator.findings import HERE, Check
from federator.model import Address, Config
from federator.policy import numbered_disposables, rules
from federator.terminal import Progress, say

_MARKS = {"ok": "ok", "warning": "warning", "failed": "FAILED", "skipped": "skipped"}
# The time to send the daemon's pages in, beside that to make them.
_SEND_SECONDS = 5.0


async def examine(path: Path, web_file: Path | None, *, as_json: bool) -> int:
    """Check every hop and print what came of it; 0 if none failed, else 1."""
    progress = Progress()
    try:
        checks = await _checks(path, web_file, progress)
    finally:
        progress.clear()
    failed = sum(check.result == "failed" for check in checks)
    if as_json:
        say(json.dumps({"ok": not failed, "checks": [asdict(check) for check in checks]}))
    else:
        for line in table(checks):
            say(line)
    return 1 if failed else 0


async def _checks(path: Path, web_file: Path | None, progress: Progress) -> list[Check]:
    progress.show("reading the configuration, and looking at this qube")
    place = presence.place()
    try:
        settings = config.load(path, web_file)
        Access(settings.web, host.own_name())  # finds certificates and packages that are missing
    except (ConfigError, StartError) as error:
        faults = [Check("configuration", HERE, "failed", line) for line in str(error).splitlines()]
        return [*faults, *findings.place_checks(place, calls=True)]
    checks = [*_configuration(settings, web_file), *findings.place_checks(place, calls=settings.calls)]
    found_at = [await listeners.at(address, settings) for address in settings.web.listen_addresses]
    file = config.identity(settings.path)
    checks += listener_checks(found_at, file, tls=settings.web.tls is not None)
    checks.append(findings.firewall_check(place, settings.web.listen_addresses))
    try:
        host.check(settings)
        host.check_addresses(settings)
    except (ConfigError, StartError) as error:
        return [
            *checks,
            Check("configuration" if isinstance(error, ConfigError) else "program", HERE, "failed", str(error)),
        ]
    checks.append(Check("program", HERE, "ok", "all programs are there that are run"))
    found = await once.collect(settings, (), progress, once.Watcher())
    checks += _discovery(settings, found)
    checks += findings.target_checks(settings, found.snapshot, found.versions, host.own_name())
    checks += findings.clock_checks(found.snapshot)
    tried: Sequence[Tried] = ()
    if settings.dom0:
        progress.show("asking dom0 for its figures")
        tried = await dom0_probe.probe(settings)
        checks += dom0_checks(tried, host.own_name())
    for address, listener in zip(settings.web.listen_addresses, found_at, strict=True):
        if listener.there == "daemon" and listener.untrusted_file in {None, file}:
            progress.show(f"asking the daemon on {listener.address}")
            pages = await _pages(address, settings, tls=listener.tls)
            checks += daemon_checks(pages, found.snapshot, tried, now())
            break
    return checks


def _discovery(settings: Config, found: once.Found) -> list[Check]:
    if settings.discovery is None:
        return []
    if found.discovery_error is not None:
        says = f"dom0 does not say which qubes run: {found.discovery_error}"
    elif settings.discovery.exporters and not found.snapshot.qubes:
        says = "nothing is scraped: no qube is configured, and dom0 named none"
    else:
        return [Check("discovery", HERE, "ok", "dom0 says which qubes run")]
    if found.discovery_error is not None and (what := remedies.here(found.discovery_error)):
        return [Check("discovery", HERE, "failed", says, what)]
    copy = tuple(rules(settings, host.own_name()))
    return [Check("discovery", HERE, "failed", says, "dom0's policy needs these lines:", copy)]


def _configuration(settings: Config, web_file: Path | None) -> list[Check]:
    size = f"{settings.path}: exporters: {len(settings.targets)}, qubes: {len(settings.qubes)}"
    doubts = (*numbered_disposables(settings), *config.without_effect(settings))
    return [
        Check("configuration", HERE, "ok", size),
        *(Check("configuration", HERE, "warning", line) for line in doubts),
        *(Check("configuration", HERE, "failed", line) for line in presence.unreadable(settings, web_file)),
    ]


async def _pages(address: Address, settings: Config, *, tls: bool) -> Pages:
    """The counters first, so that they do not count this request for /metrics."""
    limit = settings.scrape.memory_limit
    try:
        async with asyncio.timeout(settings.scrape.timeout + _SEND_SECONDS):
            _, proxy = await listeners.fetch(address, "/metrics/proxy", limit, tls=tls)
            status, metrics = await listeners.fetch(address, "/metrics", limit, tls=tls)
    except TimeoutError:
        return Pages(0)
    return Pages(status, metrics.decode("ascii", "replace"), proxy.decode("ascii", "replace"))


def table(checks: Sequence[Check]) -> list[str]:
    """
    A line for each check, in columns, with what to do below it, and the sum of all.

    The hops of an exporter that are well stand on one line, and those behind a broken one on none.
    """
    rows = _rows(checks)
    results, subjects, hops = (
        max(map(len, column))
        for column in (
            [_MARKS[row.result] for row in rows],
            [row.subject for row in rows],
            [row.hop for row in rows],
        )
    )
    lines = []
    for row in rows:
        lines.append(f"{_MARKS[row.result]:{results}}  {row.subject:{subjects}}  {row.hop:{hops}}  {row.says}")
        lines += [f"    {row.remedy}"] if row.remedy else []
        lines += [f"        {line}" for line in row.copy]
    failed, warned = (sum(check.result == result for check in checks) for result in ("failed", "warning"))
    return [*lines, f"{units.plural(len(checks), 'check')}: {failed} failed, {units.plural(warned, 'warning')}"]


def _rows(checks: Sequence[Check]) -> list[Check]:
    rows: list[Check] = []
    for check in checks:
        last = rows[-1] if rows else None
        if check.hop not in findings.HOPS:
            rows.append(check)
        elif last and check.result == last.result == "ok" and check.subject == last.subject:
            first = last.hop.partition(" to ")[0]
            rows[-1] = replace(last, hop=f"{first} to {check.hop}", says=f"{last.says}; {check.says}")
        elif check.result != "skipped":
            rows.append(check)
    return rows
