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


def sparkline(durations: Sequence[float], words: str = "") -> Html:
    """The newest is at the right, for a picture of 60 scrapes. `words` say what is seen; without, it is decoration."""
    top = max([LEAST_SECONDS, *(one for one in durations if not math.isnan(one))])
    line, marks, steps, last = "", "", 0, 0
    for number, seconds in enumerate(durations):
        x = STEP * number
        if math.isnan(seconds):
            marks += f"M{x} {HEIGHT + 1}h{STEP}"
            steps = 0
            continue
        y = HEIGHT - int(seconds / top * (HEIGHT - 1))
        if steps == 0:
            line += f"M{x} {y}h0"  # a point by itself is seen, since the ends of the line are round
        else:
            line += f"{'l' if steps == 1 else ' '}{STEP}{y - last:+d}".replace("+", " ")
        steps, last = steps + 1, y
    paths = (tag("path", d=line), tag("path", class_="d", d=marks) if marks else None)
    if words:
        return tag("svg", *paths, class_="s", role="img", aria_label=words)
    return tag("svg", *paths, class_="s", aria_hidden="true")
