# SPDX-License-Identifier: GPL-3.0-or-later
"""
`/api/v1/targets`: what the status page shows, for programs, in the shape of Prometheus' API of that name.

Owns the names of its fields, which are stable. Must not know HTTP.
"""

import json
from collections.abc import Generator
from typing import Any

from federator import remedies, units
from federator.history import TargetRow
from federator.model import Endpoint, Qube, Target
from federator.policy import dom0_needs
from federator.sight import Dom0Says, Sight

# A target takes some 10 µs.
SLICE = 100


def targets(sight: Sight) -> Generator[None, None, str]:
    """The answer as JSON, made in slices."""
    made: list[str] = []
    for qube in sight.qubes:
        for target in qube.targets:
            if len(made) % SLICE == SLICE - 1:
                yield
            made.append(json.dumps(_target(sight, qube, target, sight.history.target(target))))
    dom0 = f',"dom0":{json.dumps([_dom0(sight, one) for one in sight.dom0])}' if sight.dom0 else ""
    return f'{{"status":"success","data":{{"activeTargets":[{",".join(made)}],"droppedTargets":[]{dom0}}}}}\n'


def _url(endpoint: Endpoint) -> str:
    """What is fetched; of an endpoint, only its own qube knows that."""
    return f"http://127.0.0.1:{endpoint}/metrics" if isinstance(endpoint, int) else f"endpoint:{endpoint}"


def _target(sight: Sight, qube: Qube, target: Target, row: TargetRow | None) -> dict[str, Any]:
    """The fields of Prometheus first; the others are ours."""
    error = row.error if row else None
    return {
        "discoveredLabels": {},
        "labels": {"qube": target.qube, "exporter": target.exporter.name, **dict(target.labels)},
        "scrapePool": target.qube,
        "scrapeUrl": _url(target.exporter.endpoint),
        "lastError": f"{error.reason}: {error}" if error else "",
        "lastScrape": units.rfc3339(row.at) if row else "0001-01-01T00:00:00Z",
        "lastScrapeDuration": round(row.seconds, 6) if row else 0,
        "health": "unknown" if row is None else "up" if error is None else "down",
        "scrapeTimeout": f"{sight.allowed:.1f}s",
        "reason": error.reason if error else "",
        "remedy": remedies.remedy(error, target.qube) if error else "",
        "since": units.rfc3339(row.since) if row else "",
        "transport": qube.transport,
        "samples": row.samples if row else 0,
        "bodySizeBytes": row.body_size if row else 0,
        "linesDropped": row.lines_dropped if row else 0,
        "firstDropped": row.complaint if row else "",
    }


def _dom0(sight: Sight, of: Dom0Says) -> dict[str, Any]:
    """One kind of call that [dom0] makes. `policy`: the lines that it needs, where dom0 refuses it."""
    error = of.error
    return {
        "call": of.service,
        "health": of.health,
        "lastError": f"{error.reason}: {error}" if error else "",
        "reason": error.reason if error else "",
        "remedy": remedies.dom0_remedy(error) if error else "",
        "policy": remedies.dom0_lines(error, dom0_needs(sight.config, of.service), sight.own_name),
    }
