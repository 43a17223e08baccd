# SPDX-License-Identifier: GPL-3.0-or-later
"""
Every exception raised on purpose. Anything else is a bug of ours: it is not caught, and shows as one.

    FederatorError
        StartError           the daemon cannot start: no such program, port in use
        ConfigError          "FILE: key.path: what is wrong; what to do"
        Stopping             the daemon is being stopped while somebody waits for a scrape
        ScrapeError          one target or qube failed; the page stands
            Refused          qrexec refused the call
            NoService        the qube has no (working) ruddo.PrometheusProxy
            NotRunning       the qube is known not to run; it was not called
            Closed           the channel ended, or could not be opened
            TimedOut         the time was over
            Protocol         the qube's end broke the protocol
            Connection       the service could not get an answer out of the exporter
            Http             the exporter answered with another status than 200
            Exposition       no line of its text could be passed on, or the text is cut
            BodySizeLimit    } the target exceeds the limit of that name
            SampleLimit      }
            LabelLimit       }

The message of a ScrapeError is for people: one line, in Qubes' words, with the remedy where there is one. Bytes of a
qube stand in it only through `shown`.
"""

from typing import ClassVar

# Enough of a foreign line to recognise it by; the rest only fills the journal.
SHOWN_LENGTH = 160


class FederatorError(Exception):
    """The root of the tree."""


class StartError(FederatorError):
    """The daemon cannot start as it is configured on this machine."""


class ConfigError(FederatorError):
    """The configuration is not usable; names file, key and remedy."""


class Stopping(FederatorError):
    """The daemon is being stopped."""


class ScrapeError(FederatorError):
    """One target or one qube failed in one scrape."""

    reason: ClassVar[str]


class Refused(ScrapeError):
    """Qrexec refused the call."""

    reason = "refused"


class NoService(ScrapeError):
    """The service is not in the qube, or cannot be run there."""

    reason = "no_service"


class NotRunning(ScrapeError):
    """The qube does not run, and was not called."""

    reason = "not_running"


class Closed(ScrapeError):
    """The channel ended, or could not be opened."""

    reason = "closed"


class TimedOut(ScrapeError):
    """The time was over."""

    reason = "timeout"


class Protocol(ScrapeError):
    """The qube's end broke the protocol."""

    reason = "protocol"


class Connection(ScrapeError):
    """The service got no HTTP answer from the exporter."""

    reason = "connection"


class Http(ScrapeError):
    """The exporter answered with another status than 200."""

    reason = "http"


class Exposition(ScrapeError):
    """Nothing of the exporter's text could be passed on."""

    reason = "exposition"


class BodySizeLimit(ScrapeError):
    """The exporter's text exceeds scrape.body_size_limit."""

    reason = "body_size_limit"


class SampleLimit(ScrapeError):
    """The exporter's text exceeds scrape.sample_limit."""

    reason = "sample_limit"


class LabelLimit(ScrapeError):
    """A series exceeds one of the scrape.label_* limits."""

    reason = "label_limit"


def shown(untrusted: bytes | str) -> str:
    """
    Foreign bytes as they may stand in a log line or on a terminal: quoted, cut, printable ASCII.

    A qube must not be able to write escape sequences, newlines or bidi marks into what a person reads.
    """
    text = untrusted.decode("utf-8", "backslashreplace") if isinstance(untrusted, bytes) else untrusted
    cut = text[:SHOWN_LENGTH]
    return ascii(cut) + ("…" if len(text) > len(cut) else "")
