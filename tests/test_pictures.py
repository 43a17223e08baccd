# SPDX-License-Identifier: GPL-3.0-or-later
"""The pictures in the documentation, and how they are made small."""

import re
import struct
import zlib

from tests.helpers import ROOT
from tests.pictures import FOLDER, pixels, with_palette

MOST_BYTES = 100_000


def test_the_documentation_shows_each_picture_and_they_are_small() -> None:
    """None is missing, and none is shown nowhere."""
    shown = {
        (page.parent / path).resolve()
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for path in re.findall(r"!\[[^]]+\]\(([^):]+\.png)\)", page.read_text(encoding="utf-8"))
    }
    assert shown == set(FOLDER.glob("*.png"))
    for path in shown:
        assert path.stat().st_size < MOST_BYTES, path
        assert path.read_bytes()[25] == 3, "it has a palette"


def test_a_picture_with_few_colours_keeps_them() -> None:
    """Each of the five filters of a PNG is undone."""
    width, filters = 4, range(5)
    lines = [bytes((at * 40, line * 20, 7)[channel] for at in range(width) for channel in range(3)) for line in filters]
    data, before = b"", bytes(width * 3)
    for kind, line in zip(filters, lines, strict=True):
        row = bytearray()
        for at, value in enumerate(line):
            left, up = line[at - 3] if at >= 3 else 0, before[at]
            corner = before[at - 3] if at >= 3 else 0
            guess = left + up - corner
            nearest = min((left, up, corner), key=lambda one: abs(guess - one))
            row.append((value - (0, left, up, (left + up) // 2, nearest)[kind]) & 255)
        data += bytes([kind]) + row
        before = line
    head = struct.pack(">IIBBBBB", width, len(lines), 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        png += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    assert pixels(png) == (width, 3, lines)
    small = with_palette(png, height=3)
    colours = small[small.index(b"PLTE") + 4 : small.index(b"IDAT") - 8]
    assert {colours[at : at + 3] for at in range(0, len(colours), 3)} == {
        line[at : at + 3] for line in lines[:3] for at in range(0, len(line), 3)
    }
