# SPDX-License-Identifier: GPL-3.0-or-later
"""
A sample's value: would Prometheus take it?

Owns that one question, for one value and for many at once, which is ten times cheaper. Must not know lines or series.
"""

import math
import re
from collections.abc import Iterable

# Go's strconv.ParseFloat, less hexadecimal, which the text format does not take. Python's float() takes more.
_NUMBER = re.compile(rb"[+-]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?")
_NOT_FINITE = re.compile(rb"(?i:nan|[+-]?inf(?:inity)?)")
# How values look where nothing is unusual, line by line: all of it finite, and short. So many at a time, because
# Python's regular expressions remember every turn of a group.
_USUAL = re.compile(rb"(?:(?:[-+]?[0-9]{1,99}+\.?[0-9]{0,99}+(?:e[-+]?[0-9]{1,2}+)?|NaN|[-+]Inf)\n){1,200}")
# The parser writes huge integers out as int before it looks at them; nobody measures anything to 400 digits.
_MAX_VALUE = 400


def is_value(untrusted_value: bytes) -> bool:
    """Would Go's strconv.ParseFloat take it? Out of float64's range is an error there, where Python says inf."""
    if len(untrusted_value) > _MAX_VALUE:
        return False
    if _NUMBER.fullmatch(untrusted_value):
        return math.isfinite(float(untrusted_value))
    return _NOT_FINITE.fullmatch(untrusted_value) is not None


def are_values(untrusted_values: Iterable[bytes]) -> bool:
    """`all(map(is_value, …))`, in bulk, for values without a newline. Many are the same; each is looked at once."""
    untrusted_distinct = set(untrusted_values)
    untrusted_joined = b"\n".join([*untrusted_distinct, b""])
    end = 0
    while match := _USUAL.match(untrusted_joined, end):
        end = match.end()
    return end == len(untrusted_joined) or all(map(is_value, untrusted_distinct))
