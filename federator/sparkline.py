# SPDX-License-Identifier: GPL-3.0-or-later
"""
Durations of the last scrapes as a small picture: a line, with gaps and marks where there was none.

Owns its measures: two units of width for each scrape, and whole units of height. Must not know what is drawn.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from operator import sub

from federator.markup import Html, tag

STEP = 2
HEIGHT = 18
# A line that is all noise, some milliseconds up and down, is to be flat.
LEAST_SECONDS = 0.05


# What is written for each step of the line, by how far it goes down.
_STEPS = {rise: f" {STEP}{rise:+d}".replace("+", " ") for rise in range(-HEIGHT, HEIGHT + 1)}


def sparkline(durations: Sequence[float], most: int, words: str = "") -> Html:
    """
    The newest is at the right, and there is room for the `most` that there may be.

    `words` say what is seen; without them, it is decoration.
    """
    took = durations if not math.isnan(sum(durations)) else [one for one in durations if not math.isnan(one)]
    scale = (HEIGHT - 1) / max([LEAST_SECONDS, *took])
    line, marks = "", ""
    number = most - len(durations)
    for is_gap, run in [(False, durations)] if took is durations else groupby(durations, math.isnan):
        if is_gap:
            width = STEP * sum(1 for _ in run)
            marks += f"M{STEP * number} {HEIGHT + 1}h{width}"
            number += width // STEP
            continue
        heights = [HEIGHT - int(seconds * scale) for seconds in run]
        # A point by itself is seen, since the ends of the line are round.
        line += f"M{STEP * number} {heights[0]}l0 0" if heights else ""
        line += "".join(map(_STEPS.__getitem__, map(sub, heights[1:], heights)))
        number += len(heights)
    paths = (tag("path", d=line), tag("path", class_="d", d=marks) if marks else None)
    if words:
        return tag("svg", *paths, class_="s", role="img", aria_label=words)
    return tag("svg", *paths, class_="s", aria_hidden="true")
