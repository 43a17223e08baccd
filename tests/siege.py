# SPDX-License-Identifier: GPL-3.0-or-later
"""
All attacks of attacks.py at one time, for as long as one likes, beside ten honest qubes: every honest scrape has to be
on time and complete, and afterwards the daemon has to hold what it held before.

But for SIGHUP: it comes from root in the NetVM, who may have the qubes called as often as he likes, and after it they
are called again at once.

    python -m tests.siege SECONDS

`make soak` does this for ten minutes.
"""

import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.attacks import ATTACKS, Seen, World, attacked, hostilities, reloads, scrapes, verdicts
from tests.parts import eventually
from tests.soak import Held, connections, held

AT_ONCE = tuple(attack for attack in ATTACKS if attack.during is not reloads)
HONEST = tuple(f"honest{number}" for number in range(10))
# In this time the daemon gives memory back to the system.
CALM_SECONDS = 20.0


def at_rest(world: World) -> Held:
    """What the daemon holds while all are honest, every exporter is up, and each qube has a call."""

    def rests() -> bool:
        # A refused scrape shows no failure either. A call that ended after a scrape is made again by the next one.
        try:
            page = world.daemon.get()
        except OSError:  # this is the hostile clients' address, of which too many connections are closed for a while
            return False
        well = page.status == 200 and "_exporter_failure{" not in page.text
        return well and held(world.daemon.process.pid).processes == world.most_calls

    eventually("all is well, and each qube has a call", rests)
    eventually("no connection is left", lambda: connections(world.daemon.port) == 0)
    return held(world.daemon.process.pid)


def siege(folder: Path, seconds: float, calm: float = CALM_SECONDS) -> tuple[Held, Held, Seen]:
    """What the daemon held before and after, and what honest scrapers saw meanwhile."""
    with attacked(folder, AT_ONCE, honest_qubes=HONEST) as world:
        before = at_rest(world)
        with hostilities(world, AT_ONCE):
            scrapes(world, seconds)
            world.seen.wrong += verdicts(world, AT_ONCE)
        world.daemon.process.send_signal(signal.SIGHUP)  # or hostile qubes would be called again after a minute only
        at_rest(world)
        time.sleep(calm)
        after = at_rest(world)
        if world.seen.wrong:
            print(world.daemon.log, file=sys.stderr)
        return before, after, world.seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        first, last, seen = siege(Path(made), float(sys.argv[1]))
    print(f"before: {first}\nafter:  {last}")
    print(f"{seen.good} of {seen.scrapes} honest scrapes, the longest {max(seen.seconds, default=0.0):.1f} s")
    print(f"wrong: {dict(Counter(seen.wrong))}")
    sys.exit(bool(seen.wrong))
