# SPDX-License-Identifier: GPL-3.0-or-later
"""
How label values and HELP texts are written on the page, so that no byte of them ends the value or the line.

Owns the text format's escapes. Must not know whose labels and texts they are.
"""

import re
from collections.abc import Iterable


def labels_text(labels: Iterable[tuple[str, str]]) -> str:
    """`name="value",…` for labels whose names were checked. The values may be any text."""
    return ",".join(f'{name}="{label_value(value)}"' for name, value in labels)


def label_value(value: str) -> str:
    """A label's value, escaped, without its quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def help_text(untrusted_text: str) -> bytes:
    """
    The text of a target's HELP line as it stands on the page.

    HELP has two escapes, for the newline and the backslash. A backslash before any other character is only a backslash.
    """
    plain = re.sub(r"\\([\\n])", lambda match: "\n" if match[1] == "n" else "\\", untrusted_text)
    return plain.replace("\\", "\\\\").replace("\n", "\\n").encode()
