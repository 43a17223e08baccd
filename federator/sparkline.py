# SPDX-License-Identifier: GPL-3.0-or-later
"""
Durations of the last scrapes as a small picture: a line, with gaps and marks where there was none.

Owns its measures: two units of width for each scrape, and whole units of height. Must not know what is drawn.
"""

import math
from collections.abc import Sequence

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
    took = [seconds for seconds in durations if not math.isnan(seconds)]
    scale = (HEIGHT - 1) / max([LEAST_SECONDS, *took])
    line: list[str] = []
    marks: list[str] = []
    last = None
    for number, seconds in enumerate(durations, most - len(durations)):
        if math.isnan(seconds):
            marks.append(f"M{STEP * number} {HEIGHT + 1}h{STEP}")
            last = None
            continue
        y = HEIGHT - int(seconds * scale)
        # A point by itself is seen, since the ends of the line are round.
        line.append(f"M{STEP * number} {y}l0 0" if last is None else _STEPS[y - last])
        last = y
    paths = (tag("path", d="".join(line)), tag("path", class_="d", d="".join(marks)) if marks else None)
    if words:
        return tag("svg", *paths, class_="s", role="img", aria_label=words)
    return tag("svg", *paths, class_="s", aria_hidden="true")
