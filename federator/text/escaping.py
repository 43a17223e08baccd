# SPDX-License-Identifier: GPL-3.0-or-later
"""
How label values and HELP texts are written on the page, so that no byte of theirs ends a line or a value.

Owns the text format's escapes. Must not know whose labels and texts they are.
"""

import re
from collections.abc import Iterable


def labels_text(labels: Iterable[tuple[str, str]]) -> str:
    """`name="value",…` for labels whose names were checked; any value will do."""
    return ",".join(f'{name}="{label_value(value)}"' for name, value in labels)


def label_value(value: str) -> str:
    """A label's value as it stands between its quotes."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def help_text(untrusted_text: str) -> bytes:
    """
    The text of a HELP line, as it came, as the page has it.

    HELP knows two escapes; a backslash before anything else stands for itself and is written as such.
    """
    plain = re.sub(r"\\([\\n])", lambda match: "\n" if match[1] == "n" else "\\", untrusted_text)
    return plain.replace("\\", "\\\\").replace("\n", "\\n").encode()
