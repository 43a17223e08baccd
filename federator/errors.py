# SPDX-License-Identifier: GPL-3.0-or-later
"""
Every exception raised on purpose. Anything else is a bug of ours: it is not caught, and shows as one.

    FederatorError
        StartError           the daemon cannot start: no such program, port in use
        ConfigError          "FILE: key.path: what is wrong; what to do"
        StoppingError        the daemon is being stopped while somebody waits for a scrape
        BusyError            as many requests as may be are being served already
        HandshakeError       a client failed at TLS
        ScrapeError          one target or qube failed; the page stands
            RefusedError              qrexec refused the call
            NoServiceError            the qube has no (working) ruddo.PrometheusProxy
            NotRunningError           the qube is known not to run; it was not called
            ClosedError               the channel ended, or could not be opened
            TimedOutError             the time was over
            ProtocolError             the qube's end broke the protocol
            EndpointError             the qube's own files do not say, or not rightly, what an endpoint's name means
            ExporterUnreachableError  the service could not get an answer out of the exporter
            HttpError                 the exporter's answer is not the HTTP that a scrape needs
            ExpositionError           none of its lines could be passed on, or it is cut, or it is a web page
            BodySizeLimitError        }
            SampleLimitError          } the target exceeds the limit of that name
            LabelLimitError           } (one series too long is dropped; where nothing else is there, it is this)

The message of a ScrapeError is for people: one line, in Qubes' words, with the remedy where there is one. Bytes of a
qube stand in it only through `shown`.
"""

from typing import ClassVar, Self

# Enough of a foreign line to recognise it by; the rest only fills the journal.
SHOWN_LENGTH = 160


class FederatorError(Exception):
    """The root of the tree."""


class StartError(FederatorError):
    """The daemon cannot start as it is configured on this machine."""


class ConfigError(FederatorError):
    """The configuration is not usable; names file, key and remedy."""


class StoppingError(FederatorError):
    """The daemon is being stopped."""


class BusyError(FederatorError):
    """Too many scrapes at one time."""


class HandshakeError(FederatorError):
    """A client failed at TLS."""


class ScrapeError(FederatorError):
    """One target or one qube failed in one scrape."""

    reason: ClassVar[str]

    def bare(self) -> Self:
        """The same error without its traceback, for one that is kept: a traceback holds all that its frames hold."""
        return type(self)(str(self))


class RefusedError(ScrapeError):
    """Qrexec refused the call."""

    reason = "refused"


class NoServiceError(ScrapeError):
    """The service is not in the qube, or cannot be run there."""

    reason = "no_service"


class NotRunningError(ScrapeError):
    """The qube does not run, and was not called."""

    reason = "not_running"


class ClosedError(ScrapeError):
    """The channel ended, or could not be opened."""

    reason = "closed"


class TimedOutError(ScrapeError):
    """The time was over."""

    reason = "timeout"


class ProtocolError(ScrapeError):
    """The qube's end broke the protocol."""

    reason = "protocol"


class EndpointError(ScrapeError):
    """The qube's own files do not say, or not rightly, what an endpoint's name means."""

    reason = "endpoint"


class ExporterUnreachableError(ScrapeError):
    """The service got no HTTP answer from the exporter."""

    reason = "connection"


class HttpError(ScrapeError):
    """The exporter's answer is not the HTTP that a scrape needs: another status than 200, cut, compressed, no HTTP."""

    reason = "http"


class ExpositionError(ScrapeError):
    """Nothing of the exporter's text could be passed on."""

    reason = "exposition"


class BodySizeLimitError(ScrapeError):
    """The exporter's text exceeds scrape.body_size_limit."""

    reason = "body_size_limit"


class SampleLimitError(ScrapeError):
    """The exporter's text exceeds scrape.sample_limit."""

    reason = "sample_limit"


class LabelLimitError(ScrapeError):
    """Nothing of the text is left, and a series exceeds one of the scrape.label_* limits."""

    reason = "label_limit"


def shown(untrusted: bytes | str) -> str:
    """
    Foreign bytes as they may stand in a log line or on a terminal: quoted, cut, printable ASCII.

    A qube must not be able to write escape sequences, newlines or bidi marks into what a person reads.
    """
    text = untrusted.decode("utf-8", "backslashreplace") if isinstance(untrusted, bytes) else untrusted
    cut = text[:SHOWN_LENGTH]
    return ascii(cut) + ("…" if len(text) > len(cut) else "")
