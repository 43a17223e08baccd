# SPDX-License-Identifier: GPL-3.0-or-later
"""
What the daemon itself does, counted for /metrics/proxy.

Owns every name and help text of that page, which is kept apart so that it never mixes with the qubes'. Must not know
who counts, nor why.
"""

from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

from federator.model import Outcome


class Counters:
    """
    What /metrics/proxy shows. A registry of its own: nothing a library registers globally gets in.

    `config_file`: see config_read; empty where no daemon runs.
    """

    def __init__(self, config_file: str = "") -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.requests = Counter(
            "qubes_proxy_http_requests_total", "HTTP requests answered.", ["path", "code"], registry=self.registry
        )
        self.bad_requests = Counter(
            "qubes_proxy_http_bad_requests_total",
            "Requests that were no HTTP or not complete when their connection ended, and failed TLS handshakes.",
            registry=self.registry,
        )
        self._calls = Counter(
            "qubes_proxy_qrexec_calls_total",
            "Calls made to qubes, each of which dom0 had to decide on (or, for local qubes, a process started).",
            registry=self.registry,
        )
        self._calls_open = Gauge("qubes_proxy_qrexec_calls_open", "Calls open now.", registry=self.registry)
        self.scrapes = Counter(
            "qubes_proxy_qube_scrapes_total",
            "Scrapes of a qube; requests at one time share one.",
            registry=self.registry,
        )
        self.failures = Counter(
            "qubes_proxy_exporter_failures_total",
            "Scrapes of an exporter that failed.",
            ["reason"],
            registry=self.registry,
        )
        self.lines_dropped = Counter(
            "qubes_proxy_lines_dropped_total", "Lines that could not be passed on.", registry=self.registry
        )
        self._config = Gauge("qubes_proxy_config_info", "The configuration file.", ["path"], registry=self.registry)
        if config_file:
            self.config_read(config_file)

    def config_read(self, file: str) -> None:
        """The daemon took this one, as config.identity tells it from others."""
        self._config.clear()
        self._config.labels(file).set(1)

    def call_started(self) -> None:
        """A process was started."""
        self._calls.inc()
        self._calls_open.inc()

    def call_ended(self) -> None:
        """A process is gone."""
        self._calls_open.dec()

    def count_scrape(self, outcomes: Collection[Outcome]) -> None:
        """One qube was scraped, or one exporter forwarded."""
        self.scrapes.inc()
        for outcome in outcomes:
            if outcome.error:
                self.failures.labels(outcome.error.reason).inc()
            if outcome.reading:
                self.lines_dropped.inc(outcome.reading.lines_dropped)

    def page(self) -> bytes:
        """The page of /metrics/proxy."""
        return generate_latest(self.registry)
