# SPDX-License-Identifier: GPL-3.0-or-later
"""
Python's garbage collector, kept away from what the daemon remembers.

Owns when the collector looks at what. Must not know what is remembered, nor whether anybody waits: the caller says.

What is remembered of texts is hundreds of thousands of objects. A full collection looks at all of them, finds nothing,
and holds the event loop: for 0.3 s with 200 qubes of three exporters, at every fourth scrape. So what has come to stay
is left out of collections ("frozen"). Nothing changes for an object that is no longer referred to: it goes at once.
Only one that is part of a cycle, and became garbage while it was frozen, stays until the next time.
"""

import gc

# The collector looks at new objects when there are so many more than before; Python's own number is 700. With this one,
# most objects of a scrape go before the collector comes.
NEW_OBJECTS = 10_000
# What has come to stay since the last time is frozen when it is so many objects, and this part of those that are.
LEAST_GROWTH = 20_000
GROWTH = 0.25


class Collector:
    """The collector of this process, of which there is one."""

    def __init__(self) -> None:
        self._frozen = 0
        _, *older = gc.get_threshold()
        gc.set_threshold(NEW_OBJECTS, *older)

    def settle(self) -> None:
        """Look at all that there is, and freeze it, if much came to stay. For a moment in which nobody waits."""
        gc.collect(1)
        if len(gc.get_objects(generation=2)) < max(LEAST_GROWTH, GROWTH * self._frozen):
            return
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._frozen = gc.get_freeze_count()
