# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a qube or an exporter is down, in words."""

import pytest

from federator import wire
from federator.errors import BodySizeLimitError, ExporterUnreachableError, HttpError, ScrapeError
from federator.model import Answer
from federator.reasons import SlowExporterError, no_text
from tests.helpers import service_module


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (503, b"gone \x1b[2J", HttpError, "status 503"),
        (404, b"", HttpError, "status 404"),
        (204, b"", HttpError, "status 204"),
        (0, b"timed out", SlowExporterError, "in time"),
        (0, b"body larger than 100 bytes", BodySizeLimitError, "100 bytes'; scrape.body_size_limit is 100 bytes"),
        (0, b"body larger than 7 bytes", BodySizeLimitError, "7 bytes'; scrape.body_size_limit is 100 bytes"),
        (0, b"answered with a compressed body (br), which was not asked for", HttpError, "compresses its answer"),
        (0, b"answer cut short: Connection reset by peer", HttpError, "in the middle of its answer"),
        (302, b"redirects to https://127.0.0.1/", HttpError, "status 302: 'redirects to https://127.0.0.1/'"),
        (0, b"closed the connection without an answer: Broken pipe", ExporterUnreachableError, "closed the connection"),
        (0, b"answer cut short: 10 of 20 bytes", HttpError, "in the middle of its answer"),
        (0, b"HTTP headers larger than 16384 bytes", HttpError, "too many HTTP headers"),
        (0, b"not an HTTP answer", HttpError, "does not speak HTTP"),
        (0, b"closed the connection without an answer", ExporterUnreachableError, "closed the connection"),
        (0, b"Connection refused", ExporterUnreachableError, "does it run there?"),
        (0, b"", ExporterUnreachableError, "does it run there?"),
        (0, b"{port}\xff", ExporterUnreachableError, "does it run there?"),
    ],
)
def test_what_is_no_answer_of_an_exporter_that_is_up(
    status: int, body: bytes, error: type[ScrapeError], words: str
) -> None:
    """Each with its reason, and nothing of the qube's bytes as they are; an exporter that answered does run there."""
    found = no_text(Answer(endpoint=9100, status=status, body=body, seconds=0.1, content_type="-"), 100)
    assert isinstance(found, error)
    assert words in str(found)
    assert ("does it run there?" in str(found)) == (words == "does it run there?")
    assert str(found).isprintable()


def test_an_answer_with_a_text_has_no_reason() -> None:
    """HTTP status 200, whatever the body is."""
    assert no_text(Answer(endpoint=9100, status=200, body=b"", seconds=0.1, content_type="-"), 100) is None


WORDS = ("TIMED_OUT", "WHOLE", "BODY_LARGER", "COMPRESSED", "CUT_SHORT", "NOT_HTTP", "NO_ANSWER_AT_ALL", "HEAD_LARGER")


@pytest.mark.parametrize("name", WORDS)
def test_the_service_and_the_daemon_have_the_same_words(name: str) -> None:
    """Invariant 9: what the service says where there is no answer, the daemon understands."""
    assert getattr(service_module(), name) == getattr(wire, name)
