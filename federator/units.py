# SPDX-License-Identifier: GPL-3.0-or-later
"""
Numbers as people read them: times, ages, sizes.

Owns their units. Must not know what the numbers are of.
"""

from datetime import UTC, datetime

_AGES = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"))
_SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def age(seconds: float) -> str:
    """A time that has passed: its largest unit, rounded down."""
    whole = max(0, int(seconds))
    return next((f"{int(whole / unit)} {name}" for unit, name in _AGES if whole >= unit), f"{whole} s")


def duration(seconds: float) -> str:
    """A time that something took."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s"


def size(count: int) -> str:
    """Bytes."""
    return next((f"{count / unit:.1f} {name}" for unit, name in _SIZES if count >= unit), f"{count} B")


def plural(count: int, what: str) -> str:
    """So many of them."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def rfc3339(at: float) -> str:
    """A time since 1970, for programs."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(at: float) -> str:
    """A time since 1970, for people."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
