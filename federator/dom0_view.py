# SPDX-License-Identifier: GPL-3.0-or-later
"""
dom0's part of the status page: which of [dom0]'s calls dom0 answers, and what to do about the others.

Owns what is in this part, and its words. Must not know what else is on the page, nor what dom0 answered.
"""

from collections.abc import Sequence

from federator import remedies
from federator.dom0_replies import (
    FEATURE,
    LIST,
    POOL,
    POOL_USAGE,
    POOLS,
    PROPERTIES,
    PROPERTY,
    STATS,
    VOLUME,
)
from federator.markup import Html, joined, tag
from federator.policy import dom0_needs
from federator.rows import why
from federator.sight import Dom0Says, Sight

# What a person gets from each kind of call.
TELLS = {
    STATS: "CPU and memory of all qubes that run",
    POOLS: "which storage pools there are",
    POOL: "size and usage of each pool",
    POOL_USAGE: "data and metadata of thin pools",
    LIST: "which qubes there are, and their states",
    PROPERTIES: "label, template and NetVM of each qube",
    PROPERTY: "label, template and NetVM of each qube",
    VOLUME: "size and usage of each qube's volumes",
    FEATURE: "updates that wait, and the end of updates",
}
STATES = {"down": "no answer", "up": "answered", "unknown": "not asked yet"}
HEADS = ("call", "state", "what it tells")


def content(sight: Sight) -> Sequence[Html]:
    """A row for each kind of call, those that fail first. Empty without [dom0]."""
    if not sight.dom0:
        return ()
    ordered = sorted(sight.dom0, key=lambda one: one.error is None)
    head = tag("thead", tag("tr", [tag("th", word, scope="col") for word in HEADS]))
    rows = [_row(sight, one) for one in ordered]
    return (tag("h2", "dom0's figures"), tag("table", head, tag("tbody", rows), class_="plain"))


def _row(sight: Sight, of: Dom0Says) -> Html:
    cells = (tag("code", of.service), tag("b", STATES[of.health], class_=of.health), TELLS[of.service])
    row = tag("tr", [tag("td", cell, data_of=name) for name, cell in zip(HEADS, cells, strict=True)])
    if of.error is None:
        return row
    policy = remedies.dom0_lines(of.error, dom0_needs(sight.config, of.service), sight.own_name)
    return joined((row, why(of.error, remedies.dom0_remedy(of.error), policy, columns=len(HEADS))))
