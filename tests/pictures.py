# SPDX-License-Identifier: GPL-3.0-or-later
"""
The pictures of README.md, made anew into docs/pictures: `python -m tests.pictures`.

They are of the demo, a real Prometheus that scrapes it, and Debian's Chromium. Each has few colours, to be small.
"""

import re
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.browser import Browser, browser
from tests.helpers import ROOT
from tests.parts import Prometheus, eventually

FOLDER = ROOT / "docs" / "pictures"
COLOURS = 128
SCRAPES = 20


def pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    """Width, bytes of a pixel, and the lines of a PNG as Chromium writes it: 8 bits a channel, not interlaced."""
    width, _, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8
    size = {2: 3, 6: 4}[kind]
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    data = zlib.decompress(data)
    lines, before = [], bytearray(width * size)
    for start in range(0, len(data), width * size + 1):
        line = bytearray(data[start + 1 : start + 1 + width * size])
        unfilter(data[start], line, before, size)
        lines.append(bytes(line))
        before = line
    return width, size, lines


def unfilter(kind: int, line: bytearray, before: bytearray, size: int) -> None:
    """As the PNG specification has it."""
    for at in range(len(line) if kind else 0):
        left, up = line[at - size] if at >= size else 0, before[at]
        corner = before[at - size] if at >= size else 0
        guess = left + up - corner
        nearest = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
        line[at] = (line[at] + (0, left, up, (left + up) // 2, nearest)[kind]) & 255


def nearest(colour: bytes, palette: list[bytes]) -> int:
    """The place of the colour that differs least."""

    def difference(at: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(colour, palette[at], strict=True))

    return min(range(len(palette)), key=difference)


def with_palette(png: bytes, height: int) -> bytes:
    """The upper part with few colours: those that are there most often, and for each other one the nearest of these."""
    width, size, lines = pixels(png)
    split = [[line[at : at + 3] for at in range(0, len(line), size)] for line in lines[:height]]
    counts = Counter(colour for line in split for colour in line)
    palette = [colour for colour, _ in counts.most_common(COLOURS)]
    index = {colour: nearest(colour, palette) for colour in counts}
    rows = b"".join(b"\0" + bytes(index[colour] for colour in line) for line in split)
    head = struct.pack(">IIBBBBB", width, len(split), 8, 3, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"PLTE", b"".join(palette)), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return png[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


@contextmanager
def demo() -> Iterator[str]:
    """The demo; its address."""
    words = [sys.executable, "-m", "tests.demo.run"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            found = re.match(r"(http://[^/]*)/", process.stdout.readline())
            assert found, "the demo does not start"
            yield found[1]
        finally:
            process.terminate()


def has_scraped(prometheus: Prometheus, times: int) -> bool:
    """So often, or more often?"""
    return prometheus.query("count_over_time(up{job='qubes'}[1h])").get("", 0.0) >= times


def take(one: Browser, url: str, name: str, *, width: int, height: int, dark: bool = False) -> None:
    """One picture, of the page's upper part."""
    one.open(url)
    one.look(width=width, dark=dark)
    path = FOLDER / f"{name}.png"
    one.picture(path)
    path.write_bytes(with_palette(path.read_bytes(), height))
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


def main() -> None:
    """Make all of them."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, demo() as url, browser(Path(name)) as one:
        prometheus = Prometheus(Path(name), "")
        text = (ROOT / "conf" / "prometheus.yml").read_text(encoding="utf-8")
        text = re.sub(r"(scrape_(?:interval|timeout)): \d+s", r"\1: 3s", text)
        text = re.sub(r"(?s)rule_files:.*?\n(?=\w)", "", text)
        prometheus.config.write_text(text.replace("10.137.0.5:8199", url.removeprefix("http://")), encoding="utf-8")
        with prometheus.running(f"--web.console.templates={ROOT / 'conf'}"):
            for number in range(1, SCRAPES + 1):  # one at a time, as each may take long
                eventually("the next scrape", partial(has_scraped, prometheus, number))
            take(one, f"{url}/", "status", width=1100, height=1190)
            take(one, f"{url}/", "status-dark", width=420, height=1000, dark=True)
            take(one, f"{prometheus.url}/consoles/qubes-at-a-glance.html", "console", width=1280, height=520)


if __name__ == "__main__":
    main()
