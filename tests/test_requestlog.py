# SPDX-License-Identifier: GPL-3.0-or-later
"""What the log says of requests."""

import logging

import pytest

from federator.requestlog import RequestLog


def test_what_a_scraper_asks_wrongly_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """With its parameter. Prometheus says only "server returned HTTP status 400", and the daemon said nothing."""
    caplog.set_level("INFO")
    requests = RequestLog()
    for _ in range(3):
        requests.note("/metrics?qube=vualt\n", 400, "10.0.0.1")
    requests.note("/metrics", 200, "10.0.0.1")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert (vars(record)["path"], vars(record)["client"]) == (r"'/metrics?qube=vualt\n'", "10.0.0.1")


def test_each_request_is_a_line_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """Good ones and others."""
    caplog.set_level("DEBUG")
    requests = RequestLog()
    for code in (200, 200, 503):
        requests.note("/metrics", code, "::1")
    assert [vars(record)["status"] for record in caplog.records] == [200, 200, 503]
