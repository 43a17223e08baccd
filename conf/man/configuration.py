# SPDX-License-Identifier: GPL-3.0-or-later
"""
docs/configuration.md as prometheus-qubes-proxy.toml(5), on stdout: `make install-proxy` runs it.

Owns what that document's Markdown looks like in roff. Must not know what it says.
"""

import re
from collections.abc import Iterator
from pathlib import Path

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "configuration.md"
HEAD = r""".\" Made from docs/configuration.md.
.TH PROMETHEUS-QUBES-PROXY.TOML 5 2026-11-26 "prometheus-qubes-proxy"
.SH NAME
prometheus\-qubes\-proxy.toml \- which exporters of which qubes are scraped
.SH DESCRIPTION"""
FOOT = r""".SH SEE ALSO
.BR prometheus\-qubes\-proxy (1),
.BR ruddo.PrometheusDiscover (8),
.BR ruddo.PrometheusProxy (8)"""


def inline(text: str) -> str:
    """Text of one paragraph: code and bold words in bold, links as their text."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    text = re.sub(r"\[([^][]+)\]\([^()]+\)", r"\1", text)
    text = re.sub(r"\*\*(.+?)\*\*|`([^`]+)`", lambda found: rf"\fB{found[1] or found[2]}\fR", text)
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def paragraph(block: str) -> Iterator[str]:
    """One paragraph, list, example or table."""
    lines = block.splitlines()
    if block.startswith("|"):
        yield ".SH KEYS"
        for line in lines[2:]:
            key, default, meaning = (inline(cell.strip()) for cell in line.strip("|").split("| ", maxsplit=2))
            yield from (".TP", key, f"{meaning.rstrip('.')}.")
            if default:
                yield f"Default: {default}."
        yield ".SH NOTES"
    elif block.startswith("    "):
        yield from (".PP", ".nf", *(inline(line) for line in lines), ".fi")
    elif block.startswith("- "):
        for item in re.split(r"^- ", block, flags=re.MULTILINE)[1:]:
            yield from (r".IP \(bu 2", inline(re.sub(r"\s+", " ", item.strip())))
    else:
        yield from (".PP", inline(re.sub(r"\s+", " ", block)))


def main() -> None:
    """Write the page."""
    _title, *blocks = DOCUMENT.read_text(encoding="utf-8").strip().split("\n\n")
    page = "\n".join((HEAD, *(line for block in blocks for line in paragraph(block)), FOOT))
    print(re.sub(r"^(\.SH .*)\n\.PP$", r"\1", page, flags=re.MULTILINE))


main()
