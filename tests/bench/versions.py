# SPDX-License-Identifier: GPL-3.0-or-later
"""
What a change costs: the daemon of this checkout and that of another one, side by side in one run.

    python -m tests.bench.versions ../before     a git worktree of what is compared with

Each line is a ratio, this one's to the other's: below 1 the change made it cheaper.
"""

import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import texts
from tests.bench.__main__ import CHANCE, CHURN, SCRAPES, Server, machine, started
from tests.helpers import ROOT
from tests.parts import federator, free_port

ROUNDS = 9


@contextmanager
def daemon_of(checkout: Path, folder: Path) -> Iterator[Server]:
    """The daemon of a checkout; it has scraped nothing yet."""
    port, config = free_port(), folder / f"{checkout.name}.toml"
    text = (folder / "proxy.toml").read_text(encoding="utf-8")
    if "min_interval" not in (checkout / "federator" / "config.py").read_text(encoding="utf-8"):
        text = text.replace("min_interval = '0s'\n", "")  # it knows no pace
    config.write_text(text, encoding="utf-8")
    serve = ["serve", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"]
    with started(federator(*serve), folder / f"{port}.log", port, checkout=checkout) as process:
        yield Server(str(checkout), process, port)


def compare(name: str, count: int, bodies: Mapping[str, Sequence[bytes]], other: Path) -> str:
    """CPU of a scrape, and memory afterwards; the two take turns, and the first one changes."""
    ratios = []
    with machine(count, bodies) as folder, ExitStack() as stack:
        both = [stack.enter_context(daemon_of(checkout, folder)) for checkout in (ROOT, other)]
        for one in both:
            for _ in range(3):
                one.get()
        for number in range(ROUNDS):
            for one in both if number % 2 else reversed(both):
                one.round(SCRAPES)
            ratios.append(both[0].cpu[-1] / both[1].cpu[-1])
        memory = both[0].memory("VmRSS") / both[1].memory("VmRSS")
        peak = both[0].peak() / both[1].peak()
    return f"{_row(name, ratios)} {memory:.2f} | {peak:.2f} |"


def first_scrape(name: str, count: int, bodies: Mapping[str, Sequence[bytes]], other: Path) -> str:
    """CPU of the first scrape, calls included."""
    ratios = []
    with machine(count, bodies) as folder:
        for number in range(ROUNDS):
            cpu = {}
            for checkout in (ROOT, other) if number % 2 else (other, ROOT):
                with daemon_of(checkout, folder) as one:
                    before = one.used()
                    one.get()
                    cpu[checkout] = one.used() - before
            ratios.append(cpu[ROOT] / cpu[other])
    return f"{_row(name, ratios)} | |"


def _row(name: str, ratios: Sequence[float]) -> str:
    return f"| {name} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"


def main() -> None:
    """The table."""
    other = Path(os.fspath(sys.argv[1])).resolve()
    both = {name: texts.recorded(name) for name in ("node", "process")}
    print("| 20 qubes × node + process | CPU, median of the ratios | from … to | resident | peak |")  # noqa: RUF001 - times
    print("|---|---|---|---|---|", flush=True)
    print(compare("warm", 20, both, other), flush=True)
    print(first_scrape("first scrape", 20, both, other), flush=True)
    for share in (0.01, 0.1):
        churn = {name: texts.churned(name, share, CHURN, CHANCE) for name in both}
        print(compare(f"{share:.0%} of series new each time", 20, churn, other), flush=True)
    print(compare("1 qube × node, warm", 1, {"node": both["node"]}, other), flush=True)  # noqa: RUF001 - times


if __name__ == "__main__":
    main()
