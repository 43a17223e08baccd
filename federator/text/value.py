# SPDX-License-Identifier: GPL-3.0-or-later
"""
What a number looks like to Go, and so to Prometheus: would it take this value, and how does it write this number?

Owns these two questions; the first one also for many values at once, which is ten times cheaper. Must not know lines or
series.
"""

import math
import re
from collections.abc import Iterable
from decimal import Decimal

# What Go's strconv.ParseFloat takes, without hexadecimal, which the text format does not take. Python's float() takes
# more than that.
_NUMBER = re.compile(rb"[+-]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][+-]?[0-9]++)?")
_NOT_FINITE = re.compile(rb"(?i:nan|[+-]?inf(?:inity)?)")
# Most values, one per line: short, and finite or one of three words. 200 at a time, because Python's regular
# expressions remember every repetition of a group.
_USUAL = re.compile(rb"(?:(?:[-+]?[0-9]{1,99}+\.?[0-9]{0,99}+(?:e[-+]?[0-9]{1,2}+)?|NaN|[-+]Inf)\n){1,200}")
# prometheus_client turns integers of any length into int first, which takes long. No measurement has 400 digits.
_MAX_VALUE = 400


def is_value(untrusted_value: bytes) -> bool:
    """Whether Go's strconv.ParseFloat takes it. What is out of float64's range is an error there; Python says inf."""
    if len(untrusted_value) > _MAX_VALUE:
        return False
    if _NUMBER.fullmatch(untrusted_value):
        return math.isfinite(float(untrusted_value))
    return _NOT_FINITE.fullmatch(untrusted_value) is not None


def are_values(untrusted_values: Iterable[bytes]) -> bool:
    """`all(map(is_value, …))`, in bulk, for values without a newline. Equal values are checked once."""
    untrusted_distinct = set(untrusted_values)
    untrusted_joined = b"\n".join([*untrusted_distinct, b""])
    end = 0
    while match := _USUAL.match(untrusted_joined, end):
        end = match.end()
    return end == len(untrusted_joined) or all(map(is_value, untrusted_distinct))


def canonical(untrusted_number: str) -> str:
    """
    The number as Prometheus 3 writes it in `le` and `quantile` (FormatOpenMetricsFloat, in Go): 1 is "1.0".

    What is no value that Prometheus would take stays as it is. So do Go's hexadecimal numbers and 1_000, which no
    exporter writes.
    """
    if not untrusted_number.isascii() or not is_value(untrusted_number.encode()):
        return untrusted_number
    number = float(untrusted_number)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "+Inf" if number > 0 else "-Inf"
    if number == 0:
        return "0.0"  # and so is -0
    # Both write the fewest digits that mean this number, but Go changes to an exponent at other sizes than Python.
    if 1e-4 <= abs(number) < 1e6:
        return repr(number)
    digits = len(Decimal(repr(number)).normalize().as_tuple().digits)
    return f"{number:.{digits - 1}e}"
