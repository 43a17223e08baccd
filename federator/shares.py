# SPDX-License-Identifier: GPL-3.0-or-later
"""
What scrape.memory_limit is divided into, and how large a page may be.

Owns these parts. Must not know what is done where one is used up.

    1/2   what is remembered of texts from one scrape to the next: two thirds of it for shapes, the rest for lines
    1/4   texts that are received and read
    1/4   texts that were read, while their scrapes wait for others

A page has a size that can be made and sent in time, and that fits in memory beside all of this. 50 qubes with a node
and a process exporter each make a page of 15 to 25 MB, with 75,000 to 150,000 samples.

The default is for a NetVM of 400 MB. The program itself takes 50 MB, and reading the largest text 80 MB meanwhile.
"""

from federator.model import Scrape

# A page has no more samples than so many exporters may have. Prometheus takes some 1 µs for a sample that it knows, and
# 10 µs for a new one.
PAGE_SAMPLES = 4


def remembered(settings: Scrape) -> int:
    """Bytes of shapes; memory.Memory has half as many for lines."""
    return settings.memory_limit // 3


def in_flight(settings: Scrape) -> int:
    """Bytes of texts that are received and read."""
    return settings.memory_limit // 4


def read(settings: Scrape) -> int:
    """Bytes of texts that were read: of two pages, so that two scrapers may come at different times."""
    return settings.memory_limit // 4


def page_size(settings: Scrape) -> int:
    """Bytes of texts on one page."""
    return settings.memory_limit // 6


def page_samples(settings: Scrape) -> int:
    """Samples on one page."""
    return PAGE_SAMPLES * settings.limits.samples


def being_sent(settings: Scrape) -> int:
    """Bytes of all pages that are made and sent. They are there beside the memory limit, for seconds at most."""
    return settings.memory_limit // 2
